"""What a run works on: the tokenizer and the rows, from files, the Hub, or the corpus and model that are built in."""

from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ..config.arguments import DataArguments, ModelArguments
from ..config.unlearn_config import UnlearnConfig
from ..data import (
    Item,
    TokenizedData,
    add_alternatives,
    add_counterparts,
    find_alternatives,
    load_splits,
    read_jsonl,
    synthetic,
    tokenize_splits,
)
from ..data.chat import find_template, with_template
from ..errors import ConfigError
from ..files import make_own_folder, name_whole_folder
from ..model.loading import load_tokenizer
from ..objectives import METHODS

SPLITS = ("forget", "retain", "valid", "test")


def load_data(
    model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig
) -> tuple[PreTrainedTokenizerBase, TokenizedData]:
    """The tokenizer and the tokenized rows of a training; call it on every process.

    With them come the rows that go with the forget rows, where ``--forget_objective`` needs any: alternative answers
    or never-seen counterparts.
    """
    with PartialState().main_process_first():
        tokenizer, items, data = load_rows(model_args, data_args, args)
        _check_needed(args, items)
        if args.needs_companion("alternative"):
            path = find_alternatives(data_args.alternative_answers, data_args.data_dir)
            data = add_alternatives(data, items["forget"], tokenizer, data_args.max_seq_length, args.seed, path)
        if args.needs_companion("counterpart"):
            data = add_counterparts(data, args.seed)
    return tokenizer, data


def load_rows(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: UnlearnConfig,
    further: Mapping[str, str] | None = None,
) -> tuple[PreTrainedTokenizerBase, dict[str, list[Item]], TokenizedData]:
    """The tokenizer, the items of each split and their tokenized rows.

    Where `synthetic` is asked for, corpus and model are written below the output folder on first use, and the
    arguments name these folders afterwards. Several processes of a machine let the first one go ahead.

    Args:
        further: JSONL files of splits beyond the usual four, by the splits' names. Languages that they alone have
            are held out, unless ``languages`` were chosen.
    """
    if data_args.data_dir == "synthetic":
        data_args.data_dir = _built(args.folder / "synthetic" / "data", synthetic.write_corpus, args.seed)
    if model_args.model_name_or_path == "synthetic":
        folder = args.folder / "synthetic" / "model"
        model_args.model_name_or_path = _built(folder, synthetic.build_model, args.seed)
    tokenizer = load_tokenizer(model_args)
    files = {f"{split}_file": getattr(data_args, f"{split}_file") for split in SPLITS}
    splits = load_splits(data_args.data_dir, **files)
    splits |= {name: read_jsonl(file) for name, file in (further or {}).items()}
    chat = find_template(tokenizer, data_args.chat_template, data_args.system_prompt)
    splits = {name: with_template(items, chat) for name, items in splits.items()}
    heldout = list(data_args.heldout_languages or ())
    if data_args.languages is None:
        known = {language for item in splits["forget"] or () for language in item.content}
        more = {language for name in further or () for item in splits[name] for language in item.content}
        heldout += sorted(more - known - {*heldout})
    train, valid, test = data_args.max_train_samples, data_args.max_eval_samples, data_args.max_predict_samples
    limits = dict(zip(SPLITS, (train, train, valid, test), strict=True))
    data = tokenize_splits(
        splits,
        tokenizer,
        data_args.languages,
        heldout,
        data_args.max_seq_length,
        {split: limit for split, limit in limits.items() if limit is not None},
        data_args.show_texts,
    )
    return tokenizer, splits, data


def _check_needed(args: UnlearnConfig, splits: Mapping[str, list[Item]]) -> None:
    """Refuse a training whose splits are not all there; says at once what is needed, there and missing."""
    if not args.do_train:
        return
    needed = {"forget": f"--forget_objective {args.forget_objective} needs forget rows; give --forget_file"}
    if args.retain_objective != "none":
        needed["retain"] = f"--retain_objective {args.retain_objective} needs retain rows; give --retain_file"
    elif args.memorize_first or args.train_never_seen:
        flag = "memorize_first" if args.memorize_first else "train_never_seen"
        needed["retain"] = f"--{flag} needs retain rows; give --retain_file"
    if args.needs_companion("counterpart"):
        needed["valid"] = f"--forget_objective {args.forget_objective} needs never-seen rows; give --valid_file"
    elif args.forget_weighting == "target" and args.forget_target == "auto":
        needed["valid"] = (
            "--forget_weighting target needs text the model never saw: give --valid_file, or a number with "
            "--forget_target"
        )
    missing = [reason for split, reason in needed.items() if not splits.get(split)]
    if missing:
        fewer = [name for name, method in METHODS.items() if method.retain_objective == "none"]
        raise ConfigError(
            f"{'; '.join(missing)}. This run needs the splits {', '.join(needed)}, and there are {', '.join(splits)}; "
            "`unlearn-trainer prepare` draws what is missing from other texts (--retain_from, --valid_from), and with "
            f"the forget split alone go --method {', '.join(fewer)}"
        )


def _built(folder: Path, build: Callable[[Path, int], None], seed: int) -> str:
    """The folder, built on first use; it appears under its name only when it is whole."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        make_own_folder(unfinished)
        build(unfinished, seed)
        name_whole_folder(unfinished, folder)
    return str(folder)
