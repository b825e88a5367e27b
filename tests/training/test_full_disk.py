"""A disk that is full or read-only, and files of a run that are damaged: one line that says which, nothing lost."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.material import write_material
from safetensors import SafetensorError

from run_unlearn import run
from unlearn_trainer.console import run_command
from unlearn_trainer.errors import ConfigError, StorageError, UnlearnError
from unlearn_trainer.files import storage_problem

TRAIN = "--do_train --do_eval --method grad_diff --max_steps 2 --save_steps 1".split()


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of so many bytes, empty, at a folder; one at a time."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size):
        unmount()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a small disk needs root")
        return place

    def unmount():
        if os.path.ismount(place):
            subprocess.run(["umount", "-l", place], check=True)

    yield mount
    unmount()


def saving(tmp_path):
    flags = write_material(tmp_path)
    flags[flags.index("--save_strategy") + 1] = "steps"
    return flags


def used(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_full_disk_is_one_line_wherever_it_is_met(tmp_path, disk, monkeypatch, capfd):
    """The same run on disks of growing size: full at the start, in a stage, in a checkpoint and at the end."""
    words = [*saving(tmp_path), *TRAIN, "--memorize_first", "--memorize_epochs", "1"]
    # The trial at the start would refuse all of them; another program can fill the disk after it.
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40))
    run([*words, "--output_dir", str(tmp_path / "whole")])
    whole = used(tmp_path / "whole")
    places = set()
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        size = max(8192, int(share * whole) // 4096 * 4096)
        out = disk(size) / "out"
        with pytest.raises(UnlearnError) as refused:
            run([*words, "--output_dir", str(out)])
        said = str(refused.value)
        assert ("\n" not in said and str(out) in said and "space" in said) or "takes no more" in said, said
        left = {path.name for path in out.iterdir()} if out.is_dir() else set()
        assert "results.json" not in left and ".lock" not in left
        places.add(tuple(sorted(left)))
    assert len(places) >= 3  # met at different places
    assert "Traceback" not in capfd.readouterr().err


def test_a_checkpoint_before_the_disk_was_full_is_gone_on_from(tmp_path, disk, monkeypatch):
    words = [*saving(tmp_path), *TRAIN]
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40))
    run([*words, "--output_dir", str(tmp_path / "whole")])
    one = used(tmp_path / "whole" / "checkpoint-1")
    out = disk(int(1.6 * one) // 4096 * 4096) / "out"
    with pytest.raises(StorageError, match="--resume_from_checkpoint true"):
        run([*words, "--output_dir", str(out)])
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1"]
    shutil.copytree(out, tmp_path / "moved")
    results = run([*words, "--output_dir", str(tmp_path / "moved"), "--resume_from_checkpoint", "true"])
    assert results["after"] == json.loads((tmp_path / "whole" / "results.json").read_text())["after"]


def test_places_that_cannot_be_written_to(tmp_path, disk):
    words = [*write_material(tmp_path), "--do_train", "--max_steps", "1", "--output_dir"]
    place = disk("1m")
    (place / "out").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    for folder in (place / "out", place / "new" / "deep"):
        with pytest.raises(UnlearnError, match=f"--output_dir {folder} cannot be"):
            run([*words, str(folder)])


@pytest.mark.parametrize("name", ["memorized", "unfinished", "results.json", "memorized.unfinished"])
def test_a_file_where_a_folder_is_expected_or_the_other_way_round(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).mkdir() if name == "results.json" else (out / name).write_text("of the user")
    words = [*saving(tmp_path), *TRAIN, "--memorize_first", "--memorize_epochs", "1", "--output_dir", str(out)]
    with pytest.raises(UnlearnError, match=name) as refused:
        run(words)
    assert "\n" not in str(refused.value)
    assert (out / name).is_dir() or (out / name).read_text() == "of the user"


def test_what_libraries_make_of_a_full_disk():
    """Errors of safetensors, datasets and others, which are no OSError or have one as their cause."""
    full = OSError(errno.ENOSPC, "No space left on device", "x.arrow")
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = full
    found = [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 4032 vs 3926"),
        wrapped,
        PermissionError(errno.EACCES, "Permission denied", "y"),
    ]
    assert all("could not be written" in storage_problem(error, Path("out")) for error in found)
    assert "x.arrow" in storage_problem(wrapped)
    others = [ValueError("a fault"), KeyError("space"), FileNotFoundError(errno.ENOENT, "No such file", "z")]
    assert [storage_problem(error, Path("out")) for error in others] == [None] * 3
    with pytest.raises(RuntimeError, match="inline_container"):  # torch's own words, on a device that is always full
        torch.save({"w": torch.zeros(100_000)}, "/dev/full")


def test_outside_of_a_run_s_folder_it_is_a_line_too(capfd):
    def full(argv):
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    with pytest.raises(SystemExit) as ended:
        run_command(full)
    said = capfd.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and "No space left" in said


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\0\0\0"])
def test_a_damaged_description_of_a_stage_is_named(tmp_path, content):
    folder = tmp_path / "out" / "memorized"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(content)
    words = [*write_material(tmp_path), "--do_train", "--memorize_first", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=r"stage\.json is damaged .*delete"):
        run(words)


def test_damaged_files_of_an_audit_are_named(tmp_path):
    from unlearn_trainer.audit.__main__ import run as audit

    words = [*write_material(tmp_path), "--output_dir", str(tmp_path / "audit"), "--audit_checks", "memorization"]
    audit(words)
    file = next((tmp_path / "audit" / "checks").glob("memorization-*.json"))
    for content in ("", file.read_text()[:40], "{}", "[1]"):
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"memorization-\w+\.json is damaged .*run again"):
            audit(words)
    file.unlink()
    audit(words)
    for content in ("", "{}", "[]", '{"config": 1}', '{"config": {}}'):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ConfigError, match=r"no finished run, as its results\.json cannot be read"):
            audit([str(tmp_path)])


def test_a_full_disk_under_an_audit_and_a_teacher_cache(tmp_path, disk, monkeypatch):
    from unlearn_trainer.audit.__main__ import run as audit

    words = write_material(tmp_path)
    place = disk(12288)
    with pytest.raises(StorageError, match=str(place)):
        audit([*words, "--output_dir", str(place / "audit"), "--audit_checks", "memorization"])
    for file in (place / "audit").rglob("*.json"):  # whole, or not there
        assert "result" in json.loads(file.read_text())
    assert not list((place / "audit").rglob("*.tmp"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40))
    place = disk(16384)
    with pytest.raises(UnlearnError, match=str(place)):
        run([*words, "--do_train", "--teacher", "cached", "--output_dir", str(place / "out")])
