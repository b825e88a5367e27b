"""What a user can get wrong: each mistake ends with exit code 2 and one line that says where it is and how to mend it.

Every case runs the real command in this process, on real files and a real tiny model, and an output folder with an
earlier run in it, which has to come out as it went in.
"""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny import LANGUAGES, tiny_config, tiny_model, tiny_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

import run_unlearn
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.data import load_splits, tokenize_splits
from unlearn_trainer.errors import ConfigError, DataError
from unlearn_trainer.trainer import UnlearnTrainer

WORDS = ["<unk>", "<pad>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
VOCABULARY = len(WORDS)
TINY_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 2,
}
TINY_T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
TINY_BERT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SPLITS = {
    "forget": [{"en": "a b c d", "sw": "d c b a"}, {"en": "b c d e", "sw": "e d c b"}],
    "retain": [{"en": "f g h i", "sw": "i h g f"}, {"en": "g h i j", "sw": "j i h g"}],
    "valid": [{"en": "k l m n", "sw": "n m l k"}],
}


def make_tokenizer(**special):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def make_llama(vocab_size=VOCABULARY):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **TINY_LLAMA))


def make_gpt2():
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=1, n_head=2, **ids))


def write_jsonl(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="session")
def start_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "model"
    make_llama().save_pretrained(folder)
    make_tokenizer(pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return folder


class World:
    """The folders of one case: data and model as they should be, and an output folder with an earlier run in it."""

    def __init__(self, folder: Path, start_model: Path):
        self.folder, self.model = folder, folder / "model"
        self.data, self.output = folder / "data", folder / "out"
        shutil.copytree(start_model, self.model)
        self.data.mkdir()
        for split, rows in SPLITS.items():
            write_jsonl(self.data / f"{split}.jsonl", rows)
        self.output.mkdir()
        (self.output / "notes.md").write_bytes(b"on an earlier run")
        (self.output / "audit.json").write_bytes(b"{}")
        self.flags = {
            "model_name_or_path": self.model,
            "data_dir": self.data,
            "output_dir": self.output,
            "max_seq_length": 16,
            "report_to": "none",
        }

    def argv(self, extra=()):
        named = [word for name, value in self.flags.items() for word in (f"--{name}", str(value))]
        return [*named, "--disable_tqdm", "--do_train", "--do_eval", "--use_cpu", "--max_steps", "1", *extra]

    def contents(self):
        return {path.relative_to(self.output): path.read_bytes() for path in self.output.rglob("*") if path.is_file()}


@pytest.fixture
def world(tmp_path, start_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return World(tmp_path, start_model)


def assert_refused(world, argv, words, capfd, code=2, start="error: "):
    """The command ends with ``code`` and one last line that holds ``words``; the output folder is as it was."""
    before = world.contents()
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_unlearn.main(argv)
    stderr = capfd.readouterr().err
    message = stderr.splitlines()[-1]
    assert ended.value.code == code
    assert message.startswith(start), stderr
    assert "Traceback (most recent" not in stderr and stderr.count(f"\n{start}") + stderr.startswith(start) == 1
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert world.contents() == before


# ---- mistakes: each of these returns a function that makes one, given the world, and returns the flags to add -------


def row(split, *rows):
    """Rows after the two or so good ones of a split."""

    def make(world):
        write_jsonl(world.data / f"{split}.jsonl", [*SPLITS[split], *rows])
        return []

    return make


def only(split, *rows):
    """These rows instead of a split's own."""

    def make(world):
        write_jsonl(world.data / f"{split}.jsonl", rows)
        return []

    return make


def raw(split, content):
    def make(world):
        (world.data / f"{split}.jsonl").write_bytes(content)
        return []

    return make


def copied(split, name):
    def make(world):
        shutil.copy(world.data / f"{split}.jsonl", world.data / name)
        return []

    return make


def without(split):
    def make(world):
        (world.data / f"{split}.jsonl").unlink()
        return []

    return make


def flags(*words):
    return lambda world: list(words)


def instead(**values):
    """Other values of the flags that every case gives; None leaves a flag out."""

    def make(world):
        world.flags |= values
        for name in [name for name, value in values.items() if value is None]:
            del world.flags[name]
        return []

    return make


def json_file(settings):
    def make(world):
        (world.folder / "my_run.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
        return ["my_run.json"]

    return make


def in_output(name, content, *words):
    """A file left in the output folder by an earlier run, and flags."""

    def make(world):
        path = world.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return list(words)

    return make


def model(build, tokenizer=None):
    """Another model in the model's folder, with its tokenizer or the one that is there."""

    def make(world):
        for path in world.model.glob("*.safetensors"):
            path.unlink()
        build().save_pretrained(world.model)
        if tokenizer is not None:
            tokenizer().save_pretrained(world.model)
        return []

    return make


def unlink(name):
    def make(world):
        (world.model / name).unlink()
        return []

    return make


def broken(name, content):
    def make(world):
        (world.model / name).write_bytes(content)
        return []

    return make


def config(**changes):
    def make(world):
        path = world.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return []

    return make


def other_model(name):
    def make(world):
        BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **TINY_BERT)).save_pretrained(world.folder / name)
        return []

    return make


def copied_model(name, pattern="*"):
    """A folder of the user's with the model, or with the files of it that match."""

    def make(world):
        (world.folder / name).mkdir()
        for path in world.model.glob(pattern):
            shutil.copy(path, world.folder / name)
        return []

    return make


def both(*mistakes):
    return lambda world: [word for mistake in mistakes for word in mistake(world)]


def cloze(prompt="a b <mask>", answers=("c",), candidates=("c", "d")):
    return {"prompt": {"en": prompt}, "answers": {"en": list(answers)}, "candidates": {"en": list(candidates)}}


DATA = {
    "broken JSON": (row("forget", '{"en": "a b'), ["forget.jsonl:3: broken JSON", "one whole JSON object"]),
    "a CSV file": (raw("retain", b"en,sw\na,b\n"), ["retain.jsonl:1: comma-separated values", "load_dataset('csv'"]),
    "a list": (row("forget", ["a b"]), ["forget.jsonl:3", "must be a JSON object"]),
    "unknown key": (row("forget", {"promt": {"en": "a <mask>"}, "answers": {"en": ["b"]}}), ["forget.jsonl:3"]),
    "unknown key of a known row": (
        row("retain", {**cloze(), "candidate": {"en": ["c"]}}),
        ["retain.jsonl:3", "'candidate'", "did you mean 'candidates'?"],
    ),
    "key twice": (row("forget", '{"en": "a b", "en": "c d"}'), ["forget.jsonl:3", "'en' occurs twice", "keep one"]),
    "empty text": (
        row("retain", {"en": "a", "sw": "  "}),
        ["retain.jsonl:3: language 'sw'", "is empty", "leave the language out"],
    ),
    "null text": (row("valid", {"en": "a", "sw": None}), ["valid.jsonl:2: language 'sw'", "leave out a language"]),
    "number for text": (row("forget", {"en": "a", "sw": 7}), ["forget.jsonl:3: language 'sw'", "string, not 7"]),
    "answer not among candidates": (
        row("forget", cloze(candidates=("d", "e"))),
        ["forget.jsonl:3: language 'en'", "answer 1 is not among its candidates", "add it"],
    ),
    "no mask": (row("forget", cloze("a b")), ["forget.jsonl:3: language 'en'", "no <mask>", "write exactly one"]),
    "two masks": (row("forget", cloze("<mask> <mask>")), ["forget.jsonl:3: language 'en'", "2 <mask>", "exactly one"]),
    "language of one field only": (
        row("forget", {"question": {"en": "a", "sw": "b"}, "answer": {"en": "c"}}),
        ["forget.jsonl:3: language 'sw'", "'answer'", "leave the language out"],
    ),
    "integer identifier beside translations": (
        row("forget", {"id": 1, "en": "m n", "sw": "n m"}),
        ["forget.jsonl:3: 1 is no text", "Indonesian", "take an identifier out of the row"],
    ),
    "identifiers beside translations": (
        only("forget", {"id": "forget-3-doc", "en": "a b c"}, {"id": "forget-4-doc", "en": "b c d"}),
        ["forget.jsonl:1", "looks like an identifier", "Indonesian", "take an identifier out of the row"],
    ),
    "column beside translations": (
        row("retain", {"source": "news", "en": "a"}),
        ["retain.jsonl:3: 'source'", "nor a language code", "take out of the row"],
    ),
    "flat rows with the same id": (
        row("retain", *({"text": text, "language": "en", "id": 4} for text in "pq")),
        ["retain.jsonl:4: id '4'", "'en'", "retain.jsonl:3", "its own id"],
    ),
    "not UTF-8": (raw("forget", '{"en": "é"}\n'.encode("latin-1")), ["forget.jsonl:1: not valid UTF-8", "as UTF-8"]),
    "UTF-16": (raw("valid", '{"en": "a"}\n'.encode("utf-16")), ["valid.jsonl:1: not valid UTF-8", "as UTF-8"]),
    "empty forget": (only("forget"), ["data/forget.jsonl: the forget split is empty", "--forget_file"]),
    "empty valid": (only("valid"), ["data/valid.jsonl: the valid split is empty", "--valid_file"]),
    "no forget": (without("forget"), ["no forget.jsonl", "--forget_file"]),
    "no retain": (without("retain"), ["--retain_objective lingtea needs retain rows", "--retain_file"]),
    "two forget files": (
        copied("forget", "forget-32.jsonl"),
        ["forget-32.jsonl, forget.jsonl", "pick one with --forget_file"],
    ),
    "missing file": (
        flags("--retain_file", "retian.jsonl"),
        ["--retain_file", "no file retian.jsonl", "retain.jsonl", "check the path"],
    ),
    "file is a folder": (
        flags("--valid_file", "data"),
        ["--valid_file: data is a folder", "forget.jsonl", "name one file of it"],
    ),
    "missing folder": (instead(data_dir="nowhere"), ["--data_dir nowhere does not exist", "give a folder"]),
    "folder is a file": (instead(data_dir="data/forget.jsonl"), ["is a file, not a folder", "--forget_file"]),
    "not on the Hub": (instead(data_dir="no/where"), ["--data_dir no/where", "check the spelling"]),
    "forget and retain share a text": (
        row("retain", {"sw": "b  c d e"}),
        ["retain.jsonl:3: the 'sw' text", "forget.jsonl:2 ('en')", "remove it from one"],
    ),
    "forget and valid share a text": (
        row("valid", SPLITS["forget"][0]),
        ["valid.jsonl:2: the 'en' text", "forget.jsonl:1", "(and 1 more)", "remove it from one"],
    ),
    "forget and valid share a completed cloze": (
        both(row("forget", cloze("x <mask> z", "y", "yz")), row("valid", {"en": "x y z"})),
        ["valid.jsonl:2: the 'en' text", "forget.jsonl:3", "remove it from one"],
    ),
    "language that no row has": (
        flags("--languages", "en", "fr"),
        ["forget split", "'fr' of --languages", "has en, sw"],
    ),
    "held-out language that no row has": (
        flags("--languages", "en", "--heldout_languages", "fr"),
        ["'fr' of --heldout_languages", "have en, sw"],
    ),
    "every language held out": (flags("--heldout_languages", "en", "sw"), ["--heldout_languages", "leave one"]),
    "split without the languages": (
        both(only("valid", {"fr": "p q"}), flags("--languages", "en")),
        ["valid split has no row in en", "only in fr", "--valid_file"],
    ),
    "all rows of a language cut off": (
        both(
            only("forget", {"question": {"en": "a", "sw": "a b c d e"}, "answer": {"en": "b", "sw": "f"}}),
            flags("--max_seq_length", "4"),
        ),
        ["the forget split in language 'sw': 1 of 1 rows", "within 4 tokens", "raise --max_seq_length"],
    ),
    "text of one token": (
        both(only("forget", {"en": "a"}), flags("--languages", "en")),
        ["1 of 1 rows", "token before it", "forget.jsonl:1", "longer than one token"],
    ),
    "answer that opens the sentence": (
        both(only("forget", cloze("<mask> b")), flags("--languages", "en")),
        ["1 of 1 rows", "token before it", "forget.jsonl:1", "put text before the answer"],
    ),
    "sample without a language": (
        both(only("forget", {"en": "a b c"}, {"sw": "c b a"}), flags("--max_train_samples", "1")),
        ["forget split", "'sw'"],
    ),
}
FLAGS = {
    "misspelled flag": (flags("--learning_rat", "1"), ["--learning_rat", "did you mean --learning_rate?"]),
    "misspelled key": (json_file({"forget_cof": 1}), ["my_run.json", "'forget_cof'", "did you mean forget_coef?"]),
    "wrong type in JSON": (json_file({"seed": "1"}), ["my_run.json", "'seed' must be a whole number"]),
    "broken JSON file": (json_file('{"seed": 1,\n}'), ["my_run.json:2: broken JSON"]),
    "negative seed": (flags("--data_seed", "-1"), ["--data_seed must be 0 to"]),
    "seed too large": (flags("--seed", str(2**32)), ["--seed must be 0 to"]),
    "nothing to do": (flags("--do_train", "false", "--do_eval", "false"), ["nothing to do", "--do_train"]),
    "evaluation batch of nothing": (
        flags("--per_device_eval_batch_size", "0"),
        ["--per_device_eval_batch_size must be at least 1"],
    ),
    "no epoch": (flags("--num_train_epochs", "0"), ["--num_train_epochs must be above 0"]),
    "sample of nothing": (flags("--max_train_samples", "0"), ["--max_train_samples"]),
    "length of one token": (flags("--max_seq_length", "1"), ["--max_seq_length"]),
    "wrong type": (flags("--num_train_epochs", "many"), ["--num_train_epochs", "many"]),
    "unknown preset": (flags("flore"), ["flore is neither a JSON file nor", "did you mean flores?"]),
    "two presets": (flags("flores", "bmlama"), ["bmlama", "only one preset"]),
    "no model": (instead(model_name_or_path=None), ["no model", "--model_name_or_path"]),
    "no data": (instead(data_dir=None), ["no data", "--data_dir", "--forget_file"]),
    "no output folder": (instead(output_dir=None), ["--output_dir"]),
    "unknown method": (flags("--method", "lingte"), ["--method lingte", "did you mean lingtea?"]),
    "unknown objective": (flags("--forget_objective", "npoo"), ["--forget_objective npoo is not one of"]),
    "unknown schedule": (flags("--schedule", "both"), ["--schedule", "joint", "alternate"]),
    "negative coefficient": (flags("--retain_coef", "-0.5"), ["--retain_coef must not be negative, not -0.5"]),
    "NaN coefficient": (flags("--forget_coef", "nan"), ["--forget_coef", "nan"]),
    "negative learning rate": (flags("--learning_rate", "-1e-4"), ["--learning_rate"]),
    "batch of nothing": (flags("--per_device_train_batch_size", "0"), ["--per_device_train_batch_size", "at least 1"]),
    "no accumulation step": (
        flags("--gradient_accumulation_steps", "0"),
        ["--gradient_accumulation_steps", "at least 1"],
    ),
    "distill_constant above 1": (flags("--distill_constant", "1.2"), ["--distill_constant must be 0 to 1, not 1.2"]),
    "target from nothing": (  # refused before the stage, of which the output folder would show traces
        both(without("valid"), flags("--forget_weighting", "target", "--memorize_first", "--memorize_epochs", "1")),
        ["--forget_weighting target", "--valid_file", "--forget_target"],
    ),
    "target without evaluation": (
        flags("--forget_weighting", "target", "--do_eval", "false"),
        ["--forget_weighting target", "--do_eval"],
    ),
    "primal_dual without retain": (
        flags("--method", "gradient_ascent", "--retain_weighting", "primal_dual"),
        ["--retain_weighting primal_dual", "--retain_objective is none", "uniform"],
    ),
    "primal_dual without evaluation": (
        flags("--retain_weighting", "primal_dual", "--do_eval", "false"),
        ["--retain_weighting primal_dual", "--do_eval"],
    ),
    "weights never updated": (flags("--weight_update_steps", "0"), ["--weight_update_steps must be at least 1"]),
    "adapter teacher without adapter": (flags("--teacher", "adapter"), ["--teacher adapter", "--use_peft"]),
    "audit check": (flags("--audit", "--audit_checks", "relerning"), ["--audit_checks", "relerning", "relearning"]),
    "audit language": (
        flags("--audit", "--audit_relearn_languages", "xx"),
        ["--audit_relearn_languages xx", "not one of"],
    ),
    "earlier request": (flags("--audit", "--forgotten_files", "nowhere.jsonl"), ["nowhere.jsonl", "cannot be read"]),
    "best model without evaluation": (
        flags("--load_best_model_at_end", "--save_strategy", "steps"),
        ["--load_best_model_at_end"],
    ),
    "unknown metric": (
        flags(
            *("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "best"),
            *("--metric_for_best_model", "forget_score"),
        ),
        ["--metric_for_best_model", "forget_score"],
    ),
    "NaN in JSON": (json_file('{"learning_rate": NaN}'), ["my_run.json", "--learning_rate", "not nan"]),
    "misspelled choice in JSON": (
        json_file({"eval_strategy": "epcoh"}),
        ["my_run.json", "--eval_strategy epcoh", "did you mean epoch?"],
    ),
    "key twice in JSON": (json_file('{"seed": 1, "seed": 2}'), ["my_run.json", "'seed' occurs twice", "keep one"]),
    "two trackers": (
        flags("--report_to", "tensorboard", "wandb"),
        ["wandb", "--report_to tensorboard,wandb"],
    ),
    "two trackers behind a preset": (
        flags("flores", "--report_to", "tensorboard", "wandb"),
        ["wandb", "--report_to tensorboard,wandb"],
    ),
    "adapter's rank without adapter": (flags("--lora_r", "4"), ["--lora_r", "--use_peft"]),
    "label smoothing": (flags("--label_smoothing_factor", "0.1"), ["--label_smoothing_factor 0.1", "no effect"]),
    "engine without launcher": (flags("--fsdp", "full_shard"), ["--fsdp", "accelerate launch"]),
    "DeepSpeed without launcher": (
        both(json_file("{}"), flags("--deepspeed", "my_run.json")),
        ["--deepspeed", "deepspeed run_unlearn.py"],
    ),
    "optimizer that is not installed": (flags("--optim", "adamw_8bit"), ["--optim adamw_8bit", "bitsandbytes"]),
    "kernel that is not installed": (flags("--use_liger_kernel"), ["--use_liger_kernel", "pip install liger-kernel"]),
    "argument of another scheduler": (
        flags("--lr_scheduler_kwargs", '{"num_cycle": 2}', "--lr_scheduler_type", "cosine"),
        ["--lr_scheduler_kwargs", "num_cycle", "--lr_scheduler_type cosine"],
    ),
    "predict without a test split": (flags("--do_predict"), ["--do_predict", "--test_file"]),
    "tracker that is not installed": (flags("--report_to", "wandb"), ["--report_to", "wandb"]),
    "missing engine file": (flags("--deepspeed", "zero9.json"), ["--deepspeed", "zero9.json"]),
    "unknown module for the adapter": (
        flags("--use_peft", "--lora_target_modules", "query"),
        ["--lora_target_modules query"],
    ),
    "output folder is a file": (instead(output_dir="data/valid.jsonl"), ["--output_dir", "valid.jsonl", "is a file"]),
    "output folder that cannot be made": (instead(output_dir="x" * 300), ["--output_dir", "cannot be made"]),
    "output folder of the system": (instead(output_dir="/proc/nowhere"), ["--output_dir", "cannot be made"]),
    "output folder of the model": (
        instead(output_dir="model/../model"),
        ["--output_dir model/../model", "folder of --model_name_or_path", "another --output_dir"],
    ),
    "output folder of the tokenizer": (
        both(copied_model("words", "tokenizer*"), instead(output_dir="words", tokenizer_name="words")),
        ["folder of --tokenizer_name", "another --output_dir"],
    ),
    "output folder of the never-seen model": (
        both(copied_model("unseen"), instead(output_dir="unseen", never_seen_model="unseen")),
        ["folder of --never_seen_model", "another --output_dir"],
    ),
    "output folder with the weights of another model": (
        in_output("model-00001-of-00002.safetensors", b"not ours"),
        ["out/model-00001-of-00002.safetensors is there", "another --output_dir"],
    ),
    "output folder with the configuration of another model": (
        in_output("config.json", b"{}", "--resume_from_checkpoint", "true"),
        ["out/config.json is there", "another --output_dir"],
    ),
    "output folder with an adapter": (
        in_output("adapter_config.json", b"{}"),
        ["out/adapter_config.json is there", "another --output_dir"],
    ),
    "output folder with results": (in_output("results.json", b"{}"), ["results.json", "another --output_dir"]),
    "output folder with checkpoints": (
        in_output("checkpoint-3/trainer_state.json", b"{}"),
        ["checkpoint-3", "--resume_from_checkpoint true", "--output_dir"],
    ),
    "resume from nowhere": (
        flags("--resume_from_checkpoint", "out/checkpoint-7"),
        ["--resume_from_checkpoint out/checkpoint-7", "no such folder"],
    ),
    "resume from a folder that is no checkpoint": (
        flags("--resume_from_checkpoint", "model"),
        ["--resume_from_checkpoint model", "trainer_state.json"],
    ),
    "resume from a checkpoint that was not finished": (
        in_output("checkpoint-3/model.safetensors", b"", "--resume_from_checkpoint", "true"),
        ["checkpoint-3", "trainer_state.json"],
    ),
}
MODELS = {
    "no such folder": (instead(model_name_or_path="./nowhere"), ["--model_name_or_path ./nowhere", "no such folder"]),
    "not on the Hub": (instead(model_name_or_path="no/where"), ["--model_name_or_path no/where", "on the Hub"]),
    "folder without config": (unlink("config.json"), ["--model_name_or_path", "no model configuration"]),
    "folder without weights": (unlink("model.safetensors"), ["--model_name_or_path", "no model could be loaded"]),
    "folder without tokenizer": (
        both(unlink("tokenizer.json"), unlink("tokenizer_config.json")),
        ["--model_name_or_path", "no tokenizer"],
    ),
    "encoder-decoder": (
        model(lambda: T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **TINY_T5))),
        ["(t5) is an encoder-decoder", "choose a causal language model"],
    ),
    "masked": (
        model(lambda: BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **TINY_BERT))),
        ["(bert) is an encoder", "choose a causal language model"],
    ),
    "config.json is broken": (broken("config.json", b"{"), ["--model_name_or_path", "config.json"]),
    "weights are broken": (broken("model.safetensors", b""), ["--model_name_or_path", "no model could be loaded"]),
    "weights of another size": (
        config(vocab_size=50),
        ["--model_name_or_path", "no model could be loaded"],
    ),
    "weights with a layer missing": (config(num_hidden_layers=2), ["no values for", "model.layers.1", "random"]),
    "unknown kind of attention": (flags("--attn_implementation", "flush"), ["no model could be loaded", "flush"]),
    "tokenizer is nowhere": (flags("--tokenizer_name", "./nowhere"), ["--tokenizer_name ./nowhere", "no such folder"]),
    "never-seen model of another kind": (
        both(other_model("bert"), flags("--never_seen_model", "bert")),
        ["--never_seen_model bert (bert) is an encoder"],
    ),
    "no padding token": (
        model(make_llama, make_tokenizer),
        ["neither a padding nor an end-of-text token", "pad_token", "--tokenizer_name"],
    ),
    "ids beyond the embedding": (
        model(lambda: make_llama(VOCABULARY - 1)),
        [f"ids up to {VOCABULARY - 1}", f"ends at {VOCABULARY - 2}", "--tokenizer_name"],
    ),
    "never-seen model of another vocabulary": (
        both(
            copied_model("unseen"),
            model(lambda: make_llama(VOCABULARY + 3)),
            flags("--never_seen_model", "unseen"),
        ),
        [f"--never_seen_model unseen has a vocabulary of {VOCABULARY}", f"one of {VOCABULARY + 3}"],
    ),
    "rows beyond the table of positions": (
        both(
            model(make_gpt2),
            row("forget", {"en": " ".join("abcdefghijkl"), "sw": "m n o"}),
        ),
        ["forget split has a row of 12 tokens", "ends at 8", "--max_seq_length 8"],
    ),
    "measured rows beyond it, before a stage": (
        both(model(make_gpt2), row("valid", {"en": "k l m n o p q r s"}), flags("--memorize_first")),
        ["valid split has a row of 9 tokens", "--max_seq_length 8"],
    ),
    "never-seen model is nowhere": (
        flags("--never_seen_model", "./nowhere"),
        ["--never_seen_model ./nowhere", "no such folder"],
    ),
}
CASES = [
    pytest.param(make, words, id=f"{group}: {name}")
    for group, cases in (("data", DATA), ("flags", FLAGS), ("model", MODELS))
    for name, (make, words) in cases.items()
]


def test_without_a_mistake_it_runs(world):
    earlier = world.contents()
    run_unlearn.main(world.argv())
    after = world.contents()
    assert json.loads(after[Path("results.json")])["languages"] == ["en", "sw"]
    assert Path("model.safetensors") in after and earlier.items() <= after.items()


def test_texts_longer_than_the_length_stand_in_the_results(world, caplog):
    run_unlearn.main(world.argv(["--max_seq_length", "3"]))
    counted = json.loads((world.output / "results.json").read_text())["truncated_rows"]
    assert counted == {"forget": {"en": 2, "sw": 2}, "retain": {"en": 2, "sw": 2}, "valid": {"en": 1, "sw": 1}}
    assert "the forget split: 4 of 4 rows are longer than 3 tokens, and 4 labelled tokens" in caplog.text


@pytest.mark.parametrize(("make", "words"), CASES)
def test_refused_with_one_clear_line(world, capfd, make, words):
    extra = make(world)
    assert_refused(world, world.argv(extra), words, capfd)


# ---- mistakes that take a run to make -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--languages", "en"], ["made with --languages en sw, not en", "the same", "--output_dir"]),
        (["--retain_weighting", "primal_dual"], ["made with --retain_weighting uniform, not primal_dual"]),
        (["--learning_rate", "1e-3"], ["made with --learning_rate 5e-05, not 0.001", "the same"]),
        (["--lr_scheduler_type", "cosine"], ["made with --lr_scheduler_type linear, not cosine"]),
        (["--use_peft"], ["other weights trained", "--use_peft", "--output_dir"]),
        (["--max_retain_perplexity_ratio", "3"], ["made with --max_retain_perplexity_ratio 1000000000.0, not 3.0"]),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(world, capfd, words, message):
    made = ["--save_strategy", "steps", "--save_steps", "1", "--max_retain_perplexity_ratio", "1e9"]
    run_unlearn.main(world.argv(made))
    (world.output / "results.json").unlink()
    again = [*made, "--max_steps", "2", "--resume_from_checkpoint", "true"]
    assert_refused(world, world.argv([*again, *words]), message, capfd)
    run_unlearn.main(world.argv(again))  # the same settings are fine


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_refused(world, capfd, name):
    made = ["--save_strategy", "steps", "--save_steps", "1"]
    run_unlearn.main(world.argv(made))
    (world.output / "results.json").unlink()
    file = world.output / "checkpoint-1" / name
    file.write_bytes(file.read_bytes()[:-100])
    again = [*made, "--max_steps", "2", "--resume_from_checkpoint", "true"]
    assert_refused(world, world.argv(again), ["checkpoint-1", f"{name} is damaged", "name another"], capfd)


@pytest.mark.parametrize("words", ["--learning_rate 1e38", "--memorize_first --memorize_learning_rate 1e38"])
def test_weights_destroyed_by_the_last_step_are_not_saved(world, capfd, words):
    start = "stopped: trained weights are NaN or infinite after optimizer step 1"
    words = [*words.split(), "--memorize_epochs", "1", "--per_device_train_batch_size", "4"]
    assert_refused(world, world.argv(words), ["no model was written", "--learning_rate"], capfd, code=3, start=start)


def test_weights_of_nan_end_the_run_with_their_own_code(world, capfd):
    broken = make_llama()
    torch.nn.init.constant_(broken.model.embed_tokens.weight, float("nan"))
    broken.save_pretrained(world.model)
    words = ["NaN", "optimizer step 1", "language en, sw", "no model was written", "--learning_rate"]
    assert_refused(world, world.argv(["--language_sampling", "all"]), words, capfd, code=3, start="stopped: ")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_code_in_a_pickled_checkpoint_is_refused_and_does_not_run(world, capfd, save):
    (world.model / "model.safetensors").unlink()
    proof = world.folder / "it_ran"
    save({**make_llama().state_dict(), "bomb": Bomb(proof)}, world.model / "pytorch_model.bin")
    assert_refused(world, world.argv(), ["--model_name_or_path", "could be code", "safetensors"], capfd)
    assert not proof.exists()


# ---- the public classes, without the command ------------------------------------------------------------------------


OF_THE_TRAINER = ("train_dataset", "data_collator", "compute_metrics")


def unlabelled():
    return tiny_rows().map(lambda row: {"labels": [-100] * len(row["labels"])})


def coded():
    return tiny_rows().map(lambda row: {"language": LANGUAGES[row["language"]]}, remove_columns="language")


def trainer(
    folder, *, forget=True, retain=True, teacher_vocabulary=None, evaluated=(), given=None, args=None, **settings
):
    more = {name: settings.pop(name) for name in OF_THE_TRAINER if name in settings}
    rows = {split: tiny_rows(seed=seed) for seed, split in enumerate(("forget", "retain", "valid"))}
    return UnlearnTrainer(
        tiny_model(),
        args or tiny_config(folder, max_steps=1, **settings),
        given if given is not None else rows["forget"] if forget else None,
        rows["retain"] if retain else None,
        languages=LANGUAGES,
        eval_dataset={split: rows[split] for split in evaluated},
        teacher=teacher_vocabulary and tiny_model(vocab_size=teacher_vocabulary),
        **more,
    )


def tokenized(folder, **settings):
    splits = load_splits(forget_file=str(folder / "data" / "forget.jsonl"))
    return tokenize_splits(splits, make_tokenizer(pad_token="<pad>"), **settings)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda at: UnlearnConfig(output_dir=str(at), method="npoo"), ConfigError, ["--method npoo"]),
        (lambda at: UnlearnConfig(output_dir=str(at), retain_coef=-1), ConfigError, ["--retain_coef", "negative"]),
        (lambda at: UnlearnConfig(output_dir=str(at), audit_relearn_steps=0), ConfigError, ["--audit_relearn_steps"]),
        (lambda at: trainer(at, retain=False), ConfigError, ["needs retain rows", "--retain_file"]),
        (lambda at: trainer(at, forget=False), ConfigError, ["needs forget rows", "--forget_file"]),
        (lambda at: trainer(at, teacher="adapter"), ConfigError, ["--teacher adapter", "--use_peft"]),
        (lambda at: trainer(at, teacher_vocabulary=300), ConfigError, ["teacher one of 300", "211", "earlier state"]),
        (lambda at: trainer(at, given=[]), ConfigError, ["forget split is a list", "datasets.Dataset", "labels"]),
        (lambda at: trainer(at, given=tiny_rows(0)), ConfigError, ["forget split lacks", "input_ids"]),
        (lambda at: trainer(at, given=tiny_rows().select([])), ConfigError, ["no row of the forget split", "-100"]),
        (lambda at: trainer(at, given=unlabelled()), ConfigError, ["no row of the forget split", "-100"]),
        (
            lambda at: trainer(at, given=tiny_rows().remove_columns("language")),
            ConfigError,
            ["forget split lacks language", "datasets.Dataset"],
        ),
        (
            lambda at: trainer(at, given=tiny_rows(languages=[*LANGUAGES, "fr"])),
            ConfigError,
            ["forget split has 3 in its column language", "en, sw, zh"],
        ),
        (lambda at: trainer(at, given=coded()), ConfigError, ["forget split has 'en' in its column language"]),
        (lambda at: trainer(at, train_dataset=tiny_rows()), ConfigError, ["no train_dataset", "forget_dataset"]),
        (lambda at: trainer(at, data_collator=list), ConfigError, ["no data_collator", "UnlearnCollator"]),
        (lambda at: trainer(at, compute_metrics=list), ConfigError, ["no compute_metrics", "MultilingualEvaluator"]),
        (
            lambda at: trainer(at, args=TrainingArguments(str(at), use_cpu=True, report_to="none")),
            ConfigError,
            ["TrainingArguments", "UnlearnConfig"],
        ),
        (lambda at: trainer(at).evaluate(), ConfigError, ["nothing to evaluate", "eval_dataset"]),
        (
            lambda at: trainer(at, forget_weighting="target", evaluated=["retain", "valid"]).train(),
            ConfigError,
            ["--forget_weighting target", "eval_dataset with forget"],
        ),
        (
            lambda at: trainer(at, forget_weighting="target", evaluated=["forget", "retain"]).train(),
            ConfigError,
            ["--valid_file", "--forget_target"],
        ),
        (lambda at: tokenized(at, languages=["fr"]), DataError, ["'fr' of --languages", "has en, sw"]),
        (lambda at: tokenized(at, languages=[]), ConfigError, ["--languages is empty"]),
        (lambda at: tokenized(at, languages=["en"], heldout_languages=["en"]), ConfigError, ["'en'", "held out"]),
        (lambda at: tokenized(at, languages=None, max_seq_length=1), ConfigError, ["--max_seq_length 1", "raise it"]),
        (lambda at: tokenized(at, languages=None, max_samples={"forget": 0}), ConfigError, ["0 samples", "forget"]),
        (lambda at: load_splits(retain_file="r.jsonl"), ConfigError, ["--forget_file"]),
    ],
)
def test_refused_by_the_public_classes(world, call, error, words):
    with pytest.raises(error) as raised:
        call(world.folder)
    missing = [word for word in words if word not in str(raised.value)]
    assert not missing, f"{missing} not in: {raised.value}"
