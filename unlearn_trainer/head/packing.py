"""Several rows in one line of a model's input, so that nothing is computed for padding.

Rows that share a line are kept apart by an explicit attention mask and by their own positions. That needs a model
whose layers go by them: recurrent layers and ALiBi do not, and flash attention takes no such mask. Whether a model
does is tried once, on the model itself.
"""

import inspect

import numpy as np
import torch
from torch import nn

from ..model.trials import base_of, rounding_of, sample_ids, thresholds, unwrapped
from .attached import attached_to


class Layout:
    """Where the rows of a padded batch lie in the input of a model.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask`` of the forward, and ``position_ids`` where rows share lines.
        starts: [rows] flat index, into the [lines x length] positions, of each row's first token; the rest follow.
    """

    def __init__(self, inputs: dict[str, torch.Tensor], starts: torch.Tensor):
        self.inputs, self.starts = inputs, starts

    def positions(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Flat indices of the tokens in ``columns`` of ``rows``."""
        return self.starts[rows] + columns


def lay_out(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, keeps_padding: bool = False
) -> Layout:
    """The most compact input for a batch padded on the right.

    Lines are as long as the longest row, and hold whole rows (first fit, longest first). The padded batch itself comes
    back where packing saves no line or ``model`` cannot tell packed rows apart.

    Args:
        model: what will be called, wrapped or not.
        input_ids, attention_mask: [rows, length] integers.
        keeps_padding: the states of padded positions are asked for, too.
    """
    rows, length = input_ids.shape
    device = input_ids.device
    sizes = attention_mask.sum(1).tolist()
    longest = max(sizes)
    packs = not keeps_padding and goes_by_mask(model, longest)  # first, so that all processes make the trial together
    lines = first_fit(sizes, longest) if packs else []
    if not packs or len(lines) == rows:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return Layout(inputs, torch.arange(rows, device=device) * length)
    owner = np.full((len(lines), longest), -1)
    position, source, starts = (np.zeros_like(owner), np.zeros_like(owner), np.zeros(rows, dtype=np.int64))
    for index, line in enumerate(lines):
        begin = 0
        for row in line:
            end = begin + sizes[row]
            owner[index, begin:end] = row
            position[index, begin:end] = np.arange(sizes[row])
            source[index, begin:end] = row * length + np.arange(sizes[row])
            starts[row] = index * longest + begin
            begin = end
    owners = torch.from_numpy(owner).to(device)
    seen = (owners[:, :, None] == owners[:, None, :]).tril_()
    inputs = {
        "input_ids": input_ids.flatten()[torch.from_numpy(source).to(device)],
        "attention_mask": mask_for(model, seen),
        "position_ids": torch.from_numpy(position).to(device),
    }
    return Layout(inputs, torch.from_numpy(starts).to(device))


def first_fit(sizes: list[int], capacity: int) -> list[list[int]]:
    """Indices of ``sizes`` in bins of ``capacity``, each put in the first bin with room, in order of falling size."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found = next((number for number, left in enumerate(room) if left >= sizes[index]), None)
        if found is None:
            found = len(bins)
            bins.append([])
            room.append(capacity)
        bins[found].append(index)
        room[found] -= sizes[index]
    return bins


def mask_for(model: nn.Module, seen: torch.Tensor) -> torch.Tensor:
    """The attention mask [lines, 1, length, length] of ``model`` for ``seen`` [lines, length, length].

    ``seen[l, i, j]``: position i of line l attends to j. Every i attends to at least one j.
    """
    seen = seen[:, None]
    if base_of(model).config._attn_implementation == "sdpa":
        return seen
    dtype = unwrapped(model).dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


@torch.no_grad()
def goes_by_mask(model: nn.Module, length: int) -> bool:
    """Whether ``model`` computes rows that share a line as it computes each alone.

    It is tried once: the second of two short rows in one line has to come out as it does alone.

    Args:
        model: with an attached vocabulary head; call it on every process.
        length: of the longest row; layers with a shorter sliding window take no mask from outside.
    """
    attached = attached_to(model)
    if attached.goes_by_mask is None:
        attached.goes_by_mask = _tried(model)
    return attached.goes_by_mask and all(length <= each for each in thresholds(model))


def _tried(model: nn.Module) -> bool:
    if base_of(model).config._attn_implementation not in ("eager", "sdpa"):
        return False
    if "position_ids" not in inspect.signature(type(base_of(model)).forward).parameters:
        return False
    # Convolutions over the positions come with recurrent layers, whose leak may be as small as bfloat16's rounding.
    if any(isinstance(module, nn.Conv1d) for module in base_of(model).modules()):
        return False
    first, total = 5, 11
    device = next(unwrapped(model).parameters()).device
    ids = torch.tensor([sample_ids(model, total)], device=device)
    column = torch.arange(total, device=device)
    owner, second = column >= first, column[first:]
    seen = (owner[:, None] == owner[None, :]).tril()[None]

    def hidden(ids, mask, positions, **kwargs):
        return model(input_ids=ids, attention_mask=mask, positions=positions, **kwargs)["hidden"].float()

    training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            alone = hidden(ids[:, first:], torch.ones_like(ids[:, first:]), second - first)
            starts = (column - first * owner)[None]
            packed = hidden(ids, mask_for(model, seen), second, position_ids=starts)
    except Exception:  # whatever a family's forward raises that takes no mask of this kind
        return False
    finally:
        model.train(training)
    return bool((packed - alone).norm() < rounding_of(model) * alone.norm())
