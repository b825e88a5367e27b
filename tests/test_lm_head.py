"""The chunked vocabulary head against a naive twin that holds all logits and lets autograd do the work."""

import pytest
import torch
from tiny import CONFIGS, VOCABULARY, tiny_model
from torch import nn

from unlearn_trainer import lm_head
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.lm_head import Segment, Segments, attach_head


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
