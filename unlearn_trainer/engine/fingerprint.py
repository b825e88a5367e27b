"""What tells a model from any other: its settings, and a digest of every byte of its weights."""

import json
from collections.abc import Iterator

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedModel

from .engines import whole

CHUNK = 2**26  # bytes that are read at a time
# Settings of a configuration that a run or a release of transformers changes, and that change no figure.
NOT_OF_THE_MODEL = (
    *("transformers_version", "_name_or_path", "use_cache", "dtype", "torch_dtype", "architectures"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """The types of a model's weights, a digest of its settings, and one of every byte of its weights.

    Call it on every process, before an engine has the model or after.
    """
    settings = model.config.to_diff_dict()
    kept = {name: value for name, value in settings.items() if name not in NOT_OF_THE_MODEL}
    kept["attention"] = model.config._attn_implementation
    digest, types = xxhash.xxh3_128(), set()
    tensors = dict(_weights(model))
    for name, tensor in tensors.items():
        if _is_unused_half(name, tensors):
            continue
        with whole(tensor) as values:
            # Where weights are loaded by one process for all, the others have none yet.
            if PartialState().is_main_process:
                types.add(str(values.dtype).removeprefix("torch."))
                digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
                for part in values.detach().contiguous().reshape(-1).view(torch.uint8).split(CHUNK):
                    # Copied, as storage that NumPy has seen can no longer be resized, which FSDP2 does.
                    digest.update(part.to("cpu", copy=True).numpy())
    found = {
        "types of the weights": " ".join(sorted(types)),
        "model settings": xxhash.xxh3_128_hexdigest(json.dumps(kept, sort_keys=True, default=str).encode()),
        "start weights": digest.hexdigest(),
    }
    (found,) = broadcast_object_list([found])
    return found


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, each once, and the buffers that are saved with them, in the model's order."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        for buffer, values in module.named_buffers(name, recurse=False):
            if buffer.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield buffer, values


def _is_unused_half(name: str, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a tensor is the random half of a LoRA pair that adds nothing yet: a checkpoint brings its own."""
    for half, other in (("lora_A", "lora_B"), ("lora_embedding_B", "lora_embedding_A")):
        partner = tensors.get(name.replace(f".{half}.", f".{other}."))
        if f".{half}." in name and partner is not None:
            with whole(partner) as values:
                return not (values.is_meta or values.any())
    return False
