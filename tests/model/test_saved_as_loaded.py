"""Every file of a saved model but its weights is that of the start model, loaded and saved: a run leaves no marks."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from helpers.material import write_material
from helpers.tiny import tiny_model
from test_tokenize import FAMILIES, trained
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import run_unlearn
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.model.loading import load_tokenizer
from unlearn_trainer.trainer import UnlearnTrainer

WEIGHTS = (".safetensors", ".bin", ".index.json")
SETTINGS = "--do_train --max_steps 1 --memorize_epochs 0.1 --max_seq_length 8 --method npo --learning_rate 1e-3"


def with_marks(folder, family, **changes):
    """Give the model in ``folder`` another tokenizer, and settings that a run might change: files as others made."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    backend = Tokenizer.from_str(trained(family))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", model_max_length=77, **changes
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    if "pad_token" in changes:  # as some repositories have it
        tokenizer.backend_tokenizer.enable_truncation(60, stride=2, direction="left")
        tokenizer.backend_tokenizer.enable_padding(length=60, pad_id=0, pad_token="<pad>", direction="left")
    kind = type(model.config).model_type
    again = tiny_model(kind, vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=1, eos_token_id=[3, 2])
    again.config.use_cache = "pad_token" in changes
    again.generation_config.update(do_sample=True, top_k=7, temperature=0.7, eos_token_id=[3, 2], bos_token_id=1)
    shutil.rmtree(folder)
    again.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def files_of(folder):
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return {name: content for name, content in files.items() if not name.endswith(WEIGHTS)}


def saved_again(start, folder, dtype=torch.float32):
    """The files of the start model, loaded and saved without any run."""
    AutoModelForCausalLM.from_pretrained(start, dtype=dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)
    return files_of(folder)


def check_same(expected, folder):
    actual = files_of(folder)
    for name, content in expected.items():
        if name.endswith(".json"):
            assert json.loads(actual[name]) == json.loads(content), (folder.name, name)
        assert actual[name] == content, (folder.name, name)


MATERIAL = {
    "gpt2 with dropout, byte-level": ("gpt2", "byte-level", {}, ["--attn_implementation", "eager"]),
    "llama, unigram, saved truncating and padding": ("llama", "unigram", {"pad_token": "<pad>"}, []),
    "xglm, word pieces, without a padding token": ("xglm", "word-piece", {"bos_token": "<s>"}, ["--bf16"]),
}


@pytest.mark.parametrize("name", MATERIAL)
def test_all_stages_leave_the_files_of_the_start_model(tmp_path, name):
    kind, family, changes, flags = MATERIAL[name]
    assert family in FAMILIES
    common = write_material(tmp_path, 4, kind)
    with_marks(tmp_path / "model", family, **changes)
    expected = saved_again(tmp_path / "model", tmp_path / "again")
    for out in ("cold", "warm"):
        stages = ["--memorize_first", "--train_never_seen"] if out == "cold" else ["--use_peft", "--merge_adapter"]
        run_unlearn.run([*common, "--output_dir", str(tmp_path / out), *SETTINGS.split(), *stages, *flags])
    for folder in ("cold", "cold/memorized", "cold/never_seen", "warm"):
        check_same(expected, tmp_path / folder)
    tokenizer = {name: content for name, content in expected.items() if "token" in name or "chat" in name}
    check_same(tokenizer, tmp_path / "warm" / "adapter")


@pytest.mark.parametrize("saves_checkpoints", [False, True])
def test_the_trainer_by_itself_leaves_no_marks(tmp_path, saves_checkpoints):
    write_material(tmp_path, 4, "gpt2")
    with_marks(tmp_path / "model", "byte-level")
    expected = saved_again(tmp_path / "model", tmp_path / "again")
    tokenizer = load_tokenizer(ModelArguments(str(tmp_path / "model")))
    assert tokenizer.pad_token == "</s>"
    rows = Dataset.from_list(
        [{"input_ids": [n, 5, 6, 7], "labels": [n, 5, 6, 7], "language": 0, "item": n} for n in range(3)]
    )
    trainer = UnlearnTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        UnlearnConfig(
            output_dir=str(tmp_path / "out"),
            **{"use_cpu": True, "report_to": [], "disable_tqdm": True, "max_steps": 1, "method": "npo"},
            save_strategy="steps" if saves_checkpoints else "no",
            save_steps=1,
        ),
        rows,
        rows,
        ["en"],
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.model.config.use_cache is False and tokenizer.pad_token == "</s>"
    trainer.save_model(str(tmp_path / "saved"))
    check_same(expected, tmp_path / ("out/checkpoint-1" if saves_checkpoints else "saved"))
    assert trainer.model.config.use_cache is False and tokenizer.pad_token == "</s>"


def test_the_built_in_model_is_saved_as_it_was_built(tmp_path):
    out = tmp_path / "out"
    flags = "--data_dir synthetic --model_name_or_path synthetic --use_cpu --disable_tqdm true --report_to none"
    run_unlearn.run(
        [*flags.split(), "--output_dir", str(out), *SETTINGS.replace("8", "64").split(), "--save_strategy", "no"]
    )
    check_same(saved_again(out / "synthetic" / "model", tmp_path / "again"), out)
