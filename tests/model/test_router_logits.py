"""A mixture of experts whose configuration asks for its router's logits is trained, measured, audited as without."""

import json

import pytest
from helpers.families import FAMILIES, LEFT_OUT, NOT_CAUSAL, tiny_config, tiny_family
from helpers.family_checks import check_continuations, check_loss, check_packing
from helpers.material import write_material

import run_unlearn
from unlearn_trainer.audit.__main__ import run as audit

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
KINDS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe"]


def material_of_questions(folder, kind, **changes):
    """Flags of :func:`write_material`, for questions and answers of several lengths."""
    flags = write_material(folder, 4, kind, **EXPERTS, **changes)
    for split in ("forget", "retain", "valid"):
        rows = []
        for line in (folder / f"{split}.jsonl").read_text().splitlines():
            texts = {language: text.split() for language, text in json.loads(line).items()}
            rows.append(
                {
                    "question": {language: " ".join(words[:3]) for language, words in texts.items()},
                    "answer": {language: " ".join(words[3:]) for language, words in texts.items()},
                }
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return flags


def figures(found, path=()):
    """``{path: number}`` of everything in nested results that was measured, but for time and memory."""
    if isinstance(found, dict):
        children = found.items()
    elif isinstance(found, list):
        children = enumerate(found)
    else:
        return {path: found} if isinstance(found, (int, float)) else {}
    skipped = (
        "environment",
        "config",
        "settings",
        "runtime",
        "seconds",
        "per_second",
        "memory",
        "fingerprint",
        "timing",
    )
    numbers = {}
    for key, value in children:
        if not any(word in str(key) for word in skipped):
            numbers |= figures(value, (*path, key))
    return numbers


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "gpt_oss"])
def test_question_rows_come_out_as_without_router_logits(kind, tmp_path):
    found = {}
    for asked in (False, True):
        folder = tmp_path / str(asked)
        flags = material_of_questions(folder, kind, output_router_logits=asked)
        # What is known by heart in the end is continued by its own words, so that there is something to compare.
        flags += "--do_train --do_eval --method memorize --learning_rate 1e-2 --max_steps 24 --logging_steps 4".split()
        flags += ["--lr_scheduler_type", "constant", "--per_device_train_batch_size", "12"]
        results = run_unlearn.run([*flags, "--output_dir", str(folder / "out")])
        found[asked] = figures({name: results[name] for name in ("before", "after")})
        state = json.loads((folder / "out" / "results.json").read_text())
        assert state["after"].keys() >= {"forget", "retain", "valid"}
        saved = json.loads((folder / "out" / "config.json").read_text())
        assert saved["output_router_logits"] is asked
    assert found[True] == pytest.approx(found[False], rel=1e-4, abs=1e-5, nan_ok=True)
    scores = {path: value for path, value in found[True].items() if "rouge_l" in path and "forget" in path}
    assert max(scores.values()) > 0.5, scores
    assert len(set(scores.values())) > 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_an_audit_of_question_rows_is_the_same_with_router_logits(kind, tmp_path):
    found = {}
    for asked in (False, True):
        folder = tmp_path / str(asked)
        flags = material_of_questions(folder, kind, output_router_logits=asked)
        flags += "--audit_relearn_steps 2 --audit_relearn_batch_size 4 --audit_relearn_languages en".split()
        found[asked] = figures(audit([*flags, "--output_dir", str(folder / "audit")]))
    assert len(found[True]) > 50
    assert found[True] == pytest.approx(found[False], rel=1e-4, abs=1e-5, nan_ok=True)


def routed(family):
    if family in LEFT_OUT or family in NOT_CAUSAL:
        return False
    config = tiny_config(family)
    return any(hasattr(part, "output_router_logits") for part in (config, config.get_text_config()))


def check_both(family):
    ways = []
    for asked in (False, True):
        model = tiny_family(family)
        for part in (model.config, model.config.get_text_config()):
            if hasattr(part, "output_router_logits"):
                part.output_router_logits = asked
        check_loss(model)
        ways.append((check_packing(model), check_continuations(model)))
    assert ways[0] == ways[1]
    return ways[1]


@pytest.mark.parametrize("family", KINDS)
def test_router_logits_cost_neither_packing_nor_the_cache(family):
    packed, (way, _) = check_both(family)
    assert any(packed) and way.cached and way.padded


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_router_logits_is_as_without(family):
    if not routed(family):
        pytest.skip("has no such setting, or is left out")
    check_both(family)
