"""``UnlearnTrainer``: a Hugging Face Trainer whose loss combines forget and retain rows with language weights."""

import contextlib
import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate.utils import reduce
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from .config.unlearn_config import UnlearnConfig
from .console import CompactPrinter, CompactProgress
from .data import Item, TokenizedData
from .data.batch import RowGroup
from .data.collator import TrainingRows
from .data.row_checks import check_rows, learned_positions
from .data.sampler import UnlearnBatchSampler, group_items
from .engine.engines import check_engine, check_not_measured_yet
from .engine.fingerprint import fingerprint
from .errors import ConfigError, Terminated, TrainingDiverged
from .evaluation.evaluator import MultilingualEvaluator
from .head.attached import attach_head
from .head.chunked import Segments
from .head.packing import lay_out
from .model.layers import check_trained
from .model.loading import check_adapter, check_given
from .model.randomness import disable_dropout, switch_off_chance
from .model.saving import SavedAsLoaded
from .step.gradient_surgery import surgeries
from .step.loss import StepLoss, count_step, inner_layer, resolve_objectives
from .step.rows import collator_for, rows_in_use
from .teacher.cache import TeacherCache
from .teacher.keeper import KeepsTeacher
from .teacher.teachers import ResidentTeacher, make_teacher
from .training.best_model import KeepsBest
from .training.callbacks import RunEvents
from .training.checkpoints import StopSignal, WholeCheckpoints, check_whole
from .training.given import load_given
from .training.health import LossLog, check_finite
from .training.identity import check_resumable, identity_of
from .training.integrations import OnlyResultToHub
from .training.measuring import MeasuringTrainer
from .weights.callback import LanguageWeightCallback
from .weights.policy import WeightPolicy
from .weights.state import SIDES

# What a Trainer takes and this one does not, with what to use instead.
NOT_TAKEN = {
    "train_dataset": "pass forget_dataset and retain_dataset",
    "data_collator": "UnlearnCollator makes batches of both kinds of rows",
    "compute_metrics": "MultilingualEvaluator measures, and keeps no logits",
    "model_init": "pass the loaded model",
    "compute_loss_func": "register an objective, see docs/extending.md",
}
# What processes add up to agree on a signal: one Ctrl-C outweighs any number of SIGTERM.
_STOPS = {0: 0, signal.SIGTERM: 1, signal.SIGINT: 2**16}


class UnlearnTrainer(KeepsTeacher, KeepsBest, WholeCheckpoints, SavedAsLoaded, OnlyResultToHub, MeasuringTrainer):
    """Unlearns the forget rows of a causal language model and keeps what the retain rows stand for.

    Args:
        model: any ``AutoModelForCausalLM``, or a ``PeftModel`` around one. Chance in its training is turned off:
            dropout, routers that draw experts, and the like.
        args: objectives, weights and everything a Trainer takes.
        forget_dataset, retain_dataset: tokenized rows (``unlearn_trainer.data.tokenize_splits``); one may be ``None``
            where the method has no objective for it.
        eval_dataset: ``{split: rows}`` with splits among forget, retain, valid: measured at the start, by ``evaluate``
            and at the end. Rows alone are the valid split.
        predict_dataset: further splits, measured at the start and at the end only.
        languages: codes of the trained languages, in the order of the rows' ``language`` column.
        heldout_languages: further codes that the column may hold; evaluated, never trained.
        teacher: the frozen original model; by default a copy of ``model`` as it is now, and none where no objective
            asks for it or ``model`` has an adapter to switch off.
        processing_class: the tokenizer; its pad token fills short rows.
        callbacks: further Trainer callbacks.
        data: all splits at once, in place of the datasets: what ``tokenize_splits`` returns, or what ``load_splits``
            returns, which is tokenized then; ``model`` may be a name or a folder with it. forget, retain and valid are
            measured, test is predicted.
        max_seq_length: what rows were cut to, which is the width of a batch where padding counts in the loss
            (``lingtea_alignment="released"`` with XGLM); by default that of the longest row, in multiples of 8.

    Raises:
        ConfigError: no loaded causal language model; a dataset that the method needs is missing, empty, or not of
            tokenized rows; rows are longer than the model's table of positions; an argument of a Trainer that has no
            use here.
    """

    step_loss: StepLoss

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: UnlearnConfig,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        languages: Sequence[str] | None = None,
        eval_dataset: dict[str, Dataset] | None = None,
        predict_dataset: dict[str, Dataset] | None = None,
        heldout_languages: Sequence[str] = (),
        teacher: PreTrainedModel | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        max_seq_length: int | None = None,
        data: TokenizedData | Mapping[str, Sequence[Item]] | None = None,
        **kwargs,
    ):
        for name, instead in NOT_TAKEN.items():
            if kwargs.get(name) is not None:
                raise ConfigError(f"UnlearnTrainer takes no {name}: {instead}")
        if not isinstance(args, UnlearnConfig):
            raise ConfigError(f"args is a {type(args).__name__}; pass an UnlearnConfig")
        if data is not None:
            if any(rows is not None for rows in (forget_dataset, retain_dataset, eval_dataset, predict_dataset)):
                raise ConfigError("data holds all splits; leave out forget_dataset, retain_dataset and the others")
            given = load_given(model, args, data, processing_class, languages, heldout_languages, max_seq_length)
            model, processing_class, rows = given.model, given.tokenizer, given.data
            forget_dataset, retain_dataset = rows.datasets.get("forget"), rows.datasets.get("retain")
            eval_dataset, predict_dataset = given.measured, given.predicted
            languages, heldout_languages = rows.languages, rows.heldout_languages
            max_seq_length = rows.max_seq_length
        check_given(model)
        assert not isinstance(model, str | Path)  # such were refused, or loaded
        if teacher is not None:
            check_given(teacher, "teacher")
        if languages is None:
            raise ConfigError("languages is None; pass the codes that the rows' language column indexes, or data=...")
        self.languages, self.heldout_languages = list(languages), list(heldout_languages)
        if isinstance(eval_dataset, Dataset):
            eval_dataset = {"valid": eval_dataset}
        measured = {**(eval_dataset or {}), **(predict_dataset or {})}
        check_rows(
            {"forget": forget_dataset, "retain": retain_dataset, **measured},
            [*self.languages, *self.heldout_languages],
            learned_positions(model),
        )
        config = model.config.get_text_config()
        self.objectives = resolve_objectives(args, config.model_type)
        used = rows_in_use(self.objectives, forget_dataset, retain_dataset, len(self.languages))
        self.layer = inner_layer(args, config.num_hidden_layers)
        check_adapter(model)
        # Objectives that look at states alone depend on nothing behind these.
        of_states = all("hidden" in objective.needs for objective in self.objectives.values() if objective)
        check_trained(model, self.layer if of_states else None)
        disable_dropout(model)
        collator = collator_for(self.objectives, used, config, processing_class, max_seq_length)
        self.predict_dataset = predict_dataset or {}
        self.teacher = make_teacher(model, args, self.objectives, teacher)
        self.head = attach_head(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=TrainingRows(used[RowGroup.FORGET], used[RowGroup.RETAIN]),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[
                *(callbacks or []),
                LanguageWeightCallback(self.languages, WeightPolicy.from_config(args)),
                RunEvents(self),
            ],
            **kwargs,
        )
        if args.n_gpu > 1:
            raise ConfigError("several GPUs in one process: start with `accelerate launch` or `torchrun` instead")
        check_engine(self.accelerator)
        switch_off_chance(model, args.neftune_noise_alpha)
        if isinstance(self.teacher, ResidentTeacher):
            self.teacher.prepare(self.accelerator)
        # compute_loss divides by counts over the whole optimizer step itself.
        self.loss_is_scaled_for_ga = True
        self._items = {side: group_items(rows, len(self.languages)) if rows else None for side, rows in used.items()}
        self.train_sampler = self._make_sampler()
        self.step_loss = StepLoss(
            args,
            self.objectives,
            self.teacher,
            self.accelerator.num_processes,
            self.layer,
            config.hidden_size,
            collator.pad_token_id,
        )
        self.surgeries = surgeries(args, self.model, self.step_loss, self.accelerator)
        self.evaluator = MultilingualEvaluator(
            self.languages + self.heldout_languages,
            len(self.languages),
            collator.pad_token_id,
            args.per_device_eval_batch_size,
            show_progress=not args.disable_tqdm,
            tokenizer=processing_class,
        )
        self.loss_log = LossLog(args.device)
        self._stop_signal = StopSignal()
        self._teacher_cache: TeacherCache | None = None
        self._start: dict[str, str] | None = None
        self.stopped_by: signal.Signals | None = None
        for noisy, compact in ((ProgressCallback, CompactProgress), (PrinterCallback, CompactPrinter)):
            if self.pop_callback(noisy) is not None:
                self.add_callback(compact)

    def identity(self) -> dict:
        """What a resumed run must have in common with the run that wrote the checkpoint; call it on every process."""
        return identity_of(self, self._start or fingerprint(self.model), self._teacher_signature())

    @property
    def terminated(self) -> bool:
        """Whether the training was told to stop before its end."""
        return self.stopped_by is not None

    def train_to_the_end(self, doing: str, resume_from_checkpoint: str | None = None) -> None:
        """Train, for a result that is of use only when the training was not cut short.

        Args:
            doing: what is cut short otherwise, and how to go on; follows on the name of the signal.

        Raises:
            Terminated: it was told to stop.
            TrainingDiverged: the loss or the trained weights are NaN or infinite.
        """
        self.train(resume_from_checkpoint=resume_from_checkpoint)
        if self.stopped_by is not None:
            raise Terminated(self.stopped_by, doing.format(step=self.state.global_step))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as any Trainer does; on SIGTERM or Ctrl-C, save after the current step and return (``terminated``).

        Raises:
            ConfigError: the checkpoint to resume is damaged, or another run's.
            TrainingDiverged: the loss or the trained weights are NaN or infinite.
        """
        check_not_measured_yet(self.model, self.optimizer)
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        if self._start is None or not checkpoint:  # a training that was stopped may go on in the same trainer
            self._start = fingerprint(self.model)
        identity = self.identity()
        if checkpoint:  # ahead of its weights, which another run's model may not be able to take
            check_whole(Path(checkpoint))
            planned = math.ceil(self.args.num_train_epochs * self.train_sampler.steps_per_epoch)
            steps = self.args.max_steps if self.args.max_steps > 0 else planned
            check_resumable(Path(checkpoint), self.accelerator, self.args, identity, steps)
        else:
            self.language_weights.identity = identity
        self.stopped_by = None
        with self._stop_signal:
            trained = super().train(resume_from_checkpoint, *args, **kwargs)
        self._notice_a_late_stop()
        return trained

    def _notice_a_late_stop(self):
        """A signal that came after the last batch stops the run too, with a checkpoint of the finished training."""
        mine = torch.tensor(float(_STOPS[self._stop_signal.received]), device=self.args.device)
        stop = (reduce(mine, reduction="sum") if self.args.world_size > 1 else mine).item()
        if not stop or self.terminated:
            return
        self.stopped_by = signal.SIGINT if stop >= _STOPS[signal.SIGINT] else signal.SIGTERM
        written = self.args.folder / f"checkpoint-{self.state.global_step}"
        if not written.is_dir() and not self.ended_with_best:  # the best was loaded from a checkpoint, and is there
            self._save_checkpoint(self.model, None)

    # ---- data -------------------------------------------------------------------------------------------------------

    def _make_sampler(self) -> UnlearnBatchSampler:
        args = self.args
        return UnlearnBatchSampler(
            self._items[RowGroup.FORGET],
            self._items[RowGroup.RETAIN],
            batch_size=args.per_device_train_batch_size,
            accumulation_steps=args.gradient_accumulation_steps,
            num_processes=args.world_size,
            process_index=args.process_index,
            schedule=args.schedule,
            language_sampling=args.language_sampling,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            lengths=self.train_dataset.lengths(),
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process only; the sampler shards by itself, accelerate must not do it again."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type != "cpu",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def start_epoch(self, global_step: int) -> None:
        """Point the sampler at the epoch that holds optimizer step ``global_step``."""
        self.train_sampler.set_epoch(global_step // self.train_sampler.steps_per_epoch)

    def is_evaluated_at(self, global_step: int) -> bool:
        """Whether an evaluation at the end of an epoch follows on optimizer step ``global_step``."""
        return self.args.eval_strategy == "epoch" and global_step % self.train_sampler.steps_per_epoch == 0

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Counts [sides, counters] over the whole optimizer step: all accumulated batches of all processes."""
        counts = count_step(batch_samples).to(device)
        return reduce(counts, reduction="sum") if self.args.world_size > 1 else counts

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
        changes = []
        if model.training:  # ahead of the forward: they may move the weights and back
            with self.accelerator.autocast():
                given = inputs, num_items_in_batch, self.language_weights, self.state.global_step
                changes = [surgery.term(*given) for surgery in self.surgeries]
        layout = lay_out(self.model, inputs["input_ids"], inputs["attention_mask"], self.step_loss.reads_padding)
        with self.accelerator.autocast():
            segments, losses = self.step_loss.segments(inputs, layout, num_items_in_batch, self.language_weights)
        with self._teacher_head(segments):
            outputs = model(**layout.inputs, segments=segments)
        loss = outputs["loss"]
        loss = sum(changes, loss)
        results = {side: found.result() for side, found in losses.items()}
        self._agree(loss, results.values())
        for side, result in results.items():
            if side not in SIDES:
                continue
            if result.terms is not None:
                self.loss_log.add(side, result.terms)
            self.language_weights.add_batch(side, result.row_languages, result.figures)
        return (loss, outputs) if return_outputs else loss

    def _teacher_head(self, segments: Segments) -> contextlib.AbstractContextManager:
        if self.teacher is None or not any(segment.teacher_head for segment in segments):
            return contextlib.nullcontext()
        return self.teacher.gathered_head()

    def _agree(self, loss, results):
        """Let all processes know of a NaN, before it reaches the weights, and of a wish to stop."""
        # One small reduction a batch carries the languages with NaN, the loss itself, and whether to stop.
        broken = torch.zeros(len(self.languages) + 2, device=loss.device)
        broken[-2] = ~torch.isfinite(loss.detach())
        broken[-1] = _STOPS[self._stop_signal.received]
        for result in results:
            bad = ~torch.isfinite(result.figures["nll"])
            broken.index_put_((result.row_languages,), bad.to(broken.dtype), accumulate=True)
        if self.args.world_size > 1:
            broken = reduce(broken, reduction="sum")
        *languages, loss_broken, stop = broken.tolist()
        if stop:
            self.stopped_by = signal.SIGINT if stop >= _STOPS[signal.SIGINT] else signal.SIGTERM
        if loss_broken or any(languages):
            names = [name for name, flag in zip(self.languages, languages, strict=True) if flag]
            raise TrainingDiverged(
                f"the loss is NaN or infinite at optimizer step {self.state.global_step + 1}, "
                f"language {', '.join(names) or 'unknown'}; the training ends before that step, and no model was "
                "written. Start again with a lower --learning_rate or --forget_coef"
            )

    # ---- logging and saving -----------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add forget and retain loss and the language weights to what the Trainer logs."""
        if "loss" in logs:
            means = self.loss_log.means(self.state.global_step)
            logs |= {f"{side}_loss": mean for side, mean in means.items() if self.objectives[RowGroup(side)]}
            logs |= self.language_weights.logged_weights()
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        check_finite(self.model, self.state.global_step, self.args.device)  # older checkpoints make room for this one
        # Only one process writes the callback's state: it has to hold the sums of all of them.
        self.language_weights.reduce_batches()
        super()._save_checkpoint(model, trial)
