"""What is made of the checks' results: where each figure stands between the other models, and what has no place."""

import dataclasses
import math

import pytest
from helpers.subjects import subjects_of
from helpers.tiny import LANGUAGES, tiny_model

from unlearn_trainer.audit.findings import Findings
from unlearn_trainer.audit.results import Estimate, Name, Result, Variant

PLAIN = Name("memorization_accuracy")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    models = {name: tiny_model(seed=seed) for seed, name in enumerate(("before", "never_seen", "after"))}
    return subjects_of(tmp_path_factory.mktemp("models"), **models)


def rows(value, count=20):
    return {"items": list(range(count)), "values": [value] * count}


def compared(subjects, tmp_path, name, values, plain=(1.0, 0.0, 0.1)):
    """The figures of ``name``: ``values`` of the models before, never seen and after, one a language; plain MA too."""
    findings = Findings(tmp_path, subjects)
    for check, metric, by_model in (("memorization", PLAIN, [[each] * 3 for each in plain]), ("attack", name, values)):
        found = findings.results[check] = {}
        for model, by_language in zip(("before", "never_seen", "after"), by_model, strict=True):
            found[model] = Result()
            if by_language is not None:
                given = {code: rows(value) for code, value in zip(LANGUAGES, by_language, strict=True)}
                found[model].rows[metric] = given
    return {language: figures[name] for language, figures in findings.figures().items()}


def test_what_an_attack_brings_back_is_a_share_of_all_there_was_to_know(subjects, tmp_path):
    """Not of what the same attack would have brought back from the model before, which may be as little."""
    name = Name(PLAIN.metric, Variant("int4"))
    values = [0.4, 0.5, 0.3], [0.0, 0.1, 0.3], [0.4, 0.3, 0.3]
    found = compared(subjects, tmp_path, name, values)
    places = [found[code].position.value for code in LANGUAGES]
    assert places == pytest.approx([0.4, 0.2, 0.0])
    assert [found[code].known.value for code in LANGUAGES] == pytest.approx([1.0, 1.0, 1.0])
    assert [found[code].excess.value for code in LANGUAGES] == pytest.approx([0.4, 0.2, 0.0])
    # A model before that was not attacked changes none of it.
    again = compared(subjects, tmp_path, name, (None, *values[1:]))
    assert again == {code: dataclasses.replace(figure, before=None) for code, figure in found.items()}


@pytest.mark.parametrize(
    ("metric", "before", "never_seen", "place"),
    [
        ("loss", 0.1, 9.1, 0.5),  # falls with knowledge
        ("loss", 9.1, 0.1, 0.5),
        ("memorization_accuracy", 0.9, 0.1, 0.5),
        ("memorization_accuracy", 0.1, 0.9, None),  # the model before did not know it
        ("memorization_accuracy", 0.11, 0.1, None),  # nor did it here
        ("loss", 9.11, 9.1, None),
    ],
)
def test_a_model_before_that_knew_nothing_marks_no_end(metric, before, never_seen, place, subjects, tmp_path):
    middle = (before + never_seen) / 2
    values = [before] * 3, [never_seen] * 3, [middle] * 3
    plain = (before, never_seen, middle)
    for figure in compared(subjects, tmp_path, Name(metric), values, plain).values():
        assert figure.excess.value == pytest.approx(middle - never_seen)
        assert figure.known.value == pytest.approx(before - never_seen)
        assert (figure.position and figure.position.value) == (place and pytest.approx(place))


def test_rows_of_earlier_requests_have_no_place(subjects, tmp_path):
    """The model before this request had forgotten them already: it marks no end of the way."""
    name = Name(PLAIN.metric, Variant("forgotten_1"))
    found = compared(subjects, tmp_path, name, ([0.9] * 3, [0.0] * 3, [0.4, 0.0, 0.9]))
    assert [found[code].excess.value for code in LANGUAGES] == pytest.approx([0.4, 0.0, 0.9])
    assert all(figure.position is None and figure.known is None for figure in found.values())


@pytest.mark.parametrize(
    ("before", "never_seen", "place"),
    [
        ((0.9, 0.8, 1.0), (0.5, 0.4, 0.6), 0.25),
        ((0.5, 0.4, 0.6), (0.9, 0.8, 1.0), 0.75),
        ((2.6, 2.4, 2.8), (0.1, 0.0, 0.2), 0.2),
        ((0.9, 0.65, 1.0), (0.5, 0.4, 0.7), None),  # the ends may be the same
        ((0.5, 0.4, 0.7), (0.9, 0.65, 1.0), None),
        ((0.9, 0.7, 1.0), (0.5, 0.4, 0.7), None),
        ((math.inf, 1.0, math.inf), (0.5, 0.4, 0.6), None),
        ((0.9, math.nan, 1.0), (0.5, 0.4, 0.6), None),
        (None, (0.5, 0.4, 0.6), None),
        ((0.9, 0.8, 1.0), None, None),
    ],
)
def test_a_figure_of_all_rows_has_a_place_where_the_ends_are_surely_apart(
    before, never_seen, place, subjects, tmp_path
):
    name, findings = Name("auc_loss"), Findings(tmp_path, subjects)
    given = {"before": before, "never_seen": never_seen, "after": (0.6, 0.55, 0.7)}
    findings.results["memorization"] = {
        model: Result(figures={name: {"en": Estimate(*ends, 20)}} if ends else {}) for model, ends in given.items()
    }
    found = findings.figures()["en"][name].position
    if place is None:
        assert found is None
    else:
        assert found.value == pytest.approx(place) and found.low < found.value < found.high
