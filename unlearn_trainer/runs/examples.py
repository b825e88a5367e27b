"""What the model says after the beginnings of some rows, before and after: for a reader who wants to see it."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from ..data import TokenizedData
from ..data.row_checks import learned_positions
from ..errors import ConfigError
from ..evaluation.greedy_text import GreedyText, sample_greedy_text
from ..evaluation.rouge import rouge_l_recall
from ..trainer import UnlearnTrainer


def greedy_texts(
    trainer: UnlearnTrainer, data: TokenizedData, model: PreTrainedModel | None = None
) -> list[GreedyText]:
    """Greedy continuations after some forget rows and some to be kept; call it on every process.

    Args:
        trainer: of the run.
        data: the tokenized rows.
        model: asked instead of the trained one; the same rows of the same seed are continued.
    """
    tokenizer = trainer.processing_class
    if tokenizer is None:
        raise ConfigError("texts need a tokenizer: pass processing_class to the trainer")
    splits = ["forget", next((split for split in ("retain", "valid") if split in data.datasets), None)]
    with trainer.ready(model) as called:
        return sample_greedy_text(
            called,
            {split: data.datasets[split] for split in splits if split in data.datasets},
            [*data.languages, *data.heldout_languages],
            tokenizer,
            trainer.args.device,
            trainer.args.per_device_eval_batch_size,
            trainer.args.seed,
            learned_positions(trainer.model),
        )


def choose_examples(before: Sequence[GreedyText], after: Sequence[GreedyText]) -> list[dict[str, str]]:
    """One row of each split and language: that which the model before knew best, as far as such rows were sampled.

    Args:
        before: continuations by the model as it was at the start.
        after: by the model as it is now, of the same rows in the same order.

    Returns:
        ``[{"split", "language", "prompt", "reference", "before", "after"}]``; both continuations as long as the
        reference, or shorter.
    """
    best: dict[tuple[str, str], tuple[float, dict[str, str]]] = {}
    for old, new in zip(before, after, strict=True):
        recited = rouge_l_recall(old.alike, old.reference)
        row = old.split, old.language
        if row not in best or recited > best[row][0]:
            best[row] = (
                recited,
                {
                    "split": old.split,
                    "language": old.language,
                    "prompt": old.prompt,
                    "reference": old.reference,
                    "before": old.alike,
                    "after": new.alike,
                },
            )
    return [example for _, example in best.values()]
