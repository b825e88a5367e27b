"""From a flat batch to what the forward fills in: the segments of each side that is trained on, with their losses."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from ..config.unlearn_config import UnlearnConfig
from ..data.batch import GROUPS, GroupTokens, LabelTokens, group_tokens, label_tokens, rows_of
from ..errors import ConfigError
from ..evaluation.evaluator import row_figures
from ..head.chunked import LayerSegment, Segment, Segments
from ..head.packing import Layout
from ..objectives import (
    COUNTERS,
    FORGET_OBJECTIVES,
    IGNORED,
    LINGTEA_RELEASED,
    LINGTEA_RELEASED_XGLM,
    RETAIN_OBJECTIVES,
    Objective,
    RowStatistics,
)
from ..objectives.statistics import TokenStatistics
from ..teacher.teachers import Asked, Teacher, asked_of
from ..weights.callback import LanguageWeightCallback

# What statistics the vocabulary head makes; the others among an objective's needs are put in here.
FROM_HEAD = {"nll", "kl", "teacher_nll", "reduced", "log_prob_moments"}


@dataclasses.dataclass
class SideLoss:
    """One side of a batch on its way through the forward.

    Attributes:
        tokens: the labelled tokens of the side's own rows.
        statistics: the segment with their figures, maybe among those of others.
        terms: what the forward will put the terms of the side's loss into.
        among: the tokens of ``statistics``, where these are others.
    """

    tokens: GroupTokens
    statistics: Segment
    terms: Segment | LayerSegment
    among: LabelTokens | None = None

    def row_figures(self) -> dict[str, torch.Tensor]:
        """The sums that :meth:`LanguageWeightCallback.add_batch` takes, [R] each."""
        found, tokens = self.statistics.statistics, self.tokens
        count = len(tokens.rows)
        if found.nll is None:
            empty = torch.zeros(count, device=tokens.rows.device)
            return dict.fromkeys(("tokens", "nll", "memorization_accuracy", "extraction_strength"), empty)
        known = 1
        if self.among is not None:
            own = self.among.is_own
            values = {name: value[own] for name, value in vars(found).items() if value is not None}
            found, known = TokenStatistics(**values), self.among.has_label[own]
        figures = row_figures(found, tokens.row_of, count)
        if found.teacher_nll is not None:
            figures["teacher_probability"] = tokens.row_sums(torch.exp(-found.teacher_nll) * known)
        return figures


class StepLoss:
    """``forget_coef * F + retain_coef * R`` of a batch, as segments for the vocabulary head.

    Args:
        args: coefficients, temperature, how the teacher is weighted.
        objectives: of each side; ``None`` where it is not trained on.
        teacher: the frozen model, or ``None`` where no objective asks for it.
        num_processes: the engines average gradients over processes, so losses are multiplied by it.
        layer: index into ``hidden_states`` for objectives that look inside the model.
        hidden_size: of the model.
        pad_token_id: what short rows are filled with.
    """

    def __init__(
        self,
        args: UnlearnConfig,
        objectives: Mapping[str, Objective | None],
        teacher: Teacher | None,
        num_processes: int,
        layer: int,
        hidden_size: int,
        pad_token_id: int,
    ):
        self.args, self.objectives, self.teacher, self.num_processes = args, objectives, teacher, num_processes
        self.layer, self.pad_token_id = layer, pad_token_id
        self.reads_padding = any(objective and objective.predicts_next for objective in objectives.values())
        generator = torch.Generator().manual_seed(args.seed)
        control = torch.rand(hidden_size, generator=generator, dtype=torch.float64)
        self.control = control / control.norm()

    def segments(
        self,
        batch: Mapping[str, torch.Tensor],
        layout: Layout,
        counts: torch.Tensor,
        weights: LanguageWeightCallback,
        sides: Sequence[str] = ("forget", "retain", "counterpart"),
    ) -> tuple[Segments, dict[str, SideLoss]]:
        """What the forward is called with, and where each side's figures will be found afterwards.

        Args:
            layout: where the batch's rows lie in the student's input.
            counts: [groups, counters] over the whole optimizer step, which the objectives' terms are divided by.
            sides: those whose loss is asked for.
        """
        parts = [
            _Side(self, side, objective, batch, layout, counts, weights)
            for side, objective in self.objectives.items()
            if objective is not None and side in sides
        ]
        ahead = [part.look_ahead for part in parts if part.look_ahead is not None]
        segments = Segments(
            *(segment for part in parts for segment in part.segments),
            of_layers=[segment for part in parts for segment in part.of_layers],
            look_ahead=(lambda: [look() for look in ahead]) if ahead else None,
        )
        return segments, {part.side: part.loss for part in parts}


class _Side:
    """Builds the segments of one side of a batch."""

    def __init__(self, step: StepLoss, side, objective, batch, layout, counts, weights):
        self.step, self.side, self.objective, self.batch, self.layout = step, side, objective, batch, layout
        # A loss by alternative answers weighs and counts these.
        is_other = "alternative" in objective.needs and objective.unit == "token" and not objective.in_place
        group = "alternative" if is_other else side
        of_group = counts[GROUPS.index(group)]
        self.divisors = of_group[[list(COUNTERS).index(count) for count in objective.counts]].clamp(min=1)
        self.coefficient = step.num_processes * getattr(step.args, f"{side}_coef")
        self.distill_weights = weights.distill
        self.language_weights = getattr(weights, side, None) or [1.0] * len(weights.languages)
        # Decided by the whole step, so that all processes agree whether a sharded teacher runs.
        self.is_taught = of_group[list(COUNTERS).index("tokens")] > 0
        self.asked = asked_of(side, objective, step.layer)
        self.segments: list[Segment] = []
        self.of_layers: list[LayerSegment] = []
        self.look_ahead: Callable[[], object] | None = None
        self.tokens = group_tokens(batch, side)
        if "hidden" in objective.needs:
            own, terms = self._add(self.tokens), self._add_layer()
        elif objective.unit == "row":
            own = terms = self._add_rows()
        else:
            tokens = self._trained_tokens(group)
            terms = self._add_tokens(tokens)
            own = self._add(self.tokens) if group != side or objective.in_place else terms
        among = tokens if own is terms and objective.at_label else None
        self.loss = SideLoss(self.tokens, own, terms, among)

    def _trained_tokens(self, group) -> GroupTokens:
        """The tokens that the objective is called with."""
        objective = self.objective
        if objective.at_label:
            return label_tokens(self.batch, group, self.step.pad_token_id if objective.predicts_next else None)
        tokens = group_tokens(self.batch, group)
        if objective.in_place:
            other = group_tokens(self.batch, "alternative")
            first = torch.searchsorted(other.row_of, tokens.row_of)
            place = tokens.places % other.per_row[tokens.row_of]
            tokens = dataclasses.replace(tokens, targets=other.targets[first + place])
        return tokens

    def _add(self, tokens: GroupTokens, **more) -> Segment:
        positions = self.layout.positions(tokens.rows[tokens.row_of], tokens.columns)
        segment = Segment(positions, tokens.targets, **{"needs": frozenset({"nll"}), **more})
        self.segments.append(segment)
        return segment

    def _teacher_states(self, asked: Asked, tokens: GroupTokens) -> torch.Tensor:
        if self.is_taught:
            return self.step.teacher.states(asked, self.batch, tokens)
        shape = {"hidden": (0, 1), "nll": (0,), "prediction": (0, 4)}[asked.kind]
        return torch.zeros(shape, device=tokens.rows.device)  # of no token

    def _add_tokens(self, tokens):
        """Every token has a loss of its own."""
        needs = self.objective.needs
        segment = self._add(
            tokens,
            needs=needs & FROM_HEAD,
            loss=self._token_loss(tokens, self._extras(tokens)),
            temperature=self.step.args.distill_temperature,
            reduction=self.objective.reduction,
        )
        if isinstance(tokens, LabelTokens):
            segment.teacher_targets = tokens.labels
            if not self.objective.predicts_next:
                rows = tokens.rows[tokens.row_of]
                segment.other_positions = self.layout.positions(rows, tokens.label_columns)
        for asked in self.asked:
            if asked.kind == "hidden":
                segment.teacher_hidden = self._teacher_hidden(asked, tokens)
                segment.teacher_head = self.step.teacher.head if self.is_taught else None
        return segment

    def _teacher_hidden(self, asked, tokens):
        if not isinstance(tokens, LabelTokens):
            return self._teacher_states(asked, tokens)
        taught = self._teacher_states(asked, group_tokens(self.batch, asked.group, at_label=True))
        # Where there is no label the teacher has no weight: any states will do.
        states = taught.new_zeros(len(tokens.targets), taught.shape[-1])
        return states.index_put_((tokens.has_label.nonzero()[:, 0],), taught) if len(taught) else states

    def _add_layer(self):
        """The loss is by the states of a layer at the tokens that carry a label."""
        tokens = group_tokens(self.batch, self.side, at_label=True)
        extras = self._extras(tokens)
        for asked in self.asked:
            taught = self._teacher_states(asked, tokens)
            extras["teacher_hidden"] = taught if taught.dtype == torch.float64 else taught.float()
        loss = self._token_loss(tokens, extras)
        segment = LayerSegment(
            self.step.layer,
            self.layout.positions(tokens.rows[tokens.row_of], tokens.columns),
            lambda hidden: loss(TokenStatistics(hidden=hidden), slice(None)),
        )
        self.of_layers.append(segment)
        return segment

    def _extras(self, tokens) -> dict[str, torch.Tensor]:
        """Fields of the token statistics that do not come from the vocabulary, [n] each."""
        needs, extras = self.objective.needs, {}
        if "place" in needs:
            # A label of the first column is the row's first, though nothing predicts it.
            is_led = self.batch["labels"][tokens.rows, 0].ne(IGNORED) & (not self.objective.at_label)
            extras["place"] = tokens.places + is_led[tokens.row_of]
        if "row_tokens" in needs:
            extras["row_tokens"] = tokens.per_row[tokens.row_of]
        if "counterpart" in needs:
            like = group_tokens(self.batch, "counterpart")
            predicted = self._teacher_states(self.asked[0], like)[tokens.aligned(like)]
            extras["unknown_nll"], extras["unknown_hit"] = predicted[:, 0], predicted[:, 1] > 0.5
            extras["unknown_mean"], extras["unknown_std"] = predicted[:, 2], predicted[:, 3]
        if "distill_weight" in needs and self.step.args.distill_weighting != "token":
            extras["distill_weight"] = _per_language(self.distill_weights, tokens.languages)
        return extras

    def _token_loss(self, tokens, extras):
        weights = _per_language(self.language_weights, tokens.languages)
        control = self.step.control.to(weights.device) if "control" in self.objective.needs else None

        def loss(statistics: TokenStatistics, where: slice):
            like = statistics.nll if statistics.nll is not None else statistics.hidden
            for name, value in extras.items():
                found = value[where]
                setattr(statistics, name, found.to(like.dtype) if found.is_floating_point() else found)
            if "distill_weight" in self.objective.needs and "distill_weight" not in extras:
                statistics.distill_weight = torch.exp(-statistics.teacher_nll)
            if isinstance(tokens, LabelTokens):
                statistics.nll = statistics.nll * tokens.has_target[where]
                if statistics.distill_weight is not None:
                    statistics.distill_weight = statistics.distill_weight * tokens.has_label[where]
            if control is not None:
                statistics.control = control.to(like.dtype)
            terms = self.objective.terms(statistics, len(weights[where]))
            if len(terms) != len(self.divisors):
                name, counts = self.objective.name, len(self.divisors)
                raise ConfigError(f"objective {name} returns {len(terms)} terms and names {counts} counts")
            values = [value @ weights[where].to(value.dtype) for value in terms]
            terms = torch.stack(values) / self.divisors.to(values[0].dtype)
            return self.coefficient * terms.sum(), terms

        return loss

    def _add_rows(self):
        """The loss is by sums over whole rows, which lie in several tiles: its slopes are found ahead of these."""
        own = _RowSums(self.tokens, self._add(self.tokens, looks_ahead=True))
        groups = [own]
        if "alternative" in self.objective.needs:
            tokens = group_tokens(self.batch, "alternative")
            groups.append(_RowSums(tokens, self._add(tokens, looks_ahead=True)))
        for asked, sums in zip(self.asked, groups, strict=bool(self.asked)):
            sums.teacher_nll = sums.tokens.row_sums(self._teacher_states(asked, sums.tokens))
        weights = _per_language(self.language_weights, self.tokens.row_languages)
        self.look_ahead = lambda: self._settle(groups, weights)
        return own.segment

    @torch.enable_grad()
    def _settle(self, groups, weights):
        """Slopes of the loss by each row's sum, from the statistics of all its tokens."""
        for sums in groups:
            sums.find()
        own = groups[0]
        rows = own.statistics()
        counted = rows.tokens > 0
        for other in groups[1:]:
            rows.alternative = other.statistics()
            counted = counted & (rows.alternative.tokens > 0)
        (values,) = self.objective.terms(rows, len(weights))
        share = torch.where(counted, values * weights.to(values.dtype), 0) / self.divisors.to(values.dtype)
        loss = self.coefficient * share.sum()
        slopes = torch.autograd.grad(loss, [sums.leaf for sums in groups], allow_unused=True)
        for sums, slope in zip(groups, slopes, strict=True):
            value = share.detach() if sums is own else torch.zeros_like(share)
            sums.set_loss(slope, value, self.coefficient)


class _RowSums:
    """Sums over the tokens of each row of one group."""

    def __init__(self, tokens: GroupTokens, segment: Segment):
        self.tokens, self.segment = tokens, segment
        self.teacher_nll: torch.Tensor | None = None
        self.leaf: torch.Tensor | None = None
        segment.loss = self._loss

    def find(self):
        nll = self.segment.statistics.nll
        if nll is None:
            nll = torch.zeros(0, device=self.tokens.rows.device)
        self.leaf = self.tokens.row_sums(nll).detach().requires_grad_()

    def statistics(self) -> RowStatistics:
        taught = self.teacher_nll
        return RowStatistics(
            self.leaf,
            self.tokens.per_row.to(self.leaf.dtype),
            taught.to(self.leaf.dtype) if taught is not None else None,
        )

    def set_loss(self, slope, value, coefficient):
        """d loss / d sum [R], and each row's part of the loss [R], shared out evenly among its tokens."""
        row_of = self.tokens.row_of
        self.slope = slope[row_of] if slope is not None else None
        self.value = (value / self.tokens.per_row.clamp(min=1))[row_of]
        self.coefficient = coefficient

    def _loss(self, statistics: TokenStatistics, where: slice):
        terms = self.value[where].sum()[None]
        loss = self.coefficient * terms.sum()
        if self.slope is not None:
            nll = statistics.nll
            loss = loss + self.slope[where] @ (nll - nll.detach())
        return loss, terms


def resolve_objectives(args: UnlearnConfig, model_type: str) -> dict[str, Objective | None]:
    """The objectives of both sides, ``None`` for one that is not trained on, and of counterparts, if any.

    Args:
        model_type: of the language model's configuration.
    """
    forget = FORGET_OBJECTIVES.get(args.forget_objective)
    retain = RETAIN_OBJECTIVES.get(args.retain_objective)
    if args.retain_objective == "lingtea" and args.lingtea_alignment == "released":
        retain = LINGTEA_RELEASED_XGLM if model_type == "xglm" else LINGTEA_RELEASED
    if forget is None and retain is None:
        raise ConfigError("both --forget_objective and --retain_objective are none: there is nothing to train")
    counterpart = RETAIN_OBJECTIVES["kl"] if forget is not None and "counterpart" in forget.needs else None
    found = {"forget": forget, "retain": retain, "counterpart": counterpart}
    return {side: objective and objective.with_options(args) for side, objective in found.items()}


def inner_layer(args: UnlearnConfig, layers: int) -> int:
    """The index into ``hidden_states`` for objectives that look inside a model with so many blocks.

    By default that is behind block 8 of 32, as published: the public code hooks ``model.layers[7]``, counted from 0.

    Raises:
        ConfigError: ``--rmu_layer`` is beyond them.
    """
    if args.rmu_layer is None:
        return min(layers, 1 + round(layers * 7 / 32))
    if args.rmu_layer > layers and "rmu" in (args.forget_objective, args.retain_objective):
        raise ConfigError(f"--rmu_layer {args.rmu_layer}: the model has {layers} layers; choose 1 to {layers}")
    return args.rmu_layer


def count_step(batches: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """Counts [groups, counters] over the batches of an optimizer step on this process, float64."""
    counts = torch.zeros(len(GROUPS), len(COUNTERS), dtype=torch.float64)
    for batch in batches:
        for index, group in enumerate(GROUPS):
            mine = rows_of(batch, group)
            labels, mask = batch["labels"][mine], batch["attention_mask"][mine]
            counts[index] += torch.stack([count(labels, mask).double().cpu() for count in COUNTERS.values()])
    return counts


def _per_language(weights: Sequence[float], language: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if language.device.type == "mps" else torch.float64
    return torch.tensor(weights, dtype=dtype, device=language.device)[language]
