"""Cached rows that were damaged are named and made anew; a cache that cannot be used is refused in words."""

import datasets
import pytest
from transformers import ByT5Tokenizer

from unlearn_trainer.data import tokenize_splits
from unlearn_trainer.data.items import parse_row
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.files import find_damage, seal_file, write_whole


def rows_of(count=60):
    items = [parse_row({"en": f"text number {n}"}, f"f:{n}") for n in range(count)]
    return tokenize_splits({"forget": items}, ByT5Tokenizer(), None).datasets["forget"].to_list()


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "cut": lambda content: content[: len(content) // 3],
    "cut by a byte": lambda content: content[:-1],
    "zeroed": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "a bit flipped": flip,
    "empty": lambda content: b"",
    "longer": lambda content: content + b"x",
}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "unlearn_trainer"


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_rows_are_named_and_made_anew(cache, caplog, kind):
    rows = rows_of()
    (file,) = cache.glob("*.arrow")
    whole = file.read_bytes()
    assert find_damage(file) is None
    file.write_bytes(DAMAGE[kind](whole))
    assert rows_of() == rows and f"{file} are damaged" in caplog.text
    assert file.read_bytes() == whole
    caplog.clear()
    assert rows_of() == rows and not caplog.records


@pytest.mark.parametrize("seal", [None, "", "{", "[]", '{"size": 1}', "[" * 9999])
def test_rows_whose_writer_was_killed_are_made_anew(cache, seal):
    rows = rows_of()
    (file,) = cache.glob("*.arrow")
    sealed = cache / f"{file.name}.seal"
    sealed.unlink() if seal is None else sealed.write_text(seal)
    file.write_bytes(file.read_bytes()[:100])
    assert rows_of() == rows and find_damage(file) is None


def test_a_cache_that_cannot_be_used_is_refused_in_words(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match="cache of tokenized rows.*HF_DATASETS_CACHE"):
        rows_of()


def test_a_sealed_file_that_changes_is_damaged(tmp_path):
    write_whole(tmp_path / "a.json", "new")
    seal_file(tmp_path / "a.json")
    assert find_damage(tmp_path / "a.json") is None
    (tmp_path / "a.json").write_text("old")
    assert "its bytes are not those" in find_damage(tmp_path / "a.json")
