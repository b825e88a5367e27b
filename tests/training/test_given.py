"""A trainer that is given a model by its name and all splits at once is the one that is given each by itself."""

import pytest
import torch
from helpers.material import LANGUAGES, write_material
from helpers.tiny import tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_trainer import UnlearnTrainer, load_splits, tokenize_splits
from unlearn_trainer.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    write_material(tmp_path)
    (tmp_path / "test.jsonl").write_text((tmp_path / "valid.jsonl").read_text())
    return tmp_path


def settings(folder, **more):
    return tiny_config(folder / "out", max_steps=3, **more)


def by_hand(folder, **more):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = tokenize_splits(load_splits(str(folder)), tokenizer, LANGUAGES)
    return rows, UnlearnTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        settings(folder, **more),
        rows.datasets["forget"],
        rows.datasets["retain"],
        LANGUAGES,
        eval_dataset={split: rows.datasets[split] for split in ("forget", "retain", "valid")},
        processing_class=tokenizer,
        max_seq_length=256,
    )


@pytest.mark.parametrize("form", ["name", "path", "loaded", "tokenized"])
def test_the_same_training_whatever_form_it_is_given_in(folder, form):
    rows, expected = by_hand(folder)
    expected.train()
    if form == "tokenized":
        model, data, more = AutoModelForCausalLM.from_pretrained(folder / "model"), rows, {}
    else:
        loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
        model = {"name": str(folder / "model"), "path": folder / "model", "loaded": loaded}[form]
        data, more = load_splits(str(folder)), {"languages": LANGUAGES}
    trainer = UnlearnTrainer(model, settings(folder), data=data, **more)
    assert set(trainer.eval_dataset) == {"forget", "retain", "valid"} and set(trainer.predict_dataset) == {"test"}
    trainer.train()
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name
    assert trainer.evaluate()["eval_loss"] == expected.evaluate()["eval_loss"]


def test_a_method_that_needs_companions_gets_them(folder):
    args = settings(folder, method="calibrated", relearn_coef=0.0)
    trainer = UnlearnTrainer(str(folder / "model"), args, data=load_splits(str(folder)))
    trainer.train()
    assert trainer.languages == LANGUAGES and trainer.state.global_step == 3


def test_contradictions_are_refused(folder):
    rows, _ = by_hand(folder)
    model, forget = str(folder / "model"), rows.datasets["forget"]
    with pytest.raises(ConfigError, match="data holds all splits"):
        UnlearnTrainer(model, settings(folder), forget, data=rows)
    with pytest.raises(ConfigError, match="tokenized already"):
        UnlearnTrainer(model, settings(folder), data=rows, languages=["en"])
    with pytest.raises(ConfigError, match="languages is None"):
        UnlearnTrainer(AutoModelForCausalLM.from_pretrained(model), settings(folder), forget, forget)
    with pytest.raises(ConfigError, match="nowhere"):
        UnlearnTrainer(str(folder / "nowhere"), settings(folder), data=load_splits(str(folder)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda rows, folder: str(folder), "data is a str; .*load_splits"),
        (lambda rows, folder: rows.datasets, r"data\['forget'\] holds Dataset in place of items"),
        (lambda rows, folder: {"forget": [{"en": "a text"}]}, r"data\['forget'\] holds dict in place of items"),
        (lambda rows, folder: {}, "data has no forget split, only: nothing"),
        (
            lambda rows, folder: {"retain": load_splits(str(folder))["retain"]},
            "data has no forget split, only: retain",
        ),
    ],
)
def test_data_of_another_kind_is_refused_with_the_remedy(folder, make, said):
    rows, _ = by_hand(folder)
    with pytest.raises(ConfigError, match=said):
        UnlearnTrainer(str(folder / "model"), settings(folder), data=make(rows, folder))


def test_no_model_and_no_length_are_refused(folder):
    data = load_splits(str(folder))
    with pytest.raises(ConfigError, match="model is None"):
        UnlearnTrainer(None, settings(folder), data=data)
    with pytest.raises(ConfigError, match="--max_seq_length 0 leaves no room"):
        UnlearnTrainer(str(folder / "model"), settings(folder), data=data, max_seq_length=0)
