"""What a model says of its own accord: blanks, the same again and again, or text that ends.

A model that lost its language scores as well on the forget rows as one that unlearned them: only its text tells.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from .generation import cut_at, end_of_text, greedy_continuations, prompt_and_reference

ROWS = 8  # of each split and language
TOKENS = 24  # of each continuation
SIGNS = ("blank", "repeating", "ended")
FEWEST = 6  # tokens of which can be told whether they repeat themselves


@dataclasses.dataclass(frozen=True)
class GreedyText:
    """One greedy continuation.

    Args:
        split, language: of the row that it follows on the beginning of.
        prompt, reference: what the row begins with, and what it goes on with.
        text: what the model goes on with.
        alike: the beginning of it that has as many tokens as the reference, to be compared with that.
        blank: there is no letter and no digit in the text.
        repeating: its last two thirds are one piece, three times or more.
        ended: it ends by itself.
    """

    split: str
    language: str
    prompt: str
    reference: str
    text: str
    alike: str
    blank: bool
    repeating: bool
    ended: bool


def sample_greedy_text(
    model: nn.Module,
    splits: Mapping[str, Dataset],
    languages: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    batch_size: int,
    seed: int,
    limit: int | None = None,
) -> list[GreedyText]:
    """Continue up to eight rows of every split and language by 24 tokens; call it on every process.

    Args:
        model: a causal language model, whatever engine has wrapped it.
        splits: tokenized rows of any kind; a row begins as :func:`.generation.prompt_and_reference` says.
        languages: codes, in the order of the rows' ``language`` column.
        tokenizer: turns both parts into text.
        device, batch_size: of the batches.
        seed: of the choice of rows.
        limit: tokens that a text may have in this model, if its table of positions ends.
    """
    chosen = []
    for split, dataset in splits.items():
        rows = dataset.select_columns(["input_ids", "labels", "language"]).with_format(None)
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        left = dict.fromkeys(range(len(languages)), ROWS)
        members = {language: [] for language in left}
        of_language = rows["language"][:]
        for index in order:
            if left[of_language[index]]:
                parts = prompt_and_reference(rows[index]["input_ids"], rows[index]["labels"])
                if limit is None or len(parts[0]) + FEWEST <= limit:
                    left[of_language[index]] -= 1
                    members[of_language[index]].append(parts)
        chosen += [(split, languages[language], parts) for language in left for parts in members[language]]
    prompts = [prompt for _, _, (prompt, _) in chosen]
    lengths = [TOKENS if limit is None else min(TOKENS, limit - len(prompt)) for prompt in prompts]
    continued = greedy_continuations(model, prompts, lengths, device, batch_size, show_progress=False)
    ends = end_of_text(model, tokenizer)
    return [
        _described(split, language, parts, ids, ends, tokenizer)
        for (split, language, parts), ids in zip(chosen, continued, strict=True)
    ]


def shares(texts: Sequence[GreedyText]) -> dict[str, dict[str, dict[str, float]]]:
    """``{split: {language: {"blank": share, "repeating": share, "ended": share, "rows": n}}}``."""
    groups: dict[str, dict[str, list[GreedyText]]] = {}
    for text in texts:
        groups.setdefault(text.split, {}).setdefault(text.language, []).append(text)
    return {
        split: {
            language: {
                **{name: sum(getattr(text, name) for text in of) / len(of) for name in SIGNS},
                "rows": len(of),
            }
            for language, of in by_language.items()
        }
        for split, by_language in groups.items()
    }


def repeats(ids: Sequence[int]) -> bool:
    """Whether the last two thirds of ``ids`` are one piece, three times or more."""
    if len(ids) < FEWEST:
        return False
    tail = list(ids[len(ids) // 3 :])
    return any(tail[period:] == tail[:-period] for period in range(1, len(tail) // 3 + 1))


def _described(
    split: str,
    language: str,
    parts: tuple[Sequence[int], Sequence[int]],
    ids: Sequence[int],
    ends: set[int],
    tokenizer: PreTrainedTokenizerBase,
) -> GreedyText:
    own = cut_at(ids, ends)
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    text = tokenizer.decode(own, **options)
    return GreedyText(
        split=split,
        language=language,
        prompt=tokenizer.decode(parts[0], **options),
        reference=tokenizer.decode(parts[1], **options),
        text=text,
        alike=tokenizer.decode(own[: len(parts[1])], **options),
        blank=not any(character.isalnum() for character in text),
        repeating=repeats(own),
        ended=len(own) < len(ids),
    )
