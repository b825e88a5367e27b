"""How a flag is declared, and how its value is refused in one line."""

from dataclasses import field, fields
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError, did_you_mean
from .ranges import with_short_words


def flag(default, help: str):
    return field(default=default, metadata={"help": help})


def split_commas(values: list[str] | None) -> list[str] | None:
    """`["en,fr", "sw"]` -> `["en", "fr", "sw"]`."""
    return values and [part.strip() for value in values for part in value.split(",") if part.strip()]


def require(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise ConfigError(with_short_words(message))


def check_choice(arguments: object, name: str, choices: list) -> None:
    value = getattr(arguments, name)
    require(
        value in choices,
        f"--{name} {value} is not one of {', '.join(map(str, choices))}{did_you_mean(str(value), map(str, choices))}",
    )


def check_literals(arguments: object) -> None:
    """Refuse a misspelled value of any field whose type lists its values; Python checks none of them."""
    hints = get_type_hints(type(arguments))
    for item in fields(arguments):
        hint = hints[item.name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if all(part is type(None) or get_origin(part) is Literal for part in parts):
            listed = [value for part in parts for value in (get_args(part) or (None,))]
            check_choice(arguments, item.name, listed)
