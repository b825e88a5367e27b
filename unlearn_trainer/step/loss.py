"""From a flat batch to what the forward fills in: the segments of each side that is trained on, with their losses."""

from collections.abc import Mapping, Sequence

import torch

from ..config.unlearn_config import UnlearnConfig
from ..data.batch import RowGroup, rows_of
from ..errors import ConfigError
from ..head.chunked import Segments
from ..head.packing import Layout
from ..objectives import (
    COUNTERS,
    LINGTEA_RELEASED,
    LINGTEA_RELEASED_XGLM,
    RETAIN_OBJECTIVES,
    Objective,
)
from ..teacher.questions import questions_of
from ..teacher.teachers import Teacher
from ..weights.callback import LanguageWeightCallback
from .losses import Side, SideLoss, counted_group, side_loss

# The groups that may have an objective, in the order of their segments.
SIDES = (RowGroup.FORGET, RowGroup.RETAIN, RowGroup.COUNTERPART)


class StepLoss:
    """``forget_coef * F + retain_coef * R`` of a batch, as segments for the vocabulary head.

    What happens in one step:

    1. ``UnlearnTrainer`` takes the batches that an optimizer step accumulates; :func:`count_step` counts the rows and
       labelled tokens of every group in them, and the counts of all processes are summed: they divide the losses.
    2. For each batch ``compute_loss`` calls ``lay_out`` (``head/packing.py``), which packs the rows into few lines.
    3. :meth:`segments` makes a loss for each side with an objective (``losses.py``): a :class:`~.losses.TokenLoss`, a
       :class:`~.losses.RowLoss` or a :class:`~.losses.StateLoss`. Its constructor looks up the side's tokens and
       their languages' weights, asks the teacher, and says what it asks the head for.
    4. The forward of the model is called with these segments. The body runs as ever, and stops ahead of the head.
    5. The head (``head/chunked.py``) calls ``begin`` of each segment that has one, with the statistics of all its
       tokens. Only a :class:`~.losses.RowLoss` has one.
    6. The head makes logits chunk by chunk, and of each tile of these statistics of the tokens. ``loss`` makes these a
       scalar, and the head turns its slopes into gradients of states and weights before the next chunk begins. A
       :class:`~.losses.StateLoss` is called once, with the states of its layer.
    7. ``backward`` takes the finished gradients from the head down through the body.
    8. ``result`` gives the figures of every row, which go to the language weights, and the terms of the loss, which go
       to the log. NaN in them ends the training on all processes.
    9. After the optimizer's step the language weights move, every ``weight_update_steps`` steps.

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
        objectives: Mapping[RowGroup, Objective | None],
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
        sides: Sequence[RowGroup] = SIDES,
    ) -> tuple[Segments, dict[RowGroup, SideLoss]]:
        """What the forward is called with, and the losses that have their results afterwards.

        Args:
            layout: where the batch's rows lie in the student's input.
            counts: [groups, counters] over the whole optimizer step, which the objectives' terms are divided by.
            sides: those whose loss is asked for.
        """
        losses = {
            side: side_loss(self._side(side, objective, batch, layout, counts, weights))
            for side, objective in self.objectives.items()
            if objective is not None and side in sides
        }
        segments = Segments(
            *(segment for loss in losses.values() for segment in loss.segments),
            of_layers=[segment for loss in losses.values() for segment in loss.of_layers],
        )
        return segments, losses

    def _side(self, group, objective, batch, layout, counts, weights) -> Side:
        of_group = counts[list(RowGroup).index(counted_group(group, objective))]
        questions = questions_of(group, objective, self.layer)
        # Decided by the whole step, so that all processes agree whether a sharded teacher runs; to look at the count
        # where nobody asks would stall a GPU.
        is_taught = bool(questions) and bool(of_group[list(COUNTERS).index("tokens")] > 0)
        return Side(
            group,
            objective,
            batch,
            layout,
            coefficient=self.num_processes * getattr(self.args, f"{group}_coef"),
            divisors=of_group[[list(COUNTERS).index(count) for count in objective.counts]].clamp(min=1),
            language_weights=getattr(weights, group, None) or [1.0] * len(weights.languages),
            distill_weights=weights.distill if self.args.distill_weighting != "token" else None,
            teacher=self.teacher if is_taught else None,
            questions=questions,
            temperature=self.args.distill_temperature,
            layer=self.layer,
            control=self.control,
            pad_token_id=self.pad_token_id,
        )


def resolve_objectives(args: UnlearnConfig, model_type: str) -> dict[RowGroup, Objective | None]:
    """The objectives of both sides, ``None`` for one that is not trained on, and of counterparts, if any.

    Args:
        model_type: of the language model's configuration.
    """
    forget, retain = args.registered("forget"), args.registered("retain")
    if args.retain_objective == "lingtea" and args.lingtea_alignment == "released":
        retain = LINGTEA_RELEASED_XGLM if model_type == "xglm" else LINGTEA_RELEASED
    if forget is None and retain is None:
        raise ConfigError("both --forget_objective and --retain_objective are none: there is nothing to train")
    counterpart = RETAIN_OBJECTIVES["kl"] if forget is not None and "counterpart" in forget.needs else None
    found = {RowGroup.FORGET: forget, RowGroup.RETAIN: retain, RowGroup.COUNTERPART: counterpart}
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
    counts = torch.zeros(len(RowGroup), len(COUNTERS), dtype=torch.float64)
    for batch in batches:
        for index, group in enumerate(RowGroup):
            mine = rows_of(batch, group)
            labels, mask = batch["labels"][mine], batch["attention_mask"][mine]
            counts[index] += torch.stack([count(labels, mask).double().cpu() for count in COUNTERS.values()])
    return counts
