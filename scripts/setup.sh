#!/usr/bin/env bash
# Creates .venv in the repository and installs the package there with everything its tests need.
# Quick when nothing changed since the last time. PYTHON names the interpreter to build it with.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/.setup-stamp

# The path belongs to it: an editable install in a repository that was moved points to the old place.
fingerprint=$({ echo "$root"; cat "$root"/{setup.py,pyproject.toml,constraints.txt}; } | cksum)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
    exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
    for python in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found=$python
            break
        fi
    done
    if [ -z "${found:-}" ]; then
        echo "setup.sh: no Python 3.11 or newer; install one, or name it: PYTHON=/path/to/python scripts/setup.sh" >&2
        exit 1
    fi
    "$found" -m venv "$venv"
fi

pip() { "$venv/bin/python" -m pip -qq --disable-pip-version-check "$@"; }

echo "setup.sh: installing into $venv (minutes the first time)"
pip install --upgrade pip
# deepspeed's build imports torch, so these come first and it is built without isolation. torch by itself also means
# that a build for the CPU is kept where pip was pointed to one, and that no CUDA comes with the rest.
pip install --constraint "$root/constraints.txt" setuptools wheel torch
pip install --no-build-isolation --constraint "$root/constraints.txt" \
    --editable "$root[dev,deepspeed,peft,gguf]"
echo "$fingerprint" >"$stamp"
