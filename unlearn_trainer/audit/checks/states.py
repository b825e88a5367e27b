"""What attacks on hidden states share: rows in batches on however many processes, a model's blocks, and two halves."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from numpy.typing import ArrayLike
from torch import nn
from tqdm.auto import tqdm

from ...errors import ConfigError
from ...model.layers import transformer_blocks
from ...model.trials import rounding_of, sample_ids, unwrapped
from ..figures import seed_of
from ..subject import Subject


class NoResidualStream(ConfigError):
    """The model has no single list of blocks that pass a state [rows, length, d] from one to the next."""


def picks(items: ArrayLike, seed: int) -> np.ndarray:
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
    inner = unwrapped(model)
    try:
        found = transformer_blocks(inner)
    except ConfigError:
        found = []
    if len(found) != 1:
        raise NoResidualStream(f"the layers of {type(inner).__name__} are not one list of blocks")
    return found[0]


@contextlib.contextmanager
def on_outputs(blocks: Iterable[nn.Module], change: Callable[[int, torch.Tensor], torch.Tensor | None]):
    """Within the context ``change(index, state)`` sees the output of each block, and replaces it unless it is None.

    Raises:
        NoResidualStream: inside of a forward, where a block's output is no state [rows, length, d].
    """

    def hook_of(index):
        def hook(block, _, output):
            is_sequence = isinstance(output, tuple | list)
            state = output[0] if is_sequence else output
            if not isinstance(state, torch.Tensor) or state.dim() != 3:
                raise NoResidualStream(f"the output of {type(block).__name__} is not a state [rows, length, d]")
            changed = change(index, state)
            if changed is None:
                return output
            return type(output)([changed, *output[1:]]) if is_sequence else changed

        return hook

    handles = [block.register_forward_hook(hook_of(index)) for index, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def try_reading(model: nn.Module, device: torch.device) -> bool:
    """Try whether a state can be read as if the last block had made it; call it on every process.

    Behind the last block the states of two texts are exchanged, and appended as further rows: what the model makes
    its logits from has to be exchanged with them. Where it takes no further rows the exchange alone is tried. It is
    not exchanged where another tensor goes into it, such as the embedding or the states of other blocks, where several
    streams pass the blocks, or where these are run more than once.

    Args:
        model: in eval mode, with an attached vocabulary head, wrapped or not.
        device: where its inputs go.

    Returns:
        Whether states can be appended as further rows.

    Raises:
        NoResidualStream: it cannot be read at all.
    """
    blocks = blocks_of(model)
    run = _trial(model, device)
    with on_outputs(blocks, lambda *_: None):  # every block has to have a state
        plain = run()
    takes_more = True
    try:
        with on_outputs(blocks[-1:], lambda _, state: torch.cat([state.flip(0), state])):
            read = run(rows=4)
    except NoResidualStream:
        takes_more = False
        with on_outputs(blocks[-1:], lambda _, state: state.flip(0)):
            read = run()
    wanted = torch.cat([plain.flip(0), plain])[: len(read)]
    if not (read - wanted).norm() <= rounding_of(model) * wanted.norm():
        raise NoResidualStream(
            f"{type(unwrapped(model)).__name__} does not make its logits from its last block's output"
        )
    return takes_more


@torch.no_grad()
def try_pushing(model: nn.Module, layers: Sequence[int], device: torch.device) -> None:
    """Whether the states behind ``layers`` can be changed; call it on every process.

    A change by 0 has to leave what the model makes its logits from as it is; half of each state less has to change it.

    Args:
        model, device: as for :func:`try_reading`.
        layers: numbers of blocks.

    Raises:
        NoResidualStream: they cannot.
    """
    blocks = blocks_of(model)
    run = _trial(model, device)
    plain = run()
    bound = rounding_of(model) * plain.norm()
    # One direction for all: the first half of the state's entries.
    for chosen, share in ([*layers], 0.0), *(([layer], 0.5) for layer in layers):
        with on_outputs([blocks[layer] for layer in chosen], functools.partial(_push, share)):
            pushed = run()
        if not ((pushed - plain).norm() <= bound if share == 0 else (pushed - plain).norm() > bound):
            raise NoResidualStream(
                f"{type(unwrapped(model)).__name__} does not go by the output of its block {chosen[0] + 1} alone"
                if share == 0
                else f"{type(unwrapped(model)).__name__} makes no use of the output of its block {chosen[0] + 1}"
            )


def _push(share, _, state):
    """``state`` with a share of the first half of its entries taken away."""
    return torch.cat([state[..., : state.shape[-1] // 2] * (1 - share), state[..., state.shape[-1] // 2 :]], -1)


def _trial(model, device):
    """A function that runs ``model`` on two texts of one length: the input of its head [rows, length, d]."""
    length = 9
    ids = torch.tensor([sample_ids(model, length), sample_ids(model, length, 3)], device=device)

    def run(rows=2):
        try:
            with torch.autocast(device.type, enabled=False):
                # A slice: however many positions there are.
                hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), positions=slice(None))["hidden"]
        except NoResidualStream:
            raise
        except Exception as error:  # whatever a family's forward raises where a state is not what it expects
            raise NoResidualStream(f"{type(unwrapped(model)).__name__} does not run with changed states") from error
        if len(hidden) != rows * length:
            raise NoResidualStream(
                f"{type(unwrapped(model)).__name__} does not make its logits from its last block's output"
            )
        return hidden.float().unflatten(0, (rows, length))

    return run


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
