"""BMLAMA's tables (Qi et al., 2023), one file a language, and mLAMA's folders (Kassner et al., 2021)."""

import json
import random
from pathlib import Path
from typing import Any

from ..data.items import MASK
from ..errors import ConfigError
from .collection import TRAIN, Collection, Row, check_parallel, file_source, read_lines

# 3,070 facts: a third each to train on, for valid and for test, as in the LingTea paper.
BMLAMA_CUT = {TRAIN: 1023, "valid": 1023, "test": 1024}
CANDIDATES = 10  # of a fact, as BMLAMA has them; mLAMA has all objects of a relation
COLUMNS = ("Prompt", "Ans", "Candidate Ans")
WHERE = "give BMLAMA's folder with en.tsv and so on, or mLAMA's with en/templates.jsonl, en/P17.jsonl and so on"


def read_bmlama(source: str, seed: int) -> Collection:
    """All facts as the pool.

    Args:
        source: a folder of either collection.
        seed: of the wrong candidates that mLAMA's facts get.

    Raises:
        ConfigError: there is neither, or a file is not whole.
    """
    folder = Path(source)
    tables = {path.stem: path for path in sorted(folder.glob("*.tsv"))}
    if tables:
        return _from_tables(tables)
    folders = {path.parent.name: path.parent for path in sorted(folder.glob("*/templates.jsonl"))}
    if folders:
        return _from_relations(folders, seed)
    raise ConfigError(f"--source {source}: there are neither tables nor templates in it; {WHERE}")


def _from_tables(files: dict[str, Path]) -> Collection:
    tables = {code: _table(path) for code, path in files.items()}
    count = check_parallel(tables, files)
    rows, left_out = [], 0
    for number in range(count):
        fact: dict[str, dict[str, Any]] = {"prompt": {}, "answers": {}, "candidates": {}}
        for code, table in tables.items():
            prompt, answer, candidates = table[number]
            if prompt.count(MASK) != 1 or not answer:
                left_out += 1
                continue
            fact["prompt"][code], fact["answers"][code] = prompt, [answer]
            fact["candidates"][code] = _split(candidates, answer)
        if fact["prompt"]:
            rows.append(Row(fact, f"{next(iter(files.values())).parent}:{number + 2}"))
    notes = (
        [f"{left_out} facts of single languages were left out: no answer, or not exactly one {MASK}"]
        if left_out
        else []
    )
    return Collection(
        list(files), rows, cut=BMLAMA_CUT, sources=[file_source(path) for path in files.values()], notes=notes
    )


def _table(path: Path) -> list[tuple[str, str, str]]:
    head, *lines = [line.split("\t") for line in read_lines(path)] or [[]]
    missing = [name for name in COLUMNS if name not in head]
    if missing:
        raise ConfigError(f"{path}:1: there is no column {' or '.join(missing)}; {WHERE}")
    places = [head.index(name) for name in COLUMNS]
    table = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) <= max(places):
            raise ConfigError(
                f"{path}:{number}: {len(cells)} columns where the head has {len(head)}; get the file again"
            )
        table.append(tuple(cells[place].strip() for place in places))
    return table  # type: ignore[return-value]  # a tuple as long as COLUMNS


def _split(candidates: str, answer: str) -> list[str]:
    """The candidates of a cell, joined by comma and space; the answer is one of them even where it holds a comma."""
    before, found, after = f", {candidates}, ".partition(f", {answer}, ")
    if not found:
        before, after = f", {candidates}, ", ""
    parts = [*before.split(", "), answer, *after.split(", ")]
    return list(dict.fromkeys(part.strip(" ,") for part in parts if part.strip(" ,")))


def _from_relations(folders: dict[str, Path], seed: int) -> Collection:
    facts: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    objects: dict[str, dict[str, dict[str, str]]] = {}  # relation to object to its name by language
    uris: dict[tuple[str, str], str] = {}
    files: list[Path] = []
    for code, folder in folders.items():
        files.append(folder / "templates.jsonl")
        templates = {row["relation"]: row["template"] for row in _json_lines(files[-1], ("relation", "template"))}
        for relation, template in templates.items():
            path = folder / f"{relation}.jsonl"
            if not path.is_file():
                continue
            files.append(path)
            for row in _json_lines(path, ("uuid", "obj_label", "sub_label")):
                key, uri = (relation, row["uuid"]), row.get("obj_uri") or row["obj_label"]
                prompt = template.replace("[X]", row["sub_label"]).replace("[Y]", MASK).strip()
                if prompt.count(MASK) != 1:
                    raise ConfigError(
                        f"{files[-2]}: the template of {relation} has not exactly one [Y]; get the file again"
                    )
                facts.setdefault(key, {})[code] = {"prompt": prompt, "answer": row["obj_label"]}
                objects.setdefault(relation, {}).setdefault(uri, {})[code] = row["obj_label"]
                uris[key] = uri
    rows = [
        Row(_with_candidates(facts[key], uris[key], objects[key[0]], f"{seed} {key}"), f"{key[0]}:{key[1]}")
        for key in sorted(facts)
    ]
    return Collection(list(folders), rows, cut=BMLAMA_CUT, sources=[file_source(path) for path in files])


def _with_candidates(
    fact: dict[str, dict[str, str]], uri: str, objects: dict[str, dict[str, str]], seed: str
) -> dict[str, Any]:
    """A fact with the names of objects of its relation as candidates, the same objects in every language."""
    others = [other for other in sorted(objects) if other != uri]
    random.Random(seed).shuffle(others)
    row: dict[str, dict[str, Any]] = {"prompt": {}, "answers": {}, "candidates": {}}
    for code, known in fact.items():
        names = [objects[other][code] for other in others[: CANDIDATES - 1] if code in objects[other]]
        row["prompt"][code], row["answers"][code] = known["prompt"], [known["answer"]]
        row["candidates"][code] = list(dict.fromkeys([*names, known["answer"]]))
    return row


def _json_lines(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({**row, **{key: str(row[key]) for key in keys}})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: no JSON object with {', '.join(keys)} ({error}); {WHERE}") from error
    return rows
