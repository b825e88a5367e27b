"""What happens around the steps of a training: the start's figures, the logged losses, the end's check."""

from collections.abc import Sequence

from transformers import TrainerCallback

from ..errors import ConfigError, did_you_mean
from ..evaluation.evaluator import flatten_figures
from .health import check_finite
from .lost_steps import warn_of_lost_steps


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
