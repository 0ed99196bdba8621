# Sourced by the other scripts: makes .venv with the tested versions, or returns at once when it is up to date.
# Needs Python 3.11 or newer with venv; PYTHON names another interpreter.
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "SegAdapt needs Python 3.11 or newer as '$PYTHON'; name another one with PYTHON=/path/to/python3" >&2
    exit 1
fi
stamp=$(cat requirements.txt constraints.txt tests/requirements.txt | cksum)
if [ "$(cat .venv/segadapt-stamp 2>/dev/null)" != "$stamp" ]; then
    echo "Setting up .venv (a few minutes and several GB the first time) ..."
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        -r requirements.txt -r tests/requirements.txt -c constraints.txt
    echo "$stamp" > .venv/segadapt-stamp
fi
