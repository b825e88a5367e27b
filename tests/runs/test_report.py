"""results.json is whole or absent, and the table says what a reader would otherwise look up in it."""

import json
import math
import os
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
import transformers
from helpers.material import write_material

import run_unlearn
from unlearn_trainer.report.table import comparison_table
from unlearn_trainer.runs.results import write_results


def figures(accuracy, loss, perplexity):
    accuracies = {"memorization_accuracy": accuracy, "extraction_strength": accuracy / 2}
    return {**accuracies, "loss": loss, "perplexity": perplexity}


@pytest.fixture
def results():
    """Two trained and one held-out language; sw is remembered best, en's perplexity grows most."""
    return {
        "schema_version": 1,
        "config": {"method": "lingtea"},
        "environment": {},
        "languages": ["en", "sw"],
        "heldout_languages": ["zu"],
        "dropped_rows": {},
        "before": {
            "forget": {"en": figures(0.9, 0.1, 1.1), "sw": figures(0.8, 0.2, 1.2), "zu": figures(0.5, 2.0, 7.4)},
            "retain": {"en": figures(0.9, 2.3, 10.0), "sw": figures(0.9, 3.0, 20.0), "zu": figures(0.1, 3.4, 30.0)},
        },
        "after": {
            "forget": {"en": figures(0.1, 9.0, 8000.0), "sw": figures(0.3, 5.0, 148), "zu": figures(0.2, 6.0, 400)},
            "retain": {"en": figures(0.9, 2.5, 12.5), "sw": figures(0.9, 3.0, 21.0), "zu": figures(0.1, 3.5, 33.0)},
        },
        "never_seen": {"forget": {"en": figures(0.2, 4.4, 81.5), "sw": figures(0.1, 4.7, 110.0)}},
        "language_weights": [],
        "unlearning_score": 0.8125,
        "timing": {"train_seconds": 1.0},
    }


def cells(table, label):
    """The cells of the one line that starts with ``label``, group by group."""
    (line,) = [line for line in table.splitlines() if line.split()[:1] == [label]]
    return [group.split() for group in line.split("|")[1:]]


def test_what_is_written_is_read_back(tmp_path, results):
    path = tmp_path / "new" / "results.json"
    write_results(path, results)
    assert json.loads(path.read_text(encoding="utf-8")) == results
    assert os.listdir(path.parent) == ["results.json"]


def test_scalars_become_numbers_and_what_json_lacks_becomes_null(tmp_path, results):
    results["timing"] = {
        "numpy": np.float32(0.5),
        "torch": torch.tensor(3),
        "flag": np.bool_(True),
        "not_finite": [math.nan, math.inf, -math.inf, np.float64("nan"), torch.tensor(math.inf)],
        "nested": ({"x": math.nan},),
    }
    write_results(tmp_path / "results.json", results)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    timing = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)["timing"]
    assert timing == {"numpy": 0.5, "torch": 3, "flag": True, "not_finite": [None] * 5, "nested": [{"x": None}]}


def test_the_earlier_file_is_replaced_and_never_rewritten(tmp_path, results):
    path, same_file = tmp_path / "results.json", tmp_path / "link.json"
    write_results(path, results)
    os.link(path, same_file)
    write_results(path, {**results, "unlearning_score": 0.5})
    assert json.loads(same_file.read_text())["unlearning_score"] == 0.8125
    assert json.loads(path.read_text())["unlearning_score"] == 0.5


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda results: results.pop("timing"), ValueError, "lack timing"),
        (lambda results: results.update(schema_version=2), ValueError, "schema_version 2, not 1"),
        (lambda results: (results.pop("before"), results.pop("after")), ValueError, "neither `before` nor `after`"),
        (lambda results: results["after"]["retain"].update(xx={}), ValueError, "after/retain .* xx"),
        (lambda results: results.update(config={"path": object()}), TypeError, "object"),
    ],
)
def test_refused_results_leave_the_earlier_file_and_nothing_else(tmp_path, results, spoil, error, message):
    path = tmp_path / "results.json"
    write_results(path, results)
    earlier = path.read_bytes()
    spoil(results)
    with pytest.raises(error, match=message):
        write_results(path, results)
    assert path.read_bytes() == earlier
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_file_that_cannot_be_put_in_place_leaves_no_temporary_one(tmp_path, results):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OSError):
        write_results(tmp_path / "results.json", results)
    assert os.listdir(tmp_path) == ["results.json"]


def test_table_of_a_complete_run(results):
    table = comparison_table(results, width=120)
    assert re.findall(r"forget MA|forget ES|forget loss|retain perplexity|valid", table.splitlines()[0]) == [
        "forget MA",
        "forget ES",
        "forget loss",
        "retain perplexity",
    ]
    three = ["before", "after", "unseen"]
    assert cells(table, "language") == [three, three, three, ["before", "after"]]
    assert cells(table, "en") == [
        ["0.900", "0.100", "0.200"],
        ["0.450", "0.050", "0.100"],
        ["0.10", "9.00", "4.40"],
        ["10.00", "12.50*"],
    ]
    assert cells(table, "sw")[0] == ["0.800", "0.300*", "0.100"]
    assert cells(table, "sw")[2] == ["0.20", "5.00*", "4.70"]
    assert cells(table, "zu")[0] == ["0.500", "0.200", "-"]
    assert "unlearning score: 0.812" in table
    assert "unseen: " in table


def test_heldout_languages_and_their_mean_stand_below_their_own_rule(results):
    lines = comparison_table(results, width=120).splitlines()
    starts = [line.split(" | ")[0].split("-+-")[0].strip() for line in lines[1:]]
    assert starts[1].strip("-") == ""
    assert starts[:1] + starts[2:5] == ["language", "en English", "sw Swahili", "mean"]
    assert lines[6].startswith("-- held out")
    assert starts[6:8] == ["zu Zulu", "mean"]
    means = [line.split("|")[1].split() for line in lines if line.startswith("mean")]
    assert means == [["0.850", "0.200", "0.150"], ["0.500", "0.200", "-"]]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_lines_are_aligned_and_fit(results, width):
    results["languages"] = ["en", "sw", "zho_Hans"]
    results["after"]["retain"]["zho_Hans"] = {"perplexity": 2.5e9}
    tables = comparison_table(results, width).split("\n\n")[:-1]
    assert len(tables) == {40: 4, 80: 2, 120: 1}[width]
    for table in tables:
        lines = table.splitlines()
        assert all(len(line) <= width for line in lines)
        bars = {tuple(bar.start() for bar in re.finditer(r"\|", line)) for line in lines if "|" in line}
        assert len(bars) == 1
        # Right-aligned: the cells of a column, and its head, end at the same place; a mark stands after it.
        rows = [line for line in lines[1:] if not line.startswith(("--", "zho"))]
        figures_start = bars.pop()[0]
        ends = {tuple(cell.end() for cell in re.compile(r"[^\s|*]+").finditer(line, figures_start)) for line in rows}
        assert len(ends) == 1
    assert "2.5e+09" in tables[-1]


def labels_of(table):
    return [line.split(" | ")[0].strip() for line in table.splitlines() if " | " in line][2:]


def test_languages_have_their_names_where_there_is_room(results):
    results["languages"] = ["en", "sw", "zho_Hans", "xx", "[b]tribe"]
    results["heldout_languages"] = []
    codes = ["en", "sw", "zho_Hans", "xx", "[b]tribe", "mean"]
    names = ["en English", "sw Swahili", "zho_Hans Chinese (Simplified)", "xx", "[b]tribe", "mean"]
    wide = comparison_table(results, width=125)
    assert labels_of(wide) == names  # a code without a name stands as it is, and is no markup
    assert max(map(len, wide.splitlines())) <= 125
    # Where a name would take a further table, or a wider line than there is, there are codes alone.
    narrow = comparison_table(results, width=110)
    assert labels_of(narrow) == codes and narrow.count("language") == 1 + narrow.count("worst language")
    assert set(labels_of(comparison_table(results, width=36))) - {"", "language"} == set(codes)


def test_the_table_is_as_wide_as_the_terminal_and_without_colour(results, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert comparison_table(results) == comparison_table(results, width=80)
    monkeypatch.setenv("COLUMNS", "140")
    table = comparison_table(results)
    assert table == comparison_table(results, width=140) != comparison_table(results, width=80)
    assert "\x1b" not in table


def test_without_never_seen_and_heldout(results):
    del results["never_seen"]
    results["heldout_languages"] = []
    table = comparison_table(results, width=120)
    assert "unseen" not in table and "held out" not in table
    assert cells(table, "sw")[0] == ["0.800", "0.300*"]


def test_without_before_no_perplexity_is_called_the_worst(results):
    del results["before"]
    table = comparison_table(results, width=120)
    assert cells(table, "sw")[0] == ["0.300*", "0.100"]
    assert [cells(table, language)[3] for language in ("en", "sw")] == [["12.50"], ["21.00"]]
    # Titles are wider than the single columns below them.
    del results["never_seen"]
    lines = comparison_table(results, width=120).splitlines()
    assert len({tuple(bar.start() for bar in re.finditer(r"\|", line)) for line in lines if "|" in line}) == 1


def test_equal_languages_have_no_worst_and_nan_is_shown_and_judges_none(results):
    for language in ("en", "sw"):
        results["after"]["forget"][language]["memorization_accuracy"] = 0.0
    results["after"]["forget"]["sw"]["loss"] = math.nan
    table = comparison_table(results, width=120)
    assert [cells(table, language)[0][1] for language in ("en", "sw")] == ["0.000", "0.000"]
    assert [cells(table, label)[2][1] for label in ("en", "sw", "zu")] == ["9.00", "nan", "6.00"]
    results["after"]["forget"]["en"]["loss"] = results["after"]["forget"]["zu"]["loss"] = math.nan
    results["after"]["retain"]["sw"]["perplexity"] = math.inf
    table = comparison_table(results, width=120)
    assert [cells(table, label)[2][1] for label in ("en", "sw", "zu")] == ["nan", "nan", "nan"]
    assert cells(table, "sw")[3] == ["20.00", "inf*"]


def test_valid_split_where_present(results):
    for phase in ("before", "after"):
        results[phase]["valid"] = results[phase]["retain"]
    table = comparison_table(results, width=200)
    assert cells(table, "en")[4] == ["10.00", "12.50*"]


def test_test_split_where_present(results):
    for phase in ("before", "after"):
        results[phase]["test"] = results[phase]["retain"]
    table = comparison_table(results, width=200)
    assert "test perplexity" in table and cells(table, "sw")[4] == ["20.00", "21.00"]


def test_the_table_says_why_there_is_no_score(results):
    results |= {"unlearning_score": None, "language_weights": [{"step": 0}]}
    assert comparison_table(results).endswith(
        "unlearning score: none, because there was nothing to forget in any language"
    )
    del results["after"]["retain"]
    assert "score" not in comparison_table(results)


@pytest.fixture
def run(tmp_path):
    """``run(words)``: run_unlearn.py on a tiny model and splits forget, retain, valid and test."""
    flags = write_material(tmp_path, items=3)
    shutil.copy(tmp_path / "valid.jsonl", tmp_path / "test.jsonl")
    return lambda words: run_unlearn.run([*flags, "--output_dir", str(tmp_path / "out"), *words.split()])


def test_a_run_without_anything_to_forget_has_no_score_and_no_distill_weights(run, tmp_path, capfd):
    run("--do_train --do_eval --do_predict --max_steps 1 --languages en sw")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["unlearning_score"] is None
    assert written["language_weights"][0]["distill"] == {"en": None, "sw": None}
    printed = capfd.readouterr().out
    assert "test perplexity" in printed and "there was nothing to forget in any language" in printed


def test_a_stage_by_itself_leaves_the_folder_to_the_run_that_follows(run, tmp_path, capfd):
    run("--memorize_first --memorize_epochs 1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["memorized"]
    lines = capfd.readouterr().out.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("stage memorized: --method memorize")]
    assert all("train_runtime" not in line for line in lines[:first])
    assert any("train_runtime" in line for line in lines[first:])
    run("--memorize_first --memorize_epochs 1 --do_train --do_eval --max_steps 1")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["after"]


def test_no_library_draws_bars_where_they_are_not_wanted(run, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()
    run("--do_train --max_steps 1")
    assert "%|" not in capfd.readouterr().err


def test_no_figures():
    assert comparison_table({"languages": ["en"], "heldout_languages": [], "after": {}}) == "no figures were measured"


def test_figures_of_a_model_that_was_only_measured_stand_there_once(results):
    trained = comparison_table(results, width=200)
    assert "before" in trained and "after" in trained
    del results["never_seen"]
    results["after"] = results["before"]
    table = comparison_table(results, width=200)
    assert "before" not in table and "after" not in table and "now" in table
    assert cells(table, "sw")[0] == ["0.800"]
