import dataclasses
import importlib.machinery
import json
import sys
import types
import typing

import pytest
from transformers import HfArgumentParser, TrainingArguments

from unlearn_trainer.config.arguments import DataArguments, ModelArguments
from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.errors import ConfigError

REQUIRED = ["--model_name_or_path", "m", "--data_dir", "d", "--output_dir", "o"]


@pytest.fixture
def run(tmp_path):
    def parse(settings: dict | str, *flags: str):
        file = tmp_path / "run.json"
        file.write_text(settings if isinstance(settings, str) else json.dumps(settings), encoding="utf-8")
        return parse_arguments([str(file), *flags])

    return parse


def flags(*words):
    return parse_arguments([*REQUIRED, *words])[2]


BASE = {"model_name_or_path": "m", "data_dir": "d"}


def test_defaults_then_json_then_command_line(run):
    model, data, config = run({**BASE, "seed": 3, "max_seq_length": 40}, "--seed", "5", "--dtype", "auto")
    assert (config.seed, data.max_seq_length, model.dtype, config.forget_coef) == (5, 40, "auto", 1.0)
    assert config.output_dir == "outputs/run"
    assert run({**BASE, "output_dir": "x"})[2].output_dir == "x"
    assert run({**BASE, "output_dir": "x"}, "--output_dir", "y")[2].output_dir == "y"


def test_without_a_file():
    model, data, config = parse_arguments(REQUIRED)
    assert (model.model_name_or_path, data.data_dir, config.output_dir) == ("m", "d", "o")
    assert (config.method, config.forget_objective, config.retain_objective) == (
        "lingtea",
        "gradient_ascent",
        "lingtea",
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--local_rank=1", "flores", "--seed", "7"],
        ["--local_rank", "1", "flores", "--seed", "7"],
        ["--local-rank=1", "flores", "--seed", "7"],
        ["flores", "--seed", "7", "--local_rank=1"],
        ["--seed", "7", "flores"],
        ["--do_train", "true", "--seed=7", "flores"],
        ["flores", "--run_name", "flores", "--seed", "7"],
    ],
)
def test_the_file_is_the_first_word_that_is_no_flag(argv):
    _, data, config = parse_arguments(argv)
    assert (config.seed, data.retain_file) == (7, "retain-32-x3.jsonl")


@pytest.mark.parametrize(
    ("preset", "languages", "heldout", "length", "batch", "rate"),
    [("flores", 10, 6, 256, (16, 2), 5e-4), ("bmlama", 9, 3, 32, (32, 1), 1e-4)],
)
def test_presets_of_the_paper(preset, languages, heldout, length, batch, rate):
    model, data, config = parse_arguments([preset])
    assert model.model_name_or_path == "facebook/xglm-564M" and data.max_seq_length == length
    assert (len(data.languages), len(data.heldout_languages)) == (languages, heldout)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == batch
    assert config.learning_rate == rate and config.num_train_epochs == 15 and config.warmup_steps == 0.1
    assert (config.schedule, config.language_sampling, config.method) == ("alternate", "random", "lingtea")


def test_quickstart_preset():
    _, data, config = parse_arguments(["quickstart"])
    assert config.memorize_first and config.train_never_seen and config.do_train and config.do_predict
    assert config.method == "calibrated" and data.show_texts
    lingtea = parse_arguments(["quickstart", "--method", "lingtea"])[2]
    assert (lingtea.forget_objective, lingtea.retain_objective) == ("gradient_ascent", "lingtea")


def test_booleans_with_and_without_a_value(run):
    assert flags("--do_train").do_train and not flags("--do_train", "false").do_train
    assert not run({**BASE, "do_train": True}, "--do_train", "false")[2].do_train
    assert flags("--stop_when_forgotten").stop_when_forgotten  # its default is None
    assert not flags("--forget_weighting", "target", "--stop_when_forgotten", "false").stop_when_forgotten
    assert flags("--forget_weighting", "target").stop_when_forgotten and not flags().stop_when_forgotten


@pytest.mark.parametrize("words", [["en", "fr", "sw"], ["en,fr,sw"], ["en,", "fr,sw"]])
def test_lists_with_spaces_or_commas(words):
    assert parse_arguments([*REQUIRED, "--languages", *words])[1].languages == ["en", "fr", "sw"]


def test_dictionaries_from_json_and_from_the_command_line(run):
    kwargs = {"num_cycles": 2}
    cosine = {**BASE, "lr_scheduler_type": "cosine"}
    config = run({**cosine, "lr_scheduler_kwargs": kwargs, "accelerator_config": {"split_batches": False}})[2]
    assert config.lr_scheduler_kwargs == kwargs
    words = ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", json.dumps(kwargs)]
    assert flags(*words).lr_scheduler_kwargs == kwargs


@pytest.mark.parametrize(
    ("method", "objectives"),
    [
        ("lingtea", ("gradient_ascent", "lingtea")),
        ("gradient_ascent", ("gradient_ascent", "none")),
        ("grad_diff", ("gradient_ascent", "nll")),
        ("kl", ("gradient_ascent", "kl")),
        ("memorize", ("nll", "nll")),
        ("retain_only", ("none", "nll")),
    ],
)
def test_methods_are_pairs_of_objectives(method, objectives):
    config = flags("--method", method)
    assert (config.forget_objective, config.retain_objective) == objectives


def test_an_objective_replaces_the_method_s():
    config = flags("--method", "grad_diff", "--retain_objective", "kl")
    assert (config.forget_objective, config.retain_objective) == ("gradient_ascent", "kl")


def test_what_every_config_has():
    config = UnlearnConfig(output_dir="o", load_best_model_at_end=True, eval_strategy="steps", eval_steps=500)
    assert isinstance(config, TrainingArguments)
    assert config.restore_callback_states_from_checkpoint and not config.remove_unused_columns
    assert config.metric_for_best_model == "unlearning_score" and config.greater_is_better
    assert not config.logging_nan_inf_filter
    assert UnlearnConfig(output_dir="o").metric_for_best_model is None


def test_a_config_can_be_replaced_and_written_as_json():
    config = UnlearnConfig(output_dir="o", forget_target="0.25", forget_weighting="target")
    assert config.forget_target == 0.25
    other = dataclasses.replace(config, seed=9)
    assert (other.seed, other.forget_target, other.retain_objective) == (9, 0.25, "lingtea")
    assert json.loads(config.to_json_string())["forget_target"] == 0.25


def test_a_file_of_windows_is_read(run):
    assert run("\ufeff" + json.dumps({**BASE, "seed": 3}))[2].seed == 3


def test_trackers_with_commas():
    assert flags("--report_to", "azure_ml,flyte").report_to == ["azure_ml", "flyte"]
    assert flags("--report_to", "none").report_to == []


def test_an_estimate_needs_no_place_for_results():
    assert parse_arguments([*REQUIRED[:4], "--estimate_memory"])[2].estimate_memory


def test_all_linear_is_the_default_of_an_adapter():
    argv = [*REQUIRED, "--use_peft", "--lora_target_modules"]
    assert parse_arguments([*argv, "all-linear"])[0] == parse_arguments([*REQUIRED, "--use_peft"])[0]
    assert parse_arguments([*argv, "q_proj", "v_proj"])[0].lora_target_modules == ["q_proj", "v_proj"]


def test_an_error_names_the_file_only_for_what_stands_in_it(run):
    with pytest.raises(ConfigError, match="run.json: --forget_coef must not be negative"):
        run({**BASE, "forget_coef": -1})
    with pytest.raises(ConfigError, match="^--forget_coef must not be negative"):
        run({**BASE, "forget_coef": 1}, "--forget_coef", "-1")


def test_forget_target_is_a_number_or_auto(run):
    assert run({**BASE, "forget_target": 0.5})[2].forget_target == 0.5
    assert run({**BASE, "forget_target": 0.5}, "--forget_target", "auto")[2].forget_target == "auto"


def test_works_with_a_plain_argument_parser():
    parser = HfArgumentParser((ModelArguments, DataArguments, UnlearnConfig))
    model, _, config = parser.parse_args_into_dataclasses([*REQUIRED, "--use_peft", "--schedule", "alternate"])
    assert model.use_peft and config.schedule == "alternate"


def test_help_is_grouped(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    titles = ["model", "data", "stages", "objective", "language weights", "training (transformers)"]
    places = [text.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    places.append(len(text))
    flags_of = [["data_dir", "language_sampling"], ["do_train"], ["forget_objective"], ["patience"], ["learning_rate"]]
    for group, flag in [(group, flag) for group, names in enumerate(flags_of, start=1) for flag in names]:
        assert places[group] < text.index(f"\n  --{flag} ") < places[group + 1]
    assert "{none,nll,kl,lingtea,jsd,rmu}" in text


def test_every_flag_has_help():
    for dtype in (ModelArguments, DataArguments, UnlearnConfig):
        for item in dataclasses.fields(dtype):
            assert item.metadata.get("help"), item.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "--learning_rat; did you mean --learning_rate?"),
        (["--forget-coeff=2"], "--forget-coeff=2; did you mean --forget_coef?"),
        (["--learning", "1"], "unknown flag --learning"),  # no abbreviations
        (["--seed", "x"], "--seed"),
        (["--schedule", "both"], "--schedule"),
        (["--do_train", "maybe"], "--do_train"),
        (["--method", "lingte"], "--method lingte .*; did you mean lingtea?"),
        (["--retain_objective", "kll"], "--retain_objective kll .* nll, kl, lingtea"),
        (["--eval_strategy", "sometimes"], "sometimes"),
        (["--forget_coef", "-1"], "--forget_coef must not be negative, not -1.0"),
        (["--retain_coef", "-1"], "--retain_coef"),
        (["--distill_constant", "1.5"], "--distill_constant must be 0 to 1"),
        (["--distill_temperature", "0"], "--distill_temperature"),
        (["--weight_update_steps", "0"], "--weight_update_steps must be at least 1"),
        (["--patience", "0"], "--patience"),
        (["--forget_target", "low"], "--forget_target must be a number or auto, not low"),
        (["--forget_target", "2"], "--forget_target must be 0 to 1"),
        (["--retain_weight_min", "2"], "--retain_weight_min and --retain_weight_max"),
        (["--max_retain_perplexity_ratio", "1"], "--max_retain_perplexity_ratio"),
        (["--memorize_learning_rate", "0"], "--memorize_learning_rate"),
        (["--max_train_samples", "0"], "--max_train_samples"),
        (["--max_seq_length", "1"], "--max_seq_length"),
        (["--lora_r", "0"], "--lora_r"),
        (["--use_peft", "--lora_r", "0"], "--lora_r must be at least 1"),
        (["--use_peft", "--lora_alpha", "0"], "--lora_alpha must be at least 1"),
        (["--lora_alpha", "8"], "--lora_alpha .* add --use_peft"),
        (["--lora_target_modules", "all-linear"], "--lora_target_modules .* add --use_peft"),
        (["--learning_rate", "-1"], "--learning_rate must be a finite number, not negative, not -1.0"),
        (["--learning_rate", "inf"], "--learning_rate must be a finite number"),
        (["--learning_rate", "nan"], "--learning_rate must be a number, not nan"),
        (["--weight_decay", "-1"], "--weight_decay must not be negative"),
        (["--save_strategy", "epcoh"], "--save_strategy.*epcoh"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor 0.1 would have no effect"),
        (["--train_sampling_strategy", "group_by_length"], "group_by_length would have no effect"),
        (["--auto_find_batch_size"], "--auto_find_batch_size .* halve --per_device_train_batch_size and double"),
        (["--dataloader_drop_last"], "--dataloader_drop_last True would have no effect"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_kwargs null .* cosine_with_min_lr: .*min_lr"),
        (["--languages", "en", "fr", "--heldout_languages", "fr"], "--heldout_languages name fr"),
        (["--method", "gradient_ascent", "--retain_weighting", "primal_dual"], "--retain_weighting .* none"),
        (["--method", "retain_only", "--forget_weighting", "target"], "--forget_weighting target .* none"),
        (["--method", "memorize", "--forget_weighting", "target"], "--forget_weighting target .* nll"),
        (["--method", "gradient_ascent", "--forget_objective", "none"], "nothing to train"),
        (["--method", "kl", "--lingtea_alignment", "released"], "--lingtea_alignment released .* kl"),
        (["--method", "kl", "--distill_weighting", "language"], "--distill_weighting language .* kl"),
        (["--method", "memorize", "--memorize_first"], "--memorize_first"),
        (["--train_never_seen", "--never_seen_model", "x"], "--never_seen_model"),
        (["--teacher", "adapter"], "--use_peft"),
        (["nothing.json"], "nothing.json is neither a JSON file nor one of the presets"),
        (["flore"], "did you mean flores?"),
        (["flores", "bmlama"], "unexpected word bmlama"),
    ],
)
def test_refused_on_the_command_line(words, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        flags(*words)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--output_dir"),
        (["--data_dir", "d", "--output_dir", "o"], "--model_name_or_path"),
        (["--model_name_or_path", "m", "--output_dir", "o"], "--data_dir"),
    ],
)
def test_refused_when_something_is_missing(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments(argv)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "run.json: unknown key 'learning_rat'; did you mean learning_rate?"),
        ({"seed": "1"}, "run.json: 'seed' must be a whole number, not \"1\""),
        ({"seed": True}, "run.json: 'seed' must be a whole number, not true"),
        ({"seed": 1.5}, "run.json: 'seed'"),
        ({"seed": None}, "run.json: 'seed' must be a whole number, not null"),
        ({"learning_rate": "1e-4"}, "run.json: 'learning_rate' must be a number"),
        ({"do_train": "yes"}, "run.json: 'do_train' must be true or false"),
        ({"languages": "en"}, "run.json: 'languages' must be a list or null"),
        ({"languages": ["en", 1]}, "run.json: 'languages'"),
        ({"schedule": "both"}, 'run.json: \'schedule\' must be "joint" or "alternate"'),
        ({"fsdp_config": [1]}, "run.json: 'fsdp_config'"),
        ('{"seed": 1,\n "method"}', "run.json:2: broken JSON"),
        ("[1]", "run.json: must hold one object"),
    ],
)
def test_refused_in_a_file(run, settings, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        run(settings if isinstance(settings, str) else {**BASE, **settings})


def test_several_gpus_in_one_process_are_refused(monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    with pytest.raises(ConfigError, match="accelerate launch --num_processes 4"):
        flags()


def listed_fields():
    for dtype in (ModelArguments, DataArguments, UnlearnConfig):
        for name, hint in typing.get_type_hints(dtype).items():
            parts = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else (hint,)
            choices = [word for part in parts if typing.get_origin(part) is typing.Literal for word in part.__args__]
            if choices and str not in parts:
                yield dtype, name, choices[0]


@pytest.mark.parametrize("dtype, name, choice", listed_fields())
def test_a_misspelled_value_is_refused_in_python_too(dtype, name, choice, tmp_path):
    given = {"output_dir": str(tmp_path)} if dtype is UnlearnConfig else {"model_name_or_path": "m"}
    given = {"data_dir": "d"} if dtype is DataArguments else given
    with pytest.raises(ConfigError, match=f"--{name} {choice}x is not one of .*did you mean {choice}"):
        dtype(**{**given, name: f"{choice}x"})


@pytest.mark.parametrize(
    "name, value",
    [
        ("satimp_beta1", -5),
        ("satimp_beta2", -0.1),
        ("calibrated_margin", -3),
        ("calibrated_spread", -1),
        ("npo_beta", 0),
        ("undial_strength", -1),
        ("rmu_steering", 0),
        ("simnpo_delta", float("inf")),
        ("wga_beta", float("nan")),
        ("satimp_beta1", "5"),
        ("relearn_rate", -1),
        ("relearn_coef", -2),
    ],
)
def test_an_option_out_of_its_range_is_refused_in_python_too(name, value, tmp_path):
    with pytest.raises(ConfigError, match=f"--{name} must"):
        UnlearnConfig(output_dir=str(tmp_path), **{name: value})


def test_satimp_weighs_forgetting_ten_times_as_published():
    config = flags("--method", "satimp")
    assert (config.forget_coef, config.retain_coef) == (1.0, 0.1)


@pytest.mark.parametrize(
    "surgery", [{"relearn_coef": 1.0}, {"project_forget_gradient": True}, {"method": "calibrated"}]
)
def test_reentrant_checkpointing_is_refused_where_gradients_are_taken_apart(surgery, tmp_path):
    checkpointed = {"output_dir": str(tmp_path), "gradient_checkpointing": True, **surgery}
    with pytest.raises(ConfigError, match="use_reentrant"):
        UnlearnConfig(**checkpointed, gradient_checkpointing_kwargs={"use_reentrant": True})
    assert UnlearnConfig(**checkpointed, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert UnlearnConfig(
        output_dir=str(tmp_path), gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}
    )


@pytest.mark.parametrize(
    "program, module, expected",
    [
        ("/usr/bin/unlearn-trainer", None, "unlearn-trainer"),
        ("C:/Scripts/unlearn-trainer.exe", None, "unlearn-trainer"),
        ("somewhere/run_unlearn.py", None, "run_unlearn.py"),
        ("somewhere/run_unlearn.py", "run_unlearn", "python -m run_unlearn"),
        ("a/unlearn_trainer/audit/__main__.py", "unlearn_trainer.audit.__main__", "python -m unlearn_trainer.audit"),
        ("/usr/bin/pytest", "pytest.__main__", "run_unlearn.py"),
    ],
)
def test_the_usage_names_the_command_as_it_was_given(program, module, expected, monkeypatch, capsys):
    main = types.ModuleType("__main__")
    main.__spec__ = module and importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {expected} [PRESET")
