"""What lies in an output folder: earlier results, checkpoints to go on from."""

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from .arguments import UnlearnConfig
from .errors import ConfigError

RESULTS = "results.json"
LAST_WRITTEN = "trainer_state.json"  # of the files of a checkpoint


def checkpoint_to_resume(args: UnlearnConfig) -> str | None:
    """The checkpoint to go on from, or ``None`` to start afresh; nothing earlier is ever written over.

    ``--resume_from_checkpoint true`` takes the newest checkpoint, and starts afresh where there is none yet.

    Raises:
        ConfigError: the folder is a file, or holds results or checkpoints that nobody asked to resume; the checkpoint
            is none, or was not written to its end.
    """
    output = Path(args.output_dir)
    for place in (output, *output.parents):
        if place.is_file():
            raise ConfigError(f"--output_dir {output}: {place} is a file; name a folder")
    if (output / RESULTS).exists():
        raise ConfigError(f"{output / RESULTS} holds an earlier result; choose another --output_dir or move it away")
    last = get_last_checkpoint(args.output_dir) if output.is_dir() else None
    wish = str(args.resume_from_checkpoint or "false")
    if wish.lower() == "true":
        return last and _whole(last)
    if wish.lower() == "false":
        if last is not None and args.do_train:
            raise ConfigError(f"{last} is there; add --resume_from_checkpoint true or choose another --output_dir")
        return None
    if not Path(wish).is_dir():
        raise ConfigError(f"--resume_from_checkpoint {wish}: no such folder")
    return _whole(wish)


def _whole(checkpoint: str) -> str:
    if not (Path(checkpoint) / LAST_WRITTEN).is_file():
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: without {LAST_WRITTEN} it is no checkpoint, or one whose writing "
            "was cut short; name another, or delete it to go on from the one before"
        )
    return checkpoint
