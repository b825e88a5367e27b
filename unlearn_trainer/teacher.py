"""The frozen original model that teaches on the retain rows."""

import contextlib
import copy

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from .engines import gathered, prepare_frozen
from .errors import ConfigError
from .lm_head import VocabularyHead, attach_head


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
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model.eval().requires_grad_(False)
        self.wrapped: nn.Module = model
        self.head: VocabularyHead = attach_head(model)

    def prepare(self, accelerator: Accelerator) -> None:
        """Hand the model to the engine; call it once, on every process."""
        self.wrapped = prepare_frozen(self.model, accelerator)

    @torch.no_grad()
    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Final hidden states [positions, d] at flat ``positions`` of a [rows, length] batch."""
        return self.wrapped(input_ids=input_ids, attention_mask=attention_mask, positions=positions)["hidden"]

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
    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Final hidden states [positions, d] at flat ``positions`` of a [rows, length] batch."""
        training = self.model.training
        self.model.eval()
        with self.model.disable_adapter():
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, positions=positions)
        self.model.train(training)
        return found["hidden"]

    @contextlib.contextmanager
    def gathered_head(self):
        """Nothing to gather: the head is the student's own, at hand while its forward runs."""
        yield
