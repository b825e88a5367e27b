"""The chunked vocabulary head against a naive twin that holds all logits and lets autograd do the work."""

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.tiny import CONFIGS, VOCABULARY, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unlearn_trainer.errors import ConfigError
from unlearn_trainer.head import chunked as lm_head
from unlearn_trainer.head.attached import attach_head
from unlearn_trainer.head.chunked import Segment, Segments


def batch(rows=4, length=11, seed=3):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    lengths = torch.tensor([length, length - 3, length - 1, length - 5])[:rows]
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    ids = ids * mask
    positions = mask[:, 1:].nonzero()
    return ids, mask, positions[:, 0] * length + positions[:, 1], ids[:, 1:][mask[:, 1:].bool()]


def segment_of(positions, targets, teacher=None, temperature=1.0, hidden=None, needs=frozenset({"nll"})):
    weights = torch.linspace(0.2, 1.7, len(targets)).double()

    def loss(statistics, where):
        value = -0.7 * statistics.nll * weights[where].to(statistics.nll.dtype)
        if "kl" in needs:
            q = torch.exp(-statistics.teacher_nll)
            value = value + q * statistics.kl * weights[where].to(value.dtype)
        return value.sum(), value.sum()[None]

    return Segment(
        positions, targets, needs, loss, teacher_hidden=hidden, teacher_head=teacher, temperature=temperature
    )


def naive(model, teacher, ids, mask, positions, targets, temperature, needs):
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.flatten(0, 1)[positions]
    log_probs = logits.log_softmax(-1)
    nll = -log_probs.gather(-1, targets[:, None])[:, 0]
    weights = torch.linspace(0.2, 1.7, len(targets)).to(nll.dtype)
    value = -0.7 * nll * weights
    if "kl" in needs:
        with torch.no_grad():
            t = teacher(input_ids=ids, attention_mask=mask, use_cache=False).logits.flatten(0, 1)[positions]
        tt, ss = (t / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
        kl = temperature**2 * (tt.exp() * (tt - ss)).sum(-1)
        q = t.log_softmax(-1).gather(-1, targets[:, None])[:, 0].exp()
        value = value + q * kl * weights
    return value.sum(), nll, log_probs


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_loss_gradients_and_statistics_equal_the_naive_twin(kind, temperature, monkeypatch):
    dtype = torch.float32 if kind in ("xglm", "falcon_h1") else torch.float64
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    model, teacher = tiny_model(kind, 0, dtype), tiny_model(kind, 1, dtype)
    ids, mask, positions, targets = batch()
    needs = frozenset({"nll", "kl", "teacher_nll", "log_prob_moments"})
    expected, nll, log_probs = naive(model, teacher, ids, mask, positions, targets, temperature, needs)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)

    monkeypatch.setattr(lm_head, "CHUNK_BYTES", 4 * VOCABULARY * 16)
    monkeypatch.setattr(lm_head, "MIN_CHUNK_TOKENS", 16)  # several chunks, the last one short
    attach_head(model)
    teacher_head = attach_head(teacher)
    with torch.no_grad():
        hidden = teacher(input_ids=ids, attention_mask=mask, positions=positions)["hidden"]
    segment = segment_of(positions, targets, teacher_head, temperature, hidden, needs)
    loss = model(input_ids=ids, attention_mask=mask, segments=Segments(segment))["loss"]
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if gradient.norm() > 1e-8:
            assert relative(found[name], gradient) < 10 * tolerance, name
    statistics = segment.statistics
    torch.testing.assert_close(statistics.nll, nll.detach(), rtol=tolerance, atol=tolerance)
    assert torch.equal(statistics.hit, log_probs.argmax(-1) == targets)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    torch.testing.assert_close(statistics.log_prob_mean, mean, rtol=10 * tolerance, atol=tolerance)
    std = ((probs * log_probs.square()).sum(-1) - mean.square()).sqrt()
    torch.testing.assert_close(statistics.log_prob_std, std, rtol=1e-3 if dtype == torch.float32 else 1e-8, atol=1e-6)


def test_segments_add_up_and_positions_may_repeat():
    model = tiny_model(dtype=torch.float64)
    ids, mask, positions, targets = batch()
    attach_head(model)
    whole = model(input_ids=ids, attention_mask=mask, segments=Segments(segment_of(positions, targets)))["loss"]
    twice = [segment_of(positions, targets), segment_of(positions, targets)]
    both = model(input_ids=ids, attention_mask=mask, segments=Segments(*twice))["loss"]
    assert both.item() == pytest.approx(2 * whole.item())
    whole.backward()
    single = model.lm_head.weight.grad.clone()
    model.zero_grad()
    both.backward()
    torch.testing.assert_close(model.lm_head.weight.grad, 2 * single)


def test_empty_segment_gives_zero_loss_and_zero_gradients():
    model = tiny_model()
    ids, mask, *_ = batch()
    attach_head(model)
    none = torch.zeros(0, dtype=torch.long)
    loss = model(input_ids=ids, attention_mask=mask, segments=Segments(segment_of(none, none)))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in model.parameters())


def test_a_frozen_head_gets_no_gradient_and_its_body_does():
    model = tiny_model(dtype=torch.float64)
    ids, mask, positions, targets = batch()
    model(input_ids=ids, attention_mask=mask)
    model.lm_head.weight.requires_grad_(False)
    attach_head(model)
    model(input_ids=ids, attention_mask=mask, segments=Segments(segment_of(positions, targets)))["loss"].backward()
    assert model.lm_head.weight.grad is None
    assert model.model.layers[0].mlp.up_proj.weight.grad.norm() > 0


def test_a_head_that_is_no_plain_linear_layer_goes_through_autograd():
    class Scaled(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.weight, self.gain = linear.weight, nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

        def forward(self, hidden):
            return nn.functional.linear(hidden, self.weight) * self.gain

    model = tiny_model(dtype=torch.float64)
    model.lm_head = Scaled(model.lm_head)
    ids, mask, positions, targets = batch()
    needs = frozenset({"nll"})
    expected, *_ = naive(model, None, ids, mask, positions, targets, 1.0, needs)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    attach_head(model)
    model(input_ids=ids, attention_mask=mask, segments=Segments(segment_of(positions, targets)))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, wanted[name]) < 1e-9, name


def test_bfloat16_agrees_with_float32_to_rounding():
    ids, mask, positions, targets = batch()
    model = tiny_model()
    rounded = tiny_model().to(torch.bfloat16)
    model.load_state_dict(rounded.float().state_dict())
    rounded.to(torch.bfloat16)
    gradients = []
    for each in (model, rounded):
        attach_head(each)
        loss = each(input_ids=ids, attention_mask=mask, segments=Segments(segment_of(positions, targets)))["loss"]
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append((loss.item(), each.lm_head.weight.grad.float()))
    assert gradients[1][0] == pytest.approx(gradients[0][0], rel=2e-2)
    assert relative(gradients[1][1], gradients[0][1]) < 3e-2


def test_autocast_matches_the_models_own_logits_under_autocast():
    model = tiny_model()
    ids, mask, positions, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask).logits.flatten(0, 1)[positions].float()
        attach_head(model)
        segment = segment_of(positions, targets)
        loss = model(input_ids=ids, attention_mask=mask, segments=Segments(segment))["loss"]
    loss.backward()
    nll = -logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(segment.statistics.nll, nll.detach(), rtol=1e-3, atol=1e-3)
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_the_plain_forward_generation_and_saving_are_untouched(tmp_path):
    model = tiny_model()
    ids, mask, *_ = batch()
    before = model(input_ids=ids, attention_mask=mask).logits
    head = attach_head(model)
    assert attach_head(model) is head
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before)
    assert model.generate(ids[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert reloaded.state_dict().keys() == model.state_dict().keys()


def test_a_logit_transform_that_cannot_be_chunked_is_refused(monkeypatch):
    model = tiny_model()
    own = type(model).forward

    def squared(self, *args, **kwargs):
        out = own(self, *args, **kwargs)
        out.logits = out.logits.square()
        return out

    monkeypatch.setattr(type(model), "forward", squared)
    attach_head(model)
    ids, mask, positions, targets = batch()
    with pytest.raises(ConfigError, match="neither|other than a scale"):
        model(input_ids=ids, attention_mask=mask, segments=Segments(segment_of(positions, targets)))


@contextlib.contextmanager
def sizes(chunk=lm_head.CHUNK_BYTES, tile=lm_head.TILE_BYTES, least=lm_head.MIN_CHUNK_TOKENS):
    """Other chunks and tiles, in bytes, and the least tokens of a chunk; hypothesis has no fresh monkeypatch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "CHUNK_BYTES", chunk)
        patch.setattr(lm_head, "TILE_BYTES", tile)
        patch.setattr(lm_head, "MIN_CHUNK_TOKENS", least)
        yield


def heads(vocabulary, kind="llama", dtype=torch.float64):
    """Student and teacher of one layer whose heads have been measured; the tests below leave out the body."""
    found = []
    for seed in (0, 1):
        model = tiny_model(kind, seed, dtype, vocab_size=vocabulary, num_hidden_layers=1)
        found.append(attach_head(model))
        with torch.no_grad():
            model(input_ids=torch.ones(1, 1, dtype=torch.long), positions=torch.tensor([0]))
    return found


shared_heads = functools.cache(heads)  # for tests that leave the weights alone


def objective(needs, weights):
    """A loss with a term for each differentiable statistic in ``needs``, that weighs every token differently."""

    def loss(statistics, where):
        w = weights[where].to(statistics.nll.dtype)
        terms = []
        if "nll" in needs:
            terms.append((-0.7 * w * statistics.nll).sum())
        if "kl" in needs:
            q = torch.exp(-statistics.teacher_nll) if "teacher_nll" in needs else 1.0
            terms.append((q * w * statistics.kl).sum())
        return torch.stack(terms).sum(), torch.stack(terms)

    return loss


def logits_of(head, hidden):
    logits = nn.functional.linear(hidden, head.module.weight, head.module.bias).to(
        torch.promote_types(hidden.dtype, torch.float32)
    )
    return head.scale * logits if head.cap is None else head.cap * torch.tanh(head.scale * logits / head.cap)


def naive_statistics(head, hidden, segment):
    """What a segment asks for, from all logits at once."""
    logits = logits_of(head, hidden[segment.positions])
    log_probs = logits.log_softmax(-1)
    pick = segment.targets[:, None]
    figures = lm_head.TokenStatistics(nll=-log_probs.gather(-1, pick)[:, 0], hit=logits.argmax(-1) == pick[:, 0])
    if segment.needs & {"kl", "teacher_nll"}:
        t = segment.temperature
        taught = logits_of(segment.teacher_head, segment.teacher_hidden).detach()
        figures.teacher_nll = -taught.log_softmax(-1).gather(-1, pick)[:, 0]
    if "kl" in segment.needs:
        positions = segment.positions if segment.other_positions is None else segment.other_positions
        student, teacher = ((z / t).log_softmax(-1) for z in (logits_of(head, hidden[positions]), taught))
        figures.kl = t**2 * (teacher.exp() * (teacher - student)).sum(-1)
    if "log_prob_moments" in segment.needs:
        figures.log_prob_mean = (log_probs.exp() * log_probs).sum(-1)
        centered = log_probs - figures.log_prob_mean[:, None]
        figures.log_prob_std = (log_probs.exp() * centered.square()).sum(-1).sqrt()
    return figures


def check_against_naive(head, segments, hidden, tolerance):
    """Loss, terms, statistics and gradients of ``segments`` as from all logits at once."""
    weight = head.module.weight
    expected = [naive_statistics(head, hidden, segment) for segment in segments]
    losses = [
        segment.loss(figures, slice(0, len(segment.targets)))
        for segment, figures in zip(segments, expected, strict=True)
    ]
    total = torch.stack([loss for loss, _ in losses]).sum()
    wanted = torch.autograd.grad(total, [hidden, weight])
    found_loss = head.module(hidden, Segments(*segments))
    found = torch.autograd.grad(found_loss, [hidden, weight])
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found_loss, total.to(found_loss.dtype), **close)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance * b.abs().max().item())
    for segment, figures, (_, terms) in zip(segments, expected, losses, strict=True):
        torch.testing.assert_close(segment.terms, terms.detach(), **close)
        for name, value in vars(segment.statistics).items():
            reference = getattr(figures, name)
            assert (value is None) == (reference is None), name
            if reference is None or name == "hit":
                continue
            torch.testing.assert_close(
                value, reference.detach(), **close, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert torch.equal(segment.statistics.hit, figures.hit)


NEEDS = [
    frozenset(needs)
    for needs in (
        {"nll"},
        {"kl"},
        {"nll", "kl"},
        {"kl", "teacher_nll"},
        {"nll", "teacher_nll"},
        {"nll", "log_prob_moments"},
        {"nll", "kl", "teacher_nll", "log_prob_moments"},
    )
]


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.sampled_from([3, 17, 130]),
    kind=st.sampled_from(["llama", "gemma2", "granite", "phi"]),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    needs=st.lists(st.sampled_from(NEEDS), min_size=3, max_size=3),
    apart=st.lists(st.booleans(), min_size=3, max_size=3),
    temperature=st.sampled_from([1.0, 0.7, 3.0]),
    chunk=st.integers(1, 12),
    tile=st.integers(1, 5),
    seed=st.integers(0, 5),
)
def test_any_segments_in_any_chunks_equal_the_naive_twin(
    vocabulary, kind, counts, needs, apart, temperature, chunk, tile, seed
):
    student, teacher = shared_heads(vocabulary, kind)
    generator = torch.Generator().manual_seed(seed)
    hidden = (3 * torch.randn(12, 32, generator=generator, dtype=torch.float64)).requires_grad_()
    segments = []
    for count, need, is_apart in zip(counts, needs, apart, strict=False):
        taught = bool(need & {"kl", "teacher_nll"})
        segment = Segment(
            torch.randint(12, (count,), generator=generator),
            torch.randint(vocabulary, (count,), generator=generator),
            need,
            objective(need, torch.rand(count, generator=generator)),
            temperature=temperature,
        )
        if taught:
            segment.teacher_head = teacher
            segment.teacher_hidden = 3 * torch.randn(count, 32, generator=generator, dtype=torch.float64)
            if is_apart and "kl" in need:
                segment.other_positions = torch.randint(12, (count,), generator=generator)
        segments.append(segment)
    with sizes(chunk=8 * vocabulary * chunk, tile=4 * vocabulary * tile, least=1):
        filled = [segment for segment in segments if len(segment.targets)]
        if filled:
            check_against_naive(student, filled, hidden, 1e-9)
        both = student.module(hidden, Segments(*segments))
    assert both.item() == pytest.approx(sum(s.terms.sum().item() for s in filled), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi"])
def test_bfloat16_sums_over_many_chunks_keep_its_rounding(kind):
    vocabulary, count = 150, 200
    student, teacher = heads(vocabulary, kind, torch.bfloat16)
    exact, exact_teacher = heads(vocabulary, kind, torch.float64)
    for rounded, whole in ((student, exact), (teacher, exact_teacher)):
        whole.module.load_state_dict(rounded.module.state_dict())
    needs = frozenset({"nll", "kl", "teacher_nll"})
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, count, 32, generator=generator).to(torch.bfloat16)
    targets = torch.randint(vocabulary, (count,), generator=generator)
    results = []
    with sizes(chunk=1, tile=1, least=1):
        for head, teacher_head, dtype in ((student, teacher, torch.bfloat16), (exact, exact_teacher, torch.float64)):
            hidden, taught = states.to(dtype)
            hidden.requires_grad_()
            segment = Segment(
                torch.arange(count),
                targets,
                needs,
                objective(needs, torch.ones(count)),
                teacher_hidden=taught,
                teacher_head=teacher_head,
            )
            loss = head.module(hidden, Segments(segment))
            gradients = torch.autograd.grad(loss, [hidden, *head.module.parameters()])
            assert {g.dtype for g in gradients} == {dtype}
            results.append([loss.detach(), segment.statistics.nll, segment.statistics.kl, *gradients])
    rounding = torch.finfo(torch.bfloat16).eps
    for found, wanted in zip(*results, strict=True):
        assert relative(found.double(), wanted.double()) < rounding


def test_of_tied_logits_the_first_is_the_greedy_prediction():
    student, _ = heads(40)
    with torch.no_grad():
        student.module.weight[[7, 19, 30]] = 5 * student.module.weight[7]
    hidden = student.module.weight[7].detach().expand(4, -1)
    segment = Segment(torch.arange(4), torch.tensor([7, 19, 30, 2]), frozenset({"nll"}))
    with torch.no_grad():
        student.module(hidden, Segments(segment))
    assert segment.statistics.hit.tolist() == [True, False, False, False]
    assert segment.statistics.nll[:3].unique().numel() == 1


def test_kl_of_a_model_to_itself_is_exactly_zero():
    student, _ = heads(150, dtype=torch.float32)
    hidden = 4 * torch.randn(20, 32)
    for temperature in (1.0, 2.0):
        segment = Segment(
            torch.arange(20),
            torch.randint(150, (20,)),
            frozenset({"kl"}),
            teacher_hidden=hidden,
            teacher_head=student,
            temperature=temperature,
        )
        with torch.no_grad():
            student.module(hidden, Segments(segment))
        assert segment.statistics.kl.tolist() == [0.0] * 20


def test_figures_outlive_the_memory_they_were_made_in_and_inference_may_come_first():
    student, _ = heads(60)
    hidden = torch.randn(8, 32, dtype=torch.float64)
    first, second = (
        Segment(torch.arange(8), torch.randint(60, (8,)), frozenset({"nll", "log_prob_moments"})) for _ in range(2)
    )

    def in_inference_mode():
        with torch.inference_mode():
            student.module(hidden, Segments(first))
        return {name: value.clone() for name, value in vars(first.statistics).items() if value is not None}

    def in_training():
        segment = segment_of(torch.arange(8), second.targets)
        check_against_naive(student, [segment], (9 * hidden).requires_grad_(), 1e-9)

    with ThreadPoolExecutor(1) as thread:  # memory is a thread's own: this one starts without any
        before = thread.submit(in_inference_mode).result()
        thread.submit(in_training).result()
    for name, value in before.items():
        assert torch.equal(getattr(first.statistics, name), value)


class Widest(TorchDispatchMode):
    """The most elements of any result with ``vocabulary`` columns or rows."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.elements = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor) and self.vocabulary in each.shape:
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_larger_than_a_chunk_or_the_weights(dtype):
    vocabulary, count, limit = 1009, 200, 40
    student, teacher = heads(vocabulary, dtype=dtype)
    hidden = torch.randn(count, 32, dtype=dtype).requires_grad_()
    needs = frozenset({"nll", "kl", "teacher_nll"})
    segment = Segment(
        torch.arange(count),
        torch.randint(vocabulary, (count,)),
        needs,
        objective(needs, torch.ones(count)),
        teacher_hidden=hidden.detach(),
        teacher_head=teacher,
        temperature=2.0,
    )
    with sizes(chunk=dtype.itemsize * vocabulary * limit, tile=4 * vocabulary * 3), Widest(vocabulary) as widest:
        student.module(hidden, Segments(segment)).backward()
    assert limit * vocabulary == widest.elements  # the weights have 32 columns


def test_short_segments_share_a_chunk_and_one_without_loss_or_teacher_adds_nothing():
    student, _ = heads(60)
    hidden = torch.randn(9, 32, dtype=torch.float64).requires_grad_()
    needs = frozenset({"nll", "kl", "teacher_nll"})
    none = torch.zeros(0, dtype=torch.long)
    trained = segment_of(torch.arange(5), torch.arange(5))
    watched = Segment(torch.arange(5, 9), torch.arange(4), frozenset({"nll"}))
    # Where a step has no retain rows at all there is no teacher either.
    empty = Segment(none, none, needs, objective(needs, none))
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        add = lm_head._Gradients.add
        patch.setattr(lm_head._Gradients, "add", lambda *args: (calls.append(1), add(*args)))
        loss = student.module(hidden, Segments(trained, watched, empty))
        loss.backward()
        assert len(calls) == 1
        student.module(hidden, Segments(watched)).backward()
        assert len(calls) == 1  # nothing to derive, so no products
    assert hidden.grad[:5].abs().sum(1).min() > 0 and hidden.grad[5:].abs().sum() == 0
    assert watched.statistics.nll.shape == (4,) and empty.statistics.nll is None


def test_the_gradient_of_a_scaled_loss_is_scaled():
    student, _ = heads(60)
    hidden = torch.randn(9, 32, dtype=torch.float64).requires_grad_()
    found = []
    for factor in (1.0, -3.0):
        loss = factor * student.module(hidden, Segments(segment_of(torch.arange(9), torch.arange(9))))
        found.append(torch.autograd.grad(loss, [hidden, student.module.weight]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, -3 * one)
