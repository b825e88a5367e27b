"""``UnlearnTrainer``: a Hugging Face Trainer whose loss combines forget and retain rows with language weights."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence

import torch
from accelerate.utils import reduce
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PredictionOutput, speed_metrics

from .arguments import UnlearnConfig, did_you_mean
from .checkpoints import StopSignal, WholeCheckpoints, check_identity
from .console import CompactPrinter, CompactProgress
from .data.collator import TrainingRows, UnlearnCollator
from .data.sampler import UnlearnBatchSampler, group_items
from .engines import prepare_frozen
from .errors import ConfigError, TrainingDiverged
from .evaluation.evaluator import MultilingualEvaluator, flatten_figures, row_figures
from .language_weights import SIDES, LanguageWeightCallback, WeightPolicy
from .lm_head import Segment, Segments, TokenStatistics, attach_head
from .objectives import COUNTERS, FORGET_OBJECTIVES, LINGTEA_RELEASED, RETAIN_OBJECTIVES, Objective, predicted
from .teacher import AdapterTeacher, ResidentTeacher, frozen_copy


class UnlearnTrainer(WholeCheckpoints, Trainer):
    """Unlearns the forget rows of a causal language model and keeps what the retain rows stand for.

    Args:
        model: any ``AutoModelForCausalLM``, or a ``PeftModel`` around one.
        args: objectives, weights and everything a Trainer takes.
        forget_dataset, retain_dataset: tokenized rows (``unlearn_trainer.data.tokenize_splits``); one may be ``None``
            where the method has no objective for it.
        eval_dataset: ``{split: rows}`` with splits among forget, retain, valid: measured at the start, by ``evaluate``
            and at the end.
        predict_dataset: further splits, measured at the start and at the end only.
        languages: codes of the trained languages, in the order of the rows' ``language`` column.
        heldout_languages: further codes that the column may hold; evaluated, never trained.
        teacher: the frozen original model; by default a copy of ``model`` as it is now, and none where no objective
            asks for it or ``model`` has an adapter to switch off.
        processing_class: the tokenizer; its pad token fills short rows.
        callbacks: further Trainer callbacks.

    Raises:
        ConfigError: a dataset that the method needs is missing, or the method has no objective at all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: UnlearnConfig,
        forget_dataset: Dataset | None,
        retain_dataset: Dataset | None,
        languages: Sequence[str],
        eval_dataset: dict[str, Dataset] | None = None,
        predict_dataset: dict[str, Dataset] | None = None,
        heldout_languages: Sequence[str] = (),
        teacher: PreTrainedModel | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs,
    ):
        self.languages, self.heldout_languages = list(languages), list(heldout_languages)
        self.objectives = resolve_objectives(args)
        datasets = {"forget": forget_dataset, "retain": retain_dataset}
        for side, objective in self.objectives.items():
            if objective is not None and datasets[side] is None:
                raise ConfigError(f"--{side}_objective {objective.name} needs {side} rows; give --{side}_file")
        used = {side: datasets[side] if self.objectives[side] else None for side in SIDES}
        pad_token_id = getattr(processing_class, "pad_token_id", None)
        if pad_token_id is None:
            pad_token_id = model.config.eos_token_id if isinstance(model.config.eos_token_id, int) else 0
        self.predict_dataset = predict_dataset or {}
        self.teacher = self._make_teacher(model, args, teacher)
        self.head = attach_head(model.get_base_model() if hasattr(model, "get_base_model") else model)
        super().__init__(
            model=model,
            args=args,
            data_collator=UnlearnCollator(pad_token_id),
            train_dataset=TrainingRows(used["forget"], used["retain"]),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[
                *(callbacks or []),
                LanguageWeightCallback(self.languages, WeightPolicy.from_config(args)),
                _RunEvents(self),
            ],
            **kwargs,
        )
        if args.n_gpu > 1:
            raise ConfigError("several GPUs in one process: start with `accelerate launch` or `torchrun` instead")
        if isinstance(self.teacher, ResidentTeacher):
            self.teacher.prepare(self.accelerator)
        # compute_loss divides by counts over the whole optimizer step itself.
        self.loss_is_scaled_for_ga = True
        self._items = {side: group_items(rows, len(self.languages)) if rows else None for side, rows in used.items()}
        self.train_sampler = self._make_sampler()
        self.evaluator = MultilingualEvaluator(
            self.languages + self.heldout_languages,
            len(self.languages),
            pad_token_id,
            args.per_device_eval_batch_size,
            show_progress=not args.disable_tqdm,
        )
        self._logged_losses = torch.zeros(len(SIDES), dtype=torch.float64, device=args.device)
        self._steps_at_log = 0
        self._stop_signal = StopSignal()
        self.terminated = False
        for noisy, compact in ((ProgressCallback, CompactProgress), (PrinterCallback, CompactPrinter)):
            if self.pop_callback(noisy) is not None:
                self.add_callback(compact)

    def _make_teacher(self, model, args, teacher):
        if not any(objective and objective.needs_teacher for objective in self.objectives.values()):
            return None
        if args.teacher == "adapter" or (
            args.teacher == "auto" and teacher is None and hasattr(model, "disable_adapter")
        ):
            if not hasattr(model, "disable_adapter"):
                raise ConfigError("--teacher adapter needs an adapter to switch off; add --use_peft")
            return AdapterTeacher(model)
        if teacher is not None and teacher.config.vocab_size != model.config.vocab_size:
            raise ConfigError(
                f"the teacher's vocabulary has {teacher.config.vocab_size} entries, the student's "
                f"{model.config.vocab_size}: KL needs the same tokenizer on both"
            )
        return ResidentTeacher(teacher if teacher is not None else frozen_copy(model))

    @property
    def language_weights(self) -> LanguageWeightCallback:
        """The callback that owns the weights; resuming replaces it, so it is looked up each time."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, LanguageWeightCallback))

    def identity(self) -> dict:
        """What a resumed run must have in common with the run that wrote the checkpoint; call it on every process."""
        args = self.args
        rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return {
            "languages": self.languages,
            **dataclasses.asdict(WeightPolicy.from_config(args)),
            **{name: getattr(args, name) for name in ("forget_objective", "retain_objective", "schedule")},
            **{name: getattr(args, name) for name in ("language_sampling", "seed", "data_seed", "lingtea_alignment")},
            "rows of an optimizer step": rows_per_step,
            **{f"{side} rows": digest for side, digest in self.train_dataset.digests().items()},
            "teacher": self._teacher_signature(),
        }

    def _teacher_signature(self) -> list[float] | None:
        """Figures that tell one teacher from another under any engine: some of one row's last hidden state."""
        if not isinstance(self.teacher, ResidentTeacher):
            return None
        side = "retain" if self._items["retain"] else "forget"
        row = next(iter(self._items[side][0].values()))
        batch = self._prepare_inputs(self.data_collator([self.train_dataset[side == "forget", row]]))
        positions = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
        return self._teacher_hidden(batch, torch.zeros_like(positions[:1]), positions)[-1, :8].tolist()

    def train(self, *args, **kwargs):
        """Train as any Trainer does; on SIGTERM, save after the current step and return (``terminated``)."""
        with self._stop_signal:
            return super().train(*args, **kwargs)

    # ---- data -------------------------------------------------------------------------------------------------------

    def _make_sampler(self) -> UnlearnBatchSampler:
        args = self.args
        return UnlearnBatchSampler(
            self._items["forget"],
            self._items["retain"],
            batch_size=args.per_device_train_batch_size,
            accumulation_steps=args.gradient_accumulation_steps,
            num_processes=args.world_size,
            process_index=args.process_index,
            schedule=args.schedule,
            language_sampling=args.language_sampling,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process only; the sampler shards by itself, accelerate must not do it again."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def start_epoch(self, global_step: int) -> None:
        """Point the sampler at the epoch that holds optimizer step ``global_step``."""
        steps_per_epoch = math.ceil(len(self.train_sampler) / self.args.gradient_accumulation_steps)
        self.train_sampler.set_epoch(global_step // max(steps_per_epoch, 1))

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Counts [sides, counters] over the whole optimizer step: all accumulated batches of all processes."""
        counts = torch.zeros(len(SIDES), len(COUNTERS), dtype=torch.float64)
        for batch in batch_samples:
            for index, side in enumerate(SIDES):
                mine = batch["is_forget"] == (side == "forget")
                labels, mask = batch["labels"][mine], batch["attention_mask"][mine]
                counts[index] += torch.stack([count(labels, mask).double() for count in COUNTERS.values()])
        return reduce(counts.to(device), reduction="sum") if self.args.world_size > 1 else counts.to(device)

    # ---- loss -------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """``forget_coef * F + retain_coef * R`` of one flat batch, divided by the counts of the whole step.

        Summed over the accumulated batches and averaged over the processes (as the engines do with gradients) it is
        the loss of the step, however the step was split.

        Raises:
            TrainingDiverged: the loss is NaN or infinite, on whichever process.
        """
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], inputs["labels"].device)
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        segments, rows_of = {}, {}
        for index, side in enumerate(SIDES):
            objective = self.objectives[side]
            if objective is None:
                continue
            rows = (inputs["is_forget"] == (side == "forget")).nonzero()[:, 0]
            segments[side], rows_of[side] = self._segment(objective, index, inputs, rows, num_items_in_batch[index])
        with self._teacher_head():
            outputs = model(**batch, segments=Segments(*segments.values()))
        loss = outputs["loss"]
        figures = {side: self._row_figures(segments[side], *rows_of[side]) for side in segments}
        self._agree(loss, figures, inputs["language"], rows_of)
        for side, segment in segments.items():
            if segment.terms is not None:
                self._logged_losses[SIDES.index(side)] += segment.terms.sum()
            self.language_weights.add_batch(side, inputs["language"][rows_of[side][0]], figures[side])
        return (loss, outputs) if return_outputs else loss

    def _segment(self, objective: Objective, side: int, inputs, rows, counts):
        """The labelled tokens of ``rows`` with their objective; also (rows, index into ``rows`` of each token)."""
        labels = inputs["labels"][rows]
        row_of, column = predicted(labels).nonzero(as_tuple=True)
        length = labels.shape[1]
        segment = Segment(
            positions=rows[row_of] * length + column,
            targets=labels[row_of, column + 1],
            needs=objective.needs - {"distill_weight"},
            temperature=self.args.distill_temperature,
        )
        # Decided by the whole step, so that all processes agree whether a sharded teacher runs.
        if objective.needs_teacher and counts[list(COUNTERS).index("tokens")] > 0:
            shift = int(objective.kl_at_label)
            segment.teacher_head = self.teacher.head
            taught = rows if len(rows) else torch.zeros(1, dtype=torch.long, device=rows.device)
            segment.teacher_hidden = self._teacher_hidden(inputs, taught, row_of * length + column + shift)
            segment.kl_positions = segment.positions + 1 if shift else None
        language = inputs["language"][rows][row_of]
        name = SIDES[side]
        weights = self._per_token(getattr(self.language_weights, name), language)
        coefficient = self.args.forget_coef if name == "forget" else self.args.retain_coef
        divisors = counts[[list(COUNTERS).index(count) for count in objective.counts]].clamp(min=1)
        distill = self._distill_weights(language) if "distill_weight" in objective.needs else None

        def loss(statistics: TokenStatistics, where: slice):
            if distill is not None:
                statistics.distill_weight = distill(statistics, where)
            values = [value @ weights[where].to(value.dtype) for value in objective.terms(statistics)]
            terms = torch.stack(values) / divisors.to(values[0].dtype)
            return coefficient * self.accelerator.num_processes * terms.sum(), terms

        segment.loss = loss
        return segment, (rows, row_of)

    def _distill_weights(self, language):
        """How to get each token's weight of the teacher, from its statistics or its language."""
        if self.args.distill_weighting == "token":
            return lambda statistics, where: torch.exp(-statistics.teacher_nll)
        weights = self._per_token(self.language_weights.distill, language)
        return lambda statistics, where: weights[where].to(statistics.nll.dtype)

    @staticmethod
    def _per_token(weights: Sequence[float], language: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if language.device.type == "mps" else torch.float64
        return torch.tensor(weights, dtype=dtype, device=language.device)[language]

    def _teacher_hidden(self, inputs, rows, positions):
        with self.accelerator.autocast():
            return self.teacher.hidden(inputs["input_ids"][rows], inputs["attention_mask"][rows], positions)

    def _teacher_head(self):
        if self.teacher is None:
            return contextlib.nullcontext()
        return self.teacher.gathered_head()

    @staticmethod
    def _row_figures(segment, rows, row_of):
        """The sums that :meth:`LanguageWeightCallback.add_batch` takes, one a row."""
        statistics = segment.statistics
        if statistics.nll is None:
            empty = torch.zeros(len(rows), device=rows.device)
            return dict.fromkeys(("tokens", "nll", "memorization_accuracy", "extraction_strength"), empty)
        figures = row_figures(statistics, row_of, len(rows))
        if statistics.teacher_nll is not None:
            probability = torch.exp(-statistics.teacher_nll)
            figures["teacher_probability"] = torch.zeros_like(figures["nll"]).index_add_(0, row_of, probability)
        return figures

    def _agree(self, loss, figures, language, rows_of):
        """Let all processes know of a NaN, before it reaches the weights, and of a wish to stop."""
        # One small reduction a batch carries the languages with NaN, the loss itself, and whether to stop.
        broken = torch.zeros(len(self.languages) + 2, device=loss.device)
        broken[-2] = ~torch.isfinite(loss.detach())
        broken[-1] = self._stop_signal.received
        for side, found in figures.items():
            bad = ~torch.isfinite(found["nll"])
            broken.index_put_((language[rows_of[side][0]],), bad.to(broken.dtype), accumulate=True)
        if self.args.world_size > 1:
            broken = reduce(broken, reduction="sum")
        *languages, loss_broken, stop = broken.tolist()
        self.terminated = self.terminated or bool(stop)
        if loss_broken or any(languages):
            names = [name for name, flag in zip(self.languages, languages, strict=True) if flag]
            raise TrainingDiverged(
                f"the loss is NaN or infinite at optimizer step {self.state.global_step + 1}, "
                f"language {', '.join(names) or 'unknown'}; the weights were not changed by it. Lower --learning_rate "
                "or --forget_coef, or resume from the last checkpoint"
            )

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def measure(self, model: PreTrainedModel | None = None, description: str = "evaluating") -> dict:
        """Figures ``{split: {language: {metric: number}}}`` of all splits and languages; call it on every process.

        Args:
            model: measured instead of the trained one, with the same vocabulary.
            description: label of the progress bar.
        """
        if model is not None:
            attach_head(model)
            model = prepare_frozen(model, self.accelerator)
        return self._measure({**(self.eval_dataset or {}), **self.predict_dataset}, model, description=description)

    def _measure(self, datasets, model=None, heldout=True, probing=True, description="evaluating"):
        with self.accelerator.autocast():
            return self.evaluator(model or self.model, datasets, self.args.device, heldout, probing, description)

    def measure_start(self) -> None:
        """Figures before the first step, from which targets and references are taken.

        Raises:
            ConfigError: the language weights are to adapt, but no split is measured; or no evaluation will have the
                ``metric_for_best_model``.
        """
        self.language_weights.policy.check_measured(self.eval_dataset or {})
        if self.eval_dataset:
            figures = self.measure(description="before")
            self.language_weights.begin(figures)
            self._check_best_metric(figures)

    def _check_best_metric(self, figures: dict) -> None:
        best = self.args.metric_for_best_model
        known = {"loss", "unlearning_score"} | flatten_figures(figures, self.languages, "").keys()
        known = {name.removeprefix("_") for name in known}
        if best is not None and best.removeprefix("eval_") not in known:
            raise ConfigError(
                f"--metric_for_best_model {best} is none of the figures of an evaluation"
                f"{did_you_mean(best.removeprefix('eval_'), known)}"
            )

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
        """Metrics of ``test_dataset`` (rows or ``{split: rows}``), all languages; no logits are kept."""
        datasets = {"test": test_dataset} if isinstance(test_dataset, Dataset) else test_dataset
        figures = self._measure(datasets)
        metrics = flatten_figures(figures, self.languages, metric_key_prefix)
        return PredictionOutput(predictions=None, label_ids=None, metrics=metrics)

    # ---- logging and saving -----------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add forget and retain loss and the language weights to what the Trainer logs."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._steps_at_log)
            losses = reduce(self._logged_losses.clone(), reduction="sum") / steps
            self._logged_losses.zero_()
            self._steps_at_log = self.state.global_step
            for side, value in zip(SIDES, losses.tolist(), strict=True):
                if self.objectives[side]:
                    logs[f"{side}_loss"] = value
            logs |= self.language_weights.logged_weights()
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        # Only one process writes the callback's state: it has to hold the sums of all of them.
        self.language_weights.reduce_batches()
        super()._save_checkpoint(model, trial)


def resolve_objectives(args: UnlearnConfig) -> dict[str, Objective | None]:
    """The objectives of both sides; ``None`` for a side that is not trained on."""
    forget = FORGET_OBJECTIVES.get(args.forget_objective)
    retain = RETAIN_OBJECTIVES.get(args.retain_objective)
    if args.retain_objective == "lingtea" and args.lingtea_alignment == "released":
        retain = LINGTEA_RELEASED
    if forget is None and retain is None:
        raise ConfigError("both --forget_objective and --retain_objective are none: there is nothing to train")
    return {"forget": forget, "retain": retain}


class _RunEvents(TrainerCallback):
    """Calls the trainer at the points for which it has no method of its own to override."""

    def __init__(self, trainer: UnlearnTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        weights, identity = self.trainer.language_weights, self.trainer.identity()
        if state.global_step == 0:
            weights.identity = identity
            self.trainer.measure_start()
        else:
            check_identity(weights.identity, identity)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.start_epoch(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.terminated:
            control.should_save = control.should_training_stop = True
