"""`scripts/compare_methods.py` on a tiny model: what is run, what is run again, and the figures of the table."""

import json
import math
import runpy
import statistics
from pathlib import Path

import pytest
import torch
from helpers.material import LANGUAGES, write_material
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_trainer.errors import ConfigError

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "compare_methods.py"))
SETTINGS = {
    "*": {"max_steps": 6},
    "harsh": {"method": "grad_diff", "forget_coef": 2.0},
}
PRESET = {
    "memorize_first": True,
    "train_never_seen": True,
    "memorize_epochs": 15,
    "memorize_learning_rate": 1e-2,
    "learning_rate": 3e-3,
    "method": "lingtea",
    "retain_coef": 2.0,
    "max_steps": 99,
}


@pytest.fixture
def compare(tmp_path):
    """``compare(flag, ...)``: the table of a run in the test's folder."""
    words = write_material(tmp_path)
    (tmp_path / "preset.json").write_text(json.dumps(PRESET))
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    words += ["--preset", str(tmp_path / "preset.json"), "--settings", str(tmp_path / "settings.json")]
    relearning = ["--relearn_steps", "3", "--relearn_learning_rate", "1e-2"]

    def run(*more):
        return SCRIPT["run"]([*words, *relearning, "--output_dir", str(tmp_path / "out"), *more])

    return run


def files(folder):
    return {path.name: (path.stat().st_mtime_ns, json.loads(path.read_text())) for path in folder.glob("rows/*.json")}


def naive_figures(folder, material):
    """NLL of the tokens of every row, and every row's accuracy, by (split, language), by the model's own forward."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    losses, accuracy = {}, {}
    for split in ("forget", "retain", "valid"):
        for line in (material / f"{split}.jsonl").read_text().splitlines():
            for language, text in json.loads(line).items():
                ids = torch.tensor(tokenizer(text)["input_ids"])
                with torch.no_grad():
                    log_p = model(ids[None]).logits[0, :-1].log_softmax(-1)
                nll = -log_p.gather(1, ids[1:, None])[:, 0]
                losses.setdefault((split, language), []).append(nll)
                hits = (log_p.argmax(-1) == ids[1:]).double().mean().item()
                accuracy.setdefault((split, language), []).append(hits)
    return losses, accuracy


def auc(members, non_members):
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in non_members]
    return float(sum(pairs) / len(pairs))


@pytest.mark.slow
def test_the_table_of_two_seeds_and_what_is_run_again(compare, tmp_path, capsys):
    lines = compare("--seeds", "1", "2", "--methods", "harsh")
    printed = capsys.readouterr().out
    assert [(line["method"], line["weighting"], line["runs"]) for line in lines] == [
        ("before", "", 2),
        ("never seen", "", 2),
        ("never seen again", "", 2),
        ("harsh", "uniform", 2),
        ("harsh", "target", 2),
    ]
    assert "[10/10] seed 2 harsh target: forget MA" in printed
    assert printed.splitlines()[-1].startswith(f"| harsh | target | {lines[-1]['forget_ma']:.3f} ± ")
    before, never_seen, again, harsh, _ = lines
    assert before["forget_ma"] > 0.9 > 0.4 > never_seen["forget_ma"] == before["never_seen_ma"]
    assert before["loss_auc"] == before["recognisable"] == 1.0 and before["seconds"] == 0.0
    assert before["retain_ratio"] == before["unseen_ratio"] == 1.0
    assert never_seen["loss_gap"] == never_seen["min_k_plus_plus_gap"] == never_seen["regained_excess"] == 0.0
    assert 0 < again["loss_gap"] < 0.5 and again["seconds"] == 0.0
    assert harsh["forget_ma"] < before["forget_ma"] - 0.1 and harsh["seconds"] > 0

    # The never-seen model by hand, and the table's mean and spread from the single files.
    seeds = [tmp_path / "out" / f"seed-{seed}" for seed in (1, 2)]
    for folder in seeds:
        found = files(folder)["never_seen.json"][1]
        losses, accuracy = naive_figures(folder / "never_seen", tmp_path)
        for language in LANGUAGES:
            for split in ("forget", "retain", "valid"):
                expected = torch.cat(losses[split, language]).mean().item()
                assert found["loss"][split][language] == pytest.approx(expected, rel=1e-4)
            assert found["memorization_accuracy"][language] == pytest.approx(
                statistics.fmean(accuracy["forget", language])
            )
            rows = [[nll.mean().item() for nll in losses[split, language]] for split in ("forget", "valid")]
            assert found["membership"][language]["loss"] == pytest.approx(auc(*rows))
        assert list(found["regained"]) == ["en", "zh"] and list(found["regained"]["zh"]) == ["en", "sw"]
    worst = []
    for folder in seeds:
        first, last = (files(folder)[name][1] for name in ("before.json", "harsh-target.json"))
        worst.append(max(math.exp(last["loss"]["valid"][x] - first["loss"]["valid"][x]) for x in LANGUAGES))
        assert last["steps"] == 6
    assert lines[-1]["unseen_ratio"] == pytest.approx(statistics.fmean(worst))
    assert lines[-1]["sd"]["unseen_ratio"] == pytest.approx(statistics.stdev(worst))

    # Finished rows stay; only what has other settings now is run again.
    earlier = files(seeds[0])
    assert compare("--seeds", "1", "2", "--methods", "harsh", "--json") == lines
    assert files(seeds[0]) == earlier
    changed = SETTINGS | {"harsh": SETTINGS["harsh"] | {"forget_coef": 1.5}}
    (tmp_path / "settings.json").write_text(json.dumps(changed))
    compare("--seeds", "1", "--methods", "harsh")
    again = {name for name, found in files(seeds[0]).items() if found != earlier[name]}
    assert again == {"harsh-uniform.json", "harsh-target.json"}


def test_a_training_that_diverges_is_a_line_of_the_table(compare, tmp_path):
    changed = SETTINGS | {"grad_diff": {"learning_rate": 1e30, "max_retain_perplexity_ratio": 1e300}}
    (tmp_path / "settings.json").write_text(json.dumps(changed))
    lines = compare("--seeds", "1", "--methods", "grad_diff", "--relearn_languages", "sw")
    assert [line["diverged"] for line in lines] == [0, 0, 0, 1, 1]
    assert "| grad_diff | uniform | diverged |" in SCRIPT["markdown"](lines)
    assert "±" not in SCRIPT["markdown"](lines)
    assert list(files(tmp_path / "out" / "seed-1")["before.json"][1]["regained"]) == ["sw"]


def test_figures_that_are_no_numbers_are_the_same_line_when_they_are_read_again(compare, tmp_path, capsys):
    """A single step, behind which no loss is looked at, leaves weights that overflow."""
    changed = SETTINGS | {"ruined": {"method": "grad_diff", "learning_rate": 1e30, "max_steps": 1}}
    (tmp_path / "settings.json").write_text(json.dumps(changed))
    flags = ["--seeds", "1", "--methods", "ruined", "--relearn_languages", "sw", "--memorize_epochs", "1"]
    first = compare(*flags)
    earlier = files(tmp_path / "out" / "seed-1")
    capsys.readouterr()
    again = compare(*flags, "--json")
    assert files(tmp_path / "out" / "seed-1") == earlier and repr(first) == repr(again)
    ruined = again[-1]
    assert ruined["method"] == "ruined" and ruined["diverged"] == 0
    assert all(math.isnan(ruined[name]) for name in ("retain_ratio", "loss_gap", "recognisable", "regained_worst"))
    printed = capsys.readouterr().out
    shown = json.loads(
        printed[printed.index("\n[\n") :], parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )
    assert shown[-1]["retain_ratio"] is None and shown[0]["forget_ma"] == again[0]["forget_ma"]


def test_means_and_spreads_of_figures_that_are_no_numbers():
    def cells(value):
        return dict.fromkeys(SCRIPT["COLUMNS"], value)

    values = {"fine": [1.0, 3.0], "one": [math.nan, 1.0], "all": [math.nan, math.nan], "vast": [1e304, 1.0]}
    rows = {SCRIPT["Row"](name): [cells(value) for value in each] for name, each in values.items()}
    fine, one, both, vast = SCRIPT["table"](rows)
    assert (fine["regained"], fine["sd"]["regained"]) == (2.0, pytest.approx(math.sqrt(2)))
    assert all(math.isnan(line["regained"]) and math.isnan(line["sd"]["regained"]) for line in (one, both))
    assert vast["sd"]["regained"] == pytest.approx(1e304 / math.sqrt(2))
    assert "nan ± nan" in SCRIPT["markdown"]([one])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "grad_dif"], "--methods grad_dif is not one of .*did you mean grad_diff"),
        (["--methods", "memorize"], "--methods memorize is not one of"),
        (["--settings", "missing.json"], "--settings missing.json"),
        (["--train_never_seen", "false"], "--train_never_seen or --never_seen_model"),
        (["--methods", "calibrated"], "calibrated takes half of the valid rows .*give --test_file"),
        (["--relearn_languages", "de"], "--relearn_languages de: not one of en, sw, zh"),
    ],
)
def test_what_is_refused(flags, message, compare):
    with pytest.raises(ConfigError, match=message):
        compare("--seeds", "1", "--memorize_epochs", "1", *flags)


def test_a_variant_names_its_method(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text('{"gentle": {"npo_beta": 1.0}}')
    with pytest.raises(ConfigError, match="'gentle' is no method"):
        SCRIPT["read_settings"](file)


def test_the_shipped_settings_are_of_methods_and_flags_that_exist():
    settings = SCRIPT["read_settings"](SCRIPT["SETTINGS"])
    for name, chosen in settings.items():
        words = SCRIPT["as_words"]({"method": name if name != "*" else "lingtea", **chosen})
        SCRIPT["parse_arguments"](["quickstart", *words])


@pytest.mark.slow
def test_an_adapter_is_compared_merged(compare):
    lines = compare("--seeds", "1", "--methods", "harsh", "--use_peft", "--lora_r", "2", "--relearn_languages", "sw")
    assert [line["diverged"] for line in lines] == [0] * 5
    assert lines[-1]["regained"] > 0
