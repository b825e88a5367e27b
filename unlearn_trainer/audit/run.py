"""An audit from its arguments to ``audit.json``, ``audit.md`` and ``audit.html``."""

import dataclasses
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from ..arguments import DataArguments, ModelArguments, UnlearnConfig
from ..console import say
from ..data import TokenizedData, read_jsonl
from ..engines import engine_of_its_own, start_deepspeed_on_cpu
from ..errors import ConfigError
from ..evaluation.report import configuration, environment, write_json
from ..loading import load_rows
from ..models import load_model
from .checks import chosen_checks
from .findings import Findings, assemble
from .report import summary_table, write_report
from .subject import AUDITED, BEFORE, EARLIER, NEVER_SEEN, AuditData, Subject, unseen_split

AUDIT = "audit.json"


def audit(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig) -> dict:
    """Audit a model, compare it with the one before and one that never saw the forget rows, and write the report.

    Call it on every process. ``args.output_dir`` gets the report and the checks that are finished; an audit that was
    stopped goes on from there.

    Args:
        model_args: the audited model.
        data_args: its data; ``forget`` is what was to be forgotten.
        args: ``model_before`` and ``never_seen_model`` name the other models, both of which may be absent.

    Returns:
        The content of audit.json.

    Raises:
        ConfigError: a model or check that does not exist; a folder that holds an audit of something else.
        DataError: rows that cannot be used.
    """
    check_arguments(args)
    if args.disable_tqdm:  # each check loads models afresh
        disable_progress_bar()
    if args.deepspeed_plugin is not None:
        start_deepspeed_on_cpu()
    further = {f"{EARLIER}{number}": file for number, file in enumerate(args.forgotten_files or (), start=1)}
    with PartialState().main_process_first():
        tokenizer, items, data = load_rows(model_args, data_args, args, further)
    check_arguments(args, data)
    shared = AuditData(tokenizer, data, items, data_args.max_seq_length, args)
    subjects = _subjects(model_args, args, shared)
    findings = Findings(Path(args.output_dir) / "checks", subjects)
    for check in chosen_checks(args.audit_checks):
        findings.run(check)
        if check.name == "memorization":
            say(_foreword(assemble(findings)))
    found = assemble(findings)
    found |= {
        "environment": environment(args.device, args.world_size),
        "config": configuration(model_args, data_args, args),
    }
    if PartialState().is_main_process:
        write_json(Path(args.output_dir) / AUDIT, found)
        write_report(args.output_dir, found)
    PartialState().wait_for_everyone()
    say(summary_table(found))
    say(f"audit: {Path(args.output_dir) / 'audit.html'}")
    return found


def check_arguments(args: UnlearnConfig, data: TokenizedData | None = None) -> None:
    """Refuse at the start what an audit would refuse after hours of training.

    Args:
        data: what is audited, once it is loaded.

    Raises:
        ConfigError: a check or language that does not exist.
        DataError: a file of an earlier request that cannot be read.
    """
    chosen_checks(args.audit_checks)
    for file in args.forgotten_files or ():
        read_jsonl(file)
    if data is not None:
        known = [*data.languages, *data.heldout_languages]
        if unknown := [language for language in args.audit_relearn_languages or () if language not in known]:
            raise ConfigError(f"--audit_relearn_languages {' '.join(unknown)}: not one of {', '.join(known)}")


def audit_run(
    start: ModelArguments,
    reference: ModelArguments | None,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: UnlearnConfig,
) -> dict:
    """Audit what a run of run_unlearn.py has trained, into ``<output_dir>/audit``.

    Args:
        start: the model it started from.
        reference: the one that never saw the forget rows, where there is one.
        model_args, data_args, args: of the run. Without ``do_train`` the model given is the audited one.
    """
    audited, before = model_args, args.model_before
    if args.do_train:
        audited = dataclasses.replace(model_args, model_name_or_path=args.output_dir, gguf_file=None, revision=None)
        before = start.model_name_or_path
    return audit(
        audited,
        data_args,
        engine_of_its_own(
            args,
            output_dir=str(Path(args.output_dir) / "audit"),
            model_before=before,
            never_seen_model=reference and reference.model_name_or_path,
            memorize_first=False,
            train_never_seen=False,
        ),
    )


def _subjects(model_args, args, shared):
    """The models of the audit, each of which is there and fits the tokenizer."""
    subjects: dict[str, Subject] = {}
    subjects[AUDITED] = Subject(AUDITED, model_args, shared, subjects)
    for name, folder in ((BEFORE, args.model_before), (NEVER_SEEN, args.never_seen_model)):
        if folder is not None:
            source = dataclasses.replace(model_args, model_name_or_path=folder, gguf_file=None, revision=None)
            load_model(source, shared.tokenizer, f"--{'model_before' if name == BEFORE else 'never_seen_model'}")
            subjects[name] = Subject(name, source, shared, subjects)
    unseen = unseen_split(shared.data.datasets)
    if NEVER_SEEN not in subjects and unseen is not None:
        source = subjects.get(BEFORE, subjects[AUDITED]).model_args
        subjects[NEVER_SEEN] = Subject(NEVER_SEEN, source, shared, subjects, measured=unseen)
    return subjects


def _foreword(found):
    """What is known before the expensive checks: whether there was anything to forget."""
    languages, nothing = found["languages"], found["summary"]["nothing_to_forget"]
    if not nothing:
        return f"audit: {len(languages)} languages had something to forget"
    if len(nothing) == len(languages):
        return (
            "audit: the model before did not know the forget rows better than one that never saw them, in any "
            "language; whatever follows cannot show that anything was forgotten"
        )
    return f"audit: nothing was to forget in {', '.join(nothing)}"
