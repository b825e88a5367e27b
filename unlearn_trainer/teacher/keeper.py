"""Which teacher a trainer has: resident, or its answers in a file."""

import signal
from typing import Protocol

import torch
from transformers import Trainer

from ..config.unlearn_config import UnlearnConfig
from ..data.batch import GroupTokens, RowGroup
from ..data.collator import TrainingRows
from ..data.sampler import UnlearnBatchSampler
from ..engine.engines import is_sharded
from ..errors import ConfigError
from ..model.trials import text_config
from ..objectives import Objective
from .cache import CachedTeacher, TeacherCache
from .questions import HiddenStates, Question, questions_of
from .teachers import ResidentTeacher, Teacher


class _AsksTeacher(Protocol):
    """What of the loss is told that the teacher is another now."""

    teacher: Teacher | None


class KeepsTeacher(Trainer):
    """The part of ``UnlearnTrainer`` that tells teachers apart and caches their answers.

    Attributes:
        teacher: ``None`` where no objective asks for one.
        stopped_by: the signal that ended the training before its end.
    """

    args: UnlearnConfig
    train_dataset: TrainingRows
    train_sampler: UnlearnBatchSampler
    objectives: dict[RowGroup, Objective | None]
    layer: int
    teacher: Teacher | None
    step_loss: _AsksTeacher
    stopped_by: signal.Signals | None
    _items: dict[RowGroup, list[dict[int, int]] | None]
    _teacher_cache: TeacherCache | None = None

    def _questions(self) -> list[Question]:
        """All that the objectives ask the teacher."""
        return [
            question
            for side, objective in self.objectives.items()
            if objective is not None
            for question in questions_of(side, objective, self.layer)
        ]

    def _teacher_signature(self) -> list[float] | None:
        """Figures that tell one teacher from another under any engine: some of one row's last hidden state."""
        if isinstance(self.teacher, CachedTeacher):
            return self.teacher.signature
        return self._signature_of(self.teacher) if isinstance(self.teacher, ResidentTeacher) else None

    def _signature_of(self, teacher: ResidentTeacher) -> list[float]:
        side = RowGroup.RETAIN if self._items[RowGroup.RETAIN] else RowGroup.FORGET
        items = self._items[side] or []
        row = next(iter(items[0].values()))
        batch = self._prepare_inputs(self.data_collator([self.train_dataset[side is RowGroup.FORGET, row]]))
        last = batch["attention_mask"][:1].sum(1) - 1
        first_row = torch.zeros_like(last)
        token = GroupTokens(first_row, first_row, last, first_row, first_row)
        with self.accelerator.autocast():
            return teacher.ask(HiddenStates(side), batch, token)[0, :8].tolist()

    def cache_teacher(self, steps: int) -> None:
        """Replace a resident teacher by its hidden states in a file, where that is asked for or saves time.

        By itself (``--teacher auto``) it does so when the training passes over the teacher's rows more than once.

        Args:
            steps: optimizer steps of the training.

        Raises:
            ConfigError: the teacher is sharded, or the disk is too small.
        """
        wish = self.args.teacher
        if not isinstance(self.teacher, ResidentTeacher) or wish not in ("auto", "cached"):
            return
        if is_sharded(self.accelerator):
            if wish == "cached":
                raise ConfigError("--teacher cached saves nothing where the engine shards it; choose resident")
            return
        questions = self._questions()
        sides = {question.group: question.group.split for question in questions}
        trained = {
            group: sorted(row for item in self._items[side] or () for row in item.values())
            for group, side in sides.items()
        }
        cache = TeacherCache(
            self.args.folder / "teacher",
            self.train_dataset,
            questions,
            trained,
            text_config(self.teacher.model).hidden_size,
            self.teacher.head.weight.shape[1],
        )
        if wish == "auto":
            epochs = steps / self.train_sampler.steps_per_epoch
            drawn = sum(epochs * self.train_sampler.rows_of_epoch(side is RowGroup.FORGET) for side in sides.values())
            if drawn <= sum(map(len, trained.values())) or not cache.is_small:
                return
        with self.accelerator.autocast():
            self.teacher = cache.load(
                self.teacher,
                self.teacher.model,
                self._signature_of(self.teacher),
                lambda rows: self._prepare_inputs(self.data_collator(rows)),
                self.args.per_device_eval_batch_size,
                self.accelerator.mixed_precision,
                not self.args.disable_tqdm,
            )
        self.step_loss.teacher = self.teacher
        self._teacher_cache = cache

    def remove_teacher_cache(self) -> None:
        """Delete the file of a finished training's teacher; one that was told to stop will need it."""
        if self._teacher_cache is not None and self.stopped_by is None:
            self._teacher_cache.remove()
