"""Whether the type that weights are held in rounds an optimizer's steps away."""

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers.utils import logging

logger = logging.get_logger(__name__)

SAMPLE = 2**14  # weights of a tensor that are looked at, evenly spread
# Share of the weights that a step of the peak learning rate cannot move, from which a run is warned. The share that
# moves grows with the rate, so that at half of it, the mean of a linear decay, about half of all steps are lost.
# Where less is lost the others make up for it: 1 to 2 % (the norms, which lie at 1) are lost at almost any rate.
LOST = 0.25


def warn_of_lost_steps(optimizer: torch.optim.Optimizer, max_grad_norm: float, device: torch.device) -> None:
    """Warn on rank 0 where much of what is trained would stay as it is; call it on every process, once prepared.

    What counts are the tensors that the optimizer itself steps on: DeepSpeed's float32 masters, FSDP2's float32
    shards, the float32 weights of an adapter on a bfloat16 model.

    Args:
        optimizer: as the engine has prepared it.
        max_grad_norm: what gradients are clipped to; 0 where they are not.
        device: where the processes add up what each of them holds.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    counts, types, rates = torch.zeros(2, dtype=torch.float64), set(), set()
    for group in optimizer.param_groups:
        rate = group.get("initial_lr", group["lr"])  # the peak, where a warm-up begins at 0
        step = None if rate is None or _makes_up_for_rounding(optimizer, group) else _step(group, rate, max_grad_norm)
        for weights in group["params"]:
            weights = weights.to_local() if hasattr(weights, "to_local") else weights
            if not weights.numel():
                continue
            lost = 0.0 if step is None else share_of_lost_steps(weights, step)
            counts += torch.tensor([lost * weights.numel(), weights.numel()], dtype=torch.float64)
            if lost:
                types.add(str(weights.dtype).removeprefix("torch."))
                rates.add(float(rate))
    lost, trained = reduce(counts.to(device), reduction="sum").tolist()
    if PartialState().is_main_process and types and lost / trained >= LOST:
        kept = " and ".join(sorted(types))
        masters = "hold them in float32 (--dtype float32; add --bf16 to compute in bfloat16 all the same), or "
        logger.warning_once(
            f"the trained weights are held in {kept}, which rounds a step of the learning rate "
            f"{max(rates):g} away in {lost / trained:.0%} of them: they will hardly change, and little is learned or "
            f"forgotten; {masters if types != {'float32'} else ''}raise --learning_rate (in a stage "
            "--memorize_learning_rate, in an audit --audit_relearn_learning_rate)"
        )


def share_of_lost_steps(weights: torch.Tensor, step: float) -> float:
    """Share of ``weights``, or of an even sample of them, that are the same after a step of this size either way."""
    values = weights.detach().flatten()
    # An odd stride does not keep to one column of a matrix.
    values = values[:: (values.numel() // SAMPLE) | 1].cpu()
    moved = values.double() + torch.tensor([[step], [-step]], dtype=torch.float64)
    return (moved.to(values.dtype) == values).all(0).double().mean().item()


def _step(group, rate, max_grad_norm):
    """Size of a step of most weights; the greatest possible where steps grow with gradients, or ``None``."""
    # Adam and its kin, Lion, Adafactor, RMSprop divide by the gradients' size.
    if any(name in group for name in ("betas", "alpha", "decay_rate", "lr_decay")):
        return float(rate)
    # SGD does not. No weight's gradient is above the norm to which all are clipped.
    if max_grad_norm and "momentum" in group:
        return float(rate) * max_grad_norm / (1 - min(group["momentum"], 0.999))
    return None


def _makes_up_for_rounding(optimizer, group):
    kahan = group.get("use_kahan_summation") or group.get("kahan_sum", False) is not False
    return kahan or getattr(optimizer, "bf16_stochastic_round", False)
