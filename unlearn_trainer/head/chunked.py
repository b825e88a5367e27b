"""Token statistics over the whole vocabulary and their gradients, chunk by chunk.

A language model with a vocabulary of V words and n labelled tokens has n x V logits, by far the largest tensor of a
step. Here they exist only for a chunk of tokens at a time: the chunk's logits become per-token statistics, the
objective turns those into a loss, and the gradients with respect to the hidden states and the head's weights are
formed before the next chunk begins. Autograd later only scales the finished gradients, so nothing of size n x V is
kept and no product is computed twice.

A chunk is as large as efficient products need, since each adds to a gradient of the weights' size. Everything between
the products runs over tiles, a few tokens of the chunk that stay in the cache, and leaves the slope of the loss where
the logits were.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ..objectives.statistics import TokenStatistics, made
from .projection import VocabularyHead
from .tiles import DIFFERENTIABLE, Tile, reused

# The bytes of the student's logits in a chunk; the teacher, who needs but one product, gets half of that. A GPU
# multiplies so much faster than it reads that larger chunks pay.
CHUNK_BYTES = 2**28
CUDA_CHUNK_BYTES = 2**29
MIN_CHUNK_TOKENS = 32
# The bytes of float32 logits in a tile: for each thread of a CPU, and large enough to be worth a GPU's launches.
TILE_BYTES = 2**22
CUDA_TILE_BYTES = 2**27


@dataclasses.dataclass
class Segment:
    """Consecutive labelled tokens that share one objective.

    Args:
        positions: [n] flat indices into the [rows x length] hidden states that predict ``targets``.
        targets: [n] token ids.
        needs: which statistics to compute: ``nll``, ``kl``, ``teacher_nll``, ``reduced``, ``log_prob_moments``.
        loss: maps (statistics of some of the tokens, their slice of the segment) to (loss, terms): a scalar to be
            summed over all such calls, and the same split into the objective's parts. ``None`` computes statistics
            only.
        teacher_hidden: [n, teacher hidden size], the teacher's final hidden states, for all that looks at its logits.
        teacher_head: the teacher's :class:`VocabularyHead`.
        other_positions: [n] where ``kl``, ``teacher_nll`` and ``reduced`` are taken, if not at ``positions`` (LingTea
            as released).
        teacher_targets: [n] the token ids of ``teacher_nll``, if not ``targets``.
        temperature: of ``kl``.
        reduction: the function behind ``reduced``.
        begin: called with the statistics of the whole segment before the first loss, where a loss needs all of them.

    The forward fills in ``terms``, the parts of the loss, and ``statistics`` of all n tokens, both detached.
    """

    positions: torch.Tensor
    targets: torch.Tensor
    needs: frozenset[str]
    loss: Callable[[TokenStatistics, slice], tuple[torch.Tensor, torch.Tensor]] | None = None
    teacher_hidden: torch.Tensor | None = None
    teacher_head: VocabularyHead | None = None
    other_positions: torch.Tensor | None = None
    teacher_targets: torch.Tensor | None = None
    temperature: float = 1.0
    reduction: Callable[..., torch.Tensor] | None = None
    begin: Callable[[TokenStatistics], None] | None = None
    terms: torch.Tensor | None = None
    statistics: TokenStatistics | None = None

    @property
    def found(self) -> TokenStatistics:
        """``statistics``, once the forward has filled them in.

        Raises:
            RuntimeError: no forward was given this segment.
        """
        if self.statistics is None:
            raise RuntimeError("no forward has filled in this segment yet")
        return self.statistics

    @property
    def hit(self) -> torch.Tensor:
        """[n] whether each target is the likeliest token, of a segment with tokens that was filled in."""
        return made(self.found.hit)


@dataclasses.dataclass
class LayerSegment:
    """Tokens with a loss by the states of a layer inside the model.

    Args:
        layer: index into ``hidden_states`` of the model's output: 0 is the embedding, k the output of block k.
        positions: [n] flat indices into the [rows x length] states.
        loss: maps (statistics with the states of all n tokens as ``hidden``, their slice) to (loss, terms) as that of
            a :class:`Segment` does.

    The forward fills in ``terms``, detached.
    """

    layer: int
    positions: torch.Tensor
    loss: Callable[[TokenStatistics, slice], tuple[torch.Tensor, torch.Tensor]]
    terms: torch.Tensor | None = None

    def fill(self, states: torch.Tensor) -> torch.Tensor:
        """The loss by ``states`` [rows, length, d] of the layer."""
        states = states.flatten(0, -2)[self.positions]
        hidden = states if states.dtype == torch.float64 else states.float()
        loss, terms = self.loss(TokenStatistics(hidden=hidden), slice(None))
        self.terms = terms.detach()
        return loss


class Segments:
    """The segments of one forward, in a class of its own for a reason.

    Engines copy the lists, dicts and dataclasses among a forward's arguments; what the forward fills in has to come
    back in the very objects that were passed.

    Args:
        of_layers: losses by the states inside the model, added to those of the segments.
    """

    def __init__(self, *segments: Segment, of_layers: Sequence[LayerSegment] = ()):
        self.segments, self.of_layers = segments, tuple(of_layers)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)


def fill_segments(hidden: torch.Tensor, head: VocabularyHead, segments: Segments) -> torch.Tensor:
    """Fill in every segment from the final hidden states ``hidden`` [positions, d] and return the summed loss."""
    trained = {n: p for n, p in head.module.named_parameters() if p.requires_grad} if torch.is_grad_enabled() else {}
    return _FusedHead.apply(hidden, head, segments, list(trained), *trained.values())


def chunk_tokens(vocabulary: int, dtype: torch.dtype, device_type: str, is_teacher: bool = False) -> int:
    """How many tokens' logits of type ``dtype`` are held at a time."""
    budget = (CUDA_CHUNK_BYTES if device_type == "cuda" else CHUNK_BYTES) // (1 + is_teacher)
    return max(MIN_CHUNK_TOKENS, budget // (vocabulary * dtype.itemsize))


def tile_rows(columns: int, device_type: str) -> int:
    """How many rows of a float32 matrix are worked on at a time."""
    budget = CUDA_TILE_BYTES if device_type == "cuda" else TILE_BYTES * torch.get_num_threads()
    return max(1, budget // (columns * 4))


class _FusedHead(torch.autograd.Function):
    """loss = sum over segments and tiles of segment.loss, with all gradients formed in the forward."""

    @staticmethod
    def forward(ctx, hidden, head, segments, names, *parameters):
        student = _Projection(head, "student", hidden.device)
        ctx.gradients = _Gradients(hidden, student, names, parameters, ctx.needs_input_grad[0])
        ctx.gradients.wanted &= any(segment.loss is not None for segment in segments)
        _begin(hidden, student, [segment for segment in segments if segment.begin is not None])
        losses = _run(hidden, student, segments, ctx.gradients)
        return torch.stack([hidden.new_zeros((), dtype=_sum_dtype(hidden)), *losses]).sum()

    @staticmethod
    def backward(ctx, grad_loss):
        d_hidden, d_parameters = ctx.gradients.finish(grad_loss)
        ctx.gradients = None
        return d_hidden, None, None, None, *d_parameters


def _begin(hidden: torch.Tensor, student: "_Projection", segments: Sequence[Segment]) -> None:
    """Give ``segments`` the statistics of all their tokens first, for one more product with the head."""
    copies = [dataclasses.replace(segment, loss=None) for segment in segments]
    if copies:
        _run(hidden, student, copies, _Gradients(hidden, student, [], [], False))
    for segment, copy in zip(segments, copies, strict=True):
        if segment.begin is not None:
            segment.begin(copy.found)


def _run(
    hidden: torch.Tensor, student: "_Projection", segments: Iterable[Segment], gradients: "_Gradients"
) -> list[torch.Tensor]:
    """Fill in all ``segments``, chunk by chunk; returns the losses of those that have tokens."""
    shares = [_Share(segment, hidden.device) for segment in segments]
    for chunk in _chunks(shares, student.chunk_tokens):
        _run_chunk(hidden, student, chunk, gradients)
    return [share.fill_segment() for share in shares if share.found]


class _Projection:
    """A head ready to multiply: its weights in the type they are multiplied in, and memory for a chunk of logits."""

    def __init__(self, head: VocabularyHead, role: str, device: torch.device):
        self.head, self.role = head, role
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        if head.is_linear:
            self.weight, self.bias = head.operands()
        dtype = self.weight.dtype if self.weight is not None else torch.float32
        self.chunk_tokens = chunk_tokens(head.vocabulary, dtype, device.type, role == "teacher")

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Raw projections [n, V] of ``inputs`` [n, d], in memory that the next call may take."""
        if self.weight is None:
            return self.head.projection_forward(inputs)
        out = reused(self.role, (len(inputs), self.head.vocabulary), self.weight)
        inputs = inputs.to(self.weight.dtype)
        if self.bias is None:
            return torch.mm(inputs, self.weight.T, out=out)
        return torch.addmm(self.bias, inputs, self.weight.T, out=out)


class _Share:
    """A segment on its way through the chunks, and what its tiles have yielded."""

    def __init__(self, segment: Segment, device: torch.device):
        self.segment = segment
        head = segment.teacher_head if len(segment.targets) else None
        self.teacher = _Projection(head, "teacher", device) if head is not None else None
        self.positions = [segment.positions]
        if segment.other_positions is not None:
            self.positions.append(segment.other_positions)
        # Of each tile the loss, its terms, and the statistics.
        self.found: list[tuple[torch.Tensor, torch.Tensor, TokenStatistics]] = []
        if not len(segment.targets):
            segment.statistics = TokenStatistics()

    def taught(self, where: slice) -> tuple[VocabularyHead, torch.Tensor] | None:
        """The teacher's head and its raw projections [n, V] of some of the tokens, where it is asked."""
        if self.teacher is None:
            return None
        if self.segment.teacher_hidden is None:
            raise RuntimeError("a segment has the teacher's head, and not its states")
        return self.teacher.head, self.teacher(self.segment.teacher_hidden[where])

    def fill_segment(self) -> torch.Tensor:
        """Put the tiles' figures together in the segment; returns its loss."""
        losses, terms, statistics = zip(*self.found, strict=True)
        self.segment.terms = torch.stack(terms).sum(0)
        self.segment.statistics = TokenStatistics(
            **{
                name: torch.cat([getattr(figures, name) for figures in statistics])
                for name, value in vars(statistics[0]).items()
                if value is not None
            }
        )
        return torch.stack(losses).sum()


def _chunks(shares: list[_Share], limit: int) -> Iterator[list[tuple[_Share, slice]]]:
    """Even chunks of at most ``limit`` rows of logits; short segments share one, taught ones come in the teacher's."""
    rows = sum(len(share.positions) * len(share.segment.targets) for share in shares)
    limit = math.ceil(rows / math.ceil(rows / limit)) if rows else limit
    chunk: list[tuple[_Share, slice]] = []
    left = limit
    for share in shares:
        start, width = 0, len(share.positions)
        while start < len(share.segment.targets):
            if chunk and left < width:
                yield chunk
                chunk, left = [], limit
            count = min(max(left // width, 1), len(share.segment.targets) - start)
            if share.teacher:
                count = min(count, share.teacher.chunk_tokens)
            chunk.append((share, slice(start, start + count)))
            left -= width * count
            start += count
    if chunk:
        yield chunk


def _run_chunk(
    hidden: torch.Tensor, student: _Projection, chunk: list[tuple[_Share, slice]], gradients: "_Gradients"
) -> None:
    """Logits of a chunk; tile by tile the slope of the loss in their place; from that the gradients."""
    positions = torch.cat([each[where] for share, where in chunk for each in share.positions])
    inputs = hidden.detach()[positions]
    graph: torch.Tensor | None = None
    if gradients.wanted and not student.head.is_linear:
        inputs.requires_grad_(gradients.hidden is not None)
        with torch.enable_grad():
            graph = student(inputs)
    raw = student(inputs) if graph is None else graph.detach().clone()
    start, step = 0, tile_rows(raw.shape[1], raw.device.type)
    for share, where in chunk:
        segment, count = share.segment, where.stop - where.start
        parts = raw[start : start + count * len(share.positions)].split(count)
        start += count * len(share.positions)
        taught = share.taught(where)
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            in_segment = slice(where.start + rows.start, where.start + rows.stop)
            tile = Tile(
                student.head,
                segment.targets[in_segment],
                [part[rows] for part in parts],
                segment.temperature,
                segment.reduction,
                segment.teacher_targets[in_segment] if segment.teacher_targets is not None else None,
            )
            figures = tile.statistics(segment.needs, (taught[0], taught[1][rows]) if taught is not None else None)
            loss, terms, slopes = _derive(segment, figures, in_segment)
            share.found.append((loss, terms, figures))
            if gradients.wanted:
                tile.put_slopes(slopes)
    if gradients.wanted:
        gradients.add(positions, inputs, raw, graph)


def _derive(
    segment: Segment, figures: TokenStatistics, where: slice
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The segment's loss on a tile, its terms, and its slope by each differentiable statistic."""
    if segment.loss is None:
        zero = made(figures.nll).new_zeros(())
        return zero, zero[None], {}
    leaves = {
        name: getattr(figures, name).detach().requires_grad_() for name in DIFFERENTIABLE if name in segment.needs
    }
    with torch.enable_grad():
        loss, terms = segment.loss(dataclasses.replace(figures, **leaves), where)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else []
    slopes = {name: slope for name, slope in zip(leaves, found, strict=False) if slope is not None}
    return loss.detach(), terms.detach(), slopes


class _Gradients:
    """Sums of d loss / d hidden and d loss / d parameters over the chunks."""

    def __init__(
        self,
        hidden: torch.Tensor,
        student: _Projection,
        names: Sequence[str],
        parameters: Sequence[torch.Tensor],
        wants_hidden: bool,
    ):
        self.student, self.names, self.parameters = student, names, parameters
        self.wanted = wants_hidden or bool(parameters)
        self.hidden = torch.zeros_like(hidden) if wants_hidden else None
        # Sums over chunks are kept in float32: adding many small bfloat16 terms loses them.
        self.sums = [torch.empty_like(p, dtype=_sum_dtype(p)) for p in parameters]
        self.is_empty = True

    def add(
        self, positions: torch.Tensor, inputs: torch.Tensor, grad: torch.Tensor, graph: torch.Tensor | None
    ) -> None:
        """Book one chunk: d loss / d raw projection ``grad`` [n, V] of ``inputs`` [n, d], or of ``graph``'s output."""
        # The first chunk is written, not added to zeros: a pass over something of the weights' size less.
        book = torch.Tensor.copy_ if self.is_empty else torch.Tensor.add_
        weight = self.student.weight
        of_hidden: torch.Tensor | None = None
        if graph is not None:
            targets = ([inputs] if self.hidden is not None else []) + list(self.parameters)
            found = list(torch.autograd.grad(graph, targets, grad, materialize_grads=True))
            of_hidden = found.pop(0) if self.hidden is not None else None
            for total, each in zip(self.sums, found, strict=True):
                book(total, each)
        elif weight is not None:
            inputs = inputs.to(weight.dtype)
            of_hidden = grad @ weight if self.hidden is not None else None
            for name, total in zip(self.names, self.sums, strict=True):
                if name == "bias":
                    book(total, grad.sum(0, dtype=total.dtype))
                elif total.dtype == grad.dtype:
                    total.addmm_(grad.T, inputs, beta=0 if self.is_empty else 1)
                else:
                    step = tile_rows(total.shape[1], total.device.type)
                    for rows, columns in zip(total.split(step), grad.split(step, dim=1), strict=True):
                        book(rows, columns.T @ inputs)
        if self.hidden is not None and of_hidden is not None:
            self.hidden.index_add_(0, positions, of_hidden.to(self.hidden.dtype))
        self.is_empty = False

    def finish(self, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The gradients of ``grad_loss`` x loss, in the types of what they belong to."""
        found = [total.zero_() if self.is_empty else total for total in self.sums]
        # Nearly always the factor is 1; to look at it would stall a GPU, not to look costs a CPU a pass.
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:
            found = [total.mul_(grad_loss.to(total.dtype)) for total in found]
        hidden = self.hidden.mul_(grad_loss.to(self.hidden.dtype)) if self.hidden is not None else None
        return hidden, [total.to(p.dtype) for total, p in zip(found, self.parameters, strict=True)]


def _sum_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
