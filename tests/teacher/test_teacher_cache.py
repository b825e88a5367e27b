"""Files of a cached teacher: found by all that decides them, and made anew where a byte of them has changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny import LANGUAGES, tiny_config, tiny_model, tiny_rows, tiny_trainer
from transformers import TrainerCallback

from unlearn_trainer.trainer import UnlearnTrainer

SETTINGS = {"method": "lingtea", "per_device_train_batch_size": 3, "max_steps": 8, "teacher": "cached"}


def cached(folder, model=None, **settings):
    trainer = tiny_trainer(folder, model, **SETTINGS | settings)
    trainer.cache_teacher(steps=8)
    return trainer


def loss(trainer):
    rows = trainer.train_dataset
    batch = [rows[side, row] for side in (True, False) for row in range(6)]
    return trainer.compute_loss(trainer.model, trainer.data_collator(batch)).item()


def flip(content, place):
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


def edited(content, **changes):
    return json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".bin", lambda content: bytes(len(content))),
        (".bin", lambda content: flip(content, 0)),
        (".bin", lambda content: flip(content, len(content) // 2 + 1)),
        (".bin", lambda content: content[: len(content) // 2]),
        (".bin", lambda content: content + bytes(64)),
        (".bin", lambda content: b""),
        (".bin", None),
        (".json", lambda content: content[:-1]),
        (".json", lambda content: b""),
        (".json", lambda content: b"[]"),
        (".json", lambda content: b"\xff\xfe"),
        (".json", lambda content: edited(content, dtypes=["float64"])),
        (".json", lambda content: edited(content, dtypes=["load"])),
        (".json", lambda content: edited(content, signature=[0.0])),
    ],
    ids="zeros first middle cut longer empty deleted cut-json no-json list bytes dtype no-dtype signature".split(),
)
def test_a_damaged_file_is_named_and_made_anew(suffix, damage, tmp_path, capsys):
    right = loss(cached(tmp_path))
    (file,) = (tmp_path / "teacher").glob(f"*{suffix}")
    whole = file.read_bytes()
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(whole))
    capsys.readouterr()
    assert loss(cached(tmp_path)) == right
    (line,) = capsys.readouterr().out.splitlines()
    assert "made anew" in line and file.name in line
    assert len(list((tmp_path / "teacher").iterdir())) == 2
    made = file.stat().st_mtime_ns
    assert loss(cached(tmp_path)) == right and file.stat().st_mtime_ns == made  # and read from then on
    assert capsys.readouterr().out == ""


def of_languages(languages):
    def make(folder, teacher):
        rows = tiny_rows(seed=0), tiny_rows(seed=1)
        config = tiny_config(folder, **SETTINGS | {"teacher": teacher})
        heldout = [language for language in LANGUAGES if language not in languages]
        return UnlearnTrainer(tiny_model(), config, *rows, languages=languages, heldout_languages=heldout)

    return make


def of_model(**changes):
    def make(folder, teacher):
        return tiny_trainer(folder, tiny_model(**changes), **SETTINGS | {"teacher": teacher})

    return make


def of_one_weight(folder, teacher):
    model = tiny_model()
    with torch.no_grad():
        weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
        weight[0, 0], weight[1, 1] = weight[1, 1].item() + 0.5, weight[0, 0].item() - 0.5
    return tiny_trainer(folder, model, **SETTINGS | {"teacher": teacher})


def of_method(**settings):
    def make(folder, teacher):
        return tiny_trainer(folder, **SETTINGS | settings | {"teacher": teacher})

    return make


@pytest.mark.parametrize(
    "make",
    [
        of_languages(["en"]),
        of_languages(["en", "sw"]),
        of_model(rms_norm_eps=1e-2),
        of_one_weight,
        of_method(lingtea_alignment="released"),
    ],
    ids=["one language", "two languages", "settings", "two numbers exchanged", "asked otherwise"],
)
def test_what_a_killed_run_left_is_read_by_no_run_with_another_teacher_or_other_rows(make, tmp_path):
    cached(tmp_path)
    trainer = make(tmp_path, "cached")
    trainer.cache_teacher(steps=8)
    assert len(list((tmp_path / "teacher").iterdir())) == 4  # beside those of the killed run, which stay whole
    resident = make(tmp_path / "resident", "resident")
    for one, other in zip(trainer.train_dataset.lengths(), resident.train_dataset.lengths(), strict=True):
        assert one == other
    rows = [row for row in range(6) if trainer.train_dataset[False, row]["language"] < len(trainer.languages)]
    batch = trainer.data_collator([trainer.train_dataset[side, row] for side in (True, False) for row in rows])
    found, expected = (each.compute_loss(each.model, batch).item() for each in (trainer, resident))
    assert found == pytest.approx(expected, rel=1e-5)
    trainer.remove_teacher_cache()
    assert not (tmp_path / "teacher").exists()  # nothing of the killed run's either


def of_rows(change):
    """The run with other retain rows of as many tokens."""

    def make(folder, **settings):
        rows = tiny_rows(seed=0), change(tiny_rows(seed=1))
        trainer = UnlearnTrainer(tiny_model(), tiny_config(folder, **SETTINGS | settings), *rows, languages=LANGUAGES)
        trainer.cache_teacher(steps=8)
        return trainer

    return make


def other_token(rows):
    """One token of a prompt is another: no label changes."""
    return rows.map(lambda row: row | {"input_ids": [row["input_ids"][0] % 200 + 3, *row["input_ids"][1:]]})


def other_label(rows):
    def change(row):
        last = next(place for place in reversed(range(len(row["labels"]))) if row["labels"][place] != -100)
        return row | {"labels": [-100 if place == last else label for place, label in enumerate(row["labels"])]}

    def change_back(row):  # as many labels, elsewhere
        first = next(place for place, label in enumerate(row["labels"]) if label != -100)
        row["labels"][first - 1] = row["input_ids"][first - 1]
        return row

    return rows.map(change).map(change_back)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (of_rows(lambda rows: rows), {"bf16": True}),
        (of_rows(lambda rows: rows.select(range(len(rows) - 1, -1, -1))), {}),
        (of_rows(lambda rows: rows.select([*range(3, len(rows)), *range(3)])), {}),
        (of_rows(other_token), {}),
        (of_rows(other_label), {}),
    ],
    ids=["precision", "the other way round", "begun elsewhere", "other tokens", "other labels"],
)
def test_files_of_the_same_size_are_read_by_the_run_alone_that_would_write_the_same(make, settings, tmp_path):
    cached(tmp_path / "left")
    here, anew = make(tmp_path / "left", **settings), make(tmp_path / "empty", **settings)
    assert loss(here) == loss(anew)
    names = [sorted(path.name for path in (tmp_path / place / "teacher").iterdir()) for place in ("left", "empty")]
    assert len(names[0]) == 4 and set(names[1]) < set(names[0])  # beside those of the killed run, which stay whole
    assert loss(cached(tmp_path / "left")) == loss(cached(tmp_path / "third"))


@pytest.mark.parametrize("layers", [(1, 2), (2, 1)])
def test_states_of_another_layer_are_not_taken_for_those_asked_for(layers, tmp_path):
    """They are as many numbers, of the same rows and the same teacher."""
    before, now = ({"method": "rmu", "rmu_layer": layer} for layer in layers)
    cached(tmp_path / "left", **before)
    here, anew = cached(tmp_path / "left", **now), cached(tmp_path / "empty", **now)
    assert loss(here) == loss(anew) != loss(cached(tmp_path / "third", **before))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_another_release_of_what_computes_it_makes_the_cache_anew(package, tmp_path, monkeypatch):
    cached(tmp_path)
    monkeypatch.setattr(f"{package}.__version__", "0.1")
    cached(tmp_path)
    assert len(list((tmp_path / "teacher").iterdir())) == 4


def test_a_folder_that_another_machine_has_removed_is_no_error(tmp_path, monkeypatch):
    """Machines that share the output folder clear it at the same time: one sees the folder, and then it is gone."""
    is_dir = Path.is_dir

    class FasterMachine(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            assert (tmp_path / "teacher").is_dir()
            shutil.rmtree(tmp_path / "teacher")
            monkeypatch.setattr(Path, "is_dir", lambda path: path.name == "teacher" or is_dir(path))

    trainer = tiny_trainer(tmp_path, **SETTINGS)
    events = trainer.callback_handler.callbacks
    trainer.add_callback(FasterMachine())
    events.insert(0, events.pop())  # ahead of ours
    trainer.train()
    assert trainer.state.global_step == SETTINGS["max_steps"]
