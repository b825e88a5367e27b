"""What lies in an output folder: earlier results, and checkpoints that are there as a whole or not at all."""

import contextlib
import os
import shutil
import signal
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from .arguments import UnlearnConfig
from .errors import ConfigError

RESULTS = "results.json"
UNFINISHED = "unfinished"  # folder in which a checkpoint is written before it gets its name
LAST_WRITTEN = "trainer_state.json"  # of the files of a checkpoint


def checkpoint_to_resume(args: UnlearnConfig) -> str | None:
    """The checkpoint to go on from, or ``None`` to start afresh; nothing earlier is ever written over.

    ``--resume_from_checkpoint true`` takes the newest checkpoint, and starts afresh where there is none yet.

    Raises:
        ConfigError: the folder is a file, or holds results or checkpoints that nobody asked to resume; the checkpoint
            is none, or was not written to its end.
    """
    output = Path(args.output_dir)
    if args.process_index == 0:
        shutil.rmtree(output / UNFINISHED, ignore_errors=True)
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


class WholeCheckpoints:
    """Mix-in before ``Trainer``: a checkpoint appears under its name only when every process has written its part.

    It is written below ``unfinished`` and renamed at the end, so that a kill or a full disk at any moment leaves the
    earlier checkpoints and nothing that looks like one; older ones are deleted only after that.
    """

    _staging: str | None = None

    def _get_output_dir(self, trial) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        output = super()._get_output_dir(trial)
        name = f"checkpoint-{self.state.global_step}"
        staged, final = Path(output) / UNFINISHED / name, Path(output) / name
        writes = self.args.should_save
        if writes:
            shutil.rmtree(staged, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staged.parent)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        # The Trainer looked for the best checkpoint beside the one it wrote.
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        if writes:
            self.state.save_to_json(str(staged / LAST_WRITTEN))
            if final.exists():
                os.replace(final, staged.with_name(f"{name}.old"))
            os.replace(staged, final)
            shutil.rmtree(staged.parent)
            rotate_checkpoints(
                output_dir=output,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


class StopSignal:
    """Within the context, SIGTERM (a cluster's warning) only sets ``received``; outside it is what it was."""

    def __init__(self):
        self.received = False

    def __enter__(self):
        self._earlier = None
        with contextlib.suppress(ValueError):  # outside the main thread the signal is someone else's
            self._earlier = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception):
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)

    def _receive(self, number, frame):
        self.received = True
