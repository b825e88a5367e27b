"""What trials of a model share: how families differ is found out on the model itself, not looked up by name."""

import contextlib
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

# Row lengths from which on some layer, or the table behind some position, works differently.
_THRESHOLD_NAMES = re.compile(
    r"window|chunk|index_topk|block_size|local_att|original_max|floor|extent|max_distance|keep_window|compress_rates"
)
_COUNTS = re.compile(r"layers|pattern|num_|lm_head")


def thresholds(model: nn.Module) -> list[int]:
    """Row lengths from which on ``model`` may compute differently: of windows, chunks, and scaled positions."""
    found: set[int] = set()

    def collect(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(name if _is_threshold(name) else str(key), inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                collect(name, inner)
        elif isinstance(value, int) and not isinstance(value, bool) and _is_threshold(str(name)):
            found.add(value)

    for name, value in text_config(model).to_dict().items():
        collect(name, value)
    return sorted(value for value in found if value > 0)


def rounding_of(model: nn.Module) -> float:
    """How far, as a share, logits may be from the same logits computed in another order."""
    base = base_of(model)
    eps = torch.finfo(base.dtype).eps
    if base.device.type == "cuda" and base.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        eps = 2**-10
    return max(1e-5, 5 * eps)


def unwrapped(model: nn.Module) -> Any:
    """The model that was handed to an engine, which may have wrapped it."""
    return getattr(model, "module", model)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The language model itself, within an engine's wrapper and an adapter."""
    inner = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def has_adapter(model: nn.Module) -> bool:
    """Whether there is an adapter around ``model`` that can be switched off."""
    return hasattr(model, "disable_adapter")


def without_adapter(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Within the context the adapter around ``model`` is switched off."""
    return cast("PeftModel", model).disable_adapter()


def embedding_of(model: nn.Module) -> nn.Embedding:
    """The layer that makes token ids vectors."""
    return cast(nn.Embedding, base_of(model).get_input_embeddings())


def text_config(model: nn.Module) -> PretrainedConfig:
    """The configuration of the language model itself, or of that part of it where it reads pictures or sound too."""
    return base_of(model).config.get_text_config()


def made_without_values(config: PretrainedConfig) -> PreTrainedModel:
    """The causal language model of ``config``, whole on the device ``meta``."""
    # The class itself: AutoModelForCausalLM would partition the model where the run is configured for ZeRO-3.
    of_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        return of_class(config)


def nothing_besides(forward: Callable) -> dict[str, bool]:
    """Arguments for ``forward`` that keep it from computing what the model's configuration asks for besides logits.

    The balance of a router's choices, which nobody here reads, is taken over the attention mask, and fails where that
    is of more tokens than the forward, as beside a cache, or of rows that share a line.
    """
    return {"output_router_logits": False} if "output_router_logits" in inspect.signature(forward).parameters else {}


def sample_ids(model: nn.Module, length: int, start: int = 0) -> list[int]:
    """``length`` token ids for a trial, none of them special in most vocabularies."""
    config = text_config(model)
    special: set = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        special |= set(value) if isinstance(value, list | tuple) else {value}
    # From the middle: the first are often special, the last never trained and all alike.
    usable = [token for token in range(config.vocab_size // 3, config.vocab_size) if token not in special][:97] or [0]
    return [usable[(start + 7 * place) % len(usable)] for place in range(length)]


def _is_threshold(name: str) -> bool:
    return bool(_THRESHOLD_NAMES.search(name)) and not _COUNTS.search(name)
