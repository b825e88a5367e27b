"""Every engine for real, with two processes: the same figures as one process, and exact resumption.

One launch an engine and precision runs ``worker.py``, all cases in its process group.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
ACCELERATE = [BIN / "accelerate", "launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--main_process_port", "0"]
FSDP2 = "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP".split()
FSDP2 += ["--fsdp_state_dict_type", "FULL_STATE_DICT"]


def deepspeed_by_accelerate(stage):
    return [*ACCELERATE, "--use_deepspeed", "--deepspeed_config_file", ROOT / "ds_configs" / f"zero{stage}.json"]


# launcher -> (command, what worker.py is told, class of the wrapped model)
LAUNCHERS = {
    "torchrun-ddp": (
        [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", "0"],
        "ddp",
        "DistributedDataParallel",
    ),
    "accelerate-ddp": ([*ACCELERATE, "--multi_gpu"], "ddp", "DistributedDataParallel"),
    "accelerate-zero1": (deepspeed_by_accelerate(1), "zero1", "DeepSpeedEngine"),
    "accelerate-zero2": (deepspeed_by_accelerate(2), "zero2", "DeepSpeedEngine"),
    "accelerate-zero3": (deepspeed_by_accelerate(3), "zero3", "DeepSpeedEngine"),
    "deepspeed-zero2": ([BIN / "deepspeed", "--num_gpus", "2", "--no_local_rank"], "zero2", "DeepSpeedEngine"),
    "deepspeed-zero3": ([BIN / "deepspeed", "--num_gpus", "2", "--no_local_rank"], "zero3", "DeepSpeedEngine"),
    "accelerate-fsdp2": ([*ACCELERATE, *FSDP2], "fsdp2", "FSDPLlamaForCausalLM"),
}
CASES = [(name, "fp32") for name in LAUNCHERS]
CASES += [(name, "bf16") for name in ("torchrun-ddp", "accelerate-zero1", "accelerate-zero2", "accelerate-zero3")]
CASES += [("accelerate-fsdp2", "bf16")]
# bfloat16 has 8 bits: figures of several steps agree to a few of its roundings.
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2}

pytestmark = pytest.mark.slow


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(command, out, start, engine, precision):
    port = str(free_port())
    command = [port if part == "0" else str(part) for part in command]
    if "deepspeed" in command[0]:
        command += ["--master_port", port]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions")),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    worker = [str(HERE / "worker.py"), str(out), str(start), engine, precision]
    done = subprocess.run(
        [*command, *worker], env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((out / "report.json").read_text()), done.stdout


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
def references(start, tmp_path_factory):
    """One process at the same global batch, in both precisions."""
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path_factory.mktemp(f"one-{precision}")
        report, _ = run([sys.executable], out, start, "none", precision)
        assert report["world_size"] == 1
        found[precision] = out, report
    return found


def distance(first, second):
    """Largest relative difference of two saved models over their tensors."""
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys()
    return max(((a[name].float() - b[name].float()).norm() / b[name].float().norm()).item() for name in a)


def numbers(figures):
    return {
        (split, language, metric): value
        for split, languages in figures.items()
        for language, found in languages.items()
        for metric, value in found.items()
    }


@pytest.mark.parametrize("name, precision", CASES)
def test_two_processes_agree_with_one(name, precision, start, references, tmp_path):
    command, engine, wrapper = LAUNCHERS[name]
    report, printed = run(command, tmp_path, start, engine, precision)
    reference_folder, reference = references[precision]
    tolerance = TOLERANCE[precision]
    assert report["world_size"] == 2
    assert report["wrapper"] == wrapper

    assert len(report["logs"]) == len(reference["logs"])
    for log, expected in zip(report["logs"], reference["logs"], strict=True):
        # A loss near zero is the difference of two larger ones: judged by their size.
        scale = abs(expected["forget_loss"]) + abs(expected["retain_loss"])
        assert log["loss"] == pytest.approx(expected["loss"], abs=tolerance * scale)
        assert log["grad_norm"] == pytest.approx(expected["grad_norm"], rel=tolerance)
    assert len(report["weights"]) == len(reference["weights"])
    for entry, expected in zip(report["weights"], reference["weights"], strict=True):
        for kind in ("forget", "retain", "distill"):
            assert entry[kind] == pytest.approx(expected[kind], rel=tolerance, abs=tolerance), entry["step"]
    assert any(entry["retain"] != reference["weights"][0]["retain"] for entry in reference["weights"])

    assert distance(tmp_path / "whole", reference_folder / "whole") < tolerance
    exact = 1e-6 if precision == "fp32" else 5e-2
    for when in ("before", "after"):
        found, expected = numbers(report[when]), numbers(reference[when])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=exact, abs=exact), (when, key)

    # The two ranks read different rows, and together what one process reads.
    first, second = ({tuple(pair) for pair in rows} for rows in report["rows"])
    assert not first & second
    assert first | second == {tuple(pair) for pair in reference["rows"][0]}

    assert distance(tmp_path / "resumed", tmp_path / "whole") == 0
    assert report["resumed_weights"] == report["weights"]
    # Only rank 0 prints: each log line is there once.
    assert printed.count("'train_runtime'") == 2
