"""The command: read the flags, run, and audit what the run has made.

python run_unlearn.py quickstart
accelerate launch run_unlearn.py my_run.json --learning_rate 1e-4
"""

import sys
from collections.abc import Sequence
from typing import Any

from accelerate.utils import release_memory

from .audit import audit_run, check_arguments
from .config.arguments import DataArguments, ModelArguments
from .config.parser import parse_arguments
from .config.unlearn_config import UnlearnConfig
from .console import run_command, say, without_bars
from .errors import ConfigError
from .memory.estimate import memory_table
from .runs.results import collected_warnings
from .runs.run import begun, carry_out, tell_people


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The whole run; returns what is written to results.json."""
    with collected_warnings() as warnings:
        model_args, data_args, args = parse_arguments(argv)
        if args.disable_tqdm:
            without_bars()
        if args.estimate_memory:
            say(memory_table(model_args, data_args, args))
            return {}
        stages = args.memorize_first or args.train_never_seen
        if not (args.do_train or args.do_eval or args.do_predict or args.audit or stages):
            raise ConfigError("nothing to do: give --do_train, --do_eval, --do_predict or --audit")
        with begun(model_args, args) as checkpoint:
            words = sys.argv[1:] if argv is None else argv
            return _run_and_audit(model_args, data_args, args, checkpoint, warnings, words)


def _run_and_audit(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: UnlearnConfig,
    checkpoint: str | None,
    warnings: list[str],
    words: Sequence[str],
) -> dict[str, Any]:
    if args.audit:
        check_arguments(model_args, data_args, args)
    finished = carry_out(model_args, data_args, args, checkpoint, warnings, words)
    if args.audit:
        release_memory()
        audit_run(finished.start, finished.reference, model_args, data_args, args)
        tell_people(args, finished.results)  # again, with what the audit says
    if args.do_train and args.push_to_hub:  # last, because a failure costs nothing but the upload
        finished.push(args)
    return finished.results


def main(argv: Sequence[str] | None = None) -> None:
    """Console entry; see :func:`unlearn_trainer.console.run_command` for the exit codes."""
    run_command(run, argv)
