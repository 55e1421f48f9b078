# Every target sets up what it needs; a second call starts at once.
#   PYTHON       the Python to use, 3.11 or newer
#   TORCH_INDEX  the package index to take PyTorch from
# Without TORCH_INDEX, PyTorch's CPU index is looked at beside pip's own: its build is preferred, being named
# "2.13.0+cpu", and nobody downloads CUDA unasked. Where that index cannot be reached, pip's own index serves alone.
PYTHON ?= python3
TORCH_INDEX ?=
TORCH := torch==2.13.0
# What the tests last passed with; a package that it does not name is free. `make lock` writes it anew.
CONSTRAINTS := constraints.txt
CPU_INDEX := https://download.pytorch.org/whl/cpu

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOWEST := .venv-lowest/bin/python
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),--extra-index-url $(CPU_INDEX) --retries 1)

.PHONY: demo picture test test-fast test-lowest check docs lock release clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

# The README's picture, made anew after a change to `mini` or to what is drawn.
picture: demo
	cp demo/demo.jpg docs/images/demo.jpg

test: .venv/installed-dev
	$(BIN)/python -m pytest -q

# Under three minutes: without what is marked slow, and with one thread, because the models of most tests are so small
# that threads spend their time waiting for each other.
test-fast: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow"

# With the lowest versions that pyproject.toml allows, in .venv-lowest; without transformers (the tests compare with it),
# which needs a newer huggingface-hub than the package. Torch is that of the other
# tests, because an old one from pip's own index brings gigabytes of CUDA; where PyTorch's CPU index can be reached, its
# lowest can be tried too:  make test-lowest TORCH=torch==2.7.0
test-lowest:
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST) -m pip install $(TORCH_FROM) $(TORCH)
	$(LOWEST) runs/lowest.py core train annotate export scale web >.venv-lowest/floors.txt
	$(LOWEST) runs/lowest.py test | grep -v transformers >.venv-lowest/tools.txt
	$(LOWEST) -m pip install $(TORCH) -c .venv-lowest/floors.txt -r .venv-lowest/tools.txt -e '.[train,annotate,export,scale,web]'
	$(LOWEST) -m pytest -q -m "not slow" $(addprefix tests/,annotate checkpoints data model segment text web)

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

# Warnings are errors; what is written to site/ fetches nothing when it is read.
docs: .venv/installed-dev
	$(BIN)/python runs/commands.py
	$(BIN)/zensical build --clean --strict

# The wheel in dist/, tried in an empty environment.
release: .venv/installed-dev
	bash runs/release.sh $(BIN)/python $(TORCH_FROM) $(TORCH)

# The newest versions that pyproject.toml allows, written down. Torch is the Makefile's, above, its build the index's.
lock:
	rm -rf .venv
	$(MAKE) .venv/installed-dev CONSTRAINTS=/dev/null
	{ echo '# The versions that CI installs; written by `make lock`.'; \
	  $(PIP) freeze --exclude-editable | grep -v '^torch=='; } >constraints.txt

clean:
	rm -rf .venv .venv-lowest demo build dist site .cache docs/commands.md .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/torch: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: give a newer one, as in  make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "on Debian: apt-get install python3-venv"; exit 1; }
	$(PIP) install $(TORCH_FROM) $(TORCH)
	touch $@

.venv/installed: .venv/torch pyproject.toml $(CONSTRAINTS)
	$(PIP) install $(TORCH) -c $(CONSTRAINTS) -e .
	touch $@

.venv/installed-dev: .venv/torch pyproject.toml $(CONSTRAINTS)
	$(PIP) install $(TORCH) -c $(CONSTRAINTS) -e '.[dev]'
	touch .venv/installed $@
