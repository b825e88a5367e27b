"""What a model says of its own accord after the beginning of a row, against what the row says.

The continuation is a plain argmax, token by token, of the logits that teacher forcing sees (:mod:`.decoding`): so a
row with a memorization accuracy of 1 is continued by exactly its own tokens. (``model.generate`` would add what the
checkpoint's generation settings ask for, such as a repetition penalty, and passes by the outer module, whose hooks
gather the weights under FSDP2.)
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.tokenize import IGNORE_INDEX
from ..model.trials import base_of
from .decoding import predictions, way_to_continue
from .rouge import rouge_l_recall, words


def prompt_and_reference(input_ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Token ids to begin with, at least one, and those that the row goes on with.

    A text, labelled throughout, begins with its first half. A cloze or qa row begins with all that stands before the
    answer: the question and a space, say; what it goes on with is the answer, without what may come after it.
    """
    if IGNORE_INDEX not in labels:
        half = max(1, len(input_ids) // 2)
        return list(input_ids[:half]), list(input_ids[half:])
    labelled = [place for place, label in enumerate(labels) if place and label != IGNORE_INDEX]
    return list(input_ids[: labelled[0]]), [input_ids[place] for place in labelled]


def question_rows(dataset: Dataset, num_languages: int, special_ids: Sequence[int]) -> list[int]:
    """Indices of rows that end with their answer, as those of questions do, in languages all of whose rows do.

    Args:
        dataset: tokenized rows.
        num_languages: rows of further languages are left out.
        special_ids: tokens that may come after the answer.
    """
    special, chosen, others = set(special_ids), {}, set()
    rows = dataset.select_columns(["input_ids", "labels", "language"]).with_format(None)
    for index, row in enumerate(rows):
        labels, language = row["labels"], row["language"]
        labelled = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
        after = row["input_ids"][labelled[-1] + 1 :] if labelled else [None]
        if len(labelled) == len(labels) or not special.issuperset(after):
            others.add(language)
        elif language < num_languages:
            chosen.setdefault(language, []).append(index)
    return sorted(index for language, rows in chosen.items() if language not in others for index in rows)


def continued_rows(
    model: nn.Module,
    datasets: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    batch_size: int,
    show_progress: bool = True,
    description: str = "continuing",
) -> dict[str, dict[str, np.ndarray]]:
    """How each row's greedy continuation agrees with the row; call it on every process.

    A continuation has as many tokens as what it is compared with, or ends before with the end-of-text token.

    Args:
        model: a causal language model, whatever engine has wrapped it; put in eval mode for the duration.
        datasets: tokenized rows of each split.
        tokenizer: turns both sides into text.
        device: where the batches go.
        batch_size: rows a batch and process, if they are as long as the longest; more of shorter ones.
        show_progress: draw a progress bar on the main process.
        description: its label.

    Returns:
        ``{split: {column: array [rows]}}``, whole on every process, rows in the order of the split: ``language`` and
        ``item``; ``rouge_l``, ROUGE-L recall (:mod:`.rouge`); ``exact_match``, 1 where the words are the same.
    """
    pairs, columns = [], {}
    for split, dataset in datasets.items():
        rows = dataset.select_columns(["input_ids", "labels", "language", "item"]).with_format(None)[:]
        pairs += [prompt_and_reference(*row) for row in zip(rows["input_ids"], rows["labels"], strict=True)]
        columns[split] = {name: np.array(rows[name], dtype=np.int64) for name in ("language", "item")}
    bar = {"show_progress": show_progress, "description": description}
    prompts, references = [prompt for prompt, _ in pairs], [reference for _, reference in pairs]
    lengths = [len(reference) for reference in references]
    found = greedy_continuations(model, prompts, lengths, device, batch_size, **bar)
    ends = end_of_text(model, tokenizer)
    spoken, written = (
        [tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in side]
        for side in ([cut_at(ids, ends) for ids in found], references)
    )
    start = 0
    for each in columns.values():
        part = range(start, start := start + len(each["item"]))
        each["rouge_l"] = np.array([rouge_l_recall(spoken[i], written[i]) for i in part])
        each["exact_match"] = np.array([float(words(spoken[i]) == words(written[i])) for i in part])
    return columns


@torch.no_grad()
def greedy_continuations(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    device: torch.device,
    batch_size: int,
    show_progress: bool = True,
    description: str = "continuing",
) -> list[list[int]]:
    """The most likely token after each prompt, the most likely after that, and so on; call it on every process.

    Args:
        model, device, batch_size, show_progress, description: as for :func:`continued_rows`.
        prompts: token ids, at least one of each.
        lengths: how many tokens to add to each; end-of-text tokens stop nothing.

    Returns:
        The added token ids of every prompt, in their order, the same on every process.
    """
    state = PartialState()
    training = model.training
    model.eval()
    longest = max((len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True)), default=0)
    way = way_to_continue(model, device, longest)
    batches = _batches(prompts, lengths, batch_size if way.batched else 1, way.padded)
    # One more than the token's id: a reduction adds the zeros of those that had other rows.
    table = torch.zeros(len(prompts), max(lengths, default=0), dtype=torch.int64)
    # Every process makes equally many forwards, or sharded weights could not be gathered: spare ones are idle.
    rounds = math.ceil(len(batches) / state.num_processes)
    bar = tqdm(total=rounds, desc=description, disable=not (show_progress and state.is_main_process), leave=False)
    for index in range(rounds):
        of_round = batches[index * state.num_processes :][: state.num_processes]
        steps = max(lengths[row] for batch in of_round for row in batch)
        is_idle = state.process_index >= len(of_round)
        batch = of_round[0][:1] if is_idle else of_round[state.process_index]
        chosen = [prompts[row] for row in batch]
        found = [logits.argmax(-1) for logits in itertools.islice(predictions(model, way, chosen, device), steps)]
        if not is_idle:
            table[batch, :steps] = torch.stack(found, 1).cpu() + 1
        bar.update()
    bar.close()
    model.train(training)
    if state.num_processes > 1:
        table = reduce(table.to(device), reduction="sum").cpu()
    return [ids[:length] for ids, length in zip((table - 1).tolist(), lengths, strict=True)]


def end_of_text(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those the checkpoint stops at."""
    settings = getattr(base_of(model), "generation_config", None)
    ids = getattr(settings, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])}
    return found - {None}


def cut_at(ids: Sequence[int], ends: set[int]) -> Sequence[int]:
    """``ids`` up to the first of ``ends``."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _batches(prompts, lengths, batch_size, pads):
    """Rows of about equally many tokens to add; of equally many to begin with where the model takes no padding."""
    order = sorted((row for row in range(len(prompts)) if lengths[row]), key=lambda i: (-lengths[i], -len(prompts[i])))
    if not pads:
        order.sort(key=lambda i: -len(prompts[i]))
    budget = batch_size * max((len(prompts[row]) + lengths[row] for row in order), default=0)
    batches: list[list[int]] = []
    widest = (0, 0)
    for row in order:
        size = len(prompts[row]), lengths[row]
        wider = max(widest[0], size[0]), max(widest[1], size[1])
        full = bool(batches) and (batch_size == 1 or (len(batches[-1]) + 1) * sum(wider) > budget)
        if not batches or full or not (pads or size[0] == widest[0]):
            batches.append([])
            wider = size
        batches[-1].append(row)
        widest = wider
    return batches
