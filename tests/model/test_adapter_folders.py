"""A folder that holds nothing but an adapter, as a model to start from: resized embeddings, chains and cycles."""

import dataclasses
import json
import shutil

import pytest
import torch
from helpers.material import LANGUAGES, LETTERS, write_material
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_unlearn
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.memory.estimate import build_on_meta
from unlearn_trainer.model.loading import load_config, load_model, load_tokenizer

peft = pytest.importorskip("peft", reason="the peft package is not installed")

ROWS = 3 + len(LANGUAGES) * len(LETTERS)
MORE = ["<new1>", "<new2>", "new3"]
RESIZED = ROWS + len(MORE)
TARGETS = {"llama": "q_proj", "llama-tied": "q_proj", "gpt2": "c_attn", "bloom": "query_key_value"}
EMBEDDINGS = {"llama": "embed_tokens", "llama-tied": "embed_tokens", "gpt2": "wte", "bloom": "word_embeddings"}
# How an adapter with a resized embedding is made: what LoRA is told, given the embedding's name, and what saving is.
WAYS = {
    "found by peft": (lambda name: {}, {}),
    "saved whole": (lambda name: {}, {"save_embedding_layers": True}),
    "modules to save": (lambda name: {"modules_to_save": [name, "lm_head"]}, {}),
    "embedding to save": (lambda name: {"modules_to_save": [name]}, {}),
    "head to save": (lambda name: {"modules_to_save": ["lm_head"]}, {}),
    "shared, to save": (lambda name: {"modules_to_save": [name], "ensure_weight_tying": True}, {}),
    "trainable tokens": (lambda name: {"trainable_token_indices": [ROWS, ROWS + 1]}, {}),
    "lora on the embedding": (lambda name: {"target_modules": [name]}, {}),
    "lora on both": (lambda name: {"target_modules": [name, "lm_head"]}, {}),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, ROWS + len(MORE))[None]).logits


def write_adapter(folder, base, kind, way="found by peft", seed=1, rows=RESIZED):
    """An adapter alone, with random weights, on the model in ``base``; gives the logits of the model under it."""
    settings, saved = WAYS[way]
    settings = settings(EMBEDDINGS[kind])
    settings["target_modules"] = [TARGETS[kind], *settings.get("target_modules", ())]
    model = load_model(ModelArguments(str(base)))
    model.name_or_path = str(base)
    torch.manual_seed(seed)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, **saved)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(MORE)
    tokenizer.save_pretrained(folder)
    return logits(model) if rows == RESIZED else None


def from_lossy(kind, way):
    """An own head for a vocabulary that grew, of which peft saves nothing beside LoRA on the embedding."""
    return kind == "llama" and way == "lora on the embedding"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TARGETS)
def test_an_adapter_with_a_resized_embedding_is_the_model_that_was_saved(kind, way, tmp_path):
    write_material(tmp_path, kind=kind)
    expected = write_adapter(tmp_path / "adapter", tmp_path / "model", kind, way)
    arguments = ModelArguments(str(tmp_path / "adapter"))
    tokenizer = load_tokenizer(arguments)
    assert tokenizer.convert_tokens_to_ids(MORE) == [ROWS, ROWS + 1, ROWS + 2]
    if from_lossy(kind, way):
        with pytest.raises(ConfigError, match="no values for the rows that lm_head got, which would be random. Save"):
            load_model(arguments, tokenizer)
        return
    model = load_model(arguments, tokenizer)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    config = load_config(arguments)
    assert config.vocab_size == model.config.vocab_size == ROWS + len(MORE)
    assert config.tie_word_embeddings == model.config.tie_word_embeddings
    counted = sum(parameter.numel() for parameter in build_on_meta(arguments).parameters())
    assert counted == sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind, way", [("llama", "lora on both"), ("gpt2", "lora on the embedding")])
def test_an_adapter_on_an_embedding_as_it_was(kind, way, tmp_path):
    write_material(tmp_path, kind=kind)
    write_adapter(tmp_path / "adapter", tmp_path / "model", kind, way, rows=ROWS)
    shutil.copy(tmp_path / "model" / "tokenizer.json", tmp_path / "adapter")
    shutil.copy(tmp_path / "model" / "tokenizer_config.json", tmp_path / "adapter")
    arguments = ModelArguments(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.arange(3, ROWS)[None]
    with torch.no_grad():
        found = load_model(arguments, load_tokenizer(arguments))(ids).logits
        torch.testing.assert_close(found, expected(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_tokenizer_larger_than_the_resized_embedding_is_refused(tmp_path):
    write_material(tmp_path)
    write_adapter(tmp_path / "adapter", tmp_path / "model", "llama", rows=ROWS + 1)
    arguments = ModelArguments(str(tmp_path / "adapter"))
    tokenizer = load_tokenizer(arguments)
    with pytest.raises(ConfigError, match=f"ids up to {ROWS + 2}, but the embedding of .*adapter ends at {ROWS}: "):
        load_model(arguments, tokenizer)


def test_an_adapter_without_a_tokenizer_has_its_base_s(tmp_path):
    write_material(tmp_path)
    write_adapter(tmp_path / "adapter", tmp_path / "model", "llama")
    for file in (tmp_path / "adapter").glob("*token*"):
        file.unlink()
    assert len(load_tokenizer(ModelArguments(str(tmp_path / "adapter")))) == ROWS


@pytest.mark.parametrize("damage", ["missing", "cut", "of another model", "no kind"])
def test_an_adapter_that_cannot_be_put_on_its_base_is_refused(damage, tmp_path):
    write_material(tmp_path)
    folder = tmp_path / "adapter"
    write_adapter(folder, tmp_path / "model", "llama")
    weights, described = folder / "adapter_model.safetensors", json.loads((folder / "adapter_config.json").read_text())
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "of another model":
        write_material(tmp_path / "other", hidden_size=64)
        described["base_model_name_or_path"] = str(tmp_path / "other" / "model")
    else:
        described["peft_type"] = None
    (folder / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=f"--model_name_or_path {folder}: the adapter"):
        load_model(ModelArguments(str(folder)))


@pytest.mark.parametrize(
    "kind, way, flags",
    [
        ("llama", "found by peft", []),
        ("gpt2", "lora on the embedding", []),
        ("llama-tied", "modules to save", ["--use_peft", "--lora_r", "2"]),
        ("llama", "trainable tokens", ["--use_peft", "--lora_r", "2", "--merge_adapter"]),
    ],
)
def test_a_run_starts_from_it_and_is_audited(kind, way, flags, tmp_path):
    common = write_material(tmp_path, kind=kind)
    write_adapter(tmp_path / "adapter", tmp_path / "model", kind, way)
    common += ["--model_name_or_path", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "out")]
    run_unlearn.run([*common, "--estimate_memory"])
    audit = ["--do_eval", "--audit", "--audit_checks", "memorization,quantization"]
    run_unlearn.run([*common, "--do_train", "--max_steps", "2", *flags, *audit])
    trained = load_model(ModelArguments(str(tmp_path / "out")))
    assert trained.config.vocab_size == ROWS + len(MORE)
    found = json.loads((tmp_path / "out" / "audit" / "audit.json").read_text())
    assert found["models"]["before"] is not None


def link(folder, base):
    """An adapter's folder that names ``base``, with a tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("entered", [False, True])
def test_adapters_in_a_circle_are_named(names, relative, entered, tmp_path):
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        link(tmp_path / name, f"../{base}" if relative else str(tmp_path / base))
    link(tmp_path / "entry", str(tmp_path / "a"))
    arguments = ModelArguments(str(tmp_path / ("entry" if entered else "a")))
    for load in (load_config, load_model, load_tokenizer):
        with pytest.raises(ConfigError, match="leads back to it .*; name the folder of a whole model as base") as told:
            load(arguments)
        circle = str(told.value).partition("leads back to it (")[2].partition(")")[0]
        assert circle == " -> ".join(str(tmp_path / name) for name in [*names, names[0]])


@pytest.mark.parametrize("written", ["absolute", "relative"])
def test_an_adapter_on_an_adapter_is_merged_after_it(written, tmp_path, monkeypatch):
    write_material(tmp_path)
    write_adapter(tmp_path / "first", tmp_path / "model", "llama")
    write_adapter(tmp_path / "second", tmp_path / "first", "llama", "modules to save", seed=2)
    expected = logits(load_model(ModelArguments(str(tmp_path / "second"))))
    first = logits(load_model(ModelArguments(str(tmp_path / "first"))))
    assert (expected - first).abs().max() > 1e-2
    if written == "relative":
        for name, base in (("first", "../model"), ("second", "../first")):
            file = tmp_path / name / "adapter_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
        monkeypatch.chdir(tmp_path.parent)
    arguments = ModelArguments(str(tmp_path / "second"))
    model = load_model(arguments, load_tokenizer(arguments))
    assert torch.equal(logits(model), expected)
    assert load_config(arguments).vocab_size == ROWS + len(MORE)
    by_hand = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    by_hand.resize_token_embeddings(ROWS + len(MORE), mean_resizing=False)
    for name in ("first", "second"):
        by_hand = peft.PeftModel.from_pretrained(by_hand, tmp_path / name).merge_and_unload()
    torch.testing.assert_close(logits(by_hand), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": ""}']
)
def test_an_adapter_that_names_no_base_is_refused(content, tmp_path):
    (tmp_path / "adapter_config.json").write_text(content)
    for load in (load_config, load_model, load_tokenizer):
        with pytest.raises(ConfigError, match="adapter_config.json does not say which model it is for"):
            load(dataclasses.replace(ModelArguments(str(tmp_path))))
