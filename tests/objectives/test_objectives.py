"""Every objective through the trainer's own loss, against a naive twin with all logits and plain autograd."""

import dataclasses
import itertools
import math

import pytest
import torch
from helpers.tiny import LANGUAGES, rows_with_companions, tiny_config, tiny_model, tiny_rows, tiny_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.head import chunked as lm_head
from unlearn_trainer.model.layers import restrict_training
from unlearn_trainer.objectives import FORGET_OBJECTIVES, METHODS, RETAIN_OBJECTIVES, Objective
from unlearn_trainer.step.loss import inner_layer
from unlearn_trainer.teacher.cache import CachedTeacher
from unlearn_trainer.trainer import UnlearnTrainer

OBJECTIVES = [("forget", name) for name in FORGET_OBJECTIVES] + [("retain", name) for name in RETAIN_OBJECTIVES]
TAUGHT = [
    ("forget", "calibrated"),
    ("forget", "npo"),
    ("forget", "dpo"),
    ("forget", "undial"),
    ("retain", "jsd"),
    ("retain", "rmu"),
]
WEIGHTS = [0.3, 1.0, 1.7]
# At the published powers the slopes of some vanish for random models.
OPTIONS = {
    "wga": {"wga_beta": 1.5},
    "satimp": {"satimp_beta1": 0.5, "satimp_beta2": 2.0},
    "simnpo": {"simnpo_beta": 0.5, "simnpo_delta": 0.3},
    "npo": {"npo_beta": 0.05},
}


def labelled_from_the_start(rows):
    return rows.map(lambda row: {"labels": row["input_ids"]})


def make_trainer(folder, side, name, kind="llama", dtype=torch.float64, change_rows=lambda rows: rows, **options):
    other = "retain" if side == "forget" else "forget"
    objectives = {f"{side}_objective": name, f"{other}_objective": "none"}
    model, teacher = tiny_model(kind, 0, dtype), tiny_model(kind, 1, dtype)
    trainer = UnlearnTrainer(
        model,
        tiny_config(
            folder,
            **{
                **objectives,
                "forget_coef": 0.7,
                "retain_coef": 0.7,
                "rmu_layer": 1,
                "counterpart_coef": 1.3,
                **options,
            },
        ),
        change_rows(rows_with_companions(seed=0)),
        change_rows(tiny_rows(4, seed=1)),
        languages=LANGUAGES,
        teacher=teacher,
    )
    trainer.model.eval()
    trainer.language_weights.forget = trainer.language_weights.retain = WEIGHTS
    return trainer, teacher


def batch_of(trainer, side, rows=range(12)):
    return trainer.data_collator([trainer.train_dataset[side == "forget", row] for row in rows])


# ---- the twin -------------------------------------------------------------------------------------------------------


def naive_rows(model, batch, mask):
    """Per row of the group: logits that predict its labelled tokens, these, its language, and states at the labels."""
    found = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
        use_cache=False,
    )
    rows = []
    for row in mask.nonzero()[:, 0]:
        columns = (batch["labels"][row] != -100).nonzero()[:, 0]
        predicted = columns[columns > 0]
        rows.append(
            {
                "logits": found.logits[row, predicted - 1],
                "at_label": found.logits[row, columns],
                "labels": batch["labels"][row, predicted],
                "is_led": columns[0] == 0,
                "hidden": found.hidden_states[1][row, columns],
                "u": WEIGHTS[batch["language"][row]],
            }
        )
    return rows


def nll_of(row, logits="logits"):
    return F.cross_entropy(row[logits], row["labels"], reduction="none")


def moments_of(logits):
    """Mean and standard deviation of log p under p."""
    p = torch.distributions.Categorical(logits=logits)
    mean = -p.entropy()
    variance = (p.probs * (logits.log_softmax(-1) - mean[:, None]) ** 2).sum(-1)
    return mean, variance.sqrt()


def kl_of(a, b):
    return (a.exp() * (a - b)).sum(-1)


def naive_loss(name, side, model, teacher, batch, trainer):
    others = batch["is_forget"] | batch["is_alternative"] | batch["is_counterpart"]
    mine = batch["is_alternative"] if name == "jensun" else batch["is_forget"] if side == "forget" else ~others
    rows = naive_rows(model, batch, mine)
    with torch.no_grad():
        taught = naive_rows(teacher, batch, mine)
    total, count = 0.0, 0
    for place, (row, old) in enumerate(zip(rows, taught, strict=True)):
        s, p, t = nll_of(row), row["logits"].log_softmax(-1), old["logits"].log_softmax(-1)
        q, n = torch.exp(-s.detach()), len(s)
        onehot = F.one_hot(row["labels"], p.shape[1]).bool()
        match name:
            case "gradient_ascent":
                values = -s
            case "nll":
                values = s
            case "wga":
                values = -(q**1.5) * s
            case "satimp":
                values = -(q**0.5) * (1 - q) ** 2 * s
            case "ceu":
                others = row["logits"].detach().masked_fill(onehot, -math.inf).softmax(-1)
                values = -(others * p).sum(-1)[0 if row["is_led"] else 1 :]
            case "undial":
                values = -((old["logits"] - 10 * onehot).softmax(-1) * p).sum(-1)
            case "pdu" | "pdu_unshifted":
                z = row["logits" if name == "pdu" else "at_label"]
                values = (z.max(-1).values - z.mean(-1)) ** 2
            case "jensun" | "jensun_in_place" | "jsd":
                if name == "jensun_in_place":
                    said = naive_rows(model, batch, batch["is_alternative"])[place]["labels"]
                    onehot = F.one_hot(said[torch.arange(n) % len(said)], p.shape[1]).bool()
                target = t.exp() if name == "jsd" else onehot.to(p.dtype)
                mixture = (p.exp() + target) / 2
                to_target = (target * (torch.where(target > 0, target, 1).log() - mixture.log())).sum(-1)
                values = (to_target + (p.exp() * (p - mixture.log())).sum(-1)) / 2
            case "kl":
                values = kl_of(t, p)
            case "lingtea":
                w = torch.exp(-nll_of(old))
                values = w * kl_of(t, p) + (1 - w) * s
            case "rmu":
                target = 6.5 * trainer.step_loss.control if side == "forget" else old["hidden"]
                values = ((row["hidden"] - target) ** 2).mean(-1).mean()[None]
            case "calibrated":
                with torch.no_grad():
                    like = naive_rows(teacher, batch, batch["is_counterpart"])[place]
                    unknown, hit = nll_of(like), like["logits"].argmax(-1) == like["labels"]
                at = torch.arange(n) if len(unknown) == n else torch.arange(n) * len(unknown) // n
                lead = row["logits"][onehot] - row["logits"].masked_fill(onehot, -math.inf).max(-1).values
                values = F.smooth_l1_loss(s, unknown[at], reduction="none") + ~hit[at] * F.relu(lead + 0.5)
                for own, never in zip(moments_of(row["logits"]), moments_of(like["logits"]), strict=True):
                    values = values + 0.3 * F.smooth_l1_loss(own, never[at], reduction="none")
            case "npo":
                values = -2 / 0.05 * F.logsigmoid(0.05 * (s.sum() - nll_of(old).sum()))[None]
            case "simnpo":
                values = -2 / 0.5 * F.logsigmoid(0.5 * (s.mean() - 0.3))[None]
            case "dpo":
                other = naive_rows(model, batch, batch["is_alternative"])[place]
                with torch.no_grad():
                    other_old = naive_rows(teacher, batch, batch["is_alternative"])[place]
                gain = nll_of(other_old).sum() - nll_of(other).sum()
                values = -2 / 0.1 * F.logsigmoid(0.1 * (gain - (nll_of(old).sum() - s.sum())))[None]
        total = total + row["u"] * values.sum()
        count += len(values) if name not in ("rmu", "npo", "simnpo", "dpo") else 1
        assert n
    loss = 0.7 * total / count
    if name == "calibrated":
        pairs = zip(*(naive_rows(m, batch, batch["is_counterpart"]) for m in (model, teacher)), strict=True)
        kls = [kl_of(b["logits"].detach().log_softmax(-1), a["logits"].log_softmax(-1)) for a, b in pairs]
        loss = loss + 1.3 * torch.cat(kls).mean()
    return loss


def small_chunks(monkeypatch):
    """Chunks of 16 tokens and tiles of 3: rows lie across both."""
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", 1)
    monkeypatch.setattr(lm_head, "MIN_CHUNK_TOKENS", 16)
    monkeypatch.setattr(lm_head, "TILE_BYTES", 4 * 211 * 3 // torch.get_num_threads())


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "phi", "llama-tied", "bloom"])
@pytest.mark.parametrize("side, name", OBJECTIVES)
def test_loss_and_gradients_equal_the_naive_twin(side, name, kind, tmp_path, monkeypatch):
    small_chunks(monkeypatch)
    check_twin(*make_trainer(tmp_path, side, name, kind, **OPTIONS.get(name, {})), side, name)


@pytest.mark.parametrize("side, name", OBJECTIVES)
def test_they_equal_the_naive_twin_where_rows_are_labelled_from_the_start(side, name, tmp_path, monkeypatch):
    small_chunks(monkeypatch)
    options = {"change_rows": labelled_from_the_start, **OPTIONS.get(name, {})}
    check_twin(*make_trainer(tmp_path, side, name, **options), side, name)


def check_twin(trainer, teacher, side, name):
    batch = batch_of(trainer, side)
    expected = naive_loss(name, side, trainer.model, teacher, batch, trainer)
    expected.backward()
    wanted = {key: p.grad.clone() for key, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad(set_to_none=True)

    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    size = max(gradient.norm() for gradient in wanted.values())
    assert size > 1e-6
    for key, parameter in trainer.model.named_parameters():
        gradient = wanted.get(key, torch.zeros_like(parameter))
        assert (parameter.grad - gradient).norm() < 1e-10 * size, key


@settings(max_examples=4, deadline=None)
@given(cuts=st.sets(st.integers(1, 11), max_size=3))
@pytest.mark.parametrize("side, name", OBJECTIVES)
def test_no_split_of_a_step_changes_its_loss_or_gradient(side, name, cuts, tmp_path_factory):
    trainer, _ = make_trainer(tmp_path_factory.mktemp("run"), side, name, **OPTIONS.get(name, {}))
    edges = [0, *sorted(cuts), 12]
    parts = [batch_of(trainer, side, range(*pair)) for pair in itertools.pairwise(edges)]

    def gradient_of(batches):
        trainer.model.zero_grad()
        counts = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
        losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts) for batch in batches]
        sum(losses).backward()
        return sum(losses).item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    whole, gradient = gradient_of([batch_of(trainer, side)])
    split, of_parts = gradient_of(parts)
    assert split == pytest.approx(whole, rel=1e-10)
    assert (of_parts - gradient).norm() <= 1e-10 * gradient.norm()


@pytest.mark.parametrize("row", [0, 4, 11])
def test_a_row_whose_alternative_answer_has_no_label_has_no_preference(row, tmp_path):
    """As where truncation has left nothing of it: the row adds nothing, and the others what they did."""
    trainer, _ = make_trainer(tmp_path, "forget", "dpo")
    batch = batch_of(trainer, "forget")
    whole = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    without = {key: values[batch["row"] != row] for key, values in batch.items()}
    batch["labels"][batch["is_alternative"] & (batch["row"] == row)] = -100
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    found, gradients = [], []
    for each, divided_by in ((batch, counts), (without, whole)):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, each, num_items_in_batch=divided_by)
        loss.backward()
        found.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert found[0] == pytest.approx(found[1], rel=1e-10)
    assert (gradients[0] - gradients[1]).norm() < 1e-9 * gradients[1].norm()


@pytest.mark.parametrize("side, name", OBJECTIVES)
def test_a_step_in_bfloat16_agrees_to_its_rounding(side, name, tmp_path):
    exact, _ = make_trainer(tmp_path, side, name)
    rough, teacher = make_trainer(tmp_path, side, name, dtype=torch.bfloat16)
    with torch.no_grad():
        for fine, coarse in ((exact.model, rough.model), (exact.teacher and exact.teacher.model, teacher)):
            if fine is not None:
                for p, q in zip(fine.parameters(), coarse.parameters(), strict=True):
                    p.copy_(q)
    batch = batch_of(exact, side)
    assert rough.compute_loss(rough.model, batch).item() == pytest.approx(
        exact.compute_loss(exact.model, batch).item(), rel=0.05, abs=0.05
    )


# ---- in a training --------------------------------------------------------------------------------------------------


def trained(folder, side, name, **more):
    other = "retain" if side == "forget" else "forget"
    model, original = more.pop("model", None) or tiny_model(), more.pop("original", None)
    trainer = UnlearnTrainer(
        model,
        tiny_config(
            folder,
            **{f"{side}_objective": name, f"{other}_objective": "nll"},
            **{"max_steps": 4, "per_device_train_batch_size": 6, "rmu_layer": 1, "learning_rate": 1e-3, **more},
        ),
        rows_with_companions(seed=0),
        tiny_rows(4, seed=1),
        languages=LANGUAGES,
        teacher=original,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("side, name", TAUGHT)
def test_a_cached_teacher_gives_the_same_training(side, name, tmp_path):
    logs = []
    for kind in ("resident", "cached"):
        trainer = trained(tmp_path / kind, side, name, teacher=kind)
        assert isinstance(trainer.teacher, CachedTeacher) == (kind == "cached")
        logs.append([log for log in trainer.state.log_history if "grad_norm" in log])
    for first, second in zip(*logs, strict=True):
        for key in (f"{side}_loss", "grad_norm"):
            assert second[key] == pytest.approx(first[key], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["lingtea", "jsd"])
def test_the_cache_holds_what_the_head_takes_where_that_is_smaller_than_the_states(name, tmp_path):
    logs = []
    for kind in ("resident", "cached"):
        # Another model than the student: at equal ones the first loss would be 0, and all of it rounding.
        models = {"model": tiny_model("opt"), "original": tiny_model("opt", 1)}
        trainer = trained(tmp_path / kind, "retain", name, teacher=kind, **models)
        logs.append([log["retain_loss"] for log in trainer.state.log_history if "retain_loss" in log])
    assert min(logs[0]) > 1e-3
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


@pytest.mark.parametrize("side, name", OBJECTIVES)
def test_a_resumed_training_is_bit_identical(side, name, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "whole", side, name, **settings)
    resumed = UnlearnTrainer(
        tiny_model(),
        whole.args,
        rows_with_companions(seed=0),
        tiny_rows(4, seed=1),
        languages=LANGUAGES,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (key, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), key


@pytest.mark.parametrize("method, schedule", [(m, s) for m in METHODS for s in ("joint", "alternate")])
def test_every_method_trains_with_target_weights_and_checkpointed_activations(method, schedule, tmp_path):
    weighting = {} if method in ("memorize", "retain_only") else {"forget_weighting": "target"}
    trainer = tiny_trainer(
        tmp_path,
        method=method,
        schedule=schedule,
        max_steps=4,
        per_device_train_batch_size=9,
        learning_rate=1e-3,
        gradient_checkpointing=True,
        forget=rows_with_companions(6),
        **weighting,
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    moved = [not torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True)]
    assert any(moved) and trainer.state.global_step == 4


def test_the_teacher_runs_for_those_who_ask_only(tmp_path):
    for method in METHODS:
        objectives = [FORGET_OBJECTIVES.get(METHODS[method].forget_objective)]
        objectives.append(RETAIN_OBJECTIVES.get(METHODS[method].retain_objective))
        trainer = tiny_trainer(tmp_path, method=method, forget=rows_with_companions(6))
        assert (trainer.teacher is not None) == any(o is not None and o.needs_teacher for o in objectives)


@pytest.mark.parametrize("name", ["gradient_ascent", "npo", "calibrated"])
def test_the_guard_adds_the_gradient_at_relearned_weights_and_leaves_these_as_they_were(name, tmp_path):
    trainer, _ = make_trainer(tmp_path, "forget", name, relearn_coef=0.7, relearn_steps=2, relearn_rate=1e-3)
    batch = batch_of(trainer, "forget")
    model, weights = trainer.model, [p.detach().clone() for p in trainer.model.parameters()]
    attacked = trainer.surgeries[0]._attacked(batch, len(LANGUAGES), 0)
    chosen = set(batch["language"][attacked].tolist())
    assert 0 < len(chosen) < len(LANGUAGES)

    def gradient(loss):
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)]
        )

    plain = gradient(trainer.compute_loss(model, batch))
    # By hand: two steps of the sign of the gradient of the mean NLL, then the forget loss of the other languages.
    mine = {key: value[attacked & batch["is_forget"]] for key, value in batch.items()}
    for _ in range(2):
        rows = naive_rows(model, mine, mine["is_forget"])
        slopes = torch.autograd.grad(
            torch.cat([nll_of(row) for row in rows]).mean(), list(model.parameters()), materialize_grads=True
        )
        with torch.no_grad():
            for p, slope in zip(model.parameters(), slopes, strict=True):
                p -= 1e-3 * slope.sign()
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    rest = {key: value[~attacked] for key, value in batch.items()}
    trainer.objectives["counterpart"] = None
    expected = plain + 0.7 * gradient(trainer.compute_loss(model, rest, num_items_in_batch=counts))
    with torch.no_grad():
        for p, weight in zip(model.parameters(), weights, strict=True):
            p.copy_(weight)
    fresh, _ = make_trainer(tmp_path, "forget", name, relearn_coef=0.7, relearn_steps=2, relearn_rate=1e-3)
    fresh.model.train()
    loss = fresh.compute_loss(fresh.model, batch)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in fresh.model.parameters()])
    # A slope within the rounding of 0 may have either sign.
    assert (found - expected).norm() < 1e-3 * (expected - plain).norm()
    assert (expected - plain).norm() > 0.01 * plain.norm()
    assert all(torch.equal(p, weight) for p, weight in zip(fresh.model.parameters(), weights, strict=True))


def test_the_relearned_half_changes_from_step_to_step_and_every_language_has_its_turn(tmp_path):
    """By the gradients of one batch with the weights held: as many different ones as there are choices."""
    settings = {"forget_objective": "gradient_ascent", "retain_objective": "none", "relearn_rate": 1e-2}
    found = {}
    for seed in (0, 1):
        for run in ("first", "again"):
            trainer = tiny_trainer(tmp_path, relearn_coef=1.0, seed=seed, **settings)
            trainer.model.train()
            batch = trainer.data_collator([trainer.train_dataset[True, row] for row in range(9)])
            assert set(batch["language"].tolist()) == {0, 1, 2}
            for step in range(12):
                trainer.state.global_step = step
                trainer.model.zero_grad()
                trainer.compute_loss(trainer.model, batch).backward()
                found[seed, run, step] = sum(p.grad.double().norm().item() for p in trainer.model.parameters())
    turns = {seed: [round(found[seed, "first", step], 6) for step in range(12)] for seed in (0, 1)}
    for seed, norms in turns.items():
        assert len(set(norms)) == len(LANGUAGES)  # one of three languages at a time
        assert [found[seed, "again", step] for step in range(12)] == pytest.approx(norms, abs=1e-5)
    assert turns[0] != turns[1]


def test_under_mixed_precision_the_guard_sees_the_relearned_weights(tmp_path):
    # Autocast keeps bfloat16 copies of the weights: stale ones give a term of another direction (cosine 0.70).
    settings = {"relearn_coef": 1.0, "relearn_steps": 2, "relearn_rate": 1e-2, "forget_objective": "gradient_ascent"}
    found = []
    for bf16 in (False, True):
        config = tiny_config(tmp_path, retain_objective="nll", bf16=bf16, **settings)
        trainer = UnlearnTrainer(tiny_model(), config, tiny_rows(4), tiny_rows(4, seed=1), languages=LANGUAGES)
        batch = batch_of(trainer, "forget")
        counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
        parameters = list(trainer.model.parameters())
        with trainer.accelerator.autocast():
            # As in a step, whose weights have been used before.
            trainer.model(input_ids=batch["input_ids"])
            term = trainer.surgeries[0].term(batch, counts, trainer.language_weights, 0)
        slopes = torch.autograd.grad(term, parameters, materialize_grads=True)
        found.append(torch.cat([slope.flatten() for slope in slopes]))
    assert torch.cosine_similarity(*found, dim=0) > 0.97


def test_the_guard_halves_the_rows_where_there_is_one_language_and_needs_two(tmp_path):
    rows = [data.filter(lambda row: row["language"] == 0) for data in (tiny_rows(4), tiny_rows(4, seed=1))]
    settings = {"relearn_coef": 1.0, "method": "grad_diff", "relearn_rate": 1e-3}
    trainer = UnlearnTrainer(tiny_model(), tiny_config(tmp_path, **settings), *rows, languages=LANGUAGES[:1])
    batch = batch_of(trainer, "forget", range(4))
    attacked = trainer.surgeries[0]._attacked(batch, 1, 0) & batch["is_forget"]
    assert attacked.sum() == batch["is_forget"].sum() // 2
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    term = trainer.surgeries[0].term(batch, counts, trainer.language_weights, 0)
    slopes = torch.autograd.grad(term, list(trainer.model.parameters()), materialize_grads=True)
    assert sum(slope.norm() for slope in slopes) > 0
    with pytest.raises(ConfigError, match="per_device_train_batch_size 2 or more, or --relearn_coef 0"):
        tiny_trainer(tmp_path, per_device_train_batch_size=1, **settings)


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_the_forget_gradient_loses_its_part_against_the_retain_gradient(flip, tmp_path):
    objectives = {"forget_objective": "gradient_ascent" if flip > 0 else "nll", "retain_objective": "nll"}
    rows = tiny_rows(4, seed=0), tiny_rows(4, seed=0)  # the same rows: ascent and descent conflict, descents agree
    found = {}
    for projects in (False, True):
        config = tiny_config(tmp_path, **objectives, project_forget_gradient=projects, retain_coef=0.3)
        trainer = UnlearnTrainer(tiny_model(dtype=torch.float64), config, *rows, languages=LANGUAGES)
        trainer.model.train()
        batch = trainer.data_collator([trainer.train_dataset[side, row] for side in (True, False) for row in range(6)])
        trainer.compute_loss(trainer.model, batch).backward()
        found[projects] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    if flip < 0:
        torch.testing.assert_close(found[True], found[False])
        return
    # F's gradient is -g and R's 0.3 g: all of the first goes, and the second is left.
    expected = -0.3 / 0.7 * found[False]
    assert (found[True] - expected).norm() < 1e-6 * expected.norm()


def test_projection_needs_both_sides_in_a_batch(tmp_path):
    for wrong in ({"method": "gradient_ascent"}, {"schedule": "alternate"}):
        with pytest.raises(ConfigError, match="--project_forget_gradient needs forget and retain rows"):
            tiny_config(tmp_path, project_forget_gradient=True, **wrong)


# ---- settings -------------------------------------------------------------------------------------------------------


def test_options_are_flags_with_the_published_defaults(tmp_path):
    required = ["--model_name_or_path", "m", "--data_dir", "d", "--output_dir", str(tmp_path), "--use_cpu"]
    config = parse_arguments([*required, "--method", "simnpo", "--simnpo_delta", "0.5"])[2]
    assert (config.simnpo_beta, config.simnpo_delta, config.forget_coef, config.retain_coef) == (4.5, 0.5, 0.125, 1.0)
    assert UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, method="pdu").retain_weighting == "primal_dual"
    with pytest.raises(ConfigError, match="--npo_beta must be above 0"):
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, method="npo", npo_beta=0.0)


def test_an_option_changes_the_loss(tmp_path):
    losses = []
    for beta in (0.1, 1.0):
        trainer, _ = make_trainer(tmp_path, "forget", "npo", npo_beta=beta)
        losses.append(trainer.compute_loss(trainer.model, batch_of(trainer, "forget")).item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


COMPANION_OF = [("dpo", "alternative"), ("jensun", "alternative"), ("calibrated", "counterpart")]


@pytest.mark.parametrize("method, companion", COMPANION_OF)
def test_without_what_must_go_with_each_row_they_are_refused(method, companion, tmp_path):
    with pytest.raises(ConfigError, match=f"--forget_objective {method} needs the {companion} of every row"):
        tiny_trainer(tmp_path, method=method)


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--rmu_layer 3: the model has 2 layers"):
        tiny_trainer(tmp_path, method="rmu", rmu_layer=3)


def test_a_run_cannot_be_resumed_with_other_options(tmp_path):
    whole = trained(tmp_path, "forget", "npo", save_strategy="steps", save_steps=2)
    config = dataclasses.replace(whole.args, npo_beta=0.3)
    rows = rows_with_companions(seed=0), tiny_rows(4, seed=1)
    other = UnlearnTrainer(tiny_model(), config, *rows, languages=LANGUAGES)
    with pytest.raises(ConfigError, match="npo_beta"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_weights_that_the_states_do_not_depend_on_cannot_be_trained_by_them(tmp_path):
    for spec in ("1", r"layers\.1\.|lm_head"):
        with pytest.raises(ConfigError, match=r"behind block 1.*choose --trainable_layers below 1"):
            tiny_trainer(tmp_path, model=restrict_training(tiny_model(), spec), method="rmu", rmu_layer=1)
    tiny_trainer(tmp_path, model=restrict_training(tiny_model(), "0"), method="rmu", rmu_layer=1)
    with pytest.raises(ConfigError, match="no weight of the model is trainable"):
        tiny_trainer(tmp_path, model=tiny_model().requires_grad_(False), method="grad_diff")


@pytest.mark.parametrize("kind", ["xglm", "bloom", "gpt2"])
def test_dropout_is_off_so_that_training_figures_are_those_of_the_model(kind, tmp_path):
    model = tiny_model(kind, attention_dropout=0.5)
    for module in model.modules():
        for name in ("p", "dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    trainer = tiny_trainer(tmp_path, model=model, method="grad_diff")
    batch = batch_of(trainer, "forget")
    losses = {trainer.compute_loss(trainer.model.train(mode), batch).item() for mode in (True, True, False)}
    assert max(losses) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"needs": frozenset({"nlll"})}, "cannot need nlll"),
        ({"needs": frozenset({"kl"}), "unit": "row"}, "a row's loss cannot need kl"),
        ({"needs": frozenset({"nll", "distill_weight"})}, "its needs lack teacher_nll"),
        ({"needs": frozenset({"kl", "counterpart"})}, "the teacher runs on the counterparts alone"),
        ({"needs": frozenset({"reduced"})}, "reduced among its needs and a reduction go together"),
        ({"needs": frozenset({"nll"}), "counts": ("words",)}, "counts words; there are tokens, rows"),
    ],
)
def test_an_objective_that_contradicts_itself_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Objective("mine", lambda tokens: tokens.nll, **wrong)


def test_the_vector_of_rmu_has_length_one_and_a_seed(tmp_path):
    """Its length in the loss is rmu_steering alone."""
    controls = [tiny_trainer(tmp_path, method="rmu", seed=seed).step_loss.control for seed in (0, 1, 0)]
    assert all(control.norm().item() == pytest.approx(1, abs=1e-12) for control in controls)
    assert torch.equal(controls[0], controls[2]) and (controls[0] - controls[1]).norm() > 0.1


def test_the_default_layer_of_rmu_is_the_published_one(tmp_path):
    # The public code hooks model.layers[7] of 32, counted from 0: the states behind the eighth block.
    config = tiny_config(tmp_path, method="rmu")
    assert [inner_layer(config, layers) for layers in (32, 28, 2, 1)] == [8, 7, 1, 1]
