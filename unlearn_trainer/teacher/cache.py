"""The frozen teacher run once over the training rows: afterwards its answers are read from files."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..console import say
from ..data.batch import GroupTokens, RowGroup
from ..data.collator import IGNORE_INDEX, TrainingRows
from ..engine.fingerprint import fingerprint
from ..errors import ConfigError
from ..files import digest_file, write_whole
from ..head.projection import VocabularyHead
from .questions import Question
from .teachers import ResidentTeacher

# Above this an automatic choice keeps the teacher in memory: the disk may not be the user's to fill.
MAX_AUTOMATIC_BYTES = 4 * 2**30
FORMAT = 2  # of the files
MISSING = "no files"


class CachedTeacher:
    """A teacher whose answers at the labelled tokens of all training rows lie in memory-mapped files.

    Exact, as a frozen model in eval mode gives a row the same states at every step. What stays in memory is the
    teacher's vocabulary head.

    Args:
        head: of the teacher.
        answers: for each question the answers to all tokens, [tokens, d] or [tokens], and for each row of the split
            the index of its first.
        signature: of the teacher that filled the cache, see ``UnlearnTrainer.identity``.
    """

    def __init__(
        self,
        head: VocabularyHead,
        answers: Mapping[Question, tuple[torch.Tensor, torch.Tensor]],
        signature: list[float],
    ):
        self.head, self.answers, self.signature = head, answers, signature

    def ask(self, question: Question, batch: Mapping[str, torch.Tensor], tokens: GroupTokens) -> torch.Tensor:
        answers, starts = self.answers[question]
        device = tokens.rows.device
        first = starts[batch["row"][tokens.rows[tokens.row_of]].cpu()]
        return answers[first + tokens.places.cpu()].to(device)

    def gathered_head(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to gather: the head is whole on every rank."""
        return contextlib.nullcontext()


class TeacherCache:
    """The files of a :class:`CachedTeacher`, on every machine its own, below the output folder.

    Args:
        folder: where they lie.
        rows: the training rows.
        questions: what the objectives ask.
        trained: {group: dataset rows in the trained languages}.
        hidden_size: of the teacher.
        head_size: of what its vocabulary head takes, which in some models is smaller.
    """

    def __init__(
        self,
        folder: Path,
        rows: TrainingRows,
        questions: Sequence[Question],
        trained: Mapping[RowGroup, list[int]],
        hidden_size: int,
        head_size: int,
    ):
        self.folder, self.rows, self.questions, self.trained = folder, rows, questions, trained
        self.names: list[str] = []
        self.starts: dict[Question, torch.Tensor] = {}
        self.sizes: dict[Question, tuple[int, ...]] = {}
        for question in questions:
            labels = rows.labels(question.group)
            counts = np.zeros(len(labels), dtype=np.int64)
            for row in trained[question.group]:
                counts[row] = sum(label != IGNORE_INDEX for label in labels[row][1:])
                if question.at_label and counts[row]:
                    counts[row] += labels[row][0] != IGNORE_INDEX
            self.starts[question] = torch.from_numpy(np.cumsum(counts) - counts)
            self.sizes[question] = (int(counts.sum()), *question.width(hidden_size, head_size))

    @property
    def is_small(self) -> bool:
        """Whether it takes little of the disk."""
        size = self._bytes(4)
        return size <= MAX_AUTOMATIC_BYTES and self._fits(size)

    def _bytes(self, itemsize: int) -> int:
        return itemsize * sum(math.prod(size) for size in self.sizes.values())

    def _fits(self, size: int) -> bool:
        """Whether the disk has room for ``size`` bytes, and as much again for what the run will write."""
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return shutil.disk_usage(place).free > 2 * size

    def load(
        self,
        teacher: ResidentTeacher,
        model: PreTrainedModel,
        signature: list[float],
        collate: Callable[[list[dict]], Mapping[str, torch.Tensor]],
        batch_size: int,
        precision: str,
        show_progress: bool,
    ) -> CachedTeacher:
        """The cached teacher, computed where no files of the same teacher and rows are there, whole and undamaged.

        Call it on every process. A damaged file is named, and made anew.

        Args:
            teacher: runs once over the rows, under the precision of the training.
            model: its weights, which the files are known by.
            collate: rows to a batch on the device.
            batch_size: rows a forward and process.

        Raises:
            ConfigError: the disk is too small.
        """
        # Machines may share the folder.
        key = f"{self._key(model, precision)}-{socket.gethostname()}"
        self.names = [f"{key}.json", *(f"{key}-{number}.bin" for number in range(len(self.questions)))]
        about = self.folder / self.names[0]
        # One process of a machine reads the files through, for all of them.
        problem = self._problem(about) if PartialState().is_local_main_process else None
        problems = [each for each in gather_object([problem]) if each is not None]
        if problems:
            for each in sorted({*problems} - {MISSING}):
                say(f"the teacher cache is made anew: {each}")
            self._fill(teacher, about, signature, collate, batch_size, show_progress)
        described = json.loads(about.read_text())
        if teacher.is_copy:
            teacher.head.let_go_of_the_model()
        answers = {}
        for question, name, dtype in zip(self.questions, self.names[1:], described["dtypes"], strict=True):
            size = self.sizes[question]
            path = str(self.folder / name)
            found = torch.from_file(path, shared=False, size=math.prod(size), dtype=getattr(torch, dtype))
            answers[question] = found.view(size), self.starts[question]
        return CachedTeacher(teacher.head, answers, described["signature"])

    def remove(self) -> None:
        """Delete what :meth:`load` wrote on this machine, and what killed runs with other settings left.

        Call it on every process, when no step will follow.
        """
        PartialState().wait_for_everyone()
        if PartialState().is_local_main_process and self.names and self.folder.is_dir():
            host = re.escape(socket.gethostname())
            mine = re.compile(rf"\.?[0-9a-f]{{24}}-{host}(-[0-9]+)?\.(json|bin)(\.unfinished)?")
            with contextlib.suppress(FileNotFoundError):  # another machine that shares the folder was faster
                for path in [*self.folder.iterdir()]:
                    if mine.fullmatch(path.name):
                        path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it, and stays
                self.folder.rmdir()

    def _key(self, model: PreTrainedModel, precision: str) -> str:
        """Names all that decides the content: the teacher, the rows with their tokens, which of them, and by what."""
        asked = [question.key for question in self.questions]
        versions = [FORMAT, torch.__version__, transformers.__version__]
        content = [self.rows.digests(), self.trained, asked, precision, fingerprint(model), versions]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def _problem(self, about: Path) -> str | None:
        """What is wrong with the files; ``None`` where they are as they were written."""
        if not about.is_file():
            return MISSING
        try:
            described = json.loads(about.read_text(encoding="utf-8"))
            if described.pop("digest") != _digest(described):
                return f"{about} is damaged"
            for question, name, dtype in zip(self.questions, self.names[1:], described["dtypes"], strict=True):
                path, written = self.folder / name, described["files"][name]
                expected = math.prod(self.sizes[question]) * getattr(torch, dtype).itemsize
                if not path.is_file():
                    return f"{path} is missing"
                if not written["bytes"] == expected == path.stat().st_size:
                    return f"{path} has {path.stat().st_size} bytes, not {expected}"
                if digest_file(path) != written["sha256"]:
                    return f"{path} is damaged"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{about} is damaged"
        return None

    def _fill(
        self,
        teacher: ResidentTeacher,
        about: Path,
        signature: list[float],
        collate: Callable[[list[dict]], Mapping[str, torch.Tensor]],
        batch_size: int,
        show_progress: bool,
    ) -> None:
        """Every machine computes all rows, its processes one share each; equally many forwards everywhere."""
        state = PartialState()
        hosts = gather_object([socket.gethostname()])
        mine = [rank for rank, host in enumerate(hosts) if host == hosts[state.process_index]]
        work = []
        for question in self.questions:
            is_forget = question.group.split is RowGroup.FORGET
            pairs = [(is_forget, row) for row in self.trained[question.group]]
            pairs.sort(key=lambda pair: -len(self.rows[pair]["input_ids"]))
            work += [(question, pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size)]
        rounds = -(-len(work) // min(hosts.count(host) for host in hosts))
        self.folder.mkdir(parents=True, exist_ok=True)
        if state.process_index == mine[0]:
            for question in self.questions:  # a killed run's may be longer
                self._unfinished(question).unlink(missing_ok=True)
        state.wait_for_everyone()
        files: dict[Question, torch.Tensor] = {}
        dtypes: dict[Question, str] = {}
        bar = tqdm(total=rounds, desc="teacher", disable=not (show_progress and state.is_main_process), leave=False)
        for index in range(rounds):
            number = index * len(mine) + mine.index(state.process_index)
            question, pairs = work[number] if number < len(work) else (work[0][0], work[0][1][-1:])
            batch = collate([self.rows[pair] for pair in pairs])
            tokens = question.tokens(batch)
            found = teacher.ask(question, batch, tokens).cpu()
            if question not in files:
                self._check_room(found.element_size())
                files[question] = torch.from_file(
                    str(self._unfinished(question)),
                    shared=True,
                    size=math.prod(self.sizes[question]),
                    dtype=found.dtype,
                ).view(self.sizes[question])
            dtypes[question] = str(found.dtype).removeprefix("torch.")
            if number < len(work):
                starts, begin = self.starts[question], 0
                for (_, row), count in zip(pairs, tokens.per_row.tolist(), strict=True):
                    start = int(starts[row])
                    files[question][start : start + count] = found[begin : begin + count]
                    begin += count
            bar.update()
        bar.close()
        # A process may have had no share of some question's rows.
        dtypes = {key: value for each in gather_object([dtypes]) for key, value in each.items()}
        files.clear()
        state.wait_for_everyone()
        if state.process_index == mine[0]:
            about.unlink(missing_ok=True)
            written = {}
            for question, name in zip(self.questions, self.names[1:], strict=True):
                path = self.folder / name
                os.replace(self._unfinished(question), path)
                written[name] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
            described = {"dtypes": [dtypes[question] for question in self.questions], "signature": signature}
            described["files"] = written
            write_whole(about, json.dumps(described | {"digest": _digest(described)}))
        state.wait_for_everyone()

    def _unfinished(self, question: Question) -> Path:
        return self.folder / f"{self.names[1 + self.questions.index(question)]}.unfinished"

    def _check_room(self, itemsize: int) -> None:
        needed = self._bytes(itemsize)
        if not self._fits(needed):
            raise ConfigError(
                f"--teacher cached needs {needed / 2**30:.1f} GiB below {self.folder}, and as much again for "
                "checkpoints; make room, or choose --teacher resident"
            )


def _digest(described: dict) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
