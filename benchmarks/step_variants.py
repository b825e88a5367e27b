"""The same step of LingTea in five ways, each forward and backward on the same rows, without an optimizer step.

``naive`` follows the code released with the paper: forget and retain rows in batches of their own, padded to the
longest length allowed, the teacher run on both, every position of both models sent through the whole vocabulary, and
the distributions of a batch held at once. ``ours`` is ``UnlearnTrainer.training_step``, ``cached`` the same with
``--teacher cached``, ``plain`` is fine-tuning, and ``floor`` is what cannot be left out of a LingTea step: the
student's body forward and backward, the teacher's body on the retain rows, and four products with a vocabulary head.
"""

import argparse
import contextlib
import copy
import io
from collections.abc import Callable
from typing import Literal

import torch
from common import LANGUAGES, ROW_TOKENS, build_model, peak_memory, text_rows, timed_in_turn
from datasets import Dataset
from torch import nn

from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.model.trials import embedding_of
from unlearn_trainer.trainer import UnlearnTrainer

IGNORED = -100
FLOOR_CHUNK = {"cpu": 256, "cuda": 2048}  # tokens of a head product, as fast as any number was


# ---- naive ----------------------------------------------------------------------------------------------------------


def pad_rows(rows: Dataset, length: int, pad_token_id: int, device: str) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` [rows, length]."""

    def pad(values, filler):
        return [list(row) + [filler] * (length - len(row)) for row in values]

    return {
        "input_ids": torch.tensor(pad(rows["input_ids"], pad_token_id), device=device),
        "attention_mask": torch.tensor(pad([[1] * len(ids) for ids in rows["input_ids"]], 0), device=device),
        "labels": torch.tensor(pad(rows["labels"], IGNORED), device=device),
    }


def naive_step(student: nn.Module, teacher: nn.Module, forget: dict, retain: dict, alignment: str = "paper") -> float:
    """Forward and backward of a forget and of a retain batch; gradients add up; returns the sum of the losses.

    Args:
        forget, retain: see :func:`pad_rows`.
        alignment: as ``--lingtea_alignment``; the paper's by default, so that all variants have one loss.
    """
    outputs = student(**forget)
    with torch.no_grad():
        teacher(input_ids=forget["input_ids"], attention_mask=forget["attention_mask"])
    loss = -outputs.loss
    loss.backward()
    total = loss.item()
    del outputs, loss
    inputs = {name: retain[name] for name in ("input_ids", "attention_mask")}
    logits = student(**inputs).logits
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits
    loss = naive_retain_loss(logits, teacher_logits, retain["labels"], retain["attention_mask"], alignment)
    loss.backward()
    return total + loss.item()


def naive_retain_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, alignment: str
) -> torch.Tensor:
    """q KL + (1 - q) NLL from the logits [rows, length, vocabulary] of both models.

    ``released`` takes q and KL where the label stands instead of where it is predicted, a row's first token too, and
    divides KL by the rows and NLL by the tokens that are attended to.
    """
    targets = labels[:, 1:].contiguous()
    counts = targets != IGNORED
    logits, teacher_logits = (at_least_float32(found) for found in (logits, teacher_logits))
    shifted = logits[:, :-1].contiguous()
    nll = nn.functional.cross_entropy(
        shifted.view(-1, shifted.shape[-1]), targets.view(-1), ignore_index=IGNORED, reduction="none"
    ).view_as(targets)
    log_student = torch.log_softmax(logits, -1)
    teacher_probs = torch.softmax(teacher_logits, -1)
    kl = nn.functional.kl_div(log_student, teacher_probs, reduction="none").sum(-1)
    if alignment == "released":
        q = teacher_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
        return (q * kl).sum() / len(labels) + ((1 - q[:, 1:]) * nll * counts).sum() / mask.sum()
    q = teacher_probs[:, :-1].gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return ((q * kl[:, :-1] + (1 - q) * nll) * counts).sum() / counts.sum()


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# ---- all variants ---------------------------------------------------------------------------------------------------


class StepVariants:
    """Student, teacher and rows, and the variants as methods that leave gradients behind and return their loss.

    Args:
        args: the flags of a benchmark.
        folder: for what a trainer writes.
        row_tokens: fewest and most tokens of random rows.
    """

    def __init__(self, args: argparse.Namespace, folder: str, row_tokens=ROW_TOKENS):
        self.args, self.folder = args, folder
        self.teacher = build_model(args)
        self.student = copy.deepcopy(self.teacher)
        with torch.no_grad():  # a student as after some steps: against an equal teacher KL is 0
            for parameter in self.student.parameters():
                parameter.mul_(0.9)
        vocabulary = embedding_of(self.student).num_embeddings
        self.rows = text_rows(args, vocabulary, row_tokens)
        self.tokens = sum(len(ids) for rows in self.rows.values() for ids in rows["input_ids"])
        self._layout: dict | None = None

    def trainer(self, teacher: Literal["resident", "cached"] = "resident", **settings) -> UnlearnTrainer:
        """A trainer of the student, whose optimizer changes nothing, on all rows in one batch."""
        quiet = {"disable_tqdm": True, "report_to": [], "save_strategy": "no", "logging_strategy": "no"}
        config = UnlearnConfig(
            output_dir=self.folder,
            use_cpu=self.args.device == "cpu",
            teacher=teacher,
            optim="sgd",
            learning_rate=0.0,
            max_grad_norm=0.0,
            **{**quiet, "max_steps": 1, "per_device_train_batch_size": self.args.batch_size, **settings},
        )
        return UnlearnTrainer(
            self.student,
            config,
            self.rows["forget"],
            self.rows["retain"],
            languages=LANGUAGES,
            eval_dataset=self.rows if config.forget_weighting == "target" else None,
            # A cache takes the place of the model, which it lets go.
            teacher=build_model(self.args) if teacher == "cached" else self.teacher,
        )

    def step_of(self, trainer: UnlearnTrainer) -> Callable[[], float]:
        """One ``training_step`` on a batch of the trainer's own loader."""
        batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
        return lambda: trainer.training_step(trainer.model_wrapped, batches[0], count).item()

    def prepare(self, name: str) -> Callable[[], float | None]:
        """The step of a variant; what is done once in a run, such as filling the cache, is done now."""
        if name == "ours":
            trainer = self.trainer()
            step, batch = self.step_of(trainer), next(iter(trainer.get_train_dataloader()))
            # Two short rows: how the model's head and attention behave is tried at the first step.
            trainer.training_step(self.student, {name: value[[0, -1]][..., :8] for name, value in batch.items()})
            self.student.zero_grad()
            return step
        if name == "cached":
            trainer = self.trainer("cached")
            train_silently(trainer)  # its start fills the cache
            self.student.zero_grad()
            return self.step_of(trainer)
        if name != "naive":
            self.layout()
        return getattr(self, name)

    def naive(self, alignment: str = "paper") -> float:
        pad = self.student.config.pad_token_id or 0
        padded = {
            name: pad_rows(rows, self.args.max_length, pad, self.args.device) for name, rows in self.rows.items()
        }
        self.student.train()
        return naive_step(self.student, self.teacher, padded["forget"], padded["retain"], alignment)

    def plain(self) -> float:
        """Fine-tuning by the model's own loss, the rows laid out as ours lays them out."""
        layout = self.layout()
        labels = torch.full_like(layout["student"]["input_ids"], IGNORED)
        labels.view(-1)[layout["positions"] + 1] = layout["targets"]
        self.student.train()
        loss = self.student(**layout["student"], labels=labels, use_cache=False).loss
        loss.backward()
        return loss.item()

    def floor(self) -> None:
        """The products that a LingTea step cannot do without, rows laid out as in ours; its gradients mean nothing."""
        layout = self.layout()
        self.student.train()
        hidden = self.student.base_model(**layout["student"], use_cache=False).last_hidden_state
        picked = hidden.flatten(0, -2)[layout["positions"]]
        weight = self.student.get_output_embeddings().weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        with torch.no_grad():
            taught = self.teacher.base_model(**layout["teacher"], use_cache=False).last_hidden_state.flatten(0, -2)
            teacher_weight = self.teacher.get_output_embeddings().weight
            chunk = FLOOR_CHUNK[self.args.device]
            logits = picked.new_empty(chunk, len(weight))
            slope = torch.empty_like(picked)
            for inputs, out in zip(picked.split(chunk), slope.split(chunk), strict=True):
                found = torch.mm(inputs, weight.T, out=logits[: len(inputs)])
                torch.mm(found, weight, out=out)
                weight.grad.addmm_(found.T, inputs)
            for inputs in taught[: layout["taught"]].split(chunk):
                torch.mm(inputs, teacher_weight.T, out=logits[: len(inputs)])
        picked.backward(slope)

    def layout(self) -> dict:
        """What ours gives the bodies of student and teacher, and the labelled tokens, seen at the models' doors."""
        if self._layout is None:
            self._layout = self._watch(self.step_of(self.trainer()))
        return self._layout

    def _watch(self, step):
        seen: dict = {}

        def at_student(module, args, kwargs):
            if "segments" in kwargs:
                seen["segments"] = list(kwargs["segments"])

        def at_body(module, args, kwargs):
            if "segments" in seen:
                seen["student"] = _tensors(kwargs)
                raise _Seen

        def at_teacher(module, args, kwargs):
            seen["teacher"] = _tensors(kwargs)

        hooks = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module, hook in (
                (self.student, at_student),
                (self.student.base_model, at_body),
                (self.teacher.base_model, at_teacher),
            )
        ]
        with contextlib.suppress(_Seen):
            step()
        for hook in hooks:
            hook.remove()
        segments = seen.pop("segments")
        return {
            **seen,
            "positions": torch.cat([segment.positions for segment in segments]),
            "targets": torch.cat([segment.targets for segment in segments]),
            "taught": sum(len(segment.targets) for segment in segments if segment.teacher_head is not None),
        }

    def keep_gradients(self) -> int:
        """Allocate every gradient, for good; returns the bytes a tied head needs besides, in backward.

        A tied weight gets one gradient from the head and one from the embedding, each whole.
        """
        ids = torch.arange(8, device=self.args.device)[None]
        self.student(input_ids=ids, labels=ids).loss.backward()
        head = self.student.get_output_embeddings().weight
        return head.nbytes if head is embedding_of(self.student).weight else 0


def train_silently(trainer: UnlearnTrainer) -> None:
    """Train; what is logged is formatted as ever, and not shown."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()


class _Seen(Exception):
    """Ends a step whose inputs have been seen."""


def _tensors(kwargs):
    return {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}


def step_memory(args: argparse.Namespace, name: str, folder: str, row_tokens=ROW_TOKENS) -> int:
    """Peak bytes of a variant's step without weights, gradients and the second gradient of a tied head.

    Gradients are there before the step, as in gradient accumulation; for :func:`~common.in_fresh_process`.
    """
    variants = StepVariants(args, folder, row_tokens)
    step = variants.prepare(name)
    second = variants.keep_gradients()
    return max(0, peak_memory(step, args.device) - second)


def step_seconds(args: argparse.Namespace, name: str, folder: str, row_tokens=ROW_TOKENS) -> tuple[float, int]:
    """Median seconds of a variant's step, and the tokens of its rows; for :func:`~common.in_fresh_process`."""
    variants = StepVariants(args, folder, row_tokens)
    step = variants.prepare(name)
    seconds = timed_in_turn({name: step}, {name: args.repeats}, before=variants.student.zero_grad)
    return seconds[name], variants.tokens
