"""LoRA: what trains, what is refused, and the merged model at the end."""

import json

import pytest
import torch
from helpers.material import write_material
from helpers.tiny import tiny_model, tiny_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_unlearn
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.model.loading import apply_peft, load_model
from unlearn_trainer.teacher.cache import CachedTeacher
from unlearn_trainer.teacher.teachers import AdapterTeacher

peft = pytest.importorskip("peft", reason="the peft package is not installed")

TRAIN = "--do_train --max_steps 3 --learning_rate 1e-2 --use_peft --lora_r 2".split()


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "bloom"])
def test_merged_model_is_an_ordinary_one_with_the_same_logits(kind, tmp_path):
    out = tmp_path / "out"
    flags = [*write_material(tmp_path, kind=kind), "--output_dir", str(out), "--dtype", "float64"]
    run_unlearn.run([*flags, *TRAIN, "--merge_adapter"])
    merged, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    assert type(merged) is type(base) and merged.dtype == base.dtype
    assert merged.state_dict().keys() == base.state_dict().keys()
    before = logits(base)
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-9, atol=1e-9)
    assert (logits(merged) - before).abs().max() > 1e-2
    assert not (out / "adapter_config.json").exists()
    text = "ena enb enc"
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (out, tmp_path / "model")]
    assert len({str(tokenizer(text)["input_ids"]) for tokenizer in tokenizers}) == 1
    assert json.loads((out / "results.json").read_text())["config"]["merge_adapter"]


def test_the_adapter_is_merged_into_the_memorized_model(tmp_path):
    out = tmp_path / "out"
    flags = [*write_material(tmp_path), "--output_dir", str(out), "--memorize_first", "--memorize_epochs", "1"]
    run_unlearn.run([*flags, "--memorize_learning_rate", "1e-2", *TRAIN, "--merge_adapter"])
    base = AutoModelForCausalLM.from_pretrained(out / "memorized")
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)


def test_without_the_flag_the_adapter_alone_is_saved(tmp_path):
    out = tmp_path / "out"
    run_unlearn.run([*write_material(tmp_path), "--output_dir", str(out), *TRAIN])
    assert (out / "adapter_model.safetensors").exists() and (out / "tokenizer.json").exists()
    assert not (out / "model.safetensors").exists() and not (out / "adapter").exists()


def test_merging_needs_an_adapter():
    with pytest.raises(ConfigError, match="--merge_adapter .* add --use_peft"):
        ModelArguments("model", merge_adapter=True)


@pytest.mark.parametrize(("kind", "target"), [("llama", "q_proj"), ("llama-tied", "q_proj"), ("gpt2", "c_attn")])
def test_an_adapter_on_the_vocabulary_head_is_refused(kind, target):
    arguments = ModelArguments("model", use_peft=True, lora_target_modules=[f"{target},lm_head"])
    with pytest.raises(ConfigError, match=f"--lora_target_modules {target} lm_head: the vocabulary head .* leave it"):
        apply_peft(tiny_model(kind), arguments)
    apply_peft(tiny_model(kind), ModelArguments("model", use_peft=True, lora_target_modules=[target]))


def test_an_adapter_on_a_tied_embedding_is_not_merged():
    modules = ["embed_tokens", "q_proj"]
    arguments = ModelArguments("model", use_peft=True, lora_target_modules=modules, merge_adapter=True)
    with pytest.raises(ConfigError, match="--lora_target_modules embed_tokens q_proj: merging .* leave out the emb"):
        apply_peft(tiny_model("llama-tied"), arguments)
    apply_peft(tiny_model("llama"), arguments)
    apply_peft(tiny_model("llama-tied"), ModelArguments("model", use_peft=True, lora_target_modules=modules))


MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size_mlp": 48, "pad_token_id": 0}


@pytest.mark.parametrize(
    "kind, target, reason",
    [
        ("llama4_text", "router", "it returns other than a product"),
        ("mamba", "x_proj", "its weights are read by a kernel"),
    ],
)
def test_a_layer_that_cannot_have_an_adapter_is_left_out_and_refused_by_name(kind, target, reason):
    model = apply_peft(tiny_model(kind, state_size=8, **MIXTURE), ModelArguments("model", use_peft=True))
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert adapted and not any(name.endswith(target) for name in adapted)
    arguments = ModelArguments("model", use_peft=True, lora_target_modules=[target])
    with pytest.raises(ConfigError, match=rf"--lora_target_modules {target}: .*{target}.*({reason}|incompatible)"):
        apply_peft(tiny_model(kind, state_size=8, **MIXTURE), arguments)


def test_a_name_that_other_modules_have_too_is_written_out():
    # The blocks of its feed-forward networks are called 0 and 2, as the layers are.
    model = apply_peft(tiny_model("ctrl", n_embd=32, n_layer=2, n_head=4, dff=48), ModelArguments("m", use_peft=True))
    assert {name.rpartition(".")[2] for name, each in model.named_modules() if hasattr(each, "lora_A")} >= {"0", "2"}


def adapted(**settings):
    torch.manual_seed(1)
    return peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, **settings))


def train(folder, model, **changes):
    """The parameters that a training moves."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tiny_trainer(folder, model, max_steps=3, learning_rate=1e-2, **changes).train()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("teacher", ["adapter", "resident"])
def test_gradient_checkpointing_trains_the_adapter_alike(teacher, tmp_path):
    models = [adapted(target_modules="all-linear") for _ in range(2)]
    expected = {name for name, _ in models[0].named_parameters() if "lora_" in name}
    assert train(tmp_path, models[0], teacher=teacher) == expected
    assert train(tmp_path, models[1], teacher=teacher, gradient_checkpointing=True) == expected
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_modules_to_save_are_trained_whole(checkpointing, tmp_path):
    model = adapted(target_modules=["q_proj"], modules_to_save=["norm", "mlp"])
    expected = {name for name, _ in model.named_parameters() if "lora_" in name or "modules_to_save" in name}
    assert any("modules_to_save" in name for name in expected)
    assert train(tmp_path, model, gradient_checkpointing=checkpointing) == expected


@pytest.mark.parametrize("kind", ["llama", "xglm"])
def test_states_of_a_layer_are_read_through_an_adapter(kind, tmp_path):
    flags = [*write_material(tmp_path, kind=kind), "--output_dir", str(tmp_path / "out"), "--method", "rmu"]
    run_unlearn.run([*flags, *TRAIN])
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_folder_with_an_adapter_alone_is_loaded_merged(tmp_path):
    out = tmp_path / "out"
    run_unlearn.run([*write_material(tmp_path), "--output_dir", str(out), *TRAIN])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = logits(base)
    loaded = load_model(ModelArguments(str(out)))
    assert type(loaded) is type(base) and all(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(logits(loaded), logits(peft.PeftModel.from_pretrained(base, out)), rtol=1e-4, atol=1e-4)
    assert (logits(loaded) - before).abs().max() > 1e-2
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_config.json does not say which model it is for"):
        load_model(ModelArguments(str(out)))


def test_virtual_tokens_before_the_rows_are_refused(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ConfigError, match="PROMPT_TUNING puts virtual tokens before every row"):
        tiny_trainer(tmp_path, model=peft.get_peft_model(tiny_model(), config))


ADAPTERS = {
    "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
    "dora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True),
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def start_of(kind, state, folder):
    """A model under an adapter that is new, has been trained, was loaded from a folder, or is one of two."""
    torch.manual_seed(1)
    model = peft.get_peft_model(tiny_model(), ADAPTERS[kind]())
    if state == "new":
        return model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    if state == "loaded":
        model.save_pretrained(folder)
        model = peft.PeftModel.from_pretrained(tiny_model(), folder, is_trainable=True)
    if state == "second":
        model.add_adapter("other", ADAPTERS[kind]())  # new, and not the one in use
    return model


@pytest.mark.parametrize("teacher", ["auto", "resident", "cached"])
@pytest.mark.parametrize(
    "kind, state",
    [
        ("lora", "new"),
        ("lora", "trained"),
        ("lora", "loaded"),
        ("lora", "second"),
        ("dora", "trained"),
        ("ia3", "trained"),
        ("prefix", "trained"),
    ],
)
def test_the_teacher_is_the_model_at_the_start_whatever_its_adapter_has_learned(kind, state, teacher, tmp_path):
    model = start_of(kind, state, tmp_path / "adapter")
    settings = {"method": "kl", "forget_coef": 0.0, "retain_coef": 1.0, "teacher": teacher, "max_steps": 8}
    trainer = tiny_trainer(tmp_path / "run", model=model, per_device_train_batch_size=6, **settings)
    if teacher == "cached" and (kind, state) != ("lora", "new"):
        trainer.cache_teacher(8)
        assert isinstance(trainer.teacher, CachedTeacher)
    if teacher == "auto":
        assert isinstance(trainer.teacher, AdapterTeacher) == (state == "new")
    batch = next(iter(trainer.get_train_dataloader()))
    assert abs(trainer.compute_loss(trainer.model, batch).item()) < 1e-6
    # The model moves on, the teacher does not.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "other" not in name:
                parameter.add_(torch.randn_like(parameter))
    assert trainer.compute_loss(trainer.model, batch).item() > 1e-5


def test_an_adapter_that_has_been_trained_is_not_switched_off_for_the_teacher(tmp_path):
    settings = {"method": "lingtea", "teacher": "adapter"}
    with pytest.raises(ConfigError, match="--teacher adapter: the adapter has been trained .* choose --teacher resid"):
        tiny_trainer(tmp_path, model=start_of("lora", "trained", tmp_path), **settings)
    trainer = tiny_trainer(tmp_path, model=start_of("lora", "new", tmp_path), **settings)
    assert isinstance(trainer.teacher, AdapterTeacher)
