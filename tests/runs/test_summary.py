"""One sentence on a run for a reader who knows no paper, and what the model said before and says now."""

import copy
import json
import math

import pytest
from helpers.material import LANGUAGES, write_material

import run_unlearn
from unlearn_trainer.report.summary import EXAMPLES, example_lines, verdict

TEXTS = ("prompt", "reference", "before", "after")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that forgets what a tiny model knows by heart, with its texts."""
    folder = tmp_path_factory.mktemp("summary")
    flags = write_material(folder)
    (folder / "test.jsonl").write_text((folder / "valid.jsonl").read_text())
    learn = ["--memorize_first", "--memorize_epochs", "80", "--memorize_learning_rate", "3e-3"]
    forget = [
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--max_steps",
        "15",
        "--learning_rate",
        "3e-3",
        "--show_texts",
    ]
    run_unlearn.run([*flags, *learn, *forget, "--output_dir", str(folder / "out")])
    return folder


@pytest.fixture
def results(folder):
    return json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))


def with_growth(results, split, ratios):
    """``results`` in which the perplexity of a split has grown by ``ratios`` and everything else is as it was."""
    results = copy.deepcopy(results)
    for name in ("retain", "valid", "test"):
        results["after"][name] = copy.deepcopy(results["before"].get(name) or results["after"][name])
        results["before"][name] = copy.deepcopy(results["after"][name])
    for language, ratio in zip(results["languages"], ratios, strict=True):
        figures = results["after"][split][language]
        figures["loss"] = results["before"][split][language]["loss"] + math.log(ratio)
    return results


def with_forget(results, shares):
    """``results`` in which ``shares`` of what was memorized above the target are left."""
    results, metric = copy.deepcopy(results), results["config"]["forget_metric"]
    for language, share in zip(results["languages"], shares, strict=True):
        start, target = results["before"]["forget"][language][metric], results["targets"][language]
        results["after"]["forget"][language][metric] = target + share * (start - target)
    return results


def test_a_run_that_worked_is_said_in_one_sentence(results):
    calm = with_growth(with_forget(results, [0.0, 0.1, 0.05]), "retain", [1.0, 1.04, 0.9])
    calm["unlearning_score"] = 0.904
    assert verdict(calm) == "Forgotten in 3 of 3 languages, nothing else lost: score 0.90 of 1."


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([0.0, 0.11, 0.0], "Forgotten in 2 of 3 languages (not in Swahili), "),
        ([1.0, 0.2, 0.9], "Forgotten in 0 of 3 languages (not in English, Swahili, Chinese), "),
    ],
)
def test_languages_that_remember_are_named(results, shares, said):
    assert LANGUAGES == ["en", "sw", "zh"]
    assert verdict(with_forget(results, shares)).startswith(said)


@pytest.mark.parametrize(
    ("split", "ratios", "said"),
    [
        (
            "retain",
            [1.06, 1.0, 1.0],
            "text to keep in 1 of 3 languages (perplexity in English is 1.06 times the start's)",
        ),
        (
            "retain",
            [1.2, 1.5, 1.0],
            "text to keep in 2 of 3 languages (perplexity in Swahili is 1.5 times the start's)",
        ),
        ("valid", [1.9, 1.0, 2.5], "other text in 1 of 3 languages (perplexity in Chinese is 2.5 times the start's)"),
        ("test", [1.0, 4.0, 1.0], "other text in 1 of 3 languages (perplexity in Swahili is 4 times the start's)"),
        ("retain", [1.0, math.nan, 1.0], "text to keep in 1 of 3 languages (perplexity in Swahili is not a number)"),
    ],
)
def test_what_else_was_lost_is_said_with_its_worst_language(results, split, ratios, said):
    assert f"but lost: {said}: score" in verdict(with_growth(results, split, ratios))


def test_valid_text_may_move_where_text_to_keep_may_not(results):
    assert "nothing else lost" in verdict(with_growth(results, "valid", [1.9, 1.9, 1.9]))


def test_nothing_is_claimed_of_what_was_not_measured(results):
    for phase in ("before", "after"):
        results[phase] = {"forget": results[phase]["forget"]}
    assert "nothing else measured" in verdict(results) and "nothing else lost" not in verdict(results)
    unmeasured = results | {"after": {}, "targets": {}}
    assert verdict(unmeasured) == "" and verdict(results | {"before": None, "targets": {}}) == ""


def test_languages_with_nothing_to_forget_are_counted_apart(results):
    metric = results["config"]["forget_metric"]
    results["targets"]["sw"] = results["before"]["forget"]["sw"][metric]
    assert "of 2 languages" in verdict(results) and "nothing to forget in 1 more" in verdict(results)
    for language in LANGUAGES:
        results["targets"][language] = results["before"]["forget"][language][metric]
    assert verdict(results).startswith("There was nothing to forget in any language")


def test_examples_are_what_the_model_said_before_and_says_now(results, folder):
    examples = results["examples"]
    assert {(example["split"], example["language"]) for example in examples} == {
        (split, language)
        for split in ("forget", "retain")
        for language in [*LANGUAGES, *results["heldout_languages"]]
        if results["before"][split].get(language)
    }
    rows = {
        (language, text)
        for line in (folder / "forget.jsonl").read_text(encoding="utf-8").splitlines()
        for language, text in json.loads(line).items()
    }
    known = [example for example in examples if example["split"] == "forget" and example["language"] in LANGUAGES]
    for example in known:
        assert all(isinstance(example[key], str) for key in TEXTS)
        whole = f"{example['prompt']} {example['reference']}"
        assert any(language == example["language"] and whole in text for language, text in rows)
    recited = [example for example in known if example["before"] == example["reference"]]
    assert recited and all(example["after"] != example["before"] for example in recited)


@pytest.mark.parametrize("count", [1, 2, EXAMPLES])
def test_examples_are_shown_in_different_languages(results, count):
    lines = example_lines(results, count)
    assert len(lines) == 1 + 4 * count
    heads = [line.split(":")[0].strip() for line in lines[1::4]]
    assert len(set(heads)) == count and heads[0] == "English"


def test_without_show_texts_results_hold_no_text(folder):
    flags = write_material(folder / "again")
    run_unlearn.run([*flags, "--do_train", "--max_steps", "1", "--output_dir", str(folder / "silent")])
    written = (folder / "silent" / "results.json").read_text(encoding="utf-8")
    assert "examples" not in json.loads(written)
    for line in (folder / "again" / "forget.jsonl").read_text(encoding="utf-8").splitlines():
        assert not any(json.dumps(text)[1:-1] in written for text in json.loads(line).values())
