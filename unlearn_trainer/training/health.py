"""The losses of a training, and whether its weights are still numbers."""

import torch
from accelerate.utils import reduce
from torch import nn

from ..engine.engines import held_part
from ..errors import TrainingDiverged
from ..weights.state import SIDES


class LossLog:
    """The forget and the retain loss, each as a mean over the optimizer steps since the last log.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(SIDES), dtype=torch.float64, device=device)
        self._since = 0

    def restart(self, step: int) -> None:
        """Forget what was added, and count from optimizer step ``step``."""
        self._sums.zero_()
        self._since = step

    def add(self, side: str, terms: torch.Tensor) -> None:
        """Add this process's terms of a batch's loss, without a host sync."""
        self._sums[SIDES.index(side)] += terms.sum()

    def means(self, step: int) -> dict[str, float]:
        """``{side: loss}`` up to optimizer step ``step``, and start again from there; call it on every process."""
        means = reduce(self._sums.clone(), reduction="sum") / max(1, step - self._since)
        self.restart(step)
        return dict(zip(SIDES, means.tolist(), strict=True))


def check_finite(model: nn.Module, step: int, device: torch.device) -> None:
    """Refuse to keep weights that a step has destroyed; call it on every process.

    A NaN loss is noticed before it reaches the weights, but the step that follows a finite loss may overflow them.

    Args:
        model: its trained weights are looked at, or what this process holds of them.
        step: optimizer steps done, for the message.
        device: where the processes agree.

    Raises:
        TrainingDiverged: a weight is NaN or infinite, on whichever process.
    """
    held = [held_part(parameter).detach() for parameter in model.parameters() if parameter.requires_grad]
    # The greatest magnitude needs no second tensor of a weight's size, and cannot overflow.
    broken = torch.zeros((), device=device)
    for part in held:
        if part.numel():
            broken += ~torch.linalg.vector_norm(part, float("inf")).isfinite().to(device)
    if reduce(broken, reduction="sum"):
        raise TrainingDiverged(
            f"trained weights are NaN or infinite after optimizer step {step}; no model was written. Start again with "
            "a lower --learning_rate or --forget_coef"
        )
