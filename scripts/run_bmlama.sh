#!/usr/bin/env bash
# The LingTea paper's BMLAMA run: DATA_DIR=/path/to/bmlama53 [MODEL=...] [OUTPUT_DIR=...] [NPROC=4] run_bmlama.sh [flags]
# DATA_DIR is BMLAMA's folder of tables (en.tsv, ...), which is prepared into <DATA_DIR>-prepared first (PREPARED names
# another folder, PREPARE holds further flags of `unlearn-trainer prepare`), or a folder with forget-32.jsonl,
# retain-32-x2.jsonl, valid.jsonl and test.jsonl.
# Its settings are in unlearn_trainer/config/presets/bmlama.json.
set -euo pipefail
: "${DATA_DIR:?is the folder of BMLAMAs tables, or one with forget-32.jsonl, retain-32-x2.jsonl, valid.jsonl, test.jsonl}"
scripts=$(dirname "${BASH_SOURCE[0]}")
if compgen -G "$DATA_DIR/*.tsv" >/dev/null; then
    # shellcheck source=scripts/prepare.sh
    . "$scripts/prepare.sh" bmlama 2
fi
exec "$scripts/launch.sh" bmlama ${files[@]+"${files[@]}"} "$@"
