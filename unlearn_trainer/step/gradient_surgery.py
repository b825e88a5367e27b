"""What is done to a step's gradient besides following the losses; both parts need whole weights on every process.

Relearning guard: what is unlearned by moving the outputs alone comes back in all languages after a little training in
one. So half of the languages of a batch (or of its rows, where all are in one) are relearned for a few steps, and the
forget loss of the *other* languages at the weights thus reached is lowered too. Its gradient there is taken for the
one here: first-order MAML (Finn et al. 2017), which Tamirisa et al. 2024 ("Tamper-Resistant Safeguards for Open-Weight
LLMs") use against fine-tuning in one language. It depends on which rows share a batch, and so on how a step is split.

Forget projection: where the forget gradient would raise the retain loss, the part of it along the retain gradient is
taken out (Wang et al. 2025, "GRU: Mitigating the Trade-off between Unlearning and Retention for LLMs").
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import nn

from ..config.unlearn_config import UnlearnConfig
from ..data.batch import RowGroup, group_tokens, rows_of
from ..engine.engines import is_sharded
from ..errors import ConfigError
from ..head.chunked import Segment, Segments
from ..head.packing import lay_out
from ..weights.callback import LanguageWeightCallback
from .loss import StepLoss


class Surgery(Protocol):
    """Something that changes the gradient of a batch."""

    def term(
        self,
        batch: Mapping[str, torch.Tensor],
        counts: torch.Tensor,
        weights: LanguageWeightCallback,
        step: int,
    ) -> torch.Tensor:
        """A scalar 0 whose gradient is the change, for the backward of any engine; weights are as they were.

        Args:
            counts: [groups, counters] over the whole optimizer step.
            step: optimizer steps before this one.
        """
        ...


def surgeries(args: UnlearnConfig, model: nn.Module, step_loss: StepLoss, accelerator: Accelerator) -> list[Surgery]:
    """Those that ``args`` ask for.

    Args:
        model: the student, not wrapped.

    Raises:
        ConfigError: the engine shards the weights.
    """
    flags = {"--relearn_coef": bool(args.relearn_coef), "--project_forget_gradient": args.project_forget_gradient}
    if any(flags.values()) and is_sharded(accelerator):
        raise ConfigError(
            f"{' and '.join(flag for flag, given in flags.items() if given)}: every process needs whole weights for "
            "that; choose DDP, ZeRO-1 or ZeRO-2, or turn it off (--relearn_coef 0)"
        )
    if args.relearn_coef and args.per_device_train_batch_size < 2:
        raise ConfigError(
            "--relearn_coef relearns half of a batch's forget rows and guards the others: it needs "
            "--per_device_train_batch_size 2 or more, or --relearn_coef 0"
        )
    found: list[Surgery] = [RelearningGuard(args, model, step_loss)] if args.relearn_coef else []
    return found + ([ForgetProjection(args, model, step_loss)] if args.project_forget_gradient else [])


@dataclasses.dataclass
class RelearningGuard:
    """Adds the gradient of the forget loss at relearned weights; each process relearns from its own rows.

    Args:
        args: ``relearn_coef``, ``relearn_steps``, ``relearn_rate`` and ``seed``.
        model: the student, not wrapped; its weights are whole on every process.
        step_loss: gives the forget loss.
    """

    args: UnlearnConfig
    model: nn.Module
    step_loss: StepLoss

    def term(
        self,
        batch: Mapping[str, torch.Tensor],
        counts: torch.Tensor,
        weights: LanguageWeightCallback,
        step: int,
    ) -> torch.Tensor:
        attacked = self._attacked(batch, len(weights.languages), step)
        if not (batch["is_forget"] & attacked).any() or not (batch["is_forget"] & ~attacked).any():
            return torch.zeros((), device=counts.device)
        parameters = _trained(self.model)
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            relearned = _rows(batch, batch["is_forget"] & attacked)
            for _ in range(self.args.relearn_steps):
                slopes = _gradients(self._nll(relearned), parameters)
                with _moving():
                    for parameter, slope in zip(parameters, slopes, strict=True):
                        parameter.sub_(slope.sign(), alpha=self.args.relearn_rate)  # what Adam's first steps are
            others = _rows(batch, ~attacked & ~rows_of(batch, RowGroup.RETAIN))
            loss = _side_loss(self.model, self.step_loss, RowGroup.FORGET, others, counts, weights)
            found = _gradients(loss, parameters)
        finally:
            with _moving():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)
        return _term(parameters, [self.args.relearn_coef * slope for slope in found])

    def _attacked(self, batch, languages, step):
        """[rows] whether a row is relearned at this step: in half of the languages, the same half everywhere.

        Where the batch's forget rows are all in one of the halves, it is every other one of them.
        """
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + step)
        chosen = torch.randperm(languages, generator=generator)[: max(1, languages // 2)]
        attacked = torch.isin(batch["language"], chosen.to(batch["language"].device))
        forget = batch["is_forget"]
        if (attacked & forget).any() and (~attacked & forget).any():
            return attacked
        # A companion has the row number of its forget row.
        return torch.isin(batch["row"], batch["row"][forget][::2])

    def _nll(self, batch):
        tokens = group_tokens(batch, RowGroup.FORGET)
        layout = lay_out(self.model, batch["input_ids"], batch["attention_mask"])
        count = len(tokens.targets)

        def loss(statistics, where):
            mean = statistics.nll.sum() / count
            return mean, mean[None]

        positions = layout.positions(tokens.rows[tokens.row_of], tokens.columns)
        segment = Segment(positions, tokens.targets, frozenset({"nll"}), loss)
        return self.model(**layout.inputs, segments=Segments(segment))["loss"]


@dataclasses.dataclass
class ForgetProjection:
    """Takes out of the forget gradient what would raise the retain loss, batch by batch.

    The gradients are those of all processes together. It costs a second forward and backward of the batch.
    """

    args: UnlearnConfig
    model: nn.Module
    step_loss: StepLoss

    def term(
        self,
        batch: Mapping[str, torch.Tensor],
        counts: torch.Tensor,
        weights: LanguageWeightCallback,
        step: int,
    ) -> torch.Tensor:
        parameters = _trained(self.model)
        retain_rows = rows_of(batch, RowGroup.RETAIN)
        found = {}
        for side, mask in ((RowGroup.FORGET, ~retain_rows), (RowGroup.RETAIN, retain_rows)):
            slopes = [torch.zeros_like(parameter) for parameter in parameters]
            if mask.any():
                loss = _side_loss(self.model, self.step_loss, side, _rows(batch, mask), counts, weights)
                slopes = _gradients(loss, parameters)
            found[side] = [reduce(slope, reduction="mean") for slope in slopes] if self.args.world_size > 1 else slopes
        pairs = list(zip(found[RowGroup.FORGET], found[RowGroup.RETAIN], strict=True))
        zero = torch.zeros((), dtype=torch.float64)
        along = sum(((f.double() * r.double()).sum() for f, r in pairs), zero)
        length = sum((r.double().square().sum() for _, r in pairs), zero)
        share = torch.where(length > 0, (-along).clamp(min=0) / length.clamp(min=torch.finfo(length.dtype).tiny), 0)
        return _term(parameters, [share.to(slope.dtype) * slope for slope in found[RowGroup.RETAIN]])


@contextlib.contextmanager
def _moving():
    """Within the context weights may be changed in place."""
    with torch.no_grad():
        yield
    # Autocast keeps low-precision copies of the weights for as long as its context is open: they are those of before.
    torch.clear_autocast_cache()


def _trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _side_loss(model, step_loss, side, batch, counts, weights):
    layout = lay_out(model, batch["input_ids"], batch["attention_mask"], step_loss.reads_padding)
    segments, _ = step_loss.segments(batch, layout, counts, weights, sides=(side,))
    taught = any(segment.teacher_head for segment in segments)
    with step_loss.teacher.gathered_head() if taught else contextlib.nullcontext():
        return model(**layout.inputs, segments=segments)["loss"]


def _term(parameters, slopes):
    # The slope of this sum by each parameter is the one given.
    product = sum((p * slope.to(p.dtype)).sum() for p, slope in zip(parameters, slopes, strict=True))
    return product - product.detach()


def _rows(batch, mask):
    return {name: values[mask] for name, values in batch.items()}


def _gradients(loss, parameters):
    return torch.autograd.grad(loss, parameters, materialize_grads=True)
