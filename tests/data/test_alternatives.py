"""Alternative answers: the shipped texts, the user's file, and the rows made of them with real tokenizers."""

import functools
import json
import os
import unicodedata
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from unlearn_trainer.data import (
    Cloze,
    add_alternatives,
    load_alternatives,
    load_splits,
    parse_line,
    synthetic,
    tokenize_splits,
    with_alternatives,
)
from unlearn_trainer.data.alternatives import ISO_639_1, SHIPPED
from unlearn_trainer.errors import ConfigError, DataError

DATA = Path(os.environ.get("UNLEARN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set UNLEARN_DATA)")
TEXTS = json.loads(SHIPPED.read_text(encoding="utf-8"))
BMLAMA = (
    "af ar az be bg bn ca ceb cs cy da de el en es et eu fa fi fr ga gl he hi hr hu hy id it ja ka ko la lt lv ms nl "
    "pl pt ro ru sk sl sq sr sv ta th tr uk ur vi zh"
).split()
FLORES = "ar zh en eu fr ml mr ne es sw te ur vi xh yo zu".split()
SCRIPTS = {
    "ARABIC": "ar fa ur",
    "ARMENIAN": "hy",
    "BENGALI": "bn",
    "CJK": "zh zh-Hant",
    "CYRILLIC": "be bg ru sr uk",
    "DEVANAGARI": "hi mr ne",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "HANGUL": "ko",
    "HEBREW": "he",
    "MALAYALAM": "ml",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
SCRIPT_OF = {language: script for script, languages in SCRIPTS.items() for language in languages.split()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "unlearn_trainer"


# The texts


@pytest.mark.parametrize("language", TEXTS)
def test_shipped_texts_are_clean_and_in_the_script_of_their_language(language):
    texts = TEXTS[language]
    assert 3 <= len(texts) <= 5 and len({text.casefold() for text in texts}) == len(texts)
    expected = ("HIRAGANA", "CJK") if language == "ja" else (SCRIPT_OF.get(language, "LATIN"),)
    for text in texts:
        assert text == unicodedata.normalize("NFC", text).strip() and "  " not in text
        assert (unicodedata.category(text[-1]) == "Po") == (language != "th")
        for letter in text:
            if unicodedata.category(letter)[0] == "L":
                assert unicodedata.name(letter).startswith(expected), (text, letter)


def test_languages_of_the_corpora_have_texts():
    for language in (*synthetic.LANGUAGES, *synthetic.HELDOUT_LANGUAGES, *BMLAMA, *FLORES):
        assert load_alternatives([language]) == {language: tuple(TEXTS[language])}
    assert {*ISO_639_1.values()} == {code for code in TEXTS if len(code) == 2}


@needs_data
@pytest.mark.parametrize("name", ["bmlama53", "flores", "tofu"])
def test_languages_of_the_real_data_have_texts(name):
    forget_file = "forget01.jsonl" if name == "tofu" else None
    retain_file = "retain.jsonl" if name == "tofu" else "retain-32-x1.jsonl"
    splits = load_splits(str(DATA / name), forget_file, retain_file)
    languages = {language for items in splits.values() for item in items for language in item.content}
    assert len(languages) >= 9 and load_alternatives(sorted(languages)).keys() == languages


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("pt_BR", "pt"),
        ("zh-Hans", "zh"),
        ("zh-Hant", "zh-Hant"),
        ("eng_Latn", "en"),
        ("zho_Hans", "zh"),
        ("zho_Hant", "zh-Hant"),
        ("swh_Latn", "sw"),
        ("arb_Arab", "ar"),
        ("npi_Deva", "ne"),
        ("ceb_Latn", "ceb"),
        ("eus", "eu"),
    ],
)
def test_codes_with_a_script_or_region_or_three_letters(code, found):
    assert load_alternatives([code]) == {code: tuple(TEXTS[found])}


def test_a_file_replaces_the_languages_it_names(tmp_path):
    path = tmp_path / "answers.json"
    own = {"en": ["No idea."], "zh": ["不详。"], "qu": ["Manam yachanichu.", "Mana."]}
    path.write_text(json.dumps(own), encoding="utf-8-sig")
    found = load_alternatives(["qu", "en", "fr", "zho_Hant"], str(path))
    assert found == {"qu": (*own["qu"],), "en": ("No idea.",), "fr": (*TEXTS["fr"],), "zho_Hant": ("不详。",)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot be read", "check the path"]),
        (b'{"en": ["a"],\n "fr" ["b"]}', ["broken JSON at line 2, column 7"]),
        (b'{"en": ["\xff"]}', ["UTF-8", "byte 10"]),
        (b'["a"]', ["object from language codes to lists", '["a"]']),
        (b"{}", ["object from language codes to lists"]),
        (b'{"en": "a"}', ["'en'", "list of texts", '"a"']),
        (b'{"en": ["a"], "fr": []}', ["'fr'", "list of texts", "[]"]),
        (b'{"en": ["a", " "]}', ["'en'", '" "', "take it out"]),
        (b'{"en": ["a", 3]}', ["'en'", "3 is no text"]),
        (b'{"en": ["\\ud800"]}', ["'en'", "is no text"]),
        (b'{"en": ["a"], "en": ["b"]}', ["'en'", "twice"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, content, words):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_alternatives(["en"], str(path))
    for word in (str(path), "--alternative_answers", *words):
        assert word in str(error.value)


def test_a_language_without_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'qu'; give --alternative_answers FILE with"):
        load_alternatives(["en", "qu"])
    path = tmp_path / "answers.json"
    path.write_text('{"en": ["a"]}')
    with pytest.raises(ConfigError) as error:
        load_alternatives(["en", "qu_Latn"], str(path))
    assert "'qu_Latn'" in str(error.value) and f"--alternative_answers {path}" in str(error.value)


# The rows

PINNED = [2, 1, 2, 2, 2, 1, 1, 1, 0, 0, 0, 2]


@functools.cache
def backend(kind):
    words = ["Mji wa Roma.", "Yemen maintains Roma"] * 9 + [text for texts in TEXTS.values() for text in texts]
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=900, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        )
    trainer.show_progress = False
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer.to_str()


class Counting(PreTrainedTokenizerFast):
    calls = 0

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


def make_tokenizer(kind="byte-level", bos=True):
    tokenizer = Tokenizer.from_str(backend(kind))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Counting(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def item(row, line=1):
    return parse_line(json.dumps(row), f"f:{line}")


def cloze(number, **prompts):
    """Language to prompt; the answers differ from item to item."""
    answers = {language: [f"Roma {number}"] for language in prompts}
    return item({"prompt": prompts, "answers": answers}, number)


def qa(number, **questions):
    return item({"question": questions, "answer": {language: f"Roma {number}." for language in questions}}, number)


LANGUAGES = ["en", "sw", "zh", "hi"]
HELDOUT = ["qu"]  # has no shipped text
PROMPTS = {
    "en": "Fact {} is <mask>.",
    "sw": "Mji {} wa <mask>",
    "zh": "第{}个是<mask>。",
    "hi": "{} का नाम <mask> है।",
    "qu": "{} <mask>",
}


def facts(number):
    """Cloze and qa items in turn, each in every language but one."""
    found = []
    for n in range(number):
        prompts = {language: prompt.format(n) for language, prompt in PROMPTS.items()}
        prompts.pop([*PROMPTS][n % 5])
        found.append(
            cloze(n, **prompts) if n % 2 else qa(n, **{k: v.replace("<mask>", "?") for k, v in prompts.items()})
        )
    return found


def prepared(items, tokenizer, languages=LANGUAGES, heldout=HELDOUT, length=128, seed=0, path=None):
    data = tokenize_splits({"forget": items}, tokenizer, languages, heldout, length)
    return data, add_alternatives(data, items, tokenizer, length, seed, path)


def text_of(tokenizer, ids):
    return tokenizer.decode([i for i in ids if i not in (-100, 0)], clean_up_tokenization_spaces=False).strip()


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
@pytest.mark.parametrize("bos", [True, False])
def test_rows_ask_the_same_and_answer_that_the_model_does_not_know(kind, bos):
    tokenizer = make_tokenizer(kind, bos)
    items = facts(20)
    data, added = prepared(items, tokenizer)
    plain, rows = data.datasets["forget"], added.datasets["forget"]
    assert rows.remove_columns(["alternative_input_ids", "alternative_labels"]).to_list() == plain.to_list()
    assert (added.languages, added.heldout_languages, added.dropped_rows) == (LANGUAGES, HELDOUT, data.dropped_rows)
    assert "alternative_labels" not in plain.column_names
    said = set()
    for row in rows:
        language = [*LANGUAGES, *HELDOUT][row["language"]]
        ids, labels = row["alternative_input_ids"], row["alternative_labels"]
        if language in HELDOUT:
            assert ids == labels == []
            continue
        content = items[row["item"]].content[language]
        assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
        if isinstance(content, Cloze):
            before, after = content.prompt.split("<mask>")
            texts = {before + (text.rstrip(".。।") if after else text) + after: text for text in TEXTS[language]}
        else:
            texts = {f"{content.question} {text}": text for text in TEXTS[language]}
        encoded = {tuple(tokenizer(whole)["input_ids"]): whole for whole in texts}
        assert tuple(ids) in encoded
        whole = encoded[tuple(ids)]
        said.add((language, texts[whole]))
        if kind == "byte-level":
            answer = texts[whole].rstrip(".。।") if isinstance(content, Cloze) and after else texts[whole]
            assert text_of(tokenizer, labels) == answer
    assert {language for language, _ in said} == {*LANGUAGES} and len(said) >= 12


def test_the_draw_is_pinned():
    """Another choice here would change what every resumed run and every other process trains on."""
    items = [cloze(n, en=f"{n} <mask>") for n in range(12)]
    tokenizer = make_tokenizer()
    data = tokenize_splits({"forget": items}, tokenizer, ["en"])
    alternatives = {"en": ["zero", "one", "two"]}

    def draw(seed):
        rows = with_alternatives(data.datasets["forget"], items, alternatives, ["en"], tokenizer, 64, seed)
        return [text_of(tokenizer, labels) for labels in rows["alternative_labels"]]

    assert [alternatives["en"].index(text) for text in draw(7)] == PINNED
    assert draw(7) == draw(7) != draw(8)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(LANGUAGES), st.integers(1, 4), st.permutations(range(40)), st.integers(0, 2**40))
def test_the_draw_depends_on_seed_item_and_language_only(order, used, shuffle, seed):
    tokenizer, items = make_tokenizer(), facts(12)

    def answers(languages, shuffle=None):
        data = tokenize_splits({"forget": items}, tokenizer, languages, ())
        rows = data.datasets["forget"]
        if shuffle:
            rows = rows.select([n for n in shuffle if n < len(rows)])
        rows = with_alternatives(rows, items, load_alternatives(languages), languages, tokenizer, 128, seed)
        return {(row["item"], languages[row["language"]]): row["alternative_labels"] for row in rows}

    expected = answers(LANGUAGES)
    assert answers(order[:used], shuffle).items() <= expected.items()


def test_text_rows_are_refused_unless_held_out():
    tokenizer = make_tokenizer()
    items = [cloze(1, en="City <mask>", sw="Mji <mask>"), item({"sw": "maandishi"}, 7)]
    with pytest.raises(DataError) as error:
        prepared(items, tokenizer, ["en", "sw"], [])
    for word in ("f:7", "'sw'", "objectives with alternative answers need cloze or qa rows"):
        assert word in str(error.value)
    _, added = prepared(items, tokenizer, ["en"], ["sw"])
    assert [bool(ids) for ids in added.datasets["forget"]["alternative_input_ids"]] == [True, False, False]


@pytest.mark.parametrize(
    ("bos", "prompt", "answer", "text", "length"),
    [
        # The only token of the alternative opens the row, so that nothing predicts it.
        (False, "<mask> wa", "Roma", "Q", 64),
        # The last token that fits holds a letter of the answer, but of a rune only the space before it.
        (True, "Mji wa <mask>", "Roma", "ᚠ", None),
    ],
)
def test_an_alternative_without_label_is_refused(tmp_path, bos, prompt, answer, text, length):
    tokenizer = make_tokenizer(bos=bos)
    length = length or len(tokenizer(prompt.removesuffix(" <mask>"))["input_ids"]) + 1
    items = [item({"prompt": {"en": prompt}, "answers": {"en": [answer]}}, 3)]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"en": [text]}))
    with pytest.raises(DataError) as error:
        prepared(items, tokenizer, ["en"], [], length, path=str(path))
    for word in ("f:3", "forget split", "'en'", f"{length} tokens", "--max_seq_length"):
        assert word in str(error.value)


def test_long_alternatives_are_cut_like_the_rows():
    tokenizer, items = make_tokenizer(), facts(10)
    _, whole = prepared(items, tokenizer)
    _, cut = prepared(items, tokenizer, length=20)
    lengths = [len(ids) for ids in cut.datasets["forget"]["alternative_input_ids"]]
    assert max(lengths) == 20
    rows = {(row["item"], row["language"]): row for row in whole.datasets["forget"]}
    for row in cut.datasets["forget"]:
        full = rows[row["item"], row["language"]]
        for name in ("alternative_input_ids", "alternative_labels"):
            assert row[name] == full[name][:20]


def test_a_second_run_reads_the_cache_and_any_change_misses_it(tmp_path):
    items = facts(10)
    path = tmp_path / "answers.json"
    path.write_text('{"en": ["Unknown."]}')

    def run(items=items, tokenizer=None, **options):
        """Whether the alternatives had to be tokenized."""
        tokenizer = tokenizer or make_tokenizer()
        data = tokenize_splits({"forget": items}, tokenizer, LANGUAGES, HELDOUT, options.get("length", 128))
        before = Counting.calls
        rows = add_alternatives(
            data, items, tokenizer, options.get("length", 128), options.get("seed", 0), options.get("path")
        ).datasets["forget"]
        return Counting.calls > before, rows._fingerprint, rows.to_list()

    first, again = run(), run()
    assert first[0] and not again[0] and first[1:] == again[1:]
    for change in ({"seed": 1}, {"length": 64}, {"path": str(path)}, {"tokenizer": make_tokenizer("unigram")}):
        tokenized, fingerprint, _ = run(**change)
        assert tokenized and fingerprint != first[1]
    assert run(items=items[:9])[0]
    assert not run()[0]


@needs_data
@pytest.mark.parametrize(("name", "length"), [("bmlama53", 128), ("tofu", 512)])
def test_real_rows(name, length):
    tokenizer = make_tokenizer()
    file = {"tofu": "forget01.jsonl", "bmlama53": "forget-32.jsonl"}[name]
    items = load_splits(str(DATA / name), file, "retain.jsonl" if name == "tofu" else "retain-32-x1.jsonl")["forget"]
    data = tokenize_splits({"forget": items[:16]}, tokenizer, None, max_seq_length=length)
    rows = add_alternatives(data, items, tokenizer, length, seed=0).datasets["forget"]
    for row in rows:
        language = data.languages[row["language"]]
        told = text_of(tokenizer, row["alternative_labels"])
        assert any(told == text or told == text[:-1] for text in TEXTS[language])
        start = [label == -100 for label in row["alternative_labels"]].index(False)
        question = [label == -100 for label in row["labels"]].index(False)
        # The question is the same; at its end tokens may merge with the answer in different ways.
        assert row["alternative_input_ids"][: start - 1] == row["input_ids"][: start - 1]
        assert abs(start - question) <= 1
