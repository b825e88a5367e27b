"""The models of an audit, each with the same rows and the same ways to measure it."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.arguments import ModelArguments
from ..config.unlearn_config import UnlearnConfig
from ..data import TokenizedData
from ..data.encoding import encode
from ..data.items import Item, Passage
from ..evaluation.evaluator import MultilingualEvaluator
from ..files import digest_file
from ..model.adapter_folders import chain_of
from ..model.loading import load_model
from ..runs.stages import plain_training
from ..trainer import UnlearnTrainer

AUDITED, BEFORE, NEVER_SEEN = "after", "before", "never_seen"
# Splits of earlier requests, forgotten before: this and a number.
EARLIER = "forgotten_"
# Of what the checks' figures mean: results of another version are not taken up.
VERSION = 2
Change = Callable[[PreTrainedModel], PreTrainedModel]


@dataclasses.dataclass(frozen=True)
class AuditData:
    """What all models of an audit are measured on.

    Args:
        tokenizer: of the models.
        data: tokenized splits, of which ``forget`` is what was to be forgotten.
        items: split to raw items, which the rows' column ``item`` indexes.
        max_seq_length: in tokens.
        args: engine, precision, batch size and seed.
    """

    tokenizer: PreTrainedTokenizerBase
    data: TokenizedData
    items: Mapping[str, Sequence[Item]]
    max_seq_length: int
    args: UnlearnConfig

    @property
    def languages(self) -> list[str]:
        return [*self.data.languages, *self.data.heldout_languages]

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """A digest of each split: its items as they are, with all that prompts are made of, and its rows."""
        found = {}
        for split, rows in self.data.datasets.items():
            digest = hashlib.sha256(repr([(item.kind, item.content) for item in self.items[split]]).encode())
            for row in rows.with_format(None):
                digest.update(json.dumps(row).encode())
            found[split] = digest.hexdigest()[:16]
        return found


class Subject:
    """A model under audit, or one that it is compared with. Every process makes the same calls in the same order.

    Args:
        name: ``after`` (the audited one), ``before`` or ``never_seen``.
        model_args: where it is loaded from.
        shared: what all models of the audit have in common.
        peers: all models of the audit by name, this one too.
        measured: the split that stands for ``forget``: where there is no model that never saw the forget rows, rows
            that no model saw take their place.
    """

    def __init__(
        self,
        name: str,
        model_args: ModelArguments,
        shared: AuditData,
        peers: Mapping[str, "Subject"],
        measured: str = "forget",
    ):
        self.name, self.model_args, self.measured = name, model_args, measured
        self._shared, self._peers = shared, peers
        self.tokenizer, self.max_seq_length = shared.tokenizer, shared.max_seq_length
        self.args, self.seed = shared.args, shared.args.seed
        self.languages, self.num_trained = shared.languages, len(shared.data.languages)
        self.datasets: dict[str, Dataset] = {**shared.data.datasets, "forget": shared.data.datasets[measured]}
        self.items = {**shared.items, "forget": shared.items[measured]}

    @property
    def unseen(self) -> str | None:
        """The split whose rows no model has seen: test, else valid; None where there is neither."""
        return unseen_split(self._shared.data.datasets) if self.measured == "forget" else None

    @property
    def source(self) -> str:
        """Where the model came from, and in place of what its figures stand."""
        name = self.model_args.name
        return name if self.measured == "forget" else f"{name}, {self.measured} rows"

    @property
    def is_main_process(self) -> bool:
        return PartialState().is_main_process

    def fingerprint(self, settings: Sequence[str]) -> dict:
        """What the result of a check rests on.

        Args:
            settings: names of the flags that decide it.
        """
        chain = chain_of(self.model_args.name, self.model_args.revision, "--model_name_or_path")
        (name, _, files), *under = [_content(*each) for each in chain]
        where = ("gguf_file", "revision", "tokenizer_name", "dtype", "attn_implementation")
        return {
            "version": VERSION,
            "model": [name, *(getattr(self.model_args, name) for name in where)],
            "files": files,
            # What the adapter in the folder was put on.
            **({"base": under} if under else {}),
            "measured": self.measured,
            "rows": self._shared.digests,
            "languages": self.languages,
            "max_seq_length": self.max_seq_length,
            **{name: getattr(self.args, name) for name in ("seed", "bf16", "fp16", *settings)},
        }

    @property
    def evaluator(self) -> MultilingualEvaluator:
        """Measures a model that :meth:`ready` has given, in all languages."""
        return MultilingualEvaluator(
            self.languages,
            self.num_trained,
            self.tokenizer.pad_token_id,
            self.args.per_device_eval_batch_size,
            show_progress=not self.args.disable_tqdm,
        )

    def peer(self, name: str) -> "Subject | None":
        """Another model of the audit, where there is one."""
        return self._peers.get(name)

    def load(self, **changes) -> PreTrainedModel:
        """A fresh copy on the CPU, in evaluation mode.

        Args:
            changes: model arguments in place of the model's own, such as ``dtype``.
        """
        return load_model(dataclasses.replace(self.model_args, **changes), self.tokenizer)

    @contextlib.contextmanager
    def ready(self, change: Change | None = None) -> Iterator[PreTrainedModel]:
        """Within the context a fresh copy, changed by ``change``, is on its device and can be called under no_grad."""
        with self._trainer(change) as trainer, trainer.ready() as called, torch.no_grad():
            yield called

    def rows(
        self,
        datasets: Mapping[str, Dataset],
        change: Change | None = None,
        model: PreTrainedModel | None = None,
        description: str = "measuring",
    ) -> dict[str, dict[str, np.ndarray]]:
        """Figures of every row: ``{name: {column: array [rows]}}`` as :meth:`MultilingualEvaluator.rows` gives them.

        Args:
            datasets: name to tokenized rows.
            change: applied to the fresh copy that is measured.
            model: measured instead, what :meth:`ready` has given.
            description: label of the progress bar.
        """
        if model is None:
            with self.ready(change) as model:
                return self.rows(datasets, model=model, description=description)
        return self.evaluator.rows(model, datasets, self.args.device, description=f"{self.name}: {description}")

    def encode(self, entries: Iterable[tuple[int, int, Passage]]) -> Dataset:
        """Tokenized rows of ``(item, language index, passage)``; without those that lose all labels by truncation."""
        columns: dict[str, list] = {"input_ids": [], "labels": [], "language": [], "item": []}
        entries = list(entries)
        passages = [passage for *_, passage in entries]
        for (item, language, _), row in zip(
            entries, encode(self.tokenizer, passages, self.max_seq_length), strict=True
        ):
            if row.counts:
                for name, value in zip(columns, (row.input_ids, row.labels, language, item), strict=True):
                    columns[name].append(value)
        return Dataset.from_dict(columns)

    @contextlib.contextmanager
    def _trainer(self, change):
        """A trainer that trains nothing: it brings the model under whatever engine the audit runs on."""
        with tempfile.TemporaryDirectory() as folder:
            config = plain_training(self.args, folder, max_steps=1)  # first: it decides how models are loaded
            model = self.load()
            yield UnlearnTrainer(
                change(model) if change else model,
                config,
                forget_dataset=self.datasets["forget"],
                retain_dataset=None,
                languages=self.languages[: self.num_trained],
                heldout_languages=self.languages[self.num_trained :],
                processing_class=self.tokenizer,
            )


def unseen_split(splits: Mapping[str, Dataset]) -> str | None:
    """Of the splits the one whose rows no model has seen: test or valid, what has more of the forget rows' languages.

    Of equals it is test: some methods take rows of valid for themselves. None where there is neither.
    """
    wanted = set(splits["forget"]["language"][:])
    there = [split for split in ("test", "valid") if len(splits.get(split, ()))]
    return max(there, key=lambda split: len(wanted & set(splits[split]["language"][:])), default=None)


@functools.lru_cache(maxsize=256)  # each check asks for it
def _digest(path, size, time):
    return digest_file(path)


def _content(name: str, revision: str | None) -> list:
    """Name and revision of a model, and its files with their digests.

    A folder is known by what is in it, so that an audit goes on where it was copied or moved to.
    """
    folder = Path(name)
    files = sorted(path for path in folder.iterdir() if _is_of_model(path)) if folder.is_dir() else []
    digests = [[path.name, _digest(path, path.stat().st_size, path.stat().st_mtime_ns)] for path in files]
    return [None if files else str(folder), revision, digests]


def _is_of_model(path):
    described = ("config.json", "generation_config.json", "tokenizer.json", "adapter_config.json")
    return path.suffix in (".safetensors", ".bin", ".gguf") or path.name in described
