"""The layout of the package holds: imports go down one way between folders, and no module grows beyond reading."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "unlearn_trainer"
# From the ground up: a folder, or a module that lies in none, imports from the floors below its own, and never up.
FLOORS = (
    "errors early_stop",
    "engine files objectives weights",
    "config console data report",
    "model",
    "head",
    "evaluation teacher",
    "step training",
    "memory trainer",
    "prepare runs",
    "audit",
    "cli commands",
    "__main__",
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.parent.name != "modules")


def place(path):
    """The folder or module of the first level that ``path`` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Dotted names in the package that a module imports, inside its functions too."""
    own = ["unlearn_trainer", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = own[: -node.level] if node.level else []
            origin = [*base, *(node.module or "").split(".")] if node.module else base
            if len(origin) > 1:
                yield origin
            else:
                yield from ([*origin, alias.name] for alias in node.names)


def arrows():
    """Pairs of first-level names (importer, imported)."""
    pairs = {(place(path), names[1]) for path in MODULES for names in imported(path) if names[0] == "unlearn_trainer"}
    return {(importer, target) for importer, target in pairs if importer != target and importer != "__init__"}


def test_imports_go_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
    places = {place(path) for path in MODULES} - {"__init__"}
    assert places == set(floor), "a folder has no floor, or a floor no folder"
    assert not [f"{importer} -> {target}" for importer, target in arrows() if floor[importer] <= floor[target]]


def test_few_rooms_are_tied_to_one_another():
    assert len(arrows()) <= 120
    assert len([path for path in MODULES if path.parent == PACKAGE]) <= 8


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_can_be_read_at_once(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420
