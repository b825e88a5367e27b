"""Whether a loss tells forgotten rows from rows that were never seen, by figures of single rows.

An attacker who knows the scores of both kinds sorts rows by them. An area under the ROC curve of 0.5 leaves nothing to
sort by. Towards 1 the forget rows are still more familiar than text that was never seen; towards 0 they are *less*
familiar, which is what ascent without a floor ends in and gives them away just as well: see :func:`recognisability`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Columns of `MultilingualEvaluator.rows` that fall as a row is known better; the score of a member is their negative.
SCORES = ("loss", "min_k", "min_k_plus_plus")


def area(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """AUCs of scores [..., n] and [..., m]: the chance that a member scores higher, ties counting half (Mann-Whitney).

    Infinite scores are ranked, too; the AUC is NaN where a score is NaN, which has no rank.
    """
    from scipy import stats  # takes a second to import

    n, m = members.shape[-1], others.shape[-1]
    ranks = stats.rankdata(np.concatenate([members, others], axis=-1), axis=-1)
    return (ranks[..., :n].sum(-1) - n * (n + 1) / 2) / (n * m)


def auc(members: Sequence[float], non_members: Sequence[float]) -> float:
    """The :func:`area` of two lists of scores, greater is more familiar.

    Raises:
        ValueError: one of the two is empty or has a NaN.
    """
    members, others = (np.asarray(scores, dtype=np.float64) for scores in (members, non_members))
    if not len(members) or not len(others):
        raise ValueError(f"no AUC of {len(members)} members and {len(others)} non-members")
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("no AUC: a score is NaN")
    return float(area(members, others))


def recognisability(auc_found: float) -> float:
    """What an attacker gains from an AUC of either direction: from 0.5 (nothing) to 1 (every row)."""
    return max(auc_found, 1 - auc_found)


def membership_auc(
    members: Mapping[str, np.ndarray], non_members: Mapping[str, np.ndarray], languages: Sequence[str]
) -> dict[str, dict[str, float]]:
    """AUC of forget rows against rows never seen, ``{language: {score: AUC}}`` with the scores of :data:`SCORES`.

    Scores are compared within a language only; one that lacks rows of either kind is left out. An AUC is NaN where
    a score is.

    Args:
        members, non_members: columns of two splits as :meth:`MultilingualEvaluator.rows` returns them.
        languages: codes that their column ``language`` indexes.
    """
    found = {}
    for index, language in enumerate(languages):
        inside, outside = (rows["language"] == index for rows in (members, non_members))
        if inside.any() and outside.any():
            found[language] = {
                name: float(area(-members[name][inside], -non_members[name][outside])) for name in SCORES
            }
    return found
