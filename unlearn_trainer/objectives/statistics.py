"""What an objective is given: figures of tokens, and of rows."""

import dataclasses

import torch


@dataclasses.dataclass
class TokenStatistics:
    """Figures of labelled tokens, each a tensor of shape [tokens]; a field nobody asked for is ``None``.

    All are taken at the position that *predicts* the token. ``nll`` = -log p(y) of the student, ``hit`` whether y is
    its greedy prediction (of tied logits the first, as in decoding), ``kl`` = T^2 KL(teacher, student) in nats at
    temperature T, ``teacher_nll`` = -log of the teacher's probability of y, ``reduced`` what an objective's own
    function makes of the logits, ``log_prob_mean`` and ``log_prob_std`` the moments of log p under p (for Min-K++).
    From elsewhere come ``distill_weight``, the weight of the teacher that the language weights prescribe, ``place``,
    the token's number among the labelled ones of its row, ``row_tokens``, how many these are, ``hidden`` and
    ``teacher_hidden`` [tokens, d], the states of a layer at the token, ``control`` [d], a random unit vector, and
    ``unknown_nll``, ``unknown_hit``, ``unknown_mean`` and ``unknown_std``, how the teacher predicts a never-seen token
    like this one: the same as ``nll``, ``hit`` and the moments.
    """

    nll: torch.Tensor | None = None
    hit: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    teacher_nll: torch.Tensor | None = None
    log_prob_mean: torch.Tensor | None = None
    log_prob_std: torch.Tensor | None = None
    reduced: torch.Tensor | None = None
    distill_weight: torch.Tensor | None = None
    place: torch.Tensor | None = None
    row_tokens: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    teacher_hidden: torch.Tensor | None = None
    control: torch.Tensor | None = None
    unknown_nll: torch.Tensor | None = None
    unknown_hit: torch.Tensor | None = None
    unknown_mean: torch.Tensor | None = None
    unknown_std: torch.Tensor | None = None


@dataclasses.dataclass
class RowStatistics:
    """Figures of whole rows, each a tensor [rows]; a field nobody asked for is ``None``.

    ``nll`` and ``teacher_nll`` are *sums* over the row's labelled tokens, in nats; ``tokens`` is their number.
    ``alternative`` has the same figures of the row's alternative answer.
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    teacher_nll: torch.Tensor | None = None
    alternative: "RowStatistics | None" = None


def made(statistic: torch.Tensor | None) -> torch.Tensor:
    """A statistic that was asked for.

    Raises:
        RuntimeError: it was not.
    """
    if statistic is None:
        raise RuntimeError("a loss looks at a statistic that it has not asked for")
    return statistic
