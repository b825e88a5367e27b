"""The frozen original model that teaches on the retain rows."""

import contextlib
import copy
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from .arguments import ModelArguments, UnlearnConfig
from .engines import gathered, prepare_frozen
from .errors import ConfigError
from .lm_head import attach_head
from .objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, Objective
from .packing import lay_out
from .vocabulary_head import VocabularyHead


def is_loaded_apart(args: UnlearnConfig, model_args: ModelArguments) -> bool:
    """Whether the caller of ``UnlearnTrainer`` has to load the teacher, because the student cannot be copied."""
    objectives = FORGET_OBJECTIVES.get(args.forget_objective), RETAIN_OBJECTIVES.get(args.retain_objective)
    wanted = any(objective and objective.needs_teacher for objective in objectives)
    resident = args.teacher == "resident" or not model_args.use_peft
    return wanted and resident and is_deepspeed_zero3_enabled()


def make_teacher(
    model: nn.Module,
    args: UnlearnConfig,
    objectives: Mapping[str, Objective | None],
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
    has_adapter = hasattr(model, "disable_adapter")
    if args.teacher == "adapter" or (args.teacher == "auto" and given is None and has_adapter):
        if not has_adapter:
            raise ConfigError("--teacher adapter needs an adapter to switch off; add --use_peft")
        return AdapterTeacher(model)
    if given is not None and given.config.vocab_size != model.config.vocab_size:
        raise ConfigError(
            f"the teacher's vocabulary has {given.config.vocab_size} entries, the student's "
            f"{model.config.vocab_size}: KL needs the same tokenizer on both"
        )
    if given is not None:
        return ResidentTeacher(given)
    return ResidentTeacher(frozen_copy(model), is_copy=True)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model`` for the teacher.

    Raises:
        ConfigError: the parameters are partitioned (ZeRO-3): such a model is loaded twice instead.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError(
            "under ZeRO-3 the teacher cannot be copied from the student; pass teacher= to UnlearnTrainer"
        )
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
    def hidden(self, batch: Mapping, rows: torch.Tensor, row_of: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Final hidden states [n, d] of tokens in the ``rows`` [R] of a batch.

        Args:
            row_of, columns: [n] index into ``rows`` and column of each token.
        """
        return _hidden(self.wrapped, batch, rows, row_of, columns)

    @contextlib.contextmanager
    def gathered_head(self):
        """Within the context ``head``'s weights are whole on this rank."""
        with gathered(self.model, self.head.module):
            yield


class AdapterTeacher:
    """The student with its adapter switched off: no second copy.

    Args:
        model: a ``PeftModel`` whose base weights are frozen.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.head: VocabularyHead = attach_head(model.get_base_model())

    @torch.no_grad()
    def hidden(self, batch: Mapping, rows: torch.Tensor, row_of: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Final hidden states [n, d] of tokens in the ``rows`` [R] of a batch.

        Args:
            row_of, columns: [n] index into ``rows`` and column of each token.
        """
        training = self.model.training
        self.model.eval()
        with self.model.disable_adapter():
            found = _hidden(self.model, batch, rows, row_of, columns)
        self.model.train(training)
        return found

    @contextlib.contextmanager
    def gathered_head(self):
        """Nothing to gather: the head is the student's own, at hand while its forward runs."""
        yield


def _hidden(model, batch, rows, row_of, columns):
    # A rank without rows of its own takes part in the forward all the same, or a sharded teacher would wait for it.
    rows = rows if len(rows) else torch.zeros(1, dtype=torch.long, device=rows.device)
    layout = lay_out(model, batch["input_ids"][rows], batch["attention_mask"][rows])
    return model(**layout.inputs, positions=layout.positions(row_of, columns))["hidden"]
