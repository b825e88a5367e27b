"""Where the texts of a run remain is listed, and removed with a record only when that is asked for."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import datasets
import pytest
from helpers.material import write_material

import run_unlearn
from unlearn_trainer.commands.dispose import main
from unlearn_trainer.errors import ConfigError, StorageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run with stages, a checkpoint and cached rows of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    flags = write_material(tmp_path)
    stages = ["--memorize_first", "--memorize_epochs", "1", "--train_never_seen"]
    words = ["--do_train", "--do_eval", "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
    run_unlearn.run([*flags, *stages, *words, "--output_dir", str(tmp_path / "out")])
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_places_are_listed_and_nothing_is_removed_without_yes(folder, capsys):
    before = names(folder / "out")
    main([str(folder / "out")])
    said = capsys.readouterr().out
    for place in ("memorized", "never_seen", "checkpoint-2", str(folder / "cache" / "unlearn_trainer"), "--data_dir"):
        assert place in said
    assert "add --yes" in said and names(folder / "out") == before


def test_with_yes_they_are_gone_and_the_record_says_what_when_and_by_what_hash(folder, capsys):
    model = (folder / "out" / "model.safetensors").read_bytes()
    before = names(folder / "out")
    main([str(folder / "out"), "--yes"])
    after = names(folder / "out")
    assert {*before} - {*after} == {"memorized", "never_seen", "checkpoint-2"}
    assert not (folder / "cache" / "unlearn_trainer").exists()
    assert (folder / "forget.jsonl").exists() and (folder / "out" / "model.safetensors").read_bytes() == model
    record = json.loads((folder / "out" / "deletion.json").read_text(encoding="utf-8"))
    assert len(record["removed"]) == 4 and record["failed"] == []
    for about in record["removed"]:
        assert len(about["sha256"]) == 64 and about["files"] > 0 and about["bytes"] > 0
        assert record["times"]["started"] <= about["removed_at"] <= record["times"]["ended"]
    assert any(str(folder) in place["path"] and "--data_dir" in place["what"] for place in record["remaining"])


def test_a_second_disposal_keeps_the_record_of_the_first(folder):
    main([str(folder / "out"), "--yes"])
    (folder / "out" / "checkpoint-9").mkdir()
    (folder / "out" / "checkpoint-9" / "trainer_state.json").write_bytes(b"known")
    main([str(folder / "out"), "--yes"])
    record = json.loads((folder / "out" / "deletion.json").read_text(encoding="utf-8"))
    (removed,) = record["removed"]
    content = b"checkpoint-9/trainer_state.json\x005\x00" + hashlib.sha256(b"known").digest()
    assert removed["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(record["earlier"]["removed"]) == 4


def test_the_cache_of_all_runs_stays_where_that_is_asked_for(folder):
    main([str(folder / "out"), "--yes", "--keep_cache"])
    assert any((folder / "cache" / "unlearn_trainer").iterdir())
    assert not (folder / "out" / "memorized").exists()


def test_what_a_link_leads_to_is_not_touched(folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("mine")
    (folder / "out" / "checkpoint-7").symlink_to(elsewhere, target_is_directory=True)
    (folder / "out" / "memorized" / "link").symlink_to(elsewhere, target_is_directory=True)
    main([str(folder / "out"), "--yes"])
    assert (elsewhere / "thesis.txt").read_text() == "mine" and (folder / "out" / "checkpoint-7").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of folders")
def test_what_cannot_be_removed_is_named_and_the_rest_is_gone(folder, monkeypatch):
    with tempfile.TemporaryDirectory() as place:  # within reach of every user, as a folder of pytest's is not
        out, is_root = Path(place) / "out", os.geteuid() == 0
        shutil.move(folder / "out", out)
        Path(place).chmod(0o755)
        if is_root:  # who may remove everything
            for path in (out, *out.rglob("*")):
                os.chown(path, 65534, 65534)
            os.seteuid(65534)
        (out / "memorized").chmod(0o500)
        try:
            with pytest.raises(StorageError, match="memorized"):
                main([str(out), "--yes", "--keep_cache"])
        finally:
            (out / "memorized").chmod(0o700)
            if is_root:
                os.seteuid(0)
        record = json.loads((out / "deletion.json").read_text(encoding="utf-8"))
        assert [Path(failure["path"]).name for failure in record["failed"]] == ["memorized"]
        assert not (out / "never_seen").exists() and (out / "memorized").exists()


def test_a_folder_of_no_run_is_left_alone(tmp_path):
    (tmp_path / "memorized").mkdir()
    with pytest.raises(ConfigError, match="no finished run"):
        main([str(tmp_path), "--yes"])
    assert (tmp_path / "memorized").is_dir()


def test_what_a_person_has_put_there_stays(folder):
    out = folder / "out"
    for name in ("runs", "teacher", "checkpoint-notes", "thesis.unfinished"):
        (out / name).mkdir()
        (out / name / "mine.txt").write_text("mine")
    (out / "checkpoint-list.txt").write_text("mine")
    main([str(out), "--yes"])
    for name in ("runs", "teacher", "checkpoint-notes", "thesis.unfinished"):
        assert (out / name / "mine.txt").read_text() == "mine"
    assert (out / "checkpoint-list.txt").exists() and not (out / "memorized").exists()


def test_the_model_that_an_adapter_works_on_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = "--memorize_first --memorize_epochs 1 --do_train --max_steps 1 --use_peft".split()
    run_unlearn.run([*write_material(tmp_path), *words, "--output_dir", str(tmp_path / "out")])
    main([str(tmp_path / "out"), "--yes"])
    assert "does not work without it" in capsys.readouterr().out and (tmp_path / "out" / "memorized").is_dir()
    run_unlearn.run([*write_material(tmp_path), *words, "--merge_adapter", "--output_dir", str(tmp_path / "merged")])
    main([str(tmp_path / "merged"), "--yes"])
    assert not (tmp_path / "merged" / "memorized").exists()
