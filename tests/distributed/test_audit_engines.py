"""An audit on two processes finds what it finds on one."""

import json

import pytest
from helpers.material import LANGUAGES, write_material
from helpers.tiny import tiny_model
from launching import TORCHRUN, run
from transformers import AutoConfig, AutoTokenizer

from unlearn_trainer.audit.__main__ import run as audit

pytestmark = pytest.mark.slow


def test_two_processes_find_what_one_finds(tmp_path):
    flags = write_material(tmp_path, items=5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    vocabulary = AutoConfig.from_pretrained(tmp_path / "model").vocab_size
    for seed, name in enumerate(("before", "never_seen"), start=1):
        model = tiny_model(seed=seed, vocab_size=vocabulary, pad_token_id=1, bos_token_id=None, eos_token_id=2)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        flags += [f"--{'model_before' if name == 'before' else 'never_seen_model'}", str(tmp_path / name)]
    flags += "--audit_relearn_languages sw --audit_relearn_steps 3 --audit_relearn_batch_size 4".split()
    run([*TORCHRUN, "-m", "unlearn_trainer.audit", *flags, "--output_dir", str(tmp_path / "two")])
    two = json.loads((tmp_path / "two" / "audit.json").read_text())
    one = json.loads(json.dumps(audit([*flags, "--output_dir", str(tmp_path / "one")])))
    assert two["environment"]["world_size"] == 2
    assert two["skipped"] == one["skipped"]
    for language in LANGUAGES:
        found, expected = (each["languages"][language] for each in (two, one))
        assert found["verdict"] == expected["verdict"]
        assert found["figures"].keys() == expected["figures"].keys()
        for name, figure in expected["figures"].items():
            ends = {key: figure[key] for key in ("value", "low", "high")}
            assert {key: found["figures"][name][key] for key in ends} == pytest.approx(ends, rel=1e-5, abs=1e-6), name
