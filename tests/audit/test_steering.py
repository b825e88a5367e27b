"""Steering: the direction, the push along it, and a search whose figures come from rows that it has not seen."""

import math

import numpy as np
import pytest
import torch
from helpers.subjects import subjects_of
from helpers.tiny import LANGUAGES, tiny_model, tiny_rows
from test_logit_lens import guessable

from unlearn_trainer.audit.checks.states import blocks_of, on_outputs, picks
from unlearn_trainer.audit.checks.steering import (
    COEFFICIENTS,
    RANDOM_DRAWS,
    late_layers,
    mean_states,
    steered,
    steering,
)

LAYERS = {"num_hidden_layers": 3}
METRICS = ("memorization_accuracy", "extraction_strength")


@pytest.mark.parametrize(
    ("count", "layers"), [(1, (0, 1)), (2, (0, 2)), (4, (1, 4)), (9, (6, 9)), (12, (8, 12)), (32, (26, 32))]
)
def test_late_layers(count, layers):
    assert late_layers(count) == range(*layers)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "opt", "phi", "gemma2"])
def test_every_state_is_pushed_by_a_share_of_its_length(kind):
    model = tiny_model(kind, **LAYERS)
    blocks = list(blocks_of(model))
    ids = torch.arange(3, 15).view(2, 6)
    directions = torch.nn.functional.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    plain = model(ids).logits
    before, after = {}, {}
    with (
        on_outputs(blocks, before.__setitem__),
        steered(blocks, directions, 0.3),
        on_outputs(blocks, after.__setitem__),
    ):
        pushed = model(ids).logits
    for layer in range(3):
        for row in range(2):
            for column in range(6):
                state = before[layer][row, column]
                expected = state - 0.3 * math.sqrt(sum(value**2 for value in state.tolist())) * directions[layer]
                torch.testing.assert_close(after[layer][row, column], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pushed, plain, atol=1e-3)
    assert torch.equal(model(ids).logits, plain)


@torch.no_grad()
def test_no_hook_stays_behind_a_failure():
    model = tiny_model()
    plain = model(torch.tensor([[5, 6]])).logits
    with pytest.raises(RuntimeError, match="stop"), steered(list(blocks_of(model)), torch.ones(2, 32), 1.0):
        raise RuntimeError("stop")
    assert torch.equal(model(torch.tensor([[5, 6]])).logits, plain)
    assert not any(block._forward_hooks for block in blocks_of(model))


def labelled_from(rows, start):
    """The rows with labels from position ``start`` on."""
    return rows.map(lambda row: {"labels": [-100] * start + row["input_ids"][start:]})


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("start", [0, 3])
def test_mean_states_where_labels_are_predicted(kind, start, tmp_path):
    model, rows = tiny_model(kind, **LAYERS), labelled_from(tiny_rows(), start)
    subject = subjects_of(tmp_path, {"forget": rows}, after=model)["after"]
    with subject.ready() as ready:
        found = mean_states(subject, ready, rows, range(2))
    expected = torch.zeros(2, 32, dtype=torch.float64)
    for row in rows:
        # From the position before the first label to that before the last; never the first of a text.
        first, last = max(start - 1, 1), len(row["input_ids"]) - 2
        hidden = model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states
        for layer in range(2):
            expected[layer] += hidden[layer + 1][0, first : last + 1].double().mean(0) / len(rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_row_with_one_token_to_predict_counts_by_its_first_position(tmp_path):
    rows = tiny_rows().map(lambda row: {"input_ids": row["input_ids"][:2], "labels": row["input_ids"][:2]})
    model = tiny_model()
    subject = subjects_of(tmp_path, {"forget": rows}, after=model)["after"]
    with subject.ready() as ready:
        found = mean_states(subject, ready, rows, range(1))
    states = [
        model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[1][0, 0] for row in rows
    ]
    torch.testing.assert_close(found[0], torch.stack(states).double().mean(0), rtol=1e-4, atol=1e-5)


# ---- the check ------------------------------------------------------------------------------------------------------


def knowing():
    return tiny_model(mlp_bias=True, num_hidden_layers=4)


def suppressed(amount=0.5):
    """The model of :func:`knowing` with one direction added behind its last block: it says token 7 to everything."""
    model = knowing()
    with torch.no_grad():
        toward = model.lm_head.weight[7]
        model.model.layers[-1].mlp.down_proj.bias.add_(amount * toward / toward.norm())
    return model


def known_rows():
    return guessable(knowing(), items=8)


@torch.no_grad()
def naive_figures(model, rows, directions, coefficient):
    """Memorization accuracy and extraction strength of each row, of a model whose last blocks are pushed."""
    handles = []
    for layer, direction in directions.items():

        def push(_, args, direction=direction):
            length = args[0].norm(dim=-1, keepdim=True)
            return (args[0] - coefficient * length * direction.float(), *args[1:])

        follower = model.model.norm if layer == 3 else model.model.layers[layer + 1]
        handles.append(follower.register_forward_pre_hook(push))
    found = []
    for row in rows:
        guesses = model(torch.tensor([row["input_ids"]])).logits[0, :-1].argmax(-1)
        labels = torch.tensor(row["labels"][1:])
        hits = (guesses == labels)[labels != -100].tolist()
        extracted = next((k for k in range(len(hits)) if all(hits[k:])), len(hits))
        found.append((sum(hits) / len(hits), 1 - extracted / len(hits)))
    for handle in handles:
        handle.remove()
    return np.array(found)


def test_the_check_finds_what_one_direction_covers(tmp_path):
    rows = known_rows()
    subjects = subjects_of(
        tmp_path,
        {"forget": rows},
        after=suppressed(),
        before=knowing(),
        never_seen=tiny_model(seed=3, num_hidden_layers=4),
    )
    found = steering(subjects["after"]).as_json()
    assert set(found["rows"]) == {f"{way}/{metric}" for way in ("steered", "random_direction") for metric in METRICS}

    languages, items = np.array(rows["language"]), np.array(rows["item"])
    picking = picks(items, 42)
    tuned_on = rows.select(np.flatnonzero(picking & (languages < 2)))
    means = []
    for subject in (subjects["after"], subjects["before"]):
        with subject.ready() as model:
            means.append(mean_states(subject, model, tuned_on, range(1, 4)))
    directions = {layer + 1: value / max(value.norm(), 1e-12) for layer, value in enumerate(means[0] - means[1])}
    by_coefficient = {each: naive_figures(suppressed(), rows, directions, each) for each in COEFFICIENTS}
    plain = naive_figures(suppressed(), rows, {}, 0)
    for index, language in enumerate(LANGUAGES):
        tuned, measured = (half & (languages == index) for half in (picking, ~picking))
        best = max(COEFFICIENTS, key=lambda each: by_coefficient[each][tuned, 0].mean())
        assert f"{language} {best:g}" in found["notes"][0]
        for column, metric in enumerate(METRICS):
            figure = found["rows"][f"steered/{metric}"][language]
            assert figure["items"] == sorted(items[measured].tolist())
            order = np.argsort(items[measured])
            np.testing.assert_allclose(figure["values"], by_coefficient[best][measured, column][order], atol=1e-9)
        steered_accuracy = np.mean(found["rows"]["steered/memorization_accuracy"][language]["values"])
        control = np.mean(found["rows"]["random_direction/memorization_accuracy"][language]["values"])
        assert plain[measured, 0].mean() < 0.1
        assert steered_accuracy > 0.3 and steered_accuracy > 2 * control
    assert "layers 2 to 4 of 4" in found["notes"][0]

    # A model that never knew gains nothing by its direction, and the control is the same whenever it is asked.
    never = steering(subjects["never_seen"]).as_json()["rows"]["steered/memorization_accuracy"]
    assert max(np.mean(never[language]["values"]) for language in LANGUAGES) < 0.15
    assert steering(subjects["after"]).as_json() == found


def test_the_control_is_a_mean_over_draws_and_nothing_is_found_where_nothing_changed(tmp_path):
    rows = known_rows()
    before = knowing()
    with torch.no_grad():  # as if a kernel had summed in another order
        before.model.embed_tokens.weight.mul_(1 + 1e-6)
    subjects = subjects_of(tmp_path, {"forget": rows}, after=knowing(), before=before)
    found = steering(subjects["after"]).as_json()["rows"]
    picking = picks(rows["item"], 42)
    plain = naive_figures(knowing(), rows, {}, 0)[~picking, 0]
    languages = np.array(rows["language"])[~picking]
    drawn = []
    for index, language in enumerate(LANGUAGES):
        # The direction is 0, so steering leaves the model as it is.
        np.testing.assert_allclose(
            found["steered/memorization_accuracy"][language]["values"], plain[languages == index]
        )
        tokens = np.array(
            [sum(label >= 0 for label in row["labels"]) for row in rows.select(np.flatnonzero(~picking))]
        )[languages == index]
        values = np.array(found["random_direction/memorization_accuracy"][language]["values"])
        # Hits of so many tokens in so many draws.
        hits = values * tokens * RANDOM_DRAWS
        np.testing.assert_allclose(hits, hits.round(), atol=1e-6)
        drawn += (values * tokens).tolist()
    # Not the hits of a single draw.
    assert not np.allclose(drawn, np.round(drawn))


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ({"num_hidden_layers": 3}, "not as many layers"),
        ({"hidden_size": 64}, "not the size"),
    ],
)
def test_models_that_cannot_be_compared_are_noted(before, reason, tmp_path):
    found = steering(subjects_of(tmp_path, after=tiny_model(), before=tiny_model(**before))["after"]).as_json()
    assert set(found) == {"notes", "withheld"} and reason in found["notes"][0]


@pytest.mark.parametrize("passed_by", [0, 1])
def test_a_layer_that_is_passed_by_withholds_the_check(passed_by, tmp_path):
    subject = subjects_of(tmp_path, after=tiny_model(seed=1), before=tiny_model())["after"]
    load = subject.load

    def changed():
        model, kept = load(), []
        layers = model.model.layers
        layers[passed_by].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        follower = model.model.norm if passed_by == 1 else layers[1]
        follower.register_forward_pre_hook(lambda _, args: (kept[-1], *args[1:]))
        return model

    subject.load = changed
    found = steering(subject).as_json()
    assert set(found) == {"notes", "withheld"}
    assert f"no use of the output of its block {passed_by + 1}" in found["withheld"]


@pytest.mark.parametrize("heldout", [0, 1])
def test_trained_languages_of_a_single_item_are_noted(heldout, tmp_path):
    rows = tiny_rows().filter(
        lambda language, item: item == 0 or (heldout and language == 2), input_columns=["language", "item"]
    )
    subjects = subjects_of(tmp_path, {"forget": rows}, heldout, after=tiny_model(), before=tiny_model())
    assert steering(subjects["after"]).as_json() == {
        "notes": ["no steering: there are not two items in a trained language"]
    }


def test_a_language_without_rows_in_both_halves_is_left_out(tmp_path):
    rows = tiny_rows().filter(lambda language, item: language != 1 or item == 0, input_columns=["language", "item"])
    found = steering(
        subjects_of(tmp_path, {"forget": rows}, after=tiny_model(seed=1), before=tiny_model())["after"]
    ).as_json()
    assert all(set(by_language) == {"en", "zh"} for by_language in found["rows"].values())
