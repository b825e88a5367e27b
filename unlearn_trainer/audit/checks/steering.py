"""Steering as an attack: one direction inside the model that unlearning added is taken out again.

What unlearning suppresses it often suppresses in late layers and along a single direction, so that one vector brings
50 to 90 % of it back (Xiang et al. 2026). The vector takes a second model to find, the one before. Directions drawn
at random, tuned in the same way on the same rows, tell what pushing the states about brings by itself.
"""

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from ...errors import ConfigError
from ..figures import rows_by_language, seed_of
from ..results import RANDOM_DIRECTION, Result, Variant
from ..subject import BEFORE, Subject
from .states import NoResidualStream, blocks_of, on_outputs, picks, shared_batches, summed, try_pushing

METRICS = ("memorization_accuracy", "extraction_strength")
COEFFICIENTS = (0.05, 0.1, 0.2, 0.4)
RANDOM_DRAWS = 3
MIN_LAYERS, MAX_LAYERS = 3, 6
# Of a mean state's length: a smaller difference is one of rounding, as behind layers that were not trained.
SMALLEST_CHANGE = 1e-5


def late_layers(count: int) -> range:
    """Which of ``count`` layers, numbered from 0, are steered: the last third, but 3 to 6 of them where there are."""
    return range(max(0, count - min(max(count // 3, MIN_LAYERS), MAX_LAYERS)), count)


def mean_states(subject: Subject, model: nn.Module, rows: Dataset, layers: range) -> torch.Tensor:
    """The mean over ``rows`` of each layer's output where labels are predicted: float64 [layers, hidden size].

    A row counts by the mean over its positions that predict a label: of a short answer these are the end of the prompt
    and what follows on it. The first position of a text is left out where there are others: many models use it as an
    attention sink (Xiao et al. 2024), with a large state that is the same for every text.

    Call it on every process; the result is whole on each.

    Args:
        model: what ``subject.ready()`` has given.
        rows: tokenized, each with a label behind its first position.

    Raises:
        NoResidualStream: the model has no list of blocks.
    """
    blocks = [blocks_of(model)[layer] for layer in layers]
    total = torch.zeros(())
    for numbers, batch in shared_batches(subject, rows, "states"):
        share = (batch.pop("labels")[: len(numbers), 1:] != -100).double()
        share[:, 0] *= share[:, 1:].sum(1) == 0
        share /= share.sum(1, keepdim=True)
        states: dict[int, torch.Tensor] = {}
        with on_outputs(blocks, states.__setitem__):
            # Through the head at one position only: the logits are of no use here.
            model(**batch, positions=torch.zeros(1, dtype=torch.long, device=share.device))
        sums = [
            torch.einsum("bt,btd->d", share.to(state.device), state[: len(numbers), :-1].double()).cpu()
            for _, state in sorted(states.items())
        ]
        total = total + torch.stack(sums)
    return summed(total, subject) / len(rows)


def steered(blocks: list[nn.Module], directions: torch.Tensor, coefficient: float):
    """Context in which every state h behind a block becomes h - coefficient |h| v, v the block's direction.

    Args:
        directions: [blocks, hidden size], each of length 1, or 0 to leave the block alone.
    """

    def push(index, state):
        direction = directions[index].to(state.device, state.dtype)
        length = state.float().norm(dim=-1, keepdim=True).to(state.dtype)
        return state - coefficient * length * direction

    return on_outputs(blocks, push)


def steering(subject: Subject) -> Result:
    """Forget rows with the states of late layers pushed back to where the model before has them.

    The direction of a layer is the mean, over rows of the trained languages, of this model's states less those of the
    model before, where labels are predicted. All of it is found on one half of the items: the directions and,
    for each language, the coefficient out of :data:`COEFFICIENTS` with the highest memorization accuracy. The figures
    by row, ``steered/...``, are those of the other half, so that no search flatters them. ``random_direction/...`` has
    random directions instead, the same for all models of an audit, with a search of their own: the mean of
    :data:`RANDOM_DRAWS` draws. For a never-seen model the figures tell what a direction brings that knows of the rows
    only by having been found with them.
    """
    forget, earlier = subject.datasets["forget"], subject.peer(BEFORE)
    if earlier is None:
        raise ConfigError("steering needs the model before the unlearning; give --model_before")
    languages, picking = np.array(forget["language"]), picks(forget["item"], subject.seed)
    in_both = np.intersect1d(languages[picking], languages[~picking])
    halves = [forget.select(np.flatnonzero(half & np.isin(languages, in_both))) for half in (picking, ~picking)]
    tuned_on = halves[0].select(np.flatnonzero(np.array(halves[0]["language"]) < subject.num_trained))
    if not len(tuned_on):
        return Result(notes=["no steering: there are not two items in a trained language"])
    try:
        with earlier.ready() as model:
            layers = late_layers(len(blocks_of(model)))
            before = mean_states(earlier, model, tuned_on, layers)
        with subject.ready() as model:
            if len(blocks_of(model)) != layers.stop:
                raise NoResidualStream("it has not as many layers as the model before")
            try_pushing(model, layers, subject.args.device)
            after = mean_states(subject, model, tuned_on, layers)
            if after.shape != before.shape:
                raise NoResidualStream("its states have not the size of those of the model before")
            blocks = [blocks_of(model)[layer] for layer in layers]
            found, coefficients = _searched(subject, model, halves, blocks, _directions(after, before), "steered")
            draws = [
                _searched(subject, model, halves, blocks, _random(subject, after.shape, draw), "random direction")[0]
                for draw in range(RANDOM_DRAWS)
            ]
    except NoResidualStream as error:
        return Result(notes=[f"no steering: {error}"], withheld=str(error))
    control = {**draws[0], **{metric: np.mean([draw[metric] for draw in draws], axis=0) for metric in METRICS}}
    result = Result()
    for variant, columns in ((Variant("steered"), found), (RANDOM_DIRECTION, control)):
        result.add_rows(rows_by_language(columns, subject.languages, METRICS), variant)
    chosen = ", ".join(f"{language} {value:g}" for language, value in coefficients.items())
    which = f"layers {layers.start + 1} to {layers.stop} of {layers.stop}"
    result.notes = [f"{subject.name}: {which}, coefficients picked by the other half: {chosen}."]
    return result


def _searched(subject, model, halves, blocks, directions, description):
    """Columns of the measured half, each language with the coefficient that the picking half prefers; and these."""
    picking, measured = halves
    accuracy: dict[str, dict[float, float]] = {}
    for coefficient in COEFFICIENTS:
        with steered(blocks, directions, coefficient):
            columns = subject.rows({"forget": picking}, model=model, description=description)["forget"]
        for language, rows in rows_by_language(columns, subject.languages, METRICS[:1])[METRICS[0]].items():
            accuracy.setdefault(language, {})[coefficient] = float(np.mean(rows["values"]))
    # Of equals the gentlest.
    chosen = {language: max(COEFFICIENTS, key=values.__getitem__) for language, values in accuracy.items()}
    parts = []
    for coefficient in sorted(set(chosen.values())):
        wanted = [subject.languages.index(language) for language, value in chosen.items() if value == coefficient]
        of_languages = measured.select(np.flatnonzero(np.isin(measured["language"], wanted)))
        with steered(blocks, directions, coefficient):
            parts.append(subject.rows({"forget": of_languages}, model=model, description=description)["forget"])
    columns = {name: np.concatenate([part[name] for part in parts]) for name in ("language", "item", *METRICS)}
    # In one order whatever was chosen, so that draws can be averaged row by row.
    order = np.lexsort((columns["item"], columns["language"]))
    return {name: values[order] for name, values in columns.items()}, chosen


def _directions(after, before):
    """From the states before to those after, of length 1; 0 where the two agree up to rounding."""
    difference = after - before
    agree = difference.norm(dim=-1, keepdim=True) < SMALLEST_CHANGE * before.norm(dim=-1, keepdim=True)
    return nn.functional.normalize(difference.masked_fill(agree, 0), dim=-1)


def _random(subject, shape, draw):
    generator = torch.Generator().manual_seed(seed_of(subject.seed, "direction", str(draw)))
    return nn.functional.normalize(torch.randn(shape, dtype=torch.float64, generator=generator), dim=-1)
