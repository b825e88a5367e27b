"""What the end of a run needs is tried at its start, and at its end a run says in plain words what came of it."""

import json
import math
import os
import shutil
from collections import namedtuple

import datasets
import pytest
import torch
from helpers.material import LANGUAGES, write_material
from helpers.tiny import tiny_model, tiny_trainer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import run_unlearn
from unlearn_trainer.console import say
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.evaluation.greedy_text import repeats, sample_greedy_text
from unlearn_trainer.runs.outcome import closing_words, weaknesses

STEP = ["--do_train", "--max_steps", "1"]


@pytest.fixture(scope="module")
def memorized(tmp_path_factory):
    """Flags of a run on a model that knows its forget rows by heart."""
    folder = tmp_path_factory.mktemp("memorized")
    flags = write_material(folder)
    learn = ["--method", "memorize", "--do_train", "--num_train_epochs", "80", "--learning_rate", "3e-3"]
    run_unlearn.run([*flags, *learn, "--output_dir", str(folder / "start")])
    return [*flags, "--model_name_or_path", str(folder / "start")]


def run(flags, folder, *more):
    run_unlearn.run([*flags, "--output_dir", str(folder), *more])
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# ---- tried at the start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"top_k": 7, "min_p": 0.1},
        {"early_stopping": True, "length_penalty": 0.5},
        {"output_scores": True},
        {"use_cache": False, "cache_implementation": "static"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_generation_settings_that_do_nothing_cost_no_model(tmp_path, settings):
    flags = write_material(tmp_path)
    place = tmp_path / "model" / "generation_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | settings))
    tokenizer = tmp_path / "model" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({k: v for k, v in json.loads(tokenizer.read_text()).items() if k != "pad_token"}))
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--memorize_first", "--memorize_epochs", "1"]
    run(flags, tmp_path / "out", *STEP, *saving)
    for folder in ("out", "out/checkpoint-1", "out/memorized"):
        assert (tmp_path / folder / "model.safetensors").exists()
        assert (tmp_path / folder / "generation_config.json").exists()


def test_settings_without_effect_are_left_out_only_where_they_cannot_be_saved():
    from unlearn_trainer.model.saving import make_savable, refusal_to_save

    model = tiny_model()
    model.generation_config.update(temperature=0.9, num_beams=4, length_penalty=0.5, max_new_tokens=7)
    assert "temperature" in refusal_to_save(model.generation_config)
    make_savable(model)
    kept = model.generation_config
    assert refusal_to_save(kept) is None and kept.temperature in (None, 1.0)
    assert (kept.num_beams, kept.length_penalty, kept.max_new_tokens) == (4, 0.5, 7)
    model.generation_config.num_return_sequences = 9
    with pytest.raises(ConfigError, match="num_return_sequences.*generation_config.json"):
        make_savable(model)


def test_a_file_name_that_is_not_utf8_costs_no_results(tmp_path, capfd):
    flags = write_material(tmp_path)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/valid-\xff\xe9.jsonl")
    shutil.move(tmp_path / "valid.jsonl", odd)
    results = run(flags, tmp_path / "out", *STEP, "--do_eval", "--valid_file", odd)
    assert results["config"]["valid_file"] == odd and "valid" in results["after"]
    say(odd)  # printed, where a strict terminal would raise
    assert "\\udcff" in capfd.readouterr().out


@pytest.mark.parametrize("broken", ["tokenizer", "configuration"])
def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path, broken, capfd):
    flags = write_material(tmp_path)
    if broken == "tokenizer":  # its file is written strictly as UTF-8
        place, values = tmp_path / "model" / "tokenizer_config.json", {"cls_token_note": "\udcff"}
    else:
        place, values = tmp_path / "model" / "config.json", {"note": "\udcff"}
    place.write_text(json.dumps(json.loads(place.read_text()) | values))
    try:
        run(flags, tmp_path / "out", *STEP)
    except ConfigError as error:
        assert broken in str(error) and "could not be saved" in str(error)
        assert "train_runtime" not in capfd.readouterr().out
        assert os.listdir(tmp_path / "out") == []
    else:  # a release that writes it escaped
        assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_disk_too_small_for_models_and_checkpoints_is_refused_before_the_first_step(tmp_path, monkeypatch):
    flags = write_material(tmp_path)
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    usage = namedtuple("usage", "total used free")
    real = shutil.disk_usage

    def disk_with(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(real(path).total, 0, free))

    disk_with(weights // 2)
    with pytest.raises(ConfigError, match=r"--output_dir .* GB are free there.*--save_total_limit"):
        run(flags, tmp_path / "out", *STEP)
    disk_with(2 * weights)
    with pytest.raises(ConfigError, match="GB are free there"):  # a checkpoint has the optimizer's state, too
        run(flags, tmp_path / "out", *STEP, "--save_strategy", "steps")
    with pytest.raises(ConfigError, match="GB are free there"):
        run(flags, tmp_path / "out", *STEP, "--memorize_first", "--train_never_seen")
    assert sorted(os.listdir(tmp_path / "out")) == []
    run(flags, tmp_path / "out", *STEP)


# ---- said at the end ------------------------------------------------------------------------------------------------


def test_a_run_that_changed_next_to_nothing_says_so_and_what_to_raise(memorized, tmp_path, capfd):
    results = run(memorized, tmp_path, "--do_train", "--do_eval", "--max_steps", "2", "--learning_rate", "1e-5")
    assert results["before"]["forget"]["en"]["memorization_accuracy"] > 0.9
    last = capfd.readouterr().out.splitlines()[-6:]
    (weak,) = [line for line in last if "little was forgotten" in line]
    for word in ("--learning_rate (1e-05 now)", "--max_steps 2", "--forget_coef (1 now)"):
        assert word in weak
    assert any("little was forgotten" in warning for warning in results["warnings"])
    assert last[-1] == f"model: {tmp_path}; report: {tmp_path / 'report.html'}; results: {tmp_path / 'results.json'}"


def test_a_run_that_forgot_and_kept_has_nothing_to_complain_of(memorized, tmp_path, capfd):
    flags = ["--do_train", "--do_eval", "--max_steps", "12", "--learning_rate", "2e-3", "--forget_weighting", "target"]
    results = run(memorized, tmp_path, *flags, "--eval_strategy", "steps", "--eval_steps", "4")
    out = capfd.readouterr().out
    assert "little was forgotten" not in out
    assert [point["step"] for point in results["evaluations"]] == [4, 8, 12]
    for point in results["evaluations"]:
        assert set(point["forget"]) == set(LANGUAGES) and 0 <= point["unlearning_score"] <= 1
    assert set(results["targets"]) == set(LANGUAGES)
    assert "targets of forgetting" in out and "ended after step 12: all steps were done" in out


def test_ascent_that_nothing_guards_is_named_at_the_start_and_its_text_at_the_end(memorized, tmp_path, capfd):
    ruin = ["--do_train", "--method", "gradient_ascent", "--max_steps", "20", "--learning_rate", "0.1"]
    results = run(memorized, tmp_path / "alone", *ruin)
    out = capfd.readouterr().out
    (warning,) = [text for text in results["warnings"] if "nothing guards or measures" in text]
    assert "--retain_file" in warning
    for split in ("forget", "retain"):
        for figures in results["greedy_text"][split].values():
            assert figures["rows"] == 6 and set(figures) == {"blank", "repeating", "ended", "rows"}
    assert "greedy text after 18 forget rows:" in out and "of the greedy texts after" in out
    assert "How the model went on" not in out and "examples" not in results  # texts are shown only on demand
    guarded = run(memorized, tmp_path / "measured", *ruin, "--do_eval", "--show_texts")
    out = capfd.readouterr().out
    assert not [text for text in guarded["warnings"] if "nothing guards" in text]
    assert guarded["stop_reason"] and f": {guarded['stop_reason']}" in out.split("ended after step")[1]
    assert any("what was to stay has suffered" in text for text in guarded["warnings"])
    assert "How the model went on" in out


@pytest.mark.parametrize("kind", ["text", "cloze", "qa"])
def test_what_the_text_became_is_counted_for_every_kind_of_row(tmp_path, kind):
    """A model that says one token whatever it is asked: a letter, or the end of the text."""
    from transformers import AutoModelForCausalLM

    flags = write_material(tmp_path)
    for split in ("forget", "retain", "valid"):
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        if kind != "text":
            cut = [{code: (text.split()[:3], text.split()[3:]) for code, text in row.items()} for row in rows]
            begin = [{code: " ".join(pair[0]) for code, pair in row.items()} for row in cut]
            end = [{code: " ".join(pair[1]) for code, pair in row.items()} for row in cut]
            rows = [{"question": a, "answer": b} for a, b in zip(begin, end, strict=True)]
            if kind == "cloze":
                rows = [
                    {"prompt": {c: f"{t} <mask>" for c, t in a.items()}, "answers": {c: [t] for c, t in b.items()}}
                    for a, b in zip(begin, end, strict=True)
                ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {5: (0.0, 1.0, 0.0), 2: (1.0, 0.0, 1.0), 0: (1.0, 1.0, 0.0)}  # a word, the end, the unknown token
    for token, (blank, repeating, ended) in expected.items():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
        with torch.no_grad():
            model.model.norm.weight.zero_()
            model.model.norm.weight[0] = 1.0
            model.model.embed_tokens.weight[:, 0] = 50.0
            head.weight.zero_()
            head.weight[token, 0] = 1.0
        model.lm_head.weight.data.copy_(head.weight.data)
        model.save_pretrained(tmp_path / f"says-{token}")
        results = run(
            [
                *flags,
                "--model_name_or_path",
                str(tmp_path / f"says-{token}"),
                "--tokenizer_name",
                str(tmp_path / "model"),
            ],
            tmp_path / f"out-{token}",
            *(*STEP, "--learning_rate", "1e-9"),
        )
        for split in ("forget", "retain"):
            for figures in results["greedy_text"][split].values():
                assert (figures["blank"], figures["repeating"], figures["ended"]) == (blank, repeating, ended), token


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([7] * 24, True),
        ([1, 2, 3, 4, 5, 6] + [8, 9] * 9, True),
        (list(range(24)), False),
        ([7] * 5, False),
        ([*range(8), *range(8)], False),  # once more is no loop
    ],
)
def test_a_loop_is_told_from_a_text(ids, expected):
    assert repeats(ids) is expected


@pytest.mark.parametrize("ids", [[1, 2, 3, 4, 5, 6] + [8, 9] * 2, [*range(8), *range(8, 16), *range(8, 16)]])
def test_twice_is_no_loop(ids):
    assert repeats(ids) is False


@pytest.mark.parametrize("split", ["retain", "valid"])
@pytest.mark.parametrize(
    ("rise", "shown"),
    [(math.log(1.9), None), (math.log(3), "3 times"), (math.inf, "times"), (math.nan, "not a number"), (-5.0, None)],
)
def test_either_split_that_was_to_stay_is_named_where_its_perplexity_grew(split, rise, shown, memorized, tmp_path):
    results = run(memorized, tmp_path, *STEP, "--do_eval", "--learning_rate", "1e-9")
    assert not any("has suffered" in words for words in weaknesses(results))
    for figures, before in zip(results["after"][split].values(), results["before"][split].values(), strict=True):
        figures["loss"] = before["loss"] + rise
    said = [words for words in weaknesses(results) if "what was to stay has suffered" in words]
    assert len(said) == (shown is not None)
    if said:
        other = {"retain": "valid", "valid": "retain"}[split]
        assert f"{split} perplexity is" in said[0] and f"{other} perplexity" not in said[0] and shown in said[0]


@pytest.mark.parametrize(
    ("word", "expected"), [("...", True), ("\u3002", True), ("\u0967", False), ("\u6c34", False), ("a", False)]
)
def test_marks_alone_are_a_blank_text_and_letters_and_digits_of_any_script_are_not(word, expected):
    words = {"<unk>": 0, "</s>": 1, word: 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), unk_token="<unk>", eos_token="</s>"
    )
    model = tiny_model(vocab_size=3, pad_token_id=None, bos_token_id=None, eos_token_id=1)
    with torch.no_grad():  # says the word, whatever it is asked
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.model.embed_tokens.weight[:, 0] = 50.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[2, 0] = 1.0
    rows = datasets.Dataset.from_dict({"input_ids": [[2] * 4], "labels": [[-100, -100, 2, 2]], "language": [0]})
    (text,) = sample_greedy_text(model, {"forget": rows}, ["en"], tokenizer, torch.device("cpu"), 2, seed=0)
    assert word in text.text and text.blank is expected


@pytest.mark.parametrize("retain_coef", ["0", "0.5"])
def test_a_retain_objective_that_weighs_nothing_guards_nothing(retain_coef, tmp_path):
    words = [*STEP, "--method", "grad_diff", "--retain_coef", retain_coef]
    results = run(write_material(tmp_path), tmp_path / "out", *words)
    said = [text for text in results["warnings"] if "nothing guards or measures" in text]
    assert len(said) == (retain_coef == "0")


def test_shares_of_texts_are_those_of_all_rows_however_many_a_language_has(tmp_path):
    results = run(write_material(tmp_path), tmp_path / "out", *STEP)
    assert "greedy text after 18 forget rows:" in closing_words(results, written=True)
    few, many = ({"blank": b, "repeating": 0.0, "ended": 1 - b, "rows": n} for b, n in ((1.0, 1), (0.0, 7)))
    results["greedy_text"] = {"forget": {"en": few, "sw": many}}
    said = closing_words(results, written=True)
    assert "greedy text after 8 forget rows: 12% blank, 0% repeating, 88% ended" in said


# ---- the best model is kept -----------------------------------------------------------------------------------------

TOO_FAST = {
    **{"forget_weighting": "target", "forget_target": 0.0, "stop_when_forgotten": False, "learning_rate": 3e-2},
    **{"eval_strategy": "steps", "eval_steps": 1, "max_steps": 8, "lr_scheduler_type": "constant"},
    "max_retain_perplexity_ratio": None,
}


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """The weights of a tiny model that knows its forget rows."""
    learn = {"method": "memorize", "max_steps": 40, "learning_rate": 1e-2}
    trainer = tiny_trainer(tmp_path_factory.mktemp("knowing"), **learn)
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def tiny_run(folder, knowing, **settings):
    model = tiny_model()
    model.load_state_dict(knowing)
    return tiny_trainer(folder, model, method="grad_diff", **{**TOO_FAST, **settings})


def trained(folder, knowing, **settings):
    """A trainer whose score rises and falls, trained; with the states it had at each evaluation."""
    trainer = tiny_run(folder, knowing, **settings)
    states, evaluate = {}, trainer.evaluate

    def remember(*args, **kwargs):
        states[trainer.state.global_step] = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        return evaluate(*args, **kwargs)

    trainer.evaluate = remember
    trainer.train()
    scores = {
        entry["step"]: entry["eval_unlearning_score"]
        for entry in trainer.state.log_history
        if "eval_unlearning_score" in entry
    }
    return trainer, states, scores


def is_state(trainer, state):
    return all(torch.equal(value, state[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    "saving",
    [{"save_strategy": "steps"}, {"save_strategy": "epoch", "save_total_limit": 1}],
    ids=["default", "limit"],
)
def test_the_best_and_not_the_last_model_is_kept(tmp_path, knowing, saving):
    trainer, states, scores = trained(tmp_path, knowing, **saving)
    best = max(scores, key=scores.get)
    assert best != max(scores) and scores[best] > scores[max(scores)] + 0.05
    assert is_state(trainer, states[best]) and trainer.ended_with_best
    assert trainer.args.load_best_model_at_end is None and trainer.args.metric_for_best_model is None
    steps = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")}
    assert best in steps and len(steps) <= 2  # not one for each that was best for a while


@pytest.mark.parametrize(
    "settings",
    [
        {"save_strategy": "no"},
        {"save_strategy": "steps", "load_best_model_at_end": False},
        {"save_strategy": "steps", "forget_weighting": "uniform"},
        {"save_strategy": "steps", "eval_strategy": "no"},
    ],
    ids=["no saves", "not wanted", "uniform", "no evaluations"],
)
def test_the_last_model_stays_where_the_best_was_not_asked_for(tmp_path, knowing, settings):
    trainer, states, scores = trained(tmp_path, knowing, **settings)
    assert not trainer.ended_with_best
    assert not scores or is_state(trainer, states[max(scores)])


def test_nothing_to_forget_is_no_reason_to_refuse_target_weights_with_saves(tmp_path):
    trainer = tiny_trainer(tmp_path, **{**TOO_FAST, "forget_target": 0.99, "save_strategy": "steps", "max_steps": 2})
    trainer.train()
    assert trainer.state.global_step == 2 and not trainer.ended_with_best


def test_a_resumed_run_keeps_the_best_of_all_its_parts(tmp_path, knowing):
    whole, _, scores = trained(tmp_path / "whole", knowing, save_strategy="steps", save_steps=1)
    best = max(scores, key=scores.get)
    resumed = tiny_run(tmp_path / "whole", knowing, save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{best}"))
    assert resumed.ended_with_best and is_state(resumed, whole.model.state_dict())


def test_a_better_model_that_could_not_be_kept_is_named_with_the_flags_that_keep_it(memorized, tmp_path, capfd):
    flags = ["--do_train", "--do_eval", "--forget_weighting", "target", "--stop_when_forgotten", "false"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "20", "--learning_rate", "2e-2"]
    flags += ["--method", "grad_diff", "--max_retain_perplexity_ratio", "1e9", "--lr_scheduler_type", "constant"]
    results = run(memorized, tmp_path / "lost", *flags)
    scores = {point["step"]: point["unlearning_score"] for point in results["evaluations"]}
    best = max(scores, key=scores.get)
    assert scores[best] > results["unlearning_score"] + 0.01
    (said,) = [line for line in capfd.readouterr().out.splitlines() if "an earlier model was better" in line]
    assert f"{scores[best]:.3f} at step {best}" in said and "--save_strategy best" in said
    kept = run(memorized, tmp_path / "kept", *flags, "--save_strategy", "best", "--load_best_model_at_end")
    assert kept["unlearning_score"] == pytest.approx(scores[best]) and kept["model_of_step"] == best
    assert f"kept: the model of step {best}" in capfd.readouterr().out
