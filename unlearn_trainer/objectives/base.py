"""What an objective is, and the counts it is divided by."""

import dataclasses
from collections.abc import Callable

import torch

from ..lm_head import TokenStatistics

IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss on the forget or on the retain rows of a step.

    ``function`` takes the :class:`~unlearn_trainer.lm_head.TokenStatistics` of some labelled tokens, with exactly the
    fields in ``needs``, and returns one value a token for each of its terms. The trainer multiplies the values by the
    language's weight, sums them, and divides by the term's count over the *whole* optimizer step (all accumulated
    batches of all processes), so that no split of a step changes its gradient. Functions are pure and additive over
    tokens: they are called on chunks.

    Args:
        name: as on the command line.
        function: ``TokenStatistics -> Tensor [tokens]`` or a tuple of such, one a term.
        needs: a subset of ``nll``, ``kl``, ``teacher_nll``, ``log_prob_moments``, ``distill_weight``.
        counts: which of :data:`COUNTERS` divides each term.
        kl_at_label: take ``kl`` and ``teacher_nll`` at the position that *carries* the label.
    """

    name: str
    function: Callable[[TokenStatistics], torch.Tensor | tuple[torch.Tensor, ...]]
    needs: frozenset[str]
    counts: tuple[str, ...] = ("tokens",)
    kl_at_label: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether the frozen original model has to run on the objective's rows."""
        return bool(self.needs & {"kl", "teacher_nll"})

    def terms(self, statistics: TokenStatistics) -> tuple[torch.Tensor, ...]:
        values = self.function(statistics)
        return values if isinstance(values, tuple) else (values,)


@dataclasses.dataclass(frozen=True)
class Method:
    """A named pair of objectives, either of which may be ``none``."""

    forget_objective: str
    retain_objective: str


def predicted(labels: torch.Tensor) -> torch.Tensor:
    """Mask [rows, length - 1] over positions that predict a labelled token; their targets are ``labels[:, 1:]``."""
    return labels[:, 1:] != IGNORED


# Each maps (labels [rows, length], attention_mask [rows, length]) to a whole number, summed over the step.
COUNTERS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "tokens": lambda labels, mask: predicted(labels).sum(),
    "rows": lambda labels, mask: predicted(labels).any(1).sum(),
    "attended": lambda labels, mask: mask[predicted(labels).any(1)].sum(),
}
