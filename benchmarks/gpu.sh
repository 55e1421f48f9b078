#!/usr/bin/env bash
# Checks and measures the package on one GPU in one call; writes JSON files and prints a table.
#   bash benchmarks/gpu.sh prepare               here: downloads packages for a GPU machine without network into .gpu/
#   bash benchmarks/gpu.sh run OUT [SECONDS]     there, in the repository: takes at most SECONDS (450)
#   bash benchmarks/gpu.sh run OUT SECONDS --tiny    anywhere: every step on the CPU with tiny sizes
# The environment variable STEPS chooses the steps, each with the percentage of the time at which it must end; ONLY the
# measurements, by patterns of their names such as "matrix rate; *compiled"; PYTHON names the interpreter, which there
# must already have torch, numpy and the like. If the weights of `mini` are missing, a random model of the same
# configuration is measured.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
STEPS=${STEPS:-checks:22 inference:60 training:87 profile:100}

# The wheel of OpenCV with superpixels is packed again, more tightly.
prepare() {
  rm -rf .gpu && mkdir -p .gpu/wheels .gpu/opencv
  local pip=("$PYTHON" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all:
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64
    --platform manylinux2014_x86_64)
  "${pip[@]}" -d .gpu/wheels docstring-parser ftfy lemminflect typeguard tyro wcwidth
  "${pip[@]}" -d .gpu/opencv 'opencv-contrib-python-headless==4.10.0.84'
  "$PYTHON" -m zipfile -e .gpu/opencv/*.whl .gpu/opencv
  tar -C .gpu/opencv -cJf .gpu/opencv.tar.xz cv2 opencv_contrib_python_headless.libs
  rm -r .gpu/opencv
  du -sh .gpu
}

run() {
  local out=$1 seconds=${2:-450} site
  shift $(($# < 2 ? $# : 2))
  local until=$(($(date +%s) + seconds))
  mkdir -p "$out"
  export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
  if [ -d .gpu ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" .gpu/wheels/*.whl
    tar -C "$site" -xJf .gpu/opencv.tar.xz
    PYTHONPATH=$PYTHONPATH:$site
  fi
  export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit,temperature.gpu --format=csv >"$out/machine.csv" 2>/dev/null || true
  # A step skips what does not fit into its time; a step that hangs is killed a little later.
  local step share now stop
  for step in $STEPS; do
    share=${step#*:} step=${step%:*} now=$(date +%s)
    stop=$((until - seconds + seconds * share / 100))
    [ $((stop - now)) -gt 0 ] || continue
    timeout -k 5 $((stop - now + 10)) "$PYTHON" benchmarks/gpu.py "$step" "$out" --until "$stop" "$@" ||
      echo "$step ended with $?"
  done 2>&1 | tee "$out/log.txt"
  "$PYTHON" benchmarks/gpu.py table "$out"
}

case ${1:-} in
  prepare | run) "$@" ;;
  *) sed -n '2,9s/^# \?//p' "$0" && exit 2 ;;
esac
