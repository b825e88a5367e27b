"""The state of the language weights: what a checkpoint holds, what is refused, and what an evaluation leaves alone."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import LANGUAGES

from unlearn_trainer.errors import ConfigError
from unlearn_trainer.weights.callback import LanguageWeightCallback
from unlearn_trainer.weights.state import CHECKPOINTED, LanguageWeights

# The state after `begin_run`, and that after `go_on` from there, as the code wrote them when it was one module.
WRITTEN = Path(__file__).with_name("states_written_before.json")


@pytest.fixture
def written():
    return json.loads(WRITTEN.read_text())


def figures(forget, retain, valid=(0.1, 0.2, 0.3)):
    return {
        "forget": {c: {"memorization_accuracy": m} for c, m in zip(LANGUAGES, forget, strict=True)},
        "retain": {c: {"loss": x, "token_probability": 0.5} for c, x in zip(LANGUAGES, retain, strict=True)},
        "valid": {c: {"memorization_accuracy": m, "loss": 2.0} for c, m in zip(LANGUAGES, valid, strict=True)},
    }


def add(weights, side, *rows):
    """Add rows (language, tokens, NLL, accuracy, the teacher's probabilities)."""
    columns = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    language, tokens, nll, accuracy, taught = columns
    sums = {"tokens": tokens, "nll": nll, "memorization_accuracy": accuracy, "extraction_strength": accuracy / 3}
    weights.add_batch(side, language.long(), sums | {"teacher_probability": taught})


def begin_run(weights):
    weights.begin(figures((0.9, 0.8, 0.7), (1.0, 1.25, 1.5)))
    weights.watch(figures((0, 0, 0), (1.0, 1.1, 1.2)))
    weights.identity = {"languages": LANGUAGES, "seed": 42}
    add(weights, "forget", (0, 5, 2.3, 0.8, 3.1), (1, 3, 4.7, 1 / 3, 0.2), (0, 7, 1.9, 2 / 7, 5.5))
    add(weights, "retain", (2, 4, 6.1, 0.25, 1.7), (1, 6, 8.3, 0.5, 2.9))
    weights.update(2)
    weights.after_evaluation(figures((0.6, 0.5, 0.4), (1.3, 1.2, 1.9)), 0.4, 3)
    add(weights, "forget", (2, 9, 3.3, 5 / 9, 4.4), (1, 2, 0.7, 0.5, 0.9))
    add(weights, "retain", (0, 5, 4.9, 0.6, 2.1))
    weights.reduce_batches()


def go_on(weights):
    add(weights, "forget", (2, 3, 2.1, 1 / 3, 1.2), (0, 4, 2.2, 0.75, 2.6))
    add(weights, "retain", (1, 3, 5.7, 2 / 3, 0.8), (2, 8, 9.1, 0.125, 3.3))
    weights.update(4)
    weights.after_evaluation(figures((0.3, 0.2, 0.3), (1.6, 1.4, 1.5)), 0.3, 6)
    weights.watch(figures((0, 0, 0), (9.0, 9.0, 9.0)))
    weights.reduce_batches()


def as_trainers_do(state):
    """Restore a callback as ``Trainer`` does."""
    weights = LanguageWeightCallback(**state["args"])
    for name, value in state["attributes"].items():
        setattr(weights, name, value)
    return weights


@pytest.mark.parametrize("restore", [LanguageWeightCallback.from_state, as_trainers_do])
def test_a_state_written_before_goes_on_as_it_did(restore, written):
    weights = restore(copy.deepcopy(written["state"]))
    assert json.dumps(weights.state()) == json.dumps(written["state"])
    go_on(weights)
    assert json.dumps(weights.state()) == json.dumps(written["after"])


def test_the_same_run_writes_the_same_state_as_before(written):
    weights = LanguageWeightCallback(**written["state"]["args"])
    begin_run(weights)
    assert json.dumps(weights.state()) == json.dumps(written["state"])


def test_a_checkpoint_holds_every_field():
    fields = {field.name for field in dataclasses.fields(LanguageWeights)}
    assert fields == {"languages", "policy", *CHECKPOINTED} and len(fields) == len(CHECKPOINTED) + 2


def lacking(*path):
    def change(state):
        *way, last = path
        for name in way:
            state = state[name]
        del state[last]

    return change


def holding(value, *path):
    def change(state):
        *way, last = path
        for name in way:
            state = state[name]
        state[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((lacking("attributes", name), f"attributes lacks {name}") for name in CHECKPOINTED),
        (lacking("args"), "the state lacks args"),
        (lacking("attributes"), "the state lacks attributes"),
        (lacking("args", "languages"), "args lacks languages"),
        (lacking("args", "policy", "patience"), "policy lacks patience"),
        (holding(1.0, "attributes", "momentum"), "attributes has the unknown momentum"),
        (holding(1.0, "args", "policy", "momentum"), "policy has the unknown momentum"),
        (holding([], "metrics"), "the state has the unknown metrics"),
        (holding([], "attributes"), "attributes is no object"),
        (holding("uniform", "args", "policy"), "policy is no object"),
        (holding(["en", "sw"], "args", "languages"), "forget, retain, distill, start, target"),
        (holding("en", "args", "languages"), "forget"),
        (holding(None, "attributes", "forget"), "forget is not of a number for each language"),
        (holding([1.0, float("nan"), 1.0], "attributes", "retain"), "retain is not"),
        (holding([True, 1.0, 1.0], "attributes", "distill"), "distill is not"),
        (holding([0.5], "attributes", "metric"), "metric is not"),
        (holding(["a", 1, 2], "attributes", "retain_loss_at_start"), "retain_loss_at_start is not"),
        (holding(3, "attributes", "watched_at_start"), "watched_at_start is not"),
        (holding([[0.0]] * 3, "attributes", "teacher_sums"), "teacher_sums is not"),
        (holding({"forget": [[0.0] * 6] * 3}, "attributes", "window"), "window retain is not"),
        (holding([], "attributes", "window"), "window forget, window retain is not"),
        (holding("high", "attributes", "best_score"), "best_score is not"),
        (holding(None, "attributes", "history"), "history is no list"),
    ],
)
def test_a_state_that_is_not_whole_is_refused_in_one_line(change, said, written):
    change(written["state"])
    with pytest.raises(ConfigError) as error:
        LanguageWeightCallback.from_state(written["state"])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_known_yet_is_a_whole_state_too(written):
    weights = LanguageWeightCallback(**written["state"]["args"])
    again = LanguageWeightCallback.from_state(json.loads(json.dumps(weights.state())))
    assert again.state() == weights.state()


@pytest.mark.parametrize("metric", ["memorization_accuracy", "extraction_strength"])
@pytest.mark.parametrize("evaluations", [1, 3])
@pytest.mark.parametrize("is_saved", [False, True], ids=["", "after a checkpoint"])
def test_rows_seen_before_an_evaluation_count_in_the_next_update(is_saved, evaluations, metric, written):
    """An evaluation replaces the running means and moves the weights; it neither empties nor reduces the window."""
    written["state"]["args"]["policy"]["forget_metric"] = metric
    found = figures((0.6, 0.5, 0.4), (1.0, 1.25, 1.5), (0.1, 0.1, 0.1))
    for split in ("forget", "valid"):
        for each in found[split].values():
            each["extraction_strength"] = each["memorization_accuracy"]
    weights = LanguageWeightCallback(**written["state"]["args"])
    weights.begin(found)
    add(weights, "forget", (0, 5, 2.0, 0.25, 3.0), (1, 5, 2.0, 0.5, 3.0))
    add(weights, "retain", (2, 4, 6.0, 0.25, 1.0))
    if is_saved:  # which moves the sums of all processes into the window
        weights.reduce_batches()
    window = copy.deepcopy(weights.window)
    for step in range(evaluations):
        weights.after_evaluation(found, 0.5, step + 1)
        assert weights.window == window and weights.metric == [0.6, 0.5, 0.4]
    add(weights, "forget", (0, 5, 2.0, 0.75, 3.0))
    add(weights, "retain", (2, 4, 10.0, 0.25, 2.0))
    weights.update(9)
    scale = {"memorization_accuracy": 1, "extraction_strength": 3}[metric]
    assert weights.metric == pytest.approx([0.5 / scale, 0.5 / scale, 0.4])  # both rows of en; nothing new in zh
    assert weights.retain[2] == pytest.approx(1 + 16 / 8 - 1.5)
    assert weights.distill[2] == pytest.approx(3 / 8)
