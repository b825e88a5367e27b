"""What SIGTERM, Ctrl-C or a crash may interrupt is there as a whole or not at all, and a folder is one run's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers.trainer
from helpers.material import write_material
from helpers.tiny import tiny_trainer
from transformers import TrainerCallback

import run_unlearn
from unlearn_trainer.audit.__main__ import run as audit
from unlearn_trainer.engine import engines
from unlearn_trainer.errors import ConfigError, Terminated
from unlearn_trainer.files import MARK, held_folder

ROOT = Path(__file__).resolve().parents[2]
STAGES = "--memorize_first --train_never_seen --memorize_epochs 2 --per_device_train_batch_size 6".split()


class Interrupting(TrainerCallback):
    """Sends this process a signal in the training whose folder's name holds ``place``."""

    signal_number, place = signal.SIGTERM, ""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and self.place in args.output_dir:
            os.kill(os.getpid(), self.signal_number)


@pytest.fixture
def interrupting(monkeypatch):
    def interrupt(signal_number, place):
        monkeypatch.setattr(Interrupting, "signal_number", signal_number)
        monkeypatch.setattr(Interrupting, "place", place)
        callbacks = [*transformers.trainer.DEFAULT_CALLBACKS, Interrupting]
        monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", callbacks)

    yield interrupt
    monkeypatch.undo()


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return write_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("signal_number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
@pytest.mark.parametrize("stage", ["memorized", "never_seen"])
def test_a_stage_that_was_cut_short_is_not_kept_as_complete(
    stage, signal_number, name, material, interrupting, tmp_path, monkeypatch
):
    flags = [*material, *STAGES, "--output_dir", str(tmp_path)]
    interrupting(signal_number, stage)
    with pytest.raises(Terminated, match=f"{name} in the stage {stage}") as stopped:
        run_unlearn.run(flags)
    assert 128 + stopped.value.signal_number == {"SIGTERM": 143, "Ctrl-C": 130}[name]
    assert not (tmp_path / stage).exists()
    assert (tmp_path / "memorized" / "stage.json").exists() == (stage == "never_seen")
    monkeypatch.undo()
    run_unlearn.run(flags)
    for each in ("memorized", "never_seen"):
        described = json.loads((tmp_path / each / "stage.json").read_text())
        assert described["epochs"] == 2
        assert not (tmp_path / each / MARK).exists()
    assert not list(tmp_path.glob("*unfinished*")) and not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_cut_short_leaves_a_checkpoint_and_no_model(signal_number, material, interrupting, tmp_path):
    flags = [*material, "--do_train", "--max_steps", "4", "--output_dir", str(tmp_path / "run")]
    interrupting(signal_number, "run")
    with pytest.raises(Terminated, match="at step 2; go on with --resume_from_checkpoint true"):
        run_unlearn.run(flags)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not list((tmp_path / "run").glob("*.safetensors")) and not (tmp_path / "run" / "results.json").exists()


def test_a_check_of_the_audit_that_was_cut_short_is_not_kept(material, interrupting, tmp_path):
    words = "--audit_checks relearning --audit_relearn_steps 3 --audit_relearn_languages en".split()
    flags = [*material, *words, "--output_dir", str(tmp_path / "audit")]
    interrupting(signal.SIGTERM, "")  # relearning trains in a temporary folder
    with pytest.raises(Terminated, match="relearned"):
        audit(flags)
    assert {path.name for path in (tmp_path / "audit").rglob("*")} == {
        *("checks", "memorization-after.json", "memorization-never_seen.json")
    }


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["on_train_begin", "on_evaluate", "on_step_end", "on_train_end"])
def test_a_signal_outside_the_batches_is_not_lost(moment, signal_number, material, tmp_path, monkeypatch):
    """While the start is measured, in the last evaluation, after the last step; also when it comes twice at once."""

    def send(self, args, state, control, **kwargs):
        if moment != "on_train_begin" and state.global_step < 2:
            return
        for _ in range(2):  # as timeout does
            os.kill(os.getpid(), signal_number)

    late = type("Late", (TrainerCallback,), {moment: send})
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, late])
    flags = [*material, *"--do_train --do_eval --max_steps 2 --eval_strategy steps --eval_steps 2".split()]
    flags += ["--output_dir", str(tmp_path / "run")]
    steps = 1 if moment == "on_train_begin" else 2
    with pytest.raises(Terminated, match=f"at step {steps}; go on with"):
        run_unlearn.run(flags)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{steps}"]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    monkeypatch.undo()
    results = run_unlearn.run([*flags, "--resume_from_checkpoint", "true"])
    assert results["before"] and (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("flags", [["--do_train", "--max_steps", "1"], ["--memorize_first", "--memorize_epochs", "1"]])
def test_what_is_saved_when_a_signal_comes_is_whole(flags, material, tmp_path, monkeypatch):
    class AtTheSave(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            save = model.save_pretrained

            def saved(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                save(*args, **kwargs)

            model.save_pretrained = saved

    listed = [*transformers.trainer.DEFAULT_CALLBACKS, AtTheSave]
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", listed)
    with pytest.raises(Terminated, match="complete"):
        run_unlearn.run([*material, *flags, "--do_eval", "--output_dir", str(tmp_path)])
    folder = tmp_path if "--do_train" in flags else tmp_path / "memorized"
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert not (tmp_path / "results.json").exists()


def test_a_second_ctrl_c_does_not_wait(material, tmp_path, monkeypatch):
    class Twice(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Twice])
    earlier = signal.getsignal(signal.SIGINT)  # a process in the background may ignore it
    with pytest.raises(KeyboardInterrupt):
        run_unlearn.run([*material, "--do_train", "--max_steps", "4", "--output_dir", str(tmp_path / "run")])
    assert signal.getsignal(signal.SIGINT) is earlier


@pytest.mark.parametrize(
    "number, name, library, begun",
    [
        (signal.SIGINT, "Ctrl-C", "libtorch_cpu", False),
        (signal.SIGINT, "Ctrl-C", "", True),
        (signal.SIGTERM, "SIGTERM", "", True),
    ],
)
def test_a_signal_outside_of_a_training_is_one_line(number, name, library, begun, material, tmp_path):
    flags = [*material, "--do_eval", "--per_device_eval_batch_size", "1", "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, str(ROOT / "run_unlearn.py"), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    loaded = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and not (
        (tmp_path / "run" / ".lock").exists() if begun else library in loaded.read_text()
    ):
        time.sleep(0.01)
    process.send_signal(number)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 128 + number, printed
    assert printed.count(f"stopped: {name}") == 1 and "Traceback" not in printed
    assert not (tmp_path / "run" / ".lock").exists() and not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("library", ["libtorch_cpu", "tokenizers", "pyarrow"])
@pytest.mark.parametrize("command", ["run_unlearn.py", "-m unlearn_trainer", "-m unlearn_trainer.audit"])
def test_ctrl_c_while_libraries_are_loaded_is_one_line(command, library, tmp_path):
    """Every command, at several of its libraries; none of them has begun to work by then."""
    flags = ["--model_name_or_path", "x", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, *command.split(), *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    loaded = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and library not in loaded.read_text():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert printed == "stopped: Ctrl-C while the libraries were loaded; nothing was begun\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_trainer_that_was_stopped_trains_to_the_end_when_it_is_told_to_go_on(signal_number, tmp_path, interrupting):
    interrupting(signal_number, "")
    trainer = tiny_trainer(tmp_path, max_steps=4, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.terminated
    trainer.remove_callback(Interrupting)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4 and not trainer.terminated


def test_the_lock_goes_where_the_process_has_gone_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with held_folder("run"):
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert not (tmp_path / "run" / ".lock").exists()


# ---- one folder, one run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [run_unlearn.run, audit])
def test_a_folder_in_use_is_refused_and_left_as_it_is(command, material, tmp_path):
    flags = [*material, "--output_dir", str(tmp_path), *(["--do_train"] if command is run_unlearn.run else [])]
    with held_folder(tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(ConfigError, match=rf"in use by another run \(process {os.getpid()} on .*, since 2"):
            command(flags)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not list(tmp_path.iterdir())
    with held_folder(tmp_path):
        pass


def test_a_crash_gives_the_folder_free(tmp_path):
    hold = (
        "import sys; from unlearn_trainer.files import held_folder\n"
        "with held_folder(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {holder.pid} on"), held_folder(tmp_path):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with held_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place, flags",
    [
        ("unfinished", ["--do_train", "--max_steps", "1"]),
        ("memorized.unfinished", ["--memorize_first"]),
        ("never_seen.unfinished", ["--train_never_seen"]),
    ],
)
def test_a_person_s_own_folder_is_never_deleted(place, flags, material, tmp_path):
    kept = tmp_path / place / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(ConfigError, match=f"{place} .* no run has made it; move it away"):
        run_unlearn.run([*material, *flags, "--output_dir", str(tmp_path)])
    assert kept.read_text() == "mine"
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_refused_run_deletes_nothing(material, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / MARK).touch()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an earlier result"):
        run_unlearn.run([*material, "--do_train", "--output_dir", str(tmp_path)])
    assert (tmp_path / "unfinished" / MARK).exists()


@pytest.mark.parametrize("started, world_size, refused", [("2", 1, True), ("2", 2, False), ("1", 1, False)])
def test_processes_that_do_not_know_of_each_other_are_refused(started, world_size, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", started)
    if not refused:
        return engines.check_processes(world_size)
    with pytest.raises(ConfigError, match="started 2 processes, which are not connected .* --use_cpu"):
        engines.check_processes(world_size)


@pytest.mark.parametrize("asked, warned", [(2, True), (1, False)])
def test_one_process_in_place_of_several_is_said(asked, warned, material, tmp_path):
    """Without a GPU, accelerate leaves out all processes but one where nothing says how they are to meet."""
    launch = ["accelerate", "launch", "--num_processes", str(asked), "--num_machines", "1", "--mixed_precision", "no"]
    command = [Path(sys.executable).with_name(launch[0]), *launch[1:], "--dynamo_backend", "no"]
    command += [ROOT / "run_unlearn.py", *material, "--do_eval", "--output_dir", tmp_path / "run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    warnings = json.loads((tmp_path / "run" / "results.json").read_text())["warnings"]
    assert done.stderr.count("has started this one alone") == warned == len(warnings), done.stderr
    assert not warned or "--multi_gpu --num_processes N" in warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["teacher", "read", "rows"])
def test_a_kill_while_a_cache_is_written_or_read_leaves_the_next_start_right(moment, material, tmp_path):
    """SIGKILL in the middle of the teacher's answers, while steps read them, and while rows are tokenized."""
    words = [*material, *"--do_train --do_eval --max_steps 4 --method calibrated --teacher cached".split()]
    words += ["--output_dir", str(tmp_path / "run")]
    killing = (
        "import os, signal, sys, datasets, run_unlearn\n"
        "from unlearn_trainer.teacher import cache, teachers\n"
        "def kill_at(owner, name, number):\n"
        "    call, calls = getattr(owner, name), []\n"
        "    def counted(*args, **kwargs):\n"
        "        calls.append(1)\n"
        "        if len(calls) == number: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return call(*args, **kwargs)\n"
        "    setattr(owner, name, counted)\n"
        "moment = sys.argv[1]\n"
        "if moment == 'teacher': kill_at(teachers.ResidentTeacher, 'ask', 2)\n"
        "if moment == 'read': kill_at(cache.CachedTeacher, 'ask', 2)\n"
        "if moment == 'rows': kill_at(datasets.arrow_writer.ArrowWriter, 'finalize', 2)\n"
        "run_unlearn.main(sys.argv[2:])"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", killing]
    killed = subprocess.run([*command, moment, *words], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = subprocess.run([*command, "none", *words], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr
    words[-1] = str(tmp_path / "undisturbed")
    undisturbed = {**environment, "HF_DATASETS_CACHE": str(tmp_path / "another")}
    subprocess.run([*command, "none", *words], env=undisturbed, cwd=ROOT, capture_output=True, check=True)
    bodies = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "undisturbed")]
    assert bodies[0] == bodies[1]
    assert not (tmp_path / "run" / "teacher").exists()
