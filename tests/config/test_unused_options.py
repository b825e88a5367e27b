"""An option of an objective that a run does not have is said to be without effect, once."""

import logging

import pytest
from helpers.tiny import tiny_model, tiny_rows

from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.engine.engines import engine_of_its_own
from unlearn_trainer.objectives import FORGET_OBJECTIVES, Objective
from unlearn_trainer.runs.relearning import relearn
from unlearn_trainer.runs.stages import plain_training


def warned(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "no effect" in r.getMessage()]


@pytest.mark.parametrize(
    ("settings", "option", "objective", "used"),
    [
        ({"npo_beta": 0.5}, "--npo_beta 0.5", "npo", "gradient_ascent and lingtea"),
        ({"method": "npo", "rmu_steering": 3.0}, "--rmu_steering 3.0", "rmu", "npo and nll"),
        ({"method": "retain_only", "calibrated_margin": 0.0}, "--calibrated_margin 0.0", "calibrated", "nll"),
        ({"method": "dpo", "forget_objective": "simnpo", "dpo_beta": 1.0}, "--dpo_beta 1.0", "dpo", "simnpo and nll"),
        ({"method": "satimp", "undial_strength": 1.0}, "--undial_strength 1.0", "undial", "satimp and nll"),
    ],
)
def test_an_option_without_its_objective_is_named_once(settings, option, objective, used, tmp_path, caplog):
    args = UnlearnConfig(output_dir=str(tmp_path / "python"), use_cpu=True, **settings)
    (said,) = warned(caplog)
    assert said.startswith(f"{option} has no effect") and f"objective {objective}," in said and f"are {used};" in said
    caplog.clear()
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    words += ["--use_cpu", "--model_name_or_path", "m", "--data_dir", "d", "--output_dir", str(tmp_path / "flags")]
    parse_arguments(words)
    assert warned(caplog) == [said]
    caplog.clear()
    engine_of_its_own(args)
    plain_training(args, str(tmp_path / "stage"))
    assert warned(caplog) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "npo", "npo_beta": 0.5},
        {"npo_beta": 0.1},
        {"forget_objective": "satimp", "satimp_beta2": 3.0},
        {"method": "rmu", "rmu_steering": 3.0},
        {},
    ],
)
def test_an_option_in_use_or_at_its_default_is_not_mentioned(settings, tmp_path, caplog):
    args = UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], **settings)
    # The objectives of a stage are others, which is no mistake of the user's.
    relearn(tiny_model, args, tiny_rows(4), "sw", ["en", "sw"], learning_rate=1e-2, steps=1, batch_size=2)
    assert warned(caplog) == []


def test_another_process_than_the_first_says_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(UnlearnConfig, "process_index", property(lambda self: 1))
    UnlearnConfig(output_dir=str(tmp_path), npo_beta=0.5, use_cpu=True)
    assert warned(caplog) == []


def test_an_objective_that_came_late_has_no_flag_to_warn_of(tmp_path, caplog, monkeypatch):
    late = Objective("late", lambda tokens, *, height=2.0: -height * tokens.nll, frozenset({"nll"}))
    monkeypatch.setitem(FORGET_OBJECTIVES, "late", late)
    UnlearnConfig(output_dir=str(tmp_path), use_cpu=True)
    assert warned(caplog) == []
