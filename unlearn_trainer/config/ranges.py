"""What a value of a flag may be at all: finite numbers of a size that exists, text that a file can hold."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from ..errors import ConfigError

# Beyond these a product of a few flags leaves the range of float32, or a count that of an index.
LARGEST = {int: 2**40, float: 1e12}
# Flags that may also be infinite, which turns off what they limit.
UNLIMITED = ("max_grad_norm", "max_retain_perplexity_ratio", "retain_weight_max")
STEPS, ROWS = (0, 2**40), (1, 2**20)
# Least and greatest value of flags whose use elsewhere would fail or hang.
RANGES: dict[str, tuple[float, float]] = {
    "max_steps": (-1, 2**40),
    "num_train_epochs": (-1e9, 1e9),  # above 0, as is said elsewhere
    "memorize_epochs": (-1e9, 1e9),
    "learning_rate": (0, 1e38),  # too high a rate is noticed by what it does, as a divergence
    "max_retain_perplexity_ratio": (-1.7e308, 1.7e308),  # above 0, as is said elsewhere
    "relearn_rate": (-1e300, 1e300),  # by default a multiple of the learning rate
    "memorize_learning_rate": (-1e38, 1e38),  # above 0, as is said elsewhere
    "audit_relearn_learning_rate": (-1e38, 1e38),
    "warmup_steps": STEPS,
    "logging_steps": STEPS,
    "eval_steps": STEPS,
    "save_steps": STEPS,
    "eval_delay": STEPS,
    "eval_accumulation_steps": ROWS,
    "torch_empty_cache_steps": (1, 2**40),
    "adam_beta1": (0, 1 - 2**-53),
    "adam_beta2": (0, 1 - 2**-53),
    "adam_epsilon": (0, 1e12),
    "neftune_noise_alpha": (0, 1e12),
    "dataloader_num_workers": (0, 1024),
    "dataloader_prefetch_factor": (1, 2**16),
    "ddp_timeout": (1, 10**9),
    "ddp_bucket_cap_mb": (1, 2**20),
    "lora_r": (-(2**40), 2**16),  # at least 1, as is said elsewhere
    "max_seq_length": (-(2**40), 2**30),
} | {
    name: (-(2**40), 2**20)
    for name in (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "audit_relearn_batch_size",
        "relearn_steps",
    )
}
# Flags whose text is neither a path nor a name.
OF_ANY_LENGTH = ("trainable_layers", "optim_args", "hub_token")
DEEPEST = 50  # objects within objects


def check_values(arguments: Any) -> None:
    """Refuse numbers that no run can use and text that no file system or report can hold.

    Args:
        arguments: a dataclass of flags.

    Raises:
        ConfigError: names the flag.
    """
    hints = get_type_hints(type(arguments))
    for item in dataclasses.fields(arguments):
        value = getattr(arguments, item.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(item.name, value, int if hints[item.name] in (int, int | None) else float)
        for text in _texts(item.name, value):
            _check_text(item.name, text, isinstance(value, dict) or str(value).startswith("{"))


def shown(value: Any) -> str:
    """A value for a message, with the middle of a long one left out."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"about {'-' * (value < 0)}1e{math.log10(abs(value)):.0f}"
    text = str(value)
    return text if len(text) <= 200 else f"{text[:80]} ... {text[-20:]} ({len(text)} characters)"


def with_short_words(message: str) -> str:
    """A message in which no single word fills the screen."""
    return re.sub(r"\S{200,}", lambda word: shown(word.group()), message)


def _check_number(name: str, value: float, kind: type) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"--{name} must be a number, not nan")
    if name in UNLIMITED and value == math.inf:
        return
    if name == "learning_rate" and not 0 <= value < math.inf:
        raise ConfigError(f"--{name} must be a finite number, not negative, not {value}")
    least, greatest = RANGES.get(name, (-LARGEST[kind], LARGEST[kind]))
    if not least <= value <= greatest:
        bounds = f"at most {greatest:g}" if value > greatest else f"at least {least:g}"
        if name in ("adam_beta1", "adam_beta2"):
            bounds = "at least 0 and below 1"
        raise ConfigError(f"--{name} must be {bounds}, not {shown(value)}")


def _texts(name: str, value: Any, depth: int = 0) -> Iterator[str]:
    if depth > DEEPEST:
        raise ConfigError(f"--{name}: objects lie within objects, more than {DEEPEST} deep")
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        inner = value if isinstance(value, list) else [*value, *value.values()]
        for part in inner:
            yield from _texts(name, part, depth + 1)


def _check_text(name: str, text: str, is_object: bool) -> None:
    if "\0" in text:
        raise ConfigError(f"--{name} holds the character of code 0, which no file name or report can; take it out")
    # Bytes of a file name that is not UTF-8 stand as \udc80 to \udcff.
    if re.search("[\ud800-\udc7f\udd00-\udfff]", text):
        raise ConfigError(f"--{name} holds half of a character (a surrogate), which no file can; take it out")
    if is_object or name in OF_ANY_LENGTH:
        return
    parts = [len(part.encode("utf-8", "surrogateescape")) for part in text.split("/")]
    if sum(parts) + len(parts) > 4096 or max(parts) > 255:
        raise ConfigError(f"--{name} {shown(text)} is too long for a name or a path: it cannot be made or read")
