"""The shipped `evaluate` modules: loaded as a user loads them, without network, equal to the package's own figures."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_trainer.evaluation import metrics, module_path

REPOSITORY = Path(__file__).resolve().parents[2]
PREDICTIONS = [[5, 6, 7, 8], [1, 2, 3], [9]]
REFERENCES = [[5, 0, 7, 8], [1, 2, 0], [9]]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """``evaluate.load`` of a shipped module, with its caches in a folder of this file."""
    import evaluate  # here, so that collecting the tests stays quick

    cache = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", cache / "modules")
        patch.setattr(sys, "path", list(sys.path))
        # Modules that an earlier test loaded are bound to that test's folder.
        for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
            patch.delitem(sys.modules, name)
        yield lambda name: evaluate.load(module_path(name), cache_dir=str(cache / "data"))


def test_memorization_accuracy(load):
    result = load("memorization_accuracy").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"memorization_accuracy": pytest.approx((3 / 4 + 2 / 3 + 1) / 3, rel=1e-12)}
    hits = metrics.token_hits(PREDICTIONS, REFERENCES)
    assert result["memorization_accuracy"] == metrics.memorization_accuracy(*hits).mean().item()


def test_extraction_strength(load):
    result = load("extraction_strength").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"extraction_strength": pytest.approx((2 / 4 + 0 + 1) / 3, rel=1e-12)}


def test_probing_accuracy(load):
    losses = [[1.0, 2.0], [3.0, 1.0, 2.0], [0.5]]
    correct = [[True, False], [True, False, False], [True]]
    result = load("probing_accuracy").compute(predictions=losses, references=correct)
    assert result["probing_accuracy"] == pytest.approx(2 / 3)
    assert result["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_perplexity_weighs_every_token_the_same(load):
    module = load("perplexity")
    module.add_batch(predictions=[10 * math.log(2)], references=[10])
    module.add_batch(predictions=[30 * math.log(32)], references=[30])
    assert module.compute() == {"perplexity": pytest.approx(2 ** ((10 * 1 + 30 * 5) / 40))}


def test_a_row_of_another_length_is_named(load):
    with pytest.raises(ValueError, match="row 1: 1 predicted tokens for 2 reference tokens"):
        load("extraction_strength").compute(predictions=[[1], [2]], references=[[1], [2, 3]])


def test_unknown_module_names_the_known_ones():
    with pytest.raises(ValueError, match="extraction_strength, memorization_accuracy, perplexity, probing_accuracy"):
        module_path("bleu")


def test_every_module_loads_in_a_fresh_process_with_an_empty_cache(tmp_path):
    names = sorted(path.parent.name for path in (REPOSITORY / "unlearn_trainer/evaluation/modules").glob("*/*.py"))
    code = (
        "import sys, evaluate\n"
        "from unlearn_trainer.evaluation import module_path\n"
        "print(*[evaluate.load(module_path(name)).name for name in sys.argv[1:]])\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    for variable in ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(variable, None)
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names
    assert len(names) == 4
