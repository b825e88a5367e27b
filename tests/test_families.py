"""Families of all kinds of attention, positions, experts and state; with `-m sweep` all that transformers has."""

import pytest
import torch
from families import tiny_family
from family_checks import check_continuations

# Attention: multi-head, grouped, multi-query, latent, with sinks, windows, chunks, or chosen keys. Positions: rotary,
# learned, from 2, from padding on, sinusoidal, ALiBi, relative. Experts. State: SSM, RWKV, linear attention, gates.
KINDS = [
    *("llama", "gpt2", "bloom", "opt", "xglm", "roberta", "gemma3_text", "gpt_oss", "mixtral", "deepseek_v3"),
    *("falcon_h1", "mamba", "rwkv", "recurrent_gemma", "openai-gpt", "biogpt", "gpt_bigcode", "qwen3_next"),
    *("mpt", "ctrl", "llama4_text", "whisper"),
]


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_continuations_are_the_model_s_own(family, dtype):
    check_continuations(tiny_family(family, dtype=dtype))
