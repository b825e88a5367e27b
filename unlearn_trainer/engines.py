"""What differs between plain processes, DeepSpeed ZeRO and FSDP2, and nothing else."""

import contextlib
import copy
import os
import sys
import traceback

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


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


def start_deepspeed_on_cpu() -> None:
    """Let DeepSpeed's processes meet over gloo; without a GPU it must be told so before a model is built."""
    if "RANK" in os.environ and not torch.cuda.is_available():
        import deepspeed

        deepspeed.comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


@contextlib.contextmanager
def gathered(model: nn.Module, module: nn.Module):
    """Within the context the weights of ``module``, a part of the frozen ``model``'s root, are whole on this rank."""
    parameters = list(module.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
    elif isinstance(model, FSDPModule):
        model.unshard()
        try:
            yield
        finally:
            model.reshard()
    else:
        yield


def leave_process_group(code: int) -> None:
    """End the process group; after a failure (``code`` not 0) the process too, so that the launcher ends the others.

    A rank that fails alone must not wait, at its exit, for collectives that the others have not reached.
    """
    if not dist.is_initialized():
        return
    if code and dist.get_world_size() > 1:
        error = sys.exc_info()[1]
        if error is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    dist.destroy_process_group()
