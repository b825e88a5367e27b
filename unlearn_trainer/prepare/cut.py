"""Which rows go to which split: seeded, and the same whatever languages are asked for."""

import random
from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from .collection import TRAIN, Collection, Row

ALL = "all"


def cut_splits(
    collection: Collection, chosen: Mapping[str, str], forget_size: int | str | None, retain_factor: float, seed: int
) -> dict[str, list[Row]]:
    """The rows of each split.

    A pool is shuffled by the seed and cut in the collection's proportions. forget is the first ``forget_size`` rows of
    its part, retain the first ``forget_size * retain_factor`` of its own; valid and test are all of theirs. A split
    that the collection has itself is taken from there: forget and retain up to these sizes where they are given.

    Args:
        collection: what was read.
        chosen: languages, key to the collection's code; a row without any of them is left out.
        forget_size: number of rows, or ``"all"``: then every row of the pool is to be forgotten. None for 32, or for
            all of a forget split that the collection has itself.
        retain_factor: retain rows a forget row.
        seed: of the shuffle.

    Raises:
        ConfigError: a part has fewer rows than are wanted.
    """
    own = {split: _kept(rows, chosen) for split, rows in collection.splits.items()}
    pool = _kept(_shuffled(collection.pool, seed), chosen)
    if collection.pool and not pool:
        raise ConfigError(f"no row has a text in {', '.join(chosen)}; choose other --languages")
    if forget_size == ALL and pool:
        return {"forget": pool, **own}
    parts = {**_cut(pool, {split: size for split, size in collection.cut.items() if split not in own}), **own}
    size = 32 if forget_size is None and "forget" not in own else forget_size
    forget = len(parts["forget"]) if size in (None, ALL) else int(size or 0)
    retain = round(forget * retain_factor)
    if TRAIN in parts:
        train = parts.pop(TRAIN)
        if len(train) < forget + retain:
            raise ConfigError(_too_few("forget and retain together", len(train), forget + retain, len(pool),
                                       int(len(train) / (1 + retain_factor)), retain_factor))  # fmt: skip
        parts |= {"forget": train[:forget], "retain": train[forget : forget + retain]}
        return {split: rows for split, rows in parts.items() if rows}
    most = min(len(parts["forget"]), int(len(parts["retain"]) / retain_factor) if retain_factor else len(pool))
    for split, wanted in (("forget", forget), ("retain", retain)):
        rows = parts[split]
        if split in own:
            parts[split] = (_shuffled(rows, seed) if len(rows) > wanted else rows)[:wanted]
        elif len(rows) < wanted:
            raise ConfigError(_too_few(split, len(rows), wanted, len(pool), most, retain_factor))
        else:
            parts[split] = rows[:wanted]
    return {split: rows for split, rows in parts.items() if rows}


def _too_few(split: str, there: int, wanted: int, pool: int, most: int, factor: float) -> str:
    largest = f"--forget_size {most} is the most" if most > 0 else "there are too few rows to cut from"
    return (
        f"{split} needs {wanted} rows, and the part of it has {there} of the {pool} rows; with --retain_factor "
        f"{factor:g} {largest}, and --forget_size all takes every row as what is to be forgotten"
    )


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in order]


def _kept(rows: Sequence[Row], chosen: Mapping[str, str]) -> list[Row]:
    return [kept for row in rows if (kept := row.in_languages(chosen)) is not None]


def _cut(rows: list[Row], proportions: Mapping[str, int]) -> dict[str, list[Row]]:
    """Consecutive parts of ``rows`` in these proportions; exactly these where their sum is the number of rows.

    Each part gets a row where there are enough.
    """
    whole, parts, seen, start = sum(proportions.values()), {}, 0, 0
    for number, (split, size) in enumerate(proportions.items(), start=1):
        seen += size
        end = max(round(len(rows) * seen / whole), start + 1)
        end = min(end, max(len(rows) - len(proportions) + number, start))  # leaves one for each part behind
        parts[split], start = rows[start:end], end
    return parts
