"""The frozen original model that teaches on the retain rows."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..config.arguments import ModelArguments
from ..config.unlearn_config import UnlearnConfig
from ..data.batch import GroupTokens, RowGroup
from ..engine.engines import gathered, held_part, prepare_frozen
from ..errors import ConfigError
from ..head.attached import attach_head, without_head
from ..head.packing import lay_out
from ..head.projection import VocabularyHead
from ..model.loading import check_same_vocabulary
from ..model.trials import has_adapter, text_config, without_adapter
from ..objectives import Objective
from .questions import Question


class Teacher(Protocol):
    """What the frozen original model is to the loss, wherever it lives."""

    head: VocabularyHead

    def ask(self, question: Question, batch: Mapping[str, torch.Tensor], tokens: GroupTokens) -> torch.Tensor:
        """The answers [n, ...] at ``tokens``, which are ``question.tokens(batch)``."""
        ...

    def gathered_head(self) -> contextlib.AbstractContextManager:
        """Within the context ``head``'s weights are whole on this rank."""
        ...


def is_loaded_apart(args: UnlearnConfig, model_args: ModelArguments) -> bool:
    """Whether the caller of ``UnlearnTrainer`` has to load the teacher, because the student cannot be copied."""
    objectives = args.registered("forget"), args.registered("retain")
    wanted = any(objective and objective.needs_teacher for objective in objectives)
    resident = args.teacher == "resident" or not model_args.use_peft
    return wanted and resident and is_deepspeed_zero3_enabled()


def make_teacher(
    model: PreTrainedModel,
    args: UnlearnConfig,
    objectives: Mapping[RowGroup, Objective | None],
    given: PreTrainedModel | None,
) -> "ResidentTeacher | AdapterTeacher | None":
    """The teacher of a training's objectives; ``None`` where none of them asks for one.

    Args:
        model: the student, before the first step.
        given: the teacher that the caller brought, if any.

    Raises:
        ConfigError: no adapter to switch off, another vocabulary, or a student that cannot be copied.
    """
    if not any(objective and objective.needs_teacher for objective in objectives.values()):
        return None
    is_adapted = has_adapter(model)
    is_trained = is_adapted and given is None and args.teacher != "resident" and adapter_changes(model)
    if args.teacher == "adapter" or (args.teacher == "auto" and given is None and is_adapted and not is_trained):
        if not is_adapted:
            raise ConfigError("--teacher adapter needs an adapter to switch off; add --use_peft")
        if is_trained:
            raise ConfigError(
                "--teacher adapter: the adapter has been trained before, so that the model without it is not the "
                "one at the start; choose --teacher resident, or merge the adapter first"
            )
        if any(parameter.requires_grad for parameter in model.get_output_embeddings().parameters()):
            raise ConfigError(
                "an adapter on the vocabulary head cannot be switched off for the teacher; leave the head out of the "
                "adapter's modules, or choose --teacher resident"
            )
        return AdapterTeacher(model)
    if given is not None:
        check_same_vocabulary(model, given)
        sizes = [text_config(each).hidden_size for each in (model, given)]
        if sizes[0] != sizes[1] and any(each and "teacher_hidden" in each.needs for each in objectives.values()):
            raise ConfigError(
                f"the teacher's states have {sizes[1]} numbers and the model's {sizes[0]}: they cannot be compared"
            )
        return ResidentTeacher(given)
    return ResidentTeacher(frozen_copy(model), is_copy=True)


@torch.no_grad()
def adapter_changes(model: PreTrainedModel) -> bool:
    """Whether ``model`` predicts otherwise with its adapter than without: a new one of most kinds changes nothing.

    It is tried on a few tokens. Where the weights are partitioned (ZeRO-3) no forward can be run yet, and the factor
    tells that is zero in a new LoRA adapter; of another kind it is taken for granted that it changes something.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        factors = ("lora_B", "lora_embedding_B")
        zero = [each for name, each in model.named_parameters() if any(factor in name for factor in factors)]
        return any(gather_object([not zero or any(held_part(each).any().item() for each in zero)]))
    vocabulary = text_config(model).vocab_size
    device = next(model.parameters()).device
    ids = (torch.arange(3, 19, device=device) * 7 % vocabulary)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with_adapter = model(**inputs).logits
        with without_adapter(model):
            plain = model(**inputs).logits
    finally:
        for module in training:
            module.training = True
    return not torch.equal(with_adapter, plain)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model`` for the teacher.

    Raises:
        ConfigError: the parameters are partitioned (ZeRO-3): such a model is loaded twice instead.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError(
            "under ZeRO-3 the teacher cannot be copied from the student; pass teacher= to UnlearnTrainer"
        )
    with without_head(model):
        return copy.deepcopy(model)


class ResidentTeacher:
    """A second model in memory, sharded where the student is.

    Args:
        model: the original model; it is frozen and put in eval mode.
        is_copy: nobody else has it, so that its body may be dropped.
    """

    def __init__(self, model: PreTrainedModel, is_copy: bool = False):
        self.is_copy = is_copy
        self.model = model.eval().requires_grad_(False)
        self.wrapped: nn.Module = model
        self.head: VocabularyHead = attach_head(model)

    def prepare(self, accelerator: Accelerator) -> None:
        """Hand the model to the engine; call it once, on every process."""
        self.wrapped = prepare_frozen(self.model, accelerator)

    @torch.no_grad()
    def ask(self, question: Question, batch: Mapping[str, torch.Tensor], tokens: GroupTokens) -> torch.Tensor:
        return _answers(self.wrapped, question, batch, tokens)

    @contextlib.contextmanager
    def gathered_head(self) -> Iterator[None]:
        """Within the context ``head``'s weights are whole on this rank."""
        with gathered(self.model, self.head.module):
            yield


class AdapterTeacher:
    """The student with its adapter switched off: no second copy.

    Args:
        model: a ``PeftModel`` whose base weights are frozen.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.head: VocabularyHead = attach_head(model)

    @torch.no_grad()
    def ask(self, question: Question, batch: Mapping[str, torch.Tensor], tokens: GroupTokens) -> torch.Tensor:
        training = self.model.training
        self.model.eval()
        with without_adapter(self.model):
            found = _answers(self.model, question, batch, tokens)
        self.model.train(training)
        return found

    @contextlib.contextmanager
    def gathered_head(self) -> Iterator[None]:
        """Nothing to gather: the head is the student's own, at hand while its forward runs."""
        yield


def _answers(
    model: nn.Module, question: Question, batch: Mapping[str, torch.Tensor], tokens: GroupTokens
) -> torch.Tensor:
    # A rank without rows of its own takes part in the forward all the same, or a sharded teacher would wait for it.
    rows = tokens.rows if len(tokens.rows) else torch.zeros(1, dtype=torch.long, device=tokens.rows.device)
    layout = lay_out(model, batch["input_ids"][rows], batch["attention_mask"][rows])
    return question.compute(model, layout.inputs, layout.positions(tokens.row_of, tokens.columns), tokens.targets)
