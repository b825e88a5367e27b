"""What the benchmarks share: models and rows, clocks, memory of fresh processes, tables and JSON."""

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import accelerate
import checkout
import psutil
import torch
import transformers
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from unlearn_trainer.data import load_splits, tokenize_splits
from unlearn_trainer.errors import ConfigError

DATA = Path(os.environ.get("UNLEARN_DATA", checkout.ROOT.parent / "shared" / "data"))
LANGUAGES = ["en", "fr", "es", "zh", "ar", "vi", "eu", "ur", "te", "sw"]  # LingTea's, of FLORES
ROW_TOKENS = 40, 100  # fewest and most of a FLORES sentence in a multilingual vocabulary, apart from a few

# Importing takes seconds, so processes are forked where that is safe: not from one that has initialised CUDA, as an
# import may, nor from one that has computed with threads.
PROCESSES = multiprocessing.get_context("spawn") if torch.cuda.is_available() else multiprocessing.get_context("fork")
if PROCESSES.get_start_method() == "fork" and importlib.util.find_spec("deepspeed"):
    importlib.import_module("deepspeed")  # every trainer imports it where it is installed


def flags(description: str, **defaults) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark; ``defaults`` replaces some of their values."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", help="folder of a model; without it one is made from the four sizes")
    parser.add_argument("--vocab_size", type=int, default=131072)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--intermediate_size", type=int, default=1408)
    parser.add_argument("--num_layers", type=int, default=14)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float64"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=8, help="forget rows of a step; as many retain rows")
    parser.add_argument("--max_length", type=int, default=256, help="tokens; the naive step pads to it")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each variant; their median counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.set_defaults(**defaults)
    return parser


# ---- models and rows ------------------------------------------------------------------------------------------------


def build_model(args: argparse.Namespace) -> PreTrainedModel:
    """The model of ``--model``, or a tied Llama with random weights; without dropout, in ``--dtype``.

    With the default sizes the head has H = 67e6 parameters and the body B = 45e6, H/B = 1.5.
    """
    torch.manual_seed(0)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
        for name, value in model.config.to_dict().items():
            if "drop" in name and isinstance(value, float) and value:
                raise ConfigError(f"{args.model} trains with {name} {value}; set it to 0, or steps are not comparable")
        return model.to(args.device)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=max(1, args.hidden_size // 64),
        num_key_value_heads=max(1, args.hidden_size // 64),
        max_position_embeddings=max(512, args.max_length),
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    with torch.device(args.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))


def sizes(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the head (H) and of the body (B), embeddings left out: a look-up is no product."""
    head = model.get_output_embeddings().weight
    embeddings = {head, model.get_input_embeddings().weight}
    body = sum(parameter.numel() for parameter in model.parameters() if parameter not in embeddings)
    return {"head": head.numel(), "body": body}


def load_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder of ``--model``, if there is one."""
    if not args.model or not any(Path(args.model).glob("*token*")):
        return None
    return AutoTokenizer.from_pretrained(args.model)


def text_rows(args: argparse.Namespace, vocabulary: int, row_tokens: Sequence[int] = ROW_TOKENS) -> dict[str, Dataset]:
    """``batch_size`` tokenized rows each for forget and retain, item by item in another language.

    FLORES sentences where its files and a tokenizer are there, otherwise random tokens.

    Args:
        vocabulary: ids are below it.
        row_tokens: fewest and most tokens of a random row.
    """
    tokenizer = load_tokenizer(args)
    if tokenizer is not None and (DATA / "flores").is_dir():
        splits = load_splits(str(DATA / "flores"), retain_file="retain-32-x3.jsonl")
        splits = {side: splits[side] for side in ("forget", "retain")}
        found = tokenize_splits(splits, tokenizer, LANGUAGES, max_seq_length=args.max_length).datasets
        count = len(LANGUAGES)
        # Row i * count + l is item i in language l.
        return {
            side: rows.select([item * count + item % count for item in range(args.batch_size)])
            for side, rows in found.items()
        }
    generator = torch.Generator().manual_seed(0)
    low, high = (min(tokens, args.max_length) for tokens in row_tokens)
    found = {}
    for side in ("forget", "retain"):
        rows = []
        for item in range(args.batch_size):
            length = int(torch.randint(low, high + 1, (1,), generator=generator))
            ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
            rows.append({"input_ids": ids, "labels": ids, "language": item % len(LANGUAGES), "item": item})
        found[side] = Dataset.from_list(rows)
    return found


# ---- clocks and memory ----------------------------------------------------------------------------------------------


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done all it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed_in_turn(
    variants: Mapping[str, Callable[[], object]], runs: Mapping[str, int], before: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Median seconds of each variant; they take turns, so that what slows the machine down slows all of them.

    Args:
        runs: how often each is run.
        before: called ahead of every run, outside of the clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(max(runs.values())):
        for name, run in variants.items():
            if turn >= runs[name]:
                continue
            before()
            gc.collect()
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
            print(f"turn {turn + 1}: {name} {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak_memory(run: Callable[[], object], device: str) -> int:
    """Bytes by which ``run()`` exceeds what was allocated before it; call it once, in a fresh process.

    On a GPU the allocator's count. On a CPU the largest resident size of the process over its present one, with large
    blocks handed back to the system as soon as they are free, so that it follows what is alive.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(AttributeError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD
        libc.malloc_trim(0)
    with contextlib.suppress(OSError):  # without this what went before counts too, where it was larger
        Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    run()
    unit = 1 if sys.platform == "darwin" else 1024
    return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before)


def in_fresh_process(function: Callable, *args):
    """``function(*args)`` in a process of its own; call it before anything is computed in this one.

    Raises:
        RuntimeError: the process ended without a result.
    """
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send_result, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{function.__name__}{args[1:]} ended with exit code {process.exitcode} (-9: no memory left); take "
            "a smaller --batch_size"
        ) from None
    finally:
        process.join()


def _send_result(sender, function, args):
    sender.send(function(*args))


# ---- output ---------------------------------------------------------------------------------------------------------


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """One line a row; the keys of the first are the heading."""
    table = [list(rows[0])] + [[_shown(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(args: argparse.Namespace, rows: Sequence[Mapping], ratios: Mapping[str, float], **more) -> None:
    """Print the table and the ratios, and write ``--json``: settings, environment, rows, ratios and ``more``."""
    print_table(
        [
            {name.replace("_bytes", "_MB"): value / 1e6 if "_bytes" in name else value for name, value in row.items()}
            for row in rows
        ]
    )
    print()
    for name, value in ratios.items():
        print(f"{name:28} {value:.4f}")
    if args.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        environment = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
        }
        found = {"settings": settings, "environment": environment, "rows": rows, "ratios": ratios, **more}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
