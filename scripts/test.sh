#!/usr/bin/env bash
# Lint, types and tests, from a fresh clone: makes a virtual environment with the dev extra. Arguments are passed to pytest;
# --all runs every row of the slow tables instead of a sample (tests/sampling.py).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment dev
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
# One process per core, each with one thread: two processes with two threads each would wait for each other most of the time.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$VENV/bin/python" -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal "$@"
