"""The card of a model: metadata of the Hub, what was done, how well, and what nobody has looked at."""

import json
import subprocess
import sys

import pytest
from helpers.example_audit import example_audit
from helpers.material import LANGUAGES, write_material
from huggingface_hub import ModelCard

import run_unlearn
from unlearn_trainer.commands.card import main
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.report.model_card import MARK, card
from unlearn_trainer.report.summary import verdict


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a finished run on a base model whose own card names a licence."""
    folder = tmp_path_factory.mktemp("card")
    flags = write_material(folder)
    (folder / "model" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Base\n", encoding="utf-8")
    words = ["--do_train", "--do_eval", "--max_steps", "2", "--heldout_languages", "zh", "--languages", "en", "sw"]
    run_unlearn.run([*flags, *words, "--output_dir", str(folder / "out")])
    return folder / "out"


@pytest.fixture
def results(out):
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def hashes(results):
    return [about["sha256"] for about in results["data"].values()]


def test_a_run_leaves_a_card_that_the_hub_can_read(out, results):
    found = ModelCard.load(out / "README.md")
    assert found.data.language == ["en", "sw"] and found.data.license == "cc-by-4.0"
    assert found.data.library_name == "transformers" and found.data.pipeline_tag == "text-generation"
    assert {"machine-unlearning", "lingtea"} <= set(found.data.tags) and "base_model" not in found.data.to_dict()
    assert MARK in found.text and verdict(results) in found.text
    for said in (
        "English",
        "Swahili",
        "not audited",
        results["data"]["forget"]["sha256"],
        "No test split was measured",
    ):
        assert said in found.text
    assert "Chinese" in found.text.split("## Limits")[1]


@pytest.mark.parametrize(
    ("base", "peft", "expected"),
    [
        ("facebook/xglm-564M", False, ("facebook/xglm-564M", "finetune", "transformers")),
        ("gpt2", True, ("gpt2", "adapter", "peft")),
        ("/models/private", False, (None, None, "transformers")),
        ("./mine", True, (None, None, "peft")),
    ],
)
def test_the_base_model_is_named_where_it_has_a_name_on_the_hub(results, base, peft, expected):
    results["config"] |= {"model_name_or_path": base, "use_peft": peft, "merge_adapter": False}
    data = ModelCard(card(results)).data
    assert (data.get("base_model"), data.get("base_model_relation"), data.library_name) == expected


def test_languages_are_named_without_script_and_region(results):
    results["languages"] = ["zh-Hans", "pt-BR", "swh_Latn", "zh"]
    for phase in ("before", "after"):
        results[phase] = {}
    results["targets"] = {}
    assert ModelCard(card(results)).data.language == ["pt", "sw", "zh"]


def test_an_audit_is_told_with_what_it_left_out(results):
    audit = example_audit()
    text = card(results, audit)
    for said in {about["verdict"] for about in audit["languages"].values()}:
        assert f"| {said} " in text
    for why in audit["skipped"].values():
        assert why in text.split("## Limits")[1]
    assert "not audited" not in text


def test_the_command_writes_the_card_anew_and_takes_the_audit_along(out, results, capsys):
    (out / "audit").mkdir(exist_ok=True)
    (out / "audit" / "audit.json").write_text(json.dumps(example_audit()), encoding="utf-8")
    main([str(out)])
    assert str(out / "README.md") in capsys.readouterr().out
    assert "## Audit" in (out / "README.md").read_text() and "not audited" not in (out / "README.md").read_text()


def test_the_card_of_a_person_stays(out, capsys):
    place = out / "README.md"
    before = place.read_text(encoding="utf-8")
    place.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--output_file"):
        main([str(out)])
    assert place.read_text(encoding="utf-8") == "# Mine\n"
    main([str(out), "--output_file", str(out / "other.md")])
    assert MARK in (out / "other.md").read_text(encoding="utf-8")
    place.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_results_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match=r"results\.json .*name the output folder of a finished run"):
        main([str(tmp_path)])


@pytest.mark.parametrize("command", ["card", "dispose"])
def test_a_small_command_loads_no_heavy_library_for_help_and_mistakes(command, tmp_path):
    code = (
        "import runpy, sys; sys.argv[1:] = {words!r}\n"
        "try: runpy.run_module('unlearn_trainer', run_name='__main__')\n"
        "except SystemExit as end: print('EXIT', end.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    for words, exit_code in (([command, "--help"], 0), ([command, str(tmp_path / "none")], 2), ([command], 2)):
        script = code.format(words=words)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert f"EXIT {exit_code} False False" in done.stdout, done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_languages_of_the_material():
    assert LANGUAGES == ["en", "sw", "zh"]
