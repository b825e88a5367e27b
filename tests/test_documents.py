"""README, docs and code say what is true of the checkout: paths, modules and links they name are there."""

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# Where a path in a document may begin.
PLACES = ("unlearn_trainer", "tests", "scripts", "ds_configs", "docs", "benchmarks")
HISTORY = "CHANGELOG.md"  # names what is no longer there

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def text_of(document):
    return document.read_text(encoding="utf-8")


def named_paths(text):
    """Paths of the checkout that a text names: those that begin with one of its folders."""
    return set(re.findall(rf"(?<![\w./$-])(?:{'|'.join(PLACES)})/(?:[\w./-]|\*(?=\.))*\w/?", text))


def anchors(text):
    """What a link may name after #: headings as a page of the document numbers them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def is_importable(name):
    """Whether a dotted name is a module, or something that a module holds."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@each_document
def test_paths_that_are_named_are_there(document):
    if document.name == HISTORY:
        return
    assert not [path for path in sorted(named_paths(text_of(document))) if not any(ROOT.glob(path))]


@each_document
def test_modules_that_are_named_can_be_imported(document):
    if document.name == HISTORY:
        return
    names = set(re.findall(r"(?<![\w/.])unlearn_trainer(?:\.[a-z_]\w*)+", text_of(document)))
    assert not [name for name in sorted(names) if name[-1] != "_" and not is_importable(name)]


def test_modules_that_code_names_are_there():
    """In docstrings too, and in programs within strings, which tests start: no import would notice."""
    missing = []
    for path in (path for name in PLACES for path in sorted((ROOT / name).rglob("*.py"))):
        text = text_of(path)
        names = set(re.findall(r"(?<![\w/.])unlearn_trainer(?:\.[a-z_]\w*)+", text))
        for module, imported in re.findall(r"from (unlearn_trainer[\w.]*) import ([\w, ]+)", text):
            names |= {f"{module}.{name.split()[0]}" for name in imported.split(",") if name.strip()}
        missing += [
            f"{path.relative_to(ROOT)}: {name}"
            for name in sorted(names)
            if name[-1] != "_" and not is_importable(name)
        ]
    assert not missing


@each_document
def test_links_lead_somewhere(document):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        if not linked.exists() or (anchor and anchor not in anchors(text_of(linked))):
            wrong.append(target)
    assert not wrong


def test_moved_modules_are_where_the_changelog_says():
    """The right column of its table names modules and folders that are there; the left one what is no longer."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", text_of(ROOT / HISTORY), re.M)[1:]
    assert len(rows) > 30
    now = {name for _, cell in rows for name in re.findall(r"`([a-z_]+(?:[./][a-z_]*)*)`", cell)} - {"main", "run"}
    now -= {"run_unlearn", "make_trainer"}
    missing = [
        name
        for name in sorted(now)
        if not (ROOT / "unlearn_trainer" / name).is_dir() and not is_importable(f"unlearn_trainer.{name}")
    ]
    assert not missing


def test_the_map_shows_every_folder_of_the_package():
    text = text_of(ROOT / "docs" / "architecture.md")
    package = ROOT / "unlearn_trainer"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert not [name for name in sorted(folders) if f"`unlearn_trainer/{name}/`" not in text]
    assert not [name for name in sorted(modules) if f"`unlearn_trainer/{name}`" not in text]
    assert len(text.splitlines()) <= 200
