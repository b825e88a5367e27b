"""`--trainable_layers`: exactly the named parameters move; and which layers `scripts/suggest_layers.py` suggests."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.material import write_material
from helpers.tiny import CONFIGS, LANGUAGES, tiny_model, tiny_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import run_unlearn
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.model.layers import restrict_training
from unlearn_trainer.model.similarity import linear_cka, pooled_states, similarity_by_pair, suggest_range

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"max_steps": 2, "learning_rate": 1e-2}


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(folder, model, **changes):
    """The parameters that a training moves."""
    before = state(model)
    tiny_trainer(folder, model, **{**TRAIN, **changes}).train()
    return moved(model, before)


def named(model, pattern):
    return {name for name, _ in model.named_parameters() if re.search(pattern, name)}


def unfrozen(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_are_found_in_every_architecture(kind, tmp_path):
    count = {"gpt2": "n_layer", "bloom": "n_layer", "xglm": "num_layers"}.get(kind, "num_hidden_layers")
    model = restrict_training(tiny_model(kind, **{count: 3}), "1")
    expected = named(model, r"\.(layers|h)\.1\.")
    assert expected and unfrozen(model) == expected
    if kind in ("llama-tied", "gpt2", "xglm"):
        assert train(tmp_path, model) == expected


@pytest.mark.parametrize(
    ("spec", "pattern"),
    [
        ("0", r"layers\.0\."),
        ("0-1", r"layers\.[01]\."),
        ("3, 1-1", r"layers\.[13]\."),
        ("0,1-2,2-3", r"layers\."),
        (r"layers\.[1-2]\.mlp\.down_proj", r"layers\.[12]\.mlp\.down_proj"),
        ("^lm_head|norm", "^lm_head|norm"),
        ("embed", "embed"),
        (None, "."),
    ],
)
def test_values(spec, pattern, tmp_path):
    model = tiny_model(num_hidden_layers=4)
    assert restrict_training(model, spec) is model
    expected = named(model, pattern)
    assert unfrozen(model) == expected
    if spec in ("3, 1-1", "^lm_head|norm"):
        assert train(tmp_path, model) == expected


def test_a_tied_weight_goes_by_each_of_its_names():
    model = restrict_training(tiny_model("llama-tied"), "lm_head")
    assert unfrozen(model) == {"model.embed_tokens.weight"}


def test_a_list_within_a_layer_is_no_list_of_layers():
    model = tiny_model()
    model.model.layers[0].experts = torch.nn.ModuleList([torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)])
    restrict_training(model, "1")
    assert unfrozen(model) == named(model, r"layers\.1\.")


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_weights(reentrant, tmp_path):
    models = [restrict_training(tiny_model(num_hidden_layers=3), "1") for _ in range(2)]
    expected = named(models[0], r"layers\.1\.")
    assert train(tmp_path, models[0]) == expected
    kwargs = {"use_reentrant": reentrant}
    changed = train(tmp_path, models[1], gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
    assert changed == expected
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, resumed = (restrict_training(tiny_model(), "1") for _ in range(2))
    start = state(whole)
    assert train(tmp_path, whole, **saving) == named(whole, r"layers\.1\.")
    trainer = tiny_trainer(tmp_path, resumed, **{**TRAIN, **saving})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not moved(resumed, state(whole))
    assert moved(resumed, start) == named(whole, r"layers\.1\.")


def test_the_stages_before_train_all_weights(tmp_path):
    stages = "--do_train --memorize_first --memorize_epochs 1 --max_steps 1 --trainable_layers 0"
    run_unlearn.run([*write_material(tmp_path), *stages.split(), "--output_dir", str(tmp_path / "out")])
    folders = [tmp_path / "model", tmp_path / "out" / "memorized", tmp_path / "out"]
    start, memorized, end = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(not torch.equal(memorized[name], value) for name, value in start.items())
    assert {name for name, value in end.items() if not torch.equal(value, memorized[name])} == {
        name for name in end if "layers.0." in name
    }


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("1-4", ["has 4 layers", "0-3"]),
        ("4", ["has 4 layers"]),
        ("layers.9", ["matches none", "layers.", "8-14"]),
        ("-1", ["matches none"]),
    ],
)
def test_what_a_model_does_not_have_is_refused(spec, words):
    model = tiny_model(num_hidden_layers=4)
    with pytest.raises(ConfigError, match=re.escape(f"--trainable_layers {spec}")) as refused:
        restrict_training(model, spec)
    assert all(word in str(refused.value) for word in words)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_are_in_no_list_are_refused():
    model = tiny_model()
    model.config.num_hidden_layers = 5
    with pytest.raises(ConfigError, match="--trainable_layers: LlamaForCausalLM has no list of its 5 layers.*regular"):
        restrict_training(model, "0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"trainable_layers": "14-8"}, "--trainable_layers 14-8: 14-8 is empty; put the smaller number first"),
        ({"trainable_layers": "layers.(1"}, r"--trainable_layers layers.\(1 is neither layer numbers"),
        ({"trainable_layers": " "}, "--trainable_layers is empty"),
        ({"trainable_layers": "1", "use_peft": True}, "--trainable_layers 1: with --use_peft.*leave"),
    ],
)
def test_flags_without_meaning_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        ModelArguments("model", **flags)


# ---- which layers to suggest ----------------------------------------------------------------------------------------


def naive_cka(x, y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels, by the definition."""
    count = len(x)
    centre = np.eye(count) - np.ones((count, count)) / count

    def hsic(k, other):
        return np.trace(k @ centre @ other @ centre) / (count - 1) ** 2

    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def drawn(seed, count, width):
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SIZES = {"seed": st.integers(0, 999), "count": st.integers(3, 12), "x_width": st.integers(1, 9)}


@settings(deadline=None, max_examples=40)
@given(**SIZES, y_width=st.integers(1, 9))
def test_cka_is_that_of_the_definition(seed, count, x_width, y_width):
    x, y = drawn(seed, count, x_width), drawn(seed + 1000, count, y_width)
    found = linear_cka(x, y)
    assert found.item() == pytest.approx(naive_cka(x.numpy(), y.numpy()), abs=1e-12)
    assert -1e-12 <= found <= 1 + 1e-12
    # The layers of a stack are judged one by one.
    torch.testing.assert_close(linear_cka(torch.stack([y, x @ x.T @ y]), y)[0], linear_cka(y, y))


@settings(deadline=None, max_examples=40)
@given(**SIZES, scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_cka_sees_neither_rotation_nor_scale_nor_shift(seed, count, x_width, scale, shift):
    x, y = drawn(seed, count, x_width), drawn(seed + 1000, count, 4)
    rotation = torch.linalg.qr(drawn(seed + 2000, x_width, x_width)).Q
    same = scale * x @ rotation + shift
    assert linear_cka(x, same).item() == pytest.approx(1, abs=1e-9)
    assert linear_cka(same, y).item() == pytest.approx(linear_cka(x, y).item(), abs=1e-9)


def test_cka_sees_a_scale_of_one_direction():
    x = drawn(0, 20, 3)
    assert linear_cka(x, x * torch.tensor([1.0, 1.0, 30.0])) < 0.9


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "xglm"])
def test_states_are_means_behind_each_layer_without_the_first_position(kind):
    model = tiny_model(kind)
    rows = [[5, 6], [7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18]]
    found = pooled_states(model, rows, 0, batch_size=3, show_progress=False)
    assert found.shape == (2, 4, 32)
    for row, ids in enumerate(rows):
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in range(2):
            torch.testing.assert_close(found[layer, row], hidden[layer + 1][0, 1:].mean(0), atol=1e-5, rtol=1e-5)


def test_languages_are_compared_over_the_items_they_share():
    states = drawn(0, 2 * 11, 4).view(2, 11, 4)
    items = [{0: 0, 1: 1, 2: 2}, {0: 3, 1: 4}, {0: 5, 1: 6, 2: 7}, {1: 8, 0: 9}, {2: 10}]
    found = similarity_by_pair(states, items, LANGUAGES)
    assert list(found) == [("en", "sw")]  # zh shares two items with each
    for layer in range(2):
        expected = naive_cka(states[layer, [0, 3, 5, 9]].numpy(), states[layer, [1, 4, 6, 8]].numpy())
        assert found["en", "sw"][layer].item() == pytest.approx(expected)
    with pytest.raises(ConfigError, match="no two of the languages en, sw, zh share 3 items"):
        similarity_by_pair(states, items[:2], LANGUAGES)


@pytest.mark.parametrize(
    ("similarity", "layers"),
    [
        ([0.1, 0.5, 0.8, 0.9, 0.6, 0.2], (1, 4)),
        ([0.8, 0.1, 0.9, 0.1], (2, 2)),
        ([0.9, 0.8, 0.1], (0, 1)),
        ([0.5, 0.5], (0, 1)),
        ([0.7], (0, 0)),
    ],
)
def test_the_layers_around_the_highest_are_suggested(similarity, layers):
    found = suggest_range(similarity)
    assert (found[0], found[-1]) == layers


def test_the_script_suggests_a_value_that_run_unlearn_takes(tmp_path, capsys):
    flags = [*write_material(tmp_path, num_hidden_layers=5), "--output_dir", str(tmp_path / "out")]
    value = runpy.run_path(str(ROOT / "scripts" / "suggest_layers.py"))["suggest"](flags)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"suggested: --trainable_layers {value}"
    table = [line.split("|") for line in lines if re.match(r" +\d+ \|", line)]
    assert [int(row[0]) for row in table] == list(range(5))
    for _, mean, worst in table:
        assert 0 <= float(worst.split()[0]) <= float(mean) <= 1
        assert worst.split()[1] in ("en-sw", "en-zh", "sw-zh")
    restrict_training(tiny_model(num_hidden_layers=5), value)
