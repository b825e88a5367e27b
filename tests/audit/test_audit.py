"""The audit from end to end: models whose state is known are judged right, and what was measured is not run again."""

import copy
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.material import LANGUAGES, write_material
from helpers.tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_unlearn
from unlearn_trainer.audit.__main__ import arguments_of_run
from unlearn_trainer.audit.__main__ import run as audit
from unlearn_trainer.audit.checks.quantization import quantize, round_asymmetric
from unlearn_trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("UNLEARN_DATA", ROOT.parent / "shared" / "data"))
STAGES = """--memorize_first --train_never_seen --memorize_epochs 80 --memorize_learning_rate 5e-3 --adam_beta2 0.95
--per_device_train_batch_size 24"""
RELEARNING = "--audit_relearn_learning_rate 2e-3 --audit_relearn_steps 10".split()

pytestmark = pytest.mark.slow


def renamed(flags, **values):
    """The flags with other values; new ones are added."""
    flags = list(flags)
    for name, value in values.items():
        if f"--{name}" in flags:
            flags[flags.index(f"--{name}") + 1] = str(value)
        else:
            flags += [f"--{name}", str(value)]
    return flags


class Lab:
    """A model that knows the forget rows by heart, one that never saw them, and what is made of the first."""

    def __init__(self, folder):
        self.folder = folder
        self.flags = write_material(folder, items=24, hidden_size=64, intermediate_size=128, head_dim=16)
        run_unlearn.run([*self.flags, *STAGES.split(), "--output_dir", str(folder / "stages")])
        self.before, self.never_seen = folder / "stages" / "memorized", folder / "stages" / "never_seen"

    def unlearned(self, name, words):
        flags = renamed(self.flags, model_name_or_path=self.before, output_dir=self.folder / name)
        run_unlearn.run([*flags, "--do_train", "--per_device_train_batch_size", "24", *words.split()])
        return self.folder / name

    def audit(self, model, *words, checks=None, name=None, references=True):
        output = self.folder / "audits" / (name or model.name)
        flags = renamed(self.flags, model_name_or_path=model, output_dir=output)
        if references:
            flags = renamed(flags, model_before=self.before, never_seen_model=self.never_seen)
        found = audit([*flags, *RELEARNING, *words, *(["--audit_checks", *checks.split()] if checks else [])])
        assert json.loads((output / "audit.json").read_text())["languages"].keys() == found["languages"].keys()
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


def verdicts(found):
    return {language: found["languages"][language]["verdict"] for language in LANGUAGES}


def test_the_model_that_never_saw_it_has_forgotten_everywhere(lab):
    found = lab.audit(lab.never_seen)
    assert verdicts(found) == dict.fromkeys(LANGUAGES, "forgotten")
    assert found["skipped"].keys() == {"probing", "truth_ratio"}
    assert {"prompts", "quantization", "logit_lens", "steering", "relearning"} <= found["attacks"].keys()
    for figures in (found["languages"][language]["figures"] for language in LANGUAGES):
        for name, figure in figures.items():
            assert figure["n"] > 0, name
            assert figure["low"] <= figure["value"] <= figure["high"], name
            # The same model in both places: all of it at 0, by construction.
            assert figure.get("position", {"value": 0})["value"] == pytest.approx(0, abs=1e-12), name
    folder = lab.folder / "audits" / "never_seen"
    assert "forgotten" in (folder / "audit.md").read_text()
    assert (folder / "audit.html").read_text().lstrip().lower().startswith("<!doctype html")


def test_the_model_before_leaks_everywhere(lab):
    found = lab.audit(lab.before, checks="memorization relearning")
    assert verdicts(found) == dict.fromkeys(LANGUAGES, "leaks")
    for language in LANGUAGES:
        figures = found["languages"][language]["figures"]
        assert figures["memorization_accuracy"]["position"]["value"] == pytest.approx(1)
        assert figures["auc_loss"]["value"] > 0.95 > figures["auc_loss"]["never_seen"]["value"]
        assert figures["privleak"]["value"] < -80


def test_a_model_unlearned_in_one_language_leaks_in_the_others(lab):
    model = lab.unlearned(
        "english", "--languages en --heldout_languages sw zh --method grad_diff --learning_rate 1e-3 --max_steps 30"
    )
    found = lab.audit(model, checks="memorization")
    assert {"sw", "zh"} <= {language for language, verdict in verdicts(found).items() if verdict == "leaks"}
    # The languages that know most stand first.
    assert list(found["languages"])[-1] == "en"
    places = {
        code: found["languages"][code]["figures"]["memorization_accuracy"]["position"]["value"] for code in LANGUAGES
    }
    assert places["en"] < 0.6 < 0.9 < min(places["sw"], places["zh"])


def test_a_model_ruined_by_ascent_is_over_unlearned(lab):
    words = "--method gradient_ascent --learning_rate 2e-3 --max_steps 40 --max_retain_perplexity_ratio 1e30"
    found = lab.audit(lab.unlearned("ruined", words))
    assert verdicts(found) == dict.fromkeys(LANGUAGES, "over-unlearned")
    assert found["languages"]["sw"]["figures"]["retain/perplexity"]["value"] > 1000


def test_calibrated_forgetting_of_whole_texts_leaves_nothing_that_leaks(lab):
    words = "--method calibrated --learning_rate 1e-3 --max_steps 120 --max_retain_perplexity_ratio 1e30"
    found = lab.audit(lab.unlearned("calibrated", words), checks="memorization relearning")
    assert not {"leaks", "over-unlearned"} & set(verdicts(found).values())
    for language in LANGUAGES:
        figures = found["languages"][language]["figures"]
        # Neither above nor below what was never seen, from which ascent ends far away.
        assert figures["loss"]["value"] == pytest.approx(figures["loss"]["never_seen"]["value"], rel=0.1)
        assert figures["retain/perplexity"]["value"] < 1.05 * figures["retain/perplexity"]["before"]["value"]


def test_a_suppression_of_the_output_is_found_in_the_layers_below(lab):
    words = r"--method grad_diff --learning_rate 1e-2 --max_steps 40 --trainable_layers layers\.1\."
    model = lab.unlearned("output_side", words + " --max_retain_perplexity_ratio 1e30")
    found = lab.audit(model, checks="memorization logit_lens")
    assert verdicts(found) == dict.fromkeys(LANGUAGES, "leaks")
    for language in LANGUAGES:
        figures = found["languages"][language]["figures"]
        assert figures["memorization_accuracy"]["position"]["high"] < 0.25
        assert figures["logit_lens/memorization_accuracy"]["position"]["value"] > 0.5


def thinner_than_four_bits(start, rows):
    """``start`` on the four-bit grid, and then moved within its steps until the rows' predictions are wrong."""
    model = quantize(copy.deepcopy(start), 4)
    linear = [
        module
        for name, module in model.named_modules()
        if ".layers." in name and hasattr(module, "weight") and module.weight.ndim == 2
    ]
    origin = [module.weight.detach().clone() for module in linear]
    room = []
    for weight in origin:
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        ends = (weight == low) | (weight == high)  # they carry the grid
        room.append(torch.where(ends, 0, 0.4 * (high.clamp(min=0) - low.clamp(max=0)) / 15))
    for _ in range(20):
        model.zero_grad()
        (-sum(model(input_ids=ids, labels=ids).loss for ids in rows)).backward()
        with torch.no_grad():
            for module, weight, bound in zip(linear, origin, room, strict=True):
                moved = module.weight - 0.2 * bound * module.weight.grad.sign()
                module.weight.copy_(weight + (moved - weight).clamp(-bound, bound))
    for module, weight in zip(linear, origin, strict=True):
        torch.testing.assert_close(round_asymmetric(module.weight.detach(), 4), weight)
    return model


def test_a_suppression_thinner_than_four_bits_is_found_by_rounding(lab):
    start = AutoModelForCausalLM.from_pretrained(lab.before)
    tokenizer = AutoTokenizer.from_pretrained(lab.before)
    items = [json.loads(line) for line in (lab.folder / "forget.jsonl").read_text().splitlines()]
    texts = [tokenizer(text, return_tensors="pt").input_ids for item in items for text in item.values()]
    folder = lab.folder / "thin"
    thinner_than_four_bits(start, texts).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = lab.audit(folder, checks="memorization quantization")
    assert verdicts(found) == dict.fromkeys(LANGUAGES, "leaks")
    for language in LANGUAGES:
        figures = found["languages"][language]["figures"]
        plain, rounded = (figures[f"{kind}memorization_accuracy"]["position"]["value"] for kind in ("", "int4/"))
        assert plain < 0.2 < 0.5 < rounded


def test_without_a_never_seen_model_unseen_rows_stand_in(lab):
    checks = "memorization quantization relearning"
    words = ["--model_before", str(lab.before)]
    found = lab.audit(lab.never_seen, *words, checks=checks, name="unseen_rows", references=False)
    assert found["models"]["never_seen"].endswith("valid rows")
    assert "leaks" not in verdicts(found).values()
    leaking = lab.audit(lab.before, *words, checks=checks, name="unseen_rows_before", references=False)
    assert verdicts(leaking) == dict.fromkeys(LANGUAGES, "leaks")
    alone = lab.audit(lab.before, checks="memorization steering", name="alone", references=False)
    assert verdicts(alone) == dict.fromkeys(LANGUAGES, "leaks")
    assert alone["skipped"]["steering"] == "needs --model_before"
    assert alone["skipped"]["relearning"] == "not asked for"


def test_where_nothing_was_known_nothing_can_be_forgotten(lab, capsys):
    found = lab.audit(
        lab.never_seen, "--model_before", str(lab.never_seen), checks="memorization", name="nothing", references=False
    )
    assert sorted(found["summary"]["nothing_to_forget"]) == LANGUAGES
    assert verdicts(found) == dict.fromkeys(LANGUAGES, "undecided")
    assert "cannot show that anything was forgotten" in capsys.readouterr().out


def test_an_earlier_request_that_has_come_back_leaks(lab, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    shutil.copy(lab.folder / "forget.jsonl", first)
    shutil.copy(lab.folder / "retain.jsonl", second)
    # Rows that neither model knows stand for the second request, those that one of them knows by heart for the first.
    lines = first.read_text().splitlines()
    flags = renamed(lab.flags, model_name_or_path=lab.never_seen, model_before=lab.never_seen)
    at = flags.index("--data_dir")
    flags[at : at + 2] = ["--forget_file", str(lab.folder / "valid.jsonl"), "--test_file", str(second)]
    for model, leaks in ((lab.never_seen, False), (lab.before, True)):
        words = renamed(
            flags, model_name_or_path=model, output_dir=tmp_path / model.name, never_seen_model=lab.never_seen
        )
        found = audit([*words, "--forgotten_files", str(first), "--audit_checks", "memorization"])
        for language in LANGUAGES:
            figure = found["languages"][language]["figures"]["forgotten_1/memorization_accuracy"]
            assert figure["n"] == len(lines)
            assert (figure["excess"]["low"] > 0.5) == leaks
            assert (found["languages"][language]["verdict"] == "leaks") == leaks


def test_a_finished_check_is_not_run_again(lab):
    lab.audit(lab.never_seen, checks="memorization quantization", name="resumed")
    folder = lab.folder / "audits" / "resumed"
    first = json.loads((folder / "audit.json").read_text())
    kept, lost = folder / "checks" / "memorization-after.json", folder / "checks" / "quantization-after.json"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    again = lab.audit(lab.never_seen, checks="memorization quantization", name="resumed")
    assert kept.stat().st_mtime_ns == stamp
    assert lost.exists()
    assert json.loads(json.dumps(again["languages"])) == first["languages"]
    with pytest.raises(ConfigError, match=r"made with other settings \(files differ\)"):
        lab.audit(lab.before, checks="memorization", name="resumed")


def test_a_run_and_its_audit_in_one_command_or_two(lab, tmp_path):
    output = tmp_path / "run"
    flags = renamed(lab.flags, model_name_or_path=lab.before, never_seen_model=lab.never_seen, output_dir=output)
    run_unlearn.run(
        [*flags, *"--do_train --max_steps 2 --learning_rate 1e-3 --audit --audit_checks memorization".split()]
    )
    first = json.loads((output / "audit" / "audit.json").read_text())
    assert first["models"] == {"after": str(output), "before": str(lab.before), "never_seen": str(lab.never_seen)}
    shutil.rmtree(output / "audit")
    again = audit([str(output), "--audit_checks", "memorization"])
    assert again["models"] == first["models"]
    assert json.loads(json.dumps(again["languages"])) == first["languages"]
    with pytest.raises(ConfigError, match=r"no finished run"):
        audit([str(tmp_path)])


def test_an_adapter_is_audited_as_it_would_be_used(lab, tmp_path):
    output = tmp_path / "run"
    flags = renamed(lab.flags, model_name_or_path=lab.before, never_seen_model=lab.never_seen, output_dir=output)
    words = "--do_train --max_steps 2 --learning_rate 1e-2 --use_peft --lora_r 2 --audit --audit_checks memorization"
    run_unlearn.run([*flags, *words.split()])
    first = json.loads((output / "audit" / "audit.json").read_text())
    assert first["models"]["after"] == str(output) and first["models"]["before"] == str(lab.before)
    figures = first["languages"]["sw"]["figures"]["loss"]
    assert figures["value"] != pytest.approx(figures["before"]["value"], rel=1e-3)
    again = audit(["--local_rank=0", str(output), "--output_dir", str(tmp_path / "again")])
    assert json.loads(json.dumps(again["languages"]["sw"]["figures"]["loss"])) == figures


def test_the_model_before_is_the_very_one_that_the_run_started_from(tmp_path):
    config = {"memorize_first": False, "train_never_seen": False, "never_seen_model": None}
    config |= {"model_name_or_path": "org/model", "revision": "abc", "gguf_file": "q4.gguf", "adam_beta2": 0.95}
    (tmp_path / "results.json").write_text(json.dumps({"config": config}))
    words, before = arguments_of_run(tmp_path)
    assert (before.model_name_or_path, before.revision, before.gguf_file) == ("org/model", "abc", "q4.gguf")
    assert "--revision" not in words and "--gguf_file" not in words
    # An attack of the audit learns as the run did.
    assert words[words.index("--adam_beta2") + 1] == "0.95"


def test_relearning_that_learns_nothing_or_diverges_says_nothing(lab):
    for name, rate, told in (("idle", "1e-9", "hardly anything was relearned"), ("diverged", "1e25", "diverged")):
        words = ["--audit_relearn_learning_rate", rate, "--audit_relearn_languages", "en"]
        found = lab.audit(lab.never_seen, *words, checks="memorization relearning", name=name)
        assert any(told in note for note in found["attacks"]["relearning"]["notes"])
        assert (lab.folder / "audits" / name / "audit.html").exists()
        if name == "idle":
            assert set(verdicts(found).values()) == {"undecided"}
            assert "learned next to nothing" in found["languages"]["sw"]["reasons"][0]


def test_relearning_shows_the_worst_language_and_one_language_by_its_own_rows(lab):
    found = lab.audit(lab.before, checks="memorization relearning", name="worst")
    matrix = found["attacks"]["relearning"]["matrix"]["values"]["after"]
    for column, language in enumerate(LANGUAGES):
        figures = found["languages"][language]["figures"]
        others = [line[column] for row, line in enumerate(matrix) if row != column]
        names = ("relearned", "relearned_in_best_language")
        mean, best = (figures[f"{name}/memorization_accuracy"]["value"] for name in names)
        assert mean == pytest.approx(sum(others) / 2)
        assert min(others) - 1e-9 <= best <= max(others) + 1e-9
    alone = lab.audit(
        lab.never_seen, "--audit_relearn_languages", "en", checks="memorization relearning", name="one_language"
    )
    figures = alone["languages"]["en"]["figures"]["relearned/memorization_accuracy"]
    assert figures["n"] == 12  # of 24 rows


def test_an_earlier_request_in_other_languages_is_measured_there(lab, tmp_path):
    lines = [json.loads(line) for line in (lab.folder / "forget.jsonl").read_text().splitlines()]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(json.dumps({key: line[key] for key in ("en", "sw")}) + "\n" for line in lines))
    valid = [json.loads(line) for line in (lab.folder / "valid.jsonl").read_text().splitlines()]
    second.write_text("".join(json.dumps({"en": line["en"]}) + "\n" for line in valid))
    flags = renamed(lab.flags, model_name_or_path=lab.before, never_seen_model=lab.never_seen)
    at = flags.index("--data_dir")
    flags[at : at + 2] = ["--forget_file", str(second), "--forgotten_files", str(first)]
    found = audit([*renamed(flags, output_dir=tmp_path / "out"), "--audit_checks", "memorization"])
    assert found["languages"].keys() == {"en", "sw"}
    assert found["languages"]["sw"]["verdict"] == "leaks" and found["languages"]["sw"]["held_out"]


def test_an_audit_in_a_folder_of_another_training_is_refused_before_the_training(lab, tmp_path):
    output = tmp_path / "run"
    (output / "audit" / "checks").mkdir(parents=True)
    (output / "audit" / "checks" / "memorization-after.json").write_text("{}")
    flags = renamed(lab.flags, model_name_or_path=lab.before, output_dir=output)
    with pytest.raises(ConfigError, match="holds an audit of an earlier training"):
        run_unlearn.run([*flags, "--do_train", "--max_steps", "1", "--audit"])
    assert not (output / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--audit_checks relerning", r"--audit_checks relerning is not one of .*did you mean relearning"),
        ("--audit_relearn_languages xx", r"--audit_relearn_languages xx: not one of en, sw, zh"),
        ("--model_before /nowhere/model", r"--model_before /nowhere/model: there is no such folder"),
        ("--forgotten_files /nowhere.jsonl", r"/nowhere.jsonl: cannot be read"),
        ("--audit_relearn_steps 0", r"--audit_relearn_steps must be at least 1"),
        ("--audit_relearn_learning_rate 0", r"--audit_relearn_learning_rate must be above 0"),
    ],
)
def test_bad_input_is_refused_at_the_start(lab, words, message, tmp_path):
    flags = renamed(lab.flags, model_name_or_path=lab.before, output_dir=tmp_path)
    with pytest.raises(ValueError, match=message):
        audit([*flags, *words.split()])
    assert not (tmp_path / "audit.json").exists()


@pytest.mark.parametrize(
    ("files", "checks"),
    [
        ({"forget": "tofu/forget01.jsonl", "retain": "tofu/retain.jsonl", "test": "tofu/real_authors.jsonl"}, 9),
        (
            {
                "forget": "bmlama53/forget-32.jsonl",
                "retain": "bmlama53/retain-32-x1.jsonl",
                "valid": "bmlama53/valid.jsonl",
            },
            9,
        ),
    ],
    ids=["tofu", "bmlama53"],
)
def test_real_rows_of_questions_and_blanks(files, checks, tmp_path):
    if not DATA.is_dir():
        pytest.skip(f"needs the data of {DATA}")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    paths = {split: DATA / file for split, file in files.items()}
    for split, path in paths.items():
        lines = path.read_text(encoding="utf-8").splitlines()[:6]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train([str(path) for path in tmp_path.glob("*.jsonl")], trainer)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    for name, seed in (("model", 0), ("before", 1), ("never_seen", 2)):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(
            tmp_path / name
        )
        tiny_model(
            seed=seed, vocab_size=600, eos_token_id=1, bos_token_id=None, max_position_embeddings=512
        ).save_pretrained(tmp_path / name)
    words = [
        *("--model_name_or_path", str(tmp_path / "model"), "--model_before", str(tmp_path / "before")),
        *("--never_seen_model", str(tmp_path / "never_seen"), "--data_dir", str(tmp_path)),
        *("--output_dir", str(tmp_path / "out"), "--use_cpu", "--max_seq_length", "256", "--disable_tqdm", "true"),
        *("--audit_relearn_languages", "hi", "--audit_relearn_steps", "2", "--audit_relearn_batch_size", "4"),
    ]
    found = audit(words)
    assert len(found["attacks"]) >= checks
    # Every figure that both other models have, too, and differ in, stands between them.
    placed = {name for each in found["languages"].values() for name, f in each["figures"].items() if "position" in f}
    assert {"loss", "perplexity"} <= placed
    languages = json.loads((tmp_path / "forget.jsonl").read_text(encoding="utf-8").splitlines()[0])
    kind = "question" if "question" in languages else "prompt"
    assert found["languages"].keys() == languages[kind].keys()
    for code, entry in found["languages"].items():
        figures = entry["figures"]
        expected = {"truth_ratio", "rouge_l"} if kind == "question" else {"probing_accuracy", "rank_consistency"}
        assert expected <= figures.keys(), code
        assert all(math.isfinite(figures[name]["value"]) for name in expected)
    # What prompts and candidates are made of counts as well: an audit does not go on with other questions.
    rows = [json.loads(line) for line in (tmp_path / "forget.jsonl").read_text(encoding="utf-8").splitlines()]
    changed = rows[0]["paraphrased_question" if kind == "question" else "candidates"]
    code = next(iter(changed))
    changed[code] = f"{changed[code]} eh" if kind == "question" else [*changed[code], "eh"]
    (tmp_path / "forget.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"made with other settings \(rows differ\)"):
        audit(words)
