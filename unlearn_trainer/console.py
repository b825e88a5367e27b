"""What a command prints and how it ends: figures that fit on a line, one clear error, an exit code."""

import signal
import sys
from collections.abc import Callable, Sequence

import datasets
import transformers
from accelerate import PartialState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .early_stop import ToldToEnd, raise_on_ctrl_c, raise_on_sigterm
from .engine.engines import leave_process_group
from .errors import EXIT_BAD_INPUT, EXIT_DIVERGED, Terminated, TrainingDiverged, UnlearnError, print_failure
from .files import storage_problem


def say(text: str) -> None:
    """Print on the main process only; what the terminal has no characters for is written as ``\\u1234``."""
    if PartialState().is_main_process:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def without_bars() -> None:
    """Turn off the progress bars of the libraries that models and rows are loaded with; ``--disable_tqdm``."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def run_command(run: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> None:
    """Run a command to its end, on one process or as one of many; a person's mistakes become one line.

    Exit code 2: bad input, or a disk that is full; 3: training diverged; 143: stopped by SIGTERM, with a checkpoint;
    130: by Ctrl-C, with a checkpoint where a training was under way; 1: anything else.
    """
    raise_on_ctrl_c()
    code = 1
    try:
        with raise_on_sigterm():
            run(argv)
        code = 0
    except UnlearnError as error:
        code = print_failure(f"error: {error}", EXIT_BAD_INPUT)
    except TrainingDiverged as error:
        code = print_failure(f"stopped: {error}", EXIT_DIVERGED)
    except Terminated as error:
        code = print_failure(f"stopped: {error}", 128 + error.signal_number, of_all=True)
    except OSError as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        code = print_failure(f"error: {problem}", EXIT_BAD_INPUT)
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, ToldToEnd) else signal.SIGINT
        name = "SIGTERM" if isinstance(error, ToldToEnd) else "Ctrl-C"
        code = print_failure(f"stopped: {name}; nothing that was finished is lost", 128 + number, of_all=True)
    finally:
        leave_process_group(code)
    if code:
        sys.exit(code)


def compact(logs: dict | None) -> dict:
    """Without single languages and weights."""
    logs = logs or {}
    if "eval_runtime" not in logs:
        return {key: value for key, value in logs.items() if not key.startswith("weights/")}
    shown = ("unlearning_score", "forget_worst_memorization_accuracy", "retain_perplexity", "valid_perplexity")
    return {key: value for key, value in logs.items() if key.removeprefix("eval_") in (*shown, "epoch")}


class CompactProgress(ProgressCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=compact(logs), **kwargs)


class CompactPrinter(PrinterCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=compact(logs), **kwargs)
