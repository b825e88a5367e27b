"""What differs between plain processes, DeepSpeed ZeRO and FSDP2, and nothing else."""

import contextlib
import contextvars
import copy
import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, TrainingArguments

from ..errors import ConfigError

logger = logging.getLogger(__name__)
Arguments = TypeVar("Arguments", bound=TrainingArguments)
_COPYING = contextvars.ContextVar("copying", default=False)


def check_engine(accelerator: Accelerator) -> None:
    """Refuse settings under which a run would end without a model that can be loaded.

    Raises:
        ConfigError: FSDP of the first version, or weights that would not be gathered when the model is saved.
    """
    if accelerator.distributed_type == DistributedType.FSDP or accelerator.is_fsdp2:
        if not accelerator.is_fsdp2:
            raise ConfigError("FSDP of the first version is not supported; set fsdp_version: 2")
        kind = accelerator.state.fsdp_plugin.state_dict_type.name
        if kind != "FULL_STATE_DICT":
            raise ConfigError(f"fsdp_state_dict_type {kind} saves no ordinary model; set FULL_STATE_DICT")
    if is_zero3(accelerator):
        key = "stage3_gather_16bit_weights_on_model_save"
        if not accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"].get(key):
            raise ConfigError(f"this DeepSpeed file saves no ordinary model; set zero_optimization.{key}: true")


def check_processes(world_size: int) -> None:
    """Refuse to be one of several runs where a launcher meant several processes of one.

    Without a GPU, ``accelerate launch --multi_gpu`` starts the processes that it was asked for, and each takes itself
    for the only one; without ``--multi_gpu`` it starts a single one and says nothing, which a warning makes good.

    Args:
        world_size: processes that this one knows of.

    Raises:
        ConfigError: the launcher has started more.
    """
    started = os.environ.get("WORLD_SIZE", "1")
    if started.isdigit() and int(started) > world_size:
        raise ConfigError(
            f"the launcher started {started} processes, which are not connected (there is no GPU for each): add "
            "--use_cpu to let them work together on the CPU, or start a single process"
        )
    # It leaves the first to a process that it starts alone, and the second only where more than one was asked for.
    if world_size == 1 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys():
        logger.warning(
            "accelerate launch was asked for several processes and has started this one alone, because there is no "
            "GPU for each: the batch is that of one process. For several on the CPU start `accelerate launch "
            "--multi_gpu --num_processes N` or `torchrun --nproc_per_node N`, and give the run --use_cpu; for one "
            "leave --num_processes out"
        )


def engine_of_its_own(args: Arguments, **changes: Any) -> Arguments:
    """A copy of ``args`` with ``changes``, for one trainer of several in a process; it is now the one in force.

    DeepSpeed's settings (what is ``auto`` in them, and whether models are loaded in parts) are made anew: a trainer
    fills them in for itself, and models are loaded as the latest say. What is doubtful in the settings was said when
    they were given, and is not said again (:func:`is_copying`). What was left open is open to the changes.
    """
    with copying():
        return dataclasses.replace(args, **(getattr(args, "asked", {}) | changes))


@contextlib.contextmanager
def copying() -> Iterator[None]:
    """Within the context arguments are made out of others, and not given by a user."""
    token = _COPYING.set(True)
    try:
        yield
    finally:
        _COPYING.reset(token)


def is_copying() -> bool:
    """Whether arguments are being made out of others (:func:`copying`)."""
    return _COPYING.get()


def prepare_frozen(model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """``model`` frozen and ready for forwards under the engine at hand; returns what to call.

    ZeRO-3 and FSDP2 shard it as they shard the student. Elsewhere it is a plain module on the device, in the type the
    engine computes in.
    """
    model.eval().requires_grad_(False)
    if _computes_in_bfloat16_without_autocast(accelerator) and not is_zero3(accelerator):
        model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers' decorator hides that it is bound
    return _handed_over(model, accelerator)


@contextlib.contextmanager
def ready_to_measure(model: PreTrainedModel, accelerator: Accelerator):
    """Within the context ``model``, which no engine has trained, can be called on every process; yields what to call.

    It stays as it was otherwise, so that it can still be trained afterwards.
    """
    called = _handed_over(model, accelerator)
    plain = called is model and _computes_in_bfloat16_without_autocast(accelerator)
    with torch.autocast(accelerator.device.type, torch.bfloat16) if plain else contextlib.nullcontext():
        yield called
    if called is not model:
        called.destroy()


def check_not_measured_yet(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse to begin a training with a model that FSDP2 sharded for a measurement.

    Raises:
        ConfigError: an optimizer made now would not be saved and resumed right.
    """
    if isinstance(model, FSDPModule) and optimizer is None:
        raise ConfigError("under FSDP2 a trainer that has evaluated can no longer train; make another UnlearnTrainer")


def _computes_in_bfloat16_without_autocast(accelerator):
    return accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision == "bf16"


def _handed_over(model, accelerator):
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
    return model.to(accelerator.device)


def is_zero3(accelerator: Accelerator) -> bool:
    """Whether parameters are partitioned by DeepSpeed."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    return accelerator.state.deepspeed_plugin.zero_stage == 3


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of every model only."""
    return is_zero3(accelerator) or accelerator.is_fsdp2


def start_deepspeed_on_cpu() -> None:
    """Let DeepSpeed's processes meet over gloo; without a GPU it must be told so before a model is built."""
    if "RANK" in os.environ and not torch.cuda.is_available():
        import deepspeed

        deepspeed.comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def held_part(parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter that ZeRO-3 or FSDP2 may have sharded."""
    parameter = getattr(parameter, "ds_tensor", parameter)
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


@contextlib.contextmanager
def gathered(model: nn.Module, module: nn.Module):
    """Within the context the weights of ``module``, a part of the frozen ``model``'s root, are whole on this rank."""
    parameters = list(module.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
    elif isinstance(model, FSDPModule):
        # The part may be sharded on its own or together with what is left of the root.
        sharded = [each for each in (model, module) if isinstance(each, FSDPModule)]
        for each in sharded:
            each.unshard()
        try:
            yield
        finally:
            for each in sharded:
                each.reshard()
    else:
        yield


@contextlib.contextmanager
def whole(weights: torch.Tensor):
    """Within the context yields all values of a parameter that ZeRO-3 or FSDP2 may have sharded; on every process."""
    if hasattr(weights, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weights]):
            yield weights
    else:
        yield weights.full_tensor() if hasattr(weights, "full_tensor") else weights


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
