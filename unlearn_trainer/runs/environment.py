"""What the figures of a run were made with: flags, versions, device and memory."""

import hashlib
import json
import platform
import resource
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..config.arguments import DataArguments
from ..data.sources import split_files

SPLITS = ("forget", "retain", "valid", "test")
SECRET = "HIDDEN"


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


def data_hashes(data_args: DataArguments) -> dict[str, dict[str, str]]:
    """What the rows came from, ``{split: {"file", "sha256"}}``, or ``{split: {"dataset"}}`` for splits of the Hub."""
    given = {split: getattr(data_args, f"{split}_file") for split in SPLITS}
    files = split_files(data_args.data_dir, *given.values())
    found = {}
    for split in SPLITS:
        if split in files:
            with open(files[split], "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            found[split] = {"file": str(files[split]), "sha256": digest}
    if data_args.data_dir and "forget" not in found:
        found["forget"] = {"dataset": data_args.data_dir}
    return found


def command_line(words: Sequence[str]) -> str:
    """The command that was given, as one types it, without tokens of access."""
    shown: list[str] = []
    for word in words:
        flag, is_pair, _ = word.partition("=")
        if shown and shown[-1].startswith("--") and shown[-1].endswith("token"):
            word = SECRET
        elif flag.startswith("--") and flag.endswith("token") and is_pair:
            word = f"{flag}={SECRET}"
        shown.append(word)
    return shlex.join(["unlearn-trainer", *shown])


def peak_memory() -> int:
    """Bytes at the peak: of this process's GPU where it has one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
