"""What is changed on a model is known, found through whatever is around it, and can be taken back."""

import copy

import pytest
import torch
from helpers.tiny import tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn

from unlearn_trainer.errors import ConfigError
from unlearn_trainer.head.attached import AttachedHead, attach_head, head_of, without_head
from unlearn_trainer.head.chunked import Segment, Segments

IDS = torch.tensor([[5, 17, 3, 44, 9]])


def nll(model):
    segment = Segment(torch.arange(4), IDS[0, 1:], frozenset({"nll"}))
    model(input_ids=IDS, attention_mask=torch.ones_like(IDS), segments=Segments(segment))
    return segment.statistics.nll


def own_of(model):
    """All that instances among the modules hold beside parameters, buffers and submodules."""
    return {name: sorted(vars(module)) for name, module in model.named_modules()}


def test_detached_the_model_is_as_it_was():
    model = tiny_model().eval()
    before, logits = own_of(model), model(input_ids=IDS).logits
    attached = AttachedHead(model)
    assert own_of(model) == before
    attached.attach()
    assert own_of(model) != before and torch.equal(model(input_ids=IDS).logits, logits)
    first = nll(model)
    attached.detach()
    assert own_of(model) == before and torch.equal(model(input_ids=IDS).logits, logits)
    with pytest.raises(AttributeError):  # nobody fills in the segment
        nll(model)
    attached.attach()
    assert torch.equal(nll(model), first)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj"])),
        nn.DataParallel,
        lambda model: nn.DataParallel(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))),
    ],
    ids=["plain", "adapter", "wrapper", "adapter in a wrapper"],
)
def test_the_head_is_found_within_what_is_around_the_model(wrap):
    model = tiny_model()
    with pytest.raises(ConfigError, match="attach_head"):
        head_of(wrap(model))
    model = tiny_model()
    head = attach_head(model)
    assert head_of(wrap(model)) is head is attach_head(model)


def test_a_copy_shares_nothing_and_what_others_wrapped_stays_wrapped():
    model = tiny_model().eval()
    attach_head(model)
    first, inner, calls = nll(model), model.forward, []

    def wrapped(*args, **kwargs):  # as mixed precision does it
        calls.append(kwargs)
        return inner(*args, **kwargs)

    model.forward = wrapped
    with without_head(model):
        twin = copy.deepcopy(model)
    with pytest.raises(ConfigError):
        head_of(twin)
    assert attach_head(twin) is not head_of(model) and attach_head(twin).module is twin.get_output_embeddings()
    assert torch.equal(nll(twin), first) and not calls
    assert torch.equal(nll(model), first) and len(calls) == 1
