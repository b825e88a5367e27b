#!/usr/bin/env python
"""Kill a run at random moments, saves included, resume it each time, and compare its end with an undisturbed run.

    python scripts/kill_and_resume.py --kills 20 --output_dir outputs/kills [-- flags of run_unlearn.py]

Both runs take the same flags, a small run of the built-in corpus by default. It ends with exit code 1 if the weights
differ in a single bit, or if a checkpoint that was there before a kill cannot be read after it.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

SCRIPT = Path(__file__).resolve().parents[1] / "run_unlearn.py"
SMALL_RUN = (
    "quickstart --method lingtea --forget_weighting target --forget_target 0.1 --max_steps 150 "
    "--memorize_first false --train_never_seen false --show_texts false --save_strategy steps --save_steps 3 "
    "--save_total_limit 2 --eval_strategy no --per_device_train_batch_size 8 --max_train_samples 16 "
    "--max_eval_samples 8 --max_predict_samples 8 --disable_tqdm true --use_cpu true"
).split()


def start(flags, folder, log):
    command = [sys.executable, str(SCRIPT), *flags, "--output_dir", str(folder), "--resume_from_checkpoint", "true"]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def checkpoints(folder):
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def unreadable(checkpoint):
    """Why a checkpoint cannot be read, or ``None``."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        load_file(checkpoint / "model.safetensors")
    except Exception as error:
        return f"{checkpoint}: {error}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("flags", nargs="*", help="flags of run_unlearn.py, after --")
    args = parser.parse_args()
    flags, rng = args.flags or SMALL_RUN, random.Random(args.seed)
    whole, killed = args.output_dir / "whole", args.output_dir / "killed"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with open(args.output_dir / "log.txt", "w") as log:
        if start(flags, whole, log).wait():
            sys.exit(f"the undisturbed run failed; see {log.name}")
        kills = 0
        while True:
            process = start(flags, killed, log)
            before = checkpoints(killed)
            # Wait for the first save of this start, then for a moment: most of the time is spent between and in saves.
            deadline = time.time() + 300
            while process.poll() is None and checkpoints(killed) == before and time.time() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.6))
            if kills < args.kills and process.poll() is None:
                known = checkpoints(killed)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                broken = [reason for path in known if path.exists() and (reason := unreadable(path))]
                newest = checkpoints(killed)
                if broken or not newest:
                    sys.exit(f"kill {kills}: {'; '.join(broken) or 'no checkpoint left'}")
                print(f"kill {kills}: newest checkpoint {newest[-1].name}", flush=True)
                continue
            if process.wait():
                sys.exit(f"the resumed run failed; see {log.name}")
            break
    first, second = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    differing = [name for name in first if not first[name].equal(second[name])]
    if differing:
        sys.exit(f"after {kills} kills the weights differ: {', '.join(differing[:5])}")
    print(f"{kills} kills, and the weights are bit-identical to the undisturbed run's")


if __name__ == "__main__":
    main()
