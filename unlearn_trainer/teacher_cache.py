"""The frozen teacher run once over the training rows: afterwards its final hidden states are read from a file."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from .data.collator import IGNORE_INDEX, TrainingRows
from .errors import ConfigError
from .step_loss import side_tokens
from .teacher import ResidentTeacher
from .vocabulary_head import VocabularyHead

# Above this an automatic choice keeps the teacher in memory: the disk may not be the user's to fill.
MAX_AUTOMATIC_BYTES = 4 * 2**30


class CachedTeacher:
    """A teacher whose hidden states at the labelled tokens of all training rows lie in one memory-mapped file.

    Exact, as a frozen model in eval mode gives a row the same states at every step. What stays in memory is the
    teacher's vocabulary head.

    Args:
        head: of the teacher.
        states: [tokens, hidden size], memory-mapped.
        starts: for each side [rows of its split] index into ``states`` of a row's first labelled token.
        signature: of the teacher that filled the cache, see ``UnlearnTrainer.identity``.
    """

    def __init__(
        self, head: VocabularyHead, states: torch.Tensor, starts: Mapping[bool, torch.Tensor], signature: list[float]
    ):
        self.head, self.states, self.starts, self.signature = head, states, starts, signature

    def hidden(self, batch: Mapping, rows: torch.Tensor, row_of: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Final hidden states [n, d] of all labelled tokens of the ``rows`` [R] of a batch, which are of one side."""
        device = batch["input_ids"].device
        if not len(row_of):
            return self.states[:0].to(device)
        starts = self.starts[bool(batch["is_forget"][rows[0]])]
        first = torch.searchsorted(row_of, row_of)  # tokens are in the order of their rows
        token = torch.arange(len(row_of), device=device) - first
        return self.states[starts[batch["row"][rows[row_of]].cpu()] + token.cpu()].to(device)

    def gathered_head(self):
        """Nothing to gather: the head is whole on every rank."""
        return contextlib.nullcontext()


class TeacherCache:
    """The file of a :class:`CachedTeacher`, one on every machine, below the output folder.

    Args:
        folder: where it lies.
        rows: the training rows; ``sides`` {is_forget: shift} says which splits, and by how many columns behind the
            predicting position, are asked for.
        trained: {is_forget: dataset rows in the trained languages}.
    """

    def __init__(self, folder: Path, rows: TrainingRows, sides: Mapping[bool, int], trained: Mapping[bool, list[int]]):
        self.folder, self.rows, self.sides, self.trained = folder, rows, sides, trained
        self.path: Path | None = None
        self.starts: dict[bool, torch.Tensor] = {}
        self.tokens = 0
        for is_forget in sides:
            labels = rows.labels(is_forget)
            counts = np.zeros(len(labels), dtype=np.int64)
            for row in trained[is_forget]:
                counts[row] = sum(label != IGNORE_INDEX for label in labels[row][1:])
            self.starts[is_forget] = torch.from_numpy(self.tokens + np.cumsum(counts) - counts)
            self.tokens += int(counts.sum())

    def pays(self, drawn_rows: float, hidden_size: int) -> bool:
        """Whether filling it costs less than the ``drawn_rows`` of the training would, and little of the disk."""
        size = 4 * self.tokens * hidden_size
        return drawn_rows > sum(map(len, self.trained.values())) and size <= MAX_AUTOMATIC_BYTES and self._fits(size)

    def _fits(self, size: int) -> bool:
        """Whether the disk has room for ``size`` bytes, and as much again for what the run will write."""
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return shutil.disk_usage(place).free > 2 * size

    def load(
        self,
        teacher: ResidentTeacher,
        model: nn.Module,
        signature: list[float],
        collate: Callable[[list[dict]], Mapping[str, torch.Tensor]],
        batch_size: int,
        precision: str,
        show_progress: bool,
    ) -> CachedTeacher:
        """The cached teacher, computed where no complete file of the same teacher and rows is there yet.

        Call it on every process.

        Args:
            teacher: runs once over the rows, under the precision of the training.
            model: its weights, which the file is known by.
            collate: rows to a batch on the device.
            batch_size: rows a forward and process.

        Raises:
            ConfigError: the disk is too small.
        """
        # Machines may share the folder.
        name = f"{self._key(model, precision)}-{socket.gethostname()}"
        self.path = path = self.folder / f"{name}.bin"
        about = path.with_name(f"{name}.json")
        whole = all(gather_object([about.is_file()]))
        if not whole:
            self._fill(teacher, path, about, signature, collate, batch_size, show_progress)
        shape = json.loads(about.read_text())
        dtype = getattr(torch, shape["dtype"])
        if teacher.is_copy:
            teacher.head.let_go_of_the_model()
        states = torch.from_file(str(path), shared=False, size=math.prod(shape["size"]), dtype=dtype)
        return CachedTeacher(teacher.head, states.view(shape["size"]), self.starts, shape["signature"])

    def remove(self) -> None:
        """Delete what :meth:`load` wrote on this machine; call it on every process, when no step will follow."""
        PartialState().wait_for_everyone()
        if PartialState().is_local_main_process and self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path.with_suffix(".json").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it, and stays
                self.folder.rmdir()

    def _key(self, model, precision):
        """Names the teacher's weights, the rows with their tokens, and how both are combined."""
        digest = hashlib.sha256(json.dumps([self.rows.digests(), sorted(self.sides.items()), precision]).encode())
        for name, parameter in model.named_parameters():
            values = parameter.detach().double().flatten()
            # The second sum tells a permutation of the same numbers.
            ramp = torch.arange(len(values), dtype=torch.float64, device=values.device) / max(len(values), 1)
            digest.update(json.dumps([name, values.sum().item(), (values @ ramp).item()]).encode())
        return digest.hexdigest()[:24]

    def _fill(self, teacher, path, about, signature, collate, batch_size, show_progress):
        """Every machine computes all rows, its processes one share each; equally many forwards everywhere."""
        state = PartialState()
        hosts = gather_object([socket.gethostname()])
        mine = [rank for rank, host in enumerate(hosts) if host == hosts[state.process_index]]
        order = sorted(
            ((is_forget, row) for is_forget in self.sides for row in self.trained[is_forget]),
            key=lambda pair: (pair[0], -len(self.rows[pair]["input_ids"])),
        )
        batches = [
            group[start : start + batch_size]
            for group in ([pair for pair in order if pair[0] == side] for side in self.sides)
            for start in range(0, len(group), batch_size)
        ]
        fewest = min(hosts.count(host) for host in hosts)
        rounds = -(-len(batches) // fewest)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        states = None
        bar = tqdm(total=rounds, desc="teacher", disable=not (show_progress and state.is_main_process), leave=False)
        for index in range(rounds):
            number = index * len(mine) + mine.index(state.process_index)
            pairs = batches[number] if number < len(batches) else batches[0][-1:]
            is_forget = pairs[0][0]
            batch = collate([self.rows[pair] for pair in pairs])
            tokens = side_tokens(batch, "forget" if is_forget else "retain")
            columns = tokens.columns + self.sides[is_forget]
            found = teacher.hidden(batch, tokens.rows, tokens.row_of, columns).cpu()
            if states is None:
                size = self.tokens, found.shape[1]
                needed = found.element_size() * math.prod(size)
                if not self._fits(needed):
                    raise ConfigError(
                        f"--teacher cached needs {needed / 2**30:.1f} GiB below {self.folder}, and as much again for "
                        "checkpoints; make room, or choose --teacher resident"
                    )
                states = torch.from_file(str(unfinished), shared=True, size=math.prod(size), dtype=found.dtype)
                states = states.view(size)
            if number < len(batches):
                begin = 0
                counts = torch.bincount(tokens.row_of, minlength=len(pairs)).tolist()
                for (_, row), count in zip(pairs, counts, strict=True):
                    start = int(self.starts[is_forget][row])
                    states[start : start + count] = found[begin : begin + count]
                    begin += count
            bar.update()
        bar.close()
        dtype = str(states.dtype).removeprefix("torch.")
        description = json.dumps({"size": list(states.shape), "dtype": dtype, "signature": signature})
        del states
        state.wait_for_everyone()
        if state.process_index == mine[0]:
            os.replace(unfinished, path)
            about.with_name(f"{about.name}.unfinished").write_text(description)
            os.replace(about.with_name(f"{about.name}.unfinished"), about)
        state.wait_for_everyone()
