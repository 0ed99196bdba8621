#!/usr/bin/env bash
# Sets up .venv and runs all tests; arguments go to pytest, for example: bash scripts/test.sh -k loader
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
# One thread a process: two processes side by side are faster on two cores than one with two threads.
export OMP_NUM_THREADS=1
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n 2 "$@"
