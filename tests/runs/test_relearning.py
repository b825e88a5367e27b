"""Relearning against a training loop by hand, and what counts as regained."""

import numpy as np
import pytest
import torch
from helpers.tiny import LANGUAGES, tiny_config, tiny_model, tiny_rows, tiny_trainer

from unlearn_trainer.errors import ConfigError, DataError
from unlearn_trainer.runs.relearning import regained, relearn

ITEMS = 6


def relearned(folder, language="sw", rows=None, load=tiny_model, **changes):
    rows = tiny_rows(ITEMS) if rows is None else rows
    settings = {"learning_rate": 1e-2, "steps": 8, "batch_size": ITEMS, "measured": {"forget": tiny_rows(ITEMS)}}
    return relearn(load, tiny_config(folder), rows, language, LANGUAGES, **settings | changes)


def by_hand(language, steps=8, learning_rate=1e-2):
    """Full-batch training on one language with the model's own forward."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    rows = [row for row in tiny_rows(ITEMS) if row["language"] == LANGUAGES.index(language)]
    tokens = sum(label != -100 for row in rows for label in row["labels"][1:])
    for _ in range(steps):
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            targets = torch.tensor(row["labels"][1:])
            (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def accuracy(model, language):
    hits = []
    for row in tiny_rows(ITEMS):
        if row["language"] == LANGUAGES.index(language):
            with torch.no_grad():
                greedy = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].argmax(-1)
            targets = torch.tensor(row["labels"][1:])
            hits.append((greedy == targets)[targets != -100].double().mean().item())
    return sum(hits) / len(hits)


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_is_plain_training_on_one_language(language, tmp_path):
    expected = by_hand(language)
    trainer = relearned(tmp_path, language)
    for (name, found), parameter in zip(trainer.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, parameter, rtol=1e-3, atol=2e-5, msg=name)
    rows = trainer.measure_rows()["forget"]
    others = [other for other in LANGUAGES if other != language]
    assert regained(rows, language, LANGUAGES) == pytest.approx({o: accuracy(expected, o) for o in others})
    # It learned: what is left out of "regained" is known by now.
    assert regained(rows, others[0], LANGUAGES)[language] > 0.9


def test_the_same_arguments_give_the_same_weights_and_another_seed_gives_others(tmp_path):
    def weights(**changes):
        model = relearned(tmp_path, batch_size=2, steps=4, **changes).model
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    first = weights(seed=1)
    assert torch.equal(weights(seed=1), first)
    assert not torch.equal(weights(seed=2), first)


def test_rows_of_other_languages_are_not_read(tmp_path):
    changed = tiny_rows(ITEMS).map(
        lambda row: row if row["language"] == 1 else row | {"input_ids": [5] * len(row["input_ids"])}
    )
    pairs = zip(
        relearned(tmp_path).model.parameters(), relearned(tmp_path, rows=changed).model.parameters(), strict=True
    )
    assert all(torch.equal(found, expected) for found, expected in pairs)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "alternate", "lingtea_alignment": "released", "forget_weighting": "target"},
        {"relearn_coef": 0.7, "relearn_steps": 2, "relearn_rate": 1e-2},
        {"project_forget_gradient": True, "language_sampling": "random", "distill_weighting": "language"},
    ],
    ids=["schedule", "guard", "projection"],
)
def test_the_settings_of_an_unlearning_run_do_not_reach_into_it(settings, tmp_path):
    """Everything of the run's own method is switched off; only engine and optimizer stay."""
    run = tiny_trainer(
        tmp_path / "run",
        method="lingtea",
        retain_weighting="primal_dual",
        gradient_accumulation_steps=2,
        warmup_steps=3,
        num_train_epochs=7,
        forget_coef=0.1,
        eval_strategy="epoch",
        **settings,
    )
    trainer = relearn(
        tiny_model, run.args, tiny_rows(ITEMS), "sw", LANGUAGES, learning_rate=1e-2, steps=8, batch_size=ITEMS
    )
    assert trainer.state.global_step == 8
    pairs = zip(trainer.model.parameters(), relearned(tmp_path).model.parameters(), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)


def test_frozen_models_are_trained_whole_and_nothing_is_written(tmp_path, capsys):
    trainer = relearned(tmp_path / "out", load=lambda: tiny_model().requires_grad_(False))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    pairs = zip(trainer.model.parameters(), tiny_model().parameters(), strict=True)
    assert all(not torch.equal(found, start) for found, start in pairs)
    assert not list(tmp_path.rglob("*.*"))
    assert not capsys.readouterr().out


def test_regained_leaves_out_the_relearned_language_and_those_without_rows():
    rows = {
        "language": np.array([0, 0, 1, 2]),
        "memorization_accuracy": np.array([0.5, 1.0, 0.9, 0.25]),
        "extraction_strength": np.array([0.0, 0.5, 0.9, 0.0]),
    }
    assert regained(rows, "sw", [*LANGUAGES, "de"]) == {"en": 0.75, "zh": 0.25}
    assert regained(rows, "sw", LANGUAGES, "extraction_strength") == {"en": 0.25, "zh": 0.0}


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="language de to relearn in is not one of en, sw, zh"):
        relearned(tmp_path, "de")
    with pytest.raises(ConfigError, match="a relearning step of 0 rows"):
        relearned(tmp_path, batch_size=0)
    only_english = tiny_rows(ITEMS).filter(lambda row: row["language"] == 0)
    with pytest.raises(DataError, match="no row in sw"):
        relearned(tmp_path, rows=only_english)
