"""What was asked for stays apart from what is in force: copies, files and changes of a configuration keep both."""

import copy
import dataclasses
import io
import json
import pickle

import pytest
import torch
from transformers import TrainingArguments

from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.engine.engines import engine_of_its_own
from unlearn_trainer.objectives import METHODS

OPEN = ("forget_objective", "retain_objective", "forget_coef", "retain_coef", "retain_weighting", "relearn_coef")
OPEN += ("relearn_rate", "stop_when_forgotten")


def config(folder, **settings):
    return UnlearnConfig(**{"output_dir": str(folder), "use_cpu": True, "report_to": [], **settings})


def in_force(args):
    return {name: getattr(args, name) for name in OPEN}


def test_what_was_left_open_is_asked_as_open_and_decided_by_the_method(tmp_path):
    args = config(tmp_path, method="calibrated", retain_coef=2.0, learning_rate=1e-3)
    given = {name: args.asked[name] for name in OPEN}
    assert given == dict.fromkeys(OPEN) | {"retain_coef": 2.0}
    assert (args.forget_objective, args.retain_coef, args.relearn_coef) == ("calibrated", 2.0, 2.0)
    assert args.relearn_rate == pytest.approx(7e-3) and args.stop_when_forgotten is False
    assert args.asked.keys() == {item.name for item in dataclasses.fields(UnlearnConfig)}


@pytest.mark.parametrize("before", ["lingtea", "rmu", "pdu", "calibrated", "undial"])
@pytest.mark.parametrize("after", sorted(METHODS))
def test_another_method_brings_its_own_settings_and_keeps_what_was_asked(before, after, tmp_path):
    args = config(tmp_path, method=before, seed=7)
    expected = config(tmp_path, method=after, seed=7)
    for changed in (UnlearnConfig(**(args.asked | {"method": after})), engine_of_its_own(args, method=after)):
        assert changed == expected and changed.asked == expected.asked
    asked = config(tmp_path, method=before, forget_coef=0.3)
    assert engine_of_its_own(asked, method=after).forget_coef == 0.3


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {"learning_rate": 1e-2}),
        ({"forget_weighting": "target"}, {"forget_weighting": "uniform"}),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}, {"seed": 1}),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            {"load_best_model_at_end": None},
        ),
        ({"method": "dpo", "forget_objective": "simnpo"}, {"retain_objective": "kl"}),
    ],
)
def test_what_follows_from_other_flags_follows_their_changes(settings, changes, tmp_path):
    expected = config(tmp_path, **(settings | changes))
    changed = engine_of_its_own(config(tmp_path, **settings), **changes)
    assert changed == expected and changed.asked == expected.asked


def test_an_attribute_that_was_set_counts_as_asked(tmp_path):
    args = config(tmp_path, method="simnpo")
    args.forget_coef = 0.5
    args.learning_rate = 1e-3
    assert args.asked["forget_coef"] == 0.5 and args.asked["retain_coef"] is None
    again = engine_of_its_own(args)
    assert (again.forget_coef, again.relearn_rate) == (0.5, pytest.approx(7e-3))
    args.method = "satimp"
    assert (again := engine_of_its_own(args)).forget_objective == "satimp" and again.forget_coef == 0.5


def saved_and_loaded(args):
    file = io.BytesIO()
    torch.save(args, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, saved_and_loaded, lambda args: pickle.loads(pickle.dumps(args))]
)
def test_copies_keep_both(copied, tmp_path):
    args = config(tmp_path, method="pdu", forget_weighting="target", retain_coef=3.0, hub_token="secret")
    found = copied(args)
    assert in_force(found) == in_force(args)
    assert {**found.asked, "hub_token": 0} == {**args.asked, "hub_token": 0}
    assert engine_of_its_own(found, method="rmu").forget_objective == "rmu"


def test_a_file_of_flags_has_what_is_in_force(tmp_path):
    args = config(tmp_path, method="calibrated")
    assert {name: args.to_dict()[name] for name in OPEN} == in_force(args)
    assert {name: args.to_sanitized_dict()[name] for name in OPEN} == in_force(args)
    read = UnlearnConfig(**json.loads(args.to_json_string()))
    assert in_force(read) == in_force(args) and dataclasses.replace(read, hub_token=None) == args
    assert in_force(dataclasses.replace(args, seed=3)) == in_force(args)
    assert args.get_process_log_level() == TrainingArguments(str(tmp_path)).get_process_log_level()


def test_arguments_pickled_by_an_earlier_version_are_taken_at_their_word(tmp_path):
    args = config(tmp_path, method="npo")
    del vars(args)["_decided"]
    old = pickle.loads(pickle.dumps(args))
    assert old.asked["forget_objective"] == "npo"
    assert engine_of_its_own(old) == args and old.of_another_training(output_dir="o").method == "lingtea"
