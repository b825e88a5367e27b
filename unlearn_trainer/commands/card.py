"""``unlearn-trainer card RUN``: write the model card of a finished run anew, from its results and its audit."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="unlearn-trainer card", description=__doc__.partition(": ")[2])
    parser.add_argument("run", type=Path, metavar="RUN", help="the output folder of a finished run")
    parser.add_argument("--output_file", type=Path, help="where to write the card; default: README.md in RUN")
    return parser


def main(words: Sequence[str]) -> None:
    """Write README.md into the folder of a run.

    Raises:
        ConfigError: the folder holds no finished run, or a card that a person has written.
    """
    given = make_parser().parse_args(words)

    from ..report.model_card import write_card_at  # the files are read only when the words are right

    print(f"card: {write_card_at(given.run, given.output_file)}")
