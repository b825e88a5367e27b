"""The benchmarks run on a tiny model, compare equal work, and write every ratio."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {"vocab_size": 16384, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "max_length": 64}


def run(script, out, **changes):
    """What the script writes with ``--json``."""
    command = [sys.executable, str(BENCHMARKS / script), "--device", "cpu", "--repeats", "2", "--json", str(out)]
    for name, value in {**TINY, **changes}.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    for ratio, value in found["ratios"].items():
        assert f"{ratio} " in done.stdout
        assert 0 < value < 1000 or ratio == "vocab_memory_growth"
    for row in found["rows"]:
        assert row["seconds"] > 0 and row["tokens_per_second"] > 0 and row["peak_memory_bytes"] > 0
    return found


@pytest.mark.slow
def test_step_cost(tmp_path):
    found = run("step_cost.py", tmp_path / "out.json", batch_size=4)
    ratios, sizes = found["ratios"], found["parameters"]
    assert list(ratios) == [
        "step_over_floor",
        "cached_over_plain",
        "cached_over_plain_bound",
        "naive_over_step_time",
        "naive_over_step_memory",
        "bookkeeping_share",
    ]
    assert sizes["head"] == 16384 * 32
    assert ratios["cached_over_plain_bound"] == 1 + sizes["head"] / (6 * (sizes["head"] + sizes["body"]))
    assert ratios["bookkeeping_share"] < 0.5
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == ["naive", "ours", "cached", "plain", "floor"]
    # What naive holds: several tensors of 4 rows x 64 tokens x vocabulary in float32, ours none.
    logits = 4 * 64 * 16384 * 4
    assert 4 * logits < rows["naive"]["peak_memory_bytes"] < 12 * logits
    assert ratios["naive_over_step_memory"] > 1.5
    assert ratios["naive_over_step_time"] > 1


@pytest.mark.slow
def test_eval_cost(tmp_path):
    found = run("eval_cost.py", tmp_path / "out.json", ma_rows=2, pa_rows=3, max_length=32)
    body, head = found["parameters"]["body"], found["parameters"]["head"]
    assert found["ratios"]["ma_speedup"] > 5
    assert found["ratios"]["ma_speedup_bound"] == (16 * body + head) / (body + head)
    assert found["ratios"]["pa_speedup"] > 1
    assert [row["variant"] for row in found["rows"]] == ["ma_generate", "ma_ours", "pa_loop", "pa_ours"]


@pytest.mark.slow
def test_scaling(tmp_path):
    # Rows enough for activations to outweigh what a process allocates anyway.
    found = run(
        "scaling.py",
        tmp_path / "out.json",
        lengths=[],
        vocab_sizes=[4096, 16384],
        batch_sizes=[2],
        processes=[2],
        batch_size=16,
    )
    points = [(row["varied"], row["value"]) for row in found["rows"]]
    assert points == [
        ("vocabulary", 4096),
        ("vocabulary", 16384),
        ("rows, ours", 2),
        ("rows, naive", 2),
        ("processes", 2),
    ]
    memory = {row["value"]: row["peak_memory_bytes"] for row in found["rows"] if row["varied"] == "vocabulary"}
    assert found["ratios"] == {"vocab_memory_growth": memory[16384] / memory[4096] - 1}


@pytest.mark.parametrize("alignment", ["paper", "released"])
def test_naive_step_computes_what_the_trainer_computes(alignment, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from step_variants import StepVariants

    args = argparse.Namespace(model=None, dtype="float64", device="cpu", batch_size=3, **TINY)
    variants = StepVariants(args, str(tmp_path))
    # A teacher that is sure of some tokens, so that both terms count.
    with torch.no_grad():
        for model, factor in ((variants.teacher, 40), (variants.student, 20)):
            model.get_output_embeddings().weight.mul_(factor)
    results = []
    for step in (
        variants.step_of(variants.trainer(lingtea_alignment=alignment)),
        lambda: variants.naive(alignment),
    ):
        variants.student.zero_grad()
        loss = step()
        results.append((loss, {name: p.grad.clone() for name, p in variants.student.named_parameters()}))
    (ours, gradients), (naive, expected) = results
    # The model's own loss, which naive forgets by, is computed in float32.
    assert ours == pytest.approx(naive, rel=1e-6, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6 * expected[name].abs().max().item())
