"""A training beside the run's own, a stage or an attack of the audit, has the run's engine and none of its method."""

import dataclasses
import pickle
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from helpers.material import write_material
from helpers.tiny import LANGUAGES, tiny_config, tiny_model, tiny_rows
from transformers import TrainingArguments

import run_unlearn
from unlearn_trainer.config import arguments
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.runs.relearning import relearn
from unlearn_trainer.runs.stages import plain_training

OURS = sorted(
    {item.name for item in dataclasses.fields(UnlearnConfig)} - TrainingArguments.__dataclass_fields__.keys()
)
# How it is measured, kept and reported, with a value that is not the default.
OF_THE_RUN = {
    "do_eval": True,
    "eval_steps": 7,
    "eval_delay": 3,
    "save_steps": 9,
    "save_total_limit": 2,
    "save_only_model": True,
    "run_name": "mine",
    "hub_model_id": "me/mine",
    "hub_strategy": "end",
    "hub_private_repo": True,
    "load_best_model_at_end": True,
    "metric_for_best_model": "unlearning_score",
    "greater_is_better": True,
}
ENGINE = {"weight_decay": 0.1, "bf16": True, "max_grad_norm": 0.5, "adam_beta2": 0.9, "per_device_eval_batch_size": 3}
ENGINE |= {"warmup_steps": 4, "seed": 5, "full_determinism": False, "dataloader_num_workers": 1, "logging_steps": 6}


def another(name, now):
    """A value of a flag other than ``now``."""
    hint = get_type_hints(UnlearnConfig)[name]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    listed = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    if listed:
        return next(choice for choice in listed if choice != now)
    if bool in kinds:
        return not now
    if int in kinds or float in kinds:
        return (now or 0) + (1 if int in kinds else 0.25)
    return "npo" if str in kinds else ["x"]


@dataclasses.dataclass
class Tomorrow(UnlearnConfig):
    """With flags that nobody has thought of yet."""

    tomorrow_coef: float = 0.5
    tomorrow_schedule: str | None = None
    tomorrow_steps: int = dataclasses.field(default=3, metadata={"help": "Steps of it."})


def values(config):
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}


def test_every_flag_of_unlearning_is_looked_at():
    parts = [each for each in vars(arguments).values() if dataclasses.is_dataclass(each)]
    listed = {item.name for each in parts if issubclass(UnlearnConfig, each) for item in dataclasses.fields(each)}
    assert len(OURS) > 50 and listed - set(OURS) <= TrainingArguments.__dataclass_fields__.keys()


def test_no_flag_of_the_run_reaches_a_training_beside_it(tmp_path):
    expected = values(plain_training(tiny_config(tmp_path), str(tmp_path / "stage"), max_steps=1))
    leaked = []
    for name, value in (dict.fromkeys(OURS) | OF_THE_RUN).items():
        args = tiny_config(tmp_path)
        value = another(name, getattr(args, name)) if name in OURS else value
        assert getattr(args, name) != value, name
        setattr(args, name, value)
        try:
            found = values(plain_training(args, str(tmp_path / "stage"), max_steps=1))
        except ConfigError as error:
            found = {name: error}
        leaked += [name] if found != expected else []
    assert leaked == []


def test_nor_does_a_flag_that_comes_tomorrow(tmp_path):
    args = Tomorrow(str(tmp_path), use_cpu=True, tomorrow_coef=2.0, tomorrow_schedule="late", tomorrow_steps=7)
    config = plain_training(args, str(tmp_path / "stage"), max_steps=1)
    assert (config.tomorrow_coef, config.tomorrow_schedule, config.tomorrow_steps) == (0.5, None, 3)


def test_engine_precision_batch_and_optimizer_are_those_of_the_run(tmp_path):
    args = tiny_config(tmp_path, per_device_train_batch_size=5, optim="sgd", **ENGINE)
    config = plain_training(args, str(tmp_path / "stage"), max_steps=1, learning_rate=1e-2)
    assert {name: getattr(config, name) for name in ENGINE} == ENGINE
    assert (config.per_device_train_batch_size, config.optim, config.max_steps) == (5, "sgd", 1)
    assert config.learning_rate == 1e-2 and config.use_cpu and config.disable_tqdm


METHOD = (
    "--method calibrated --project_forget_gradient --relearn_steps 1 --forget_weighting target --retain_weighting "
    "primal_dual --distill_weighting constant --distill_constant 0.2 --distill_temperature 2 --weight_update_steps 1 "
    "--forget_metric extraction_strength --retain_eta 3 --patience 1 --counterpart_coef 0.5 --calibrated_margin 1 "
    "--language_sampling random --max_retain_perplexity_ratio 1.01 --forget_target 0.9"
)
KEPT = "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --save_total_limit 1"


@pytest.mark.parametrize("more", [METHOD, f"--schedule alternate --method rmu --rmu_layer 1 {KEPT}"])
def test_the_stages_of_a_run_are_the_same_whatever_its_method(more, tmp_path):
    flags = write_material(tmp_path, items=4)
    stages = "--memorize_first --train_never_seen --memorize_epochs 1 --memorize_learning_rate 1e-2 --seed 3"
    for name, words in (("plain", []), ("run", [*more.split(), *"--learning_rate 1e-3 --max_steps 1".split()])):
        run_unlearn.run([*flags, *stages.split(), *words, "--output_dir", str(tmp_path / name)])
    for stage in ("memorized", "never_seen"):
        folders = [tmp_path / name / stage for name in ("plain", "run")]
        assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()
        first, second = (values(torch.load(each / "training_args.bin", weights_only=False)) for each in folders)
        assert first.pop("output_dir") != second.pop("output_dir") and first == second
        assert first["memorize_epochs"] == 10.0 and first["weight_update_steps"] == 10


def test_an_attack_learns_the_same_whatever_the_method_of_the_run(tmp_path):
    found = []
    for settings in ({}, {"method": "calibrated", "calibrated_margin": 1.0, "forget_metric": "extraction_strength"}):
        args = pickle.loads(pickle.dumps(tiny_config(tmp_path, **settings)))
        trainer = relearn(tiny_model, args, tiny_rows(4), "sw", LANGUAGES, learning_rate=1e-2, steps=2, batch_size=2)
        found.append(values(trainer.args) | {"output_dir": None})
    assert found[0] == found[1]
