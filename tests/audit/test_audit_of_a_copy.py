"""An audit states the configuration of the run that it audits, and a run that was copied audits itself."""

import json
import shutil

import pytest
import torch
from helpers.material import write_material
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import run_unlearn
from unlearn_trainer.audit.__main__ import arguments_of_run
from unlearn_trainer.audit.__main__ import run as audit
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.config.finished import where_it_lies
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.model.loading import load_model

RUN = """--do_train --memorize_first --train_never_seen --memorize_epochs 1 --method npo --learning_rate 3e-4
--num_train_epochs 2 --per_device_train_batch_size 12"""
# Of a training, and its default there.
DEFAULTS = {"method": "lingtea", "learning_rate": 5e-5, "num_train_epochs": 3.0, "forget_coef": 1.0, "do_train": False}
CHECK = ["--audit_checks", "memorization"]


def stated(folder):
    """What a person reads: audit.json, and the pages' text."""
    pages = [(folder / f"audit.{kind}").read_text(encoding="utf-8") for kind in ("md", "html")]
    return json.loads((folder / "audit.json").read_text()), pages


@pytest.mark.parametrize("words", ["", "--use_peft --lora_r 2"])
def test_a_copied_run_is_audited_by_its_own_files_and_as_it_was_made(words, tmp_path):
    # The rows lie in the output folder, the model that all began with does not.
    original, copy = tmp_path / "original", tmp_path / "elsewhere" / "copy"
    flags = write_material(tmp_path, items=4)
    (original / "rows").mkdir(parents=True)
    for file in tmp_path.glob("*.jsonl"):
        shutil.move(file, original / "rows" / file.name)
    flags[flags.index("--data_dir") + 1] = str(original / "rows")
    run_unlearn.run([*flags, *RUN.split(), *words.split(), "--audit", *CHECK, "--output_dir", str(original)])
    first, pages = stated(original / "audit")
    made = json.loads((original / "results.json").read_text())["config"]
    assert first["config"] == made and (made["method"], made["learning_rate"]) == ("npo", 3e-4)
    for page in pages:
        assert "method npo, learning rate 0.0003, epochs 2" in page
    assert not first["settings"].keys() & DEFAULTS.keys()

    shutil.copytree(original, copy, copy_function=shutil.copyfile)  # without the times of the files
    shutil.rmtree(original)
    kept = {path: path.stat().st_mtime_ns for path in (copy / "audit" / "checks").iterdir()}
    again = audit([str(copy), "--use_cpu", *CHECK])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    expected = {"after": copy, "before": copy / "memorized", "never_seen": copy / "never_seen"}
    assert again["models"] == {name: str(path) for name, path in expected.items()}
    assert again["config"] == made and again["settings"]["data_dir"] == str(copy / "rows")
    shutil.rmtree(copy / "audit")  # measured anew, it comes to the same
    again = json.loads(json.dumps(audit([str(copy), "--use_cpu", *CHECK])))
    assert again["languages"] == first["languages"]


def test_a_model_of_no_run_is_stated_with_the_settings_of_the_audit_alone(tmp_path):
    flags = write_material(tmp_path, items=4)
    (tmp_path / "model" / "results.json").write_text('{"results": {"arc": 0.5}}')  # another program's
    words = ["--audit_relearn_steps", "7", *CHECK, "--output_dir", str(tmp_path / "audit")]
    audit([*flags, *words])
    found, pages = stated(tmp_path / "audit")
    assert found["config"] == {}
    assert not found["settings"].keys() & DEFAULTS.keys()
    assert found["settings"]["audit_relearn_steps"] == 7 and found["settings"]["data_dir"] == str(tmp_path)
    assert not any(word in page for page in pages for word in ("lingtea", "unlearned by", "num_train_epochs"))


def test_a_run_that_only_measured_is_audited_as_the_model_that_it_measured(tmp_path):
    config = {"memorize_first": False, "train_never_seen": False, "do_train": False}
    config |= {"model_name_or_path": "org/model", "revision": "abc", "model_before": "org/base"}
    (tmp_path / "results.json").write_text(json.dumps({"config": config}))
    words, before = arguments_of_run(tmp_path)
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--model_name_or_path"] == "org/model" and given["--revision"] == "abc"
    assert given["--model_before"] == "org/base" and before is None


@pytest.mark.parametrize(
    "written, value, expected",
    [
        ("outputs/run", "outputs/run/memorized", "HERE/memorized"),
        ("./outputs/run/", "outputs/run/synthetic/../memorized", "HERE/memorized"),
        ("/old/run", "/old/run/never_seen", "HERE/never_seen"),
        ("/old/run", "/old/run", "HERE"),
        ("/old/run", "/old/running/never_seen", "/old/running/never_seen"),
        ("/old/run", "/old", "/old"),
        ("/old/run", "/other/data.jsonl", "/other/data.jsonl"),
        ("org", "org/model", "org/model"),  # of the Hub
        ("/old/run", None, None),
        ("/old/run", ["/old/run/first.jsonl", "/data/second.jsonl"], ["HERE/first.jsonl", "/data/second.jsonl"]),
    ],
)
def test_only_what_lay_in_the_output_folder_has_moved_with_it(written, value, expected, tmp_path):
    (tmp_path / "memorized").mkdir()
    found = where_it_lies({"output_dir": written, "never_seen_model": value, "seed": 1}, tmp_path)
    assert json.dumps(found["never_seen_model"]).replace(str(tmp_path), "HERE") == json.dumps(expected)
    assert found["seed"] == 1


def put_adapter(folder, under, seed):
    """An adapter with random weights, and no tokenizer, on the model or adapter in ``under``."""
    torch.manual_seed(seed)
    model = load_model(ModelArguments(str(under)))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(under)
    adapted.save_pretrained(folder)


@pytest.mark.parametrize("changed, said", [("model", "base"), ("lower", "base"), ("upper", "files"), (None, None)])
def test_what_changes_under_an_adapter_is_noticed_by_the_resumed_audit(changed, said, tmp_path):
    flags = write_material(tmp_path, items=4)
    put_adapter(tmp_path / "lower", tmp_path / "model", 1)
    put_adapter(tmp_path / "upper", tmp_path / "lower", 2)
    flags[flags.index("--model_name_or_path") + 1] = str(tmp_path / "upper")
    flags += [*CHECK, "--output_dir", str(tmp_path / "audit")]
    first = audit(flags)
    if changed is None:
        for path in tmp_path.glob("*/*.safetensors"):
            path.touch()  # the time of a file is no content
        assert json.loads(json.dumps(audit(flags)["languages"])) == json.loads(json.dumps(first["languages"]))
        return
    (file,) = (tmp_path / changed).glob("*.safetensors")
    weights = load_file(file)
    name = max(weights, key=lambda each: weights[each].numel())
    save_file(weights | {name: weights[name] * 1.5}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"made with other settings \({said} differ\)"):
        audit(flags)
