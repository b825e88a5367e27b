"""``unlearn-trainer dispose RUN``: list every place where the texts of a run remain, and with --yes remove them."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="unlearn-trainer dispose", description=__doc__.partition(": ")[2])
    parser.add_argument("run", type=Path, metavar="RUN", help="the output folder of a finished run")
    parser.add_argument("--yes", action="store_true", help="remove what is listed, and write deletion.json into RUN")
    parser.add_argument("--keep_cache", action="store_true", help="leave the cache of tokenized rows as it is")
    return parser


def main(words: Sequence[str]) -> None:
    """List the places, or remove them and write a deletion record.

    Raises:
        ConfigError: the folder holds no finished run.
        StorageError: something could not be removed; what was, is in the record.
    """
    given = make_parser().parse_args(words)

    from ..runs.disposal import describe, dispose, places_of_texts  # the files are read only when the words are right

    places = places_of_texts(given.run, with_cache=not given.keep_cache)
    print(describe(places))
    if given.yes:
        record = dispose(given.run, places)
        print(f"removed {len(record['removed'])} of {len(places.removable)}; record: {given.run / 'deletion.json'}")
    elif places.removable:
        print("nothing was removed; add --yes to remove what is listed first")
