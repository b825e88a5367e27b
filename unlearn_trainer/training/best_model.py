"""The best model of a run with ``target`` weights is kept, not the last: its score may fall after it was forgotten."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ..config.unlearn_config import UnlearnConfig
from .measuring import MeasuringTrainer


def has_saves_of_its_own(args: UnlearnConfig) -> bool:
    """Whether the best model can be saved when it appears, and loaded again at the end."""
    whole = not (args.save_only_model and (args.deepspeed or args.fsdp))  # else nothing can be loaded again
    return args.eval_strategy != "no" and args.save_strategy != "no" and whole


class KeepsBest(MeasuringTrainer):
    """A Trainer that keeps the best of ``target`` weights, unless ``load_best_model_at_end`` says otherwise.

    What was best is saved as a checkpoint, besides those that ``save_strategy`` asks for, and loaded at the end by
    the Trainer's own ``load_best_model_at_end``, which knows every engine. Such a checkpoint goes when a better one
    is written. A score of 0 is never best: among zeros the last model has learned most.
    """

    ended_with_best = False  # whether the model is that of the best checkpoint
    _keeps_best = False  # by itself, until the end of the training
    _is_extra = False  # the save at hand is asked for by nothing else
    _extra: Path | None = None  # the best checkpoint so far, if nothing else asked for it

    def keep_best(self) -> None:
        """Decide at the beginning of a training, when the figures at the start are known, on every process."""
        args, weights = self.args, self.language_weights
        start = weights.figures_at_start
        self._keeps_best = (
            args.load_best_model_at_end is None
            and args.metric_for_best_model is None
            and weights.policy.forget_weighting == "target"
            and has_saves_of_its_own(args)
            and start is not None
            and weights.score(start) is not None
        )
        if self._keeps_best:
            args.load_best_model_at_end = True
            args.metric_for_best_model, args.greater_is_better = "unlearning_score", True

    def forget_best(self) -> None:
        """At the end: the arguments are as they were, so that another training can be given them."""
        best = self.state.best_model_checkpoint
        self.ended_with_best = bool(self.args.load_best_model_at_end and best is not None)
        if self._keeps_best:
            self._keeps_best = False
            self.args.load_best_model_at_end = self.args.metric_for_best_model = self.args.greater_is_better = None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if not self._keeps_best:
            return super()._determine_best_metric(metrics, trial)
        if not metrics.get("eval_unlearning_score"):
            return False
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self._is_extra = not self.control.should_save
            self.control.should_save = True
        return is_best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if not self._keeps_best or self.state.best_global_step != self.state.global_step:
            return
        best = self.args.folder / f"checkpoint-{self.state.global_step}"
        # It is the same where a save of the epoch follows.
        if self._extra is not None and self._extra != best and self.args.should_save:
            shutil.rmtree(self._extra, ignore_errors=True)
        self._extra, self._is_extra = (best if self._is_extra else None), False
