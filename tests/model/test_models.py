import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    XLMConfig,
    XLMWithLMHeadModel,
)

from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.model.loading import apply_peft, check_same_vocabulary, load_model, load_tokenizer

WORDS = ["<unk>", "<pad>", "</s>", *"abcdefghij"]


def make_tokenizer(**special):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def make_llama(vocab_size=13):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes))


def save(folder, model=None, tokenizer=None):
    for part in (model, tokenizer):
        if part is not None:
            part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", make_llama(), make_tokenizer(pad_token="<pad>", eos_token="</s>"))


def test_loads_what_was_saved(folder):
    arguments = ModelArguments(folder)
    tokenizer = load_tokenizer(arguments)
    model = load_model(arguments, tokenizer)
    assert tokenizer.pad_token == "<pad>" and tokenizer("a j")["input_ids"] == [3, 12]
    expected = make_llama().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype(tmp_path, dtype):
    folder = save(tmp_path, make_llama().to(torch.bfloat16))
    assert load_model(ModelArguments(folder, dtype=dtype)).dtype == getattr(torch, dtype)
    assert load_model(ModelArguments(folder)).dtype == torch.float32
    assert load_model(ModelArguments(folder, dtype="auto")).dtype == torch.bfloat16


def test_attention_implementation(folder):
    assert load_model(ModelArguments(folder, attn_implementation="eager")).config._attn_implementation == "eager"


def test_a_missing_padding_token_becomes_the_end_of_text(tmp_path):
    folder = save(tmp_path, tokenizer=make_tokenizer(eos_token="</s>"))
    assert load_tokenizer(ModelArguments("unused", tokenizer_name=folder)).pad_token_id == WORDS.index("</s>")


def test_a_tokenizer_without_padding_or_end_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a padding nor an end-of-text token"):
        load_tokenizer(ModelArguments(save(tmp_path, make_llama(), make_tokenizer())))


def test_a_tokenizer_with_too_many_words_is_refused(tmp_path):
    arguments = ModelArguments(save(tmp_path, make_llama(vocab_size=10), make_tokenizer(pad_token="<pad>")))
    with pytest.raises(ConfigError, match="ids up to 12, .* ends at 9: .* --tokenizer_name"):
        load_model(arguments, load_tokenizer(arguments))


def test_a_padding_token_beyond_the_embedding_is_refused(tmp_path):
    arguments = ModelArguments(save(tmp_path, make_llama(), make_tokenizer(pad_token="[PAD]")))
    with pytest.raises(ConfigError, match="ids up to 13"):
        load_model(arguments, load_tokenizer(arguments))


def test_an_unused_placeholder_beyond_the_embedding_is_no_mistake(tmp_path):
    tokenizer = make_tokenizer(pad_token="<pad>", additional_special_tokens=["<image>"])
    assert len(tokenizer) == len(WORDS) + 1
    arguments = ModelArguments(save(tmp_path, make_llama(), tokenizer))
    assert load_model(arguments, load_tokenizer(arguments)).config.vocab_size == len(WORDS)


TINY_T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
TINY_BERT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MT5ForConditionalGeneration(MT5Config(**TINY_T5)), "mt5.* is an encoder-decoder"),
        (lambda: BertForMaskedLM(BertConfig(**TINY_BERT)), "bert.* is an encoder"),
    ],
)
def test_other_kinds_of_models_are_refused(tmp_path, make, message):
    with pytest.raises(ConfigError, match=message):
        load_model(ModelArguments(save(tmp_path, make())))


def test_bert_trained_as_a_decoder_is_a_causal_model(tmp_path):
    folder = save(tmp_path, BertLMHeadModel(BertConfig(**TINY_BERT, is_decoder=True)))
    assert isinstance(load_model(ModelArguments(folder)), BertLMHeadModel)


@pytest.mark.parametrize("causal", [True, False])
def test_xlm_is_a_causal_model_where_it_says_so(causal, tmp_path):
    config = XLMConfig(vocab_size=20, emb_dim=8, n_layers=1, n_heads=2, causal=causal)
    folder = save(tmp_path, XLMWithLMHeadModel(config))
    if causal:
        assert isinstance(load_model(ModelArguments(folder)), XLMWithLMHeadModel)
    else:
        with pytest.raises(ConfigError, match="xlm.* is an encoder"):
            load_model(ModelArguments(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "--model_name_or_path ./nowhere: there is no such folder"),
        ("some/folder/here", "there is no such folder"),
        ("some/repository", "--model_name_or_path some/repository .no folder here, so it was looked for on the Hub"),
        ("nowhere", "looked for on the Hub"),
    ],
)
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_is_nowhere(load, name, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=message):
        load(ModelArguments(name))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a folder.*no model configuration could be loaded"):
        load_model(ModelArguments(str(tmp_path)))


def test_a_repository_s_own_code_is_never_run(folder, tmp_path):
    config = json.loads((Path(folder) / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    (Path(folder) / "config.json").write_text(json.dumps(config))
    (Path(folder) / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    with pytest.raises(ConfigError, match="no model configuration could be loaded"):
        load_model(ModelArguments(folder))
    assert not (tmp_path / "ran").exists()


def test_gguf(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    path = tmp_path / "tiny.gguf"
    model = make_llama(vocab_size=32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        writer.add_tensor(names.get_name(stem) + ".weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load_model(ModelArguments(str(tmp_path), gguf_file="tiny.gguf"))
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    # A plain model: a Trainer takes it, it is saved in the ordinary format and read again from there.
    Trainer(loaded, TrainingArguments(str(tmp_path / "trainer"), use_cpu=True, report_to=[]))
    loaded.save_pretrained(tmp_path / "plain")
    again = load_model(ModelArguments(str(tmp_path / "plain")))
    assert not hasattr(again.config, "quantization_config")
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_peft_trains_an_adapter_only(folder):
    pytest.importorskip("peft", reason="the peft package is not installed")
    arguments = ModelArguments(folder, use_peft=True, lora_r=2)
    model = apply_peft(load_model(arguments), arguments)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert any("down_proj" in name for name in trained) and not any("lm_head" in name for name in trained)
    assert model.peft_config["default"].r == 2


def test_peft_modules_can_be_named(folder):
    pytest.importorskip("peft", reason="the peft package is not installed")
    arguments = ModelArguments(folder, use_peft=True, lora_target_modules=["q_proj,v_proj"])
    model = apply_peft(load_model(arguments), arguments)
    adapted = {
        name.split(".lora_")[0].split(".")[-1]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert adapted == {"q_proj", "v_proj"}
    arguments = ModelArguments(folder, use_peft=True, lora_target_modules=["nothing"])
    with pytest.raises(ConfigError, match="--lora_target_modules nothing"):
        apply_peft(load_model(arguments), arguments)


def test_without_peft_the_model_stays_as_it_is(folder):
    model = load_model(ModelArguments(folder))
    assert apply_peft(model, ModelArguments(folder)) is model


def test_vocabularies_of_different_sizes_are_refused():
    check_same_vocabulary(make_llama(), make_llama())
    with pytest.raises(ConfigError, match="13 tokens and its teacher one of 14"):
        check_same_vocabulary(make_llama(), make_llama(vocab_size=14))
