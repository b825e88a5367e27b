"""Missing translations are made by a real sequence-to-sequence model, named one by one, and gone on with."""

import json

import pytest
import sentencepiece
import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

from unlearn_trainer.commands.prepare import main
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.prepare import translation

WORDS = [f"word{number} thing{number % 7} stands in street {number}." for number in range(200)]


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """A tiny M2M100 of random weights with its own tokenizer."""
    folder = tmp_path_factory.mktemp("translator")
    (folder / "corpus.txt").write_text("\n".join(WORDS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spm"), vocab_size=80, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += [pieces.id_to_piece(number) for number in range(3, pieces.get_piece_size())]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))
    size = len(tokenizer) + 200  # the ids of languages stand behind those of the pieces, with gaps
    config = M2M100Config(
        vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def prepare(folder, source, translator, *words):
    command = ["table", "--source", source, "--forget_size", "all", "--output_dir", folder, *words]
    main([*map(str, command), "--translator", str(translator)])
    about = json.loads((folder / "prepare.json").read_text(encoding="utf-8"))
    return about, [json.loads(line) for line in (folder / "forget.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_is_missing_is_translated_and_named(tmp_path, translator):
    lines = [f"{text},{'ja' + text if number % 3 == 0 else ''}" for number, text in enumerate(WORDS[:9])]
    (tmp_path / "t.csv").write_text("en,fr\n" + "\n".join(lines), encoding="utf-8")
    about, rows = prepare(tmp_path / "out", tmp_path / "t.csv", translator, "--translate_to", "fr", "swh_Latn")
    asked = translation._Translator(str(translator))
    (found,) = asked.translate([("en", "fr", WORDS[1])])
    inputs = asked.tokenizer(WORDS[1], return_tensors="pt")
    room = 2 * inputs["input_ids"].shape[1] + 16
    french = asked.tokenizer.get_lang_id("fr")
    ids = asked.model.generate(**inputs, forced_bos_token_id=french, num_beams=1, do_sample=False, max_new_tokens=room)
    assert found[1] == asked.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert asked.tokenizer.src_lang == "en"
    made = about["translation"]["machine_translations"]["forget"]
    for number, row in enumerate(rows):
        assert list(row) == ["en", "fr", "swh_Latn"] and all(text.strip() for text in row.values())
        assert (number in made["fr"]) == (not row["fr"].startswith("ja")) and number in made["swh_Latn"]
    assert about["translation"]["translator"] == str(translator) and len(made["fr"]) == 6
    assert not list(tmp_path.glob("*.translations.jsonl"))
    again, same = prepare(tmp_path / "again", tmp_path / "t.csv", translator, "--translate_to", "fr", "swh_Latn")
    assert same == rows and again["files"] == about["files"]


def test_a_run_that_was_cut_short_goes_on(tmp_path, translator, monkeypatch):
    (tmp_path / "t.csv").write_text("en\n" + "\n".join(WORDS[:40]), encoding="utf-8")
    words = [tmp_path / "t.csv", translator, "--translate_to", "de"]
    _, expected = prepare(tmp_path / "whole", *words)
    translate = translation._Translator.translate

    def cut_short(self, jobs):
        for number, found in enumerate(translate(self, jobs)):
            if number == 20:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(translation._Translator, "translate", cut_short)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "out", *words)
    asked = []
    monkeypatch.setattr(
        translation._Translator, "translate", lambda self, jobs: (asked.extend(jobs), translate(self, jobs))[1]
    )
    _, rows = prepare(tmp_path / "out", *words)
    assert rows == expected and len(asked) == 20


def test_questions_and_answers_are_translated_each(tmp_path, translator):
    lines = [f"Who {number}?;It is {text}" for number, text in enumerate(WORDS[:5])]
    (tmp_path / "t.csv").write_text("q;a\n" + "\n".join(lines), encoding="utf-8")
    columns = "--question_column q --answer_column a --languages en --translate_to es".split()
    _, rows = prepare(tmp_path / "out", tmp_path / "t.csv", translator, *columns)
    assert all(set(row["question"]) == set(row["answer"]) == {"en", "es"} for row in rows)


def test_what_is_drawn_has_its_own_texts_in_a_language(tmp_path, translator):
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(WORDS[:4]), encoding="utf-8")
    rows = [f"{code},{code} says {n * 7919 % 9973} of {n} things" for n in range(30) for code in ("en", "sw")]
    (tmp_path / "other.csv").write_text("language,words\n" + "\n".join(rows), encoding="utf-8")
    words = "--translate_to sw --text_column text --languages en --retain_from".split()
    about, forget = prepare(tmp_path / "out", tmp_path / "t.csv", translator, *words, tmp_path / "other.csv")
    assert all(set(row) == {"en", "sw"} for row in forget)
    assert set(about["translation"]["machine_translations"]) == {"forget"}
    retain = [json.loads(line) for line in (tmp_path / "out" / "retain.jsonl").read_text().splitlines()]
    assert about["retain_from"]["rows"] == {"en": 12, "sw": 12}
    assert all(row.get(code, code).startswith(code) for row in retain for code in ("en", "sw"))


def test_what_cannot_be_translated_is_refused(tmp_path, translator):
    (tmp_path / "t.csv").write_text("en\n" + "\n".join(WORDS[:3]), encoding="utf-8")
    with pytest.raises(ConfigError, match="the translator does not know haw"):
        prepare(tmp_path / "a", tmp_path / "t.csv", translator, "--translate_to", "haw")
    with pytest.raises(ConfigError, match="--translator .*cannot be loaded"):
        prepare(tmp_path / "b", tmp_path / "t.csv", tmp_path / "nowhere", "--translate_to", "fr")
    row = {"prompt": {"en": "A is in <mask>."}, "answers": {"en": ["B"]}}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"c\.jsonl:1: --translate_to translates texts"):
        prepare(tmp_path / "c", tmp_path / "c.jsonl", translator, "--translate_to", "fr")
    with pytest.raises(ConfigError, match="go together"):
        main(
            ["table", "--source", str(tmp_path / "t.csv"), "--output_dir", str(tmp_path / "d"), "--translate_to", "fr"]
        )
