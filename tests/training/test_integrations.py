"""What leaves the machine: a stand-in for the Hub, over HTTP, notes all that a run sends to it."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.material import write_material
from transformers import GPT2Tokenizer

from run_unlearn import run
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.training.integrations import files_to_upload

RESULT = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "results.json"),
    *("report.html", "report.md"),
    *("tokenizer.json", "tokenizer_config.json"),
}
# Several runs in one process, because each process costs seconds of imports.
DRIVER = """
import json, sys
from run_unlearn import run
for words in json.loads(sys.argv[1]):
    run(words)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """The calls of huggingface_hub for a small upload: make a repository, ask how to send, send a commit."""

    def do_GET(self):
        self.answer({"error": "not here"}, 404)

    do_HEAD = do_GET

    def do_POST(self):
        length = self.headers.get("Content-Length")
        if length is not None:
            body = self.rfile.read(int(length))
        else:  # chunked
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub, url = self.server, f"http://127.0.0.1:{self.server.server_port}"
        if hub.refuses and hub.refuses in self.path:
            return self.answer({"error": "no write access"}, 403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            hub.made.append(asked)
            return self.answer(
                {"url": f"{url}/me/{asked['name']}", "id": f"me/{asked['name']}", "name": asked["name"]}
            )
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            told = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
            return self.answer({"files": told})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            title = next(line["value"]["summary"] for line in lines if line["key"] == "header")
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            hub.commits.append((self.path.split("/")[4], title, files))
            return self.answer({"commitUrl": f"{url}/me/x/commit/1", "commitOid": "1" * 40})
        return self.answer({"error": self.path}, 404)

    def answer(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.commits, server.refuses = [], [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def online(hub, **further):
    settings = {
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**os.environ, **settings, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", **further}


def test_only_the_result_is_uploaded(hub, tmp_path):
    flags = write_material(tmp_path)
    flags[flags.index("--save_strategy") + 1] = "steps"
    common = [*flags, *"--do_train --do_eval --save_steps 2 --push_to_hub --hub_always_push".split()]
    stages = (
        "--memorize_first --memorize_epochs 1 --train_never_seen --teacher cached --audit --audit_checks memorization"
    )
    # One whose teacher is asked, with stages; one whose every checkpoint would go; an adapter, merged.
    runs = [
        [*common, *stages.split(), "--max_steps", "4"],
        [*common, *"--max_steps 4 --method grad_diff --hub_strategy all_checkpoints --hub_private_repo".split()],
        [*common, *"--max_steps 2 --use_peft --merge_adapter --hub_strategy checkpoint".split()],
        [*common, *"--max_steps 2 --use_peft".split()],
    ]
    names = ["staged", "plain", "merged", "adapter"]
    for words, name in zip(runs, names, strict=True):
        words += ["--output_dir", str(tmp_path / name), "--hub_model_id", f"me/{name}"]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes.txt").write_text("of the user")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(runs)], env=online(hub), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [name for name, _, _ in hub.commits] == names  # one commit each, with the result in it
    texts = (tmp_path / "forget.jsonl").read_text().splitlines()
    texts = [text.encode() for row in texts for text in json.loads(row).values()]
    for name, _, files in hub.commits:
        here = tmp_path / name
        assert "memorized" in os.listdir(here) or name != "staged"
        model = {"adapter_config.json", "adapter_model.safetensors"}
        whole = {"config.json", "generation_config.json", "model.safetensors"}
        assert set(files) == (RESULT - whole | model if name == "adapter" else RESULT)
        for file, content in files.items():
            assert content == (here / file).read_bytes()
            assert not any(text in content for text in texts) and b"hf_secret" not in content
    assert hub.made[1]["name"] == "staged" and {"plain"} == {
        made["name"] for made in hub.made if made.get("private") or made.get("visibility") == "private"
    }
    assert "checkpoints stay on this machine" in done.stdout


def test_a_repository_that_cannot_be_made_is_refused_before_training(hub, tmp_path):
    hub.refuses = "/api/repos/create"
    words = [*write_material(tmp_path), "--do_train", "--memorize_first", "--push_to_hub", "--output_dir"]
    words.append(str(tmp_path / "out"))
    script = [sys.executable, "-c", "import run_unlearn, sys; run_unlearn.main(sys.argv[1:])", *words]
    done = subprocess.run(script, env=online(hub), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--push_to_hub: the repository out cannot be made" in done.stderr and "403" in done.stderr
    assert not (tmp_path / "out" / "memorized").exists()


def test_an_upload_that_fails_costs_neither_results_nor_audit(hub, tmp_path):
    hub.refuses = "/commit/"
    words = [*write_material(tmp_path), *"--do_train --do_eval --max_steps 2 --push_to_hub --audit".split()]
    words += ["--audit_checks", "memorization", "--output_dir", str(tmp_path / "out")]
    script = [sys.executable, "-c", "import run_unlearn, sys; run_unlearn.main(sys.argv[1:])", *words]
    done = subprocess.run(script, env=online(hub), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("could not be uploaded") == 1 and "hf upload me/out" in done.stderr
    for name in ("model.safetensors", "results.json", "audit/audit.json", "audit/audit.html"):
        assert (tmp_path / "out" / name).exists(), name


def test_offline_is_refused_before_training(tmp_path):
    words = [*write_material(tmp_path), "--output_dir", str(tmp_path / "out"), "--push_to_hub"]
    with pytest.raises(ConfigError, match="--push_to_hub: .*out cannot be made.*offline"):
        run([*words, "--do_train"])
    with pytest.raises(ConfigError, match="add --do_train"):
        run([*words, "--do_eval"])
    assert not list((tmp_path / "out").iterdir())


def test_the_list_of_what_may_go(tmp_path):
    result = {*RESULT, "model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.json", "report.html"}
    result |= {"adapter_config.json", "adapter_model.safetensors", "additional_chat_templates/tool.jinja"}
    others = {"training_args.bin", "optimizer.pt", "forget.jsonl", ".lock", "model.safetensors.tmp", "log.txt"}
    folders = (
        "memorized",
        "never_seen",
        "teacher",
        "unfinished",
        "synthetic",
        "audit",
        "checkpoint-2",
        "runs",
        "wandb",
    )
    others |= {
        f"{folder}/{name}" for folder in folders for name in ("model.safetensors", "config.json", "results.json")
    }
    for name in result | others:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()

    assert set(files_to_upload(tmp_path, GPT2Tokenizer())) == result


@pytest.mark.parametrize(
    ("tracker", "variable", "value"),
    [
        ("wandb", "WANDB_LOG_MODEL", "end"),
        ("wandb", "WANDB_LOG_MODEL", "checkpoint"),
        ("mlflow", "HF_MLFLOW_LOG_ARTIFACTS", "1"),
        ("clearml", "CLEARML_LOG_MODEL", None),
        ("flyte", None, None),
    ],
)
def test_trackers_that_would_take_models_along(tracker, variable, value, tmp_path, monkeypatch):
    """A package of the tracker's name has to be there; nothing of it is called."""
    (tmp_path / tracker).mkdir()
    (tmp_path / tracker / "__init__.py").write_text("run = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    if value is not None:
        monkeypatch.setenv(variable, value)
    words = [*write_material(tmp_path), "--output_dir", str(tmp_path / "out"), "--do_train", "--report_to", tracker]
    with pytest.raises(ConfigError, match=f"--report_to {tracker} .*along.*{variable or 'another'}"):
        run(words)
    sys.modules.pop(tracker, None)


def test_wandb_without_a_key(tmp_path, monkeypatch):
    """W&B's own login refuses where there is no terminal to ask at."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text(
        "run = None\ndef login():\n    raise RuntimeError('No API key\\nconfigured. Use `wandb login`.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = [*write_material(tmp_path), "--output_dir", str(tmp_path / "out"), "--do_train", "--report_to", "wandb"]
    with pytest.raises(ConfigError, match="--report_to wandb: no login .No API key configured.*offline"):
        run(words)
    sys.modules.pop("wandb", None)
    assert not any(Path(tmp_path / "out").iterdir())


def test_mlflow_that_cannot_be_reached(tmp_path, monkeypatch):
    """MLflow's own client fails where no server answers."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text(
        "class MlflowClient:\n    def search_experiments(self, max_results):\n"
        "        raise RuntimeError('API request to http://127.0.0.1:9 failed\\nMax retries exceeded')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = [*write_material(tmp_path), "--output_dir", str(tmp_path / "out"), "--do_train", "--report_to", "mlflow"]
    with pytest.raises(ConfigError, match="--report_to mlflow: it cannot be reached .API request .* failed Max .*URI"):
        run(words)
    sys.modules.pop("mlflow", None)
    assert not any(Path(tmp_path / "out").iterdir())


def test_texts_are_not_uploaded_with_the_report(hub, tmp_path):
    words = [
        *write_material(tmp_path),
        "--do_train",
        "--push_to_hub",
        "--show_texts",
        "--output_dir",
        str(tmp_path / "o"),
    ]
    script = [sys.executable, "-c", "import run_unlearn, sys; run_unlearn.main(sys.argv[1:])", *words]
    done = subprocess.run(script, env=online(hub), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--show_texts they quote the splits" in done.stderr and not hub.made
