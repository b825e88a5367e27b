"""How a model continues several prompts at once without saying anything that it would not say alone.

Families count positions from 0, from 2, behind the padding or over it, from the mask or from what the cache holds;
some hold no cache, and some take no padding. None of this can be told from a name, so it is tried: the fastest way
whose logits are those of plain forwards over one whole row at a time is taken, and there is one that always is.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..model.trials import base_of, nothing_besides, rounding_of, sample_ids, thresholds

# What the forward of a family may call what it has read before.
_CACHES = ("past_key_values", "cache_params", "state", "mems")
_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Way:
    """How to run a model, step by step.

    Args:
        cached: what was read is kept, and each step reads one token; else every step reads all again.
        padded: prompts of several lengths go together, padded on the left.
        first_position: the number of a row's first token, where positions are passed; ``None``: they are left to the
            model.
        batched: rows go together at all.
    """

    cached: bool
    padded: bool
    first_position: int | None
    batched: bool = True


# Reads every row whole and alone at each step: what a plain forward does.
PLAIN = Way(cached=False, padded=False, first_position=None, batched=False)


def way_to_continue(model: nn.Module, device: torch.device, longest: int) -> Way:
    """The fastest way in which ``model`` predicts what it predicts in plain forwards; call it on every process.

    It is tried once on each model, and again for longer rows where these reach behind an attention window or the like.

    Args:
        model: in eval mode, whatever engine has wrapped it.
        device: where its inputs go.
        longest: tokens of the longest row, prompt and continuation.
    """
    base = base_of(model)
    passed = [each for each in thresholds(base) if 9 < each < longest]
    sizes = sorted({9, *(each - 1 for each in passed), *([max(9, longest - _STEPS)] if passed else [])})
    known = base.__dict__.setdefault("_ways_to_continue", {})
    # Set where plain and low precision would be told apart by different bounds.
    key = tuple(sizes), base.dtype
    if key not in known:
        known[key] = _tried(model, device, sizes)
    return known[key]


@torch.no_grad()
def predictions(
    model: nn.Module,
    way: Way,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    forced: Sequence[Sequence[int]] | None = None,
) -> Iterator[torch.Tensor]:
    """The logits [rows, vocabulary] of each step after ``prompts``, which go on with the most likely tokens.

    Args:
        prompts: token ids, of equal lengths unless ``way`` pads.
        forced: tokens of each row to go on with instead.
    """
    base = base_of(model)
    accepted = inspect.signature(base.forward).parameters
    width = max(map(len, prompts))
    # A masked token may be any, but some families number the tokens that are not their padding token.
    fill = getattr(base.config.get_text_config(), "pad_token_id", None) or 0
    ids = torch.tensor([[fill] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    more = nothing_besides(base.forward)
    if way.cached and "logits_to_keep" in accepted:
        # Nothing but the last position is predicted from: the logits of all others can be large.
        more["logits_to_keep"] = 1
    step, name, cache = 0, None, None
    while True:
        new = ids.shape[1] if cache is None else 1
        inputs = {"input_ids": ids[:, -new:], "attention_mask": mask, "use_cache": way.cached, **more}
        if way.first_position is not None:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:] + way.first_position
        if cache is not None:
            inputs[name] = cache
        outputs = model(**inputs)
        if way.cached:
            # Sequences of hidden states are no caches: only what the forward takes back is.
            name = next((each for each in _CACHES if each in accepted and outputs.get(each) is not None), None)
            if name is None:
                raise ValueError(f"{type(base).__name__} returns nothing that it could go on from")
            cache = outputs[name]
        logits = outputs["logits"][:, -1]
        yield logits
        token = logits.argmax(-1) if forced is None else torch.tensor([row[step] for row in forced], device=device)
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, torch.ones_like(token)[:, None]], 1)
        step += 1


def _ways(model):
    """All ways worth a try, the fastest first."""
    base = base_of(model)
    firsts: list[int | None] = [None]
    if "position_ids" in inspect.signature(base.forward).parameters:
        pad = getattr(base.config.get_text_config(), "pad_token_id", None)
        # Tables that keep places for padding begin behind them; positions left to the model come between.
        firsts = [0, None, *dict.fromkeys([2, *([pad + 1] if isinstance(pad, int) and pad > 0 else [])])]
    # Cached, padded, batched. To read all again is dear, but on several rows less so than a cache for each alone.
    kinds = [(True, True, True), (True, False, True), (False, True, True), (False, False, True), (True, False, False)]
    return [Way(cached, padded, first, batched) for cached, padded, batched in kinds for first in firsts]


def _tried(model, device, sizes):
    """The first way that is as good as plain forwards at all ``sizes``; in low precision the nearest of a kind."""
    is_exact = base_of(model).dtype in (torch.float32, torch.float64)
    trials = []
    with torch.autocast(device.type, enabled=False):
        for size in sizes:
            lengths = [5, size, size]
            rows = [sample_ids(model, length + _STEPS - 1, 3 * number) for number, length in enumerate(lengths)]
            expected = [_plain(model, row, device)[-_STEPS:] for row in rows]
            trials.append((rows, lengths, expected))
        nearest = (float("inf"), PLAIN)
        kind = None
        for way in _ways(model):
            if nearest[0] < float("inf") and dataclasses.replace(way, first_position=None) != kind:
                break
            error = max(_error(model, way, *trial, device) for trial in trials)
            if error < rounding_of(model):
                if is_exact:
                    return way
                kind = dataclasses.replace(way, first_position=None)
                nearest = min(nearest, (error, way), key=lambda pair: pair[0])
    return nearest[1]


def _plain(model, row, device):
    ids = torch.tensor([row], device=device)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)["logits"][0].float()


def _error(model, way, rows, lengths, expected, device):
    """How far the logits of ``way`` are from those of plain forwards, as a share; infinite where it does not run."""
    # Where rows are of one length nobody has padding, however they are run.
    together = [[0, 1, 2], [1, 2], [1]] if way.padded else [[0], [1, 2]] if way.batched else [[0], [1]]
    worst = 0.0
    for group in together:
        prompts = [rows[index][: lengths[index]] for index in group]
        forced = [[*rows[index][lengths[index] :], 0] for index in group]
        try:
            steps = predictions(model, way, prompts, device, forced)
            logits = torch.stack([next(steps).float() for _ in range(_STEPS)], 1)
        except Exception:  # whatever a family's forward raises where it does not take such an input
            return float("inf")
        for place, index in enumerate(group):
            for found, wanted in zip(logits[place], expected[index], strict=True):
                worst = max(worst, float((found - wanted).norm() / wanted.norm().clamp(min=1e-30)))
    return worst if worst == worst else float("inf")
