"""The commands of README with two processes: run_unlearn.py under each engine, on two machines, and when it fails."""

import json
import os
import random
import signal
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_model
from launching import BIN, DEEPSPEED, HERE, ROOT, TORCHRUN, accelerate, distance, free_port, numbers, run, start
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import run_unlearn

SCRIPT = ROOT / "run_unlearn.py"
LETTERS = "abcdefghijklmnopqrst"
LANGUAGES = ["en", "sw", "zh", "de"]
ITEMS = {"forget": 6, "retain": 6, "valid": 5, "test": 1}
FLAGS = "--languages en sw zh --heldout_languages de --use_cpu --disable_tqdm true --report_to none"
# The large epsilon keeps Adam from turning the rounding of small gradients into steps, over three trainings in a row.
UNLEARN = """--do_train --do_eval --do_predict --memorize_first --train_never_seen --memorize_epochs 12
--memorize_learning_rate 1e-2 --max_steps 6 --learning_rate 1e-3 --adam_epsilon 1e-3 --forget_weighting target
--weight_update_steps 2 --save_strategy no --logging_steps 3 --eval_strategy steps --eval_steps 3
--stop_when_forgotten false --max_retain_perplexity_ratio 1e9"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Flags that name a tiny model and a few cloze rows in four languages."""
    folder, rng = tmp_path_factory.mktemp("material"), random.Random(0)
    words = ["<unk>", "<pad>", "</s>", *(language + letter for language in LANGUAGES for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    special_ids = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 2}
    tiny_model(vocab_size=len(words), **special_ids).save_pretrained(folder / "model")
    for split, count in ITEMS.items():
        rows = []
        for _ in range(count):
            prompt = [*rng.sample(LETTERS, 4), "<mask>"]
            candidates = [[first, rng.choice(LETTERS)] for first in rng.sample(LETTERS, 3)]
            row = {"prompt": {}, "answers": {}, "candidates": {}}
            for language in LANGUAGES:
                spelled = [" ".join(language + letter for letter in each) for each in candidates]
                row["prompt"][language] = " ".join(language + each for each in prompt).replace(f"{language}<", "<")
                row["candidates"][language], row["answers"][language] = spelled, spelled[:1]
            rows.append(json.dumps(row) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return [*FLAGS.split(), "--model_name_or_path", str(folder / "model"), "--data_dir", str(folder)]


def flags(material, out, processes):
    return [*material, *UNLEARN.split(), "--per_device_train_batch_size", 8 // processes, "--output_dir", out]


@pytest.fixture(scope="module")
def reference(material, tmp_path_factory):
    """One process at the same global batch."""
    out = tmp_path_factory.mktemp("one") / "run"
    run([sys.executable, SCRIPT, *flags(material, out, 1)])
    results = json.loads((out / "results.json").read_text())
    moved = [entry["forget"] for entry in results["language_weights"][1:]]
    assert len(moved) == 4 and results["language_weights"][0]["forget"] not in moved
    return out, results


def assert_equals_reference(out, reference):
    results, expected = json.loads((out / "results.json").read_text()), reference[1]
    assert results["environment"]["world_size"] == 2
    for when in ("before", "after", "never_seen"):
        found, others = numbers(results[when]), numbers(expected[when])
        assert found.keys() == others.keys()
        for key, value in others.items():
            # Perplexities are judged by their logarithms, the losses; Min-K++ divides by a spread, which may be small.
            allowed = 5e-6 if key[-1] == "min_k_plus_plus" else 1e-6 * max(value, 1)
            assert found[key] == pytest.approx(value, rel=1e-6, abs=allowed), (when, key)
    assert len(results["language_weights"]) == len(expected["language_weights"])
    for entry, other in zip(results["language_weights"], expected["language_weights"], strict=True):
        assert entry["forget"] == pytest.approx(other["forget"], abs=1e-6)
    assert results["unlearning_score"] == pytest.approx(expected["unlearning_score"], abs=1e-6)
    for folder in (".", "memorized", "never_seen"):
        assert distance(out / folder, reference[0] / folder) < 1e-5
        model, info = AutoModelForCausalLM.from_pretrained(out / folder, output_loading_info=True)
        assert not any(info.values()), info
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not list(out.rglob("*.unfinished"))


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_accelerate_launch(engine, material, reference, tmp_path):
    script = HERE / "launched.py" if engine == "fsdp2" else SCRIPT
    printed = run([*accelerate(engine), script, *flags(material, tmp_path / "run", 2)])
    assert_equals_reference(tmp_path / "run", reference)
    # Three trainings, and one table; the other process is silent.
    assert printed.count("'train_runtime'") == 3
    assert printed.count("unlearning score") == 1


def test_deepspeed_launcher_with_a_json_file(material, reference, tmp_path):
    words = flags(material, tmp_path / "run", 2)
    batch = words.index("--per_device_train_batch_size")
    (tmp_path / "my_run.json").write_text(json.dumps({"per_device_train_batch_size": words[batch + 1], "seed": 42}))
    del words[batch : batch + 2]
    file = ROOT / "ds_configs" / "zero3.json"
    run([*DEEPSPEED, SCRIPT, tmp_path / "my_run.json", "--deepspeed", file, *words])
    assert_equals_reference(tmp_path / "run", reference)


def test_two_machines(material, reference, tmp_path):
    port = free_port()
    place = ["--main_process_ip", "127.0.0.1", "--machine_rank"]
    machines = [
        start([*accelerate("multi_node"), *place, rank, SCRIPT, *flags(material, tmp_path / "run", 2)], port)
        for rank in range(2)
    ]
    printed = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(text[-3000:] for text in printed)
    assert_equals_reference(tmp_path / "run", reference)


def test_an_adapter_starts_from_the_seed(material, tmp_path):
    train = "--do_train --use_peft --lora_r 2 --max_steps 1 --save_strategy no".split()
    for name in ("first", "second"):
        run_unlearn.run([*material, *train, "--output_dir", str(tmp_path / name)])
    assert distance(tmp_path / "first", tmp_path / "second") == 0


FAULTS = {"torchrun": TORCHRUN, "accelerate-zero2": accelerate("zero2"), "deepspeed-zero2": DEEPSPEED}


def end_of_job(command, **environment):
    """Exit code, seconds from the fault (or the start) to the end, output; fails where a process is left."""
    mark = f"TEST_JOB={uuid.uuid4()}"
    process = start(command, **environment, **dict([mark.split("=")]))
    began, lines = time.time(), []
    for line in process.stdout:
        lines.append(line)
        if "'loss'" in line:  # the first step is over, the fault follows
            began = time.time()
    code, seconds = process.wait(timeout=600), time.time() - began
    left = [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if mark.encode() in content(path)]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left
    return code, seconds, "".join(lines)


def content(path):
    try:
        return path.read_bytes()
    except OSError:  # ended, or another user's
        return b""


@pytest.mark.parametrize("fault, rank", [("raise", 1), ("kill", 0)])
@pytest.mark.parametrize("launcher", FAULTS)
def test_a_failing_process_ends_the_whole_job(launcher, fault, rank, material, tmp_path):
    more = ["--deepspeed", ROOT / "ds_configs" / "zero2.json"] if launcher == "deepspeed-zero2" else []
    train = ["--do_train", "--max_steps", 6, "--save_strategy", "no", "--logging_steps", 1, "--output_dir", tmp_path]
    command = [*FAULTS[launcher], HERE / "launched.py", *material, *train, *more]
    code, seconds, printed = end_of_job(command, FAULT=fault, FAULT_RANK=str(rank))
    assert code != 0
    assert "'loss'" in printed and seconds < 60, seconds
    assert "'train_runtime'" not in printed
    assert fault == "kill" or "RuntimeError: injected" in printed


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate-ddp"])
def test_a_signal_to_the_launcher_is_one_line_and_a_checkpoint(launcher, signal_number, material, tmp_path):
    command = TORCHRUN if launcher == "torchrun" else accelerate("ddp")
    train = [
        "--do_train",
        "--max_steps",
        4000,
        "--save_strategy",
        "no",
        "--logging_steps",
        1,
        "--output_dir",
        tmp_path,
    ]
    process = start([*command, SCRIPT, *material, *train])
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "'loss'" in line and not any("'loss'" in earlier for earlier in lines[:-1]):
            process.send_signal(signal_number)
    assert process.wait(timeout=120) != 0
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[signal_number]
    printed = "".join(lines)
    assert printed.count(f"stopped: {name} at step") == 1, printed
    assert "unlearn_trainer/" not in printed
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").exists() and not (tmp_path / "model.safetensors").exists()


def test_a_configuration_that_only_the_first_process_cannot_use_is_refused_by_all(material, tmp_path):
    """The model's configuration is gone for the first process when it tries the end of the run."""
    words = [*material, "--do_train", "--max_steps", 6, "--save_strategy", "no", "--output_dir", tmp_path]
    code, seconds, printed = end_of_job([*TORCHRUN, HERE / "launched.py", *words], FAULT="unsavable", FAULT_RANK="0")
    assert code != 0 and seconds < 60
    assert printed.count("error: injected") == 1 and "Traceback" not in printed.split("error: injected")[0]


def test_each_process_refuses_by_itself_what_the_first_one_found(material, tmp_path):
    """Without a launcher, which ends the others as soon as one fails, and so hides whether they would have."""
    words = [*material, "--do_train", "--max_steps", 6, "--save_strategy", "no", "--output_dir", tmp_path]
    port, job = free_port(), {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    job |= {"FAULT": "unsavable", "FAULT_RANK": "0"}
    processes = [
        start(
            [sys.executable, HERE / "launched.py", *words], port, RANK=rank, LOCAL_RANK=rank, MASTER_PORT=port, **job
        )
        for rank in ("0", "1")
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, found in zip(processes, printed, strict=True):
        assert process.returncode == 2 and "error: injected" in found and "Traceback" not in found, found[-3000:]


def test_bad_input_is_reported_once_and_by_whoever_found_it(material, tmp_path):
    words = [*material, "--do_train", "--max_steps", 6, "--save_strategy", "no", "--output_dir", tmp_path]
    code, _, printed = end_of_job([*TORCHRUN, SCRIPT, *words, "--learning_rte", "1"])
    assert code != 0
    assert printed.count("error: unknown flag --learning_rte; did you mean --learning_rate?") == 1
    assert "exitcode  : 2" in printed
    # Found by the second process alone, as when only its disk lacks a file.
    code, _, printed = end_of_job([*TORCHRUN, HERE / "launched.py", *words], FAULT="refuse", FAULT_RANK="1")
    assert code != 0
    assert printed.count("error: injected") == 1


def test_processes_that_a_launcher_did_not_connect_are_refused(material, tmp_path):
    words = [word for word in material if word != "--use_cpu"]
    launch = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "PORT"]
    command = [*launch, SCRIPT, *words, "--do_train", "--max_steps", 2, "--output_dir", tmp_path / "run"]
    code, _, printed = end_of_job(command, CUDA_VISIBLE_DEVICES="")
    assert code != 0
    assert printed.count("error: the launcher started 2 processes, which are not connected") == 1
    assert "--use_cpu" in printed and "exitcode  : 2" in printed
    assert not (tmp_path / "run").exists()
