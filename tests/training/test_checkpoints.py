"""Checkpoints appear whole or not at all, SIGTERM saves, a foreign checkpoint is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_model, tiny_trainer
from safetensors.torch import load_file
from transformers import TrainerCallback

from unlearn_trainer.errors import ConfigError
from unlearn_trainer.training.checkpoints import UNFINISHED, checkpoint_to_resume, delete_old_checkpoints

ROOT = Path(__file__).resolve().parents[2]
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "learning_rate": 1e-3}


class Killed(BaseException):
    pass


def test_a_save_cut_short_leaves_the_earlier_checkpoint_as_the_newest(tmp_path):
    trainer = tiny_trainer(tmp_path, **SAVING)

    def cut_short(output_dir):
        if trainer.state.global_step == 4:
            raise Killed
        return type(trainer)._save_rng_state(trainer, output_dir)

    trainer._save_rng_state = cut_short
    with pytest.raises(Killed):
        trainer.train()
    # What a kill leaves behind: a part of the checkpoint, under no checkpoint's name.
    assert (tmp_path / UNFINISHED / "checkpoint-4" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    trainer.args.resume_from_checkpoint, trainer.args.do_train = "true", True
    assert checkpoint_to_resume(trainer.args) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / UNFINISHED).exists()


def test_a_full_disk_leaves_earlier_checkpoints_readable(tmp_path):
    trainer = tiny_trainer(tmp_path, **SAVING, save_total_limit=1)

    def full(output_dir):
        if trainer.state.global_step == 4:
            raise OSError(28, "No space left on device")
        return type(trainer)._save_optimizer_and_scheduler(trainer, output_dir)

    trainer._save_optimizer_and_scheduler = full
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    resumed = tiny_trainer(tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 6


def test_save_total_limit_keeps_the_newest_and_the_best(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        **SAVING,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="retain_loss",
        greater_is_better=True,  # the first checkpoint is the best: training lowers the loss
        method="retain_only",
    )
    trainer.train()
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-6"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


def test_save_only_model_writes_no_optimizer(tmp_path):
    tiny_trainer(tmp_path, **SAVING, save_only_model=True).train()
    assert not list(tmp_path.glob("checkpoint-*/optimizer*"))
    assert (tmp_path / "checkpoint-6" / "model.safetensors").exists()


def test_sigterm_saves_a_checkpoint_and_ends_the_training(tmp_path):
    trainer = tiny_trainer(tmp_path, **{**SAVING, "save_steps": 100})

    class Warned(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_callback(Warned)
    earlier = signal.getsignal(signal.SIGTERM)
    trainer.train()
    assert trainer.terminated
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert signal.getsignal(signal.SIGTERM) is earlier
    resumed = tiny_trainer(tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6


@pytest.mark.parametrize(
    "limit, best, kept",
    [
        (None, None, [2, 4, 6, 10]),
        (2, None, [6, 10]),
        (1, None, [10]),
        (1, 4, [4, 10]),
        (2, 4, [4, 10]),
        (3, 4, [4, 6, 10]),
        (9, 2, [2, 4, 6, 10]),
    ],
)
def test_the_checkpoints_of_fewest_steps_are_the_oldest_whatever_their_times(limit, best, kept, tmp_path):
    for age, steps in enumerate((2, 4, 6, 10)):
        folder = tmp_path / f"checkpoint-{steps}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        os.utime(folder, (1000 - age, 1000 - age))
    (tmp_path / "checkpoint-1").mkdir()  # a person's, not a run's
    (tmp_path / "checkpoint-of-mine").mkdir()
    # Where it was when it was written.
    delete_old_checkpoints(tmp_path, limit, best and f"/elsewhere/run/checkpoint-{best}")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {f"checkpoint-{steps}" for steps in kept} | {"checkpoint-1", "checkpoint-of-mine"}


def test_the_best_checkpoint_of_a_folder_that_was_moved_is_kept_and_loaded(tmp_path):
    # Ascent raises the forget loss at every step, so that the first is the lowest.
    best = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "forget_loss", "save_total_limit": 2}
    settings = {**SAVING, **best, "load_best_model_at_end": True, "lr_scheduler_type": "constant"}
    tiny_trainer(tmp_path / "first", **{**settings, "max_steps": 4}).train()
    state = json.loads((tmp_path / "first" / "checkpoint-4" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).name == "checkpoint-2"
    os.rename(tmp_path / "first", tmp_path / "moved")
    resumed = tiny_trainer(tmp_path / "moved", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-4"))
    found = sorted(path.name for path in (tmp_path / "moved").glob("checkpoint-*"))
    assert found == ["checkpoint-2", "checkpoint-6"]
    kept = load_file(tmp_path / "moved" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(resumed.model.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize("change", ["teacher", "forget_objective", "seed"])
def test_the_checkpoint_of_another_run_is_refused(change, tmp_path):
    tiny_trainer(tmp_path, **SAVING).train()
    settings = {"forget_objective": {"forget_objective": "nll"}, "seed": {"seed": 7}}.get(change, {})
    model = tiny_model(seed=3) if change == "teacher" else None
    other = tiny_trainer(tmp_path, model, **SAVING, **settings)
    with pytest.raises(ConfigError, match=change):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(tmp_path):
    script = ROOT / "scripts" / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--output_dir", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout


@pytest.mark.parametrize("weighting", ["uniform", "target"])
def test_a_checkpoint_at_the_end_of_an_epoch_holds_the_evaluation_that_follows(weighting, tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    settings |= {"method": "gradient_ascent", "forget_weighting": weighting, "per_device_train_batch_size": 3}
    settings |= {"learning_rate": 1e-3, "stop_when_forgotten": False, "max_retain_perplexity_ratio": 1e30}

    def trainer():
        model = tiny_model()
        return tiny_trainer(tmp_path / weighting, model=model, **settings)

    whole = trainer()
    assert whole.train_sampler.steps_per_epoch == 2
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / weighting / "checkpoint-2"))
    assert resumed.language_weights.state() == whole.language_weights.state()
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relearn_coef": 0.0}, "--relearn_coef"),
        ({"relearn_rate": 2e-4}, "--relearn_rate"),
        ({"relearn_steps": 5}, "--relearn_steps"),
        ({"distill_temperature": 3.0}, "--distill_temperature"),
    ],
)
def test_a_checkpoint_of_other_losses_is_refused(change, message, tmp_path):
    settings = {"method": "lingtea", "relearn_coef": 1.0, "relearn_rate": 1e-4, "max_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 9}
    tiny_trainer(tmp_path, **settings).train()
    with pytest.raises(ConfigError, match=message):
        tiny_trainer(tmp_path, **{**settings, **change}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_of_weights_alone_is_refused(tmp_path):
    settings = {"method": "grad_diff", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    tiny_trainer(tmp_path, save_only_model=True, **settings).train()
    with pytest.raises(ConfigError, match="it holds no state of the optimizer"):
        tiny_trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_an_adapter_of_another_scale_is_refused(tmp_path):
    peft = pytest.importorskip("peft", reason="the peft package is not installed")
    settings = {"method": "grad_diff", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def trainer(alpha):
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=alpha, target_modules="all-linear")
        return tiny_trainer(tmp_path, model=peft.get_peft_model(tiny_model(), config), **settings)

    trainer(4).train()
    with pytest.raises(ConfigError, match="other weights trained"):
        trainer(8).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer(4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
