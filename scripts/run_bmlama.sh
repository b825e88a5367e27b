#!/usr/bin/env bash
# The LingTea paper's BMLAMA run: DATA_DIR=/path/to/bmlama53 [MODEL=...] [OUTPUT_DIR=...] [NPROC=4] run_bmlama.sh [flags]
# Its settings are in unlearn_trainer/config/presets/bmlama.json.
set -euo pipefail
: "${DATA_DIR:?is the folder of the BMLAMA files (forget-32.jsonl, retain-32-x2.jsonl, valid.jsonl, test.jsonl)}"
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" bmlama "$@"
