"""The paper's two scripts take the collections as they are handed out: prepared first, then run."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.material import write_byte_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--max_seq_length 512 --max_steps 1 --languages en fr --heldout_languages ar --report_to none --disable_tqdm true"
)
RAW = Path(os.environ.get("UNLEARN_DATA", ROOT.parent / "shared" / "data")) / "raw"
needs_data = pytest.mark.skipif(not RAW.is_dir(), reason=f"no collections at {RAW} (set UNLEARN_DATA)")


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "raw", "prepare"),
    [
        ("run_flores.sh", "flores200", "--forget_size 3 --retain_factor 2"),
        ("run_bmlama.sh", "bmlama53", "--forget_size 3"),
    ],
)
def test_a_script_runs_from_the_collections_own_form(tmp_path, script, raw, prepare):
    write_byte_model(tmp_path / "model")
    shutil.copytree(RAW / raw, tmp_path / raw)
    settings = {"DATA_DIR": raw, "MODEL": "model", "OUTPUT_DIR": "out", "PREPARE": prepare}
    command = ["bash", str(ROOT / "scripts" / script), *SMALL.split()]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    about = json.loads((tmp_path / f"{raw}-prepared" / "prepare.json").read_text(encoding="utf-8"))
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert about["sizes"]["forget"] == 3 and results["after"]["forget"]["en"]["rows"] == 3
    assert results["data"]["forget"]["sha256"] == about["files"]["forget.jsonl"]["sha256"]
