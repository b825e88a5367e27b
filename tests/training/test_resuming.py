"""What a resumed run may change: nothing that a figure depends on; what is read of a checkpoint runs no code."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from helpers.material import write_material
from helpers.tiny import LANGUAGES, tiny_config, tiny_model, tiny_rows, tiny_trainer
from safetensors.torch import load_file

import run_unlearn
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.trainer import UnlearnTrainer
from unlearn_trainer.training.checkpoints import checkpoint_to_resume
from unlearn_trainer.training.identity import COMPUTATION

SETTINGS = {"method": "grad_diff", "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
SETTINGS |= {"lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An output folder with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("written")
    tiny_trainer(folder, **SETTINGS).train()
    return folder


def resume(written, folder, model=None, edit=None, **changes):
    """Resume a copy of the checkpoint of step 2 with other settings."""
    shutil.copytree(written / "checkpoint-2", folder / "checkpoint-2")
    trainer = tiny_trainer(folder, model, **SETTINGS | changes)
    if edit:
        edit(trainer)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return trainer


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bf16": True}, "--bf16 False, not True"),
        ({"bf16_full_eval": True}, "--bf16_full_eval"),
        ({"neftune_noise_alpha": 5.0}, "--neftune_noise_alpha"),
        ({"optim": "sgd"}, "--optim adamw_torch_fused, not sgd"),
        ({"adam_beta2": 0.9}, "--adam_beta2"),
        ({"adam_epsilon": 1e-6}, "--adam_epsilon"),
        ({"weight_decay": 0.1}, "--weight_decay"),
        ({"max_grad_norm": 0.1}, "--max_grad_norm"),
        ({"warmup_steps": 3}, "--warmup_steps"),
        ({"lr_scheduler_type": "linear"}, "--lr_scheduler_type"),
        ({"data_seed": 3}, "--data_seed"),
        ({"eval_strategy": "epoch"}, "--eval_strategy"),
        ({"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}, "--load_best_model_at_end"),
        ({"ignore_data_skip": True}, "--ignore_data_skip"),
    ],
)
def test_a_flag_that_decides_figures_is_refused(changes, named, written, tmp_path):
    with pytest.raises(ConfigError, match=named):
        resume(written, tmp_path, **changes)


def test_every_field_of_the_training_is_one_that_decides_figures_or_one_that_does_not(written):
    identity = json.loads((written / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"]
    identity = identity["LanguageWeightCallback"]["attributes"]["identity"]
    assert {*COMPUTATION, "eval_strategy", "mixed precision", "start weights"} <= identity.keys()


def scaled(place, by=1.02, **settings):
    """A tiny model of which one tensor is another by 2 %."""
    model = tiny_model(**settings)
    with torch.no_grad():
        model.get_parameter(place).mul_(by)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: scaled("model.embed_tokens.weight"),
        lambda: scaled("model.layers.1.mlp.down_proj.weight"),
        lambda: scaled("model.norm.weight"),
        lambda: scaled("lm_head.weight", by=1 + 1e-6),
        lambda: tiny_model(dtype=torch.bfloat16),
        lambda: tiny_model(rms_norm_eps=1e-3),
    ],
    ids=["embedding", "layer", "norm", "head", "dtype", "settings"],
)
def test_a_start_model_that_is_another_by_little_is_refused(make, written, tmp_path):
    with pytest.raises(ConfigError, match="another start model|weights in float32, not bfloat16|configuration of the"):
        resume(written, tmp_path, make())


def changed_in_one_number(place, model):
    """The model with another last number of one parameter or buffer."""
    with torch.no_grad():
        model.state_dict()[place].view(-1)[-1] += 0.5
    return model


@pytest.mark.parametrize(
    "place", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_one_number_anywhere_makes_another_start_model(place, written, tmp_path):
    with pytest.raises(ConfigError, match="another start model"):
        resume(written, tmp_path, changed_in_one_number(place, tiny_model()))


def test_what_a_model_keeps_beside_its_parameters_is_of_the_start_model_too(tmp_path):
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    experts |= {"moe_intermediate_size": 16, "first_k_dense_replace": 1}
    tiny_trainer(tmp_path / "a", tiny_model("glm4_moe", **experts), **SETTINGS).train()
    other = changed_in_one_number("model.layers.1.mlp.gate.e_score_correction_bias", tiny_model("glm4_moe", **experts))
    with pytest.raises(ConfigError, match="another start model"):
        resume(tmp_path / "a", tmp_path / "b", other)


def test_a_teacher_that_was_passed_in_is_known_by_all_of_its_weights(tmp_path):
    def trainer(teacher):
        rows = tiny_rows(seed=0), tiny_rows(seed=1)
        config = tiny_config(tmp_path, **SETTINGS | {"method": "lingtea", "teacher": "resident"})
        return UnlearnTrainer(tiny_model(), config, *rows, languages=LANGUAGES, teacher=teacher)

    trainer(tiny_model(seed=1)).train()
    # Of the head alone: the teacher's states, by which it is known under any engine, stay the same.
    other = changed_in_one_number("lm_head.weight", tiny_model(seed=1))
    with pytest.raises(ConfigError, match="another teacher"):
        trainer(other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    trainer(tiny_model(seed=1)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_under_an_adapter_the_base_is_known_and_a_fresh_adapter_may_be_drawn_anew(tmp_path):
    peft = pytest.importorskip("peft", reason="the peft package is not installed")

    def adapted(model, seed):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))

    tiny_trainer(tmp_path / "a", adapted(tiny_model(), 1), **SETTINGS).train()
    resumed = resume(tmp_path / "a", tmp_path / "b", adapted(tiny_model(), 2))
    assert resumed.state.global_step == 4
    whole = adapted(tiny_model(), 1)
    tiny_trainer(tmp_path / "c", whole, **SETTINGS).train()
    assert torch.equal(weights_of(resumed.model), weights_of(whole))
    for place in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        with pytest.raises(ConfigError, match="another start model"):
            resume(tmp_path / "a", tmp_path / place, adapted(scaled(place), 1))


def other_rows(split):
    def edit(trainer):
        trainer.eval_dataset[split] = tiny_rows(seed=9)

    return edit


def no_evaluation(trainer):
    trainer.eval_dataset = None


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (other_rows("valid"), "other valid rows measured at its start .*--max_eval_samples"),
        (other_rows("forget"), "other forget rows measured"),
        (lambda trainer: trainer.predict_dataset.update(test=tiny_rows(seed=8)), "no figures of the test rows"),
        (lambda trainer: trainer.eval_dataset.pop("valid"), "figures of valid rows at its start, which are not"),
        (lambda trainer: trainer.heldout_languages.append("xx"), "--heldout_languages"),
    ],
    ids=["other", "of forget", "added", "dropped", "held out"],
)
def test_rows_that_are_measured_stay_the_same(edit, named, written, tmp_path):
    with pytest.raises(ConfigError, match=named):
        resume(written, tmp_path, edit=edit)


def test_what_decides_no_figure_may_change(written, tmp_path):
    changes = {"gradient_checkpointing": True, "logging_steps": 3, "save_steps": 3, "dataloader_num_workers": 0}
    resumed = resume(written, tmp_path, **changes, per_device_eval_batch_size=3)
    whole = tiny_trainer(tmp_path / "whole", **SETTINGS)
    whole.train()
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.parametrize(
    ("schedule", "is_same"),
    [
        ({"lr_scheduler_type": "constant"}, True),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, True),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5}, False),
        ({"lr_scheduler_type": "linear"}, False),
        ({"lr_scheduler_type": "cosine"}, False),
        ({"lr_scheduler_type": "inverse_sqrt"}, True),
    ],
)
def test_a_prolonged_training_says_where_it_is_not_one_of_that_length(schedule, is_same, tmp_path, caplog):
    settings = {**SETTINGS, **schedule}
    tiny_trainer(tmp_path / "a", **settings).train()
    longer = tiny_trainer(tmp_path / "a", **settings | {"max_steps": 6})
    longer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    whole = tiny_trainer(tmp_path / "whole", **settings | {"max_steps": 6})
    whole.train()
    assert torch.equal(weights_of(longer.model), weights_of(whole.model)) == is_same
    said = [record.message for record in caplog.records if "planned for 4 steps and this one has 6" in record.message]
    assert bool(said) != is_same


def rewrite(checkpoint, change):
    """Change the language weights' part of a checkpoint's state."""
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    change(state["stateful_callbacks"]["LanguageWeightCallback"]["attributes"])
    file.write_text(json.dumps(state))


def as_before(attributes):
    """The identity as earlier versions wrote it."""
    new = (*COMPUTATION, "heldout_languages", "mixed precision", "types of the weights", "model settings")
    new += ("start weights", "eval_strategy", "eval_delay", "eval_on_start")
    kept = {name: value for name, value in attributes["identity"].items() if name not in new}
    attributes["identity"] = {name: value for name, value in kept.items() if not name.startswith("measured")}


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_what_it_knows_is_compared(written, tmp_path):
    for name in "abc":
        shutil.copytree(written / "checkpoint-2", tmp_path / name / "checkpoint-2")
        rewrite(tmp_path / name / "checkpoint-2", as_before)
    resumed = tiny_trainer(tmp_path / "a", **SETTINGS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    whole = tiny_trainer(tmp_path / "whole", **SETTINGS)
    whole.train()
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))
    with pytest.raises(ConfigError, match="--seed 42, not 7"):
        tiny_trainer(tmp_path / "b", **SETTINGS, seed=7).train(True)
    rewrite(tmp_path / "c" / "checkpoint-2", lambda attributes: attributes.update(figures_at_start=None))
    with pytest.raises(ConfigError, match="no figures of the .* rows at its start"):
        tiny_trainer(tmp_path / "c", **SETTINGS).train(True)


def test_before_is_never_what_was_measured_afterwards(tmp_path):
    flags = write_material(tmp_path)
    results = run_unlearn.run([*flags, "--output_dir", str(tmp_path / "measured"), "--do_eval"])
    assert results["before"] is None and results["after"]["forget"] and results["before_missing"]
    assert json.loads((tmp_path / "measured" / "results.json").read_text())["before"] is None
    trained = [*flags, "--do_train", "--lr_scheduler_type", "constant", "--output_dir", str(tmp_path / "run")]
    results = run_unlearn.run([*trained, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2"])
    assert results["before"] is None and results["after"] == {}
    for file in ("results.json", "model.safetensors"):
        (tmp_path / "run" / file).unlink()
    with pytest.raises(ConfigError, match="no figures of the forget rows at its start"):
        run_unlearn.run([*trained, "--max_steps", "4", "--resume_from_checkpoint", "true", "--do_eval"])


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def with_evil(file, mark):
    """Put a command into a file of tensors, beside what is in it."""
    content = torch.load(file, weights_only=False) if file.exists() else {}
    torch.save({"content": content, "evil": Evil(mark)}, file)


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin", "adapter_model.bin"),
        *("optimizer.bin", "global_step2/mp_rank_00_model_states.pt", "global_step2/zero_pp_rank_0_optim_states.pt"),
    ],
)
def test_a_command_pickled_into_a_checkpoint_is_refused_and_not_run(name, written, tmp_path):
    checkpoint, mark = tmp_path / "out" / "checkpoint-2", tmp_path / "mark"
    shutil.copytree(written / "checkpoint-2", checkpoint)
    (checkpoint / name).parent.mkdir(exist_ok=True)
    with_evil(checkpoint / name, mark)
    trainer = tiny_trainer(tmp_path / "out", **SETTINGS)
    with pytest.raises(ConfigError, match=f"{name} holds posix.mkdir, .*never run; resume"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not mark.exists()
    torch.load(checkpoint / name, weights_only=False)  # the command would have been run
    assert mark.exists()


def test_commands_behind_links_and_in_plain_pickles_are_refused(written, tmp_path):
    elsewhere, mark = tmp_path / "elsewhere", tmp_path / "mark"
    elsewhere.mkdir()
    with_evil(elsewhere / "rank_0_optim_states.pt", mark)
    for name, make in (
        ("linked", lambda checkpoint: (checkpoint / "global_step2").symlink_to(elsewhere)),
        ("metadata", lambda checkpoint: (checkpoint / ".metadata").write_bytes(pickle.dumps(Evil(mark)))),
        ("sharded", lambda checkpoint: torch.save(Evil(mark), checkpoint / "__0_0.distcp")),
    ):
        checkpoint = tmp_path / name / "checkpoint-2"
        shutil.copytree(written / "checkpoint-2", checkpoint)
        make(checkpoint)
        trainer = tiny_trainer(tmp_path / name, **SETTINGS, resume_from_checkpoint="true")
        with pytest.raises(ConfigError, match="never run"):
            checkpoint_to_resume(trainer.args)
    assert not mark.exists()


def test_what_the_engines_write_beside_tensors_is_let_through(written, tmp_path):
    scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler", reason="DeepSpeed is not installed")
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(written / "checkpoint-2", checkpoint)
    (checkpoint / "global_step2").mkdir()
    numbers = {"init_scale": 2**16, "scale_window": 9, "min_scale": 1, "delayed_shift": 2}
    dynamic = scaler.DynamicLossScaler(**numbers, consecutive_hysteresis=False)
    for number, found in enumerate((scaler.LossScaler(1.0), dynamic)):
        content = {
            "loss_scaler": found,
            "stage": ZeroStageEnum(2),
            "at": fragment_address(3, 4),
            "numbers": np.ones(3),
        }
        torch.save(content, checkpoint / "global_step2" / f"zero_pp_rank_{number}_optim_states.pt")
    trainer = tiny_trainer(tmp_path, **SETTINGS)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", "{"),
        ("trainer_state.json", "[]"),
        ("trainer_state.json", '{"global_step": "two", "max_steps": 4}'),
        ("trainer_state.json", b"\xff\xfe\x00"),
        ("config.json", '{"model_type": '),
        ("trainer_state.json", "[" * 100_000),
    ],
)
def test_damaged_json_of_a_checkpoint_is_one_line(name, content, written, tmp_path):
    shutil.copytree(written / "checkpoint-2", tmp_path / "checkpoint-2")
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "checkpoint-2" / name).write_bytes(content)
    trainer = tiny_trainer(tmp_path, **SETTINGS)
    with pytest.raises(ConfigError, match=f"{name} is damaged .*; name another"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda attributes: attributes.pop("window"), "lacks window"),
        (lambda attributes: attributes.pop("stop_reason"), "lacks stop_reason"),
        (lambda attributes: attributes.clear(), "lacks forget, retain, distill"),
        (lambda attributes: attributes.update(momentum=[1.0]), "has the unknown momentum"),
    ],
)
def test_a_state_of_the_language_weights_of_another_version_is_one_line(change, said, written, tmp_path):
    shutil.copytree(written / "checkpoint-2", tmp_path / "checkpoint-2")
    rewrite(tmp_path / "checkpoint-2", change)
    trainer = tiny_trainer(tmp_path, **SETTINGS)
    with pytest.raises(ConfigError, match=f"trainer_state.json is damaged .*{said}.*; name another, or delete"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("change", [{"forget": None}, {"retain": [1.0]}, {"target": ["a", "b", "c"]}, {"start": 3}])
def test_damaged_state_of_the_language_weights_is_one_line(change, written, tmp_path):
    shutil.copytree(written / "checkpoint-2", tmp_path / "checkpoint-2")
    rewrite(tmp_path / "checkpoint-2", lambda attributes: attributes.update(change))
    trainer = tiny_trainer(tmp_path, **SETTINGS)
    with pytest.raises(ConfigError, match="trainer_state.json is damaged"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_of_another_engine_is_refused(written, tmp_path):
    shutil.copytree(written / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-2" / "global_step2").mkdir()
    with pytest.raises(ConfigError, match="written under DeepSpeed.*launch the run as"):
        tiny_trainer(tmp_path, **SETTINGS).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_best_model_is_loaded_after_the_folder_was_moved(tmp_path):
    settings = {**SETTINGS, "method": "retain_only", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "retain_loss"}
    settings |= {"greater_is_better": True, "save_total_limit": 2, "save_steps": 2}  # the first is the best

    class Cut(BaseException):
        pass

    first = tiny_trainer(tmp_path / "first", **settings)

    def cut(*args):
        raise Cut

    real = first._save_checkpoint
    first._save_checkpoint = lambda *args: cut() if first.state.global_step == 6 else real(*args)
    with pytest.raises(Cut):
        first.train()
    (tmp_path / "first").rename(tmp_path / "second")
    (tmp_path / "link").symlink_to(tmp_path / "second")
    moved = tiny_trainer(tmp_path / "link", **settings)
    moved.train(resume_from_checkpoint=str(tmp_path / "link" / "checkpoint-4"))
    assert (tmp_path / "second" / "checkpoint-2").is_dir()
    expected = tiny_model()
    expected.load_state_dict(load_file(tmp_path / "second" / "checkpoint-2" / "model.safetensors"), strict=False)
    assert torch.equal(weights_of(moved.model), weights_of(expected))
