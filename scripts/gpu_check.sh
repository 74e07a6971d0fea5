#!/usr/bin/env bash
# Check genimg on a machine with a CUDA GPU, in at most 12 minutes and without a network: tests, benchmarks, an evaluation of
# 50,000 images, and a resumed training. Writes gpu_check.json and gpu_check.md to a folder.
# usage: scripts/gpu_check.sh [FOLDER] [OPTION ...]     see scripts/gpu_check.py --help; PYTHON names the interpreter
set -euo pipefail
folder=$(realpath -m "${1:-gpu_check}")
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"   # genimg need not be installed
exec "${PYTHON:-python3}" scripts/gpu_check.py "$folder" "${@:2}"
