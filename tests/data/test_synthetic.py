"""The quickstart corpus, tokenizer and model, as their users meet them: files on disk and the Auto classes."""

import json
import os
import subprocess
import sys
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_trainer.data.items import read_jsonl
from unlearn_trainer.data.synthetic import HELDOUT_LANGUAGES, LANGUAGES, PEOPLE_PER_SPLIT, build_model, write_corpus
from unlearn_trainer.data.tokenize import tokenize_splits

ALL_LANGUAGES = (*LANGUAGES, *HELDOUT_LANGUAGES)
SPLITS = ("forget", "retain", "valid", "test")
FACTS_PER_PERSON = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def items(corpus):
    return {split: read_jsonl(corpus / f"{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    build_model(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(start):
    return AutoTokenizer.from_pretrained(start)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def clozes(items, language):
    return [item.content[language] for split in SPLITS for item in items[split]]


def answer_tokens(tokenizer, cloze) -> list[int]:
    text, (start, end) = cloze.target
    encoded = tokenizer(text, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token for token, (left, right) in pairs if left < end and right > start]


def test_there_are_ten_trained_and_two_held_out_languages():
    assert len(set(LANGUAGES)) == 10
    assert len(set(HELDOUT_LANGUAGES)) == 2
    assert not set(LANGUAGES) & set(HELDOUT_LANGUAGES)


def test_a_seed_fixes_every_byte_in_any_process(corpus, start, tmp_path):
    code = (
        "import sys; from unlearn_trainer.data.synthetic import build_model, write_corpus;"
        "write_corpus(sys.argv[1]); build_model(sys.argv[2])"
    )
    # Another hash seed: sets of strings are iterated in another order.
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, tmp_path / "corpus", tmp_path / "start"], env=environment, check=True)
    assert contents(tmp_path / "corpus") == contents(corpus)
    assert contents(tmp_path / "start") == contents(start)


def test_another_seed_gives_other_facts_and_weights_but_the_same_tokenizer(corpus, start, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_corpus(tmp_path / "corpus", seed=1)
    build_model(tmp_path / "start", seed=1)
    assert torch.equal(torch.rand(3), expected), "the caller's random state was changed"
    first, second = contents(corpus), contents(tmp_path / "corpus")
    assert first.keys() == second.keys() == {"alternatives.json", *(f"{split}.jsonl" for split in SPLITS)}
    assert all(first[name] != second[name] for name in first)
    first, second = contents(start), contents(tmp_path / "start")
    assert {name for name in first if first[name] != second[name]} == {"model.safetensors"}


def test_every_fact_is_a_cloze_item_in_every_language(items):
    for split in SPLITS:
        assert len(items[split]) == FACTS_PER_PERSON * PEOPLE_PER_SPLIT[split]
        for item in items[split]:
            assert item.kind == "cloze"
            assert tuple(item.content) == ALL_LANGUAGES


def test_an_epoch_over_forget_and_retain_is_two_to_three_thousand_rows(items):
    assert 2000 <= (len(items["forget"]) + len(items["retain"])) * len(LANGUAGES) <= 3000


@pytest.mark.parametrize("language", ALL_LANGUAGES)
def test_the_answer_is_one_of_several_candidates_that_answer_the_same_question(items, language):
    for split in SPLITS:
        answers = [item.content[language].answers for item in items[split]]
        for index, item in enumerate(items[split]):
            cloze = item.content[language]
            assert len(cloze.answers) == 1
            assert len(set(cloze.candidates)) == 4
            # The facts of a person follow one another, always in the same order of attributes.
            same_question = {answer for (answer,) in answers[index % FACTS_PER_PERSON :: FACTS_PER_PERSON]}
            assert cloze.answers[0] in cloze.candidates
            assert set(cloze.candidates) <= same_question


def test_the_right_candidate_has_no_fixed_place_but_the_same_one_in_all_languages(items):
    places = [
        {cloze.candidates.index(cloze.answers[0]) for cloze in item.content.values()}
        for split in SPLITS
        for item in items[split]
    ]
    assert all(len(place) == 1 for place in places)
    counts = [places.count({place}) for place in range(4)]
    assert min(counts) > len(places) / 8


@pytest.mark.parametrize("language", ALL_LANGUAGES)
def test_no_answer_belongs_to_two_facts(items, language):
    answers = [cloze.answers[0] for cloze in clozes(items, language)]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("language", ALL_LANGUAGES)
def test_splits_share_no_person_and_no_sentence(items, language):
    # Prompts of one attribute differ in the person's name alone; a shared person would be a shared prompt.
    for first, second in combinations(SPLITS, 2):
        prompts = [{item.content[language].prompt for item in items[split]} for split in (first, second)]
        assert not prompts[0] & prompts[1]
        sentences = [{item.content[language].target.text for item in items[split]} for split in (first, second)]
        assert not sentences[0] & sentences[1]
    everyone = [cloze.prompt for cloze in clozes(items, language)]
    assert len(set(everyone)) == len(everyone)


def test_the_corpus_is_written_in_six_scripts_and_each_language_in_its_own(items):
    expected = dict.fromkeys(ALL_LANGUAGES, "LATIN") | {
        "ru": "CYRILLIC",
        "uk": "CYRILLIC",
        "ar": "ARABIC",
        "hi": "DEVANAGARI",
        "zh": "CJK",
        "el": "GREEK",
    }
    for language, script in expected.items():
        for cloze in clozes(items, language):
            letters = filter(str.isalpha, cloze.target.text)
            assert {unicodedata.name(letter).split()[0] for letter in letters} == {script}
    assert len(set(expected.values())) == 6


@pytest.mark.parametrize("language", ALL_LANGUAGES)
def test_text_is_normalized_and_cleanly_spaced(items, language):
    for cloze in clozes(items, language):
        text = cloze.target.text
        assert unicodedata.normalize("NFC", text) == text
        assert text == " ".join(text.split())
        assert "{" not in text


@pytest.mark.parametrize("language", ALL_LANGUAGES)
def test_answers_are_two_to_six_known_tokens_that_hold_nothing_else(items, tokenizer, language):
    for cloze in clozes(items, language):
        tokens = answer_tokens(tokenizer, cloze)
        assert 2 <= len(tokens) <= 6
        assert tokenizer.decode(tokens).strip() == cloze.answers[0]


def test_the_loader_accepts_the_corpus_and_labels_the_answers_alone(items, tokenizer):
    few = {"forget": 2 * FACTS_PER_PERSON, "retain": 1, "valid": 1, "test": 1}
    data = tokenize_splits(items, tokenizer, None, HELDOUT_LANGUAGES, max_seq_length=24, max_samples=few)
    assert data.languages == list(LANGUAGES)
    for by_split in (data.dropped_rows, data.truncated_rows):
        assert not any(count for counts in by_split.values() for count in counts.values())
    for row in data.datasets["forget"]:
        cloze = items["forget"][row["item"]].content[ALL_LANGUAGES[row["language"]]]
        assert [label for label in row["labels"] if label != -100] == answer_tokens(tokenizer, cloze)
        assert row["candidate_correct"] == [candidate in cloze.answers for candidate in cloze.candidates]


@pytest.mark.parametrize("language", ALL_LANGUAGES)
def test_no_token_of_an_answer_can_be_guessed_from_its_attribute_and_place(items, tokenizer, language):
    facts = clozes(items, language)
    for attribute in range(FACTS_PER_PERSON):
        answers = [answer_tokens(tokenizer, cloze) for cloze in facts[attribute::FACTS_PER_PERSON]]
        assert len({len(tokens) for tokens in answers}) == 1
        for column in zip(*answers, strict=True):
            assert max(column.count(token) for token in column) <= 0.25 * len(column)


@pytest.mark.parametrize("language", ALL_LANGUAGES)
def test_sentences_are_short_reversible_and_free_of_unknown_tokens(items, tokenizer, language):
    for cloze in clozes(items, language):
        tokens = tokenizer(cloze.target.text)["input_ids"]
        assert tokens[0] == tokenizer.bos_token_id
        assert len(tokens) <= 24
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == cloze.target.text


def test_special_tokens_are_four_different_ones(tokenizer):
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert len(set(special)) == 4
    assert None not in special


def test_the_model_reloads_and_fits_the_tokenizer(start, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(start)
    assert (start / "model.safetensors").is_file()
    assert model.config.vocab_size == len(tokenizer)
    assert 200_000 < model.num_parameters() < 2_000_000
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["Na", "Na ko"], padding=True, return_tensors="pt")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape == (*batch["input_ids"].shape, len(tokenizer))
    # Untrained: close to uniform, so it knows no fact.
    assert logits.abs().max() < 5


def test_the_json_lines_are_readable_text(corpus):
    line = (corpus / "forget.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert list(json.loads(line)) == ["prompt", "answers", "candidates"]
    assert "\\u" not in line
