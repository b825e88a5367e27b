"""Families of all kinds of attention, positions, experts and state; with `-m sweep` all that transformers has."""

import itertools

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from helpers.families import FAMILIES, LEFT_OUT, NOT_CAUSAL, ONLY_FLOAT32, tiny_family
from helpers.family_checks import (
    check_adapter,
    check_all,
    check_lens,
    check_loss,
    check_steering,
    plain_logits,
    rows_of_ids,
)
from helpers.tiny import LANGUAGES, tiny_config, tiny_rows

from unlearn_trainer.errors import ConfigError
from unlearn_trainer.model.layers import restrict_training, transformer_blocks
from unlearn_trainer.trainer import UnlearnTrainer

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


# Beside a tower for pictures or sound of as many layers, and a decoder with more layers than its lost encoder.
@pytest.mark.parametrize(
    "family", ["gemma3", "got_ocr2", "git", "phi4_multimodal", "moss_transcribe_diarize", "blenderbot"]
)
def test_lens_and_steering_go_by_the_blocks_of_the_language_model(family, tmp_path):
    model = tiny_family(family)
    (blocks,) = transformer_blocks(model)
    ran = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    plain_logits(model, rows_of_ids((5,))[0])
    assert ran == list(range(len(blocks)))
    assert check_lens(tiny_family(family), tmp_path) is None
    assert check_steering(tiny_family(family)) is None


@pytest.mark.parametrize("family", ["gemma3", "got_ocr2", "blenderbot"])
def test_the_layers_that_are_trained_are_those_of_the_language_model(family):
    model = restrict_training(tiny_family(family), "1")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".layers.1." in name and "vision" not in name for name in trained), trained


def test_what_sees_the_tokens_it_predicts_is_refused():
    for family in sorted(NOT_CAUSAL & set(FAMILIES)):
        with pytest.raises(ConfigError, match="from those behind it"):
            check_loss(tiny_family(family))


# By kind of position table: how many tokens a row may have of 128 configured ones; None: as many as it likes.
LONGEST = {
    **dict.fromkeys(["gpt2", "opt", "biogpt", "gpt_bigcode", "whisper", "bart"], 128),  # learned, from 0 or from 2
    **dict.fromkeys(["ctrl", "openai-gpt", "gptj", "codegen", "roformer"], 128),  # computed once, or a mask that ends
    **{"mpt": 128, "roberta": 127, "camembert": 127},  # slopes laid out once; places kept for padding
    **dict.fromkeys(
        ["xglm", "bloom", "llama", "mixtral", "falcon_h1", "mamba", "rwkv"]
    ),  # grows, ALiBi, rotary, state
}


@pytest.mark.parametrize(
    ("family", "split"), zip(LONGEST, itertools.cycle(["forget", "retain", "valid"]), strict=False)
)
def test_a_row_is_refused_from_one_token_beyond_what_the_model_can_place(family, split, tmp_path):
    limit = LONGEST[family]

    def trainer(size):
        splits = {name: tiny_rows(2, seed=seed) for seed, name in enumerate(("forget", "retain", "valid"))}
        long = rows_of_ids((size,))[0]
        row = splits[split][0] | {"input_ids": long, "labels": long, "item": 7}
        splits[split] = concatenate_datasets([splits[split], Dataset.from_list([row], splits[split].features)])
        config = tiny_config(tmp_path, max_steps=1, per_device_train_batch_size=8)
        rows = splits["forget"], splits["retain"]
        return UnlearnTrainer(tiny_family(family), config, *rows, languages=LANGUAGES, eval_dataset=splits["valid"])

    made = trainer(limit or 129)
    made.train()
    made.evaluate()
    if limit is not None:
        with pytest.raises(
            ConfigError, match=f"the {split} split has a row of {limit + 1} tokens, .* ends at {limit}"
        ):
            trainer(limit + 1)


@pytest.mark.sweep
@DTYPES
@pytest.mark.parametrize("family", [each for each in FAMILIES if each not in NOT_CAUSAL])
def test_every_family_is_what_its_plain_forward_says(family, dtype, tmp_path, record_property):
    record_property("family", family)
    record_property("dtype", str(dtype).removeprefix("torch."))
    if family in LEFT_OUT:
        pytest.skip(LEFT_OUT[family])
    if family in ONLY_FLOAT32 and dtype == torch.bfloat16:
        with pytest.raises(RuntimeError, match="dtype"):
            plain_logits(tiny_family(family, dtype=dtype), rows_of_ids((140,))[0])
        pytest.skip("its own forward does not run in bfloat16")
    for name, value in check_all(tiny_family(family, dtype=dtype), tmp_path).items():
        record_property(name, value)


@pytest.mark.sweep
@pytest.mark.parametrize("family", [each for each in FAMILIES if each not in NOT_CAUSAL | set(LEFT_OUT)])
def test_the_default_adapter_of_every_family_is_trained(family, record_property):
    record_property("family", family)
    check_adapter(tiny_family(family))
