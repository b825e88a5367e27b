"""Metrics of single rows, apart from how they are averaged over rows and languages.

The tensor functions read the labelled tokens of many rows as flat arrays, so that one call serves a whole batch
without a loop, a padded copy or a wait for the device; the training step uses them too. Their arguments:

- ``hits``: ``[n_tokens]``, 1 or True where the greedy prediction given the true prefix is the label
- ``nll``: ``[n_tokens]``, negative log-probability of the label in nats
- ``rows``: ``LongTensor [n_tokens]``, the row of each token, in ascending order; tokens keep their order within a row
- ``num_rows``: number of rows; a row may have no token at all, and its figure is then 0

They return ``[num_rows]`` on the same device, in the dtype of the values and at least in float32.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch


def _row_sum(values: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    return values.new_zeros(num_rows).index_add_(0, rows, values)


def _row_mean(values: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    # The counts are summed as integers: a float32 count would stop growing at 2**24 tokens.
    tokens = _row_sum(torch.ones_like(rows), rows, num_rows)
    return _row_sum(values, rows, num_rows) / tokens.clamp(min=1)


def memorization_accuracy(hits: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Share of a row's tokens that are predicted greedily from the true prefix (Tirumala et al., 2022)."""
    return _row_mean(hits, rows, num_rows)


def extraction_strength(hits: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """1 - k/n, k the first index from which every greedy prediction is right; 0 if the last one is wrong.

    That is the share of a row that follows from the shortest sufficient prefix (Carlini et al., 2021).
    """
    misses = (hits == 0).long()
    row_misses = _row_sum(misses, rows, num_rows)
    misses_before_row = row_misses.cumsum(0) - row_misses
    misses_before_token = misses.cumsum(0) - misses - misses_before_row[rows]
    # A token is extracted when no miss remains at or after it in its row.
    extracted = misses_before_token == row_misses[rows]
    values = extracted.to(hits.dtype) if hits.is_floating_point() else extracted
    return _row_mean(values, rows, num_rows)


def probability(nll: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """exp(-mean NLL): the geometric mean of the probabilities of a row's tokens."""
    has_tokens = _row_sum(torch.ones_like(rows), rows, num_rows) > 0
    return torch.exp(-_row_mean(nll, rows, num_rows)) * has_tokens


def min_k(nll: torch.Tensor, rows: torch.Tensor, num_rows: int, ratio: float = 0.2) -> torch.Tensor:
    """Mean of a row's max(1, floor(ratio * n)) largest NLLs: Min-K% (Shi et al., 2024), greater is less familiar."""
    tokens = _row_sum(torch.ones_like(rows), rows, num_rows)
    # An exact fraction, not a float product: floor(0.29 * 100) is 28 in floating point.
    share = Fraction(ratio).limit_denominator(10_000)
    kept_tokens = (tokens * share.numerator // share.denominator).clamp(min=1)
    by_value = nll.argsort(descending=True)
    order = by_value[rows[by_value].argsort(stable=True)]
    # `rows` is ascending, so it also names the rows of the reordered tokens.
    rank = torch.arange(len(rows), device=rows.device) - (tokens.cumsum(0) - tokens)[rows]
    kept = rank < kept_tokens[rows]
    values = nll[order].to(torch.promote_types(nll.dtype, torch.float32))
    # `where` and not a product: an infinite NLL outside the kept tokens must not become NaN.
    return _row_sum(torch.where(kept, values, 0.0), rows, num_rows) / kept_tokens


def min_k_plus_plus(
    nll: torch.Tensor,
    mean_log_prob: torch.Tensor,
    std_log_prob: torch.Tensor,
    rows: torch.Tensor,
    num_rows: int,
    ratio: float = 0.2,
) -> torch.Tensor:
    """`min_k` of (mu - log p) / sigma: Min-K%++ (Zhang et al., 2025), greater is less familiar.

    ``mean_log_prob`` and ``std_log_prob`` (``[n_tokens]``) are mu and sigma: the mean and the standard deviation of
    log p(v) over the vocabulary under p itself, at the position that predicts the token.
    """
    # A distribution without spread (sigma 0) scores 0 for its certain token and stays finite for any other.
    sigma = std_log_prob.clamp(min=torch.finfo(std_log_prob.dtype).eps)
    return min_k((mean_log_prob + nll) / sigma, rows, num_rows, ratio)


def token_hits(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ragged lists of predicted and true token ids, one list a row -> ``(hits, rows, num_rows)``; hits in float64.

    Raises ValueError where a row's two lists, or the numbers of rows, differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} rows of predictions for {len(references)} rows of references")
    for row, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
        if len(predicted) != len(true):
            raise ValueError(f"row {row}: {len(predicted)} predicted tokens for {len(true)} reference tokens")
    lengths = torch.tensor([len(row) for row in references], dtype=torch.long)
    flat_predictions, flat_references = (
        torch.tensor([token for row in ragged for token in row], dtype=torch.long)
        for ragged in (predictions, references)
    )
    rows = torch.arange(len(references)).repeat_interleave(lengths)
    return (flat_predictions == flat_references).double(), rows, len(references)


def _reciprocal_rank(losses: Sequence[float], correct: Sequence[bool]) -> float:
    candidates = list(zip(losses, correct, strict=True))
    best = min((loss for loss, is_correct in candidates if is_correct), default=math.inf)
    if best == math.inf:
        return 0.0
    # A wrong candidate that ties with the best right one goes before it, so having no preference earns nothing.
    return 1.0 / (1 + sum(not loss > best for loss, is_correct in candidates if not is_correct))


def probing_accuracy(losses: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]]) -> list[float]:
    """1.0 for each row whose lowest candidate loss belongs to a correct candidate alone, else 0.0.

    ``losses[i][j]`` is the mean NLL of row i with candidate j filled in (Kassner et al., 2021; LingTea). A tie between
    a correct and a wrong candidate is wrong. Raises ValueError where losses and flags differ in number.
    """
    return [float(_reciprocal_rank(*row) == 1.0) for row in zip(losses, correct, strict=True)]


def mean_reciprocal_rank(losses: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]]) -> float:
    """Mean over rows of 1 / rank of the best correct candidate; arguments and ties as in `probing_accuracy`."""
    ranks = [_reciprocal_rank(*row) for row in zip(losses, correct, strict=True)]
    return math.fsum(ranks) / len(ranks) if ranks else 0.0


def log_truth_ratio(losses: Sequence[float], correct: Sequence[bool]) -> float:
    """log R of one row, R = P(wrong) / P(right) with P = exp(-loss): TOFU's truth ratio (Maini et al., 2024).

    ``losses[j]`` is the mean NLL of the tokens of candidate j, the right one a paraphrase of what was trained on. P of
    several candidates is the arithmetic mean of their probabilities, as in the paper (the geometric mean, exp of the
    mean loss, is also in use). The logarithm, because R itself leaves the range of floating point on a model that
    ascent has ruined; -inf and inf where only one side is possible.

    Raises ValueError where there is no right or no wrong candidate, or losses and flags differ in number.
    """
    pairs = list(zip(losses, correct, strict=True))
    wrong, right = ([-loss for loss, is_correct in pairs if is_correct == side] for side in (False, True))
    if not wrong or not right:
        raise ValueError(f"no truth ratio of {len(right)} right and {len(wrong)} wrong candidates")
    return _log_mean_exp(wrong) - _log_mean_exp(right)


def truth_ratio_score(log_ratio: float, is_forget: bool) -> float:
    """What a truth ratio R is worth, from 0 to 1: min(R, 1/R) on the forget set, max(0, 1 - R) elsewhere.

    On the forget set 1 means that right and wrong are equally likely, elsewhere that nothing wrong is.
    """
    return math.exp(-abs(log_ratio)) if is_forget else max(0.0, -math.expm1(min(log_ratio, 0.0)))


def _log_mean_exp(values: Sequence[float]) -> float:
    largest = max(values)
    if not math.isfinite(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values) / len(values))


def perplexity(nll_sum: float, tokens: int) -> float:
    """exp(nll_sum / tokens) of sums over all rows, never of means of means; inf on overflow, NaN without tokens."""
    if tokens == 0:
        return math.nan
    try:
        return math.exp(nll_sum / tokens)
    except OverflowError:
        return math.inf
