"""Figures with their uncertainty: every one has the number of rows it rests on and a bootstrap interval over them."""

import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
LEVEL = 0.95
# Values drawn at once; beyond this resamples are drawn in parts.
_DRAWN = 4_000_000


def seed_of(seed: int, *words: str) -> int:
    """A seed of its own for each purpose, the same in every process and run."""
    return zlib.crc32("/".join([str(seed), *words]).encode())


def bootstrap(
    statistic: Callable[..., np.ndarray], *samples: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> dict[str, float]:
    """A statistic with its 95 % percentile bootstrap interval (Efron and Tibshirani 1993).

    Args:
        statistic: maps arrays [resamples, n, ...], one a sample, to [resamples].
        samples: arrays [n, ...] that are resampled along their first axis, independently of each other. To keep
            figures of one row together put them into one array.
        seed: of the resampling.
        resamples: how many.

    Returns:
        ``{"value", "low", "high", "n"}``; n is that of the smallest sample. The interval holds the value. Where all
        rows agree it has no width: read it with n.

    Raises:
        ValueError: a sample is empty.
    """
    from scipy import stats  # takes a second to import, and nothing before an audit's figures needs it

    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if any(not len(array) for array in arrays):
        raise ValueError("no figure of an empty sample")
    value = float(statistic(*(array[None] for array in arrays))[0])

    def resampled(*numbers: np.ndarray, axis: int) -> np.ndarray:
        drawn = zip(arrays, numbers, strict=True)
        return statistic(*(array.take(rows[:, : len(array)], axis=0) for array, rows in drawn))

    # The numbers of the rows are drawn, so that a row's figures stay together. SciPy refuses a sample of one row: it
    # gets that row twice, and one of each pair drawn is left out.
    numbers = [np.arange(max(2, len(array))) % len(array) for array in arrays]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        # Resamples without a value are left out below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            numbers,
            resampled,
            n_resamples=resamples,
            batch=max(1, _DRAWN // max(array.size for array in arrays)),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (math.nan, math.nan)
    return {
        "value": value,
        "low": min(float(low), value),
        "high": max(float(high), value),
        "n": min(len(array) for array in arrays),
    }


def mean(values: np.ndarray) -> np.ndarray:
    """Statistic: the mean over rows."""
    return values.mean(1)


def mean_figure(values: Sequence[float], seed: int) -> dict[str, float]:
    """The mean over rows with its interval."""
    return bootstrap(mean, values, seed=seed)


def ratio_of_sums(pairs: np.ndarray) -> np.ndarray:
    """Statistic of rows (numerator, denominator) [resamples, n, 2]: the ratio of their sums, as in a loss by token."""
    return pairs[..., 0].sum(1) / pairs[..., 1].sum(1)


def perplexity_of_sums(pairs: np.ndarray) -> np.ndarray:
    """Statistic of rows (NLL, tokens) [resamples, n, 2]: exp of the ratio of their sums."""
    with np.errstate(over="ignore"):
        return np.exp(ratio_of_sums(pairs))


def rows_by_language(
    columns: Mapping[str, np.ndarray],
    languages: Sequence[str],
    metrics: Sequence[str] = ("memorization_accuracy", "extraction_strength"),
) -> dict[str, dict[str, dict[str, list]]]:
    """``{metric: {language: {"items": [...], "values": [...]}}}`` from the columns of an evaluated split.

    A language without a row is left out.
    """
    found: dict[str, dict] = {metric: {} for metric in metrics}
    for index, language in enumerate(languages):
        chosen = columns["language"] == index
        if chosen.any():
            items = columns["item"][chosen].tolist()
            for metric in metrics:
                found[metric][language] = {"items": items, "values": columns[metric][chosen].tolist()}
    return found


def paired(*rows: Mapping[str, list]) -> np.ndarray:
    """Values of the items that all have, [items, subjects], by item.

    Args:
        rows: ``{"items", "values"}`` of one figure and language, from several models.
    """
    values = [dict(zip(each["items"], each["values"], strict=True)) for each in rows]
    common = sorted(set.intersection(*(set(each) for each in values)))
    return np.array([[each[item] for each in values] for item in common], dtype=np.float64).reshape(-1, len(rows))


def position(
    audited: Mapping,
    reference: Mapping,
    before: Mapping,
    seed: int,
    same_rows: bool = True,
    unattacked: Mapping | None = None,
) -> dict[str, float] | None:
    """Where the audited model stands between one that never saw the rows (0) and the one before (1).

    That is how far it lies above the never-seen model under the same attack, as a share of how far the model before
    lies above it without any. An attack that teaches the answers to every model then moves nobody.

    Args:
        audited, before: ``{"items", "values"}`` of one figure and language.
        reference: of a model that never saw these rows or, with ``same_rows`` false, of rows that were never seen.
        seed: of the bootstrap, which draws what belongs to one item together.
        unattacked: of the reference without the attack; by default ``reference`` is that.

    Returns:
        The figure; None where no item is common to all, or before and reference are the same.
    """
    unattacked = unattacked or reference

    def share(value, never, known, never_plain):
        with np.errstate(divide="ignore", invalid="ignore"):
            return (value - never) / (known - never_plain)

    if same_rows:
        rows = paired(audited, reference, before, unattacked)
        if not len(rows) or rows[:, 2].mean() == rows[:, 3].mean():
            return None
        return bootstrap(lambda drawn: share(*_means(drawn, 0, 1, 2, 3)), rows, seed=seed)
    own, others = paired(audited, before), paired(reference, unattacked)
    if not len(own) or not len(others) or own[:, 1].mean() == others[:, 1].mean():
        return None

    def share_of_others(drawn, never):
        (value, known), (never_attacked, never_plain) = _means(drawn, 0, 1), _means(never, 0, 1)
        return share(value, never_attacked, known, never_plain)

    return bootstrap(share_of_others, own, others, seed=seed)


def excess(audited: Mapping, reference: Mapping, seed: int, same_rows: bool = True) -> dict[str, float] | None:
    """How far the audited model's mean lies above the reference's; arguments as for :func:`position`."""
    if same_rows:
        pairs = paired(audited, reference)
        return (
            bootstrap(lambda drawn: mean(drawn[..., 0]) - mean(drawn[..., 1]), pairs, seed=seed)
            if len(pairs)
            else None
        )
    if not audited["values"] or not reference["values"]:
        return None
    return bootstrap(lambda drawn, never: mean(drawn) - mean(never), audited["values"], reference["values"], seed=seed)


def _means(drawn: np.ndarray, *columns: int) -> list[np.ndarray]:
    return [drawn[..., column].mean(1) for column in columns]
