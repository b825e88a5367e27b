"""The frozen original model that teaches on the retain rows."""

import contextlib
import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

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


def prepare_frozen(model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """``model`` ready for forwards without gradients under the engine at hand; returns what to call.

    ZeRO-3 and FSDP2 shard it as they shard the student. Elsewhere it is a plain module on the device, in the type the
    engine computes in.
    """
    model.eval().requires_grad_(False)
    if is_zero3(accelerator):
        import deepspeed

        settings = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
        # An engine without an optimizer: only the settings of the parameters' partition matter.
        for unused in ("optimizer", "scheduler"):
            settings.pop(unused, None)
        settings["zero_optimization"].pop("offload_optimizer", None)
        engine, *_ = deepspeed.initialize(model=model, config=settings)
        engine.eval()
        return engine
    if accelerator.is_fsdp2:
        return fsdp2_prepare_model(accelerator, model).eval()
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision == "bf16":
        model.to(torch.bfloat16)
    return model.to(accelerator.device)


def is_zero3(accelerator: Accelerator) -> bool:
    """Whether parameters are partitioned by DeepSpeed."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    return accelerator.state.deepspeed_plugin.zero_stage == 3


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
        parameters = list(self.head.module.parameters())
        if any(hasattr(parameter, "ds_id") for parameter in parameters):
            import deepspeed

            with deepspeed.zero.GatheredParameters(parameters):
                yield
        elif isinstance(self.model, FSDPModule):
            # The head belongs to the root's group of parameters.
            self.model.unshard()
            try:
                yield
            finally:
                self.model.reshard()
        else:
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
