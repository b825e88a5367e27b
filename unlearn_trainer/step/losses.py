"""The loss of one side of a batch, on its way through one forward: by tokens, by whole rows, or by a layer's states.

``side_loss`` picks the class by the objective; :class:`~.loss.StepLoss` tells when each of its methods is called.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.batch import GroupTokens, LabelTokens, RowGroup, group_tokens, label_tokens
from ..errors import ConfigError
from ..evaluation.evaluator import row_figures
from ..head.chunked import LayerSegment, Segment
from ..head.packing import Layout
from ..objectives import IGNORED, Objective, RowStatistics
from ..objectives.statistics import TokenStatistics, made
from ..teacher.questions import HiddenStates, Prediction, Question
from ..teacher.teachers import Teacher

# What statistics the vocabulary head makes; the others among an objective's needs are put in here.
FROM_HEAD = {"nll", "kl", "teacher_nll", "reduced", "log_prob_moments"}
# What ``LanguageWeightCallback.add_batch`` takes of every row, whatever the objective.
_FIGURES = ("tokens", "nll", "memorization_accuracy", "extraction_strength")


@dataclasses.dataclass(frozen=True)
class Side:
    """The rows of a batch that share an objective, and what weighs and divides their loss.

    Args:
        group: of the rows.
        objective: with its options.
        batch: from the collator.
        layout: where the batch's rows lie in the student's input.
        coefficient: what the loss is multiplied by.
        divisors: [terms] the count over the optimizer step that divides each term of the objective.
        language_weights: of each language's part of the loss.
        distill_weights: the teacher's weight in each language, or ``None`` where it is its probability of the token.
        teacher: ``None`` where no token of the whole step is the teacher's, so that no process calls it.
        questions: what the objective asks the teacher.
        temperature: of the KL.
        layer: of objectives that look inside the model.
        control: [d] the random unit vector of such objectives.
        pad_token_id: what short rows are filled with.
    """

    group: RowGroup
    objective: Objective
    batch: Mapping[str, torch.Tensor]
    layout: Layout
    coefficient: float
    divisors: torch.Tensor
    language_weights: Sequence[float]
    distill_weights: Sequence[float] | None
    teacher: Teacher | None
    questions: Sequence[Question]
    temperature: float
    layer: int
    control: torch.Tensor
    pad_token_id: int

    def positions(self, tokens: GroupTokens, columns: torch.Tensor | None = None) -> torch.Tensor:
        """[n] where the student's states at ``tokens`` lie, or those in other ``columns`` of the same rows."""
        return self.layout.positions(tokens.rows[tokens.row_of], tokens.columns if columns is None else columns)

    def ask_teacher(self, question: Question, tokens: GroupTokens) -> torch.Tensor:
        """The teacher's answers at ``tokens``, which are ``question.tokens(batch)``."""
        if self.teacher is None:
            return question.at_no_token(tokens.rows.device)
        return self.teacher.ask(question, self.batch, tokens)

    def sum_terms(self, statistics: TokenStatistics, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and its terms of some tokens, [n] language weights given; what :class:`Segment` calls a loss.

        Raises:
            ConfigError: the objective returns another number of terms than it names counts.
        """
        values = self.objective.terms(statistics, len(weights))
        if len(values) != len(self.divisors):
            name, counts = self.objective.name, len(self.divisors)
            raise ConfigError(f"objective {name} returns {len(values)} terms and names {counts} counts")
        sums = torch.stack([value @ weights.to(value.dtype) for value in values])
        terms = sums / self.divisors.to(sums.dtype)
        return self.coefficient * terms.sum(), terms


@dataclasses.dataclass(frozen=True)
class SideResult:
    """What a side's forward yields beside the gradient; all on the device, detached.

    Attributes:
        row_languages: [R] language index of the side's own rows.
        figures: what :meth:`LanguageWeightCallback.add_batch` takes of each of these, [R].
        terms: the parts of the loss, or ``None`` where no token has one.
    """

    row_languages: torch.Tensor
    figures: dict[str, torch.Tensor]
    terms: torch.Tensor | None


class SideLoss(abc.ABC):
    """The loss of one side of a batch; one object for one forward.

    The constructor sets ``segments`` and ``of_layers``, what the head is asked for; the head calls :meth:`begin`,
    where a segment names it, and :meth:`loss`; :meth:`result` is there once the forward is through.
    """

    segments: Sequence[Segment] = ()
    of_layers: Sequence[LayerSegment] = ()

    def __init__(self, side: Side):
        self.side = side
        self.tokens = group_tokens(side.batch, side.group)

    def begin(self, statistics: TokenStatistics) -> None:  # noqa: B027 (most losses need nothing ahead)
        """Take the statistics of all tokens of a segment, ahead of its first loss."""

    @abc.abstractmethod
    def loss(self, statistics: TokenStatistics, where: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some of the tokens, ``where`` they lie among all: a scalar to be summed, and the same by terms."""

    @abc.abstractmethod
    def result(self) -> SideResult:
        """The figures of the side's own rows, and the terms of its loss."""

    def _result(
        self, statistics: TokenStatistics, terms: torch.Tensor | None, has_label: torch.Tensor | int = 1
    ) -> SideResult:
        """From the statistics of ``self.tokens``, of some of which the teacher may know nothing."""
        count, languages = len(self.tokens.rows), self.tokens.row_languages
        if statistics.nll is None:  # of no token
            return SideResult(languages, dict.fromkeys(_FIGURES, torch.zeros(count, device=languages.device)), terms)
        figures = row_figures(statistics, self.tokens.row_of, count)
        if statistics.teacher_nll is not None:
            probability = torch.exp(-statistics.teacher_nll) * has_label
            figures["teacher_probability"] = self.tokens.row_sums(probability)
        return SideResult(languages, figures, terms)


class TokenLoss(SideLoss):
    """Every labelled token has a loss of its own.

    Asks the head for the needs of the objective at the tokens that it is trained on: those of the side, or of its
    alternative answers, or those put in place of the side's own. In the latter cases figures of the side's own tokens
    come in a segment of their own.
    """

    def __init__(self, side: Side):
        super().__init__(side)
        self.trained = _trained_tokens(side, self.tokens)
        self.weights = _per_language(side.language_weights, self.trained.languages)
        self.extras = _token_extras(side, self.trained) | self._teacher_extras()
        labels = self.trained if isinstance(self.trained, LabelTokens) else None
        elsewhere = labels.label_columns if labels is not None and not side.objective.predicts_next else None
        self.segment = Segment(
            side.positions(self.trained),
            self.trained.targets,
            side.objective.needs & FROM_HEAD,
            self.loss,
            other_positions=side.positions(self.trained, elsewhere) if elsewhere is not None else None,
            teacher_targets=labels.labels if labels is not None else None,
            temperature=side.temperature,
            reduction=side.objective.reduction,
        )
        for question in side.questions:
            if isinstance(question, HiddenStates):
                self.segment.teacher_hidden = self._teacher_hidden(question)
                self.segment.teacher_head = side.teacher.head if side.teacher is not None else None
        self.is_of_own = _trained_group(side) == side.group and not side.objective.in_place
        self.own = self.segment if self.is_of_own else _figures_segment(side, self.tokens)
        self.segments = (self.segment,) if self.is_of_own else (self.segment, self.own)

    def loss(self, statistics: TokenStatistics, where: slice) -> tuple[torch.Tensor, torch.Tensor]:
        nll = made(statistics.nll)
        given = _with_extras(statistics, self.extras, where, nll)
        if "distill_weight" in self.side.objective.needs and "distill_weight" not in self.extras:
            given.distill_weight = torch.exp(-made(given.teacher_nll))
        if isinstance(self.trained, LabelTokens):
            given.nll = nll * self.trained.has_target[where]
            if given.distill_weight is not None:
                given.distill_weight = given.distill_weight * self.trained.has_label[where]
        return self.side.sum_terms(given, self.weights[where])

    def result(self) -> SideResult:
        statistics = self.own.found
        if self.is_of_own and isinstance(self.trained, LabelTokens) and statistics.nll is not None:
            own = self.trained.is_own
            return self._result(_picked(statistics, own), self.segment.terms, self.trained.has_label[own])
        return self._result(statistics, self.segment.terms)

    def _teacher_extras(self) -> dict[str, torch.Tensor]:
        """Fields of the statistics that the teacher gives, or the weight that it has, [n] each."""
        side = self.side
        extras: dict[str, torch.Tensor] = {}
        for question in side.questions:
            if isinstance(question, Prediction):
                like = question.tokens(side.batch)
                predicted = question.read(side.ask_teacher(question, like)[self.trained.aligned(like)])
                extras |= {f"unknown_{name}": values for name, values in vars(predicted).items()}
        if "distill_weight" in side.objective.needs and side.distill_weights is not None:
            extras["distill_weight"] = _per_language(side.distill_weights, self.trained.languages)
        return extras

    def _teacher_hidden(self, question: HiddenStates) -> torch.Tensor:
        """[n, d] the teacher's final states; all zeros where a token has no label."""
        if not isinstance(self.trained, LabelTokens):
            return self.side.ask_teacher(question, self.trained)
        taught = self.side.ask_teacher(question, question.tokens(self.side.batch))
        # Where there is no label the teacher has no weight: any states will do.
        states = taught.new_zeros(len(self.trained.targets), taught.shape[-1])
        return states.index_put_((self.trained.has_label.nonzero()[:, 0],), taught) if len(taught) else states


class RowLoss(SideLoss):
    """Every row has a loss by the sum of its tokens' NLL, and by that of its alternative answer, if asked for.

    Asks the head for the NLL of all these tokens ahead of the losses: a row lies in several tiles, so that the slope
    of its loss by its sums has to be known before any of its tokens is worked on.
    """

    def __init__(self, side: Side):
        super().__init__(side)
        self.groups = [self.tokens]
        if "alternative" in side.objective.needs:
            self.groups.append(group_tokens(side.batch, RowGroup.ALTERNATIVE))
        self.teacher_sums = [
            tokens.row_sums(side.ask_teacher(question, tokens))
            for question, tokens in zip(side.questions, self.groups, strict=bool(side.questions))
        ]
        self.weights = _per_language(side.language_weights, self.tokens.row_languages)
        positions = torch.cat([side.positions(tokens) for tokens in self.groups])
        targets = torch.cat([tokens.targets for tokens in self.groups])
        self.segment = Segment(positions, targets, frozenset({"nll"}), self.loss, begin=self.begin)
        self.segments = (self.segment,)
        # The slope of the loss by each token's NLL, and each own token's even share of its row's part of the loss.
        self.slopes = self.values = torch.zeros(len(targets), device=targets.device)

    @torch.enable_grad()
    def begin(self, statistics: TokenStatistics) -> None:
        """Find every row's part of the loss and its slopes by the row's sums, and share them out among its tokens."""
        side = self.side
        nll = statistics.nll if statistics.nll is not None else self.values  # of no token
        parts = nll.split([len(tokens.targets) for tokens in self.groups])
        sums = [
            tokens.row_sums(part).detach().requires_grad_() for tokens, part in zip(self.groups, parts, strict=True)
        ]
        own, *others = (self._rows(index, each) for index, each in enumerate(sums))
        counted = own.tokens > 0
        for other in others:
            own.alternative = other
            counted = counted & (other.tokens > 0)
        (values,) = side.objective.terms(own, len(self.weights))
        shares = torch.where(counted, values * self.weights.to(values.dtype), 0) / side.divisors.to(values.dtype)
        slopes = torch.autograd.grad(side.coefficient * shares.sum(), sums, materialize_grads=True)
        self.slopes = torch.cat([slope[tokens.row_of] for tokens, slope in zip(self.groups, slopes, strict=True)])
        self.values = (shares.detach() / self.tokens.per_row.clamp(min=1))[self.tokens.row_of]

    def _rows(self, index: int, sums: torch.Tensor) -> RowStatistics:
        taught = self.teacher_sums[index].to(sums.dtype) if self.teacher_sums else None
        return RowStatistics(sums, self.groups[index].per_row.to(sums.dtype), taught)

    def loss(self, statistics: TokenStatistics, where: slice) -> tuple[torch.Tensor, torch.Tensor]:
        terms = self.values[where].sum()[None]  # own tokens come first: tokens beyond them have no value
        nll = made(statistics.nll)
        return self.side.coefficient * terms.sum() + self.slopes[where] @ (nll - nll.detach()), terms

    def result(self) -> SideResult:
        return self._result(_picked(self.segment.found, slice(len(self.tokens.targets))), self.segment.terms)


class StateLoss(SideLoss):
    """Every token that carries a label has a loss by the states of a layer there.

    Asks the layer for these states, and the head for figures alone.
    """

    def __init__(self, side: Side):
        super().__init__(side)
        self.own = _figures_segment(side, self.tokens)
        self.segments = (self.own,)
        at_label = group_tokens(side.batch, side.group, at_label=True)
        self.weights = _per_language(side.language_weights, at_label.languages)
        self.extras = _token_extras(side, at_label)
        for question in side.questions:
            taught = side.ask_teacher(question, at_label)
            self.extras["teacher_hidden"] = taught if taught.dtype == torch.float64 else taught.float()
        needs_control = "control" in side.objective.needs
        self.control = side.control.to(self.weights.device) if needs_control else None
        self.of_layer = LayerSegment(side.layer, side.positions(at_label), self.loss)
        self.of_layers = (self.of_layer,)

    def loss(self, statistics: TokenStatistics, where: slice) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = made(statistics.hidden)
        given = _with_extras(statistics, self.extras, where, hidden)
        if self.control is not None:
            given.control = self.control.to(hidden.dtype)
        return self.side.sum_terms(given, self.weights[where])

    def result(self) -> SideResult:
        return self._result(self.own.found, self.of_layer.terms)


def side_loss(side: Side) -> SideLoss:
    """The loss of ``side``, of the class that its objective asks for."""
    if "hidden" in side.objective.needs:
        return StateLoss(side)
    return RowLoss(side) if side.objective.unit == "row" else TokenLoss(side)


def counted_group(group: RowGroup, objective: Objective) -> RowGroup:
    """The group of rows whose counts divide the loss on ``group``: a loss by alternative answers counts these."""
    is_other = "alternative" in objective.needs and objective.unit == "token" and not objective.in_place
    return RowGroup.ALTERNATIVE if is_other else group


def _trained_group(side: Side) -> RowGroup:
    return counted_group(side.group, side.objective)


def _trained_tokens(side: Side, own: GroupTokens) -> GroupTokens:
    """The tokens that the objective of a :class:`TokenLoss` is called with."""
    objective, group = side.objective, _trained_group(side)
    if objective.at_label:
        return label_tokens(side.batch, group, side.pad_token_id if objective.predicts_next else None)
    if not objective.in_place:
        return own if group == side.group else group_tokens(side.batch, group)
    other = group_tokens(side.batch, RowGroup.ALTERNATIVE)
    first = torch.searchsorted(other.row_of, own.row_of)
    place = own.places % other.per_row[own.row_of]
    return dataclasses.replace(own, targets=other.targets[first + place])


def _figures_segment(side: Side, tokens: GroupTokens) -> Segment:
    """Asks for what the figures of rows are made of, without a loss."""
    return Segment(side.positions(tokens), tokens.targets, frozenset({"nll"}))


def _token_extras(side: Side, tokens: GroupTokens) -> dict[str, torch.Tensor]:
    """Fields of the statistics that tell where a token stands, [n] each."""
    needs, extras = side.objective.needs, {}
    if "place" in needs:
        # A label of the first column is the row's first, though nothing predicts it.
        is_led = side.batch["labels"][tokens.rows, 0].ne(IGNORED) & (not side.objective.at_label)
        extras["place"] = tokens.places + is_led[tokens.row_of]
    if "row_tokens" in needs:
        extras["row_tokens"] = tokens.per_row[tokens.row_of]
    return extras


def _with_extras(
    statistics: TokenStatistics, extras: Mapping[str, torch.Tensor], where: slice, like: torch.Tensor
) -> TokenStatistics:
    """``statistics`` with those of ``extras`` beside them, in the type of ``like`` where they are no integers."""
    added: dict[str, Any] = {}
    for name, values in extras.items():
        found = values[where]
        added[name] = found.to(like.dtype) if found.is_floating_point() else found
    return dataclasses.replace(statistics, **added)


def _picked(statistics: TokenStatistics, where: torch.Tensor | slice) -> TokenStatistics:
    """The statistics of some of the tokens."""
    picked: dict[str, Any] = {name: value[where] for name, value in vars(statistics).items() if value is not None}
    return TokenStatistics(**picked)


def _per_language(weights: Sequence[float], languages: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if languages.device.type == "mps" else torch.float64
    return torch.tensor(weights, dtype=dtype, device=languages.device)[languages]
