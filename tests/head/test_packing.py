"""Rows that share a line come out as each does alone, for every model that can tell them apart."""

import pytest
import torch
from helpers.tiny import CONFIGS, VOCABULARY, tiny_model, tiny_multimodal, tiny_trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.head.attached import attach_head
from unlearn_trainer.head.packing import first_fit, goes_by_mask, lay_out

# ALiBi and recurrent layers follow the order of the input whatever mask they are given.
CANNOT = {"bloom", "falcon_h1"}
NO_SDPA = {"bloom", "falcon_h1", "gemma2", "xglm"}
SIZES = [12, 3, 5, 4, 8, 1, 7]


def batch_of(sizes, seed=0, dtype=torch.long):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).to(dtype)
    return torch.randint(3, VOCABULARY, mask.shape, generator=generator) * mask, mask


def model_of(kind, attention="eager", dtype=torch.float32):
    model = tiny_model(kind, seed=3, dtype=dtype)
    attach_head(model)
    model.set_attn_implementation(attention)
    return model


@torch.no_grad()
def alone(model, ids, sizes):
    """Final hidden states of every token, each row by itself."""
    found = []
    for row, size in zip(ids, sizes, strict=True):
        one = row[None, :size]
        found.append(model(input_ids=one, attention_mask=torch.ones_like(one), positions=torch.arange(size))["hidden"])
    return torch.cat(found)


@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, "eager") for kind in CONFIGS] + [(kind, "sdpa") for kind in CONFIGS if kind not in NO_SDPA],
)
def test_rows_in_a_line_come_out_as_alone(kind, attention):
    model = model_of(kind, attention)
    ids, mask = batch_of(SIZES)
    layout = lay_out(model, ids, mask)
    rows, columns = mask.nonzero(as_tuple=True)
    with torch.no_grad():
        found = model(**layout.inputs, positions=layout.positions(rows, columns))["hidden"]
    expected = alone(model, ids, SIZES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    # 12 | 8 4 | 7 5 | 3 1
    assert layout.inputs["input_ids"].shape == ((len(SIZES) if kind in CANNOT else 4), 12)


def test_the_trial_leaves_the_model_as_it_was():
    model = model_of("gpt2").train()
    assert goes_by_mask(model, 12)
    assert all(module.training for module in model.modules())


def test_a_sliding_window_shorter_than_a_row_is_not_packed():
    model = model_of("gemma3_text")
    window = model.config.sliding_window
    assert goes_by_mask(model, window) and not goes_by_mask(model, window + 1)


def test_the_settings_of_a_multimodal_model_are_those_of_its_language_model(tmp_path):
    model = tiny_multimodal(window=8)
    attach_head(model)
    assert goes_by_mask(model, 8) and not goes_by_mask(model, 9)
    trainer = tiny_trainer(tmp_path, model=tiny_multimodal(), method="lingtea", max_steps=1, learning_rate=1e-3)
    trainer.train()
    assert trainer.state.global_step == 1


def test_other_attention_is_not_packed():
    model = model_of("llama")
    model.config._attn_implementation = "flash_attention_2"
    ids, mask = batch_of(SIZES)
    layout = lay_out(model, ids, mask)
    assert layout.inputs["input_ids"] is ids and layout.inputs["attention_mask"] is mask
    assert layout.positions(torch.tensor([2]), torch.tensor([3])).tolist() == [2 * 12 + 3]


def test_rows_of_one_length_stay_a_plain_batch():
    ids, mask = batch_of([4, 4, 4])
    assert lay_out(model_of("llama"), ids, mask).inputs["input_ids"] is ids


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_first_fit_holds_every_row_once_and_leaves_no_two_half_empty_lines(sizes):
    capacity = max(sizes)
    bins = first_fit(sizes, capacity)
    assert sorted(row for line in bins for row in line) == list(range(len(sizes)))
    filled = [sum(sizes[row] for row in line) for line in bins]
    assert max(filled) <= capacity
    assert sum(2 * total <= capacity for total in filled) <= 1
