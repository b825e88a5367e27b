#!/usr/bin/env bash
# The LingTea paper's FLORES run: DATA_DIR=/path/to/flores [MODEL=...] [OUTPUT_DIR=...] [NPROC=4] run_flores.sh [flags]
# DATA_DIR is the official FLORES-200 folder (dev/eng_Latn.dev, devtest/eng_Latn.devtest, ...), which is prepared into
# <DATA_DIR>-prepared first (PREPARED names another folder, PREPARE holds further flags of `unlearn-trainer prepare`), or
# a folder with forget-32.jsonl, retain-32-x3.jsonl, valid.jsonl and test.jsonl.
# Its settings are in unlearn_trainer/config/presets/flores.json.
set -euo pipefail
: "${DATA_DIR:?is the official FLORES-200 folder, or one with forget-32.jsonl, retain-32-x3.jsonl, valid.jsonl, test.jsonl}"
scripts=$(dirname "${BASH_SOURCE[0]}")
if [ -d "$DATA_DIR/dev" ]; then
    # shellcheck source=scripts/prepare.sh
    . "$scripts/prepare.sh" flores 3
fi
exec "$scripts/launch.sh" flores ${files[@]+"${files[@]}"} "$@"
