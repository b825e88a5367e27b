"""Texts that quote a run are written by a script from its files, and carry its commit and seed."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from helpers.example_audit import example_audit
from helpers.material import write_material

import run_unlearn
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.report.table import comparison_table
from unlearn_trainer.runs.outcome import closing_words

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts/write_figures.py"))
BLOCK, TEXTS, main = SCRIPT["BLOCK"], SCRIPT["TEXTS"], SCRIPT["main"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# A measured figure in running text: its name, and a number of two decimals or more soon after it.
QUOTED = re.compile(r"\b(?:MA|AUC|ES|nats|perplexity|regained|score)\b[^.|\n]{0,30}?\b\d+\.\d\d+(?![\w-])")
MEASURED = re.compile(r"^\|[^|]*\|(?: *-?\d+(?:\.\d+)? *\|){3,}$", re.MULTILINE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small finished run, whose audit is the example's."""
    folder = tmp_path_factory.mktemp("finished")
    flags = write_material(folder)
    run_unlearn.run([*flags, "--do_train", "--do_eval", "--max_steps", "1", "--output_dir", str(folder / "out")])
    results = json.loads((folder / "out" / "results.json").read_text())
    results["environment"]["commit"] = COMMIT
    (folder / "out" / "results.json").write_text(json.dumps(results))
    (folder / "out" / "audit").mkdir()
    audit = {**example_audit(), "environment": {"commit": COMMIT[::-1]}}
    (folder / "out" / "audit" / "audit.json").write_text(json.dumps(audit))
    return folder / "out"


@pytest.fixture
def texts(tmp_path):
    """A copy of all texts."""
    for name in TEXTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def blocks(root):
    return [match for name in TEXTS for match in BLOCK.finditer((root / name).read_text(encoding="utf-8"))]


def test_every_block_is_what_the_script_makes_of_a_run(texts, finished, capsys):
    runs = {match["run"] for match in blocks(ROOT)} - {"comparison"}
    assert "quickstart" in runs
    words = [f"{name}={finished}" for name in sorted(runs)]
    main(words, texts)
    assert "README.md" in capsys.readouterr().out
    results = json.loads((finished / "results.json").read_text())
    makers = {name: SCRIPT["maker_of_run"](name, finished) for name in runs}
    makers["comparison"] = SCRIPT["maker_of_comparison"]((ROOT / "docs/comparison.md").read_text())
    for block in blocks(texts):
        content, source = makers[block["run"]](block["kind"])
        assert block["text"] == f"{content}\n" and block["source"] == f"; {source}"
    readme = (texts / "README.md").read_text()
    said = f"{comparison_table(results, width=119)}\n{closing_words(results, written=True)}"
    assert f"```\n{said}\n```" in readme and f"seed 42; commit {COMMIT} -->" in readme
    methods = (texts / "docs/methods.md").read_text()
    assert f"commit {COMMIT[::-1]} -->" in methods
    main(words, texts)
    assert capsys.readouterr().out == ""  # nothing changes the second time


def test_a_sentence_on_an_audit_counts_its_verdicts(finished):
    audit = json.loads((finished / "audit" / "audit.json").read_text())
    text, _ = SCRIPT["maker_of_run"]("trial", finished)("verdicts")
    words = " ".join(text.split())
    for verdict, count in audit["summary"]["verdicts"].items():
        assert (f"{verdict} in {count} (" in words) == (count > 0)
    places = [
        figure["position"]["value"]
        for judged in audit["languages"].values()
        for name, figure in judged["figures"].items()
        if name.startswith(("relearned/", "relearned_in_best_language/")) and figure.get("position")
    ]
    assert (f"at most {max(places):.2f} of the way" in words) if places else ("Relearning" not in words)


def test_blocks_of_other_runs_stay(texts):
    before = {name: (texts / name).read_text() for name in TEXTS}
    main([], texts)  # of the comparison alone, which is up to date
    assert before == {name: (texts / name).read_text() for name in TEXTS}


def test_the_quoted_figures_are_those_of_the_comparison():
    table = (ROOT / "docs/comparison.md").read_text()
    quoted = {match["kind"]: match["text"] for match in blocks(ROOT) if match["run"] == "comparison"}
    assert {"grad_diff", "lingtea", "npo", "rmu", "undial"} <= quoted.keys()
    (row,) = [line for line in table.splitlines() if line.startswith("| npo | uniform ")]
    for column, words in ((3, "forget MA"), (6, "AUC"), (14, "{} more regained")):
        number = f"{float(row.split('|')[column].split()[0]):.2f}"
        phrase = words.format(number) if "{}" in words else f"{words} {number}"
        assert phrase in " ".join(quoted["npo"].split())


@pytest.mark.parametrize("name", TEXTS)
def test_no_quoted_run_lacks_its_commit(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.count("<!-- figures:") == text.count("<!-- end of figures -->") == len(list(BLOCK.finditer(text)))
    for block in BLOCK.finditer(text):
        assert re.fullmatch(r"; seeds? [\d, ]+; commit [0-9a-f]{40}", block["source"]), block[0]
        assert block["text"].strip(), block[0]
    for section in re.split(r"(?m)^#+ ", BLOCK.sub("", text)):
        if QUOTED.search(section) or MEASURED.search(section):
            title = section.partition("\n")[0]
            assert re.search(r"[Cc]ommit\s+[0-9a-f]{40}", section), f"{name}, {title}: figures without a commit"


def test_a_folder_without_a_run_and_a_run_without_a_commit_are_refused(texts, finished, tmp_path_factory):
    with pytest.raises(ConfigError, match="results.json cannot be read"):
        main([f"quickstart={tmp_path_factory.mktemp('empty')}"], texts)
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        main(["quickstart"], texts)
    folder = tmp_path_factory.mktemp("outside")
    results = json.loads((finished / "results.json").read_text())
    results["environment"]["commit"] = None
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match="which commit"):
        main([f"quickstart={folder}"], texts)
