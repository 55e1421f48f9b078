#!/usr/bin/env bash
# Make the embedded model `mini` from nothing; run it in the repository's folder.
# Hardware, time and results: docs/results.md. Needs `pip install -e .[dev]`.
set -euo pipefail
if [ $# -lt 2 ]; then
    cat >&2 <<'USAGE'
usage: bash runs/mini.sh PAIRS [PAIRS ...] RUN
  PAIRS  a folder with photos and pairs.jsonl, one line per photo: {"image": ..., "captions": [...]},
         the photo's path relative to the folder; several folders are joined, in this order
  RUN    the folder of the run; after an interruption, run the same command again
It writes RUN/model.safetensors and, in 8 bits, src/segclip/assets/mini.safetensors.
USAGE
    exit 2
fi
pairs=("${@:1:$#-1}") run=${!#}
mkdir -p "$run"
python runs/join_pairs.py "${pairs[@]}" "$run/pairs"
segclip prepare "$run/pairs/pairs.jsonl" --out "$run/shards" --superpixels opencv --max-bad 0.1
[ -f "$run/towers.safetensors" ] || python runs/mini_towers.py "$run/towers.safetensors"
segclip train mini --data "$run/shards" --out "$run" --init-from "$run/towers.safetensors"
segclip convert "$run/model.safetensors" src/segclip/assets/mini.safetensors --eight-bit
