"""Help and plain mistakes are answered before the libraries are loaded, in the words of the whole parser."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated

import pytest
import transformers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import trainer_log_levels

from unlearn_trainer.audit.__main__ import run as audit
from unlearn_trainer.audit.arguments import CHECK_NAMES
from unlearn_trainer.audit.registry import CHECKS
from unlearn_trainer.config import early, installed, known_objectives
from unlearn_trainer.config.parser import PARSED, parse_arguments
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.errors import UnlearnError
from unlearn_trainer.objectives import FORGET_OBJECTIVES, Objective
from unlearn_trainer.objectives.base import Positive

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "deepspeed", "peft", "numpy")
GIVEN = ["--model_name_or_path", "m", "--output_dir", "o"]
REQUIRED = [*GIVEN, "--data_dir", "d/d"]
# Runs a file as `python` does, and tells at the end which of the heavy modules were loaded.
COUNTED = f"""
import atexit, runpy, sys
atexit.register(lambda: print("LOADED", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
target = sys.argv.pop(1)
sys.path[0] = {str(ROOT)!r}
if target.endswith(".py"):
    sys.argv[0] = target
    runpy.run_path(target, run_name="__main__")
else:
    runpy.run_module(target, run_name="__main__", alter_sys=True)
"""


def ended(words, target="run_unlearn.py", folder=ROOT):
    target = str(ROOT / target) if target.endswith(".py") else target
    return subprocess.run(
        [sys.executable, "-c", COUNTED, target, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def loaded(done):
    return re.search(r"^LOADED(.*)$", done.stderr, re.MULTILINE)[1].split()


@pytest.mark.parametrize("target", ["run_unlearn.py", "unlearn_trainer", "unlearn_trainer.audit"])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, ""),
        (["--learning_rat", "1"], 2, "error: unknown flag --learning_rat; did you mean --learning_rate?"),
        (["--seed", "x"], 2, "error: argument --seed: invalid int value: 'x'"),
        (["quickstar"], 2, "error: quickstar is neither a JSON file nor one of the presets .*did you mean quickstart"),
        (["nowhere/run.json"], 2, "error: nowhere/run.json is neither a JSON file"),
        ([*REQUIRED, "--npo_beta", "0"], 2, "error: --npo_beta must be above 0, not 0.0"),
        ([*GIVEN, "--do_train", "--forget_file", "no.jsonl"], 2, "error: --forget_file: there is no file no.jsonl"),
    ],
)
def test_nothing_heavy_is_loaded_for_an_answer(target, words, code, said):
    done = ended(words, target)
    assert done.returncode == code and loaded(done) == []
    assert re.search(said, done.stderr)
    if code == 0:
        assert done.stdout.startswith("usage: ") and "--learning_rate" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [*REQUIRED, "--audit_checks", "probing,relerning"],
            r"--audit_checks relerning is not one of .*; did you mean relearning\?$",
        ),
        ([*REQUIRED, "--audit_relearn_steps", "0"], "--audit_relearn_steps must be at least 1, not 0$"),
        ([*GIVEN, "--data_dir", "/nowhere"], "--data_dir /nowhere does not exist"),
        (["nothing"], "nothing: no finished run, as its results.json cannot be read"),
        (["finished", "--audit_relearn_lerning_rate", "1"], "unknown flag --audit_relearn_lerning_rate; did you mean"),
        (["finished"], "--forget_file: there is no file gone.jsonl"),
        (["finished", "--max_seq_length", "1"], "--max_seq_length must be at least 2, not 1$"),
    ],
)
def test_nothing_heavy_is_loaded_for_an_answer_of_the_audit(words, said, tmp_path, monkeypatch):
    for name in ("nothing", "finished"):
        (tmp_path / name).mkdir()
    config = {"memorize_first": True, "train_never_seen": False, "model_name_or_path": "m", "seed": 3}
    config["forget_file"] = "gone.jsonl"
    (tmp_path / "finished" / "results.json").write_text(json.dumps({"config": config}))
    done = ended(words, "unlearn_trainer.audit", tmp_path)
    assert (done.returncode, loaded(done)) == (2, [])
    assert re.search(f"^error: .*{said}", done.stderr, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    late = told(audit, words)
    # The whole audit looks for the model before it reads the rows.
    assert late is not None and ("no tokenizer" in late[1] or f"error: {late[1]}" == done.stderr.splitlines()[0])


def test_the_names_of_the_checks_are_those_that_there_are():
    assert tuple(CHECKS) == CHECK_NAMES


@pytest.fixture
def unloaded(monkeypatch):
    """As before the registries are loaded."""
    monkeypatch.setattr(known_objectives, "are_loaded", lambda: False)


def told(function, argv):
    try:
        function(argv)
    except UnlearnError as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rat", "1"],
        ["--forget-coeff=2"],
        ["--learning", "1"],
        ["--seed", "x"],
        ["--seed", "-1"],
        ["--schedule", "both"],
        ["--do_train", "maybe"],
        ["--method", "lingte"],
        ["--retain_objective", "kll"],
        ["--eval_strategy", "sometimes"],
        ["--save_strategy", "best", "--lr_scheduler_type", "cosin"],
        ["--optim", "adamv"],
        ["--log_level", "loud"],
        ["--debug", "underflow"],
        ["--forget_coef", "-1"],
        ["--forget_coef", "nan"],
        ["--distill_constant", "1.5"],
        ["--distill_temperature", "0"],
        ["--weight_update_steps", "0"],
        ["--forget_target", "low"],
        ["--forget_target", "2"],
        ["--retain_weight_min", "2"],
        ["--max_retain_perplexity_ratio", "1"],
        ["--max_train_samples", "0"],
        ["--lora_r", "8"],
        ["--rmu_layer", "0"],
        ["--wga_beta", "0"],
        ["--calibrated_margin", "-0.5"],
        ["--simnpo_delta", "inf"],
        ["--label_smoothing_factor", "0.1"],
        ["--deepspeed", "none.json"],
        ["--teacher", "adapter"],
        ["--languages", "en", "en"],
        ["--trainable_layers", "8-3"],
        ["--report_to", "tensorboard", "wandb"],
        ["more", "words"],
    ],
)
def test_the_words_are_those_of_the_whole_parser(words, unloaded):
    argv = [*REQUIRED, *words]
    early_words = told(early.look, argv)
    assert early_words is not None and early_words == told(parse_arguments, argv)


@pytest.mark.parametrize(
    "settings",
    [
        "{",
        "[]",
        '{"seed": 1, "seed": 2}',
        {"sed": 1},
        {"seed": "1"},
        {"schedule": "both"},
        {"optim": "adamv"},
        {"eval_strategy": "sometimes"},
        {"npo_beta": -1},
        {"forget_target": 2},
        {"num_train_epochs": 0},
        {"report_to": 3},
    ],
)
def test_the_words_are_the_same_for_a_file(settings, unloaded, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    argv = [*REQUIRED, str(file)]
    early_words = told(early.look, argv)
    assert early_words is not None and early_words == told(parse_arguments, argv)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--do_train", "--method", "npo", "--npo_beta", "0.5", "--bf16", "false"],
        ["--languages", "en,fr", "--report_to", "none", "--eval_strategy", "steps", "--eval_steps", "5"],
        ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": 2}'],
        ["--max_retain_perplexity_ratio", "inf", "--no_average_tokens_across_devices", "--local_rank=0"],
        ["quickstart", "--forget_target", "0.5", "--warmup_steps", "0.1"],
        ["--do_train", "--data_dir", "owner/on_the_hub", "--memorize_first"],
        ["--do_train", "--forget_file", "forget.jsonl", "--estimate_memory"],
    ],
)
def test_what_is_right_passes(words, unloaded):
    assert told(early.look, [*REQUIRED, *words]) is None


def test_the_help_is_that_of_the_whole_parser(unloaded, capsys):
    texts = []
    for function in (early.look, parse_arguments):
        with pytest.raises(SystemExit) as stopped:
            function(["--help"])
        assert stopped.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_the_flags_read_from_the_file_are_those_of_the_class():
    read, real = installed.training_flags(), transformers.TrainingArguments
    hints, of_class = typing.get_type_hints(read), typing.get_type_hints(real)
    assert [item.name for item in dataclasses.fields(read)] == [item.name for item in dataclasses.fields(real)]
    for own, item in zip(dataclasses.fields(read), dataclasses.fields(real), strict=True):
        assert (own.default, own.default_factory, own.init) == (item.default, item.default_factory, item.init)
        assert dict(own.metadata) == dict(item.metadata)
        assert plain(hints[own.name]) == plain(of_class[item.name])
    assert list(installed.LOG_LEVELS) == list(trainer_log_levels)
    assert list(installed.trackers()) == list(INTEGRATION_TO_CALLBACK)


def plain(hint):
    """A type in words, with the members of enumerations."""
    if hasattr(hint, "__members__"):
        return hint.__name__, [member.value for member in hint]
    inner = typing.get_args(hint)
    return getattr(typing.get_origin(hint) or hint, "__name__", str(hint)), *map(plain, inner)


def test_the_objectives_read_from_the_files_are_those_of_the_registries(monkeypatch):
    def known():
        options = [(o.name, o.default, o.help, [*map(str, o.bounds)]) for o in known_objectives.objective_options()]
        return known_objectives.objective_choices(), options

    real = known()
    monkeypatch.setattr(known_objectives, "are_loaded", lambda: False)
    assert known() == real


def test_the_flags_looked_at_early_are_all_there_are():
    given, whole = early._given_class(), UnlearnConfig
    assert [item.name for item in dataclasses.fields(given)] == [item.name for item in dataclasses.fields(whole)]
    for own, item in zip(dataclasses.fields(given), dataclasses.fields(whole), strict=True):
        assert (own.default, dict(own.metadata)) == (item.default, dict(item.metadata))


def test_each_flag_stands_once_in_the_help(unloaded, capsys):
    with pytest.raises(SystemExit):
        early.look(["--help"])
    text = capsys.readouterr().out
    listed = re.findall(r"^  (--\S+)", text, re.MULTILINE)
    names = [item.name for dtype in PARSED for item in dataclasses.fields(dtype)]
    assert sorted(listed) == sorted(f"--{name}" for name in names)
    assert not re.search(r"^ .*--\S+.*, --", text, re.MULTILINE)


def test_an_option_of_an_objective_says_what_it_does():
    for option in known_objectives.objective_options():
        objective = option.name.rpartition("_")[0]
        assert option.help.startswith(f"{objective}: ") and "docs/methods.md" not in option.help
        assert all(str(bound) in option.help for bound in option.bounds)
        text = option.help.removeprefix(f"{objective}: ").partition("; above")[0]
        assert 20 < len(text) < 100, option.help
    by_name = {option.name: option for option in known_objectives.objective_options()}
    assert by_name["npo_beta"].help.endswith("; above 0") and by_name["satimp_beta1"].help.endswith("; at least 0")


def test_an_option_of_a_plugin_is_told_by_its_annotation_or_its_docstring(monkeypatch):
    def ascent(tokens, *, ceiling: float = 10.0, slope: Annotated[Positive, "100% is a slope of 1"] = 1.0):
        """Ascent on the log loss, up to a ceiling. More is not needed."""
        return -tokens.nll

    monkeypatch.setitem(FORGET_OBJECTIVES, "ascent", Objective("ascent", ascent, frozenset({"nll"})))
    found = {o.name: o.help for o in known_objectives.objective_options() if o.name.startswith("ascent")}
    assert found == {
        "ascent_ceiling": "ascent: Ascent on the log loss, up to a ceiling. More is not needed",
        "ascent_slope": "ascent: 100%% is a slope of 1; above 0",
    }
