"""What happens around the steps of a training: the start's figures, the logged losses, the end's check."""

from collections.abc import Sequence

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback

from ..config.arguments import did_you_mean
from ..engine.engines import held_part
from ..errors import ConfigError, TrainingDiverged
from ..evaluation.evaluator import flatten_figures
from ..weights.callback import SIDES
from .lost_steps import warn_of_lost_steps


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


def check_best_metric(best: str | None, figures: dict, trained: Sequence[str], score: float | None) -> None:
    """Refuse to train for a figure that no evaluation will have.

    Args:
        best: ``metric_for_best_model``.
        figures: ``{split: {language: {metric: number}}}`` of the start model.
        trained: languages.
        score: the unlearning score of ``figures``, where there is one.

    Raises:
        ConfigError: names the flag, and the nearest figure there is.
    """
    if best is None:
        return
    best = best.removeprefix("eval_")
    if best == "unlearning_score" and score is None:
        raise ConfigError(
            "--metric_for_best_model unlearning_score, the default of --load_best_model_at_end: there is none where "
            "nothing is to be forgotten, or neither retain nor valid rows are measured; choose retain_loss"
        )
    known = {name.removeprefix("_") for name in flatten_figures(figures, trained, "")} | {"loss", "unlearning_score"}
    if best not in known:
        raise ConfigError(
            f"--metric_for_best_model {best} is none of the figures of an evaluation{did_you_mean(best, known)}"
        )


class RunEvents(TrainerCallback):
    """Calls the trainer at the points for which it has no method of its own to override."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.save_after_evaluation = False

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        warn_of_lost_steps(optimizer, args.max_grad_norm, args.device)
        self.trainer.loss_log.restart(state.global_step)
        self.trainer.find_best_checkpoint()
        self.trainer.cache_teacher(state.max_steps)
        if state.global_step == 0:
            self.trainer.measure_start()
            self.trainer.watch_retain()
        self.trainer.keep_best()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.forget_best()
        check_finite(self.trainer.model, state.global_step, args.device)
        self.trainer.remove_teacher_cache()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.start_epoch(state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.save_after_evaluation:
            control.should_save, self.save_after_evaluation = True, False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.weight_update_steps == 0:
            self.trainer.watch_retain()
            if self.trainer.language_weights.stop_reason:
                control.should_training_stop = True
        if self.trainer.terminated:
            control.should_save = control.should_training_stop = True
        if control.should_save and self.trainer.is_evaluated_at(state.global_step):
            # The evaluation of the epoch moves the weights: a checkpoint before it would be resumed without it.
            control.should_save, self.save_after_evaluation = False, True
