"""The package as it is given away: built from its own source archive, and installed where there is no checkout."""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unlearn_trainer"
BUILD_SDIST = "from setuptools import build_meta; build_meta.build_sdist('dist')"
# The quickstart as it is, but for its length.
SHORT = (
    "--max_steps 5 --languages en sw --heldout_languages de --memorize_epochs 1 --max_train_samples 8 "
    "--max_eval_samples 4 --max_predict_samples 4 --use_cpu --report_to none --disable_tqdm true"
)
pytestmark = pytest.mark.slow


def run(command, folder, **environment):
    """What ``command`` prints in ``folder``, without the paths of the tests; it has to succeed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def files_of(package):
    return {
        path.relative_to(package.parent).as_posix() for path in package.rglob("*") if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(source archive, wheel): the latter built from the former, in a copy, so that no build folder stays here."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "run_unlearn.py"):
        shutil.copy2(ROOT / name, copy)
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-c", BUILD_SDIST], copy)
    (source,) = (copy / "dist").glob("*.tar.gz")
    unpacked, out = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(source) as archive:
        archive.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    run(
        [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", out], root
    )
    (wheel,) = out.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """The ``bin`` folder of an environment that holds the wheel, and finds the libraries where the tests do."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", archives[1]], place)
    purelib = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip()
    # Paths in such a file come last, and files like it in these folders, as of an editable install, are not read.
    Path(purelib, "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    return place / "bin"


def test_the_wheel_holds_every_file_of_the_package(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("unlearn_trainer/")}
        others = {name for name in wheel.namelist() if "/" not in name}
        described = {name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    files = {name for name in files_of(PACKAGE) if (PACKAGE.parent / name).is_file()}
    assert held == files and others == {"run_unlearn.py"}
    for name in ("py.typed", "config/presets/quickstart.json", "data/alternatives.json"):
        assert f"unlearn_trainer/{name}" in held
    assert any(re.search(r"evaluation/modules/perplexity/\w+\.py", name) for name in held)
    about = next(text for name, text in described.items() if name.endswith("/METADATA"))
    assert re.search(r"^License.*: Apache-2.0$", about, re.M) and "Requires-Python: >=3.11" in about
    scripts = next(text for name, text in described.items() if name.endswith("/entry_points.txt"))
    assert re.search(r"^unlearn-trainer = unlearn_trainer\.\w+:main$", scripts, re.MULTILINE)


def test_the_source_archive_holds_what_a_wheel_is_built_of(archives):
    with tarfile.open(archives[0]) as source:
        held = {name.partition("/")[2] for name in source.getnames()}
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "run_unlearn.py"} <= held
    assert {name for name in files_of(PACKAGE) if (PACKAGE.parent / name).is_file()} <= held


def test_the_installed_quickstart_runs_from_an_empty_folder(installed, tmp_path):
    where = "import run_unlearn, unlearn_trainer; print(unlearn_trainer.__file__, unlearn_trainer.__version__)"
    for line in run([installed / "python", "-c", where], tmp_path).splitlines()[-1:]:
        assert line.startswith(str(installed.parent)), line
    assert "--forget_file" in run([installed / "unlearn-trainer", "--help"], tmp_path)
    run([installed / "unlearn-trainer", "quickstart", *SHORT.split()], tmp_path, OMP_NUM_THREADS="1")
    written = tmp_path / "outputs" / "quickstart"
    assert (written / "results.json").is_file() and (written / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_the_installed_modules_of_evaluate_load(installed, tmp_path):
    lines = (
        "import evaluate, unlearn_trainer.evaluation as e",
        "metric = evaluate.load(e.module_path('memorization_accuracy'))",
        "print(metric.compute(predictions=[[5, 6, 7]], references=[[4, 6, 7]]))",
    )
    assert "memorization_accuracy" in run([installed / "python", "-c", "\n".join(lines)], tmp_path)
