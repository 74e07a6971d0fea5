#!/usr/bin/env bash
# Lint, types and tests, from a fresh clone: makes a virtual environment with the dev extra. Arguments pass on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment dev
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
"$VENV/bin/python" -m pytest "$@"
