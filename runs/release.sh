#!/usr/bin/env bash
# Build the release, and try the wheel in an empty environment: make release
#   bash runs/release.sh PYTHON [PIP ARGUMENT...]
#   PYTHON        a Python with `build` (the `dev` extra)
#   PIP ARGUMENT  for a pip install before the wheel's, such as torch==2.13.0 and its index
# Writes dist/. The version is segclip.__version__; CHANGELOG.md must have an entry for it, and all must be committed.
set -euo pipefail
python=$(realpath -s "$1")
shift
cd "$(dirname "$0")/.."
limit=100000000  # bytes, PyPI's limit per file

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/segclip/__init__.py)
grep -q "^## \[$version\]" CHANGELOG.md || { echo "CHANGELOG.md has no entry [$version]: write one" >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || { echo "git has uncommitted changes: commit them first" >&2; exit 1; }

rm -rf dist
"$python" -m build
for file in dist/*; do
  size=$(wc -c <"$file")
  echo "$file: $size bytes"
  [ "$size" -lt "$limit" ] || { echo "$file is over $limit bytes" >&2; exit 1; }
done

room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"$python" -m venv "$room/venv"
[ $# = 0 ] || "$room/venv/bin/python" -m pip --disable-pip-version-check install "$@"
"$room/venv/bin/python" -m pip --disable-pip-version-check install dist/*.whl
cd "$room"
# A proxy that does not exist, so that any network access fails.
export http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9
unset PYTHONPATH
venv/bin/python -c 'from PIL import Image, ImageDraw
photo = Image.new("RGB", (320, 240), (90, 160, 230))
ImageDraw.Draw(photo).rectangle((0, 150, 320, 240), fill=(40, 130, 50))
photo.save("photo.png")'
venv/bin/segclip segment photo.png --labels sky grass --out out
for file in photo.overlay.png photo.mask.png photo.json; do [ -s "out/$file" ]; done
[ "$(venv/bin/python -c 'import segclip; print(segclip.__version__)')" = "$version" ]
echo "segclip $version: the wheel works in an empty environment; dist/ is ready to publish (twine upload dist/*)"
