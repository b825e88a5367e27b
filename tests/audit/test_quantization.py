"""Rounding weights: the grids against an element-by-element twin, which weights are rounded, and the audit's check."""

import math

import pytest
import torch
from helpers.subjects import subjects_of
from helpers.tiny import CONFIGS, LANGUAGES, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.audit.checks.quantization import (
    nf4,
    quantization,
    quantize,
    round_asymmetric,
    round_matrices,
    round_symmetric,
)
from unlearn_trainer.errors import ConfigError


def naive_symmetric(row):
    """A row of numbers on 255 values: the multiple of max |w| / 127 next to each."""
    top = max(abs(value) for value in row)
    return [round(value / (top / 127)) * (top / 127) if top else 0.0 for value in row]


def naive_asymmetric(row, group):
    """Each group on 16 values from the least to the greatest, 0 among them."""
    found = []
    for start in range(0, len(row), group):
        part = row[start : start + group]
        low, high = min(0.0, *part), max(0.0, *part)
        if low == high:
            found += part
            continue
        scale = (high - low) / 15
        zero = round(-low / scale)
        found += [(min(15, max(0, round(value / scale) + zero)) - zero) * scale for value in part]
    return found


def weights(seed, rows, columns, kind="normal"):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    if kind == "positive":
        found = found.abs() + 1
    elif kind == "negative":
        found = -found.abs() - 1
    elif kind == "heavy":
        found = found**5
    return found


SHAPES = {
    "seed": st.integers(0, 999),
    "rows": st.integers(1, 4),
    "kind": st.sampled_from(["normal", "positive", "negative", "heavy"]),
}


@settings(deadline=None, max_examples=60)
@given(**SHAPES, columns=st.integers(1, 40), group=st.integers(1, 45))
def test_groups_are_rounded_as_one_by_one(seed, rows, kind, columns, group):
    weight = weights(seed, rows, columns, kind)
    expected = [naive_asymmetric(row, group) for row in weight.tolist()]
    torch.testing.assert_close(round_asymmetric(weight, 4, group), torch.tensor(expected, dtype=torch.float64))


@settings(deadline=None, max_examples=60)
@given(**SHAPES, columns=st.integers(1, 40))
def test_rows_are_rounded_as_one_by_one(seed, rows, kind, columns):
    weight = weights(seed, rows, columns, kind)
    expected = [naive_symmetric(row) for row in weight.tolist()]
    torch.testing.assert_close(round_symmetric(weight, 8), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("columns", [128, 200, 256, 300, 64])
def test_groups_of_128_along_the_inputs_with_few_values_each(columns):
    weight = weights(0, 3, columns)
    rounded = round_asymmetric(weight, 4)
    for row, original in zip(rounded, weight, strict=True):
        for part, of_original in zip(row.split(128), original.split(128), strict=True):
            step = (of_original.max() - of_original.min()) / 15
            assert 2 < len(part.unique()) <= 16
            assert (part - of_original).abs().max() <= step * (0.5 + 1e-9) + step / 2  # the zero point is rounded, too
    assert len(rounded[0].unique()) <= 16 * math.ceil(columns / 128)
    if columns > 128:
        assert len(rounded[0].unique()) > 16


@pytest.mark.parametrize("value", [0.0, 0.37, -2.5, 1e-30])
@pytest.mark.parametrize("rounding", [round_symmetric, round_asymmetric])
def test_rows_of_one_value_are_kept(value, rounding):
    weight = torch.full((2, 130), value)
    torch.testing.assert_close(rounding(weight, 4), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("rounding", "bits"), [(round_symmetric, 8), (round_asymmetric, 4)])
def test_zero_stays_zero_and_a_second_rounding_changes_nothing(rounding, bits):
    weight = weights(1, 5, 70)
    weight[:, ::7] = 0
    once = rounding(weight, bits)
    assert (once[:, ::7] == 0).all()
    torch.testing.assert_close(rounding(once, bits), once)


# ---- which weights --------------------------------------------------------------------------------------------------


def changed(model, change):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert change(model) is model
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# The weights of linear layers by their names, written down apart from the code.
BODY = {
    "gpt2": ("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    "bloom": ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight"),
    "opt": ("_proj.weight", "fc1.weight", "fc2.weight", "project_in.weight", "project_out.weight"),
    "gpt_neox": ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight"),
    "xglm": ("_proj.weight", "fc1.weight", "fc2.weight"),
    "phi": ("_proj.weight", "dense.weight", "fc1.weight", "fc2.weight"),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", CONFIGS)
def test_linear_layers_alone_are_rounded(kind, bits):
    model = tiny_model(kind)
    expected = {name for name in model.state_dict() if name.endswith(BODY.get(kind, ("_proj.weight",)))}
    assert changed(model, lambda each: quantize(each, bits)) == expected
    tied = model.config.get_text_config().tie_word_embeddings
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


MIXTURE = {
    **{"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    **{"decoder_sparse_step": 1, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
    **{"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
}
# Which axis of its expert tensors goes over what comes in.
INPUTS = {
    "mixtral": {"gate_up_proj": 2, "down_proj": 2},
    "qwen3_moe": {"gate_up_proj": 2, "down_proj": 2},
    "gpt_oss": {"gate_up_proj": 1, "down_proj": 1},
    "llama4_text": {"gate_up_proj": 1, "down_proj": 1},
    "jetmoe": {"input_linear.weight": 2, "output_linear.weight": 2},
    "dbrx": {"w1": 1, "v1": 1, "w2": 0},
}


@pytest.mark.parametrize("kind", INPUTS)
def test_experts_that_share_a_tensor_are_rounded_along_their_inputs(kind):
    settings = {name: value for name, value in MIXTURE.items() if not name.endswith("_config") or kind == "dbrx"}
    model = tiny_model(kind, **settings)
    plain = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    quantize(model, 4)
    seen = set()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "bias" in name or id(parameter) in plain:
            continue
        assert not torch.equal(parameter, before[name]), name
        for suffix, axis in INPUTS[kind].items():
            if name.endswith(suffix):
                rows = parameter.detach().movedim(axis, -1).flatten(0, -2)
                assert max(len(row.unique()) for group in rows.split(128, dim=1) for row in group) <= 16, name
                seen |= {suffix} if rows.shape[1] > 16 else set()
    assert seen == set(INPUTS[kind])


def test_the_decay_of_a_recurrence_and_convolutions_are_left_alone():
    model = tiny_model("mamba", state_size=8)
    left = changed(model, lambda each: quantize(each, 4))
    assert {name.rsplit(".", 2)[1] for name in left} == {"in_proj", "x_proj", "dt_proj", "out_proj"}


@pytest.mark.parametrize("bits", [8, 4])
def test_gpt2_is_rounded_along_its_inputs_though_stored_the_other_way(bits):
    model = tiny_model("gpt2", dtype=torch.float64)
    layer = model.transformer.h[0].mlp.c_fc
    before = layer.weight.detach().clone()  # [in, out]
    quantize(model, bits)
    naive = naive_symmetric if bits == 8 else lambda row: naive_asymmetric(row, 128)
    expected = torch.tensor([naive(row) for row in before.T.tolist()], dtype=torch.float64).T
    torch.testing.assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_in_float32_and_kept(dtype):
    model = tiny_model(dtype=dtype)
    layer = model.model.layers[1].mlp.down_proj
    before = layer.weight.detach().clone()
    quantize(model, 4)
    assert layer.weight.dtype == dtype
    expected = round_asymmetric(before.float(), 4).to(dtype)
    assert torch.equal(layer.weight.detach(), expected)


def test_a_weight_that_two_layers_share_is_rounded_once():
    model = tiny_model()
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    second.weight = first.weight
    seen = []
    round_matrices(model, lambda weight: seen.append(weight.shape) or weight + 1)
    # Seven in each of two blocks, less the shared one.
    assert len(seen) == 13


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ConfigError, match="8 bits or 4, not to 3"):
        quantize(tiny_model(), 3)


def test_nf4_rounds_a_block_to_16_values():
    pytest.importorskip("bitsandbytes")
    rounded = nf4(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    assert rounded.shape == (3, 64)
    assert all(8 < len(row.unique()) <= 16 for row in rounded)


# ---- the check ------------------------------------------------------------------------------------------------------


def test_the_check_measures_the_rounded_model(tmp_path):
    model = tiny_model()
    subject = subjects_of(tmp_path, after=model)["after"]
    rows = quantization(subject).as_json()["rows"]
    metrics = ("memorization_accuracy", "extraction_strength", "retain_memorization_accuracy")
    assert set(rows) == {f"{variant}/{metric}" for variant in ("int8", "int4") for metric in metrics}
    with torch.no_grad():
        for bits in (8, 4):
            rounded = quantize(tiny_model(), bits)
            for split, metric in (("forget", metrics[0]), ("retain", metrics[2])):
                for row in subject.datasets[split]:
                    ids = torch.tensor([row["input_ids"]])
                    guesses = rounded(ids).logits[0, :-1].argmax(-1)
                    labels = torch.tensor(row["labels"][1:])
                    expected = (guesses == labels)[labels != -100].double().mean()
                    found = rows[f"int{bits}/{metric}"][LANGUAGES[row["language"]]]
                    assert found["values"][found["items"].index(row["item"])] == pytest.approx(expected.item())
