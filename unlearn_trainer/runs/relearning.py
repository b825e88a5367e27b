"""Relearning: how soon forgotten rows come back in every language, once they are learned again in a single one.

Knowledge that is gone has to be learned anew, in each language by itself; knowledge that is only covered comes back in
the others as well. What a model that never saw the rows regains is the measure (Łucki et al. 2024, "An Adversarial
Perspective on Machine Unlearning for AI Safety", for one language).
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.unlearn_config import UnlearnConfig
from ..console import CompactPrinter
from ..errors import ConfigError, DataError
from ..trainer import UnlearnTrainer
from .stages import plain_training

STEPS = 30


def relearn(
    load: Callable[[], PreTrainedModel],
    args: UnlearnConfig,
    rows: Dataset,
    language: str,
    languages: Sequence[str],
    learning_rate: float,
    steps: int = STEPS,
    batch_size: int = 16,
    seed: int = 42,
    measured: Mapping[str, Dataset] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> UnlearnTrainer:
    """Fine-tune a copy of a model on the rows of one language; call it on every process.

    The same arguments give the same weights. Nothing is written.

    Args:
        load: makes the copy, all of which is trained. It is called when the engine is ready, as models are loaded in
            parts under ZeRO-3. (``copy.deepcopy`` will not do for a model that a trainer has had: its vocabulary head
            would stay that of the original.)
        args: of any run; the engine, the precision and the optimizer are taken from them.
        rows: tokenized rows, of the forget split, or of others as a control.
        language: its rows alone are trained on.
        languages: codes that the column ``language`` indexes, held-out languages too.
        learning_rate: constant.
        steps: optimizer steps.
        batch_size: rows of an optimizer step, over all processes.
        seed: of the order of the rows and of dropout.
        measured: ``{split: rows}`` for the returned trainer's ``measure_rows``.
        tokenizer: its pad token fills short rows.

    Returns:
        The trainer when it is done; the relearned model is its ``model``.

    Raises:
        ConfigError: ``language`` is none of ``languages``, or ``batch_size`` cannot be shared out.
        DataError: there are no rows in it.
        TrainingDiverged: the learning rate is too high.
    """
    if language not in languages:
        raise ConfigError(f"language {language} to relearn in is not one of {', '.join(languages)}")
    if batch_size < 1 or batch_size % args.world_size:
        raise ConfigError(f"a relearning step of {batch_size} rows cannot be shared by {args.world_size} processes")
    chosen = np.flatnonzero(np.asarray(rows["language"]) == list(languages).index(language))
    if not len(chosen):
        raise DataError(f"there is no row in {language} to relearn")
    with tempfile.TemporaryDirectory() as folder:
        config = plain_training(
            args,
            folder,
            learning_rate=learning_rate,
            max_steps=steps,
            per_device_train_batch_size=batch_size // args.world_size,
            seed=seed,
            disable_tqdm=True,
        )
        trainer = UnlearnTrainer(
            load().requires_grad_(True),
            config,
            forget_dataset=rows.select(chosen),
            retain_dataset=None,
            languages=languages,
            predict_dataset=dict(measured or {}),
            processing_class=tokenizer,
        )
        trainer.remove_callback(CompactPrinter)
        trainer.train_to_the_end("while forgotten rows were relearned; the same command goes on from there")
    return trainer


def regained(
    rows: Mapping[str, np.ndarray], language: str, languages: Sequence[str], metric: str = "memorization_accuracy"
) -> dict[str, float]:
    """Mean of a metric in every language but the relearned one: what came back without having been shown.

    Args:
        rows: columns of the forget split, measured after relearning (``UnlearnTrainer.measure_rows``).
        language: the one that was relearned in.
        languages: codes that the column ``language`` indexes.
    """
    found = {}
    for index, other in enumerate(languages):
        values = rows[metric][rows["language"] == index]
        if other != language and len(values):
            found[other] = float(values.mean())
    return found
