"""What Python code hands over in place of a loaded causal language model is refused in one line with the remedy."""

from pathlib import Path

import pytest
import torch
from helpers.tiny import LANGUAGES, VOCABULARY, tiny_config, tiny_model, tiny_multimodal, tiny_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, LlamaForCausalLM
from transformers import models as families

from unlearn_trainer.errors import ConfigError
from unlearn_trainer.trainer import UnlearnTrainer

SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0},
}
ENCODER_DECODER = {
    **{"vocab_size": VOCABULARY, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 1, "num_heads": 4},
    **{"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 0},
}


def made(name, **settings):
    """A tiny model of the class ``name`` of transformers."""
    import transformers

    its_class = getattr(transformers, name)
    return its_class(its_class.config_class(**settings)).eval()


def bare(kind):
    return AutoModel.from_config(AutoConfig.for_model(kind, **SIZES))


def adapted_classifier():
    return get_peft_model(made("LlamaForSequenceClassification", **SIZES), LoraConfig(task_type="SEQ_CLS", r=2))


NO_MODELS = {
    "a name": (lambda: "gpt2", "is the name gpt2;"),
    "a folder": (lambda: Path("outputs") / "x", "is the name outputs/x;"),
    "None": (lambda: None, "is None;"),
    "a class": (lambda: LlamaForCausalLM, "is the class LlamaForCausalLM;"),
    "a function that loads one": (lambda: lambda: tiny_model(), "is a function;"),
    "a configuration": (lambda: AutoConfig.for_model("llama"), "is a LlamaConfig;"),
    "weights": (lambda: tiny_model().state_dict(), "is a OrderedDict;"),
    "a module of torch": (lambda: torch.nn.Linear(2, 2), "is a Linear, no model of transformers;"),
    "a wrapped model": (lambda: torch.nn.DataParallel(tiny_model()), "is a DataParallel, no model of transformers;"),
    "a masked language model": (lambda: made("BertForMaskedLM", **SIZES), "(bert) is an encoder"),
    "another masked one": (lambda: made("XLMRobertaForMaskedLM", **SIZES), "(xlm-roberta) is an encoder"),
    "an encoder's classifier": (lambda: made("DistilBertForSequenceClassification", **SIZES), "is an encoder"),
    "an encoder without a head": (lambda: bare("bert"), "BertModel (bert) is an encoder"),
    "T5": (lambda: made("T5ForConditionalGeneration", **ENCODER_DECODER), "(t5) is an encoder-decoder"),
    "BART": (lambda: made("BartForConditionalGeneration", **ENCODER_DECODER), "(bart) is an encoder-decoder"),
    "a classifier": (lambda: made("LlamaForSequenceClassification", **SIZES), "(llama) has no head over"),
    "a tagger": (lambda: made("Qwen2ForTokenClassification", **SIZES), "(qwen2) has no head over"),
    "a classifier's adapter": (adapted_classifier, "LlamaForSequenceClassification (llama) has no head over"),
    "Llama without a head": (lambda: bare("llama"), "LlamaModel (llama) has no head over"),
    "GPT-2 without a head": (lambda: bare("gpt2"), "GPT2Model (gpt2) has no head over"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
@pytest.mark.parametrize("argument", ["model", "teacher"])
def test_what_is_no_loaded_causal_model_is_refused_with_the_remedy(kind, argument, tmp_path):
    make, said = NO_MODELS[kind]
    given = {"model": tiny_model(), argument: make()}
    if argument == "teacher" and given["teacher"] is None:
        given.pop("teacher")  # the default
        UnlearnTrainer(**given, args=tiny_config(tmp_path), **rows())
        return
    with pytest.raises(ConfigError) as told:
        UnlearnTrainer(**given, args=tiny_config(tmp_path), **rows())
    assert str(told.value).startswith(argument) and said in str(told.value)
    assert "AutoModelForCausalLM.from_pretrained" in str(told.value) and "\n" not in str(told.value)


def test_a_function_that_makes_the_model_is_refused(tmp_path):
    for model in (None, tiny_model()):
        with pytest.raises(ConfigError, match="takes no model_init: pass the loaded model"):
            UnlearnTrainer(model, tiny_config(tmp_path), **rows(), model_init=tiny_model)


MODELS = {
    "llama": tiny_model,
    "opt": lambda: tiny_model("opt"),
    "an adapter": lambda: get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", r=2)),
    "an adapter without a task": lambda: get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])),
    "an encoder as decoder": lambda: made("BertLMHeadModel", **SIZES, is_decoder=True),
    "a decoder of an encoder-decoder": lambda: families.bart.BartForCausalLM(
        families.bart.BartConfig(**ENCODER_DECODER)
    ),
    "a model of pictures too": tiny_multimodal,
    "a compiled model": lambda: torch.compile(tiny_model()),
}


@pytest.mark.parametrize("kind", MODELS)
def test_whatever_predicts_the_next_token_is_taken(kind, tmp_path):
    config = tiny_config(tmp_path, forget_objective="gradient_ascent", retain_objective="nll")
    UnlearnTrainer(MODELS[kind](), config, **rows())


def rows():
    return {"forget_dataset": tiny_rows(), "retain_dataset": tiny_rows(seed=1), "languages": LANGUAGES}
