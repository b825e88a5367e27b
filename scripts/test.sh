#!/usr/bin/env bash
# Sets up, checks the style and runs the tests without network. Arguments go to pytest: scripts/test.sh -m 'not slow'
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
cd "$root"

export PATH=$root/.venv/bin:$PATH
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# One thread a process: the tests' models are tiny, and several processes share the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# DeepSpeed compiles an operator at its first use; kept, it costs a minute once.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$root/.cache/torch_extensions}
nvidia-smi -L >/dev/null 2>&1 || export DS_ACCELERATOR=cpu

ruff check .
ruff format --check .
mypy
python -m pytest "$@"
