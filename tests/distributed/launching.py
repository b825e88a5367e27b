"""How the tests start several processes: the launchers' commands, and an environment without a GPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
TORCHRUN = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", "PORT"]
DEEPSPEED = [BIN / "deepspeed", "--num_gpus", "2", "--master_port", "PORT"]

# Without a YAML file of its own: the JSON on the command line.
ACCELERATE_ZERO1 = [BIN / "accelerate", "launch", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE_ZERO1 += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "PORT"]
ACCELERATE_ZERO1 += ["--use_deepspeed", "--deepspeed_config_file", ROOT / "ds_configs" / "zero1.json"]


def accelerate(engine, processes=2):
    """The command of README with the shipped configuration of ``engine``."""
    file = ROOT / "ds_configs" / f"accelerate_{engine}.yaml"
    port = ["--main_process_port", "PORT"]
    return [BIN / "accelerate", "launch", "--config_file", file, "--num_processes", processes, *port]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(command, port=None, **environment):
    """Start ``command`` in the repository; PORT in it stands for ``port``, or a free one."""
    port = port or free_port()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions")),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        **environment,
    }
    return subprocess.Popen(
        [port if part == "PORT" else str(part) for part in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def run(command, **environment):
    """What ``command`` prints; it has to succeed."""
    process = start(command, **environment)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed[-6000:]
    return printed


def distance(first, second):
    """Largest relative difference of two saved models (or adapters) over their tensors."""
    name = "adapter_model.safetensors" if (second / "adapter_model.safetensors").exists() else "model.safetensors"
    a, b = load_file(first / name), load_file(second / name)
    assert a.keys() == b.keys()
    return max(((a[key].float() - b[key].float()).norm() / b[key].float().norm()).item() for key in a)


def numbers(figures):
    """Figures by split, language and metric."""
    return {
        (split, language, metric): value
        for split, languages in figures.items()
        for language, found in languages.items()
        for metric, value in found.items()
    }
