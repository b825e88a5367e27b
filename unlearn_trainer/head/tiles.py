"""Statistics of a few tokens at a time from their logits, and the way back from these to the projection.

What runs between the products of the vocabulary head: each pass is over a tile that stays in the cache, in memory
that is used again, and no pass is made twice.
"""

import math
import threading
from collections.abc import Callable

import torch

from ..objectives.statistics import TokenStatistics
from .projection import VocabularyHead

# Those that a loss may be derived by.
DIFFERENTIABLE = ("nll", "kl", "reduced")


class Tile:
    """A few tokens of one segment: their statistics, and the way back from these to the raw projections.

    Args:
        head: the student's.
        targets: [n] token ids.
        parts: the raw projections [n, V] that predict the targets and, if others, those that the KL looks at.
        temperature: of the KL.
        reduction: for ``reduced``, see :class:`~unlearn_trainer.objectives.Objective`.
        teacher_targets: [n] the token ids of ``teacher_nll``, if not ``targets``.
    """

    def __init__(
        self,
        head: VocabularyHead,
        targets: torch.Tensor,
        parts: list[torch.Tensor],
        temperature: float,
        reduction: Callable[..., torch.Tensor] | None = None,
        teacher_targets: torch.Tensor | None = None,
    ):
        self.head, self.targets, self.parts, self.temperature = head, targets[:, None], parts, temperature
        self.reduction = reduction
        self.teacher_targets = self.targets if teacher_targets is None else teacher_targets[:, None]

    def statistics(
        self, needs: frozenset[str], teacher: tuple[VocabularyHead, torch.Tensor] | None
    ) -> TokenStatistics:
        """``needs``, from the teacher's head and raw projections [n, V] too; all projections are used up."""
        logits = _finished(self.head, self.parts[0], "logits")
        of_targets = logits.gather(-1, self.targets)
        room = reused("probabilities", logits.shape, logits)
        top, hit = _greedy(logits, of_targets, self.targets, room)
        self.own = self.compared = _Softmax(logits, room, top)
        figures = TokenStatistics(nll=(self.own.log_normalizer - of_targets)[:, 0], hit=hit)
        if "log_prob_moments" in needs:
            figures.log_prob_mean, figures.log_prob_std = self.own.log_prob_moments()
        if len(self.parts) > 1:
            self.other_logits = _finished(self.head, self.parts[1], "other logits")
        if teacher is not None:
            logits = _finished(teacher[0], teacher[1], "teacher logits")
        if "reduced" in needs and self.reduction is not None:
            figures.reduced = self._reduced(self.reduction, logits if teacher is not None else None)
        if not needs & {"kl", "teacher_nll"}:
            return figures
        room = reused("teacher probabilities", logits.shape, logits)
        self.teacher = _Softmax(logits, room)
        figures.teacher_nll = (self.teacher.log_normalizer - logits.gather(-1, self.teacher_targets))[:, 0]
        if "kl" in needs:
            if self.temperature != 1.0:
                self.teacher = _Softmax(logits.div_(self.temperature), room)
            figures.kl = self._kl()
        return figures

    def _reduced(self, reduction: Callable[..., torch.Tensor], teacher_logits: torch.Tensor | None) -> torch.Tensor:
        # Copies: what else is computed works in the place of these.
        self.leaf = (self.other_logits if len(self.parts) > 1 else self.own.logits).clone().requires_grad_()
        taught = teacher_logits.clone() if teacher_logits is not None else None
        with torch.enable_grad():
            self.reduced = reduction(self.leaf, taught, self.targets[:, 0])
        return self.reduced.detach()

    def _kl(self) -> torch.Tensor:
        logits, other = self.own.logits, len(self.parts) > 1
        if other:
            logits = self.other_logits
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        if other or self.temperature != 1.0:
            room = reused("other probabilities", logits.shape, logits)
            self.compared = _Softmax(logits, room, unit=self.temperature)
        # Equal distributions differ by exactly 0, as they would not if each sum were taken by itself.
        gap = self.teacher.logits.sub_(logits).mul_(self.teacher.probs).sum(-1)
        normalizers = self.compared.log_normalizer - self.teacher.log_normalizer
        return self.temperature**2 * (gap + normalizers[:, 0])

    def put_slopes(self, slopes: dict[str, torch.Tensor]) -> None:
        """Put d loss / d raw projection in the place of ``parts``, from d loss / d each statistic of a token, [n]."""
        by_nll = slopes["nll"][:, None] if "nll" in slopes else None
        of_nll = [(self.own.probs, by_nll)] if by_nll is not None else []
        of_kl = []
        if "kl" in slopes:
            by_kl = self.temperature * slopes["kl"][:, None]
            of_kl = [(self.compared.probs, by_kl), (self.teacher.probs, -by_kl)]
            if self.compared is self.own and by_nll is not None:
                of_nll, of_kl = [(self.own.probs, by_nll + by_kl)], of_kl[1:]
        dense = None
        if "reduced" in slopes:
            (dense,) = torch.autograd.grad(self.reduced, self.leaf, slopes["reduced"])
        if len(self.parts) > 1:
            self._put(self.parts[0], self.own.logits, 1.0, of_nll, by_nll, None)
            self._put(self.parts[1], self.other_logits, self.compared.unit, of_kl, None, dense)
        else:
            self._put(self.parts[0], self.compared.logits, self.compared.unit, of_nll + of_kl, by_nll, dense)

    def _put(self, raw, logits, unit, summands, by_nll, dense):
        """``dense`` and the sum of probabilities x slopes, less the slope at the target, back through the soft cap."""
        grad = dense
        for probs, slope in summands:
            grad = probs.mul_(slope) if grad is None else grad.addcmul_(probs, slope)
        if grad is None:
            raw.zero_()
            return
        if by_nll is not None:
            grad.scatter_add_(-1, self.targets, -by_nll)
        raw.copy_(self.head.finish_backward_(grad, logits, unit))


class _Softmax:
    """The distribution of ``logits`` [n, V]: ``probs`` [n, V], put into ``room``, and ``log_normalizer`` [n, 1].

    ``top`` [n, 1] is their maximum, where it is known, and ``unit`` the temperature by which they have been divided.
    """

    def __init__(self, logits: torch.Tensor, room: torch.Tensor, top: torch.Tensor | None = None, unit: float = 1.0):
        self.logits, self.unit = logits, unit
        self.probs = torch.softmax(logits, -1, out=room)
        # The likeliest token's probability, exp(top - log_normalizer), is at least 1/V.
        top = logits.amax(-1, keepdim=True) if top is None else top
        self.log_normalizer = top - self.probs.amax(-1, keepdim=True).log()

    def log_prob_moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [n] of log p under p."""
        work = reused("moments", self.logits.shape, self.logits)
        mean = torch.mul(self.logits, self.probs, out=work).sum(-1, keepdim=True)
        variance = torch.sub(self.logits, mean, out=work).square_().mul_(self.probs).sum(-1)
        return (mean - self.log_normalizer)[:, 0], variance.sqrt()


def _greedy(logits, of_targets, targets, room):
    """The greatest logit [n, 1], and whether the target [n] is the first that has it; ``room`` is used up."""
    if logits.is_cuda:
        top, first = logits.max(-1, keepdim=True)
        return top, (first == targets)[:, 0]
    # On a CPU torch takes ten times as long to find where the maximum is; that only matters where there are several.
    top = logits.amax(-1, keepdim=True)
    hit = (of_targets == top)[:, 0]
    if hit.any():
        tied = torch.eq(logits, top, out=room).sum(-1) > 1
        rows = (hit & tied).nonzero()[:, 0]
        hit[rows] = logits[rows].argmax(-1) == targets[rows, 0]
    return top, hit


def _finished(head, raw, role):
    """The model's logits of the raw projections: in their place where these are float32 or float64."""
    if raw.dtype not in (torch.float32, torch.float64):
        raw = reused(role, raw.shape, raw, torch.float32).copy_(raw)
    return head.finish_(raw)


class _Held(threading.local):
    """What each role last held, by thread."""

    def __init__(self) -> None:
        self.tensors: dict[tuple[str, torch.dtype], torch.Tensor] = {}


_held = _Held()


def reused(role: str, shape, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Uninitialised memory on the device of ``like``.

    On a CPU it is what the same role last held: to map fresh pages takes longer than all passes over them.
    """
    dtype = dtype or like.dtype
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=like.device)
    flat, count = _held.tensors.get((role, dtype)), math.prod(shape)
    if flat is None or len(flat) < count:
        with torch.inference_mode(False):  # what is made in inference mode could not be written to in training
            flat = _held.tensors[role, dtype] = torch.empty(count, dtype=dtype)
    return flat[:count].view(shape)
