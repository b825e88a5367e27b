"""The logit lens as an attack: what the blocks inside know, read through the model's own final norm and head.

Unlearning often suppresses an answer in the last blocks only, behind others whose states still spell it out. Each
block's state is read as if it were the last one's (nostalgebraist 2020, "interpreting GPT: the logit lens").
"""

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from ...evaluation import metrics
from ...head.attached import head_of
from ...head.chunked import Segment, Segments
from ..results import Matrix, Name, Result, Variant
from ..subject import Subject
from .states import NoResidualStream, blocks_of, on_outputs, picks, shared_batches, summed, try_reading

METRIC = "memorization_accuracy"


def accuracy_by_layer(subject: Subject, model: nn.Module, rows: Dataset) -> np.ndarray:
    """Memorization accuracy of each row, read from the output of each block: [rows, layers], whole on every process.

    The model's own forward reads the states: behind the last block they are put in the place of its output, as further
    rows of the batch. So whatever lies between there and the logits is applied to each, whatever it is called: a norm,
    a projection, a scale, a soft cap. The last column is the model's ordinary memorization accuracy.

    Args:
        model: what ``subject.ready()`` has given.
        rows: tokenized.

    Raises:
        NoResidualStream: the model has no list of blocks, or does not make its logits from the last one's output.
    """
    takes_more = try_reading(model, subject.args.device)
    blocks = blocks_of(model)
    table = torch.zeros(len(rows), len(blocks), dtype=torch.float64)
    for numbers, batch in shared_batches(subject, rows, "logit lens"):
        labels = batch.pop("labels")[:, 1:]
        row, column = (labels != -100).nonzero(as_tuple=True)
        read = _read if takes_more else _read_one_by_one
        # Tokens of the layers one after the other; each layer's rows are numbered behind those of the one before.
        hits = read(model, blocks, batch, row, column, labels[row, column]).cpu().double()
        count = len(labels)
        owner = (torch.arange(len(blocks))[:, None] * count + row.cpu()).flatten()
        found = metrics.memorization_accuracy(hits, owner, len(blocks) * count)
        table[numbers] = found.view(len(blocks), count).T[: len(numbers)]
    return summed(table, subject).numpy()


def _read(model, blocks, batch, row, column, targets):
    """[layers x tokens] whether each layer predicts the tokens at (row, column)."""
    rows, length = batch["input_ids"].shape
    layers = torch.arange(len(blocks), device=row.device)[:, None]
    segment = Segment(
        positions=((layers * rows + row) * length + column).flatten(),
        targets=targets.repeat(len(blocks)),
        needs=frozenset({"nll"}),
    )
    states: list[torch.Tensor] = []

    def collect(index, state):
        if index == 0:
            states.clear()
        states.append(state)
        if len(states) < len(blocks):
            return None
        return torch.cat([each.to(state.device, state.dtype) for each in states])

    def check(_, inputs):
        if len(inputs[0]) != len(blocks) * rows * length:
            raise NoResidualStream(f"{type(model).__name__} does not make its logits from its last block's output")

    handle = head_of(model).module.register_forward_pre_hook(check)
    try:
        with on_outputs(blocks, collect):
            model(**batch, segments=Segments(segment))
    finally:
        handle.remove()
    return segment.hit


def _read_one_by_one(model, blocks, batch, row, column, targets):
    """As :func:`_read`, in a forward for each layer: for models that take no further rows behind their last block."""
    length = batch["input_ids"].shape[1]
    states: dict[int, torch.Tensor] = {}
    hits = []
    for layer in range(len(blocks)):
        segment = Segment(positions=row * length + column, targets=targets, needs=frozenset({"nll"}))

        def put(index, state, layer=layer):
            states[index] = state
            return states[layer].to(state.device, state.dtype) if index == len(blocks) - 1 else None

        with on_outputs(blocks, put):
            model(**batch, segments=Segments(segment))
        hits.append(segment.hit)
    return torch.cat(hits)


def logit_lens(subject: Subject) -> Result:
    """Memorization accuracy of the forget rows at the best layer of each language, and of all layers.

    The layer is picked by one half of the items, the figure by row ``logit_lens/memorization_accuracy`` is that of the
    other half: a maximum over layers on the rows that it is reported for would grow with the number of layers. The
    matrix, by layer (from 1) and language, is over all rows.
    """
    rows = subject.datasets["forget"]
    try:
        with subject.ready() as model:
            table = accuracy_by_layer(subject, model, rows)
    except NoResidualStream as error:
        return Result(notes=[f"no logit lens: {error}"], withheld=str(error))
    languages, items = np.array(rows["language"]), np.array(rows["item"])
    picking = picks(items, subject.seed)
    values, best = {}, {}
    matrix: list[list[float | None]] = [[None] * len(subject.languages) for _ in range(table.shape[1])]
    for index, language in enumerate(subject.languages):
        of_language = languages == index
        for layer, mean in enumerate(table[of_language].mean(0) if of_language.any() else []):
            matrix[layer][index] = float(mean)
        picked, measured = of_language & picking, of_language & ~picking
        if picked.any() and measured.any():
            best[language] = int(table[picked].mean(0).argmax())
            values[language] = {
                "items": items[measured].tolist(),
                "values": table[measured, best[language]].tolist(),
            }
    layers = ", ".join(f"{language} {layer + 1}" for language, layer in best.items())
    numbers = [str(layer + 1) for layer in range(table.shape[1])]
    return Result(
        rows={Name(METRIC, Variant("logit_lens")): values},
        matrix=Matrix(numbers, list(subject.languages), "layer", "language", METRIC, {subject.name: matrix}),
        notes=[f"{subject.name}: layer read, of {table.shape[1]}, picked by the other half of the items: {layers}."],
    )
