"""Reads what the installed transformers knows of flags from its files: importing it takes seconds.

Only the first look at a command line (:mod:`.early`) goes by it; a test holds each flag against the class itself.
"""

import ast
import builtins
import functools
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

# What `--log_level` takes, which transformers puts together while it is imported.
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


@functools.cache
def parser_module() -> ModuleType:
    """The module of :class:`transformers.HfArgumentParser`; where transformers is not imported yet, without it."""
    if "transformers" in sys.modules:
        return importlib.import_module("transformers.hf_argparser")
    spec = importlib.util.spec_from_file_location(f"{__package__}.hf_argparser", _folder() / "hf_argparser.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def training_flags() -> type:
    """A dataclass with the fields of ``TrainingArguments``: names, types, defaults and help, and nothing else.

    Classes of other packages among the types are empty ones of the same name, which take any value.

    Raises:
        LookupError, OSError, SyntaxError: this release of transformers is written in a way that is not known here.
    """
    tree = _parsed("training_args.py")
    written = _named(tree, "TrainingArguments")
    assert isinstance(written, ast.ClassDef)
    # Fields, and constants that some have as their default. What stands under an `if` asks for a version of torch
    # that this package needs anyhow.
    body = [
        node
        for node in _statements(written.body)
        if isinstance(node, ast.AnnAssign) or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
    ]
    fields = ast.ClassDef(written.name, [], [], body, [])
    assigned = {name.id for name in ast.walk(fields) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    used = {name.id for name in ast.walk(fields) if isinstance(name, ast.Name)} - assigned - set(dir(builtins))
    names = {name: _found(tree, name) for name in used}
    exec(compile(ast.fix_missing_locations(ast.Module([fields], [])), "training_args.py", "exec"), names)
    return dataclass(names[written.name])


@functools.cache
def trackers() -> tuple[str, ...]:
    """The words that `--report_to` knows, installed or not."""
    node = _named(_parsed("integrations/integration_utils.py"), "INTEGRATION_TO_CALLBACK")
    return tuple(ast.literal_eval(key) for key in node.value.keys)


def _folder() -> Path:
    spec = importlib.util.find_spec("transformers")  # of a package on the first level: imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise LookupError("transformers is not installed as a folder of files")
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _parsed(file: str) -> ast.Module:
    return ast.parse((_folder() / file).read_text(encoding="utf-8"))


def _statements(body):
    """The statements of a body and of the `if`s in it."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements(node.body)


def _named(tree: ast.Module, name: str) -> Any:
    """The statement that defines or imports a name.

    Raises:
        LookupError: there is none.
    """
    for node in _statements(tree.body):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return node
    raise LookupError(f"{name} is not defined")


def _found(tree: ast.Module, name: str) -> Any:
    """What a name in a file stands for: of the standard library itself, else an enumeration or an empty class."""
    if name == "trainer_log_levels":
        return dict.fromkeys(LOG_LEVELS)
    node = _named(tree, name)
    if isinstance(node, ast.ImportFrom) and node.level == 1:
        node = _named(_parsed((node.module or "__init__").replace(".", "/") + ".py"), name)
    if isinstance(node, ast.ImportFrom):
        if node.level == 0 and (node.module or "").partition(".")[0] in sys.stdlib_module_names:
            return getattr(importlib.import_module(node.module), name)
        return type(name, (), {"__init__": lambda self, *values: None})
    if not isinstance(node, ast.ClassDef):
        raise LookupError(f"{name} is no class")
    members = [
        (item.targets[0].id, ast.literal_eval(item.value))
        for item in node.body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name)
    ]
    return Enum(name, members, type=str)
