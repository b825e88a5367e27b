"""Every command and every Python example in README and docs is one that there is: files, flags, values and imports."""

import ast
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from helpers.material import FLAGS, write_material

from unlearn_trainer.__main__ import COMMANDS as SMALL_COMMANDS
from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MY_RUN = {"model_name_or_path": "m", "data_dir": "d", "output_dir": "o", "do_train": True}
OURS = re.compile(r"run_unlearn\.py|unlearn_trainer\.audit|unlearn-trainer |(?:scripts|benchmarks)/")
# What these start with stands in the documents too, and has tests of its own or needs the network.
OTHERS = ("pip", "python -m pip", "python -m pytest", ". .venv", "python my_unlearn.py")
RUN_SCRIPTS = ("quickstart.sh", "run_flores.sh", "run_bmlama.sh")


def commands():
    """(document, command) of every line of a fenced bash block, and of commands of ours within a sentence or table."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        inline = re.findall(r"`((?:python|accelerate|deepspeed|torchrun|bash|unlearn-trainer) [^`\n]*)`", text)
        for line in dict.fromkeys([*lines, *(line for line in inline if OURS.search(line))]):
            if words := shlex.split(line, comments=True):
                yield document.name, shlex.join(words)


COMMANDS = list(commands())
PYTHON = [
    pytest.param(block, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.M | re.S))
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, as a reader of the documents has it: a checkout with a run of his own."""
    monkeypatch.chdir(tmp_path)
    for name in ("scripts", "benchmarks", "ds_configs", "run_unlearn.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my_run.json").write_text(json.dumps(MY_RUN))
    return tmp_path


def declared(*scripts):
    """The flags that scripts declare for themselves, beside those of a run."""
    return {
        flag for script in scripts for flag in re.findall(r'add_argument\(\s*"(--\w+)"', script.read_text("utf-8"))
    }


def without(words, flags):
    """``words`` without some flags and their values."""
    kept, drops = [], False
    for word in words:
        if word.startswith("--"):
            drops = word.partition("=")[0] in flags
        if not drops:
            kept.append(word)
    return kept


def check_run(words):
    """A command line of run_unlearn.py, parsed by its own parser."""
    if words in ([], ["--help"]):
        return
    if "--deepspeed" in words:  # to read it would start DeepSpeed
        file = Path(words[words.index("--deepspeed") + 1])
        assert json.loads(file.read_text())["zero_optimization"]
        words = without(words, {"--deepspeed"})
    parse_arguments(words)


def check_audit(words):
    """A command line of the audit: a finished run, or a model and its data."""
    if words == ["--help"]:
        return
    if words and not words[0].startswith("-"):
        words = ["--model_name_or_path", words[0], "--data_dir", "d", "--output_dir", "o", *words[1:]]
    parse_arguments(words)


def check_installed(words):
    """A command line of unlearn-trainer: a run, an audit, or one of the small commands."""
    if words[:1] == ["audit"]:
        check_audit(words[1:])
    elif words and words[0] in SMALL_COMMANDS:
        if len(words) == 1:  # the name of a command within a sentence
            return
        module = importlib.import_module(f"unlearn_trainer.{SMALL_COMMANDS[words[0]]}")
        try:
            module.make_parser().parse_args(words[1:])
        except SystemExit as end:
            assert end.code in (None, 0), words
    else:
        check_run(words[words[:1] == ["run"] :])


def check_script(script, words):
    """A command line of a script, whose own flags are declared in it, and whose others are those of a run."""
    script = Path(script)
    assert script.is_file()
    if script.suffix == ".sh":
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        if script.name in RUN_SCRIPTS:
            check_run(["quickstart", *words])
        return
    if script.parent.name == "benchmarks":
        flags = {word for word in words if word.startswith("--")}
        assert flags <= declared(script, script.parent / "common.py")
        return
    rest = without(words, declared(script))
    if rest:
        check_run(rest)


def check(command):
    words = [re.sub(r"^\[|\]$", "", word) for word in shlex.split(command)]
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, *words = words
    if program == "accelerate":
        given = ["0" if word == "N" else word for word in words[1:]]
        launched = launch_command_parser().parse_args(given)
        assert words[0] == "launch" and (not launched.config_file or Path(launched.config_file).is_file())
        program, words = "python", [*(["-m"] if launched.module else []), launched.training_script]
        words += launched.training_script_args
    if program == "python" and words[:2] == ["-m", "unlearn_trainer.audit"]:
        check_audit(words[2:])
    elif program == "unlearn-trainer":
        check_installed(words)
    elif program in ("python", "deepspeed") and words[0] == "run_unlearn.py":
        check_run(words[1:])
    elif program in ("python", "bash"):
        check_script(*words[:1], words[1:])
    else:
        raise AssertionError(f"what is {command}? Say here how it is tested")


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command_can_be_given(document, command, folder):
    if not command.startswith(OTHERS):
        check(command)


def test_commands_are_found():
    found = [command for _, command in COMMANDS]
    assert len(found) > 30 and {document for document, _ in COMMANDS} > {"README.md", "audit.md", "performance.md"}
    for part in (
        "--estimate_memory",
        "accelerate_fsdp2.yaml",
        "leakage_matrix.py",
        "unlearn_trainer.audit",
        "zero3.json",
    ):
        assert any(part in command for command in found), part


@pytest.mark.parametrize(
    "command",
    [
        "python run_unlearn.py my_run.json --learning_rates 1e-4",
        "python run_unlearn.py my_run.json --method ling_tea",
        "python run_unlearn.py other_run.json",
        "accelerate launch --config_file ds_configs/accelerate_zero9.yaml run_unlearn.py my_run.json",
        "accelerate launch --config_file ds_configs/accelerate_ddp.yaml run_unlearn.py my_run.json --npo_betas 1",
        "deepspeed run_unlearn.py my_run.json --deepspeed ds_configs/zero9.json",
        "python -m unlearn_trainer.audit outputs/quickstart --audit_check memorization",
        "python scripts/no_script.py quickstart",
        "python scripts/leakage_matrix.py quickstart --output_dir o --distance syntax.json",
        "python benchmarks/step_cost.py --jsons step_cost.json",
        "bash scripts/quickstart.sh --output_dirs outputs/second",
        "unlearn-trainer card outputs/a outputs/b",
        "unlearn-trainer prepare flores --source raw",
        "unlearn-trainer dispose outputs/a --no",
        "unlearn-trainer audits outputs/a",
        "make test",
    ],
)
def test_a_command_that_is_none_is_noticed(command, folder):
    with pytest.raises((AssertionError, ConfigError, OSError)):
        check(command)


@pytest.mark.parametrize("block", PYTHON)
def test_python_examples_import_what_there_is(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if module != "my_objectives":  # the first example of docs/extending.md, whose test runs it
                imported = importlib.import_module(module)
                assert name is None or hasattr(imported, name), f"{module} has no {name}"


def test_the_python_examples_of_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_material(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    modules, training = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(modules, {})
    assert "extraction_strength" in capsys.readouterr().out
    for before, now in (
        ('"facebook/xglm-564M"', repr(str(tmp_path / "model"))),
        ('"my_data"', repr(str(tmp_path))),
        ("num_train_epochs=20", "num_train_epochs=1, use_cpu=True, report_to=[], save_strategy='no'"),
    ):
        assert before in training
        training = training.replace(before, now)
    exec(training, {})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1


@pytest.mark.slow
def test_the_commands_of_readme_run_one_after_the_other(tmp_path, monkeypatch):
    """With a tiny model and three languages in place of the model and the rows that a reader has."""
    import run_unlearn
    from unlearn_trainer.audit.__main__ import run as audit

    monkeypatch.chdir(tmp_path)
    write_material(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^python run_unlearn\.py (?!quickstart)(.*)$", text, re.MULTILINE)
    assert len(lines) == 3
    (tmp_path / "my_run.json").write_text(json.dumps(MY_RUN | {"model_name_or_path": "model", "data_dir": "."}))
    for number, line in enumerate(lines):
        line = line.replace("facebook/xglm-564M", "model").replace("my_data", ".").replace(" de ", " zh ")
        where = [] if "--output_dir" in line else ["--output_dir", f"outputs/{number}"]
        run_unlearn.run([*shlex.split(line), *FLAGS.split(), *where, "--max_steps", "2"])
    words = "--audit_checks memorization quantization --use_cpu --disable_tqdm true"
    assert audit(["outputs/mine", *words.split()])["languages"]
