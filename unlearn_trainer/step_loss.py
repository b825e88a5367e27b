"""From a flat batch to the segments whose loss the vocabulary head computes: one for each side that is trained on."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from .arguments import UnlearnConfig
from .evaluation.evaluator import row_figures
from .language_weights import SIDES, LanguageWeightCallback
from .lm_head import Segment, TokenStatistics
from .objectives import COUNTERS, Objective, predicted
from .packing import Layout
from .teacher import AdapterTeacher, ResidentTeacher


@dataclasses.dataclass
class SideTokens:
    """The labelled tokens of one side of a batch, in the order of rows and columns.

    Attributes:
        rows: [R] which rows of the batch belong to the side.
        row_of: [n] index into ``rows`` of each token.
        columns: [n] the column that *predicts* each token.
        targets: [n] token ids.
        row_languages: [R] language index of each row.
    """

    rows: torch.Tensor
    row_of: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    row_languages: torch.Tensor

    @property
    def languages(self) -> torch.Tensor:
        """[n] language index of each token."""
        return self.row_languages[self.row_of]

    def row_figures(self, statistics: TokenStatistics) -> dict[str, torch.Tensor]:
        """The sums that :meth:`LanguageWeightCallback.add_batch` takes, [R] each."""
        count = len(self.rows)
        if statistics.nll is None:
            empty = torch.zeros(count, device=self.rows.device)
            return dict.fromkeys(("tokens", "nll", "memorization_accuracy", "extraction_strength"), empty)
        figures = row_figures(statistics, self.row_of, count)
        if statistics.teacher_nll is not None:
            probability = torch.exp(-statistics.teacher_nll)
            figures["teacher_probability"] = torch.zeros_like(figures["nll"]).index_add_(0, self.row_of, probability)
        return figures


def side_tokens(batch: Mapping[str, torch.Tensor], side: str) -> SideTokens:
    """The labelled tokens of the forget or of the retain rows of a batch."""
    rows = (batch["is_forget"] == (side == "forget")).nonzero()[:, 0]
    labels = batch["labels"][rows]
    row_of, columns = predicted(labels).nonzero(as_tuple=True)
    return SideTokens(rows, row_of, columns, labels[row_of, columns + 1], batch["language"][rows])


class StepLoss:
    """``forget_coef * F + retain_coef * R`` of a batch, as segments for :func:`~.lm_head.fill_segments`.

    Args:
        args: coefficients, temperature, how the teacher is weighted.
        teacher: the frozen model, or ``None`` where no objective asks for it.
        num_processes: the engines average gradients over processes, so losses are multiplied by it.
    """

    def __init__(self, args: UnlearnConfig, teacher: ResidentTeacher | AdapterTeacher | None, num_processes: int):
        self.args, self.teacher, self.num_processes = args, teacher, num_processes

    def segment(
        self,
        side: str,
        objective: Objective,
        batch: Mapping[str, torch.Tensor],
        tokens: SideTokens,
        layout: Layout,
        counts: torch.Tensor,
        weights: LanguageWeightCallback,
    ) -> Segment:
        """The labelled tokens of one side, with their objective.

        Args:
            counts: [counters] of the side over the whole optimizer step, which the objective's terms are divided by.
            layout: where the batch's rows lie in the student's input.
        """
        segment = Segment(
            positions=layout.positions(tokens.rows[tokens.row_of], tokens.columns),
            targets=tokens.targets,
            needs=objective.needs - {"distill_weight"},
            temperature=self.args.distill_temperature,
        )
        # Decided by the whole step, so that all processes agree whether a sharded teacher runs.
        if objective.needs_teacher and counts[list(COUNTERS).index("tokens")] > 0:
            shift = int(objective.kl_at_label)
            segment.teacher_head = self.teacher.head
            segment.teacher_hidden = self.teacher.hidden(batch, tokens.rows, tokens.row_of, tokens.columns + shift)
            segment.kl_positions = segment.positions + 1 if shift else None
        segment.loss = self._loss(side, objective, tokens.languages, counts, weights)
        return segment

    def _loss(self, side, objective, language, counts, weights):
        coefficient = self.num_processes * (self.args.forget_coef if side == "forget" else self.args.retain_coef)
        token_weights = _per_token(getattr(weights, side), language)
        divisors = counts[[list(COUNTERS).index(count) for count in objective.counts]].clamp(min=1)
        distill = self._distill_weights(language, weights) if "distill_weight" in objective.needs else None

        def loss(statistics: TokenStatistics, where: slice):
            if distill is not None:
                statistics.distill_weight = distill(statistics, where)
            values = [value @ token_weights[where].to(value.dtype) for value in objective.terms(statistics)]
            terms = torch.stack(values) / divisors.to(values[0].dtype)
            return coefficient * terms.sum(), terms

        return loss

    def _distill_weights(self, language, weights):
        """How to get each token's weight of the teacher, from its statistics or its language."""
        if self.args.distill_weighting == "token":
            return lambda statistics, where: torch.exp(-statistics.teacher_nll)
        per_token = _per_token(weights.distill, language)
        return lambda statistics, where: per_token[where].to(statistics.nll.dtype)


def count_step(batches: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """Counts [sides, counters] over the batches of an optimizer step on this process, float64."""
    counts = torch.zeros(len(SIDES), len(COUNTERS), dtype=torch.float64)
    for batch in batches:
        for index, side in enumerate(SIDES):
            mine = batch["is_forget"] == (side == "forget")
            labels, mask = batch["labels"][mine], batch["attention_mask"][mine]
            counts[index] += torch.stack([count(labels, mask).double().cpu() for count in COUNTERS.values()])
    return counts


def _per_token(weights: Sequence[float], language: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if language.device.type == "mps" else torch.float64
    return torch.tensor(weights, dtype=dtype, device=language.device)[language]
