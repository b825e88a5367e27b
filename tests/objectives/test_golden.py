"""Every figure of every folder below $UNLEARN_GOLDEN, through the code that training and evaluation run."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.evaluation.evaluator import MultilingualEvaluator, row_figures
from unlearn_trainer.head.attached import attach_head
from unlearn_trainer.head.chunked import Segment, Segments
from unlearn_trainer.trainer import UnlearnTrainer

GOLDEN = Path(os.environ.get("UNLEARN_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/meta.json"))

# figure -> (side, settings, which term of the objective; None for the whole)
FIGURES = {
    "ga.forget": ("forget", {"method": "gradient_ascent"}, None),
    "nll.retain": ("retain", {"method": "retain_only"}, None),
    "kl.retain": ("retain", {"method": "kl"}, None),
    "npo.forget": ("forget", {"method": "npo"}, None),
    "simnpo.forget": ("forget", {"method": "simnpo", "simnpo_beta": 0.5}, None),
    "dpo.forget": ("forget", {"method": "dpo"}, None),
    "wga.forget": ("forget", {"method": "wga"}, None),
    "satimp.forget": ("forget", {"method": "satimp"}, None),
    "ceu.forget": ("forget", {"method": "ceu"}, None),
    "undial.forget": ("forget", {"method": "undial"}, None),
    "pdu.forget": ("forget", {"method": "pdu"}, None),
    "pdu.forget.unshifted": ("forget", {"method": "pdu", "forget_objective": "pdu_unshifted"}, None),
    "rmu.forget": ("forget", {"method": "rmu", "rmu_layer": 1, "rmu_steering": 2.0}, None),
    "rmu.retain": ("retain", {"method": "rmu", "rmu_layer": 1, "rmu_steering": 2.0}, None),
    "lingtea.retain": ("retain", {"method": "lingtea"}, None),
    "lingtea.retain.kd": ("retain", {"method": "lingtea"}, 0),
    "lingtea.retain.ce": ("retain", {"method": "lingtea"}, 1),
    "lingtea.retain.language_weighted": ("retain", {"method": "lingtea", "distill_weighting": "language"}, None),
    "lingtea.teacher_probability": ("retain", {"method": "lingtea", "distill_weighting": "language"}, None),
    "lingtea.released.forget_loss": ("forget", {"method": "lingtea", "lingtea_alignment": "released"}, None),
    "lingtea.released.kd_loss": ("retain", {"method": "lingtea", "lingtea_alignment": "released"}, 0),
    "lingtea.released.ce_loss": ("retain", {"method": "lingtea", "lingtea_alignment": "released"}, 1),
    "lingtea.released.loss": ("retain", {"method": "lingtea", "lingtea_alignment": "released"}, None),
}


def cases():
    if not FOLDERS:
        reason = pytest.mark.skip(reason=f"no golden folder below {GOLDEN}; set UNLEARN_GOLDEN")
        return [pytest.param(None, None, id="none", marks=reason)]
    found = []
    for folder in FOLDERS:
        names = list(json.loads((folder / "objectives.json").read_text()))
        rows = json.loads((folder / "metrics.json").read_text())["rows"]
        names += [f"metrics.{row['split']}.{row['row']}" for row in rows]
        found += [pytest.param(folder, name, id=f"{folder.name}-{name}") for name in names]
    return found


def load(folder, which):
    dtype = getattr(torch, json.loads((folder / "meta.json").read_text())["dtype"])
    return AutoModelForCausalLM.from_pretrained(folder / which, dtype=dtype, attn_implementation="eager")


def rows_of(folder, split):
    batch = json.loads((folder / "batch.json").read_text())[split]
    languages = sorted(set(batch["language"]))
    rows = []
    for index, (ids, mask, labels, language) in enumerate(
        zip(batch["input_ids"], batch["attention_mask"], batch["labels"], batch["language"], strict=True)
    ):
        n = sum(mask)
        row = {"input_ids": ids[:n], "labels": labels[:n], "language": languages.index(language), "item": index}
        if split == "forget":
            row["alternative_input_ids"] = [
                7 if label != -100 else i for i, label in zip(ids[:n], labels, strict=False)
            ]
            row["alternative_labels"] = [7 if label != -100 else -100 for label in labels[:n]]
        rows.append(row)
    return Dataset.from_list(rows), languages


def trainer_of(folder, settings, tmp_path):
    forget, languages = rows_of(folder, "forget")
    retain, _ = rows_of(folder, "retain")
    config = UnlearnConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        **{"forget_coef": 1.0, "retain_coef": 1.0, "retain_weighting": "uniform", **settings},
    )
    trainer = UnlearnTrainer(
        load(folder, "student"), config, forget, retain, languages=languages, teacher=load(folder, "teacher")
    )
    trainer.model.eval()
    control = torch.linspace(0.1, 1.0, len(trainer.step_loss.control), dtype=torch.float64)
    trainer.step_loss.control = control / control.norm()
    return trainer


def objective_figure(folder, settings, side, term, tmp_path):
    other = "retain" if side == "forget" else "forget"
    trainer = trainer_of(folder, settings, tmp_path)
    objective = trainer.objectives[side]
    trainer.objectives[other] = None
    if term is not None:
        trainer.objectives[side] = dataclasses.replace(
            objective,
            function=lambda tokens: objective.function(tokens)[term],
            counts=(objective.counts[term],),
        )
    data = trainer.train_dataset
    split = data._splits[side == "forget"]
    batch = trainer.data_collator(data.__getitems__([(side == "forget", row) for row in range(len(split))]))
    if settings.get("distill_weighting") == "language":
        # The weight is the running mean over what was seen: see the batch once, update, then take the loss.
        trainer.compute_loss(trainer.model, batch)
        trainer.language_weights.update(step=1)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = [p.grad.double() for p in trainer.model.parameters() if p.grad is not None]
    return trainer, loss.item(), torch.stack([g.norm() for g in gradients]).norm().item()


@pytest.mark.parametrize("folder, figure", cases())
def test_golden(folder, figure, tmp_path):
    meta = json.loads((folder / "meta.json").read_text())
    close = {"rel": meta["rtol"], "abs": meta["atol"]}
    if figure.startswith("metrics."):
        return check_metrics(folder, figure, close)
    expected = json.loads((folder / "objectives.json").read_text())[figure]
    side, settings, term = FIGURES[figure]
    trainer, loss, norm = objective_figure(folder, settings, side, term, tmp_path)
    # ga and nll of the reference went through a float32 loss.
    if expected.get("source") == "reference":
        close = {"rel": max(meta["rtol"], 1e-6), "abs": max(meta["atol"], 1e-7)}
    if figure == "lingtea.teacher_probability":
        found = dict(zip(trainer.languages, trainer.language_weights.distill, strict=True))
        assert found == pytest.approx(expected, **close)
        return None
    assert loss == pytest.approx(expected["value"], **close)
    if "grad_norm" in expected:
        assert norm == pytest.approx(expected["grad_norm"], **close)
    return None


def check_metrics(folder, figure, close):
    _, split, row = figure.split(".")
    everything = json.loads((folder / "metrics.json").read_text())["rows"]
    expected = next(r for r in everything if r["split"] == split and r["row"] == int(row))
    dataset, languages = rows_of(folder, split)
    one = dataset.select([int(row)])
    model = load(folder, "student").eval()
    attach_head(model)
    evaluator = MultilingualEvaluator(languages, len(languages), 0, 4, show_progress=False)
    found = evaluator(model, {split: one}, torch.device("cpu"))[split]
    (figures,) = found.values()
    names = {"nll_mean": "loss", "min_k_0_2": "min_k", "min_k_plus_plus_0_2": "min_k_plus_plus"}
    for name, value in expected.items():
        if name in ("split", "row", "nll_sum", "min_k_0_4"):
            continue
        assert figures[names.get(name, name)] == pytest.approx(value, **close), name
    assert figures["loss"] * figures["tokens"] == pytest.approx(expected["nll_sum"], **close)

    ids = torch.tensor(one["input_ids"])
    labels = torch.tensor(one["labels"])
    columns = (labels[0, 1:] != -100).nonzero()[:, 0]
    segment = Segment(columns, labels[0, 1:][columns], frozenset({"nll", "log_prob_moments"}))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), segments=Segments(segment))
    wide = row_figures(segment.statistics, torch.zeros_like(columns), 1, min_k_ratio=0.4)
    assert wide["min_k"].item() == pytest.approx(expected["min_k_0_4"], **close)
