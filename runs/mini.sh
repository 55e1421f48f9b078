#!/usr/bin/env bash
# Rebuild the embedded model `mini`: bash runs/mini.sh PAIRS RUN
#   PAIRS  folder with pairs.jsonl, one line per photo: {"image": ..., "captions": [...]}
#   RUN    folder of the run; after an interruption, run the same command again
# Hardware, time and results: docs/results.md. Needs `pip install -e .[dev]`.
set -euo pipefail
pairs=$1 run=$2
mkdir -p "$run"
[ -f "$run/towers.safetensors" ] || python runs/mini_towers.py "$run/towers.safetensors"
segclip train mini --data "$pairs" --out "$run" --init-from "$run/towers.safetensors"
segclip convert "$run/model.safetensors" src/segclip/assets/mini.safetensors --eight-bit
