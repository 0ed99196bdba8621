#!/usr/bin/env bash
# Sets up .venv and runs the demo; see scripts/demo.py for what it does and for its flags.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
exec .venv/bin/python scripts/demo.py "$@"
