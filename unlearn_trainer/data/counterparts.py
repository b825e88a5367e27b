"""Counterparts: for every row that must go, one like it that the model never saw, to learn from what "unknown" is."""

import dataclasses
import random
from collections.abc import Sequence

import datasets

from ..errors import DataError
from .tokenize import IDS, IGNORE_INDEX, TokenizedData

FEATURES = datasets.Features({"counterpart_input_ids": IDS, "counterpart_labels": IDS})
# So many candidates a row are looked at, drawn at random where there are more.
MAX_CANDIDATES = 512


def add_counterparts(data: TokenizedData, seed: int) -> TokenizedData:
    """The same data, with a never-seen counterpart to every forget row; half of the valid items are given for that.

    Every other valid item becomes counterparts and leaves the valid split, so that this still holds text that the
    training does not touch. The columns ``counterpart_input_ids`` and ``counterpart_labels`` of the forget rows hold a
    row of the same language, with a like prompt and as many labelled tokens where there is one; all of them serve
    about equally often. A language without never-seen rows takes those of the others.

    Args:
        seed: of the order in which rows choose.

    Raises:
        DataError: there are fewer than two valid items.
    """
    valid = data.datasets.get("valid")
    items = sorted(set(valid["item"][:])) if valid is not None else []
    if len(items) < 2:
        raise DataError(
            f"calibrated forgetting learns from never-seen rows what an unknown text looks like, and there are "
            f"{len(items)} items in the valid split; give --valid_file at least 2"
        )
    trained = range(len(data.languages))
    given = _every_other(valid, trained)
    columns = ["input_ids", "labels", "language", "item"]
    known = [
        row for row in valid.select_columns(columns).to_list() if row["item"] in given and row["language"] in trained
    ]
    rest = valid.select([index for index, item in enumerate(valid["item"][:]) if item not in given])
    forget = data.datasets["forget"]
    if not known:
        raise DataError("none of the valid items is in a trained language; give --valid_file such rows")
    rows = forget.select_columns(["input_ids", "labels", "language"]).to_list()
    chosen: list[dict | None] = [None] * len(rows)
    rng = random.Random(seed)
    for language in trained:
        mine = [index for index, row in enumerate(rows) if row["language"] == language]
        candidates = [row for row in known if row["language"] == language] or known
        for index, counterpart in zip(mine, _assign([rows[i] for i in mine], candidates, rng), strict=True):
            chosen[index] = counterpart
    empty: dict = {"input_ids": [], "labels": []}  # held-out languages are not trained on
    added = datasets.Dataset.from_dict(
        {f"counterpart_{name}": [(row or empty)[name] for row in chosen] for name in ("input_ids", "labels")},
        features=FEATURES,
    )
    more = {"forget": datasets.concatenate_datasets([forget, added], axis=1), "valid": rest}
    return dataclasses.replace(data, datasets={**data.datasets, **more})


def _every_other(valid: datasets.Dataset, trained: Sequence[int]) -> set[int]:
    """Half of the items, of those in the same languages: every language keeps about half of its rows.

    Of an item that is the only one of its kind nothing is taken, unless nothing would be taken at all.
    """
    languages: dict[int, set[int]] = {}
    for item, language in zip(valid["item"][:], valid["language"][:], strict=True):
        languages.setdefault(item, set()).update({language} & set(trained))
    alike: dict[tuple[int, ...], list[int]] = {}
    for item in sorted(languages):
        alike.setdefault(tuple(sorted(languages[item])), []).append(item)
    found = {item for kind, items in alike.items() if kind for item in items[1::2]}
    return found or set(sorted(languages)[1::2])


def _assign(rows: Sequence[dict], candidates: Sequence[dict], rng: random.Random) -> list[dict]:
    """A candidate for each row, in an order of choosing drawn by ``rng``; none serves oftener than it must."""
    described = [_description(row) for row in candidates]
    room = [-(-len(rows) // len(candidates))] * len(candidates)
    result: list[dict] = [{}] * len(rows)
    for index in rng.sample(range(len(rows)), len(rows)):
        mine = _description(rows[index])
        free = [place for place, left in enumerate(room) if left]
        if len(free) > MAX_CANDIDATES:
            free = rng.sample(free, MAX_CANDIDATES)
        best = min(free, key=lambda place: _distance(mine, described[place]))
        room[best] -= 1
        result[index] = candidates[best]
    return result


def _description(row: dict) -> tuple[frozenset[int], int]:
    """The tokens without a label (of a text: all), and how many have one."""
    labelled = sum(label != IGNORE_INDEX for label in row["labels"])
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    prompt = frozenset(token for token, label in pairs if label == IGNORE_INDEX)
    return prompt or frozenset(row["input_ids"]), labelled


def _distance(a: tuple[frozenset[int], int], b: tuple[frozenset[int], int]) -> float:
    """0 to 2: what the prompts do not share, and how unequal the numbers of labelled tokens are."""
    (tokens, count), (others, other_count) = a, b
    return 2 - len(tokens & others) / max(1, len(tokens | others)) - min(count, other_count) / max(count, other_count)
