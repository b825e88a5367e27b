#!/usr/bin/env bash
# launch.sh PRESET [flags of run_unlearn.py]: one run of a shipped preset on the hardware that is there.
# From the environment: DATA_DIR (folder of the JSONL files), MODEL (name or folder; default: the preset's),
# OUTPUT_DIR (default: outputs/PRESET in the repository), NPROC (processes, one a GPU; the batch grows with it; default 1).
# Flags given on the command line win over all of these.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
preset=${1:?usage: launch.sh PRESET [flags]}
shift
"$root/scripts/setup.sh"

if nvidia-smi -L >/dev/null 2>&1; then
    device=(--bf16 true)
else
    device=(--use_cpu true --bf16 false)
fi
launcher=("$root/.venv/bin/python")
if [ "${NPROC:-1}" -gt 1 ]; then
    # Also without a GPU: with accelerate's own --cpu it would start one process only.
    launcher=("$root/.venv/bin/accelerate" launch --multi_gpu --num_machines 1 --num_processes "$NPROC"
        --mixed_precision no --dynamo_backend no)
fi
exec "${launcher[@]}" "$root/run_unlearn.py" "$preset" "${device[@]}" ${DATA_DIR:+--data_dir "$DATA_DIR"} \
    ${MODEL:+--model_name_or_path "$MODEL"} --output_dir "${OUTPUT_DIR:-$root/outputs/$preset}" "$@"
