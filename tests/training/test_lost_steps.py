"""Weights held in half precision whose steps rounding undoes: a warning with the remedy, and only then."""

import contextlib

import pytest
import torch
from helpers.material import write_material
from helpers.tiny import tiny_model, tiny_trainer
from transformers import AutoModelForCausalLM

import run_unlearn
from unlearn_trainer.errors import TrainingDiverged
from unlearn_trainer.training.lost_steps import share_of_lost_steps

SAID = "rounds a step of the learning rate"


@pytest.fixture(autouse=True)
def say_again():
    """Warnings that are said once are said once a test."""
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()


def warned(caplog):
    return [record.getMessage() for record in caplog.records if SAID in record.getMessage()]


def train(folder, model, **settings):
    with contextlib.suppress(TrainingDiverged):  # Adam's epsilon is 0 in float16
        tiny_trainer(folder, model, **{"method": "memorize", "max_steps": 1, **settings}).train()


@pytest.mark.parametrize(
    "dtype, settings",
    [
        ("bfloat16", {"learning_rate": 1e-5}),
        ("bfloat16", {"learning_rate": 1e-5, "optim": "adafactor"}),
        ("bfloat16", {"learning_rate": 5e-5, "warmup_steps": 1, "method": "grad_diff"}),
        ("bfloat16", {"learning_rate": 1e-5, "optim": "sgd"}),
        ("float16", {"learning_rate": 1e-6, "optim": "adafactor"}),
        ("float16", {"learning_rate": 1e-6}),
        ("float32", {"learning_rate": 1e-10}),
    ],
)
def test_steps_that_rounding_undoes_are_warned_of(dtype, settings, tmp_path, caplog):
    train(tmp_path, tiny_model(dtype=getattr(torch, dtype)), **settings)
    (message,) = warned(caplog)
    assert f"held in {dtype}" in message and "--learning_rate" in message
    assert ("--dtype float32; add --bf16" in message) == (dtype != "float32")


@pytest.mark.parametrize(
    "dtype, settings",
    [
        ("float32", {"learning_rate": 1e-5}),
        ("float32", {"learning_rate": 1e-5, "bf16": True}),
        ("bfloat16", {"learning_rate": 1e-3}),
        ("bfloat16", {"learning_rate": 0.1, "optim": "sgd"}),
        ("bfloat16", {"learning_rate": 1e-5, "optim": "sgd", "max_grad_norm": 0.0}),  # nobody knows how large they are
        ("float16", {"learning_rate": 1e-3, "optim": "adafactor"}),
    ],
)
def test_steps_that_arrive_are_not(dtype, settings, tmp_path, caplog):
    train(tmp_path, tiny_model(dtype=getattr(torch, dtype)), **settings)
    assert not warned(caplog)


def test_an_adapter_in_float32_on_a_model_in_bfloat16_is_not_warned_of(tmp_path, caplog):
    peft = pytest.importorskip("peft", reason="the peft package is not installed")
    model = peft.get_peft_model(tiny_model(dtype=torch.bfloat16), peft.LoraConfig(target_modules="all-linear"))
    train(tmp_path, model, learning_rate=1e-5)
    assert not warned(caplog)


@pytest.mark.parametrize("dtype, lost", [("auto", True), ("bfloat16", True), ("float32", False)])
def test_the_command_prints_it(dtype, lost, tmp_path, capfd, monkeypatch):
    flags = write_material(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("logging.root.handlers", [])  # as outside of pytest
    steps = ["--do_train", "--max_steps", "1", "--learning_rate", "1e-5", "--dtype", dtype]
    run_unlearn.run([*flags, "--output_dir", str(tmp_path / "out"), *steps])
    assert (SAID in capfd.readouterr().err) == lost


def test_the_share_is_that_of_a_loop_over_all_weights():
    for dtype, step in ((torch.bfloat16, 1e-4), (torch.float16, 1e-5)):
        weights = (0.05 * torch.randn(40, 50, generator=torch.Generator().manual_seed(1))).to(dtype)
        still = 0
        for weight in weights.flatten():
            ends = [torch.tensor(weight.item() + sign * step, dtype=torch.float64).to(dtype) for sign in (1, -1)]
            still += all(end == weight for end in ends)
        assert 0.2 < still / weights.numel() < 0.95
        assert share_of_lost_steps(weights, step) == pytest.approx(still / weights.numel(), abs=1e-12)
        large = weights.repeat(50, 1)
        assert share_of_lost_steps(large, step) == pytest.approx(still / weights.numel(), abs=0.03)
