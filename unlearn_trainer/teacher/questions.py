"""What an objective asks the frozen teacher at the labelled tokens of a group of rows.

Each kind of question is a class that knows the shape of its answers, computes them by a forward of the teacher, and
reads them back. Answers are one tensor a question, so that they can lie in a file.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from ..data.batch import GroupTokens, RowGroup, group_tokens
from ..head.chunked import Segment, Segments
from ..objectives import Objective
from ..objectives.statistics import TokenStatistics, made


@dataclasses.dataclass(frozen=True)
class Question(abc.ABC):
    """One question; equal ones have equal answers.

    Args:
        group: of the rows.
    """

    group: RowGroup

    kind: ClassVar[str]  # stands in the key of the teacher cache
    # Only hidden states can be asked for elsewhere.
    at_label: bool = dataclasses.field(default=False, init=False)
    layer: int | None = dataclasses.field(default=None, init=False)

    @property
    def key(self) -> tuple:
        """What stands for this question in the key of the teacher cache; change it, and caches are made anew."""
        return self.group, self.kind, self.at_label, self.layer

    def tokens(self, batch: Mapping[str, torch.Tensor]) -> GroupTokens:
        """The n tokens of a batch that are asked about."""
        return group_tokens(batch, self.group, self.at_label)

    @abc.abstractmethod
    def width(self, hidden_size: int, head_size: int) -> tuple[int, ...]:
        """The shape of the answer at one token.

        Args:
            hidden_size: of the teacher.
            head_size: of what its vocabulary head takes, which in some models is smaller.
        """

    @abc.abstractmethod
    def compute(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor], positions: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """The answers [n, *width], by one forward.

        Args:
            model: the teacher with an attached vocabulary head, wrapped or not.
            inputs: of its forward.
            positions: [n] flat indices of its states at the tokens.
            targets: [n] token ids.
        """

    @abc.abstractmethod
    def at_no_token(self, device: torch.device) -> torch.Tensor:
        """The answers where no token is asked about, so that no teacher has to run."""


@dataclasses.dataclass(frozen=True)
class HiddenStates(Question):
    """The states [n, d] of the teacher, which its vocabulary head can make logits of.

    Args:
        at_label: those at the positions that carry the labels, not at those that predict them.
        layer: an index into ``hidden_states``; ``None`` for the final ones, which the vocabulary head gets.
    """

    at_label: bool = False
    layer: int | None = None

    kind = "hidden"

    def width(self, hidden_size, head_size):
        return (head_size if self.layer is None else hidden_size,)

    def compute(self, model, inputs, positions, targets):
        return model(**inputs, positions=positions, layer=self.layer)["hidden"]

    def at_no_token(self, device):
        return torch.zeros(0, 1, device=device)


@dataclasses.dataclass(frozen=True)
class TokenNll(Question):
    """-log p of each token under the teacher, [n]."""

    kind = "nll"

    def width(self, hidden_size, head_size):
        return ()

    def compute(self, model, inputs, positions, targets):
        statistics = _statistics(model, inputs, positions, targets, "nll")
        return statistics.nll if statistics.nll is not None else self.at_no_token(positions.device)

    def at_no_token(self, device):
        return torch.zeros(0, device=device)


@dataclasses.dataclass
class PredictedTokens:
    """How the teacher predicts tokens, [n] each.

    Attributes:
        nll: -log p of the token.
        hit: whether it is the likeliest.
        mean, std: of log p under p.
    """

    nll: torch.Tensor
    hit: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Prediction(Question):
    """How the teacher predicts each token; the columns [n, 4] are the fields of :class:`PredictedTokens`."""

    kind = "prediction"

    def width(self, hidden_size, head_size):
        return (len(dataclasses.fields(PredictedTokens)),)

    def compute(self, model, inputs, positions, targets):
        found = _statistics(model, inputs, positions, targets, "nll", "log_prob_moments")
        if found.nll is None:
            return self.at_no_token(positions.device)
        nll, hit = found.nll, made(found.hit).to(found.nll.dtype)
        predicted = PredictedTokens(nll, hit, made(found.log_prob_mean), made(found.log_prob_std))
        return torch.stack(list(vars(predicted).values()), 1)

    def at_no_token(self, device):
        return torch.zeros(0, *self.width(0, 0), device=device)

    def read(self, answers: torch.Tensor) -> PredictedTokens:
        """The columns of ``answers`` by name."""
        predicted = PredictedTokens(*answers.unbind(1))
        return dataclasses.replace(predicted, hit=predicted.hit > 0.5)


def questions_of(side: RowGroup, objective: Objective, layer: int) -> list[Question]:
    """What ``objective`` on the rows of ``side`` asks the teacher; one question a group of rows.

    Args:
        layer: that of objectives which look inside the model.
    """
    if not objective.needs_teacher:
        return []
    if "counterpart" in objective.needs:
        return [Prediction(RowGroup.COUNTERPART)]
    if "teacher_hidden" in objective.needs:
        return [HiddenStates(side, at_label=True, layer=layer)]
    has_alternative = "alternative" in objective.needs
    if objective.unit == "row":
        return [TokenNll(group) for group in (side, RowGroup.ALTERNATIVE)[: 1 + has_alternative]]
    return [HiddenStates(RowGroup.ALTERNATIVE if has_alternative else side, objective.at_label)]


def _statistics(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    positions: torch.Tensor,
    targets: torch.Tensor,
    *needs: str,
) -> TokenStatistics:
    segment = Segment(positions, targets, frozenset(needs))
    model(**inputs, segments=Segments(segment))
    return segment.found
