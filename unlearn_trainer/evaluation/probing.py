"""What a model makes of the candidates of a row: whether it prefers the right one, and by how much."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import metrics


@dataclass(frozen=True)
class CandidateScores:
    """The candidates of one row, in the order of the data.

    Args:
        language, item: of the row, as in its split.
        correct: [candidates] which are right.
        sentence_losses: [candidates] mean NLL in nats of the sentence with the candidate in it, by the paper's
            scoring: every token after the first, without the last one except in Chinese.
        token_losses: [candidates] mean NLL of the candidate's own tokens.
        sentence_nll, sentence_tokens: sums over the whole sentence with the first right candidate in it.
    """

    language: int
    item: int
    correct: tuple[bool, ...]
    sentence_losses: tuple[float, ...]
    token_losses: tuple[float, ...]
    sentence_nll: float
    sentence_tokens: int

    @classmethod
    def from_sums(
        cls, language: int, item: int, correct: Sequence[bool], sums: Mapping[str, np.ndarray], to_the_end: bool
    ) -> "CandidateScores":
        """From the :func:`candidate_sums` of a row; ``to_the_end``: the last token counts in ``sentence_losses``."""
        nll, tokens = sums["sentence_nll"], sums["sentence_tokens"]
        right = list(correct).index(True)
        whole = float(nll[right]), int(tokens[right])
        if not to_the_end:
            nll, tokens = nll - sums["last_nll"], tokens - 1
        sentence_losses = (nll / np.maximum(tokens, 1)).tolist()
        token_losses = (sums["nll"] / np.maximum(sums["tokens"], 1)).tolist()
        return cls(language, item, tuple(correct), tuple(sentence_losses), tuple(token_losses), *whole)

    @property
    def offers_a_choice(self) -> bool:
        """Whether there is something wrong to prefer."""
        return not all(self.correct)

    @property
    def log_truth_ratio(self) -> float:
        """:func:`.metrics.log_truth_ratio` by the tokens of the candidates; of rows that offer a choice."""
        return metrics.log_truth_ratio(self.token_losses, self.correct)


def candidate_sums(nll: np.ndarray, owner: np.ndarray, labelled: np.ndarray) -> dict[str, np.ndarray]:
    """Sums over the tokens of each candidate and of its whole sentence.

    Args:
        nll: [tokens] of every token but the first of each sentence.
        owner: [tokens] ascending index of the candidate each belongs to.
        labelled: [tokens] whether it is the candidate's own.

    Returns:
        float64 arrays [candidates]: ``tokens`` and ``nll`` of the candidate's own tokens, ``sentence_tokens`` and
        ``sentence_nll`` of all, ``last_nll`` of the last.
    """
    is_last = np.diff(owner, append=-1) != 0
    return {
        "tokens": np.bincount(owner, labelled),
        "nll": np.bincount(owner, labelled * nll),
        "sentence_tokens": np.bincount(owner).astype(np.float64),
        "sentence_nll": np.bincount(owner, nll),
        "last_nll": np.bincount(owner, nll * is_last),
    }


def probing_figures(rows: Sequence[CandidateScores], is_forget: bool) -> dict[str, float]:
    """The figures of one split and language; ``is_forget``: what is a good truth ratio depends on it."""
    flags = [row.correct for row in rows]
    sentence_losses = [row.sentence_losses for row in rows]
    right = metrics.probing_accuracy(sentence_losses, flags)
    several = [score for score, row in zip(right, rows, strict=True) if len(row.correct) > 1]
    ratios = [row.log_truth_ratio for row in rows if row.offers_a_choice]
    nll, tokens = math.fsum(row.sentence_nll for row in rows), sum(row.sentence_tokens for row in rows)
    figures = {
        "probing_accuracy": _mean(right),
        "probing_accuracy_answer_tokens": _mean(metrics.probing_accuracy([row.token_losses for row in rows], flags)),
        "mean_reciprocal_rank": metrics.mean_reciprocal_rank(sentence_losses, flags),
        "probing_rows": len(rows),
        "probing_rows_several_candidates": len(several),
        "sentence_perplexity": metrics.perplexity(nll, tokens),
    }
    if several:
        figures["probing_accuracy_several_candidates"] = _mean(several)
    if ratios:
        figures["truth_ratio"] = _mean([metrics.truth_ratio_score(ratio, is_forget) for ratio in ratios])
    return figures


def _mean(values):
    return math.fsum(values) / len(values)
