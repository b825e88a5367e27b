"""A Trainer that measures every split of rows, language by language."""

import collections
import contextlib
import time

from datasets import Dataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PredictionOutput, speed_metrics

from ..config.unlearn_config import UnlearnConfig
from ..data.batch import RowGroup
from ..engine.engines import ready_to_measure
from ..errors import ConfigError
from ..evaluation.evaluator import MultilingualEvaluator, flatten_figures
from ..head.attached import attach_head
from ..objectives import Objective
from ..weights.callback import LanguageWeightCallback
from .callbacks import check_best_metric

WATCHED_ROWS = 8  # of each language, where the guard has to run a forward of its own


class MeasuringTrainer(Trainer):
    """The part of ``UnlearnTrainer`` that evaluates: before, during and after a training."""

    args: UnlearnConfig
    model: PreTrainedModel
    eval_dataset: dict[str, Dataset] | None
    predict_dataset: dict[str, Dataset]
    languages: list[str]
    objectives: dict[RowGroup, Objective | None]
    evaluator: MultilingualEvaluator

    @property
    def language_weights(self) -> LanguageWeightCallback:
        """The callback that owns the weights; resuming replaces it, so it is looked up each time."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, LanguageWeightCallback))

    def measure(self, model: PreTrainedModel | None = None, description: str = "evaluating") -> dict:
        """Figures ``{split: {language: {metric: number}}}`` of all splits and languages; call it on every process.

        Args:
            model: measured instead of the trained one, with the same vocabulary.
            description: label of the progress bar.
        """
        return self._measure({**(self.eval_dataset or {}), **self.predict_dataset}, model, description=description)

    def measure_rows(self, model: PreTrainedModel | None = None, description: str = "evaluating") -> dict:
        """Figures of every row, ``{split: {column: array [rows]}}``; otherwise as ``measure``, without probing."""
        splits = {**(self.eval_dataset or {}), **self.predict_dataset}
        with self.ready(model) as called:
            return self.evaluator.rows(called, splits, self.args.device, description=description)

    def _measure(self, datasets, model=None, heldout=True, probing=True, description="evaluating"):
        with self.ready(model) as called:
            return self.evaluator(called, datasets, self.args.device, heldout, probing, description)

    @contextlib.contextmanager
    def ready(self, model: PreTrainedModel | None = None):
        """Within the context the trained model, or another, can be called on every process; yields what to call."""
        if model is not None:
            attach_head(model.requires_grad_(False))
        # During and after a training the engine has the model; otherwise it gets it for this measurement.
        mine = model is None and (self.is_in_train or self.model_wrapped is not self.model)
        ready = contextlib.nullcontext(self.model) if mine else ready_to_measure(model or self.model, self.accelerator)
        with ready as called, self.accelerator.autocast():
            yield called

    def measure_start(self) -> None:
        """Figures before the first step, from which targets and references are taken.

        Raises:
            ConfigError: the language weights are to adapt, but no split is measured; or no evaluation will have the
                ``metric_for_best_model``.
        """
        self.language_weights.policy.check_measured(self.eval_dataset or {})
        if self.eval_dataset:
            figures = self.measure(description="before")
            self.language_weights.begin(figures, self.args.memorize_first)
            score = self.language_weights.score(figures) if "forget" in figures else None
            check_best_metric(self.args.metric_for_best_model, figures, self.languages, score)

    def watch_retain(self) -> None:
        """Measure some retain rows, for the guard of a method that sees none of them in its batches."""
        rows = (self.eval_dataset or {}).get("retain")
        if self.objectives[RowGroup.RETAIN] or not self.args.max_retain_perplexity_ratio or rows is None:
            return
        chosen: list[int] = []
        seen: collections.Counter[int] = collections.Counter()
        for row, language in enumerate(rows["language"]):
            seen[language] += 1
            if seen[language] <= WATCHED_ROWS:
                chosen.append(row)
        figures = self._measure({"retain": rows.select(chosen)}, heldout=False, probing=False, description="guard")
        self.language_weights.watch(figures)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Evaluate every split in the trained languages; see ``flatten_figures`` for the keys.

        ``<prefix>_unlearning_score`` is there once the figures at the start are known.
        """
        datasets = eval_dataset if eval_dataset is not None else self.eval_dataset
        if not datasets:
            raise ConfigError("nothing to evaluate: pass eval_dataset={split: rows}")
        if isinstance(datasets, Dataset):
            datasets = {"test": datasets}
        started = time.time()
        # Candidates cost many times the rows; during training they are scored only where a decision rests on them.
        probing = not self.is_in_train or "probing" in (self.args.metric_for_best_model or "")
        figures = self._measure(datasets, heldout=False, probing=probing)
        flat = flatten_figures(figures, self.languages, metric_key_prefix)
        kept = [split for split in ("valid", "retain") if split in figures]
        if kept:
            flat[f"{metric_key_prefix}_loss"] = flat[f"{metric_key_prefix}_{kept[0]}_loss"]
        weights = self.language_weights
        if eval_dataset is None and weights.figures_at_start is not None and "forget" in figures:
            score = weights.score(figures)
            if score is not None:
                flat[f"{metric_key_prefix}_unlearning_score"] = score
            if self.is_in_train:
                weights.after_evaluation(figures, score, self.state.global_step)
        flat |= speed_metrics(metric_key_prefix, started)
        self.log(flat)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, flat)
        return flat

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test") -> PredictionOutput:
        """Metrics of ``test_dataset`` (rows or ``{split: rows}``), all languages; no logits are kept.

        Those of rows have no split in their keys: ``test_sw_loss``, ``test_loss``, ``test_worst_loss``. Beside them
        are, for one version more, those with the prefix twice (``test_test_sw_loss``).
        """
        datasets = {"test": test_dataset} if isinstance(test_dataset, Dataset) else test_dataset
        figures = self._measure(datasets)
        metrics = flatten_figures(figures, self.languages, metric_key_prefix)
        if isinstance(test_dataset, Dataset):
            twice = f"{metric_key_prefix}_test_"
            metrics |= {f"{metric_key_prefix}_{key.removeprefix(twice)}": value for key, value in metrics.items()}
        # Its type has logits always; here none are kept.
        return PredictionOutput(predictions=None, label_ids=None, metrics=metrics)  # type: ignore[arg-type]
