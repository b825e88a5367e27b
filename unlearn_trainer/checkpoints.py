"""What lies in an output folder: earlier results, checkpoints to go on from."""

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from .arguments import UnlearnConfig
from .errors import ConfigError

RESULTS = "results.json"


def checkpoint_to_resume(args: UnlearnConfig) -> str | None:
    """The checkpoint to go on from, or ``None`` to start afresh; nothing earlier is ever written over.

    ``--resume_from_checkpoint true`` takes the newest checkpoint, and starts afresh where there is none yet.

    Raises:
        ConfigError: the folder holds results, or checkpoints that nobody asked to resume.
    """
    output = Path(args.output_dir)
    if (output / RESULTS).exists():
        raise ConfigError(f"{output / RESULTS} holds an earlier result; choose another --output_dir or move it away")
    last = get_last_checkpoint(args.output_dir) if output.is_dir() else None
    wish = str(args.resume_from_checkpoint or "false")
    if wish.lower() == "true":
        return last
    if wish.lower() == "false":
        if last is not None and args.do_train:
            raise ConfigError(f"{last} is there; add --resume_from_checkpoint true or choose another --output_dir")
        return None
    if not Path(wish).is_dir():
        raise ConfigError(f"--resume_from_checkpoint {wish}: no such folder")
    return wish
