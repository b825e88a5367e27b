"""Everything that touches the vocabulary: token statistics and their gradients, chunk by chunk.

A language model with a vocabulary of V words and n labelled tokens has n x V logits, by far the largest tensor of a
step. Here they exist only for a chunk of tokens at a time: the chunk's logits become per-token statistics, the
objective turns those into a loss, and the gradients with respect to the hidden states and the head's weights are
formed before the next chunk begins. Autograd later only scales the finished gradients, so nothing of size n x V is
kept and no product is computed twice.

The body of the model is run by the model's own ``forward`` with its output projection taken out (any
``AutoModelForCausalLM`` works, whatever it calls its parts), and the projection's own scale and soft cap are measured
on the model instead of being looked up by name.
"""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable

import torch
from torch import nn

from .errors import ConfigError

# The bytes one chunk of float32 logits may take: large enough for efficient products, small beside the weights.
CHUNK_BYTES = 2**27
MAX_CHUNK_TOKENS = 4096
# Without gradients a CPU does best with chunks that stay in its cache: no buffer of the weights' size is passed over.
CACHED_CHUNK_BYTES, MIN_CHUNK_TOKENS = 2**21, 32

STATISTICS = ("nll", "kl", "teacher_nll", "log_prob_moments")


@dataclasses.dataclass
class TokenStatistics:
    """Figures of labelled tokens, each a tensor of shape [tokens]; a field nobody asked for is ``None``.

    All are taken at the position that *predicts* the token. ``nll`` = -log p(y) of the student, ``hit`` whether y is
    its greedy prediction, ``kl`` = T^2 KL(teacher, student) in nats at temperature T, ``teacher_nll`` = -log of the
    teacher's probability of y, ``log_prob_mean`` and ``log_prob_std`` the moments of log p under p (for Min-K++).
    ``distill_weight`` is the weight of the teacher that the language weights prescribe.
    """

    nll: torch.Tensor | None = None
    hit: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    teacher_nll: torch.Tensor | None = None
    log_prob_mean: torch.Tensor | None = None
    log_prob_std: torch.Tensor | None = None
    distill_weight: torch.Tensor | None = None


@dataclasses.dataclass
class Segment:
    """Consecutive labelled tokens that share one objective.

    Args:
        positions: [n] flat indices into the [rows x length] hidden states that predict ``targets``.
        targets: [n] token ids.
        needs: which of :data:`STATISTICS` to compute.
        loss: maps (statistics of a chunk, slice of the segment) to (loss, terms): a scalar to be summed over chunks,
            and the same split into the objective's parts. ``None`` computes statistics only.
        teacher_hidden: [n, teacher hidden size], the teacher's final hidden states, for ``kl`` and ``teacher_nll``.
        teacher_head: the teacher's :class:`VocabularyHead`.
        kl_positions: [n] where ``kl`` and ``teacher_nll`` are taken, if not at ``positions`` (LingTea as released).
        temperature: of ``kl``.

    The forward fills in ``terms``, the parts of the loss, and ``statistics`` of all n tokens, both detached.
    """

    positions: torch.Tensor
    targets: torch.Tensor
    needs: frozenset[str]
    loss: Callable[[TokenStatistics, slice], tuple[torch.Tensor, torch.Tensor]] | None = None
    teacher_hidden: torch.Tensor | None = None
    teacher_head: "VocabularyHead | None" = None
    kl_positions: torch.Tensor | None = None
    temperature: float = 1.0
    terms: torch.Tensor | None = None
    statistics: TokenStatistics | None = None


class Segments:
    """The segments of one forward, in a class of its own for a reason.

    Engines copy the lists, dicts and dataclasses among a forward's arguments; what the forward fills in has to come
    back in the very objects that were passed.
    """

    def __init__(self, *segments: Segment):
        self.segments = segments

    def __iter__(self):
        return iter(self.segments)


class VocabularyHead:
    """A model's output projection with the scale and soft cap its ``forward`` applies to the logits.

    The logits of hidden states h are ``cap * tanh(scale * (h W' + b) / cap)``, or without the tanh where the model has
    no soft cap. Both figures are measured once by sending known values through the model's own ``forward``.

    Args:
        model: an ``AutoModelForCausalLM`` instance (unwrapped, adapters removed from around it).

    Raises:
        ConfigError: the model has no output embeddings, or alters its logits in a way that is neither scale nor cap.
    """

    def __init__(self, model: nn.Module):
        self.module = model.get_output_embeddings()
        if self.module is None:
            raise ConfigError(
                f"{type(model).__name__} has no output embeddings; use a checkpoint that AutoModelForCausalLM can load"
            )
        self._slot = next(
            (parent._modules, name)
            for parent in model.modules()
            for name, child in parent._modules.items()
            if child is self.module
        )
        self._constants: tuple[float, float | None] | None = None

    @property
    def scale(self) -> float:
        return self._constants[0]

    @property
    def cap(self) -> float | None:
        return self._constants[1]

    @property
    def is_linear(self) -> bool:
        """Whether the head is a plain linear layer, whose gradients can be written down directly."""
        return isinstance(self.module, nn.Linear) and type(self.module).forward is nn.Linear.forward

    @contextlib.contextmanager
    def replaced(self, stand_in: Callable[[torch.Tensor], torch.Tensor]):
        """Within the context the model calls ``stand_in`` in place of its output projection."""
        siblings, name = self._slot
        siblings[name] = _StandIn(self.module, stand_in)
        try:
            yield
        finally:
            siblings[name] = self.module

    @torch.no_grad()
    def measure(self, model: nn.Module, forward: Callable) -> None:
        """Find scale and soft cap once; sharded models only can when called from inside their wrapped forward."""
        if self._constants is not None:
            return
        # 1e-3 is in the linear part of every soft cap in use, 1e4 far beyond its knee.
        values = torch.tensor([1e-3, 1.0, 30.0, 1e4, -1e4], dtype=torch.float32)
        dtypes = []

        def stand_in(hidden):
            dtypes.append(hidden.dtype)
            return values.to(hidden.device, hidden.dtype).expand(*hidden.shape[:-1], -1)

        parameter = next(self.module.parameters())
        training = [module for module in model.modules() if module.training]
        model.eval()
        ids = torch.zeros(1, 1, dtype=torch.long, device=parameter.device)
        with self.replaced(stand_in):
            seen = forward(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        for module in training:
            module.training = True
        seen = seen[0, -1].float().cpu()
        # Under mixed precision the logits are coarser than the weights.
        rounding = max(torch.finfo(dtypes[-1]).eps, 1e-5)
        scale = (seen[0] / values[0]).item()
        cap = None
        if abs(seen[3] - scale * values[3]) > 4 * rounding * abs(scale * values[3]):
            cap = seen[3].abs().item()
        scale = _snap(scale, rounding)
        cap = _snap(cap, rounding) if cap is not None else None
        expected = values * scale if cap is None else cap * torch.tanh(values * scale / cap)
        if not torch.allclose(seen, expected, rtol=8 * rounding, atol=8 * rounding * (cap or 1.0)):
            raise ConfigError(
                f"{type(model).__name__} changes its logits by something other than a scale and a tanh soft cap; "
                f"its vocabulary head cannot be computed in chunks (sent {values.tolist()}, saw {seen.tolist()})"
            )
        self._constants = scale, cap

    def chunk_tokens(self, vocabulary: int, in_cache: bool = False) -> int:
        """How many tokens' logits are held at a time."""
        budget = CACHED_CHUNK_BYTES if in_cache else CHUNK_BYTES
        return max(MIN_CHUNK_TOKENS, min(MAX_CHUNK_TOKENS, budget // (4 * vocabulary)))

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of ``hidden`` [n, d] as float32 (float64 stays), a fresh tensor [n, V], without gradients."""
        weight = self.module.weight if self.is_linear else None
        if weight is None:
            raw = self.module.forward(hidden)
        else:
            weight, bias = self._cast(weight), self._cast(self.module.bias)
            raw = nn.functional.linear(hidden.to(weight.dtype), weight, bias)
        return self._finish(raw)

    def _finish(self, raw: torch.Tensor) -> torch.Tensor:
        logits = raw if raw.dtype in (torch.float32, torch.float64) else raw.float()
        if self.cap is not None:
            logits = logits.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        elif self.scale != 1.0:
            logits = logits.mul_(self.scale)
        return logits

    def _through_finish(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Turn d loss / d logits into d loss / d raw projection, in place."""
        if self.cap is not None:
            grad.mul_(1 - (logits / self.cap).square_())
        return grad.mul_(self.scale) if self.scale != 1.0 else grad

    @staticmethod
    def _cast(tensor: torch.Tensor | None) -> torch.Tensor | None:
        device = tensor.device.type if tensor is not None else "cpu"
        if tensor is not None and torch.is_autocast_enabled(device) and tensor.dtype == torch.float32:
            return tensor.to(torch.get_autocast_dtype(device))
        return tensor


class _StandIn(nn.Module):
    """Takes the place of the output projection while the body runs; models read its weight's dtype and device."""

    def __init__(self, module: nn.Module, function: Callable):
        super().__init__()
        self.__dict__["weight"] = getattr(module, "weight", None)
        self.__dict__["bias"] = getattr(module, "bias", None)
        self.function = function

    def forward(self, hidden):
        return self.function(hidden)


def _snap(value: float, rounding: float) -> float:
    """Undo the rounding of a measured constant: a whole number or its inverse where one is that near."""
    for candidate in (round(value), 1 / round(1 / value) if abs(value) < 1 and round(1 / value) else None):
        if candidate and abs(candidate - value) <= 2 * rounding * abs(value):
            return float(candidate)
    return value


def attach_head(model: nn.Module) -> VocabularyHead:
    """Give ``model.forward`` the keyword ``segments`` and return the model's :class:`VocabularyHead`.

    With ``segments``, a :class:`Segments`, the forward fills them in and returns ``{"loss": ...}``, a scalar;
    with ``positions`` it returns ``{"hidden": ...}`` [n, d], the final hidden states there. Without them it is the
    model's own forward. Everything runs inside the wrapped forward, so DDP, ZeRO and FSDP gather and reduce through
    their own hooks. Attaching twice returns the first head.
    """
    if hasattr(model, "_vocabulary_head"):
        return model._vocabulary_head
    head = VocabularyHead(model)
    own_forward = type(model).forward
    projection_forward = head.module.forward

    @functools.wraps(own_forward)
    def forward(self, *args, segments=None, positions=None, **kwargs):
        if segments is None and positions is None:
            return own_forward(self, *args, **kwargs)
        head.measure(self, functools.partial(own_forward, self))
        hidden = _final_hidden(functools.partial(own_forward, self), head, args, kwargs)
        if positions is not None:
            return {"hidden": hidden[positions]}
        # Called as a module, so that ZeRO-3 gathers the weights for exactly this call.
        return {"loss": head.module(hidden, segments)}

    def project_or_segments(self, hidden, segments=None):
        if segments is None:
            return projection_forward(hidden)
        return fill_segments(hidden, head, segments)

    model.forward = types.MethodType(forward, model)
    head.module.forward = types.MethodType(project_or_segments, head.module)
    object.__setattr__(model, "_vocabulary_head", head)
    head.projection_forward = projection_forward
    return head


def _final_hidden(forward: Callable, head: VocabularyHead, args, kwargs) -> torch.Tensor:
    """The input of the output projection, [rows x length, d]: the model's own forward stopped before its head."""
    captured = []

    def stand_in(hidden):
        captured.append(hidden)
        return hidden[..., :1]

    with head.replaced(stand_in):
        forward(*args, use_cache=False, **kwargs)
    return captured[-1].flatten(0, -2)


def fill_segments(hidden: torch.Tensor, head: VocabularyHead, segments: Segments) -> torch.Tensor:
    """Fill in every segment from the final hidden states ``hidden`` [positions, d] and return the summed loss."""
    trained = {n: p for n, p in head.module.named_parameters() if p.requires_grad} if torch.is_grad_enabled() else {}
    return _FusedHead.apply(hidden, head, segments, list(trained), *trained.values())


class _FusedHead(torch.autograd.Function):
    """loss = sum over segments and chunks of segment.loss, with all gradients formed in the forward."""

    @staticmethod
    def forward(ctx, hidden, head, segments, names, *parameters):
        ctx.gradients = _Gradients(hidden, head, names, parameters, ctx.needs_input_grad[0])
        losses = [_run_segment(hidden, head, segment, ctx.gradients) for segment in segments]
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx, grad_loss):
        d_hidden, d_parameters = ctx.gradients.finish(grad_loss)
        ctx.gradients = None
        return d_hidden, None, None, None, *d_parameters


class _Gradients:
    """Sums of d loss / d hidden and d loss / d parameters over the chunks."""

    def __init__(self, hidden, head, names, parameters, wanted):
        self.head, self.names, self.parameters = head, names, parameters
        self.wanted = wanted or bool(parameters)
        self.hidden = torch.zeros_like(hidden) if wanted else None
        # Sums over chunks are kept in float32: adding many small bfloat16 terms loses them.
        self.sums = [torch.zeros_like(p, dtype=_sum_dtype(p)) for p in parameters]

    def add(self, positions, inputs, grad_raw, raw=None):
        """Book one chunk: d loss / d raw projection ``grad_raw`` [n, V] of ``inputs`` [n, d]."""
        if self.head.is_linear:
            weight = VocabularyHead._cast(self.head.module.weight)
            grad_raw = grad_raw.to(weight.dtype)
            if self.hidden is not None:
                self.hidden.index_add_(0, positions, (grad_raw @ weight).to(self.hidden.dtype))
            for name, total in zip(self.names, self.sums, strict=True):
                if name == "bias":
                    total.add_(grad_raw.sum(0))
                elif total.dtype == grad_raw.dtype:
                    total.addmm_(grad_raw.T, inputs.to(grad_raw.dtype))
                else:
                    total.add_(grad_raw.T @ inputs.to(grad_raw.dtype))
            return
        targets = ([inputs] if self.hidden is not None else []) + list(self.parameters)
        found = list(torch.autograd.grad(raw, targets, grad_raw.to(raw.dtype), allow_unused=True))
        if self.hidden is not None:
            self.hidden.index_add_(0, positions, found.pop(0).to(self.hidden.dtype))
        for total, grad in zip(self.sums, found, strict=True):
            if grad is not None:
                total.add_(grad)

    def finish(self, grad_loss):
        hidden = self.hidden.mul_(grad_loss.to(self.hidden.dtype)) if self.hidden is not None else None
        scaled = (total.mul_(grad_loss.to(total.dtype)) for total in self.sums)
        return hidden, [total.to(p.dtype) for total, p in zip(scaled, self.parameters, strict=True)]


def _sum_dtype(tensor):
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _run_segment(hidden, head, segment, gradients):
    """Fill in a segment chunk by chunk and return its loss."""
    count = segment.targets.numel()
    if count == 0:
        segment.statistics = TokenStatistics()
        return hidden.new_zeros((), dtype=_sum_dtype(hidden))
    in_cache = not gradients.wanted and hidden.device.type == "cpu"
    step = head.chunk_tokens(_vocabulary_size(head), in_cache)
    slices = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    losses, terms, figures = zip(
        *(_run_chunk(hidden, head, segment, where, gradients) for where in slices), strict=True
    )
    segment.terms = torch.stack(terms).sum(0)
    segment.statistics = TokenStatistics(
        **{
            name: torch.cat([getattr(figure, name) for figure in figures])
            for name, value in vars(figures[0]).items()
            if value is not None
        }
    )
    return torch.stack(losses).sum()


def _vocabulary_size(head):
    weight = getattr(head.module, "weight", None)
    return weight.shape[0] if weight is not None else next(head.module.parameters()).shape[0]


def _run_chunk(hidden, head, segment, where, gradients):
    """One chunk: logits, statistics, the objective's slope by each of them, then by hidden states and weights."""
    needs = segment.needs
    positions, targets = segment.positions[where], segment.targets[where]
    if segment.kl_positions is not None:
        return _run_split_chunk(hidden, head, segment, where, gradients)
    inputs, raw, logits = _project_for_gradient(hidden, head, positions, gradients)
    chunk = _Student(logits, targets)
    teacher = _teacher_of(segment, where, targets) if needs & {"kl", "teacher_nll"} else None
    figures = chunk.statistics(needs, teacher, segment.temperature)
    loss, terms, slopes = _derive(segment, figures, where)
    if gradients.wanted and slopes:
        grad = chunk.gradient(slopes, teacher, segment.temperature)
        gradients.add(positions, inputs, head._through_finish(grad, logits), raw)
    return loss, terms, figures


def _run_split_chunk(hidden, head, segment, where, gradients):
    """The same where ``kl`` looks at other positions than ``nll``: two student projections a token."""
    targets = segment.targets[where]
    figures = TokenStatistics()
    halves = []
    for positions, needs in (
        (segment.positions[where], segment.needs & {"nll"}),
        (segment.kl_positions[where], segment.needs & {"kl", "teacher_nll"}),
    ):
        inputs, raw, logits = _project_for_gradient(hidden, head, positions, gradients)
        chunk = _Student(logits, targets)
        teacher = _teacher_of(segment, where, targets) if "kl" in needs else None
        found = chunk.statistics(needs, teacher, segment.temperature)
        for field, value in vars(found).items():
            if value is not None and getattr(figures, field) is None:
                setattr(figures, field, value)
        halves.append((positions, inputs, raw, logits, chunk, teacher, needs))
    loss, terms, slopes = _derive(segment, figures, where)
    if gradients.wanted:
        for positions, inputs, raw, logits, chunk, teacher, needs in halves:
            mine = {name: slope for name, slope in slopes.items() if name in needs}
            if mine:
                grad = chunk.gradient(mine, teacher, segment.temperature)
                gradients.add(positions, inputs, head._through_finish(grad, logits), raw)
    return loss, terms, figures


def _project_for_gradient(hidden, head, positions, gradients):
    inputs = hidden.detach()[positions]
    if head.is_linear or not gradients.wanted:
        return inputs, None, head.project(inputs)
    inputs.requires_grad_(gradients.hidden is not None)
    with torch.enable_grad():
        raw = head.projection_forward(inputs)
    return inputs, raw, head._finish(raw.detach().clone())


def _teacher_of(segment, where, targets):
    return _Teacher(segment.teacher_head.project(segment.teacher_hidden[where]), targets, segment.temperature)


def _derive(segment, figures, where):
    """The segment's loss on a chunk and its slope by each differentiable statistic."""
    if segment.loss is None:
        zero = figures.nll.new_zeros(())
        return zero, zero[None], {}
    leaves = {
        name: getattr(figures, name).detach().requires_grad_() for name in ("nll", "kl") if name in segment.needs
    }
    with torch.enable_grad():
        loss, terms = segment.loss(dataclasses.replace(figures, **leaves), where)
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else []
    slopes = {name: slope for name, slope in zip(leaves, slopes, strict=False) if slope is not None}
    return loss.detach(), terms.detach(), slopes


class _Teacher:
    """A chunk of the teacher: its distribution at the segment's temperature, and its NLL of the labels."""

    def __init__(self, logits, targets, temperature):
        log_normalizer = logits.logsumexp(-1)
        self.nll = log_normalizer - logits.gather(-1, targets[:, None])[:, 0]
        if temperature != 1.0:
            logits.div_(temperature)
            log_normalizer = logits.logsumexp(-1)
        self.log_probs = logits.sub_(log_normalizer[:, None])
        self.probs = self.log_probs.exp()


class _Student:
    """A chunk of the student's logits [n, V]: what the objectives may ask of them, and the way back."""

    def __init__(self, logits, targets):
        self.logits, self.targets = logits, targets
        self.top, self.greedy = logits.max(-1)
        self.probs = (logits - self.top[:, None]).exp_()
        total = self.probs.sum(-1)
        self.log_normalizer = self.top + total.log()
        self.probs.div_(total[:, None])

    def statistics(self, needs, teacher, temperature) -> TokenStatistics:
        nll = self.log_normalizer - self.logits.gather(-1, self.targets[:, None])[:, 0]
        figures = TokenStatistics(nll=nll, hit=self.greedy == self.targets)
        if "log_prob_moments" in needs:
            log_probs = self.logits - self.log_normalizer[:, None]
            mean = torch.linalg.vecdot(self.probs, log_probs)
            variance = torch.linalg.vecdot(self.probs, log_probs.sub_(mean[:, None]).square_())
            figures.log_prob_mean, figures.log_prob_std = mean, variance.sqrt()
        if teacher is not None:
            figures.teacher_nll = teacher.nll
        if "kl" in needs:
            normalizer = self.log_normalizer if temperature == 1.0 else (self.logits / temperature).logsumexp(-1)
            gap = teacher.log_probs.sub_(self.logits, alpha=1 / temperature)
            figures.kl = temperature**2 * (torch.linalg.vecdot(teacher.probs, gap) + normalizer)
        return figures

    def gradient(self, slopes, teacher, temperature) -> torch.Tensor:
        """d loss / d logits from d loss / d nll and d loss / d kl; consumes the chunk's probabilities."""
        nll, kl = slopes.get("nll"), slopes.get("kl")
        both = kl is not None and temperature == 1.0
        scale = torch.zeros_like(self.top)
        if nll is not None:
            scale = scale + nll
        if both:
            scale = scale + kl
        student_t = torch.softmax(self.logits / temperature, -1) if kl is not None and not both else None
        grad = self.probs.mul_(scale[:, None])
        if nll is not None:
            grad.scatter_add_(-1, self.targets[:, None], -nll[:, None])
        if kl is not None:
            target = teacher.probs if both else teacher.probs.sub_(student_t)
            grad.addcmul_(target, kl[:, None], value=-1.0 if both else -temperature)
        return grad
