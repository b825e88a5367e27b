"""Every engine for real, with two processes: the same figures as one process, and exact resumption.

One launch an engine runs ``worker.py``, all cases in its process group.
"""

import functools
import json
import math
import sys

import pytest
import torch
from helpers.tiny import tiny_model, tiny_rows
from launching import ACCELERATE_ZERO1, DEEPSPEED, HERE, TORCHRUN, accelerate, distance, numbers, run
from peft import AutoPeftModelForCausalLM

METHODS = ["methods", "methods-lora"]
# launcher -> (command, what worker.py is told, class of the wrapped model, cases)
LAUNCHERS = {
    "torchrun-ddp": (TORCHRUN, "ddp", "DistributedDataParallel", ["fp32", "bf16", "lora", *METHODS]),
    "accelerate-ddp": (accelerate("ddp"), "ddp", "DistributedDataParallel", ["fp32"]),
    "accelerate-zero1": (ACCELERATE_ZERO1, "zero1", "DeepSpeedEngine", ["fp32"]),
    "deepspeed-zero1": ([*DEEPSPEED, "--no_local_rank"], "zero1", "DeepSpeedEngine", ["fp32", "bf16"]),
    "deepspeed-zero2": ([*DEEPSPEED, "--no_local_rank"], "zero2", "DeepSpeedEngine", ["fp32"]),
    "deepspeed-zero3": ([*DEEPSPEED, "--no_local_rank"], "zero3", "DeepSpeedEngine", ["fp32"]),
    "accelerate-zero2": (accelerate("zero2"), "zero2", "DeepSpeedEngine", ["fp32", "bf16", "lora", *METHODS]),
    "accelerate-zero3": (accelerate("zero3"), "zero3", "DeepSpeedEngine", ["fp32", "bf16", "lora", *METHODS]),
    "accelerate-fsdp2": (accelerate("fsdp2"), "fsdp2", "FSDPLlamaForCausalLM", ["fp32", "bf16", "lora", *METHODS]),
}
CASES = [(name, case) for name, (*_, cases) in LAUNCHERS.items() for case in cases if case not in METHODS]
METHOD_CASES = [(name, case) for name, (*_, cases) in LAUNCHERS.items() for case in cases if case in METHODS]
# bfloat16 has 8 bits: figures of several steps agree to a few of its roundings.
TOLERANCE = {"fp32": 1e-5, "lora": 1e-5, "bf16": 5e-2}
LOSS_TOLERANCE = {"fp32": 1e-6, "lora": 1e-6, "bf16": 2e-2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that knows the forget rows by heart, so that the target weights have something to weigh."""
    folder = tmp_path_factory.mktemp("start")
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(15):
        for row in tiny_rows(seed=0):
            model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """One process at the same global batch, in all cases: folder and report."""
    out = tmp_path_factory.mktemp("one")
    run([sys.executable, HERE / "worker.py", out, start, "none", "fp32", "bf16", "lora", *METHODS])
    return out, json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def launched(start, tmp_path_factory):
    """``launched(name)``: folder, report and output of a launcher's run, which all its cases share."""

    @functools.cache
    def launch(name):
        command, engine, _, cases = LAUNCHERS[name]
        out = tmp_path_factory.mktemp(name)
        printed = run([*command, HERE / "worker.py", out, start, engine, *cases])
        return out, json.loads((out / "report.json").read_text()), printed

    return launch


@pytest.mark.parametrize("case", ["fp32", "lora"])
def test_the_run_puts_the_weights_to_the_test(case, reference):
    report = reference[1][case]
    for kind in ("forget", "retain") if case == "fp32" else ("retain",):
        moved = [entry[kind] for entry in report["weights"] if entry[kind] != report["weights"][0][kind]]
        assert len(moved) >= 2, kind
    # Whether a token counts as memorized must not hang on the rounding of the last digits.
    assert min(report["margins"]) > 1e-3


@pytest.mark.parametrize("name, case", CASES)
def test_two_processes_agree_with_one(name, case, launched, reference):
    folder, reports, printed = launched(name)
    report, expected, tolerance = reports[case], reference[1][case], TOLERANCE[case]
    assert report["world_size"] == 2
    wrapper = LAUNCHERS[name][2]
    adapted = wrapper.startswith("FSDP") and case == "lora"
    assert report["wrapper"] == ("FSDPPeftModelForCausalLM" if adapted else wrapper)

    assert len(report["logs"]) == len(expected["logs"])
    for log, other in zip(report["logs"], expected["logs"], strict=True):
        # A loss near zero is the difference of two larger ones: judged by their size.
        scale = abs(other["forget_loss"]) + abs(other["retain_loss"])
        assert log["loss"] == pytest.approx(other["loss"], abs=LOSS_TOLERANCE[case] * scale)
        assert log["grad_norm"] == pytest.approx(other["grad_norm"], rel=tolerance)
    assert len(report["weights"]) == len(expected["weights"])
    for entry, other in zip(report["weights"], expected["weights"], strict=True):
        for kind in ("forget", "retain", "distill"):
            assert entry[kind] == pytest.approx(other[kind], rel=tolerance, abs=tolerance), entry["step"]

    assert distance(folder / case / "whole", reference[0] / case / "whole") < tolerance
    assert_same_figures(report, expected, tolerance, exact=1e-6 if case != "bf16" else tolerance)

    # The two ranks read different rows, and together what one process reads.
    first, second = ({tuple(pair) for pair in rows} for rows in report["rows"])
    assert not first & second
    assert first | second == {tuple(pair) for pair in expected["rows"][0]}

    assert distance(folder / case / "resumed", folder / case / "whole") == 0
    assert report["resumed_weights"] == report["weights"]
    # Only rank 0 prints: each log line is there once.
    runs = sum(len(report) if case in METHODS else 1 for case, report in reports.items())
    assert printed.count("'train_runtime'") == 2 * runs


@pytest.mark.parametrize("name, case", METHOD_CASES)
def test_every_method_agrees_with_one_process_and_resumes(name, case, launched, reference):
    folder, reports, _ = launched(name)
    # An adapter's second half starts at 0: after three steps it is small, and rounding weighs more.
    far = 1e-5 if case == "methods" else 5e-5
    assert len(reports[case]) >= 13
    for method, logs in reports[case].items():
        if method == "guarded":
            assert len(logs) == 3
            assert distance(folder / case / method / "resumed", folder / case / method / "whole") == 0
            continue
        for log, other in zip(logs, reference[1][case][method], strict=True):
            scale = abs(other.get("forget_loss", 0)) + abs(other.get("retain_loss", 0))
            assert log["loss"] == pytest.approx(other["loss"], abs=1e-6 * scale), method
            assert log["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5), method
        assert distance(folder / case / method / "whole", reference[0] / case / method / "whole") < far, method
        assert distance(folder / case / method / "resumed", folder / case / method / "whole") == 0, method


def assert_same_figures(report, expected, tolerance, exact):
    for when, allowed in (("untrained", exact), ("before", exact), ("after", exact)):
        found, others = numbers(report[when]), numbers(expected[when])
        assert found.keys() == others.keys()
        for key, value in others.items():
            pair = (found[key], value)
            if key[-1] == "perplexity":  # the exponential of a loss: as near as that
                pair = tuple(map(math.log, pair))
            assert pair[0] == pytest.approx(pair[1], rel=allowed, abs=allowed), (when, key)


def test_fsdp2_refuses_to_train_a_model_that_it_sharded_to_evaluate_it(launched):
    reports = launched("accelerate-fsdp2")[1]
    assert all("has evaluated can no longer train" in reports[case]["refused"] for case in ("fp32", "bf16", "lora"))


@pytest.mark.parametrize("name", [name for name, case in CASES if case == "lora"])
def test_the_saved_adapter_loads(name, start, launched):
    folder = launched(name)[0] / "lora" / "whole"
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    row = torch.tensor([tiny_rows(seed=0)[0]["input_ids"]])
    with torch.no_grad(), model.disable_adapter():
        before = model(input_ids=row).logits
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=row).logits, before, atol=0.1)
