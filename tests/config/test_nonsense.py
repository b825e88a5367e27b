"""Nonsense in every flag, on the command line and in a file: it is accepted, or refused in one line that names it."""

import dataclasses
import json
import typing

import pytest
from transformers import TrainingArguments

from unlearn_trainer.config.parser import PARSED, parse_arguments
from unlearn_trainer.errors import ConfigError, UnlearnError

BASE = {"model_name_or_path": "m", "data_dir": "d", "output_dir": "o", "use_cpu": True}
NUMBERS = ["-1", "0", "1e30", "inf", "-inf", "nan", "9" * 30, "9" * 5000, "-7.5"]
TEXTS = ["", "x\0y", "\ud800", "y" * 5000, "(" * 3000, "=,", "\u202e", "{", "[" * 5000, '{"a": NaN}', '{"a":' * 5000]
TEXTS.append('{"nonsense": 1}')
VALUES = [-1, 0, 0.5, 10**30, 10**400, 1e308, float("inf"), float("nan"), True, None, "", "x\0y", "\ud800", "y" * 5000]
VALUES += [[["en"]], ["\0"], {"nonsense": 1}, {"a": {"b": [1e308]}}, [None]]
FIELDS = {
    item.name: hint
    for kind in PARSED
    for item, hint in zip(
        dataclasses.fields(kind),
        (typing.get_type_hints(kind)[item.name] for item in dataclasses.fields(kind)),
        strict=True,
    )
}
BOOLEANS = [name for name, hint in FIELDS.items() if hint in (bool, bool | None)]
OTHERS = [name for name in FIELDS if name not in BOOLEANS]


def check(argv, name):
    """Accepted, or one line of a length that can be read."""
    try:
        parse_arguments(argv)
    except UnlearnError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 1500, name
        return str(error)
    return None


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_every_flag_with_every_nonsense():
    words = [f"--{name}={value}" for name, value in BASE.items() if name != "use_cpu"] + ["--use_cpu"]
    named = total = 0
    for name in OTHERS:
        is_number = FIELDS[name] in (int, float, int | None, float | None)
        for value in [*NUMBERS, "", "x\0y", "{"] if is_number else ["-1", "nan", *TEXTS]:
            said = check([*words, f"--{name}", value], name)
            if said is not None:
                total += 1
                named += name in said or name.removeprefix("gradient").removeprefix("activation") in said
    assert total > 500 and named > 0.97 * total


@pytest.mark.filterwarnings("ignore")
def test_every_key_with_every_nonsense(tmp_path):
    file = tmp_path / "run.json"
    for name in FIELDS:
        for value in VALUES if name in OTHERS else (1, None, "nonsense", [True]):
            file.write_text(json.dumps(BASE | {name: value}))
            said = check([str(file)], name)
            assert said is None or name in said or "run.json" in said or "_checkpointing" in name, said


@pytest.mark.parametrize(
    "text", ["[" * 100000, '{"seed": ' + "[" * 5000 + "]" * 5000 + "}", '{"seed": ' + "9" * 5000 + "}"]
)
def test_files_that_are_nonsense_as_a_whole(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json"):
        parse_arguments([str(tmp_path / "run.json")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "9" * 30], "--max_steps must be at most .* not about 1e30"),
        (["--per_device_train_batch_size", "9" * 30], "--per_device_train_batch_size must be at most"),
        (["--num_train_epochs", "inf"], "--num_train_epochs must be at most"),
        (["--num_train_epochs", "1e308"], "--num_train_epochs must be at most"),
        (["--weight_decay", "inf"], "--weight_decay must be at most"),
        (["--forget_coef", "1e300"], "--forget_coef must be at most"),
        (["--adam_beta1", "2"], "--adam_beta1 must be at least 0 and below 1"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers must be at least 0"),
        (["--logging_steps", "-5"], "--logging_steps must be at least 0"),
        (["--eval_strategy", "steps", "--eval_steps", "-3"], "--eval_steps must be at least 0"),
        (["--save_strategy", "steps", "--save_steps", "0"], "--save_steps must be above 0"),
        (["--optim_args", "=,=,"], "--optim_args =,=,: = is no name=value"),
        (["--gradient_checkpointing_kwargs", '{"use_reentant": true}'], "use_reentant; did you mean use_reentrant"),
        (["--accelerator_config", '{"nonsense": 1}'], "--accelerator_config .*nonsense"),
        (["--accelerator_config", "nowhere.json"], "--accelerator_config nowhere.json: .*No such file"),
        (["--torch_compile_backend", "fast"], "--torch_compile_backend fast is not one of"),
        (["--debug", "everything"], "--debug: .*everything"),
        (["--trainable_layers", "(" * 3000], "--trainable_layers .*regular expression"),
        (["--trainable_layers", "a{99999999999}"], "--trainable_layers .*regular expression"),
        (["--trainable_layers", "0-" + "9" * 5000], "--trainable_layers .*digits"),
        (["--run_name", "\ud800"], "--run_name holds half of a character"),
        (["--forget_file", "a\0b"], "--forget_file holds the character of code 0"),
        (["--data_dir", "d" * 5000], "--data_dir .* is too long"),
        (["--languages", "en", "f" * 300], "--languages .* is too long"),
        (["--log_level", "loud"], "--log_level"),
    ],
)
def test_the_flag_is_named(words, message):
    base = [f"--{name}={value}" for name, value in BASE.items() if name != "use_cpu"]
    with pytest.raises(ConfigError, match=message):
        parse_arguments([*base, *words])


def test_an_error_of_this_package_is_not_taken_for_the_user_s(monkeypatch):
    """Only what transformers itself refuses becomes a line; a fault of ours keeps its traceback."""
    monkeypatch.setattr("unlearn_trainer.config.unlearn_config.get_scheduler", lambda *args: {}["a fault"])
    with pytest.raises(KeyError, match="a fault"):
        parse_arguments([f"--{name}={value}" for name, value in BASE.items() if name != "use_cpu"])


def test_every_numeric_flag_of_transformers_is_bounded():
    hints = typing.get_type_hints(TrainingArguments)
    numeric = [
        item.name for item in dataclasses.fields(TrainingArguments) if hints[item.name] in (int, float, int | None)
    ]
    base = [f"--{name}={value}" for name, value in BASE.items() if name != "use_cpu"]
    for name in numeric:
        with pytest.raises(ConfigError, match=name):
            parse_arguments([*base, f"--{name}", "9" * 40])
