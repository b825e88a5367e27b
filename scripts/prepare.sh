# Sourced with KIND RETAIN_FACTOR: prepares DATA_DIR once, points DATA_DIR to what was made, and sets `files`, the flags
# that name its files in place of the preset's.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
prepared=${PREPARED:-${DATA_DIR%/}-prepared}
if [ ! -f "$prepared/prepare.json" ]; then
    # shellcheck disable=SC2086  # flags are words
    PYTHONPATH=$root "$root/.venv/bin/python" -m unlearn_trainer prepare "$1" --source "$DATA_DIR" \
        --retain_factor "$2" --output_dir "$prepared" ${PREPARE:-}
fi
DATA_DIR=$prepared
files=(--forget_file forget.jsonl --retain_file retain.jsonl)
