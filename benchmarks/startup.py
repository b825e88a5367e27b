"""CPU time until a command answers, as a ratio to importing the Trainer of transformers alone.

python benchmarks/startup.py --repeats 5 --json out.json

Each command is a process of its own; its CPU time (user and system) is the median over the repeats. The first run of
each fills the caches of bytecode and files, and is left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = str(ROOT / "run_unlearn.py")
TRAINER = "import_trainer"
COMMANDS = {
    TRAINER: ["-c", "from transformers import Trainer"],
    "help": [RUN, "--help"],
    "misspelled_flag": [RUN, "--learning_rat", "1"],
    "wrong_value": [RUN, "--seed", "x"],
    "unknown_preset": [RUN, "quickstar"],
    "missing_file": [RUN, "nowhere/run.json"],
    "missing_rows": [RUN, *"--model_name_or_path m --output_dir o --do_train --forget_file no.jsonl".split()],
}


def cpu_seconds(words: list[str], folder: str) -> tuple[float, int]:
    """CPU time and exit code of ``python words``, started in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file for seconds and ratios")
    args = parser.parse_args()
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in COMMANDS.items():
            runs = [cpu_seconds(words, folder) for _ in range(args.repeats + 1)]
            expected = 0 if name in (TRAINER, "help") else 2
            if any(code != expected for _, code in runs):
                sys.exit(f"{name} ended with exit codes {[code for _, code in runs]} in place of {expected}")
            seconds[name] = statistics.median(spent for spent, _ in runs[1:])
    ratios = {f"{name}_over_trainer": spent / seconds[TRAINER] for name, spent in seconds.items() if name != TRAINER}
    for name, spent in seconds.items():
        print(f"{name:28} {spent:8.3f} s")
    print()
    for name, ratio in ratios.items():
        print(f"{name:28} {ratio:.4f}")
    if args.json:
        args.json.write_text(json.dumps({"cpu_seconds": seconds, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
