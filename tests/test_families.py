"""Families of all kinds of attention, positions, experts and state; with `-m sweep` all that transformers has."""

import pytest
import torch
from families import FAMILIES, LEFT_OUT, NOT_CAUSAL, tiny_family
from family_checks import check_adapter, check_all, check_loss

from unlearn_trainer.errors import ConfigError

# Attention: multi-head, grouped, multi-query, latent, with sinks, windows, chunks, or chosen keys. Positions: rotary,
# learned, from 2, from padding on, sinusoidal, ALiBi, relative. Experts. State: SSM, RWKV, linear attention, gates.
KINDS = [
    *("llama", "gpt2", "bloom", "opt", "xglm", "roberta", "gemma3_text", "gpt_oss", "mixtral", "deepseek_v3"),
    *("falcon_h1", "mamba", "rwkv", "recurrent_gemma", "openai-gpt", "biogpt", "gpt_bigcode", "qwen3_next"),
    *("mpt", "ctrl", "llama4_text", "whisper"),
]


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize("family", KINDS)
def test_a_family_of_each_kind_is_what_its_plain_forward_says(family, dtype, tmp_path):
    check_all(tiny_family(family, dtype=dtype), tmp_path)


@pytest.mark.parametrize("family", KINDS)
def test_the_default_adapter_of_a_family_of_each_kind_is_trained(family):
    check_adapter(tiny_family(family))


def test_what_sees_the_tokens_it_predicts_is_refused():
    for family in sorted(NOT_CAUSAL & set(FAMILIES)):
        with pytest.raises(ConfigError, match="from those behind it"):
            check_loss(tiny_family(family))


@pytest.mark.sweep
@DTYPES
@pytest.mark.parametrize("family", [each for each in FAMILIES if each not in NOT_CAUSAL])
def test_every_family_is_what_its_plain_forward_says(family, dtype, tmp_path, record_property):
    record_property("family", family)
    record_property("dtype", str(dtype).removeprefix("torch."))
    if family in LEFT_OUT:
        pytest.skip(LEFT_OUT[family])
    for name, value in check_all(tiny_family(family, dtype=dtype), tmp_path).items():
        record_property(name, value)


@pytest.mark.sweep
@pytest.mark.parametrize("family", [each for each in FAMILIES if each not in NOT_CAUSAL | set(LEFT_OUT)])
def test_the_default_adapter_of_every_family_is_trained(family, record_property):
    record_property("family", family)
    check_adapter(tiny_family(family))
