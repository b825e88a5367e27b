"""What attacks on hidden states share: rows in batches on however many processes, a model's blocks, and two halves."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from ..errors import ConfigError
from ..layers import transformer_blocks
from .figures import seed_of
from .subject import Subject


class NoResidualStream(ConfigError):
    """The model has no single list of blocks that pass a state [rows, length, d] from one to the next."""


def picks(items: Sequence[int], seed: int) -> np.ndarray:
    """Whether each row is of the half by which an attack is tuned; what it yields is measured on the other half.

    All translations of an item are in the same half, drawn by ``seed``; of an odd number of items the other half has
    the one more.

    Args:
        items: [rows] the rows' items.

    Returns:
        bool [rows].
    """
    distinct = np.unique(items)
    drawn = np.random.default_rng(seed_of(seed, "halves")).permutation(distinct)[: len(distinct) // 2]
    return np.isin(items, drawn)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of ``model``, wrapped by an engine or not.

    Raises:
        NoResidualStream: they are in no list, or in several.
    """
    model = getattr(model, "module", model)
    try:
        found = transformer_blocks(model)
    except ConfigError:
        found = []
    if len(found) != 1:
        raise NoResidualStream(f"the layers of {type(model).__name__} are not one list of blocks")
    return found[0]


@contextlib.contextmanager
def on_outputs(blocks: Sequence[nn.Module], change: Callable[[int, torch.Tensor], torch.Tensor | None]):
    """Within the context ``change(index, state)`` sees the output of each block, and replaces it unless it is None.

    Raises:
        NoResidualStream: inside of a forward, where a block's output is no state [rows, length, d].
    """

    def hook_of(index):
        def hook(block, _, output):
            is_tuple = isinstance(output, tuple)
            state = output[0] if is_tuple else output
            if not isinstance(state, torch.Tensor) or state.dim() != 3:
                raise NoResidualStream(f"the output of {type(block).__name__} is not a state [rows, length, d]")
            changed = change(index, state)
            if changed is None:
                return output
            return (changed, *output[1:]) if is_tuple else changed

        return hook

    handles = [block.register_forward_hook(hook_of(index)) for index, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shared_batches(subject: Subject, rows: Dataset, description: str) -> Iterator[tuple[list[int], dict]]:
    """This process's share of ``rows`` in padded batches, the longest first; every process gets equally many.

    Yields:
        The rows' numbers and ``input_ids``, ``attention_mask`` and ``labels`` [rows, length] on the device. A batch
        that only keeps step with the other processes has no numbers, but its forward is to be run.
    """
    state, size = PartialState(), subject.args.per_device_eval_batch_size
    columns = rows.select_columns(["input_ids", "labels"]).with_format(None)
    inputs, labels = columns["input_ids"], columns["labels"]
    order = sorted(range(len(rows)), key=lambda row: -len(inputs[row]))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    rounds = math.ceil(len(batches) / state.num_processes)
    is_silent = subject.args.disable_tqdm or not state.is_main_process
    for index in tqdm(range(rounds), f"{subject.name}: {description}", disable=is_silent, leave=False):
        mine = index * state.num_processes + state.process_index
        numbers = batches[mine] if mine < len(batches) else []
        chosen = numbers or order[-1:]
        length = max(len(inputs[row]) for row in chosen)
        fill = {"input_ids": (inputs, subject.tokenizer.pad_token_id), "labels": (labels, -100)}
        batch = {
            name: torch.tensor([[*values[row], *[pad] * (length - len(values[row]))] for row in chosen])
            for name, (values, pad) in fill.items()
        }
        sizes = torch.tensor([len(inputs[row]) for row in chosen])
        batch["attention_mask"] = (torch.arange(length) < sizes[:, None]).long()
        yield numbers, {name: value.to(subject.args.device) for name, value in batch.items()}


def summed(share: torch.Tensor, subject: Subject) -> torch.Tensor:
    """The sum over all processes of each one's ``share``, on the CPU."""
    if PartialState().num_processes == 1:
        return share.cpu()
    return reduce(share.to(subject.args.device), reduction="sum").cpu()
