"""Language weights: the policies as properties, and the callback driven by real training and evaluation."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from helpers.tiny import LANGUAGES, tiny_config, tiny_model, tiny_rows, tiny_trainer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from unlearn_trainer.errors import ConfigError
from unlearn_trainer.trainer import UnlearnTrainer
from unlearn_trainer.weights.callback import LanguageWeightCallback
from unlearn_trainer.weights.policy import (
    NOTHING_TO_FORGET,
    WeightPolicy,
    primal_dual_weights,
    remembered,
    target_weights,
    unlearning_score,
)
from unlearn_trainer.weights.state import SIDES

shares = st.floats(0, 1)
# (metric, metric at the start, target) of each language
standings = st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=6)
ratios = st.floats(1e-3, 1e6)

# ---- policies ----------------------------------------------------------------------------------------------------


@given(standings)
def test_active_languages_have_mean_one_and_the_others_zero_or_one(languages):
    weights = target_weights(*zip(*languages, strict=True))
    active = []
    for u, (m, m0, tau) in zip(weights, languages, strict=True):
        if m0 - tau < NOTHING_TO_FORGET:
            assert u == 1
        elif m <= tau:
            assert u == 0
        else:
            assert u > 0
            active.append((u, min(1, (m - tau) / (m0 - tau))))
    if active:
        assert math.fsum(u for u, _ in active) / len(active) == pytest.approx(1)
        for u, left in active:
            assert u * active[0][1] == pytest.approx(left * active[0][0])


@given(shares, shares)
def test_a_language_freezes_at_its_target_and_wakes_up_above_it(target, rebound):
    assume(target <= 0.9 and rebound > target)
    start = [1.0, 1.0]
    at_target = target_weights([target, 1.0], start, [target, 0.0])
    above = target_weights([rebound, 1.0], start, [target, 0.0])
    assert at_target == [0.0, 1.0]
    assert 0 < above[0] <= 1 <= above[1]


def test_all_languages_at_their_targets_rest():
    assert target_weights([0.1, 0.0], [0.9, 0.8], [0.1, 0.2]) == [0.0, 0.0]
    assert target_weights([0.5], [0.9], [0.89]) == [1.0]


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="longer"):
        target_weights([0.1], [0.9, 0.9], [0.0, 0.0])


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(-50, 50)), min_size=1, max_size=5), st.floats(0, 5))
def test_primal_dual_follows_the_excess_within_its_bounds(languages, eta):
    old, excess = zip(*languages, strict=True)
    new = primal_dual_weights(old, excess, eta, low=0.1, high=10.0)
    for r, before, e in zip(new, old, excess, strict=True):
        assert 0.1 <= r <= 10
        assert (r - before) * e >= 0
        if 0.1 < r < 10:
            assert r == pytest.approx(before + eta * e)


def test_primal_dual_clips_at_both_ends():
    assert primal_dual_weights([1.0, 1.0, 1.0], [0.25, 100.0, -100.0], 2.0, 0.5, 3.0) == [1.5, 3.0, 0.5]


@given(st.lists(st.tuples(shares, ratios), min_size=1, max_size=6))
def test_unlearning_score_is_the_harmonic_mean_of_both_halves(languages):
    names = [str(index) for index in range(len(languages))]
    left = {name: share for name, (share, _) in zip(names, languages, strict=True)}
    perplexity = {name: ratio for name, (_, ratio) in zip(names, languages, strict=True)}
    terms = [1 - share for share, _ in languages] + [min(1, 1 / ratio) for _, ratio in languages]
    score = unlearning_score(left, perplexity)
    if min(terms) == 0:
        assert score == 0
    else:
        assert score == pytest.approx(len(terms) / math.fsum(1 / term for term in terms))
        assert min(terms) <= score * (1 + 1e-9) and score <= max(terms) * (1 + 1e-9)


@given(st.floats(0, 0.99), ratios)
def test_unlearning_score_leaves_out_languages_with_nothing_to_forget(share, ratio):
    alone = unlearning_score({"en": share}, {"en": ratio})
    assert alone > 0
    assert unlearning_score({"en": share, "sw": None}, {"en": ratio, "sw": 1e9}) == alone
    assert unlearning_score({"sw": None}, {"sw": 1.0}) is None


@pytest.mark.parametrize(
    ("left", "perplexity"),
    [(1.0, 1.0), (0.0, math.inf), (0.0, math.nan)],
    ids=["all remembered", "infinite perplexity", "NaN perplexity"],
)
def test_one_ruined_language_makes_the_score_zero(left, perplexity):
    assert unlearning_score({"en": 0.0, "sw": left}, {"en": 1.0, "sw": perplexity}) == 0
    assert unlearning_score({"en": 0.0, "sw": 0.0}, {"en": 1.0, "sw": 0.5}) == 1


# ---- the callback by itself --------------------------------------------------------------------------------------


def policy(folder, **changes) -> WeightPolicy:
    return WeightPolicy.from_config(tiny_config(folder, **changes))


def figures(forget=(1.0, 1.0, 1.0), retain=(1.0, 1.0, 1.0), valid=(0.0, 0.0, 0.0)):
    """Figures as the evaluator gives them: MA on forget and valid, loss on retain and valid."""
    return {
        "forget": {c: {"memorization_accuracy": m} for c, m in zip(LANGUAGES, forget, strict=True)},
        "retain": {c: {"loss": x, "token_probability": 0.5} for c, x in zip(LANGUAGES, retain, strict=True)},
        "valid": {c: {"memorization_accuracy": m, "loss": 2.0} for c, m in zip(LANGUAGES, valid, strict=True)},
    }


def test_targets_come_from_never_seen_rows_or_the_flag(tmp_path):
    weights = LanguageWeightCallback(LANGUAGES, policy(tmp_path, forget_weighting="target"))
    weights.begin(figures(valid=(0.1, 0.2, 0.3)))
    assert weights.target == [0.1, 0.2, 0.3] and weights.start == [1.0, 1.0, 1.0]
    assert weights.forget == [1.0, 1.0, 1.0]
    weights = LanguageWeightCallback(LANGUAGES, policy(tmp_path, forget_weighting="target", forget_target="0.4"))
    weights.begin(figures(valid=(0.1, 0.2, 0.3)))
    assert weights.target == [0.4, 0.4, 0.4]


def test_target_weighting_without_a_target_is_refused(tmp_path):
    weights = LanguageWeightCallback(LANGUAGES, policy(tmp_path, forget_weighting="target"))
    without = {split: found for split, found in figures().items() if split != "valid"}
    with pytest.raises(ConfigError, match="--valid_file.*--forget_target"):
        weights.begin(without)


def test_uniform_weights_do_not_move(tmp_path):
    weights = LanguageWeightCallback(LANGUAGES, policy(tmp_path))
    weights.begin(figures())
    weights.after_evaluation(figures(forget=(0.0, 0.5, 1.0), retain=(2.0, 1.0, 0.5)), 0.5, 1)
    assert weights.forget == weights.retain == [1.0, 1.0, 1.0]
    assert weights.logged_weights() == {}


def test_a_language_without_anything_to_forget_is_named_weighs_one_and_does_not_hold_up_the_stop(tmp_path, caplog):
    weights = LanguageWeightCallback(LANGUAGES, policy(tmp_path, forget_weighting="target"))
    weights.begin(figures(forget=(0.9, 0.31, 0.8), valid=(0.1, 0.3, 0.0)))
    (record,) = caplog.records
    assert record.getMessage().startswith("nothing to forget in sw:")
    assert weights.nothing_to_forget == ["sw"]
    weights.after_evaluation(figures(forget=(0.1, 0.31, 0.4)), 0.5, 1)
    assert weights.forget == [0.0, 1.0, 1.0]
    assert not weights.all_forgotten()
    weights.after_evaluation(figures(forget=(0.1, 0.31, 0.0)), 0.5, 2)
    assert weights.all_forgotten()


def test_a_language_that_a_split_lacks_takes_the_mean_of_the_others(tmp_path):
    found = figures(valid=(0.1, 0.3, 0.9))
    del found["valid"]["zh"]
    weights = LanguageWeightCallback(LANGUAGES, policy(tmp_path, forget_weighting="target"))
    weights.begin(found)
    assert weights.target == [0.1, 0.3, pytest.approx(0.2)]


events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(SIDES), st.integers(0, 2), st.integers(1, 9), st.floats(0, 9), shares, shares),
        st.just("update"),
        st.tuples(*[shares] * 3, *[st.floats(0, 9)] * 3, shares),
    ),
    max_size=12,
)


def drive(weights, happened, step):
    """Apply batches, updates and evaluations as a run would."""
    for event in happened:
        step += 1
        if event == "update":
            weights.update(step)
        elif event[0] in SIDES:
            side, language, tokens, nll, accuracy, probability = event
            columns = {
                "tokens": tokens,
                "nll": tokens * nll,
                "memorization_accuracy": accuracy,
                "extraction_strength": accuracy / 2,
                "teacher_probability": tokens * probability,
            }
            row = {name: torch.tensor([value], dtype=torch.float64) for name, value in columns.items()}
            weights.add_batch(side, torch.tensor([language]), row)
        else:
            *_, score = event
            weights.after_evaluation(figures(forget=event[:3], retain=event[3:6]), score, step)
    return step


@settings(max_examples=60, deadline=None)
@given(before=events, after=events, metric=st.sampled_from(["memorization_accuracy", "extraction_strength"]))
def test_the_state_is_json_and_a_restored_callback_goes_on_identically(before, after, metric, tmp_path_factory):
    chosen = policy(
        tmp_path_factory.getbasetemp(),
        forget_weighting="target",
        retain_weighting="primal_dual",
        distill_weighting="language",
    )
    weights = LanguageWeightCallback(LANGUAGES, chosen)
    weights.begin(figures(valid=(0.1, 0.2, 0.3)))
    step = drive(weights, before, 0)
    weights.reduce_batches()
    state = json.loads(json.dumps(weights.state()))
    restored = LanguageWeightCallback.from_state(copy.deepcopy(state))
    assert restored.state() == state
    for callback in (weights, restored):
        drive(callback, after, step)
        callback.reduce_batches()
    assert json.dumps(restored.state()) == json.dumps(weights.state())


# ---- the callback in a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memorized(tmp_path_factory):
    """Weights of a tiny model that knows the forget and the retain rows by heart."""
    trainer = tiny_trainer(
        tmp_path_factory.mktemp("memorize"),
        method="memorize",
        language_sampling="all",
        per_device_train_batch_size=18,
        max_steps=25,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    trainer.train()
    found = trainer.measure()
    assert min(found["forget"][code]["memorization_accuracy"] for code in LANGUAGES) > 0.9
    assert max(found["valid"][code]["memorization_accuracy"] for code in LANGUAGES) < 0.3
    return {name: p.detach().clone() for name, p in trainer.model.state_dict().items()}


def memorized_model(state, dtype=torch.float32):
    model = tiny_model()
    model.load_state_dict(state)
    return model.to(dtype)


class Watch(TrainerCallback):
    """Weights, means and stop as they stand after every step and every evaluation."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.evaluations = trainer, {}, {}
        trainer.add_callback(self)

    def now(self):
        weights = self.trainer.language_weights
        names = ("forget", "retain", "distill", "metric", "start", "target", "retain_loss_at_start")
        return {name: copy.copy(getattr(weights, name)) for name in names}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps[state.global_step] = self.now()

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluations[state.global_step] = self.now()


class Recording(UnlearnTrainer):
    """Keeps what plain logits say about each row of every batch: (step, side, language, hits, NLLs, teacher's p)."""

    def compute_loss(self, model, inputs, **kwargs):
        with torch.no_grad():
            batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            student = model(**batch).logits.log_softmax(-1)
            teacher = self.teacher.model(**batch).logits.log_softmax(-1)
        for row, labels in enumerate(inputs["labels"].tolist()):
            where = [(t - 1, y) for t, y in enumerate(labels) if y != -100 and t]
            self.rows.append(
                {
                    "step": self.state.global_step + 1,
                    "side": "forget" if inputs["is_forget"][row] else "retain",
                    "language": inputs["language"][row].item(),
                    "hits": [float(student[row, t].argmax() == y) for t, y in where],
                    "nll": [-student[row, t, y].item() for t, y in where],
                    "q": [teacher[row, t, y].exp().item() for t, y in where],
                }
            )
        return super().compute_loss(model, inputs, **kwargs)


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_windows_running_means_and_weights_are_those_of_the_rows_seen(schedule, memorized, tmp_path):
    splits = {split: tiny_rows(seed=seed) for seed, split in enumerate(("forget", "retain", "valid"))}
    window = 3
    trainer = Recording(
        memorized_model(memorized, torch.float64),
        tiny_config(
            tmp_path,
            schedule=schedule,
            forget_weighting="target",
            retain_weighting="primal_dual",
            distill_weighting="language",
            retain_eta=0.5,
            retain_epsilon=0.01,
            weight_update_steps=window,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=2e-3,
            max_steps=12,
            max_retain_perplexity_ratio=1e9,
            teacher="resident",
        ),
        splits["forget"],
        splits["retain"],
        languages=LANGUAGES,
        eval_dataset=splits,
    )
    trainer.rows = []
    watch = Watch(trainer)
    trainer.train()
    assert len(trainer.rows) == (72 if schedule == "joint" else 36)  # 6 items: 2 steps a pass

    weights = trainer.language_weights
    start = weights.figures_at_start
    metric = [start["forget"][code]["memorization_accuracy"] for code in LANGUAGES]
    target = [start["valid"][code]["memorization_accuracy"] for code in LANGUAGES]
    loss0 = [start["retain"][code]["loss"] for code in LANGUAGES]
    distill = [start["retain"][code]["token_probability"] for code in LANGUAGES]
    retain, m0 = [1.0] * 3, list(metric)
    expected = {"forget": target_weights(metric, m0, target), "retain": retain, "distill": distill, "metric": metric}
    moved = set()
    for step in range(1, 13):
        if step % window == 0:
            for index in range(3):
                seen = [
                    row
                    for row in trainer.rows
                    if row["language"] == index and step - window < row["step"] <= step and row["side"] == "forget"
                ]
                if seen:
                    metric[index] = sum(sum(row["hits"]) / len(row["hits"]) for row in seen) / len(seen)
                kept = [row for row in trainer.rows if row["language"] == index and row["side"] == "retain"]
                nll = [x for row in kept if step - window < row["step"] <= step for x in row["nll"]]
                if nll:
                    excess = sum(nll) / len(nll) - loss0[index] - 0.01
                    retain[index] = min(10.0, max(0.1, retain[index] + 0.5 * excess))
                q = [x for row in kept if row["step"] <= step for x in row["q"]]
                distill[index] = sum(q) / len(q) if q else distill[index]
            expected = {
                "forget": target_weights(metric, m0, target),  # tested by itself above
                "retain": list(retain),
                "distill": list(distill),
                "metric": list(metric),
            }
            moved.add(json.dumps(expected))
            entry = next(entry for entry in weights.history if entry["step"] == step)
            for kind in ("forget", "retain", "distill"):
                assert entry[kind] == pytest.approx(dict(zip(LANGUAGES, expected[kind], strict=True)), rel=1e-6)
        for name, values in expected.items():
            assert watch.steps[step][name] == pytest.approx(values, rel=1e-6), (step, name)
    assert len(moved) == 4
    assert [entry["step"] for entry in weights.history] == [0, 3, 6, 9, 12]


def test_the_trained_loss_uses_the_weights_of_the_last_update(memorized, tmp_path):
    """With every language at its target the forget side has no gradient left: nothing moves without a retain side."""
    trainer = tiny_trainer(
        tmp_path,
        memorized_model(memorized),
        method="gradient_ascent",
        forget_weighting="target",
        forget_target="0.9",
        stop_when_forgotten=False,
        weight_update_steps=1,
        language_sampling="all",
        per_device_train_batch_size=18,
        max_steps=40,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        max_retain_perplexity_ratio=None,
    )
    watch = Watch(trainer)
    trainer.train()
    losses = {log["step"]: log["forget_loss"] for log in trainer.state.log_history if "forget_loss" in log}
    frozen = [step for step, found in watch.steps.items() if found["forget"] == [0.0, 0.0, 0.0] and step < 40]
    assert frozen and watch.steps[1]["forget"] != [0.0, 0.0, 0.0]
    for step in frozen:
        assert losses[step + 1] == 0
    assert losses[frozen[0]] != 0


def test_an_evaluation_replaces_the_running_means_and_logs_carry_the_weights(memorized, tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        memorized_model(memorized),
        forget_weighting="target",
        weight_update_steps=2,
        eval_strategy="steps",
        eval_steps=3,
        max_steps=6,
        learning_rate=1e-2,
        stop_when_forgotten=False,
        max_retain_perplexity_ratio=1e9,
    )
    watch = Watch(trainer)
    trainer.train()
    logs = trainer.state.log_history
    for step in (3, 6):
        log = next(log for log in logs if log["step"] == step and "eval_loss" in log)
        found = watch.evaluations[step]
        assert found["metric"] == [log[f"eval_forget_{code}_memorization_accuracy"] for code in LANGUAGES]
        assert found["metric"] != watch.steps[step]["metric"]
        assert found["forget"] == target_weights(found["metric"], found["start"], found["target"])
    assert watch.steps[1]["metric"] == found["start"]
    assert watch.steps[3]["metric"] == watch.steps[2]["metric"]
    assert watch.steps[4]["metric"] != watch.evaluations[3]["metric"]
    history = trainer.language_weights.history
    assert [entry["step"] for entry in history] == [0, 2, 3, 4, 6]  # step 6: the evaluation replaced the update
    assert list(history[-1]["forget"].values()) == watch.evaluations[6]["forget"]
    for log in logs:
        if "loss" in log:
            logged = [log[f"weights/forget/{code}"] for code in LANGUAGES]
            assert logged == watch.steps[log["step"]]["forget"]
            assert not any(key.startswith(("weights/retain", "weights/distill")) for key in log)


def test_an_evaluation_within_a_window_leaves_its_rows_in_it(memorized, tmp_path):
    splits = {split: tiny_rows(seed=seed) for seed, split in enumerate(("forget", "retain", "valid"))}
    config = tiny_config(
        tmp_path,
        forget_weighting="target",
        weight_update_steps=4,
        eval_strategy="steps",
        eval_steps=3,
        max_steps=4,
        per_device_train_batch_size=6,
        learning_rate=1e-2,
        teacher="resident",
        max_retain_perplexity_ratio=1e9,
    )
    model = memorized_model(memorized, torch.float64)
    trainer = Recording(model, config, *list(splits.values())[:2], languages=LANGUAGES, eval_dataset=splits)
    trainer.rows = []
    watch = Watch(trainer)
    trainer.train()
    assert watch.evaluations[3]["metric"] != watch.steps[4]["metric"]
    for index in range(3):
        of_language = [row for row in trainer.rows if row["side"] == "forget" and row["language"] == index]
        assert {row["step"] for row in of_language} & {1, 2, 3}
        means = [sum(row["hits"]) / len(row["hits"]) for row in of_language]
        assert watch.steps[4]["metric"][index] == pytest.approx(sum(means) / len(means), rel=1e-6)


def test_the_guard_sees_a_method_without_retain_rows(memorized, tmp_path):
    settings = {"method": "gradient_ascent", "weight_update_steps": 2, "max_steps": 60, "learning_rate": 1e-3}
    trainer = tiny_trainer(tmp_path, memorized_model(memorized), max_retain_perplexity_ratio=3.0, **settings)
    trainer.train()
    stopped = trainer.state.global_step
    assert stopped < 60 and stopped % 2 == 0
    assert "--max_retain_perplexity_ratio 3" in trainer.language_weights.stop_reason
    # All retain rows are watched here, and what it saw is what an evaluation sees.
    retain = trainer.measure()["retain"]
    start = trainer.language_weights.figures_at_start["retain"]
    rise = sum(retain[code]["loss"] - start[code]["loss"] for code in LANGUAGES) / 3
    assert math.log(3) < rise
    shorter = tiny_trainer(
        tmp_path, memorized_model(memorized), max_retain_perplexity_ratio=3.0, **{**settings, "max_steps": stopped - 2}
    )
    shorter.train()
    assert shorter.language_weights.stop_reason is None


def test_the_guard_measures_the_first_eight_retain_rows_of_every_language(tmp_path):
    splits = {"forget": tiny_rows(4), "retain": tiny_rows(11, seed=1)}
    trainer = UnlearnTrainer(
        tiny_model(),
        tiny_config(tmp_path, method="gradient_ascent", max_steps=1, weight_update_steps=1),
        splits["forget"],
        None,
        languages=LANGUAGES,
        eval_dataset=splits,
    )
    rows = trainer.measure_rows()["retain"]
    trainer.train()
    expected = []
    for index in range(len(LANGUAGES)):
        first = np.flatnonzero(rows["language"] == index)[:8]
        expected.append((rows["loss"][first] * rows["tokens"][first]).sum() / rows["tokens"][first].sum())
    assert trainer.language_weights.watched_at_start == pytest.approx(expected, rel=1e-5)


def test_an_evaluation_that_is_as_good_as_the_best_is_no_gain(tmp_path):
    weights = tiny_trainer(tmp_path, method="grad_diff").language_weights
    waited = []
    for step, score in enumerate([0.5, 0.5, 0.4, None, 0.6, 0.6]):
        weights.after_evaluation({}, score, step)
        waited.append(weights.evaluations_without_gain)
    assert waited == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("broken", [["sw"], LANGUAGES], ids=["one language", "all"])
@pytest.mark.parametrize("how", ["watched", "evaluated"])
def test_the_guard_stops_at_a_retain_perplexity_that_is_no_number(how, broken, value, tmp_path):
    weights = tiny_trainer(tmp_path, method="grad_diff", max_retain_perplexity_ratio=3.0).language_weights
    found = {
        split: {code: {"loss": 2.0, "memorization_accuracy": 0.9, "token_probability": 0.5} for code in LANGUAGES}
        for split in ("forget", "retain", "valid")
    }
    weights.begin(found)
    weights.watch(found)
    weights.after_evaluation(found, 0.5, 1)
    assert weights.stop_reason is None
    ruined = copy.deepcopy(found)
    for code in broken:
        ruined["retain"][code]["loss"] = value
    weights.watch(ruined) if how == "watched" else weights.after_evaluation(ruined, 0.5, 2)
    assert "--max_retain_perplexity_ratio 3" in weights.stop_reason
    assert ("not a number" if math.isnan(value) else "times its start") in weights.stop_reason


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("loss", "score"), [(2.0, 1.0), (math.nan, 0.0)])
def test_a_loss_that_is_no_number_scores_nothing(language, loss, score, tmp_path):
    weights = LanguageWeightCallback(LANGUAGES, policy(tmp_path))
    weights.begin(figures())
    found = figures(forget=(0.0, 0.0, 0.0))
    found["valid"][language]["loss"] = loss
    assert weights.score(found) == score


def test_the_guard_stops_a_run_that_ruins_the_retain_set(memorized, tmp_path):
    limit = 3.0
    trainer = tiny_trainer(
        tmp_path,
        memorized_model(memorized),
        method="grad_diff",
        retain_coef=1e-6,
        language_sampling="all",
        weight_update_steps=1,
        per_device_train_batch_size=18,
        max_retain_perplexity_ratio=limit,
        max_steps=60,
        learning_rate=1e-3,
    )
    trainer.train()
    weights, stopped = trainer.language_weights, trainer.state.global_step
    assert stopped < 60
    assert "--max_retain_perplexity_ratio 3" in weights.stop_reason
    # Batches hold the whole retain set, so the log has the exact loss of each step before it.
    loss0 = sum(weights.retain_loss_at_start) / 3
    rise = {log["step"]: log["retain_loss"] - loss0 for log in trainer.state.log_history if "retain_loss" in log}
    assert rise.pop(stopped) > math.log(limit) > max(rise.values())


def test_a_run_ends_once_forgotten_and_no_better_for_patience_evaluations(memorized, tmp_path):
    patience = 2
    trainer = tiny_trainer(
        tmp_path,
        memorized_model(memorized),
        forget_weighting="target",
        forget_target="0.5",
        patience=patience,
        weight_update_steps=5,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=120,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=6,
        max_retain_perplexity_ratio=None,
    )
    assert trainer.args.stop_when_forgotten
    trainer.train()
    best, waited, should_stop = -1.0, 0, []
    evaluations = [log for log in trainer.state.log_history if "eval_unlearning_score" in log]
    for log in evaluations:
        waited = 0 if log["eval_unlearning_score"] > best else waited + 1
        best = max(best, log["eval_unlearning_score"])
        forgotten = all(log[f"eval_forget_{code}_memorization_accuracy"] <= 0.5 for code in LANGUAGES)
        should_stop.append(forgotten and waited >= patience)
    assert should_stop.index(True) == len(should_stop) - 1
    assert trainer.state.global_step == evaluations[-1]["step"] < 120
    assert "forgotten in every language" in trainer.language_weights.stop_reason
    assert len(should_stop) > patience + 1


def test_a_model_that_knows_nothing_is_reported_before_the_training(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path, forget_weighting="target", max_steps=1)
    trainer.train()
    (record,) = [r for r in caplog.records if "nothing to forget" in r.getMessage()]
    assert "in any language" in record.getMessage() and "--memorize_first" in record.getMessage()
    assert trainer.language_weights.nothing_to_forget == LANGUAGES
    assert trainer.language_weights.forget == [1.0, 1.0, 1.0]


def test_after_a_stage_that_memorized_nothing_the_warning_names_its_flags(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path, max_steps=1, memorize_first=True)
    trainer.train()
    (record,) = [r for r in caplog.records if "nothing to forget" in r.getMessage()]
    message = record.getMessage()
    assert "--memorize_epochs" in message and "--memorize_learning_rate" in message
    assert "--memorize_first" not in message


def test_where_there_was_nothing_to_forget_there_is_no_score(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert trainer.language_weights.nothing_to_forget == LANGUAGES
    assert trainer.language_weights.score(trainer.measure()) is None
    assert "eval_unlearning_score" not in trainer.evaluate()


@pytest.mark.parametrize("weighting", ["token", "constant", "language"])
def test_a_language_has_a_weight_of_distillation_only_where_one_is_used(weighting, tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=2, weight_update_steps=1, distill_weighting=weighting)
    trainer.train()
    for entry in trainer.language_weights.reported_history():
        assert list(entry["distill"]) == LANGUAGES
        assert [value is None for value in entry["distill"].values()] == [weighting == "token"] * 3
    logged = {key for log in trainer.state.log_history for key in log if key.startswith("weights/distill")}
    assert len(logged) == (3 if weighting == "language" else 0)


def test_the_score_of_a_run_is_that_of_its_figures(memorized, tmp_path):
    trainer = tiny_trainer(tmp_path, memorized_model(memorized), max_steps=5, learning_rate=1e-2)
    trainer.train()
    metrics = trainer.evaluate()
    start = trainer.language_weights.figures_at_start
    terms = []
    for code in LANGUAGES:
        m0, tau = (start[split][code]["memorization_accuracy"] for split in ("forget", "valid"))
        left = remembered(metrics[f"eval_forget_{code}_memorization_accuracy"], m0, tau)
        terms += [1 - left, min(1.0, start["valid"][code]["perplexity"] / metrics[f"eval_valid_{code}_perplexity"])]
    expected = 6 / sum(1 / term for term in terms) if all(terms) else 0
    assert metrics["eval_unlearning_score"] == pytest.approx(expected)
    assert 0 < expected < 1


@pytest.mark.parametrize(
    "settings", [{"forget_weighting": "target"}, {"retain_weighting": "primal_dual"}], ids=lambda s: next(iter(s))
)
def test_adaptive_weights_without_evaluated_splits_are_refused(settings, tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1, **settings)
    trainer.eval_dataset = None
    with pytest.raises(ConfigError, match="do_eval"):
        trainer.train()


def test_a_run_without_valid_and_retain_rows_has_no_score(tmp_path):
    rows = tiny_rows()
    config = tiny_config(tmp_path, method="gradient_ascent", max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer = UnlearnTrainer(tiny_model(), config, rows, None, languages=LANGUAGES, eval_dataset={"forget": rows})
    trainer.train()
    metrics = trainer.evaluate()
    assert "eval_forget_loss" in metrics and "eval_unlearning_score" not in metrics
