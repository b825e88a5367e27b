"""`scripts/task_vector.py` on a tiny model: the written model is start - scale * (fine-tuned - start)."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest
import torch
from helpers.material import LANGUAGES, write_material
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_trainer.errors import ConfigError

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "task_vector.py"))
RUN = "--memorize_first --memorize_epochs 20 --memorize_learning_rate 1e-2 --max_steps 12 --learning_rate 3e-3".split()


def run(folder, *more):
    return SCRIPT["run"]([*write_material(folder), *RUN, "--output_dir", str(folder / "out"), *more])


def valid_loss(folder, material):
    """Mean over the languages of the loss a token on the valid rows, by the model's own forward."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    means = []
    for language in LANGUAGES:
        total = tokens = 0
        for line in (material / "valid.jsonl").read_text().splitlines():
            ids = torch.tensor([tokenizer(json.loads(line)[language])["input_ids"]])
            with torch.no_grad():
                total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        means.append(total / tokens)
    return sum(means) / len(means)


def test_the_largest_step_within_the_ratio_is_subtracted(tmp_path, capsys):
    scales = ["40", "0.25", "4", "8"]
    run(tmp_path, "--scales", *scales, "--max_perplexity_ratio", "1e99")
    table = [line for line in capsys.readouterr().out.splitlines() if re.match(r" *[0-9.]+ \|", line)]
    out = tmp_path / "out"
    far, far_results = load_file(out / "model.safetensors"), json.loads((out / "results.json").read_text())
    rows = far_results["task_vector"]["scales"]
    assert far_results["task_vector"]["scale"] == 40 and [row["scale"] for row in rows] == [0.25, 4, 8, 40]
    assert [float(line.split("|")[0]) for line in table] == [0.25, 4, 8, 40]
    (out / "results.json").rename(out / "far.json")
    for file in ("config.json", "model.safetensors", "training_args.bin"):  # a run never replaces a model
        (out / file).unlink()

    # The same run again, with a bound between the ratios of the last two scales.
    ratios = [row["perplexity_ratio"] for row in rows]
    assert max(ratios[:3]) < 1.1 * max(ratios[:3]) < ratios[3]
    run(tmp_path, "--scales", *scales, "--max_perplexity_ratio", str(1.1 * max(ratios[:3])))
    results, near = json.loads((out / "results.json").read_text()), load_file(out / "model.safetensors")
    assert results["task_vector"] == {"scale": 8, "scales": rows}
    # Both lie on one line through the start, at the distances of their scales.
    start = load_file(out / "memorized" / "model.safetensors")
    assert all((near[name] - origin).abs().max() > 1e-3 for name, origin in start.items())
    for name, origin in start.items():
        torch.testing.assert_close((near[name] - origin) * 5, far[name] - origin, rtol=1e-3, atol=1e-4)

    worst = {
        when: max(figures["memorization_accuracy"] for figures in results[when]["forget"].values())
        for when in ("before", "after")
    }
    assert worst["before"] > 0.8 and worst["after"] < 0.3
    assert rows[2]["worst_memorization_accuracy"] == pytest.approx(worst["after"])
    assert rows[2]["unlearning_score"] == pytest.approx(results["unlearning_score"])
    expected = math.exp(valid_loss(out, tmp_path) - valid_loss(out / "memorized", tmp_path))
    assert rows[2]["perplexity_ratio"] == pytest.approx(expected, rel=1e-4)
    assert results["config"]["method"] == "task_vector" and results["config"]["max_perplexity_ratio"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--max_perplexity_ratio", "0.001", "--scales", "0.5"],
            "no scale .* --max_perplexity_ratio 0.001; give smaller",
        ),
        (["--scales", "0"], "--scales must be above 0"),
        (["--use_peft"], "leave out --use_peft"),
    ],
)
def test_what_is_refused(flags, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *flags)
    assert not (tmp_path / "out" / "results.json").exists()
