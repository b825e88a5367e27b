"""What the figures of a run were made with: flags, versions, device and memory."""

import json
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments


def configuration(model_args: Any, data_args: Any, args: TrainingArguments) -> dict[str, Any]:
    """Every flag by its name, with secrets hidden as transformers does."""
    return {**vars(model_args), **vars(data_args), **json.loads(args.to_json_string())}


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What the figures were made with: package versions, commit of the checkout, device and number of processes."""
    packages = ("unlearn-trainer", "torch", "transformers", "accelerate", "datasets", "deepspeed", "peft")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    root = Path(__file__).resolve().parents[2]
    git = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "versions": versions | {"python": platform.python_version()},
        "commit": git.stdout.strip() or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "world_size": world_size,
    }


def peak_memory() -> int:
    """Bytes at the peak: of this process's GPU where it has one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
