"""Which objectives there are, and their options as flags.

Where the registries are loaded they are asked, and whatever a plugin has put there counts. Loading them takes torch,
and seconds; until then the objectives of the package are known by the signatures in their files.
"""

import ast
import dataclasses
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

_PACKAGE = f"{__package__.rpartition('.')[0]}.objectives"
_FOLDER = Path(__file__).parents[1] / "objectives"


@dataclasses.dataclass(frozen=True)
class Option:
    """A keyword-only parameter of an objective, as the flag ``<objective>_<parameter>``."""

    name: str
    objective: str
    default: Any
    help: str
    # Each has `allows(value)`, and is in words what it allows.
    bounds: tuple


def are_loaded() -> bool:
    """Whether the registries are in memory, and with them what a plugin may have added."""
    return _PACKAGE in sys.modules


def objective_choices() -> dict[str, list[str]]:
    """What may follow `--method`, `--forget_objective` and `--retain_objective`, all that is registered by now."""
    if are_loaded():
        from ..objectives import FORGET_OBJECTIVES, METHODS, RETAIN_OBJECTIVES

        return {
            "method": list(METHODS),
            "forget_objective": ["none", *FORGET_OBJECTIVES],
            "retain_objective": ["none", *RETAIN_OBJECTIVES],
        }
    methods, forget, retain = _written()
    return {"method": methods, "forget_objective": ["none", *forget], "retain_objective": ["none", *retain]}


def objective_options() -> list[Option]:
    """The options of all objectives that are registered by now; each name once."""
    if are_loaded():
        from ..objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES

        parts = [
            (objective.name, [objective.function, objective.reduction])
            for objective in (*FORGET_OBJECTIVES.values(), *RETAIN_OBJECTIVES.values())
        ]
    else:
        _, forget, retain = _written()
        parts = [*forget.items(), *retain.items()]
    found = {option.name: option for name, functions in parts for option in _options(name, functions)}
    return list(found.values())


def _options(objective: str, functions: list[Callable | None]) -> Iterator[Option]:
    told = " ".join((inspect.getdoc(getattr(functions[0], "func", functions[0])) or "").split())
    for function in filter(None, functions):
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            notes = get_args(parameter.annotation)[1:]
            bounds = tuple(note for note in notes if hasattr(note, "allows"))
            text = next((note for note in notes if isinstance(note, str)), None)
            text = text or textwrap.shorten(told or "see where it is registered", 120, placeholder=" ...")
            text = "; ".join([f"{objective}: {text.strip().rstrip('.')}", *map(str, bounds)])
            yield Option(
                f"{objective}_{parameter.name}", objective, parameter.default, text.replace("%", "%%"), bounds
            )


@functools.cache
def _written() -> tuple[list[str], dict[str, list], dict[str, list]]:
    """Methods, forget and retain objectives as they stand in the files.

    An objective is its function and its reduction, or ``None``, with signature and docstring and without a body.
    """
    names: dict[str, Any] = {"Annotated": Annotated, "dataclasses": dataclasses}
    bounds = [
        node
        for node in _parsed("base.py")
        if (isinstance(node, ast.ClassDef) and node.name == "AtLeast")
        or (isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Annotated["))
    ]
    exec(compile(ast.Module(bounds, []), "base.py", "exec"), names)
    methods = _assigned(_parsed("__init__.py"), "METHODS")
    assert isinstance(methods, ast.Dict)
    registries = (_registry(f"{side}.py", f"{side.upper()}_OBJECTIVES", names) for side in ("forget", "retain"))
    return ([ast.literal_eval(key) for key in methods.keys if key], *registries)


def _registry(file: str, registry: str, names: dict[str, Any]) -> dict[str, list]:
    body = _parsed(file)
    functions = [_without_body(node) for node in body if isinstance(node, ast.FunctionDef)]
    module = ast.fix_missing_locations(ast.Module(functions, []))
    of_file = dict(names)
    exec(compile(module, file, "exec"), of_file)
    found = {}
    for call in ast.walk(_assigned(body, registry)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Objective":
            reduction = next((word.value for word in call.keywords if word.arg == "reduction"), None)
            reduction = call.args[4] if len(call.args) > 4 else reduction
            parts = [call.args[1], reduction] if reduction is not None else [call.args[1]]
            found[ast.literal_eval(call.args[0])] = [of_file[ast.unparse(part)] for part in parts]
    return found


def _without_body(function: ast.FunctionDef) -> ast.FunctionDef:
    """Signature and docstring; of the annotations those of the options alone, as the others take torch."""
    for argument in (*function.args.posonlyargs, *function.args.args):
        argument.annotation = None
    function.returns, function.decorator_list = None, []
    function.body = [ast.Expr(ast.Constant(ast.get_docstring(function) or ""))]
    return function


def _parsed(file: str) -> list[ast.stmt]:
    return ast.parse((_FOLDER / file).read_text(encoding="utf-8")).body


def _assigned(body: list[ast.stmt], name: str) -> ast.expr:
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value  # type: ignore[attr-defined]
    raise LookupError(f"{name} is not assigned")
