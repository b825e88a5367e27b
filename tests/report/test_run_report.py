"""The report of a run says what results.json says, to somebody who reads no papers, in a page that needs nothing."""

import copy
import hashlib
import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest
from helpers.material import LANGUAGES, write_material
from helpers.pages import Page, assert_needs_nothing_else, assert_no_wider_than_its_window

import run_unlearn
from unlearn_trainer.report.curves import curves
from unlearn_trainer.report.run_report import write_run_report
from unlearn_trainer.report.summary import verdict

NAMES = ("English", "Swahili", "Chinese")
SECRET = ["--hub_token", "hf_secret"]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>|`*&amp;](http://a.b)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of all phases, with weights that move and an evaluation on the way."""
    folder = tmp_path_factory.mktemp("report")
    flags = write_material(folder)
    stages = ["--memorize_first", "--memorize_epochs", "40", "--memorize_learning_rate", "3e-3", "--train_never_seen"]
    forget = ["--do_train", "--do_eval", "--max_steps", "6", "--learning_rate", "2e-3", "--forget_weighting", "target"]
    watch = ["--eval_strategy", "steps", "--eval_steps", "3", "--logging_steps", "2", "--weight_update_steps", "2"]
    run_unlearn.run(
        [*flags, *stages, *forget, *watch, "--hub_token", "hf_secret", "--output_dir", str(folder / "out")]
    )
    return folder


@pytest.fixture
def results(folder):
    return json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))


def written(folder, results):
    write_run_report(folder, results)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    return page, (folder / "report.md").read_text(encoding="utf-8")


def outcomes(page):
    """The rows of the table of languages, by name."""
    (table,) = [table for table in page.tables if table[0][:2] == ["language", "outcome"]]
    return {row[0]: row for row in table}


def test_a_run_leaves_its_report_beside_its_results(folder, results):
    out = folder / "out"
    page, markdown = Page((out / "report.html").read_text(encoding="utf-8")), (out / "report.md").read_text("utf-8")
    assert_needs_nothing_else(page, out / "report.html")
    for said in (
        verdict(results),
        *NAMES,
        results["environment"]["commit"] or "python",
        results["data"]["forget"]["sha256"],
    ):
        assert said in page.text and said in markdown
    for language, name in zip(LANGUAGES, NAMES, strict=True):
        figure = results["after"]["forget"][language]["memorization_accuracy"]
        (row,) = [
            row for table in page.tables if table[0][:2] == ["language", "outcome"] for row in table if row[0] == name
        ]
        assert f"{figure:.3f}" in row
    captions = ("Remembered of the rows to be forgotten", "Losses", "Language weights: forget")
    assert all(caption in page.text and caption in markdown for caption in captions)


def test_the_files_are_named_by_their_content(folder, results):
    for split in ("forget", "retain", "valid"):
        content = (folder / f"{split}.jsonl").read_bytes()
        assert results["data"][split]["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_command_repeats_the_run_and_holds_no_token(folder, results):
    command = results["environment"]["command"]
    assert command.startswith("unlearn-trainer ") and "--forget_weighting target" in command
    for name in ("results.json", "report.html", "report.md"):
        assert "hf_secret" not in (folder / "out" / name).read_text(encoding="utf-8")


def test_without_show_texts_no_file_of_a_run_holds_a_text(folder):
    texts = [
        text
        for split in ("forget", "retain", "valid")
        for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for text in json.loads(line).values()
    ]
    for path in (folder / "out").iterdir():
        if path.is_file() and path.suffix in (".json", ".html", ".md", ".txt"):
            content = path.read_text(encoding="utf-8")
            assert not [text for text in texts if text in content], path


def test_a_language_that_remembers_and_text_that_was_lost_are_marked(tmp_path, results):
    for language in LANGUAGES:
        results["after"]["forget"][language]["memorization_accuracy"] = float(language == "sw")
    results["after"]["retain"]["zh"]["loss"] = results["before"]["retain"]["zh"]["loss"] + math.log(3)
    page, markdown = written(tmp_path, results)
    rows = outcomes(page)
    assert rows["Swahili"][1] == "✗ 100% left" and "✗ 3.00" in rows["Chinese"]
    assert (
        "Still remembered in " in page.text
        and "(not in Swahili)" in page.text
        and "Something else was lost" in page.text
    )
    assert "✗ 100% left" in markdown


@pytest.mark.parametrize(
    "missing", ["never_seen", "evaluations", "losses", "language_weights", "data", "before", "after"]
)
def test_what_was_not_measured_leaves_a_report_without_it(tmp_path, results, missing):
    results = {key: value for key, value in results.items() if key != missing}
    if missing == "before":
        results |= {"targets": {}, "unlearning_score": None}
    page, _ = written(tmp_path, results)
    assert ("No model that never saw the texts was measured" in page.text) == (missing == "never_seen")


def test_figures_that_are_no_numbers_are_shown_as_such(tmp_path, results):
    for language in LANGUAGES:
        results["after"]["retain"][language] |= {"loss": math.nan, "perplexity": math.nan}
        results["evaluations"][0]["retain"][language]["perplexity"] = math.inf
    page, _ = written(tmp_path, results)
    assert "not a number" in page.text


def test_no_text_becomes_markup(tmp_path, results):
    calm = {tag for tag, _ in written(tmp_path, copy.deepcopy(results))[0].tags}
    results["config"]["model_name_or_path"] = results["environment"]["command"] = HOSTILE
    results["warnings"] = [HOSTILE]
    example = {"split": "forget", "language": "en", "prompt": HOSTILE, "reference": HOSTILE}
    results["examples"] = [example | {"before": HOSTILE, "after": HOSTILE}]
    page, markdown = written(tmp_path, results)
    assert {tag for tag, _ in page.tags} == calm and page.text.count("alert(1)") >= 6
    assert "<script" not in markdown and "](http" not in markdown.replace("\\](http", "")


def test_the_page_is_no_wider_than_its_window(tmp_path, results):
    results["config"]["model_name_or_path"] = "/a" * 60 + "/" + "b" * 200
    write_run_report(tmp_path, results)
    assert_no_wider_than_its_window(tmp_path / "report.html")


# ---- curves ---------------------------------------------------------------------------------------------------------


def drawn(series, **options):
    return ElementTree.fromstring(curves(series, "title", "y", **options))


def test_names_at_the_ends_of_curves_do_not_stand_on_one_another():
    series = {f"name{number}": [(0, 1.0), (10, 0.001 * number)] for number in range(12)}
    root = drawn(series)
    texts = [
        element for element in root.iter() if element.tag.endswith("text") and (element.text or "").startswith("name")
    ]
    assert len(texts) == 12
    places = sorted(float(_place(text)) for text in texts)
    assert min(b - a for a, b in itertools.pairwise(places)) >= 11


def _place(text):
    """The vertical place of a text, however it is written."""
    moved = re.search(r"translate\(\s*[-\d.]+[ ,]+([-\d.]+)", text.get("transform") or "")
    return text.get("y") or (moved and moved.group(1))


def test_a_curve_of_one_point_of_equal_points_and_with_gaps_is_drawn():
    for line in ([(0, 1.0)], [(0, 1.0), (5, 1.0)], [(0, 1.0), (1, None), (2, math.nan), (3, 0.5)]):
        assert "name" in "".join(drawn({"name": line, "other": [(0, None)]}).itertext())
    with pytest.raises(ValueError, match="no point"):
        curves({"name": [(0, None)]}, "title", "y")
