"""An audit from its arguments to ``audit.json``, ``audit.md`` and ``audit.html``."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..config.arguments import AuditArguments, DataArguments, ModelArguments
from ..config.finished import read_configuration
from ..config.unlearn_config import UnlearnConfig
from ..console import say, without_bars
from ..engine.engines import check_processes, engine_of_its_own, start_deepspeed_on_cpu
from ..errors import ConfigError
from ..files import held_folder, write_json
from ..model.loading import load_model
from ..runs.environment import configuration, environment
from ..runs.loading import load_rows
from .arguments import FOLDER, KEPT, OF_MODEL, PLACE
from .findings import Findings, assemble
from .registry import CHECKS, chosen_checks
from .report.card import summary_table, write_report
from .subject import AUDITED, BEFORE, EARLIER, NEVER_SEEN, AuditData, Subject, unseen_split

AUDIT = "audit.json"


def audit(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: UnlearnConfig,
    before: ModelArguments | None = None,
    never_seen: ModelArguments | None = None,
) -> dict:
    """Audit a model, compare it with the one before and one that never saw the forget rows, and write the report.

    Call it on every process. ``args.output_dir`` gets the report and the checks that are finished; an audit that was
    stopped goes on from there.

    Args:
        model_args: the audited model.
        data_args: its data; ``forget`` is what was to be forgotten.
        args: ``model_before`` and ``never_seen_model`` name the other models, both of which may be absent.
        before, never_seen: these models, where more than a name says which they are.

    Returns:
        The content of audit.json.

    Raises:
        ConfigError: a model or check that does not exist; a folder that holds an audit of something else.
        DataError: rows that cannot be used.
    """
    if args.disable_tqdm:  # each check loads models afresh
        without_bars()
    if args.deepspeed_plugin is not None:
        start_deepspeed_on_cpu()
    check_processes(args.world_size)
    with held_folder(args.folder):
        return _audit(model_args, data_args, args, before, never_seen)


def _audit(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: UnlearnConfig,
    before: ModelArguments | None,
    never_seen: ModelArguments | None,
) -> dict:
    """The audit in its folder, which no other one writes to meanwhile."""
    shared = _prepared(model_args, data_args, args)
    named = {
        name: given or (_model(model_args, folder) if folder is not None else None)
        for name, given, folder in (
            (BEFORE, before, args.model_before),
            (NEVER_SEEN, never_seen, args.never_seen_model),
        )
    }
    findings = Findings(args.folder / "checks", _subjects(model_args, named, shared))
    chosen = chosen_checks(args.audit_checks)
    for check in CHECKS.values():
        findings.run(check) if check in chosen else findings.take(check)
        if check.name == "memorization":
            say(_foreword(assemble(findings)))
    found = assemble(findings)
    found |= {
        "environment": environment(args.device, args.world_size),
        "config": _configuration_of_run(model_args),
        "settings": _settings(model_args, data_args, args),
    }
    if PartialState().is_main_process:
        write_json(args.folder / AUDIT, found)
        write_report(args.folder, found)
    PartialState().wait_for_everyone()
    say(summary_table(found))
    say(f"audit: {args.folder / 'audit.html'}")
    return found


def check_arguments(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig) -> None:
    """Refuse before the training what the audit of a run would refuse after hours of it.

    Raises:
        ConfigError: a check or language that does not exist, a batch that cannot be shared out, or a folder that
            holds the audit of an earlier training.
        DataError: a file of an earlier request that cannot be used.
    """
    _prepared(model_args, data_args, args)
    folder = args.folder / FOLDER / "checks"
    if args.do_train and folder.is_dir() and any(folder.iterdir()) and not args.resume_from_checkpoint:
        raise ConfigError(f"{folder} holds an audit of an earlier training; delete it, or choose another --output_dir")


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
    return audit(
        _model(model_args, args.folder) if args.do_train else model_args,
        data_args,
        engine_of_its_own(args, output_dir=str(args.folder / FOLDER), memorize_first=False, train_never_seen=False),
        start if args.do_train else None,
        reference,
    )


def _model(model_args: ModelArguments, folder: str | Path) -> ModelArguments:
    """A model elsewhere; what tells where in its repository a model lies is of that one alone."""
    return dataclasses.replace(model_args, model_name_or_path=str(folder), gguf_file=None, revision=None)


def _configuration_of_run(model_args: ModelArguments) -> dict[str, Any]:
    """Every flag of the run that trained the audited model; empty where no run says so of itself."""
    config: dict[str, Any] = {}
    if PartialState().is_main_process:
        with contextlib.suppress(ConfigError):
            config = read_configuration(Path(model_args.name))
    (config,) = broadcast_object_list([config if config.get("do_train", True) else {}])
    return config


def _settings(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig) -> dict[str, Any]:
    """The flags that decided what the audit measured. Those of a training have no part in it."""
    names = [*PLACE, *OF_MODEL, *(item.name for item in dataclasses.fields(DataArguments)), "output_dir", *KEPT]
    names += [item.name for item in dataclasses.fields(AuditArguments)]
    given = configuration(model_args, data_args, args)
    return {name: given[name] for name in names}


def _prepared(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig) -> AuditData:
    """What all models are measured on, once all that can be said against it has been."""
    chosen_checks(args.audit_checks)
    if args.audit_relearn_batch_size % args.world_size:
        raise ConfigError(
            f"--audit_relearn_batch_size {args.audit_relearn_batch_size} cannot be shared out among "
            f"{args.world_size} processes; give a multiple"
        )
    further = {f"{EARLIER}{number}": file for number, file in enumerate(args.forgotten_files or (), start=1)}
    with PartialState().main_process_first():
        tokenizer, items, data = load_rows(model_args, data_args, args, further)
    known = [*data.languages, *data.heldout_languages]
    if unknown := [language for language in args.audit_relearn_languages or () if language not in known]:
        raise ConfigError(f"--audit_relearn_languages {' '.join(unknown)}: not one of {', '.join(known)}")
    return AuditData(tokenizer, data, items, data_args.max_seq_length, args)


def _subjects(
    model_args: ModelArguments, named: Mapping[str, ModelArguments | None], shared: AuditData
) -> dict[str, Subject]:
    """The models of the audit, each of which is there and fits the tokenizer."""
    subjects: dict[str, Subject] = {}
    subjects[AUDITED] = Subject(AUDITED, model_args, shared, subjects)
    for name, source in named.items():
        if source is not None:
            load_model(source, shared.tokenizer, f"--{'model_before' if name == BEFORE else 'never_seen_model'}")
            subjects[name] = Subject(name, source, shared, subjects)
    unseen = unseen_split(shared.data.datasets)
    if NEVER_SEEN not in subjects and unseen is not None:
        source = subjects.get(BEFORE, subjects[AUDITED]).model_args
        subjects[NEVER_SEEN] = Subject(NEVER_SEEN, source, shared, subjects, measured=unseen)
    return subjects


def _foreword(found: Mapping[str, Any]) -> str:
    """What is known before the expensive checks: whether there was anything to forget."""
    languages, nothing = found["languages"], found["summary"]["nothing_to_forget"]
    if found["models"][BEFORE] is None:
        return "audit: whether there was anything to forget is unknown without --model_before"
    if not nothing:
        return f"audit: {len(languages)} languages had something to forget"
    if len(nothing) == len(languages):
        return (
            "audit: the model before did not know the forget rows better than one that never saw them, in any "
            "language; whatever follows cannot show that anything was forgotten"
        )
    return f"audit: nothing was to forget in {', '.join(nothing)}"
