"""Forgetting that holds when someone learns the facts again in some languages: a step against relearning.

What is unlearned by moving the outputs alone comes back in all languages after a little training in one. So half of
the languages of a batch are relearned for a few steps, and the forget loss of the *other* languages at the weights
thus reached is lowered too. Its gradient there is taken for the one here: first-order MAML (Finn et al. 2017), which
Tamirisa et al. 2024 ("Tamper-Resistant Safeguards for Open-Weight LLMs") use against fine-tuning in one language.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from .arguments import UnlearnConfig
from .language_weights import LanguageWeightCallback
from .lm_head import Segment, Segments
from .packing import lay_out
from .row_groups import group_tokens, rows_of
from .step_loss import StepLoss


@dataclasses.dataclass
class RelearningGuard:
    """Adds the gradient of the forget loss at relearned weights to that of a step.

    Each process relearns from its own rows. Weights are back when it returns.

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
        """A scalar 0 whose gradient is that of the loss at the relearned weights, for the backward of any engine."""
        attacked = self._attacked(batch, len(weights.languages), step)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        zero = counts.new_zeros((), dtype=torch.float32)
        if not (batch["is_forget"] & attacked).any() or not (batch["is_forget"] & ~attacked).any():
            return zero
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            relearned = _rows(batch, batch["is_forget"] & attacked)
            for _ in range(self.args.relearn_steps):
                slopes = _gradients(self._nll(relearned), parameters)
                with torch.no_grad():
                    for parameter, slope in zip(parameters, slopes, strict=True):
                        parameter.sub_(slope.sign(), alpha=self.args.relearn_rate)  # what Adam's first steps are
            others = _rows(batch, ~attacked & ~rows_of(batch, "retain"))
            layout = lay_out(self.model, others["input_ids"], others["attention_mask"])
            segments, _ = self.step_loss.segments(others, layout, counts, weights, sides=("forget",))
            loss = self.model(**layout.inputs, segments=segments)["loss"]
            found = _gradients(loss, parameters)
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)
        # The slope of this sum by each parameter is what was found.
        product = sum((p * slope.to(p.dtype)).sum() for p, slope in zip(parameters, found, strict=True))
        return self.args.relearn_coef * (product - product.detach())

    def _attacked(self, batch, languages, step):
        """[rows] whether a row is in one of the languages that are relearned at this step, the same everywhere."""
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + step)
        chosen = torch.randperm(languages, generator=generator)[: max(1, languages // 2)]
        return torch.isin(batch["language"], chosen.to(batch["language"].device))

    def _nll(self, batch):
        tokens = group_tokens(batch, "forget")
        layout = lay_out(self.model, batch["input_ids"], batch["attention_mask"])
        count = len(tokens.targets)

        def loss(statistics, where):
            mean = statistics.nll.sum() / count
            return mean, mean[None]

        positions = layout.positions(tokens.rows[tokens.row_of], tokens.columns)
        segment = Segment(positions, tokens.targets, frozenset({"nll"}), loss)
        return self.model(**layout.inputs, segments=Segments(segment))["loss"]


def _rows(batch, mask):
    return {name: values[mask] for name, values in batch.items()}


def _gradients(loss, parameters):
    return torch.autograd.grad(loss, parameters, materialize_grads=True)
