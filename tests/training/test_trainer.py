"""Training through the public interface: equal gradients however a step is split, exact resume, teacher, NaN."""

import contextlib
import gc
import json
import shutil
import weakref

import pytest
import torch
from helpers.tiny import LANGUAGES, VOCABULARY, tiny_config, tiny_model, tiny_rows, tiny_trainer
from transformers import TrainerCallback

from unlearn_trainer.errors import ConfigError, TrainingDiverged
from unlearn_trainer.teacher.cache import CachedTeacher
from unlearn_trainer.teacher.teachers import ResidentTeacher
from unlearn_trainer.trainer import UnlearnTrainer


class Stop(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        # Before the save of this step, as a kill would be.
        if state.global_step == self.step:
            raise Stop


def state_of(trainer):
    optimizer = trainer.optimizer.state_dict()["state"]
    return (
        {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
        {f"{i}.{k}": v for i, entry in optimizer.items() for k, v in entry.items()},
        trainer.language_weights.state()["attributes"],
    )


def assert_identical(first, second):
    for a, b in zip(first[:2], second[:2], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name
    assert json.dumps(first[2], sort_keys=True) == json.dumps(second[2], sort_keys=True)


@pytest.mark.parametrize(
    "sampling",
    [
        {"language_sampling": "balanced"},
        {"language_sampling": "random"},
        {"schedule": "alternate", "language_sampling": "random"},
        {"schedule": "alternate", "gradient_accumulation_steps": 2, "distill_weighting": "language"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_a_killed_and_resumed_run_is_bit_identical(sampling, tmp_path):
    settings = {
        "method": "lingtea",
        "forget_weighting": "target",
        "forget_target": "0.1",
        "retain_weighting": "primal_dual",
        "stop_when_forgotten": False,
        "max_steps": 20,
        "save_strategy": "steps",
        "save_steps": 10,
        "eval_strategy": "steps",
        "eval_steps": 7,
        "weight_update_steps": 4,  # the save at 10 falls inside a window
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 2,
        "max_retain_perplexity_ratio": 1e9,
        **sampling,
    }

    def memorized():
        model = tiny_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        rows = tiny_rows(seed=0)
        for _ in range(15):
            for row in rows:
                model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    start = memorized()

    def fresh():
        model = tiny_model()
        model.load_state_dict(start.state_dict())
        return model

    whole = tiny_trainer(tmp_path / "whole", fresh(), **settings)
    whole.train()
    killed = tiny_trainer(tmp_path / "killed", fresh(), **settings)
    killed.add_callback(KillAt(13))
    with pytest.raises(Stop):
        killed.train()
    resumed = tiny_trainer(tmp_path / "killed", fresh(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-10"))
    assert_identical(state_of(whole), state_of(resumed))
    weights = whole.language_weights
    assert weights.figures_at_start is not None
    assert len({json.dumps(entry["forget"]) for entry in weights.history}) > 1


@pytest.mark.parametrize("method", ["lingtea", "gradient_ascent", "grad_diff", "kl", "memorize"])
@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_any_split_of_a_step_gives_the_same_loss_and_gradient(method, schedule, tmp_path):
    found = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        trainer = tiny_trainer(
            tmp_path / f"{batch}",
            tiny_model(dtype=torch.float64),
            method=method,
            schedule=schedule,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            learning_rate=1e-2,
            optim="sgd",  # Adam would blow the rounding of gradients near zero up to full steps
            max_grad_norm=1e9,
            max_retain_perplexity_ratio=1e9,
        )
        trainer.train()
        logs = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
        found.append((logs, dict(trainer.model.named_parameters())))
    for logs, parameters in found[1:]:
        torch.testing.assert_close(torch.tensor(logs), torch.tensor(found[0][0]), rtol=1e-6, atol=1e-6)
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, found[0][1][name], rtol=1e-7, atol=1e-9)


def test_released_alignment_does_not_depend_on_the_split_either(tmp_path):
    losses = []
    for batch, accumulation in ((4, 1), (1, 4)):
        trainer = tiny_trainer(
            tmp_path / f"{batch}",
            tiny_model(dtype=torch.float64),
            lingtea_alignment="released",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
        )
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def naive_step(model, teacher, batch, u, r):
    """LingTea on padded logits, autograd all the way: one forget mean and one retain mean."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    with torch.no_grad():
        t = (
            teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            .logits[:, :-1]
            .log_softmax(-1)
        )
    labels = batch["labels"][:, 1:]
    mask = labels != -100
    y = labels.clamp(min=0)[..., None]
    s, q = -logits.gather(-1, y)[..., 0], t.gather(-1, y)[..., 0].exp()
    kl = (t.exp() * (t - logits)).sum(-1)
    forget = (mask & batch["is_forget"][:, None]).double()
    retain = (mask & ~batch["is_forget"][:, None]).double()
    u, r = (torch.tensor(w, dtype=torch.float64)[batch["language"]][:, None] for w in (u, r))
    return -(u * s * forget).sum() / forget.sum() + (r * (q * kl + (1 - q) * s) * retain).sum() / retain.sum()


def test_compute_loss_equals_the_formula_with_language_weights(tmp_path):
    teacher = tiny_model(seed=5, dtype=torch.float64)
    model = tiny_model(dtype=torch.float64)
    rows = tiny_rows(seed=0), tiny_rows(seed=1)
    trainer = UnlearnTrainer(model, tiny_config(tmp_path), *rows, languages=LANGUAGES, teacher=teacher)
    weights = trainer.language_weights
    weights.forget, weights.retain = [0.5, 2.0, 0.0], [1.5, 0.3, 1.0]
    batch = next(iter(trainer.get_train_dataloader()))
    sizes = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: sizes.append(args[0].numel()))
    loss = trainer.compute_loss(trainer.model, batch)
    assert sizes[-1] < batch["input_ids"].numel()  # rows share lines
    hook.remove()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = naive_step(model, teacher, batch, weights.forget, weights.retain)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-8, atol=1e-12)


def test_the_teacher_is_absent_when_no_objective_asks_and_sees_only_its_rows(tmp_path):
    assert tiny_trainer(tmp_path, method="grad_diff").teacher is None
    trainer = tiny_trainer(tmp_path, method="lingtea", per_device_train_batch_size=3, max_steps=1)
    seen = []
    trainer.teacher.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    before = {name: p.clone() for name, p in trainer.teacher.model.named_parameters()}
    trainer.train()
    # One row that tells this teacher from another, two to try how it takes packed rows, then the step's retain rows.
    assert seen == [1, 1, 1, 3]
    for name, parameter in trainer.teacher.model.named_parameters():
        assert torch.equal(parameter, before[name]) and not parameter.requires_grad


def test_a_nan_loss_stops_before_the_weights_and_names_step_and_language(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=5, learning_rate=1e-3)

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.kept = {n: p.clone() for n, p in trainer.model.named_parameters()}
                trainer.model.model.embed_tokens.weight.data[:] = float("nan")

    trainer.add_callback(Poison)
    with pytest.raises(TrainingDiverged, match=r"optimizer step 3, language en, sw, zh"):
        trainer.train()


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path):
    teacher = tiny_model(vocab_size=VOCABULARY + 8)
    with pytest.raises(ConfigError, match="vocabulary"):
        UnlearnTrainer(
            tiny_model(), tiny_config(tmp_path), tiny_rows(), tiny_rows(seed=1), languages=LANGUAGES, teacher=teacher
        )


def test_missing_rows_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="retain_file"):
        UnlearnTrainer(tiny_model(), tiny_config(tmp_path), tiny_rows(), None, languages=LANGUAGES)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_that_the_last_step_destroyed_are_neither_kept_nor_saved(accumulation, tmp_path):
    settings = {"max_steps": 1, "learning_rate": 1e38, "save_strategy": "steps", "save_steps": 1}
    settings["gradient_accumulation_steps"] = accumulation
    trainer = tiny_trainer(tmp_path, **settings)
    with pytest.raises(
        TrainingDiverged, match="weights are NaN or infinite after optimizer step 1; no model .* lower"
    ):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(TrainingDiverged, match="optimizer step 1"):  # where no checkpoint is written either
        tiny_trainer(tmp_path, **{**settings, "save_strategy": "no"}).train()


def test_one_infinite_weight_among_many_is_noticed(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=2)

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.model.model.norm.weight.data[3] = float("-inf")

    trainer.add_callback(Break())
    with pytest.raises(TrainingDiverged, match="optimizer step 2"):
        trainer.train()


def logged_losses(trainer):
    logs = trainer.state.log_history
    return {log["step"]: (log["forget_loss"], log["retain_loss"]) for log in logs if "loss" in log}


def test_logged_losses_are_means_over_the_steps_since_the_last_log_also_after_a_resume(tmp_path):
    settings = {"max_steps": 6, "logging_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-4}
    whole = tiny_trainer(tmp_path, **settings)
    whole.train()
    expected = logged_losses(whole)
    assert list(expected) == [2, 4, 6]
    resumed = tiny_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged_losses(resumed)[6] == pytest.approx(expected[6])
    # A second training of the same trainer counts its own steps.
    whole.args.learning_rate = 1e-12
    whole.create_optimizer_and_scheduler(6)
    whole.train()
    losses = logged_losses(whole)
    assert losses[2] == pytest.approx(losses[6], rel=0.5)


def test_without_a_score_the_best_model_cannot_be_chosen_by_it(tmp_path):
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {**every, "max_steps": 2, "load_best_model_at_end": True}
    trainer = tiny_trainer(tmp_path / "a", **best)
    with pytest.raises(ConfigError, match="--metric_for_best_model unlearning_score.*nothing .* retain_loss"):
        trainer.train()
    trainer = tiny_trainer(tmp_path / "b", metric_for_best_model="retain_loss", **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None


def test_rows_alone_to_evaluate_are_the_valid_split(tmp_path):
    rows = tiny_rows(seed=0), tiny_rows(seed=1)
    config = tiny_config(tmp_path, max_steps=1)
    trainer = UnlearnTrainer(tiny_model(), config, *rows, languages=LANGUAGES, eval_dataset=tiny_rows(seed=2))
    trainer.train()
    assert "eval_valid_sw_loss" in trainer.evaluate()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
def test_memory_is_pinned_only_for_an_accelerator(tmp_path, recwarn):
    trainer = tiny_trainer(tmp_path, max_steps=1, use_cpu=False)
    assert trainer.args.dataloader_pin_memory and not trainer.get_train_dataloader().pin_memory
    trainer.train()
    assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "bloom", "xglm"])
def test_rows_longer_than_a_learned_table_of_positions_are_refused(kind, tmp_path):
    model = tiny_model(kind, max_position_embeddings=12, **{"n_positions": 12} if kind == "gpt2" else {})
    rows = tiny_rows(seed=0), tiny_rows(seed=1)  # 6 to 13 tokens
    if kind in ("gpt2", "opt"):
        with pytest.raises(ConfigError, match="split has a row of 13 tokens, .* ends at 12; give --max_seq_length 12"):
            UnlearnTrainer(model, tiny_config(tmp_path), *rows, languages=LANGUAGES)
        rows = [split.filter(lambda row: len(row["input_ids"]) <= 12) for split in rows]
    UnlearnTrainer(model, tiny_config(tmp_path, max_steps=1), *rows, languages=LANGUAGES).train()


def test_evaluation_keys_best_model_and_early_stop(tmp_path):
    model = tiny_model()
    tiny_trainer(tmp_path / "start", model, method="memorize", max_steps=40, learning_rate=1e-2).train()
    trainer = tiny_trainer(
        tmp_path,
        model,
        forget_target="0.0",
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        learning_rate=1e-3,
    )
    trainer.train()
    metrics = trainer.evaluate()
    for key in (
        "eval_forget_sw_memorization_accuracy",
        "eval_forget_memorization_accuracy",
        "eval_forget_worst_extraction_strength",
        "eval_valid_zh_perplexity",
        "eval_retain_worst_loss",
        "eval_loss",
        "eval_unlearning_score",
    ):
        assert key in metrics
    assert trainer.state.best_model_checkpoint is not None
    assert metrics["eval_forget_worst_loss"] == min(metrics[f"eval_forget_{code}_loss"] for code in LANGUAGES)
    assert metrics["eval_valid_worst_loss"] == max(metrics[f"eval_valid_{code}_loss"] for code in LANGUAGES)
    assert metrics["eval_loss"] == metrics["eval_valid_loss"]


def test_memorization_accuracy_is_what_greedy_generation_gives(tmp_path):
    trainer = tiny_trainer(tmp_path)
    rows = tiny_rows(seed=0)
    found = trainer.measure()["forget"]
    shares = {code: [] for code in LANGUAGES}
    for row in rows:
        ids, hits = torch.tensor([row["input_ids"]]), []
        for position, label in enumerate(row["labels"]):
            if label != -100:
                out = trainer.model.generate(ids[:, :position], max_new_tokens=1, do_sample=False, eos_token_id=-1)
                hits.append(out[0, position].item() == label)
        shares[LANGUAGES[row["language"]]].append(sum(hits) / len(hits))
    for code, values in shares.items():
        assert found[code]["memorization_accuracy"] == pytest.approx(sum(values) / len(values), abs=1e-12)


# ---- the cached teacher ---------------------------------------------------------------------------------------------


def long_run(folder, **settings):
    return tiny_trainer(folder, method="lingtea", per_device_train_batch_size=3, max_steps=8, **settings)


@pytest.mark.parametrize("alignment", ["paper", "released"])
@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_a_cached_teacher_gives_the_run_of_a_resident_one(schedule, alignment, tmp_path):
    runs = {}
    for teacher in ("resident", "cached"):
        settings = {"schedule": schedule, "lingtea_alignment": alignment, "distill_weighting": "language"}
        trainer = long_run(tmp_path / teacher, teacher=teacher, **settings)
        trainer.train()
        runs[teacher] = trainer
    assert isinstance(runs["resident"].teacher, ResidentTeacher) and isinstance(runs["cached"].teacher, CachedTeacher)
    logs = [[log for log in run.state.log_history if "grad_norm" in log] for run in runs.values()]
    for first, second in zip(*logs, strict=True):
        assert second["retain_loss"] == pytest.approx(first["retain_loss"], rel=1e-4)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    assert runs["cached"].language_weights.distill == pytest.approx(runs["resident"].language_weights.distill)
    # When the run is over nothing of it is left.
    assert not (tmp_path / "cached" / "teacher").exists()


@pytest.mark.parametrize("settings", [{}, {"schedule": "alternate"}, {"gradient_accumulation_steps": 2}])
def test_every_step_lies_in_the_epoch_that_holds_it(settings, tmp_path):
    """Also the last of an epoch, from which a run may be resumed."""
    trainer = tiny_trainer(tmp_path, method="grad_diff", per_device_train_batch_size=2, **settings)
    steps = trainer.train_sampler.steps_per_epoch
    assert steps > 1
    for step in range(3 * steps):
        trainer.start_epoch(step)
        assert trainer.train_sampler.epoch == step // steps


def test_the_order_of_the_rows_is_that_of_the_data_seed_where_there_is_one(tmp_path):
    def order(**seeds):
        return list(tiny_trainer(tmp_path, method="grad_diff", per_device_train_batch_size=2, **seeds).train_sampler)

    assert order(seed=1, data_seed=7) == order(seed=2, data_seed=7) == order(seed=7)
    assert order(seed=7, data_seed=0) == order(seed=0) != order(seed=7)


def test_the_cache_is_not_chosen_where_it_would_take_much_of_the_disk_or_saves_nothing(tmp_path, monkeypatch):
    # An epoch has every item in one language: no row comes back before all languages have had their turn.
    once = len(LANGUAGES) * long_run(tmp_path / "once").train_sampler.steps_per_epoch
    for steps, is_cached in ((once, False), (once + 1, True)):
        trainer = long_run(tmp_path / str(steps))
        trainer.cache_teacher(steps=steps)
        assert isinstance(trainer.teacher, CachedTeacher) == is_cached
    (states,) = (tmp_path / str(once + 1) / "teacher").glob("*.bin")
    size = states.stat().st_size
    # As much again has to stay free for what the run will write.
    for free, is_cached in ((2 * size, False), (2 * size + 1, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: shutil._ntuple_diskusage(2**40, 0, free))
        trainer = long_run(tmp_path / str(free))
        trainer.cache_teacher(steps=once + 1)
        assert isinstance(trainer.teacher, CachedTeacher) == is_cached
        asked = long_run(tmp_path / f"asked-{free}", teacher="cached")
        with contextlib.nullcontext() if is_cached else pytest.raises(ConfigError, match="--teacher cached needs"):
            asked.cache_teacher(steps=once + 1)


def test_the_end_of_a_run_deletes_its_own_cache_only(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "mine.txt").write_text("kept")
    long_run(tmp_path, teacher="cached").train()
    assert [path.name for path in (tmp_path / "teacher").iterdir()] == ["mine.txt"]


def test_the_cache_is_chosen_where_rows_are_seen_again_and_read_again_on_resume(tmp_path):
    short = tiny_trainer(tmp_path / "short", method="lingtea", per_device_train_batch_size=3, max_steps=2)
    short.train()
    assert isinstance(short.teacher, ResidentTeacher)  # 6 of 18 rows: computing all of them would be a loss

    trainer = long_run(tmp_path / "long")
    trainer.cache_teacher(steps=8)
    assert isinstance(trainer.teacher, CachedTeacher)
    (states,) = (tmp_path / "long" / "teacher").glob("*.bin")
    written = states.stat().st_mtime_ns

    again = long_run(tmp_path / "long")
    again.cache_teacher(steps=8)
    assert states.stat().st_mtime_ns == written
    (asked, (first, _)), *_ = trainer.teacher.answers.items()
    assert torch.equal(again.teacher.answers[asked][0], first)

    other = long_run(tmp_path / "long", model=tiny_model(seed=7))
    other.cache_teacher(steps=8)
    assert len(list((tmp_path / "long" / "teacher").glob("*.bin"))) == 2
    assert not torch.equal(other.teacher.answers[asked][0], first)


def test_with_a_cache_only_the_head_of_the_teacher_stays_in_memory(tmp_path):
    trainer = long_run(tmp_path)
    body = weakref.ref(trainer.teacher.model.model)
    trainer.cache_teacher(steps=8)
    gc.collect()
    assert isinstance(trainer.teacher, CachedTeacher) and body() is None


def test_a_teacher_that_was_passed_in_stays_whole_when_its_states_are_cached(tmp_path):
    teacher = tiny_model(seed=5)
    ids = torch.arange(3, 9)[None]
    before = teacher(ids).logits
    rows = tiny_rows(seed=0), tiny_rows(seed=1)
    config = tiny_config(tmp_path, teacher="cached", per_device_train_batch_size=3, max_steps=1)
    UnlearnTrainer(tiny_model(), config, *rows, languages=LANGUAGES, teacher=teacher).train()
    torch.testing.assert_close(teacher(ids).logits, before)
    with torch.no_grad():
        positions = torch.tensor([0])
        assert teacher(ids, attention_mask=torch.ones_like(ids), positions=positions)["hidden"].shape == (1, 32)


def test_a_second_trainer_takes_the_model_as_the_first_left_it(tmp_path):
    model = tiny_model()
    tiny_trainer(tmp_path / "first", model=model, max_steps=2, learning_rate=1e-2).train()
    left = {name: parameter.clone() for name, parameter in model.named_parameters()}
    second = tiny_trainer(tmp_path / "second", model=model, max_steps=2, learning_rate=1e-2)
    taught = dict(second.teacher.model.named_parameters())
    assert all(torch.equal(taught[name], value) for name, value in left.items())
    second.train()
    assert not any(taught[name] is parameter for name, parameter in model.named_parameters())
    assert any(not torch.equal(left[name], parameter) for name, parameter in model.named_parameters())
    assert all(torch.equal(taught[name], value) for name, value in left.items())


def test_the_figures_of_a_predicted_split_have_its_name_once(tmp_path):
    trainer = tiny_trainer(tmp_path)
    rows = trainer.eval_dataset["valid"]
    metrics = trainer.predict(rows).metrics
    for name in ("loss", "worst_loss", *(f"{language}_loss" for language in LANGUAGES)):
        assert metrics[f"test_{name}"] == metrics[f"test_test_{name}"]
    named = trainer.predict({"valid": rows}, metric_key_prefix="final").metrics
    assert named["final_valid_loss"] == metrics["test_loss"] and "final_loss" not in named
