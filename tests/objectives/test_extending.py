"""The examples of docs/extending.md, run as they stand there, and that docs/methods.md describes what there is."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_config, tiny_rows, tiny_trainer
from torch.nn import functional as F

from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.objectives import (
    FORGET_OBJECTIVES,
    METHODS,
    RETAIN_OBJECTIVES,
    Method,
    Objective,
    RowStatistics,
    objective_options,
)
from unlearn_trainer.objectives.statistics import TokenStatistics

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
METHODS_GUIDE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
OBJECTIVE, TRAIN, BOUND, COMMAND, ROWS, REDUCTION, ASKED = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(autouse=True)
def as_a_user(tmp_path, monkeypatch):
    """In a folder with the module of the first example; afterwards registries and modules are what they were."""
    registries = FORGET_OBJECTIVES, METHODS
    before = [dict(registry) for registry in registries]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_objectives.py").write_text(OBJECTIVE, encoding="utf-8")
    yield
    sys.modules.pop("my_objectives", None)
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


def run(example):
    names = {}
    exec(example, names)
    return names


def tokens_of(model, rows):
    """For each row the logits [n, V] that predict its labelled tokens, and these [n]."""
    for row in rows:
        labels = torch.tensor(row["labels"])
        columns = (labels != -100).nonzero()[:, 0]
        columns = columns[columns > 0]
        yield model(input_ids=torch.tensor([row["input_ids"]])).logits[0, columns - 1], labels[columns]


def losses_of(model, rows):
    return [F.cross_entropy(logits, labels, reduction="none") for logits, labels in tokens_of(model, rows)]


def check(trainer, rows, expected):
    """The trainer's loss on the forget ``rows`` and its gradient are those of ``expected``, which has a graph."""
    model = trainer.model.eval()

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    batch = trainer.data_collator([trainer.train_dataset[True, number] for number in range(len(rows))])
    loss = trainer.compute_loss(model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = gradient(expected)
    assert wanted.norm() > 1e-3
    assert (gradient(loss) - wanted).norm() < 1e-4 * wanted.norm()


def test_the_example_trains_with_its_objective():
    names = run(TRAIN)
    trainer, rows = names["trainer"], names["rows"][:8]
    assert trainer.state.global_step == 5
    nll = torch.cat(losses_of(trainer.model.eval(), rows))
    check(trainer, rows, -nll.clamp(max=10.0).mean())


def test_an_option_bound_afterwards_takes_the_place_of_the_default():
    names = run(BOUND + TRAIN)
    trainer, rows, ceiling = names["trainer"], names["rows"][:8], names["math"].log(64)
    nll = torch.cat(losses_of(trainer.model.eval(), rows))
    assert (nll < ceiling).any() and (nll > ceiling).any()
    check(trainer, rows, -nll.clamp(max=ceiling).mean())


def test_an_objective_of_rows(tmp_path):
    margin, rows = 5.35, tiny_rows().to_list()
    function = functools.partial(run(ROWS)["row_hinge"], margin=margin)
    FORGET_OBJECTIVES["row_hinge"] = dataclasses.replace(FORGET_OBJECTIVES["row_hinge"], function=function)
    trainer = tiny_trainer(tmp_path, forget_objective="row_hinge", retain_objective="none")
    means = torch.stack([nll.mean() for nll in losses_of(trainer.model, rows)])
    assert (means < margin).any() and (means > margin).any()
    check(trainer, rows, F.relu(margin - means).mean())


def test_a_reduction_of_the_logits(tmp_path):
    rows = tiny_rows().to_list()
    run(REDUCTION)
    trainer = tiny_trainer(tmp_path, forget_objective="uncertainty", retain_objective="none")
    entropies = [torch.distributions.Categorical(logits=z).entropy() for z, _ in tokens_of(trainer.model, rows)]
    check(trainer, rows, -torch.cat(entropies).mean())


def test_methods_and_the_parser_know_what_was_registered_late(tmp_path):
    with pytest.raises(ConfigError, match="bounded_ascent is not one of none, "):
        tiny_config(tmp_path, forget_objective="bounded_ascent")
    run(OBJECTIVE)
    METHODS["mine"] = Method("bounded_ascent", "lingtea", {"forget_coef": 0.5})
    FORGET_OBJECTIVES["steep"] = Objective("steep", lambda tokens, *, beta=2.0: -beta * tokens.nll, frozenset({"nll"}))
    words = ["--model_name_or_path", "m", "--data_dir", "d", "--output_dir", str(tmp_path), "--use_cpu"]
    config = parse_arguments([*words, "--method", "mine"])[2]
    assert (config.forget_objective, config.retain_objective, config.forget_coef) == ("bounded_ascent", "lingtea", 0.5)


def test_options_registered_before_the_flags_are_made_are_flags(tmp_path):
    Path("my_unlearn.py").write_text(COMMAND, encoding="utf-8")
    words = ["--forget_objective", "bounded_ascent", "--bounded_ascent_ceiling", "high"]
    done = subprocess.run(
        [sys.executable, "my_unlearn.py", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "--bounded_ascent_ceiling" in done.stderr and "invalid float value: 'high'" in done.stderr


def test_the_table_of_methods_is_that_of_the_registry():
    told = {}
    for row in re.findall(r"^\| (`\w.*)\|$", METHODS_GUIDE, re.MULTILINE):
        name, forget, retain, settings, needs = (cell.replace("`", "").strip() for cell in row.split("|"))
        told[name.removesuffix(" (default)")] = forget, retain, settings, "teacher" in needs, "alternative" in needs
    assert told.keys() == METHODS.keys()
    for name, method in METHODS.items():
        objectives = FORGET_OBJECTIVES.get(method.forget_objective), RETAIN_OBJECTIVES.get(method.retain_objective)
        used = [objective for objective in objectives if objective]
        forget, retain, settings, teacher, alternative = told[name]
        assert (forget, retain) == (method.forget_objective, method.retain_objective)
        values = {key: value if isinstance(value, str) else f"{value:g}" for key, value in method.settings.items()}
        assert settings == " ".join(f"--{key} {value}" for key, value in values.items())
        assert teacher == any(objective.needs_teacher for objective in used)
        assert alternative == any("alternative" in objective.needs for objective in used)


def test_every_objective_and_option_is_described_with_its_default():
    forget, retain = METHODS_GUIDE.split("## Forget objectives")[1].split("## Retain objectives")
    for text, registry in ((forget, FORGET_OBJECTIVES), (retain, RETAIN_OBJECTIVES)):
        assert [name for name in registry if f"`{name}`" not in text] == []
    for option, default in objective_options().items():
        assert f"`--{option} {default:g}`" in METHODS_GUIDE


@pytest.mark.parametrize(
    "function, unit, message",
    [
        (lambda tokens: tokens.nll.mean(), "token", r"objective mine must return one value a token, .* not \[\]"),
        (lambda tokens: 0.5, "token", "objective mine must return one value a token, .* not float"),
        (lambda tokens: tokens.nll[1:], "token", "objective mine must return one value a token"),
        (lambda rows: rows.nll.sum(), "row", r"objective mine must return one value a row, .* not \[\]"),
        (lambda tokens: tokens.nll * tokens.kl, "token", "objective mine asks for kl, .* add kl to its needs"),
        (lambda tokens: tokens.log_prob_std, "token", "objective mine asks for .* add log_prob_moments to its needs"),
        (lambda rows: rows.alternative.nll, "row", "objective mine asks for alternative, .* to its needs"),
        (lambda rows: rows.nll - rows.teacher_nl, "row", "no such field; did you mean teacher_nll"),
        (lambda tokens: tokens.kl, "token", "objective mine asks for kl, .* add kl to its needs"),
        (lambda tokens: (tokens.nll, tokens.kl), "token", "objective mine asks for kl, .* add kl to its needs"),
        (lambda tokens: torch.exp(tokens.kl), "token", "objective mine asks for kl, .* add kl to its needs"),
        (lambda tokens: tokens.nll * -tokens.teacher_nll, "token", "asks for teacher_nll, .* add teacher_nll to its"),
        (lambda tokens: torch.where(tokens.nll > 1, tokens.reduced, tokens.nll), "token", "add reduced to its needs"),
        (lambda tokens: torch.stack([tokens.nll, tokens.unknown_nll]), "token", "add counterpart to its needs"),
        (lambda tokens: F.relu(tokens.place[0]) + tokens.nll, "token", "add place to its needs"),
        (lambda tokens: helper(tokens) + tokens.nll, "token", "asks for hidden, .* add hidden to its needs"),
        (lambda rows: helper(rows), "row", "asks for hidden, .* there is no such field"),
        (lambda rows: rows.nll / rows.teacher_nll, "row", "add teacher_nll to its needs"),
        (lambda tokens: tokens.nll if tokens.kl is None else 1, "token", None),
        (lambda tokens: tokens.nll if not hasattr(tokens, "klm") else 1, "token", None),
        (lambda tokens: tokens.nll if isinstance(tokens, TokenStatistics) else 1, "token", None),
        (lambda tokens: dataclasses.replace(tokens, kl=tokens.nll).kl, "token", None),
        (lambda rows: rows.nll if isinstance(rows, RowStatistics) else 1, "row", None),
        (lambda rows: rows.nll if rows.alternative is None else 1, "row", None),
    ],
)
def test_a_function_that_breaks_the_contract_is_named(function, unit, message, tmp_path, monkeypatch):
    objective = Objective("mine", function, frozenset({"nll"}), unit=unit)
    monkeypatch.setitem(FORGET_OBJECTIVES, "mine", objective)
    trainer = tiny_trainer(tmp_path, forget_objective="mine", retain_objective="none", max_steps=1)
    if message is None:
        trainer.train()
        return
    with pytest.raises(ConfigError, match=message) as told:
        trainer.train()
    assert "\n" not in str(told.value)


def helper(statistics):
    return statistics.hidden.norm(dim=-1)


def own_error(tokens):
    if tokens.kl is None:  # read, and no reason for what follows
        raise ValueError("mine, of NoneType")


def own_type_error(tokens):
    if tokens.kl is None:
        return tokens.nll + "one"


def own_attribute_error(tokens):
    return tokens.nll.clampp(max=1)


def own_none(tokens):
    return {}.get("scale") * tokens.nll


@pytest.mark.parametrize(
    "function, kind, message",
    [
        (own_error, ValueError, "mine, of NoneType"),
        (own_type_error, TypeError, "str"),
        (own_attribute_error, AttributeError, "no attribute 'clampp'"),
        (own_none, TypeError, "NoneType"),
        (lambda tokens: {}["scale"], KeyError, "scale"),
        (lambda tokens: tokens.nll.view(-1, 7, 11, 13), RuntimeError, "invalid for input of size"),
    ],
)
def test_a_function_s_own_error_is_passed_on_as_it_is(function, kind, message, tmp_path, monkeypatch):
    monkeypatch.setitem(FORGET_OBJECTIVES, "mine", Objective("mine", function, frozenset({"nll"})))
    trainer = tiny_trainer(tmp_path, forget_objective="mine", retain_objective="none", max_steps=1)
    with pytest.raises(kind, match=message) as told:
        trainer.train()
    assert type(told.value) is kind


@pytest.mark.parametrize(
    "need, near", [("nnll", "nll"), ("teacher_nl", "teacher_nll"), ("counterparts", "counterpart")]
)
def test_a_misspelled_need_names_the_nearest(need, near):
    with pytest.raises(ConfigError, match=f"cannot need {need}; did you mean {near}"):
        Objective("mine", lambda tokens: tokens.nll, frozenset({need}))
