#!/usr/bin/env bash
# Make the embedded model `mini` anew: bash runs/mini.sh PAIRS RUN
#   PAIRS  folder with pairs.jsonl, a line a photo: {"image": ..., "captions": [...]}
#   RUN    folder of the run; a broken run goes on when the command is given again
# Hardware and hours, and what came out: docs/results.md. Needs `pip install -e .[dev]`.
set -euo pipefail
pairs=$1 run=$2
mkdir -p "$run"
[ -f "$run/towers.safetensors" ] || python runs/mini_towers.py "$run/towers.safetensors"
segclip train mini --data "$pairs" --out "$run" --init-from "$run/towers.safetensors"
segclip convert "$run/model.safetensors" src/segclip/assets/mini.safetensors --eight-bit
