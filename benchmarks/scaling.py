"""How the cost of a step grows with length, vocabulary, rows and processes.

    python benchmarks/scaling.py --json scaling.json

Every point is measured in processes of its own. Where one quantity varies, all others are those of the flags, and all
rows have ``--max_length`` tokens: at the smallest vocabulary a step has to fill a chunk of logits too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from common import flags, in_fresh_process, peak_memory, report, timed_in_turn
from step_variants import StepVariants, step_memory, step_seconds, train_silently


def main() -> None:
    parser = flags(
        __doc__.split("\n")[0],
        vocab_size=65536,
        hidden_size=256,
        intermediate_size=704,
        num_layers=8,
        repeats=2,
        max_length=128,
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--vocab_sizes", type=int, nargs="*", default=[32768, 65536, 131072, 262144])
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length in args.lengths:
            rows.append(point(args, folder, "length", length, max_length=length))
        if not args.model:
            for size in args.vocab_sizes:
                rows.append(point(args, folder, "vocabulary", size, vocab_size=size))
        for size in args.batch_sizes:
            for variant in ("ours", "naive"):
                rows.append(point(args, folder, f"rows, {variant}", size, variant, batch_size=size))
        for count in args.processes:
            rows.append(launched(args, folder, count))
    ratios = {}
    memory = {row["value"]: row["peak_memory_bytes"] for row in rows if row["varied"] == "vocabulary"}
    if len(memory) > 1:
        ratios["vocab_memory_growth"] = memory[max(memory)] / memory[min(memory)] - 1
    report(args, rows, ratios)


def point(args: argparse.Namespace, folder: str, varied: str, value: int, variant: str = "ours", **changes) -> dict:
    """Seconds and memory of ``variant`` with some of the flags changed."""
    changed = argparse.Namespace(**vars(args) | changes)
    row_tokens = changed.max_length, changed.max_length
    memory = in_fresh_process(step_memory, changed, variant, folder, row_tokens)
    seconds, tokens = in_fresh_process(step_seconds, changed, variant, folder, row_tokens)
    return _row(varied, value, seconds, tokens, memory)


def _row(varied, value, seconds, tokens, memory):
    return {
        "varied": varied,
        "value": value,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory_bytes": memory,
    }


def launched(args: argparse.Namespace, folder: str, count: int) -> dict:
    """Ours by torchrun, the rows of the step shared among ``count`` processes; memory is that of one of them.

    Raises:
        subprocess.CalledProcessError: a process failed.
    """
    changed = {**vars(args), "json": f"{folder}/process.json"}
    threads = max(1, torch.get_num_threads() // count)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    subprocess.run(
        [*command, __file__, json.dumps(changed)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    found = json.loads(Path(changed["json"]).read_text())
    return _row("processes", count, found["seconds"], found["tokens"], found["memory"])


def run_process(args: argparse.Namespace) -> None:
    """What each process of :func:`launched` does; the first writes ``args.json``."""
    with tempfile.TemporaryDirectory() as folder:
        count = int(os.environ["WORLD_SIZE"])
        all_rows = StepVariants(args, folder, (args.max_length, args.max_length))
        trainer = all_rows.trainer(per_device_train_batch_size=max(1, args.batch_size // count))
        train_silently(trainer)
        step = all_rows.step_of(trainer)
        second = all_rows.keep_gradients()
        memory = max(0, peak_memory(step, args.device) - second)
        seconds = timed_in_turn({"ours": step}, {"ours": args.repeats}, before=all_rows.student.zero_grad)["ours"]
        if dist.get_rank() == 0:
            found = {"seconds": seconds, "tokens": all_rows.tokens, "memory": memory}
            Path(args.json).write_text(json.dumps(found))
        dist.destroy_process_group()


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        run_process(argparse.Namespace(**json.loads(sys.argv[1])))
    else:
        main()
