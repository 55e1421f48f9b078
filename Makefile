# Every target sets up what it needs; a second call starts at once.
#   PYTHON       the Python to use, 3.11 to 3.13
#   TORCH_INDEX  the package index to take PyTorch from
# Without TORCH_INDEX, PyTorch's CPU index is looked at beside pip's own: its build is preferred, being named
# "2.13.0+cpu", and nobody downloads CUDA unasked. Where that index cannot be reached, pip's own index serves alone.
PYTHON ?= python3
TORCH_INDEX ?=
TORCH := torch==2.13.0
CPU_INDEX := https://download.pytorch.org/whl/cpu

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),--extra-index-url $(CPU_INDEX) --retries 1)

.PHONY: demo test check docs release clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed-dev
	$(BIN)/python -m pytest -q

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

clean:
	rm -rf .venv demo build dist site .cache docs/commands.md .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/torch: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is no Python 3.11 to 3.13: give one, as in  make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "on Debian: apt-get install python3-venv"; exit 1; }
	$(PIP) install $(TORCH_FROM) $(TORCH)
	touch $@

.venv/installed: .venv/torch pyproject.toml
	$(PIP) install $(TORCH) -e .
	touch $@

.venv/installed-dev: .venv/torch pyproject.toml
	$(PIP) install $(TORCH) -e '.[test,dev]'
	touch .venv/installed $@
