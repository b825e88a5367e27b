#!/usr/bin/env bash
# Unlearning from nothing in minutes: builds a tiny multilingual model, lets it memorize, and makes it forget.
# Results are written to outputs/quickstart in this checkout; arguments go to run_unlearn.py.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
cd "$root"
exec .venv/bin/python run_unlearn.py quickstart --output_dir outputs/quickstart "$@"
