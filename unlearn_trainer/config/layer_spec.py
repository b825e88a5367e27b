"""A value of `--trainable_layers`: which blocks of a model are trained."""

import re

from ..errors import ConfigError
from .ranges import shown

FLAG = "--trainable_layers"


_NUMBERS = re.compile(r"\s*\d+\s*(-\s*\d+\s*)?(,\s*\d+\s*(-\s*\d+\s*)?)*")


def parse_layers(spec: str) -> list[range] | re.Pattern:
    """A value of `--trainable_layers`: ranges of block numbers such as `0,3,8-14`, or else a regular expression.

    Raises:
        ConfigError: it is empty, an empty range, or a broken regular expression.
    """
    if not spec.strip():
        raise ConfigError(f"{FLAG} is empty; give layers such as 8-14, or leave it out to train all weights")
    if not _NUMBERS.fullmatch(spec):
        try:
            return re.compile(spec)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"{FLAG} {shown(spec)} is neither layer numbers such as 0,3,8-14 nor a regular expression: "
                f"{shown(error)}"
            ) from error
    if re.search(r"\d{7}", spec):
        raise ConfigError(f"{FLAG} {shown(spec)}: no model has a layer of so many digits")
    ranges = []
    for part in spec.split(","):
        first, _, last = part.partition("-")
        ranges.append(range(int(first), int(last or first) + 1))
        if not ranges[-1]:
            raise ConfigError(f"{FLAG} {spec}: {part.strip()} is empty; put the smaller number first")
    return ranges
