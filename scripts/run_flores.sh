#!/usr/bin/env bash
# The LingTea paper's FLORES run: DATA_DIR=/path/to/flores [MODEL=...] [OUTPUT_DIR=...] [NPROC=4] run_flores.sh [flags]
# Its settings are in unlearn_trainer/config/presets/flores.json.
set -euo pipefail
: "${DATA_DIR:?is the folder of the FLORES files (forget-32.jsonl, retain-32-x3.jsonl, valid.jsonl, test.jsonl)}"
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" flores "$@"
