"""Weights held in half precision whose steps rounding undoes: a warning with the remedy, and only then."""

import contextlib
import re

import pytest
import torch
from helpers.material import write_material
from helpers.tiny import tiny_model, tiny_trainer
from transformers import AutoModelForCausalLM

import run_unlearn
from unlearn_trainer.errors import TrainingDiverged
from unlearn_trainer.training.lost_steps import share_of_lost_steps, warn_of_lost_steps

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
        ("bfloat16", {"learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 1e-5}),  # no gradient is above the norm
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
        ("bfloat16", {"learning_rate": 1e-3, "warmup_steps": 1}),  # begins at 0, which is not its rate
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


def test_a_sample_looks_at_all_columns_of_a_matrix():
    """A number of columns that divides an even stride: only the first column's weights would be looked at."""
    for columns in (2, 4, 8):
        weights = torch.zeros(2**14, columns, dtype=torch.bfloat16)
        weights[:, 0] = 1
        assert share_of_lost_steps(weights, 1e-5) == pytest.approx(1 / columns, abs=0.02)


def still(count, of):
    """Weights of which ``count`` stay as they are after a step of 1e-5, and the others do not."""
    weights = torch.zeros(of, dtype=torch.bfloat16)
    weights[:count] = 1
    return torch.nn.Parameter(weights)


@pytest.mark.parametrize(
    "tensors, said",
    [
        ([still(100, 1000)], None),  # norms, say, which lie at 1
        ([still(240, 1000)], None),
        ([still(260, 1000)], "26%"),
        ([still(0, 10_000), *(still(10, 10) for _ in range(20))], None),  # many small tensors are few weights
        ([still(10_000, 10_000), *(still(0, 10) for _ in range(20))], "98%"),
    ],
    ids=["a tenth", "just below", "just above", "small tensors", "one large tensor"],
)
def test_what_counts_is_the_share_of_all_trained_weights(tensors, said, caplog):
    warn_of_lost_steps(torch.optim.AdamW(tensors, lr=1e-5), 1.0, torch.device("cpu"))
    shares = [re.search(r"away in (\d+%) of them", message)[1] for message in warned(caplog)]
    assert shares == ([said] if said else [])


@pytest.mark.parametrize("momentum, is_said", [(0.0, True), (0.9, True), (0.9999, False)])
def test_momentum_adds_up_steps_in_one_direction(momentum, is_said, caplog):
    weights = torch.nn.Parameter(torch.full([50], 0.1, dtype=torch.bfloat16))  # moved by steps from 2.5e-4 on
    warn_of_lost_steps(torch.optim.SGD([weights], lr=1e-6, momentum=momentum), 1.0, torch.device("cpu"))
    assert bool(warned(caplog)) == is_said


@pytest.mark.parametrize("name", ["use_kahan_summation", "kahan_sum", "bf16_stochastic_round"])
def test_optimizers_that_make_up_for_rounding_are_not_warned_of(name, caplog):
    """As torchdistx, optimi and torchao say it of theirs."""
    for is_made_up_for in (True, False):
        optimizer = torch.optim.AdamW([still(50, 50)], lr=1e-5)
        if name == "bf16_stochastic_round":
            optimizer.bf16_stochastic_round = is_made_up_for
        else:
            optimizer.param_groups[0][name] = is_made_up_for
        warn_of_lost_steps(optimizer, 1.0, torch.device("cpu"))
        assert bool(warned(caplog)) != is_made_up_for
