"""The leakage matrix: its arithmetic, the cover, the correlation, and a small grid from end to end that resumes."""

import itertools
import json
import math
import random
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers.material import LANGUAGES, write_material
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
script = runpy.run_path(str(ROOT / "scripts" / "leakage_matrix.py"))
cells = st.one_of(st.none(), st.floats(0, 1))


@pytest.mark.parametrize(
    ("after", "before", "tau", "expected"),
    [(0.1, 0.9, 0.1, 0.0), (0.9, 0.9, 0.1, 1.0), (0.5, 0.9, 0.1, 0.5), (0.0, 0.9, 0.1, 0.0), (1.0, 0.9, 0.1, 1.0)],
)
def test_leakage_is_a_share_of_what_could_be_forgotten(after, before, tau, expected):
    assert script["leakage"](after, before, tau) == pytest.approx(expected)


@pytest.mark.parametrize("broken", [[], ["en"], ["sw"], ["en", "sw"]])
def test_a_perplexity_that_is_no_number_is_not_taken_for_a_kept_one(broken):
    after = {code: {"loss": math.nan if code in broken else 3.0} for code in ("en", "sw")}
    row = {"before": {"retain": {"en": {"loss": 2.0}, "sw": {"loss": 2.5}}}, "after": {"retain": after}}
    ratio = script["_kept_ratio"](row)
    assert math.isnan(ratio) if broken else ratio == pytest.approx(math.e)


def test_where_nothing_was_known_nothing_leaks():
    assert script["leakage"](0.3, 0.31, 0.3) is None


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=n, max_size=n)))
def test_the_cover_covers_all_that_can_be(matrix):
    names = [f"l{index}" for index in range(len(matrix))]
    chosen, uncovered = script["greedy_cover"](names, matrix, 0.2)
    coverable = {
        column
        for column in range(len(names))
        if any(line[column] is not None and line[column] <= 0.2 for line in matrix)
    }
    measured = {column for column in range(len(names)) if any(line[column] is not None for line in matrix)}
    assert {names.index(name) for name in uncovered} == measured - coverable
    covered = {
        column
        for name in chosen
        for column, value in enumerate(matrix[names.index(name)])
        if value is not None and value <= 0.2
    }
    assert covered >= coverable
    # The greedy choice is within its known bound of the smallest set.
    smallest = next(
        size
        for size in range(len(names) + 1)
        for group in itertools.combinations(range(len(names)), size)
        if coverable <= {c for g in group for c, v in enumerate(matrix[g]) if v is not None and v <= 0.2}
    )
    assert len(chosen) <= max(1, smallest * (1 + math.log(max(1, len(coverable)))))


def test_the_correlation_against_ranks_by_hand():
    generator = random.Random(2)
    size = 6
    matrix = [[generator.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(size)] for _ in range(size)]
    far = [[None if a == b else matrix[a][b] ** 2 + 0.1 * (a > b) for b in range(size)] for a in range(size)]
    pairs = [(matrix[a][b], far[a][b]) for a in range(size) for b in range(size) if a != b]

    def rank(values):
        return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]

    expected = np.corrcoef(*(rank(values) for values in zip(*pairs, strict=True)))[0, 1]
    found = script["correlation"](matrix, far)
    assert found["spearman"] == pytest.approx(expected)
    assert found["p_value"] < 0.05
    flat = [[0.5] * size for _ in range(size)]
    assert script["correlation"](flat, far) == {"spearman": None, "p_value": None}


def test_distances_may_be_given_one_way(tmp_path):
    file = tmp_path / "far.json"
    file.write_text(json.dumps({"en": {"sw": 1, "zh": 2}, "zh": {"sw": 3}}))
    assert script["read_distances"](file, LANGUAGES) == [[None, 1, 2], [1, None, 3], [2, 3, None]]
    file.write_text(json.dumps({"en": {"sw": 1}}))
    with pytest.raises(ConfigError, match=r"no number for en and zh"):
        script["read_distances"](file, LANGUAGES)
    file.write_text("[1]")
    with pytest.raises(ConfigError, match=r"no object of objects"):
        script["read_distances"](file, LANGUAGES)


def test_a_grid_from_end_to_end(tmp_path, capsys):
    file = tmp_path / "run.json"
    settings = {"method": "gradient_ascent", "max_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    settings |= {"memorize_first": True, "memorize_epochs": 30, "memorize_learning_rate": 1e-2}
    file.write_text(json.dumps(settings | {"train_never_seen": True}))
    # Flags that a row of the grid has values of its own for, and what could be taken for a value of theirs.
    flags = [*write_material(tmp_path, items=4), "--languages", *LANGUAGES, "--output_dir", str(tmp_path / "out")]
    flags.append(str(file))
    far = tmp_path / "far.json"
    far.write_text(json.dumps({"en": {"sw": 1, "zh": 2}, "zh": {"sw": 3}}))
    found = script["run"]([*flags, "--distances", str(far)])
    assert found["languages"] == LANGUAGES
    assert found["tau_of"] == "never_seen"
    # By hand, from the figures that each run left.
    never = json.loads((tmp_path / "out/rows/never_seen.json").read_text())["after"]["forget"]
    for a, line in zip(LANGUAGES, found["matrix"], strict=True):
        row = json.loads((tmp_path / f"out/rows/{a}.json").read_text())
        assert row["steps"] == 2
        for b, value in zip(LANGUAGES, line, strict=True):
            after, before, tau = (
                each[b]["memorization_accuracy"] for each in (row["after"]["forget"], row["before"]["forget"], never)
            )
            assert before - tau > 0.02
            assert value == pytest.approx(min(1, max(0, (after - tau) / (before - tau))))
    assert "correlation" in found
    assert (tmp_path / "out/leakage.svg").read_text().startswith("<svg")
    assert "| unlearned in | en | sw | zh |" in (tmp_path / "out/leakage.md").read_text()
    # A row that is there is not run again; one that is missing is, to the same figures.
    kept = (tmp_path / "out/rows/en.json").stat().st_mtime_ns
    again = tmp_path / "out/rows/sw.json"
    earlier = json.loads(again.read_text())
    again.unlink()
    assert script["run"](flags)["matrix"] == found["matrix"]
    assert (tmp_path / "out/rows/en.json").stat().st_mtime_ns == kept
    assert json.loads(again.read_text())["after"] == earlier["after"]
    for changed in ([*flags, "--max_steps", "3"], flags):
        with pytest.raises(ConfigError, match=r"never_seen.json was made with other settings \(flags differ\)"):
            script["run"](changed)
        file.write_text(json.dumps(settings | {"train_never_seen": True, "learning_rate": 2e-3}))


def test_a_ruined_model_is_the_same_row_when_it_is_read_again(tmp_path):
    """A single step, behind which no loss is looked at, leaves weights that overflow: losses that are no numbers."""
    flags = [
        *write_material(tmp_path, items=2),
        *"--method gradient_ascent --max_steps 1 --learning_rate 1e30".split(),
    ]
    flags += ["--output_dir", str(tmp_path / "out")]
    first, written = script["run"](flags), (tmp_path / "out/leakage.json").read_text()
    again = script["run"](flags)
    assert all(math.isnan(value) for value in again["retain_perplexity_ratio"]) and len(again["matrix"]) == 3
    assert again["matrix"] == first["matrix"] and (tmp_path / "out/leakage.json").read_text() == written


def test_rows_of_other_data_or_another_model_are_not_taken(tmp_path):
    flags = [*write_material(tmp_path, items=2), "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    found, forget, weights = script["run"](flags), tmp_path / "forget.jsonl", tmp_path / "model/model.safetensors"
    lines = forget.read_text()
    # The last word of a text is another one.
    forget.write_text(lines.replace('"}', 'x"}'))
    with pytest.raises(ConfigError, match=r"en.json was made with other settings \(rows differ\)"):
        script["run"](flags)
    forget.write_text(lines)
    assert script["run"](flags)["matrix"] == found["matrix"]
    tiny = load_file(weights)
    save_file({name: tensor + 1e-3 for name, tensor in tiny.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"en.json was made with other settings \(model differ\)"):
        script["run"](flags)


def test_what_a_row_adds_to_the_flags_outweighs_them():
    words = "quickstart --output_dir a --languages en sw --heldout_languages zh --memorize_first --do_eval false"
    own = "--output_dir b --languages zh --heldout_languages en sw --memorize_first false --do_eval true"
    _, data_args, args = parse_arguments([*words.split(), "--use_cpu", *own.split()])
    assert (data_args.languages, data_args.heldout_languages) == (["zh"], ["en", "sw"])
    assert (args.output_dir, args.memorize_first, args.do_eval) == ("b", False, True)
