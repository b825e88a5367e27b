"""Looks at pickled files before anybody loads them: none may hold more than tensors and plain values."""

import importlib.util
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch

from ..errors import ConfigError

# What the engines write beside tensors, and what their makers' own readers take for harmless: values without methods
# that run when they are read.
_OF_NUMPY = [numpy.zeros(0).__reduce__()[0], numpy.ndarray, numpy.dtype]
_OF_NUMPY += {type(numpy.dtype(kind)) for kind in "?bhilqBHILQefd"}
_OF_DEEPSPEED = {
    "deepspeed.runtime.zero.config": ["ZeroStageEnum"],
    "deepspeed.runtime.fp16.loss_scaler": ["LossScaler", "DynamicLossScaler"],
    "deepspeed.utils.tensor_fragment": ["fragment_address"],
}
PICKLED = (".bin", ".pt", ".pth")
NEVER_READ = ("training_args.bin",)


def check_pickles(checkpoint: Path) -> None:
    """Refuse a checkpoint of which a file would run code when it is read.

    DeepSpeed unpickles whatever its files hold. So every file is read here first by PyTorch's own restricted reader,
    with its tensors left on the disk.

    Raises:
        ConfigError: names the file, and what it holds.
    """
    for file in _files(checkpoint):
        if file.name == ".metadata" or file.suffix in (".distcp", ".pkl", ".pickle"):
            _refuse(checkpoint, file, "is of a kind that is read by unpickling")
        if file.suffix in PICKLED and file.name not in NEVER_READ:
            _check(checkpoint, file)


def _files(folder: Path) -> Iterator[Path]:
    """Every file that a reader may come upon, also behind links."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in sorted(names))


def _check(checkpoint: Path, file: Path) -> None:
    allowed = _allowed(file)
    try:
        with torch.serialization.safe_globals(allowed):
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        try:
            with torch.serialization.safe_globals(allowed):
                named = sorted({*torch.serialization.get_unsafe_globals_in_checkpoint(file)})
        except Exception:  # the list is for the message alone
            named = []
        _refuse(checkpoint, file, f"holds {', '.join(named[:3]) or 'more than tensors'}, which could be code", error)
    except Exception as error:  # of many kinds, for as many ways to be damaged
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {file.relative_to(checkpoint)} is damaged "
            f"({type(error).__name__}); name another, or delete the folder to go on from the checkpoint before"
        ) from error


def _refuse(checkpoint, file, reason, cause=None):
    raise ConfigError(
        f"--resume_from_checkpoint {checkpoint}: {file.relative_to(checkpoint)} {reason} and is never run; resume a "
        "checkpoint that this package wrote, or start from its model alone with --model_name_or_path"
    ) from cause


def _allowed(file: Path) -> list:
    mine = list(_OF_NUMPY)
    # Elsewhere DeepSpeed writes nothing, and a run without it need not import it.
    if file.name.endswith(("_optim_states.pt", "_model_states.pt")) and importlib.util.find_spec("deepspeed"):
        for module, names in _OF_DEEPSPEED.items():
            found = importlib.import_module(module)
            mine += [getattr(found, name) for name in names if hasattr(found, name)]
    return mine
