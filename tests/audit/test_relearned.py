"""Relearning as an attack, against a loop over what each relearned model makes of each row."""

from statistics import mean

import pytest
from helpers.subjects import subjects_of
from helpers.tiny import LANGUAGES, tiny_model, tiny_rows

from unlearn_trainer.audit.checks.relearned import BEST, METRICS, RELEARNED, relearning
from unlearn_trainer.audit.results import RELEARNED_FROM_OTHER_TEXT, Name
from unlearn_trainer.runs.relearning import relearn

ATTACK = {"audit_relearn_steps": 10, "audit_relearn_learning_rate": 5e-3, "audit_relearn_batch_size": 4}
# Of few tokens, so that what is learned in one language comes back in others.
ROWS = {split: tiny_rows(8, seed, vocabulary=11) for seed, split in enumerate(("forget", "retain", "valid"))}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    models = {name: tiny_model(seed=seed) for seed, name in enumerate(("after", "never_seen"))}
    return subjects_of(tmp_path_factory.mktemp("models"), ROWS, heldout=0, settings=ATTACK, **models)


def relearned(subject, language, split="forget"):
    """``{(language, item): {metric: value}}`` of the forget rows, a split learned in ``language``."""
    settings = {name.removeprefix("audit_relearn_"): value for name, value in ATTACK.items()}
    trainer = relearn(
        lambda: subject.load(dtype="float32"),
        subject.args,
        ROWS[split],
        language,
        LANGUAGES,
        seed=subject.seed,
        measured={"forget": ROWS["forget"]},
        tokenizer=subject.tokenizer,
        **settings,
    )
    columns = trainer.measure_rows()["forget"]
    keys = zip(columns["language"].tolist(), columns["item"].tolist(), strict=True)
    return {
        (LANGUAGES[language], item): {metric: float(columns[metric][row]) for metric in METRICS}
        for row, (language, item) in enumerate(keys)
    }


def mean_over_others(models, metric, language, item):
    return mean(model[language, item][metric] for shown, model in models.items() if shown != language)


def by_the_best(models, metric, language, item, chooses_by_itself=False):
    """What the language that brings most back brings back here, chosen by every other item's accuracy."""
    items = sorted(number for code, number in next(iter(models.values())) if code == language)
    place = items.index(item)
    judges = [other for index, other in enumerate(items) if (index % 2 == place % 2) == chooses_by_itself]

    def brought(shown):
        return mean(models[shown][language, judge]["memorization_accuracy"] for judge in judges)

    best = max((shown for shown in models if shown != language), key=brought)
    return models[best][language, item][metric]


@pytest.mark.parametrize("name", ["after", "never_seen"])
def test_what_comes_back_is_measured_in_languages_that_were_not_shown(name, subjects):
    subject = subjects[name]
    found = relearning(subject)
    models = {language: relearned(subject, language) for language in LANGUAGES}
    for metric in METRICS:
        for language in LANGUAGES:
            for variant, expected in ((RELEARNED, mean_over_others), (BEST, by_the_best)):
                rows = found.rows[Name(metric, variant)][language]
                assert rows["items"] == list(range(8))
                wanted = [expected(models, metric, language, item) for item in rows["items"]]
                assert rows["values"] == pytest.approx(wanted, abs=1e-6), (metric, language, variant)
    every = [(METRICS[0], language, item) for language in LANGUAGES for item in range(8)]
    # The comparison would say little if it were all one.
    assert any(by_the_best(models, *row) != by_the_best(models, *row, chooses_by_itself=True) for row in every)
    assert any(by_the_best(models, *row) != mean_over_others(models, *row) for row in every)
    # Each language's own rows are learned, though not by heart: the attack did something.
    own = [mean(models[code][code, item][METRICS[0]] for item in range(8)) for code in LANGUAGES]
    assert min(own) > 0.2 and max(own) < 0.5
    assert not found.doubts and not any("hardly anything" in note for note in found.notes)
    for shown, line in zip(found.matrix.rows, found.matrix.values[name], strict=True):
        means = [mean(models[shown][language, item][METRICS[0]] for item in range(8)) for language in LANGUAGES]
        assert line == pytest.approx(means, abs=1e-6)


def test_the_control_learns_unseen_rows_and_is_asked_of_the_audited_model_alone(subjects):
    found, never_seen = relearning(subjects["after"]), relearning(subjects["never_seen"])
    assert "control" in found.matrix.values and "control" not in never_seen.matrix.values
    assert Name(METRICS[0], RELEARNED_FROM_OTHER_TEXT) not in never_seen.rows
    models = {language: relearned(subjects["after"], language, "valid") for language in LANGUAGES}
    for language in LANGUAGES:
        rows = found.rows[Name(METRICS[0], RELEARNED_FROM_OTHER_TEXT)][language]
        wanted = [mean_over_others(models, METRICS[0], language, item) for item in rows["items"]]
        assert rows["values"] == pytest.approx(wanted, abs=1e-6)


def test_relearning_that_teaches_nothing_is_doubted(tmp_path):
    settings = ATTACK | {"audit_relearn_learning_rate": 1e-9}
    subjects = subjects_of(tmp_path, ROWS, heldout=0, settings=settings, after=tiny_model())
    found = relearning(subjects["after"])
    assert set(found.doubts) == {RELEARNED, BEST}
    assert any(f"hardly anything was relearned in {', '.join(LANGUAGES)}" in note for note in found.notes)
