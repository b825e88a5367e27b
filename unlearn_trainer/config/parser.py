"""The command line: defaults, then a JSON file or preset, then flags; a misspelling names the nearest right word."""

import functools
import json
import re
import sys
import types
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError, UnlearnError, did_you_mean
from .arguments import (
    AuditArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
    ObjectiveArguments,
    StageArguments,
    WeightArguments,
)
from .installed import parser_module, trackers
from .known_objectives import objective_choices
from .ranges import shown, with_short_words

if TYPE_CHECKING:
    from .unlearn_config import UnlearnConfig

PRESETS = Path(__file__).parent / "presets"


class _EachFlagOnce(ArgumentDefaultsHelpFormatter):
    """Help without the second spelling of a flag, with hyphens."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.option_strings[0] == "-h":
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        if action.nargs == 0:
            return name
        return f"{name} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class _Flags:
    """Sorts the flags into groups for `--help`, and raises `ConfigError` instead of ending the process."""

    def __init__(self, classes: tuple[type, ...]):
        self._group_of: dict[str, Any] = {}
        self._of_training = classes[2]
        super().__init__(
            classes,
            formatter_class=_EachFlagOnce,
            prog=called_as(),
            usage=f"{called_as()} [PRESET or JSON FILE] [--flag value ...]",
            description=f"Presets: {', '.join(_presets())}. Flags override the file, the file overrides the defaults. "
            "Other commands, each with --help: unlearn-trainer prepare, audit, card, dispose.",
            allow_abbrev=False,
        )

    def _make_groups(self) -> None:
        for title, dtype in (
            ("model", ModelArguments),
            ("data", DataArguments),
            ("stages", StageArguments),
            ("audit", AuditArguments),
            ("objective", ObjectiveArguments),
            ("options of objectives", MethodArguments),
            ("language weights", WeightArguments),
            ("training (transformers)", self._of_training),
        ):
            group = self.add_argument_group(title)
            self._group_of = {item.name: group for item in fields(dtype)} | self._group_of
        for name in ("do_train", "do_eval", "do_predict"):
            self._group_of[name] = self._group_of["audit"]
        self._group_of["language_sampling"] = self._group_of["languages"]

    def add_argument(self, *names, **kwargs):
        if not self._group_of:
            self._make_groups()
        name = kwargs.get("dest", names[0].lstrip("-"))
        if kwargs.get("action") == "store_false":  # --no_x, which is --x false
            kwargs["help"] = SUPPRESS
        # Also booleans whose default is None work without a value.
        if kwargs.get("type") is parser_module().string_to_bool:
            kwargs |= {"nargs": "?", "const": True}
        if name in (choices := objective_choices()):
            kwargs["metavar"] = "{" + ",".join(choices[name]) + "}"
        return self._group_of.get(name, super()).add_argument(*names, **kwargs)

    def error(self, message: str):
        raise ConfigError(with_short_words(message))


@functools.cache
def _parser_class() -> type:
    return type("_Parser", (_Flags, parser_module().HfArgumentParser), {})


def _classes() -> tuple[type[ModelArguments], type[DataArguments], type["UnlearnConfig"]]:
    from .unlearn_config import UnlearnConfig  # here, because it takes seconds

    return ModelArguments, DataArguments, UnlearnConfig


def __getattr__(name: str):
    if name == "PARSED":  # the classes of every flag
        return _classes()
    raise AttributeError(f"module {__name__} has no attribute {name}")


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[ModelArguments, DataArguments, "UnlearnConfig"]:
    """Reads a command line such as `flores --learning_rate 1e-4`.

    Args:
        argv: words after the program's name, by default those of this process. The first one that is neither a flag
            nor a flag's value is a JSON file or a preset; a launcher's `--local_rank` may stand anywhere.

    Returns:
        Checked arguments. Without an `output_dir` results go to `outputs/<name of the preset or file>`.

    Raises:
        ConfigError: an unknown flag or key, a wrong type or value, a combination without meaning, a file that cannot
            be read; names the file and the flag or key.
    """
    model, data, config = CommandLine(argv, _classes()).checked()
    return model, data, config


class CommandLine:
    """A command line that has been read: each flag is known, each value of its type, and the file there is valid.

    Args:
        argv: as for :func:`parse_arguments`.
        classes: dataclasses of the flags of model, data and training, the last one those of transformers too.

    Raises:
        ConfigError: as :func:`parse_arguments`, for what can be told without making the classes' objects.
    """

    def __init__(self, argv: Sequence[str] | None, classes: tuple[type, type, type]):
        parser = _parser_class()(classes)
        _, words = parser.parse_known_args(argv)
        hints = {name: hint for dtype in classes for name, hint in get_type_hints(dtype).items()}
        names = [item.name for dtype in classes for item in fields(dtype)]
        for flag in words:
            if flag.startswith("-"):
                name = flag.lstrip("-").partition("=")[0].replace("-", "_")
                raise ConfigError(f"unknown flag {flag}{did_you_mean(name, names).replace('mean ', 'mean --')}")
        if len(words) > 1:
            raise ConfigError(
                f"unexpected word {words[1]} on the command line: only one preset or JSON file can be given"
                f"{_joined_by_commas(words[1])}"
            )
        self._parser, self._file = parser, _find_file(words[0]) if words else None
        self._settings = _read_json(self._file, {name: hints[name] for name in names}) if self._file else {}
        self._values, _ = parser.parse_known_args(argv, Namespace(**self._settings))
        if self._values.output_dir is None:
            if self._file is None and not self._values.estimate_memory:
                raise ConfigError(
                    "no place for the results: give --output_dir, or a preset or JSON file to name it after"
                )
            self._values.output_dir = f"outputs/{self._file.stem if self._file else 'estimate'}"

    def checked(self) -> tuple:
        """The objects of the classes, which refuse what they cannot use; an error names the file that said so."""
        try:
            model, data, config = self._parser.parse_dict(vars(self._values))
            if not config.estimate_memory:
                data.check_named()
        except UnlearnError as error:
            # `in` finds a NaN too, which equals nothing
            of_file = [key for key, value in self._settings.items() if value in (getattr(self._values, key),)]
            if any(re.search(rf"--{key}\b", str(error)) for key in of_file):
                raise type(error)(f"{self._file}: {error}") from error
            raise
        except ValueError as error:  # what TrainingArguments refuses
            raise ConfigError(str(error)) from error
        if config.teacher == "adapter" and not model.use_peft:
            raise ConfigError("--teacher adapter switches a LoRA adapter off to get the teacher: it needs --use_peft")
        return model, data, config


def called_as() -> str:
    """The command as it was given: the installed one, `python -m` and a module's name, or the script."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module.name.removesuffix(".__main__") if module else ""
    if name.partition(".")[0] in ("run_unlearn", "unlearn_trainer"):
        return f"python -m {name}"
    program = Path(sys.argv[0]).name
    return program.removesuffix(".exe") if program.startswith("unlearn-trainer") else "run_unlearn.py"


def free_words(argv: Sequence[str], classes: tuple[type, type, type] | None = None) -> list[str]:
    """The words of a command line that are neither flags nor values of flags, unknown flags left out.

    Args:
        argv: words after the program's name.
        classes: as for :class:`CommandLine`; by default those of a run.
    """
    parser = _parser_class()(classes or _classes())
    return [word for word in parser.parse_known_args(argv)[1] if not word.startswith("-")]


def _presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def _find_file(word: str) -> Path:
    if word in _presets():
        return PRESETS / f"{word}.json"
    if not Path(word).is_file():
        raise ConfigError(
            f"{word} is neither a JSON file nor one of the presets {', '.join(_presets())}"
            f"{did_you_mean(word, _presets())}{_joined_by_commas(word)}"
        )
    return Path(word)


def _joined_by_commas(word: str) -> str:
    """A hint for a second tracker behind `--report_to`, which takes one word."""
    return "; join trackers with commas: --report_to tensorboard,wandb" if word in trackers() else ""


def _read_json(file: Path, hints: dict[str, Any]) -> dict[str, Any]:
    def each_once(pairs):
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in values if names.count(name) > 1)
            raise ConfigError(f"{file}: the key {twice!r} occurs twice; keep one of them")
        return values

    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=each_once)
    except RecursionError as error:
        raise ConfigError(f"{file}: lists or objects lie within one another, thousands deep") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}:{error.lineno}: broken JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    except ConfigError:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise ConfigError(f"{file}: {shown(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold one object, {{...}}, with a key for each flag")
    hints = hints | {"forget_target": float | str}  # declared as text only because a flag's value is text
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{file}: unknown key {key!r}{did_you_mean(key, hints)}")
        if not _fits(value, hints[key]):
            raise ConfigError(f"{file}: {key!r} must be {_describe(hints[key])}, not {_written(value)}")
    return values


def _written(value: Any) -> str:
    try:
        return shown(json.dumps(value))
    except RecursionError:
        return "what lies hundreds deep"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON may stand for a field of this type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(element, inner[0]) for element in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_describe, inner)))
    if origin is Literal:
        return " or ".join(map(json.dumps, inner))
    if origin is list:
        return "a list"
    words = {bool: "true or false", int: "a whole number", float: "a number", dict: "an object", type(None): "null"}
    return words.get(origin or hint, "a string")
