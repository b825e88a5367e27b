"""``unlearn-trainer prepare``: make the files that a run reads from what people have."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

KINDS = {
    "flores": "the official FLORES-200 folder (dev/eng_Latn.dev, ...), or FLORES+ by name or from save_to_disk",
    "bmlama": "BMLAMA's tables (en.tsv, ...), or mLAMA's folders (en/templates.jsonl, en/P17.jsonl, ...)",
    "tofu": "TOFU's files (forget10_perturbed.json, ...), one folder a language or English alone, or its dataset",
    "table": "CSV (also as Excel writes it), TSV, JSON lines or Parquet: a column a language, or one that names it",
    "dataset": "a dataset of the Hub or a folder of save_to_disk, with columns as those of a table",
}


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="unlearn-trainer prepare",
        description="Write forget.jsonl, retain.jsonl, valid.jsonl, test.jsonl and prepare.json into a new folder.",
        epilog="A table or dataset is shuffled by the seed and cut into forget, retain, valid and test. With "
        "--forget_size all every row of it is to be forgotten, and --retain_from and --valid_from bring the rest.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, what in KINDS.items():
        one = kinds.add_parser(kind, help=what, description=f"From {what}.")
        one.add_argument("--source", required=True, help=what)
        one.add_argument("--output_dir", required=True, type=Path, help="a new folder")
        one.add_argument("--languages", nargs="+", metavar="L", help="in any spelling; default: all there are")
        one.add_argument("--seed", type=int, default=42, help="of which rows go where; default: %(default)s")
        one.add_argument(
            "--forget_size", type=_size, metavar="N", help="items to be forgotten, or all; default: 32 (tofu: all)"
        )
        one.add_argument(
            "--retain_factor", type=_factor, default=3.0, help="retain items a forget item; default: %(default)g"
        )
        one.add_argument("--retain_from", metavar="SOURCE", help="draw texts to keep from a file, folder or dataset")
        one.add_argument("--valid_from", metavar="SOURCE", help="draw texts that the model cannot know from there")
        one.add_argument("--translate_to", nargs="+", default=[], metavar="L", help="make missing translations")
        one.add_argument("--translator", metavar="MODEL", help="an NLLB, M2M100 or Opus model, by name or folder")
        if kind == "tofu":
            one.add_argument("--forget_split", choices=("forget01", "forget05", "forget10"), default="forget10")
        if kind in ("table", "dataset"):
            one.add_argument("--language_column", help="the column that names the language of a line")
            one.add_argument("--text_column", help="the column that holds the text")
            one.add_argument("--question_column", help="the column that holds a question, with --answer_column")
            one.add_argument("--answer_column", help="the column that holds its answer")
            one.add_argument("--id_column", help="the column that ties translations on several lines together")
    return parser


def main(words: Sequence[str]) -> None:
    """Prepare, and say what was written.

    Raises:
        UnlearnError: what :func:`unlearn_trainer.prepare.run.prepare_data` refuses.
    """
    given = make_parser().parse_args(words)

    from ..prepare.run import Request, describe, prepare_data
    from ..prepare.table import Columns

    asked = vars(given)
    languages = given.languages
    columns = Columns()
    if given.kind in ("table", "dataset"):
        one = languages[0] if languages and len(languages) == 1 and given.language_column is None else None
        only = one if given.text_column or given.question_column else None
        columns = Columns(
            given.language_column, given.text_column, given.question_column, given.answer_column, given.id_column, only
        )
    request = Request(
        **{name: asked[name] for name in Request.__dataclass_fields__ if name in asked},
        columns=columns,
    )
    content = prepare_data(request, shlex.join(["unlearn-trainer", "prepare", *words]))
    print(describe(content, given.output_dir))


def _size(word: str) -> int | str:
    if word == "all":
        return word
    size = int(word)
    if size < 1:
        raise argparse.ArgumentTypeError("at least 1, or all")
    return size


def _factor(word: str) -> float:
    factor = float(word)
    if not 0 <= factor < 1e6:
        raise argparse.ArgumentTypeError("a number from 0")
    return factor
