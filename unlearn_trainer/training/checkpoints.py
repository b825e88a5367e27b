"""What lies in an output folder: earlier results, and checkpoints that are there as a whole or not at all."""

import contextlib
import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from ..config.arguments import ModelArguments
from ..config.finished import RESULTS
from ..config.unlearn_config import UnlearnConfig
from ..engine.unpickling import check_pickles
from ..errors import ConfigError, Terminated
from ..files import make_own_folder, remove_own_folder

UNFINISHED = "unfinished"  # folder in which a checkpoint is written before it gets its name
SAME_SIGNAL = 1.0  # seconds
LAST_WRITTEN = "trainer_state.json"  # of the files of a checkpoint
# What a training leaves at its end; with --merge_adapter the adapter is in a folder of its own.
OF_A_MODEL = ("config.json", "adapter_config.json", "*.safetensors", "*.bin", "adapter/*.safetensors")


def checkpoint_to_resume(args: UnlearnConfig, model_args: ModelArguments | None = None) -> str | None:
    """The checkpoint to go on from, or ``None`` to start afresh; nothing earlier is ever written over.

    ``--resume_from_checkpoint true`` takes the newest checkpoint, and starts afresh where there is none yet.

    Args:
        model_args: names the models and the tokenizer that the run reads, none of which may be its output folder.

    Raises:
        ConfigError: it holds results, checkpoints or a model that nobody asked to resume;
            the checkpoint is none, is damaged, or was not written to its end.
    """
    output = args.folder
    if (output / RESULTS).exists():
        raise ConfigError(f"{output / RESULTS} holds an earlier result; choose another --output_dir or move it away")
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    wish = str(args.resume_from_checkpoint or "false")
    if wish.lower() == "false" and last is not None and args.do_train:
        raise ConfigError(f"{last} is there; add --resume_from_checkpoint true or choose another --output_dir")
    if wish.lower() not in ("true", "false") and not Path(wish).is_dir():
        raise ConfigError(f"--resume_from_checkpoint {wish}: no such folder")
    chosen = {"true": last, "false": None}.get(wish.lower(), wish)
    if chosen is not None:
        check_whole(Path(chosen))
    if args.do_train:
        _check_nothing_lost(output, args, model_args, resuming=chosen is not None)
        if args.process_index == 0:
            remove_own_folder(output / UNFINISHED)
    return chosen


def _check_nothing_lost(
    output: Path, args: UnlearnConfig, model_args: ModelArguments | None, *, resuming: bool
) -> None:
    """Refuse to train into a folder whose model the trained one would replace."""
    read = {
        "model_name_or_path": model_args.name if model_args is not None else None,
        "tokenizer_name": model_args.tokenizer_name if model_args is not None else None,
        "never_seen_model": args.never_seen_model,
        "model_before": args.model_before,
    }
    for flag, name in read.items():
        if name is not None and Path(name).is_dir() and output.samefile(name):
            raise ConfigError(
                f"--output_dir {output} is the folder of --{flag}, which the trained model would replace; "
                "choose another --output_dir"
            )
    found = sorted(path for pattern in OF_A_MODEL for path in output.glob(pattern))
    if found and not resuming:
        raise ConfigError(
            f"{found[0]} is there, and the trained model would replace it; choose another --output_dir or move it away"
        )


def check_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint of which a file is missing, cut short, no JSON, or would run code when it is read."""
    if not (checkpoint / LAST_WRITTEN).is_file():
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: without {LAST_WRITTEN} it is no checkpoint, or one whose writing "
            "was cut short; name another, or delete it to go on from the one before"
        )
    # The Trainer's own, FSDP's, and DeepSpeed's.
    if not any(path for pattern in ("optimizer*", "global_step*") for path in checkpoint.glob(pattern)):
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: it holds no state of the optimizer (--save_only_model), so that "
            "the training cannot go on as it was; start from its model with --model_name_or_path"
        )
    for file in sorted(checkpoint.rglob("*")):
        if file.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
            continue
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):  # compares the file's length with its table of contents
                    continue
            is_damaged = not zipfile.is_zipfile(file)  # as torch.save writes them; the directory is at the end
        except SafetensorError:
            is_damaged = True
        if is_damaged:
            raise ConfigError(
                f"--resume_from_checkpoint {checkpoint}: {file.relative_to(checkpoint)} is damaged; name another, or "
                "delete the folder to go on from the checkpoint before"
            )
    for file in sorted(checkpoint.rglob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"--resume_from_checkpoint {checkpoint}: {file.relative_to(checkpoint)} is damaged ({error}); name "
                "another, or delete the folder to go on from the checkpoint before"
            ) from error
    check_pickles(checkpoint)


def check_written_by(checkpoint: Path, accelerator: Accelerator) -> None:
    """Refuse a checkpoint of another engine, of which this one would not read the optimizer's state.

    Raises:
        ConfigError: names the engine; or DeepSpeed's note of its newest folder names none of this checkpoint.
    """
    engines = {"DeepSpeed": "global_step*", "FSDP": "optimizer.bin", "no engine": "optimizer.pt"}
    mine = {DistributedType.DEEPSPEED: "DeepSpeed", DistributedType.FSDP: "FSDP"}.get(accelerator.distributed_type)
    mine = "FSDP" if accelerator.is_fsdp2 else mine or "no engine"
    if not any(checkpoint.glob(engines[mine])):
        wrote = [name for name, pattern in engines.items() if any(checkpoint.glob(pattern))]
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: it was written under {' or '.join(wrote) or 'another engine'}, "
            f"and under {mine} its optimizer would start anew; launch the run as it was launched before"
        )
    if mine == "DeepSpeed":
        latest = checkpoint / "latest"
        named = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
        if named not in [path.name for path in checkpoint.glob("global_step*")]:
            raise ConfigError(
                f"--resume_from_checkpoint {checkpoint}: {latest.name} is missing or damaged, and has to name one of "
                f"{', '.join(sorted(path.name for path in checkpoint.glob('global_step*')))}"
            )


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoint appears under its name only when every process has written its part.

    It is written below ``unfinished`` and renamed at the end, so that a kill or a full disk at any moment leaves the
    earlier checkpoints and nothing that looks like one; older ones are deleted only after that.
    """

    args: UnlearnConfig
    _staging: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output = super()._get_output_dir(trial)
        name = f"checkpoint-{self.state.global_step}"
        staged, final = Path(output) / UNFINISHED / name, Path(output) / name
        writes = self.args.should_save
        if writes:
            make_own_folder(staged.parent)
        self.accelerator.wait_for_everyone()
        self._staging = str(staged.parent)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        # The Trainer looked for the best checkpoint beside the one it wrote, and the folder may have been moved since.
        best = Path(output) / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == final or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        if writes:
            self.state.save_to_json(str(staged / LAST_WRITTEN))
            if final.exists():
                os.replace(final, staged.with_name(f"{name}.old"))
            os.replace(staged, final)
            remove_own_folder(staged.parent)
            delete_old_checkpoints(Path(output), self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def find_best_checkpoint(self) -> None:
        """Note where the best checkpoint is now: a folder that was moved has it under the same name."""
        best = self.state.best_model_checkpoint
        if best and (self.args.folder / Path(best).name).is_dir():
            self.state.best_model_checkpoint = str(self.args.folder / Path(best).name)

    def _load_best_model(self) -> None:
        self.find_best_checkpoint()
        if self.state.best_model_checkpoint is not None:
            check_pickles(Path(self.state.best_model_checkpoint))  # DeepSpeed reads more of it than the weights
        super()._load_best_model()


def delete_old_checkpoints(output: Path, limit: int | None, best: str | None) -> None:
    """Keep the ``limit`` checkpoints of most steps, the best one among them.

    The steps tell which are older: times of files do not, on a machine with another clock or after a copy.

    Args:
        limit: ``save_total_limit``; None keeps all. With 1, the best and the last are kept.
        best: folder of the best checkpoint, of which the name alone counts.
    """
    if not limit or limit < 0:
        return
    written = [path for path in output.glob("checkpoint-*") if (path / LAST_WRITTEN).is_file() and _steps(path)]
    written.sort(key=_steps)
    kept = {path.name for path in written[-1:]}
    if best is not None:
        kept.add(Path(best).name)
    for path in reversed(written):
        if len(kept & {each.name for each in written}) < limit:
            kept.add(path.name)
    for path in written:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _steps(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else 0


class StopSignal:
    """Within the context SIGTERM (a cluster's warning) and Ctrl-C only set ``received``.

    A second Ctrl-C does not wait for the step to end. What comes within a second is the first one again: launchers and
    ``timeout`` pass on what the terminal or the process group has brought already.

    Attributes:
        received: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignal":
        self._earlier: dict[signal.Signals, Any] = {}
        self.received, self._since = 0, 0.0  # what stopped an earlier training does not stop this one
        with contextlib.suppress(ValueError):  # outside the main thread the signal is someone else's
            for number in (signal.SIGTERM, signal.SIGINT):
                self._earlier[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._earlier.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT and time.monotonic() - self._since > SAME_SIGNAL:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._since = int(number), time.monotonic()


@contextlib.contextmanager
def finishing(doing: str) -> Iterator[None]:
    """Within the context SIGTERM and Ctrl-C wait until what is written is whole.

    Args:
        doing: what came of it, and how to go on; follows on the name of the signal.

    Raises:
        Terminated: at the end, if one of them came.
    """
    with StopSignal() as stop:
        yield
    if stop.received:
        raise Terminated(stop.received, doing)
