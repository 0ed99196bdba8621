#!/usr/bin/env bash
# Sets up .venv and runs the tests; arguments go to pytest, for example: bash scripts/test.sh -k loader
# --all adds the tests that take long (marked slow).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
# One thread a process: two processes side by side are faster on two cores than one with two threads.
export OMP_NUM_THREADS=1
select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
    shift
    select=()
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -n 2 --dist loadgroup "${select[@]}" "$@"
