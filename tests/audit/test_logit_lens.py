"""The logit lens: what each layer's states say through the model's own last steps, on real architectures."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.families import tiny_family
from helpers.subjects import subjects_of
from helpers.tiny import CONFIGS, LANGUAGES, tiny_model, tiny_rows
from torch import nn

from unlearn_trainer.audit.checks.logit_lens import accuracy_by_layer, logit_lens
from unlearn_trainer.audit.checks.states import picks

FINAL = {"opt": "model.decoder.final_layer_norm", "gpt2": "transformer.ln_f", "bloom": "transformer.ln_f"}
FINAL |= {
    "falcon_h1": "model.final_layernorm",
    "phi": "model.final_layernorm",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "xglm": "model.layer_norm",
}


def measured(subject, rows=None):
    rows = rows if rows is not None else subject.datasets["forget"]
    with subject.ready() as model:
        return accuracy_by_layer(subject, model, rows), subject.rows({"forget": rows}, model=model)["forget"]


@torch.no_grad()
def naive(model, kind, rows):
    """By row and layer: hidden states, the final norm by its name, the head, and what the model does to logits."""
    final = model.get_submodule(FINAL.get(kind, "model.norm"))
    project = model.model.decoder.project_out if kind == "opt" else nn.Identity()
    # The last of the hidden states has been through the norm: what goes into it is the last block's output.
    inputs = []
    handle = final.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    found = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        hidden = list(model(ids, output_hidden_states=True).hidden_states[1:])
        hidden[-1] = inputs[-1]
        hits = []
        for state in hidden:
            guesses = model.get_output_embeddings()(project(final(state)))[0, :-1].argmax(-1)
            hits.append((guesses == labels)[labels != -100].double().mean().item())
        found.append(hits)
    handle.remove()
    return np.array(found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_layer_is_read_by_the_models_own_norm_and_head(kind, tmp_path):
    count = {"gpt2": "n_layer", "bloom": "n_layer", "xglm": "num_layers"}.get(kind, "num_hidden_layers")
    model = tiny_model(kind, **{count: 3, "num_hidden_layers": 3})
    # Labels that some layer predicts, or every figure would be 0.
    rows = guessable(model, items=3)
    table, ordinary = measured(subjects_of(tmp_path, {"forget": rows}, after=model)["after"])
    assert table.shape == (9, 3)
    assert (table[:, -1] == ordinary["memorization_accuracy"]).all()
    np.testing.assert_allclose(table, naive(model, kind, rows), atol=1e-9)
    assert table[:, :-1].max() > 0


def test_layers_are_read_one_by_one_where_no_rows_can_be_appended(tmp_path):
    model = tiny_family("gpt_bigcode")
    rows = guessable(model, items=3)
    table, ordinary = measured(subjects_of(tmp_path, {"forget": rows}, after=model)["after"])
    assert (table[:, -1] == ordinary["memorization_accuracy"]).all()
    np.testing.assert_allclose(table, naive(model, "gpt2", rows), atol=1e-9)
    assert table[:, :-1].max() > 0


@torch.no_grad()
def guessable(model, items=6):
    """Rows whose labelled half is, token by token, a greedy continuation half of the time."""
    rows = tiny_rows(items).to_list()
    for number, row in enumerate(rows):
        ids = row["input_ids"]
        for place in range(len(ids) // 2, len(ids)):
            if (place + number) % 2:
                ids[place] = model(torch.tensor([ids[:place]])).logits[0, -1].argmax().item()
        row["labels"] = [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]
    return Dataset.from_list(rows)


def test_a_model_without_a_final_norm_is_read_too(tmp_path):
    subject = subjects_of(tmp_path, {"forget": tiny_rows()}, after=tiny_model())["after"]

    def without_norm(model):
        model.model.norm = nn.Identity()
        return model

    model = without_norm(tiny_model())
    rows = guessable(model)
    with subject.ready(without_norm) as ready:
        table = accuracy_by_layer(subject, ready, rows)
    np.testing.assert_allclose(table, naive(model, "llama", rows), atol=1e-9)


def with_a_block_on_top(base, seed):
    """The model of ``base`` with one more block, which turns everything it says into something else."""
    model = tiny_model(num_hidden_layers=3, seed=seed)
    model.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(100)
    return model


def test_what_the_last_block_covers_is_read_from_the_one_before(tmp_path):
    base = tiny_model()
    rows = guessable(base)
    subjects = subjects_of(tmp_path, {"forget": rows}, after=with_a_block_on_top(base, 1), before=base)
    table, ordinary = measured(subjects["after"])
    _, known = measured(subjects["before"])
    assert (table[:, 1] == known["memorization_accuracy"]).all()
    assert ordinary["memorization_accuracy"].mean() < 0.1 < known["memorization_accuracy"].mean()

    found = logit_lens(subjects["after"]).as_json()
    matrix = found["matrix"]
    assert (matrix["rows"], matrix["columns"]) == (["1", "2", "3"], LANGUAGES)
    languages, items = np.array(rows["language"]), np.array(rows["item"])
    picking = picks(items, 42)
    for index, language in enumerate(LANGUAGES):
        of_language = languages == index
        by_layer = [values[index] for values in matrix["values"]["after"]]
        np.testing.assert_allclose(by_layer, table[of_language].mean(0))
        row = found["rows"]["logit_lens/memorization_accuracy"][language]
        chosen = of_language & ~picking
        assert row == {"items": items[chosen].tolist(), "values": table[chosen, 1].tolist()}
    assert found["notes"] == ["after: layer read, of 3, picked by the other half of the items: en 2, sw 2, zh 2."]


def test_the_layer_is_picked_without_the_rows_that_are_reported(tmp_path):
    model = tiny_model()
    subject = subjects_of(tmp_path, {"forget": guessable(model)}, after=model)["after"]
    before = logit_lens(subject).as_json()
    rows = subject.datasets["forget"]
    reported = ~picks(rows["item"], subject.seed)
    inputs, labels = [], []
    for ids, row, is_reported in zip(rows["input_ids"], rows["labels"], reported, strict=True):
        start = row.count(-100)
        inputs.append(ids[:start] + [5] * (len(ids) - start) if is_reported else ids)
        labels.append(row[:start] + inputs[-1][start:])
    subject.datasets["forget"] = Dataset.from_dict(
        {"input_ids": inputs, "labels": labels, "language": rows["language"], "item": rows["item"]}
    )
    after = logit_lens(subject).as_json()
    assert after["notes"] == before["notes"]
    assert after["rows"] != before["rows"]


def test_a_language_needs_items_in_both_halves(tmp_path):
    rows = guessable(tiny_model())
    rows = rows.filter(lambda language, item: language < 2 or item == 0, input_columns=["language", "item"])
    found = logit_lens(subjects_of(tmp_path, {"forget": rows}, after=tiny_model())["after"]).as_json()
    assert set(found["rows"]["logit_lens/memorization_accuracy"]) == {"en", "sw"}
    assert found["matrix"]["values"]["after"][0][2] is not None


def test_models_that_cannot_be_read_are_noted(tmp_path):
    subject = subjects_of(tmp_path, after=tiny_model())["after"]
    load = subject.load

    def past_the_last_block(model):
        """Its logits come from the embeddings."""
        kept = []
        model.model.embed_tokens.register_forward_hook(lambda *args: kept.append(args[-1]))
        model.model.norm.register_forward_pre_hook(lambda *_: (kept[-1],))
        return model

    def in_no_list(model):
        model.config.num_hidden_layers = 5
        return model

    for change, reason in ((past_the_last_block, "its last block's output"), (in_no_list, "not one list of blocks")):
        subject.load = lambda change=change: change(load())
        found = logit_lens(subject).as_json()
        assert set(found) == {"notes", "withheld"} and reason in found["notes"][0]


def with_the_embedding(kept, args):
    return (args[0] + kept[-1],)


def with_the_scale_of_the_embedding(kept, args):
    return (args[0] * kept[-1].norm(dim=-1, keepdim=True),)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("combined", [with_the_embedding, with_the_scale_of_the_embedding])
def test_another_tensor_behind_the_blocks_withholds_the_lens(combined, size, tmp_path):
    """Of a single row it would be spread over the states of all layers, and nothing would be said."""
    subject = subjects_of(tmp_path, after=tiny_model())["after"]
    subject.args.per_device_eval_batch_size = size
    load = subject.load

    def changed():
        model, kept = load(), []
        model.model.embed_tokens.register_forward_hook(lambda *args: kept.append(args[-1]))
        model.model.norm.register_forward_pre_hook(lambda _, args: combined(kept, args))
        return model

    subject.load = changed
    found = logit_lens(subject).as_json()
    assert set(found) == {"notes", "withheld"}


@pytest.mark.parametrize("count", [2, 5, 6])
def test_translations_of_an_item_are_in_one_half(count):
    items = np.repeat(np.arange(count) * 3, 4)
    half = picks(items, 7)
    by_item = half.reshape(count, 4)
    assert (by_item.all(1) == by_item.any(1)).all()
    assert by_item.all(1).sum() == count // 2
    assert any((picks(items, seed) != half).any() for seed in range(8))
