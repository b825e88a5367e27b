"""Figures have one written name, and a result that was kept in a file is the result that the check has found."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_trainer.audit.results import CONTROLS, Estimate, Figure, Matrix, Name, Result, Variant, read_figures

WORDS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: "/" not in text)
VARIANTS = st.lists(WORDS | st.sampled_from(sorted(CONTROLS)), max_size=3).map("/".join)


@given(WORDS, VARIANTS)
def test_a_name_is_read_back_as_it_was_written(metric, variant):
    name = Name(metric, Variant.named(variant))
    assert Name.read(str(name)) == name
    assert str(name) == (f"{variant}/{metric}" if variant else metric)
    assert name.variant.is_control == bool({*variant.split("/")} & {*CONTROLS})


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("metric", ["memorization_accuracy", "extraction_strength"])
def test_a_control_tells_nothing_of_what_is_known(control, metric):
    assert CONTROLS[control] == Variant.named(control)
    assert Name(metric).counts_as_knowledge and Name(metric, Variant("int4")).counts_as_knowledge
    assert not Name(metric, CONTROLS[control]).counts_as_knowledge
    assert not Name(metric, Variant.named(f"int4/{control}")).counts_as_knowledge
    assert not Name(f"{control}_{metric}").counts_as_knowledge


def test_a_result_comes_back_from_its_file():
    rows = {"items": [0, 2], "values": [0.25, 1.0]}
    result = Result(
        figures={
            Name("auc_loss"): {"en": Estimate(0.5, 0.4, 0.6, 9)},
            Name("perplexity", Variant.named("retain")): {"sw": Estimate(math.inf, 1.0, math.inf, 3)},
        },
        matrix=Matrix(["en"], ["en", "sw"], "from", "to", "memorization_accuracy", {"after": [[None, 0.5]]}),
        notes=["a sentence"],
        doubts={Variant("relearned"): "it learned nothing"},
        ratios={"en": [0.1, -2.0]},
    )
    result.add_rows({"memorization_accuracy": {"en": rows}})
    result.add_rows({"memorization_accuracy": {"en": rows}}, Variant.named("random_direction"))
    kept = json.loads(json.dumps(result.as_json()))
    assert Result.from_json(kept) == result
    assert [*kept["rows"]] == ["memorization_accuracy", "random_direction/memorization_accuracy"]
    assert [*map(str, result.names)] == [*kept["rows"], *kept["figures"]]
    assert Result(notes=[], withheld="no blocks").as_json() == {"withheld": "no blocks", "notes": []}


def test_a_file_of_an_earlier_version_may_lack_what_was_empty():
    assert Result.from_json({"rows": {}, "doubts": {}}) == Result(notes=[]) == Result.from_json({"notes": []})


def test_a_figure_has_only_the_comparisons_that_were_made():
    alone = {"value": 0.5, "low": None, "high": None, "n": 8}
    compared = alone | {"never_seen": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 8}, "statistic": 0.25}
    for content in (alone, compared):
        assert Figure.from_json(content).as_json() == content
    found = read_figures({"int4/loss": compared})
    assert found[Name("loss", Variant("int4"))].never_seen == Estimate(0.1, 0.0, 0.2, 8)
    assert found[Name("loss", Variant("int4"))].before is None
