"""Which rows each optimizer step of each rank reads: a pure function of (seed, epoch, index).

Nothing here keeps state between epochs and no global random generator is read, so a resumed run, every rank and every
split of the global batch into processes, micro-batches and accumulation steps see the same rows at the same step.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from ..errors import ConfigError, DataError

ItemLanguages = list[dict[int, int]]
"""For each item, its translations: {language index: row index in the dataset}."""

_ORDER, _LANGUAGE = 0, 1  # what a random stream is for; part of its key, so that streams never share numbers


def group_items(dataset, num_languages: int) -> ItemLanguages:
    """Ties the translations of each item together.

    Args:
        dataset: tokenized `datasets.Dataset` with the integer columns `item` and `language`.
        num_languages: number of trained languages; rows of a language index at or above it (held out) are left out.

    Returns:
        Items in order of their index; an item without any trained language is left out.

    Raises:
        DataError: an item has two rows in one language.
    """
    items: dict[int, dict[int, int]] = {}
    for row, (item, language) in enumerate(zip(dataset["item"], dataset["language"], strict=True)):
        if language >= num_languages:
            continue
        rows = items.setdefault(item, {})
        if language in rows:
            raise DataError(
                f"item {item} has two rows (numbers {rows[language]} and {row}) in language number {language}; "
                "keep one of them, or give them different ids"
            )
        rows[language] = row
    return [items[item] for item in sorted(items)]


class _Stream:
    """The endless sequence of rows drawn from one split, cut into passes; each pass is shuffled on its own."""

    def __init__(self, items: ItemLanguages, sampling: str, seed: int, is_forget: bool):
        self.items = [sorted(rows.items()) for rows in items]
        self.sampling, self.seed, self.is_forget = sampling, seed, is_forget
        self.size = sum(map(len, self.items)) if sampling == "all" else len(self.items)  # rows of one pass
        # Balanced: neighbours in a fixed shuffle of the items start one language apart. Over its L passes an item then
        # meets each language once, and the languages are also as even as can be within any single pass.
        self.offset = self._rng(_LANGUAGE, 0).permutation(len(self.items)) if sampling == "balanced" else None

    def _rng(self, purpose: int, index: int) -> np.random.Generator:
        key = np.random.SeedSequence((self.seed, int(self.is_forget), purpose, index))
        return np.random.Generator(np.random.Philox(key))

    def _pass(self, index: int) -> list[int]:
        if self.sampling == "all":
            rows = [row for item in self.items for _, row in item]
        else:
            if self.sampling == "balanced":
                choice = self.offset + index
            else:
                choice = self._rng(_LANGUAGE, index).integers([len(item) for item in self.items])
            rows = [item[c % len(item)][1] for item, c in zip(self.items, choice.tolist(), strict=True)]
        return [rows[i] for i in self._rng(_ORDER, index).permutation(len(rows))]

    def draw(self, start: int, count: int) -> list[tuple[bool, int]]:
        """Rows number `start` to `start + count` of the endless sequence."""
        first, last = start // self.size, (start + count - 1) // self.size
        rows = list(chain.from_iterable(self._pass(index) for index in range(first, last + 1)))
        skip = start - first * self.size
        return [(self.is_forget, row) for row in rows[skip : skip + count]]


class UnlearnBatchSampler(Sampler[list[tuple[bool, int]]]):
    """Micro-batches of one rank, as lists of `(is_forget, row)`; give it to `DataLoader(batch_sampler=...)` as it is.

    It shards by itself: accelerate must not shard the loader again. An optimizer step consumes
    `G = batch_size * num_processes * accumulation_steps` drawn items; micro-batch `j` of rank `r` is slice
    `j * num_processes + r` of them. The same G gives the same rows at every step, however it is factored.

    With `lengths` the items of a step are dealt in order of their length, so that a micro-batch holds rows of about
    one length and needs little padding, and ranks wait little for each other. The step's rows stay the same.

    `joint`: the epoch is one pass over the forget items and `batch_size` counts forget rows. Each batch adds as many
    retain rows from a walk that goes on from epoch to epoch and repeats no retain item before it has seen all.
    `alternate`: one pass over forget, then one over retain; no optimizer step mixes the two.
    With one of the two splits missing, the epoch is one pass over the other.

    The last step of a pass may have fewer items. They are dealt out in turn over the step's micro-batches, so that all
    ranks have equally many batches and nothing is repeated or dropped; a batch may then be an empty list, for which
    `UnlearnCollator` makes a row without labels. Such a step has `accumulation_steps` micro-batches per rank as any
    other in `alternate`, and in `joint`, where it ends the epoch, only as many as its items need.

    Args:
        forget, retain: items as `group_items` gives them; `None` for a split that is not trained on.
        batch_size: items per micro-batch and rank (the number of rows is twice that in a joint batch).
        language_sampling: `balanced`: over L passes an item with L languages is seen once in each; `random`: one
            language drawn uniformly for each item and pass (the LingTea paper); `all`: each pass holds every language.
        seed: a non-negative integer.
        lengths: tokens of each row of a split, `{is_forget: [rows]}`.

    Raises:
        ConfigError: a number out of range, an unknown schedule or language sampling.
        DataError: nothing to train on.
    """

    def __init__(
        self,
        forget: ItemLanguages | None,
        retain: ItemLanguages | None,
        *,
        batch_size: int,
        accumulation_steps: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        schedule: Literal["joint", "alternate"] = "joint",
        language_sampling: Literal["balanced", "random", "all"] = "balanced",
        seed: int,
        lengths: dict[bool, list[int]] | None = None,
    ):
        if schedule not in ("joint", "alternate"):
            raise ConfigError(f"schedule must be joint or alternate, not {schedule!r}")
        if language_sampling not in ("balanced", "random", "all"):
            raise ConfigError(f"language_sampling must be balanced, random or all, not {language_sampling!r}")
        if min(batch_size, accumulation_steps, num_processes) < 1 or not 0 <= process_index < num_processes:
            raise ConfigError(
                "batch_size, accumulation_steps and num_processes must be at least 1 and process_index below "
                f"num_processes, not {batch_size}, {accumulation_steps}, {num_processes} and {process_index}"
            )
        if seed < 0:
            raise ConfigError(f"seed must not be negative, not {seed}")
        for name, items in (("forget", forget), ("retain", retain)):
            if items is not None and (not items or not all(items)):
                raise DataError(f"the {name} split has no rows, or an item without any, in the trained languages")
        if forget is None and retain is None:
            raise DataError("there is nothing to train on: neither a forget nor a retain split")

        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.num_processes = num_processes
        self.process_index = process_index
        self.schedule = schedule
        self.lengths = lengths
        self.epoch = 0
        self._streams = [
            _Stream(items, language_sampling, seed, is_forget)
            for items, is_forget in ((forget, True), (retain, False))
            if items is not None
        ]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next `iter()` walks; an iterator already made keeps its own."""
        self.epoch = epoch

    def rows_of_epoch(self, is_forget: bool) -> int:
        """How many rows of a split an epoch draws, on all ranks together."""
        sizes = {stream.is_forget: stream.size for stream in self._streams}
        if is_forget not in sizes:
            return 0
        return sizes[is_forget] if self.schedule == "alternate" else self._streams[0].size

    @property
    def steps_per_epoch(self) -> int:
        """How many optimizer steps an epoch takes."""
        return max(1, -(-len(self) // self.accumulation_steps))

    def _longest(self, item: tuple[tuple[bool, int], ...]) -> int:
        return max(self.lengths[is_forget][row] for is_forget, row in item)

    def _pass_sizes(self) -> list[int]:
        """Drawn items of each pass of an epoch; a joint pass counts its forget items."""
        return [stream.size for stream in (self._streams if self.schedule == "alternate" else self._streams[:1])]

    def _passes(self) -> list[list[tuple[tuple[bool, int], ...]]]:
        """The drawn items of each pass of the epoch; an item is one row, or a forget and a retain row if joint."""
        if self.schedule == "alternate":
            return [[(row,) for row in stream.draw(self.epoch * stream.size, stream.size)] for stream in self._streams]
        size = self._streams[0].size
        return [list(zip(*(stream.draw(self.epoch * size, size) for stream in self._streams), strict=True))]

    def _micro_batches(self, num_items: int) -> int:
        """Micro-batches per rank of a step that has `num_items` drawn items left to it."""
        if self.schedule == "alternate":
            return self.accumulation_steps
        return min(self.accumulation_steps, -(-num_items // (self.batch_size * self.num_processes)))

    def __len__(self) -> int:
        step_size = self.batch_size * self.num_processes * self.accumulation_steps
        return sum(
            self._micro_batches(size - start) for size in self._pass_sizes() for start in range(0, size, step_size)
        )

    def __iter__(self) -> Iterator[list[tuple[bool, int]]]:
        step_size = self.batch_size * self.num_processes * self.accumulation_steps
        for items in self._passes():
            for start in range(0, len(items), step_size):
                step = items[start : start + step_size]
                if self.lengths is not None:
                    step = sorted(step, key=self._longest, reverse=True)
                slices = self._micro_batches(len(step)) * self.num_processes
                for index in range(self.process_index, slices, self.num_processes):
                    if len(step) == step_size:
                        batch = step[index * self.batch_size : (index + 1) * self.batch_size]
                    else:
                        batch = step[index::slices]
                    yield [row for item in batch for row in item]
