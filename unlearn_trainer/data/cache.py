"""Rows that were tokenized before: read from the disk while they are what was written, and made anew where not."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from ..errors import ConfigError
from ..files import find_damage, remove_sealed, seal_file

logger = logging.getLogger(__name__)

ITEMS_PER_BATCH = 50


def cached_rows(
    build: Callable[[dict[str, list[int]]], dict[str, list[Any]]],
    size: int,
    features: datasets.Features,
    key: str,
    description: str,
) -> datasets.Dataset:
    """The rows that ``build`` makes of batches of ``{"index": [...]}`` out of ``range(size)``.

    Read from the cache where it has ``key``, which must name all that decides what the rows are. A cached file that is
    cut short or changed is named in a warning and made anew.

    Raises:
        ConfigError: the cache cannot be written to.
    """
    file = Path(datasets.config.HF_DATASETS_CACHE) / "unlearn_trainer" / f"{key}.arrow"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            damage = find_damage(file)
            if damage is not None:
                logger.warning("the cached rows in %s are damaged (%s) and are made anew", file, damage)
                remove_sealed(file)
        is_new = not file.exists()
        rows = datasets.Dataset.from_dict({"index": range(size)}).map(
            build,
            batched=True,
            batch_size=ITEMS_PER_BATCH,
            remove_columns=["index"],
            features=features,
            cache_file_name=str(file),
            new_fingerprint=key,
            desc=description,
        )
        if is_new and file.exists():  # no file is written for no rows
            seal_file(file)
        return rows
    except OSError as error:
        raise ConfigError(
            f"the cache of tokenized rows, {file.parent}, cannot be used ({error.strerror or error}); make it "
            "writable, or set HF_DATASETS_CACHE to a folder with free space that is"
        ) from error
