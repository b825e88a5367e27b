"""Labels, truncation and caching over real tokenizers of every family, and a slow twin without offsets."""

import functools
import json
import os
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from unlearn_trainer.data import Passage, load_splits, parse_line, read_jsonl, tokenize_splits
from unlearn_trainer.data.tokenize import FEATURES, ITEMS_PER_BATCH, encode
from unlearn_trainer.errors import ConfigError, DataError

DATA = Path(os.environ.get("UNLEARN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set UNLEARN_DATA)")

SENTENCES = {
    "latin": "Yemen maintains diplomatic relations with Turkey déjà Zürich señor Nairobi kwa ụlọ",
    "cyrillic": "Москва является столицей страны Россия",
    "arabic": "اليمن تقيم علاقات دبلوماسية مع تركيا",
    "devanagari": "यमन तुर्की के साथ राजनयिक संबंध रखता है",
    "cjk": "中国 的 首都 是 北京 東京 日本",
    "thai": "กรุงเทพ เป็น เมืองหลวง ของ ประเทศไทย",
    "hangul": "서울은 대한민국의 수도이다",
    "astral": "𐐷𐑂 😀 👩‍🚀",
}
WORDS = {script: sentence.split() for script, sentence in SENTENCES.items()}
CORPUS = [*SENTENCES.values()] * 4 + ["".join(words) for words in WORDS.values()]
FRAMES = {"plain": "$A", "bos": "<s> $A", "bos-eos": "<s> $A </s>"}


def byte_level_bpe(trim_offsets=False):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return backend, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL)


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend, trainers.UnigramTrainer(vocab_size=320, unk_token="<unk>", special_tokens=SPECIAL)


def byte_fallback_bpe():
    """As Llama 2: no pre-tokenizer, spaces replaced by the normalizer, rare characters as bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, limit_alphabet=40, special_tokens=SPECIAL + byte_tokens)
    return backend, trainer


def word_piece():
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL)


SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
FAMILIES = {
    "byte-level": byte_level_bpe,
    "byte-level-trimmed": functools.partial(byte_level_bpe, trim_offsets=True),
    "unigram": unigram,
    "byte-fallback": byte_fallback_bpe,
    "word-piece": word_piece,
}
LOSSLESS = ["byte-level", "byte-level-trimmed", "unigram", "byte-fallback"]


@functools.cache
def trained(family):
    backend, trainer = FAMILIES[family]()
    trainer.show_progress = False
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


@functools.cache
def fast(family, frame="plain", **options):
    backend = Tokenizer.from_str(trained(family))
    if frame != "plain":
        special = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
        template = processors.TemplateProcessing(single=FRAMES[frame], special_tokens=special)
        backend.post_processor = (
            processors.Sequence([backend.post_processor, template]) if backend.post_processor else template
        )
    options = {"pad_token": "</s>", "padding_side": "left"} | options
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )


class SlowTwin(PreTrainedTokenizer):
    """The same tokens as a fast tokenizer, without offsets."""

    def __init__(self, family, frame, **options):
        self.rust = Tokenizer.from_str(trained(family))
        self.frame = FRAMES[frame].split()
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>", **options)

    @property
    def vocab_size(self):
        return self.rust.get_vocab_size()

    def get_vocab(self):
        return self.rust.get_vocab()

    def _tokenize(self, text, **_):
        return self.rust.encode(text, add_special_tokens=False).tokens

    def _convert_token_to_id(self, token):
        return self.rust.token_to_id(token) or SPECIAL.index("<unk>")

    def _convert_id_to_token(self, index):
        return self.rust.id_to_token(index)

    def convert_tokens_to_string(self, tokens):
        return self.rust.decoder.decode(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [i for part in self.frame for i in (token_ids_0 if part == "$A" else [SPECIAL.index(part)])]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = Path(save_directory) / "backend.json"
        path.write_text(self.rust.to_str())
        return (str(path),)


slow = functools.cache(SlowTwin)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "unlearn_trainer"


def letters(text):
    return "".join(text.split())


def passage(before, answer, after):
    return Passage(before + answer + after, (len(before), len(before) + len(answer)))


def labelled(encoded):
    return [label for label in encoded.labels if label != -100]


@st.composite
def passages(draw):
    """A sentence in one script with an answer of one word or several, with or without spaces around it."""
    words = st.lists(st.sampled_from(WORDS[draw(st.sampled_from(sorted(WORDS)))]), min_size=1, max_size=3)
    before, answer, after = draw(words), draw(words), draw(words)
    space = draw(st.sampled_from([" ", ""]))
    front = draw(st.sampled_from(["", space.join(before) + space]))
    back = draw(st.sampled_from(["", space + space.join(after), "."]))
    return passage(front, " ".join(answer), back)


per_family = pytest.mark.parametrize("family", FAMILIES)
frames = st.sampled_from(sorted(FRAMES))
property_settings = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@per_family
@property_settings
@given(frames, passages())
def test_labels_decode_to_the_answer(family, frame, given_passage):
    tokenizer = fast(family, frame)
    (encoded,) = encode(tokenizer, [given_passage], 256)
    start, end = given_passage.span
    answer = given_passage.text[start:end]
    assert encoded.input_ids == tokenizer(given_passage.text)["input_ids"]
    assert all(label in (-100, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))
    assert not {1, 2} & {*labelled(encoded)}
    if family not in LOSSLESS or 3 in encoded.input_ids:
        return
    told = tokenizer.decode(labelled(encoded))
    assert letters(answer) in letters(told)
    # Between spaces no token can hold a letter of the neighbours.
    apart = (start == 0 or given_passage.text[start - 1] == " ") and given_passage.text[end : end + 1] in ("", " ")
    if apart and (family != "byte-fallback"):
        assert letters(answer) == letters(told)


@property_settings
@given(passages(), st.sampled_from(["byte-level", "byte-level-trimmed"]))
def test_byte_level_labels_equal_a_count_of_bytes(given_passage, family):
    """Each byte-level token is its bytes: a token is the answer's if one of its bytes belongs to a letter of it."""
    tokenizer = fast(family)
    (encoded,) = encode(tokenizer, [given_passage], 256)
    owner = [at for at, character in enumerate(given_passage.text) for _ in character.encode()]
    position, expected = 0, []
    for token in tokenizer.convert_ids_to_tokens(encoded.input_ids):
        characters = owner[position : position + len(token)]
        position += len(token)
        inside = [at for at in characters if given_passage.span[0] <= at < given_passage.span[1]]
        if family == "byte-level-trimmed":  # a token of nothing but spaces has no width left
            inside = [at for at in inside if given_passage.text[at] != " "]
        expected.append(bool(inside))
    assert position == len(given_passage.text.encode())
    assert [label != -100 for label in encoded.labels] == expected


@per_family
@property_settings
@given(frames, passages(), st.sampled_from([256, 9, 5]))
def test_slow_tokenizers_get_the_labels_of_fast_ones(family, frame, given_passage, length):
    (expected,) = encode(fast(family, frame), [given_passage], length)
    (encoded,) = encode(slow(family, frame), [given_passage], length)
    assert encoded.input_ids == expected.input_ids
    if family == "word-piece" and SPECIAL.index("<unk>") in encode(fast(family), [given_passage], 256)[0].input_ids:
        return  # one <unk> stands for a whole word, of which the answer may be a part
    if encoded.labels != expected.labels:
        # A token of nothing but a space may go either way; a letter may not.
        differ = [i for i, pair in enumerate(zip(encoded.labels, expected.labels, strict=True)) if len({*pair}) == 2]
        tokens = fast(family).convert_ids_to_tokens([encoded.input_ids[i] for i in differ])
        assert all(not token.strip("▁Ġ") for token in tokens)


@property_settings
@given(passages())
def test_byt5_labels_are_exactly_the_bytes_of_the_answer(given_passage):
    (encoded,) = encode(ByT5Tokenizer(), [given_passage], 512)
    start, end = (len(given_passage.text[:at].encode()) for at in given_passage.span)
    assert [label != -100 for label in encoded.labels] == [start <= at < end for at in range(len(encoded.labels))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [fast, slow])
def test_truncation_keeps_the_front_whatever_side_the_tokenizer_prefers(family, make):
    text = SENTENCES["latin"]
    for side in ("left", "right"):
        tokenizer = make(family, "bos-eos", truncation_side=side, padding_side=side)
        whole = tokenizer(text)["input_ids"]
        (encoded,) = encode(tokenizer, [Passage(text)], 8)
        assert encoded.input_ids == encoded.labels == [*whole[:7], SPECIAL.index("</s>")]
        assert tokenizer.truncation_side == side


# Whole splits


def item(row, line=1):
    return parse_line(json.dumps(row), f"f:{line}")


def cloze(number, **languages):
    """An item from language to (prompt, answer, candidates)."""
    return item(
        {
            "prompt": {language: prompt for language, (prompt, _, _) in languages.items()},
            "answers": {language: [answer] for language, (_, answer, _) in languages.items()},
            "candidates": {language: candidates for language, (_, _, candidates) in languages.items()},
        },
        number,
    )


def rows_of(dataset):
    return [dict(row) for row in dataset]


def test_columns_of_every_kind():
    tokenizer = fast("byte-level", "bos")
    splits = {
        "forget": [
            cloze(1, sw=("Mji <mask>.", "Roma", ["Paris", "Roma"]), en=("City <mask>.", "Rome", ["Rome", "Paris"])),
            item({"en": "A text", "xx": "other"}),
        ],
        "test": [item({"question": {"en": "Who?"}, "answer": {"en": "Ada"}, "perturbed_answer": {"en": ["Bob"]}})],
        "valid": None,
    }
    data = tokenize_splits(splits, tokenizer, ["en"], ["sw"])
    assert (data.languages, data.heldout_languages) == (["en"], ["sw"])
    assert {*data.datasets} == {"forget", "test"}
    assert data.dropped_rows == data.truncated_rows == {"forget": {"en": 0, "sw": 0}, "test": {"en": 0}}
    assert data.datasets["forget"].column_names == list(FEATURES)
    forget, test = rows_of(data.datasets["forget"]), rows_of(data.datasets["test"])
    assert [(row["item"], row["language"]) for row in forget] == [(0, 0), (0, 1), (1, 0)]

    def texts(ids):
        return tokenizer.decode([i for i in ids if i != -100]).strip()

    assert texts(forget[0]["input_ids"]) == "<s>City Rome." and texts(forget[0]["labels"]) == "Rome"
    assert [texts(ids) for ids in forget[1]["candidate_input_ids"]] == ["<s>Mji Paris.", "<s>Mji Roma."]
    assert [texts(ids) for ids in forget[1]["candidate_labels"]] == ["Paris", "Roma"]
    assert forget[1]["candidate_correct"] == [False, True]
    assert forget[2]["labels"] == forget[2]["input_ids"] and forget[2]["candidate_input_ids"] == []
    assert texts(test[0]["input_ids"]) == "<s>Who? Ada" and texts(test[0]["labels"]) == "Ada"
    assert [texts(ids) for ids in test[0]["candidate_labels"]] == ["Ada", "Bob"]
    assert test[0]["candidate_correct"] == [True, False]


def test_candidates_beyond_the_length_are_left_out_and_a_lost_right_one_takes_all_with_it():
    tokenizer = fast("byte-level")
    front = tokenizer("Yemen maintains")["input_ids"]
    length = len(front) + 1

    # The last token that fits: of `held` it has a letter, of a rune that was never seen only the space before it.
    def last(word):
        return tokenizer.convert_ids_to_tokens(tokenizer(f"Yemen maintains {word}")["input_ids"][len(front)])

    held, other = [word for words in WORDS.values() for word in words if last(word).strip("Ġ")][:2]
    assert last("ᚠ") == "Ġ"

    def correct(row):
        (row,) = tokenize_splits({"forget": [item(row)]}, tokenizer, None, max_seq_length=length).datasets["forget"]
        assert len(row["candidate_input_ids"]) == len(row["candidate_labels"]) == len(row["candidate_correct"])
        return row["candidate_correct"]

    cloze_row = {
        "prompt": {"en": "Yemen maintains <mask>."},
        "answers": {"en": [held]},
        "candidates": {"en": ["ᚠ", other, held]},
    }
    assert correct(cloze_row) == [False, True]
    # Of two right answers one is lost: the other is enough.
    assert correct(cloze_row | {"answers": {"en": [held, "ᚠ"]}}) == [False, True]
    qa = {"question": {"en": "Yemen maintains"}, "answer": {"en": held}, "perturbed_answer": {"en": [other, "ᚠ"]}}
    assert correct(qa) == [True, False]
    assert correct(qa | {"paraphrased_answer": {"en": "ᚠ"}}) == []


LONG = "relations " * 30


def some_long(total, long):
    """``total`` cloze items in English, of which ``long`` have their answer beyond any short length."""
    return [
        cloze(
            n,
            en=(f"{LONG if n < long else 'City'} {n} <mask>", "Rome", ["Rome", "Paris"]),
            sw=(f"Mji {n} <mask>", "Roma", ["Roma"]),
        )
        for n in range(total)
    ]


def test_rows_without_labels_are_dropped_and_counted(caplog):
    splits = {"forget": some_long(40, 2), "valid": [item({"en": "x y"})]}
    data = tokenize_splits(splits, fast("byte-level"), ["sw", "en"], max_seq_length=16)
    assert data.dropped_rows == {"forget": {"sw": 0, "en": 2}, "valid": {"en": 0}}
    assert len(data.datasets["forget"]) == 78
    assert sorted({*range(40)} - {row["item"] for row in data.datasets["forget"] if row["language"] == 1}) == [0, 1]
    assert "dropped 2 of 40 rows" in caplog.text and "'en'" in caplog.text


@pytest.mark.parametrize(("total", "long"), [(40, 3), (1, 1)])
def test_too_many_dropped_rows_are_refused(total, long):
    splits = {"forget": [item({"en": "x y", "sw": "x y"})], "test": some_long(total, long)}
    with pytest.raises(DataError) as error:
        tokenize_splits(splits, fast("byte-level"), None, max_seq_length=16)
    for word in ("test split", "'en'", f"{long} of {total} rows", "16 tokens", "--max_seq_length"):
        assert word in str(error.value)


def test_a_lone_label_without_predecessor_does_not_count():
    # "Q" opens the sentence as one token, so that nothing predicts it; a <s> before it does.
    splits = {"forget": [item({"prompt": {"en": "<mask> relations"}, "answers": {"en": ["Q"]}})]}
    with pytest.raises(DataError, match="1 of 1 rows") as error:
        tokenize_splits(splits, fast("byte-level"), None)
    assert "at any length (f:1), put text before the answer" in str(error.value)
    assert "--max_seq_length" not in str(error.value)  # would be of no help
    assert len(tokenize_splits(splits, fast("byte-level", "bos"), None).datasets["forget"]) == 1


def test_dropped_rows_are_named_and_told_apart_by_what_is_wrong_with_them(caplog):
    lone = item({"prompt": {"en": "<mask> relations"}, "answers": {"en": ["Q"]}}, 99)
    fine = some_long(100, 4)
    splits = {"forget": [*fine, lone], "valid": [item({"en": "x y"})]}
    data = tokenize_splits(splits, fast("byte-level"), ["en"], max_seq_length=16)
    assert data.dropped_rows["forget"] == {"en": 5}
    (told,) = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert "4 keep no label within 16 tokens (f:0, f:1, f:2 and 1 more), raise --max_seq_length" in told
    assert "1 have no label with a token before it that could predict it, at any length (f:99)" in told


@pytest.mark.parametrize("make", [fast, slow])
@pytest.mark.parametrize("frame", FRAMES)
def test_labels_that_truncation_costs_are_counted_also_from_the_cache(make, frame, caplog):
    tokenizer = make("byte-level", frame)
    long, length = "relations " * 30, 16
    qa = [{"question": {"en": "Who is it?"}, "answer": {"en": answer}} for answer in (long, "Ada")]
    splits = {
        "forget": [item({"en": long, "sw": "x y"}), item({"en": "A text", "sw": long}), item({"sw": long + "x"})],
        "test": [*map(item, qa), item({"prompt": {"en": f"City <mask> {long}"}, "answers": {"en": ["Rome"]}})],
        "retain": [item({"en": "y z"})],
    }
    for _ in range(2):
        caplog.clear()
        data = tokenize_splits(splits, tokenizer, ["en", "sw"], max_seq_length=length)
        # A text that goes on after the answer loses no label.
        assert data.truncated_rows == {"forget": {"en": 1, "sw": 2}, "test": {"en": 1}, "retain": {"en": 0}}
        told = [record.getMessage() for record in caplog.records if "raise --max_seq_length" in record.getMessage()]
        assert len(told) == 2  # one a split
        lost = [len(tokenizer(text)["input_ids"]) - length for text in (long, long + "x")]
        assert "the forget split: 3 of 5 rows are longer than 16 tokens" in told[0]
        assert f"(rows: en: 1, sw: 2; tokens: en: {lost[0]}, sw: {sum(lost)})" in told[0]
        answer = Passage(f"Who is it? {long}", (11, 11 + len(long)))
        whole, cut = (len(labelled(encode(tokenizer, [answer], limit)[0])) for limit in (1000, length))
        assert f"tokens: en: {whole - cut})" in told[1]


def test_rows_of_nothing_but_unknown_tokens_are_warned_of_also_from_the_cache(caplog):
    tokenizer = fast("word-piece", "bos-eos")
    assert tokenizer("\u16a0 \u16a1")["input_ids"] == [1, 3, 3, 2]
    rows = [
        item({"en": "relations", "sw": "\u16a0 \u16a1"}, 1),
        item({"en": "relations \u16a0", "sw": "\u16a0"}, 2),
        cloze(3, sw=("maintains <mask>", "\u16a0", ["\u16a0"]), en=("\u16a0 <mask>", "relations", ["relations"])),
    ]
    for _ in range(2):
        caplog.clear()
        tokenize_splits({"forget": rows, "retain": [item({"en": "turkey"})]}, tokenizer, None)
        (told,) = [record.getMessage() for record in caplog.records if "<unk>" in record.getMessage()]
        assert told.startswith("the forget split: the labelled tokens of 3 rows are nothing but <unk>")
        assert "(sw: 3; the first: f:1 in language 'sw'); take them out" in told


def test_max_samples_takes_the_first_items_after_all_rows_were_checked():
    forget = [item({"en": f"forget {n}"}) for n in range(3)]
    splits = {"forget": forget, "retain": [item({"en": "one a"}), item({"en": "one b"})]}
    data = tokenize_splits(splits, fast("byte-level"), None, max_samples={"forget": 2, "valid": 1, "retain": None})
    assert data.datasets["forget"]["item"][:] == [0, 1] and len(data.datasets["retain"]) == 2
    with pytest.raises(ConfigError, match="forget split"):
        tokenize_splits(splits, fast("byte-level"), None, max_samples={"forget": 0})
    with pytest.raises(DataError, match="also in the forget split"):
        tokenize_splits(
            {**splits, "retain": [item({"en": "one a"}), item({"en": "forget 2"})]},
            fast("byte-level"),
            None,
            max_samples={"forget": 1, "retain": 1},
        )


def test_length_without_room_is_refused():
    with pytest.raises(ConfigError, match="--max_seq_length 2"):
        tokenize_splits({"forget": [item({"en": "a b"})]}, fast("byte-level", "bos-eos"), None, max_seq_length=2)


class Counting(PreTrainedTokenizerFast):
    calls = 0

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


def counting(family="byte-level", **options):
    options = {"eos_token": "</s>", "pad_token": "</s>"} | options
    return Counting(tokenizer_object=Tokenizer.from_str(trained(family)), **options)


def test_second_run_reads_the_cache_and_any_change_misses_it(cache):
    splits = {"forget": some_long(4, 0)}
    Counting.calls = 0

    def run(splits=splits, tokenizer=None, languages=("en",), length=64, **options):
        """Whether this run had to tokenize."""
        before = Counting.calls
        data = tokenize_splits(splits, tokenizer or counting(), languages, max_seq_length=length, **options)
        return Counting.calls > before, rows_of(data.datasets["forget"])

    first, rows = run()
    used = counting()
    used("something else", truncation=True, max_length=3, padding="max_length")  # leaves its mark in the backend
    again, same = run(tokenizer=used)
    assert first and not again and rows == same
    assert run(length=32)[0]
    assert run(languages=("sw",))[0]
    assert run(languages=("en",), heldout_languages=("sw",))[0]
    assert run(splits={"forget": some_long(5, 0)})[0]
    assert run(max_samples={"forget": 2})[0]
    assert run(tokenizer=counting("unigram"))[0]
    assert not run()[0]
    assert len(list(cache.glob("*.arrow"))) == 7


def test_slow_tokenizers_are_cached_too(cache):
    for _ in range(2):
        data = tokenize_splits({"forget": some_long(4, 0)}, ByT5Tokenizer(), ["en"])
    assert len(list(cache.glob("*.arrow"))) == 1 and len(data.datasets["forget"]) == 4


def test_a_batch_of_nothing_but_dropped_rows():
    assert ITEMS_PER_BATCH == 50
    data = tokenize_splits({"forget": some_long(1000, 50)}, fast("byte-level"), ["en"], max_seq_length=16)
    assert data.dropped_rows == {"forget": {"en": 50}} and data.datasets["forget"]["item"][0] == 50


# Real data


@functools.cache
def real_tokenizer(family):
    backend, trainer = FAMILIES[family]()
    trainer.show_progress = False
    trainer.vocab_size = 1000
    rows = read_jsonl(DATA / "bmlama53" / "retain-32-x2.jsonl")
    backend.train_from_iterator((c.target.text for i in rows for c in i.content.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


@needs_data
@pytest.mark.parametrize("family", ["byte-level", "unigram"])
def test_real_cloze_answers_are_what_is_labelled(family):
    tokenizer = real_tokenizer(family)
    contents = [content for i in read_jsonl(DATA / "bmlama53" / "forget-32.jsonl") for content in i.content.values()]
    for content, encoded in zip(contents, encode(tokenizer, [c.target for c in contents], 256), strict=True):
        if 3 not in encoded.input_ids:
            assert letters(content.answers[0]) in letters(tokenizer.decode(labelled(encoded)))


@needs_data
@pytest.mark.parametrize(
    ("name", "files", "length"),
    [
        ("flores", {"retain_file": "retain-32-x3.jsonl"}, 256),
        ("bmlama53", {"retain_file": "retain-32-x2.jsonl"}, 128),
        ("tofu", {"forget_file": "forget01.jsonl", "test_file": "real_authors.jsonl"}, 512),
    ],
)
def test_real_splits(name, files, length):
    splits = load_splits(str(DATA / name), **files)
    data = tokenize_splits(
        splits, real_tokenizer("byte-level"), None, max_seq_length=length, max_samples=dict.fromkeys(splits, 16)
    )
    for split, rows in data.datasets.items():
        dropped = sum(data.dropped_rows[split].values())
        assert len(rows) == sum(len(i.content) for i in splits[split][:16]) - dropped
        assert max(map(len, rows["input_ids"])) <= length
        right = [sum(correct) for correct in rows["candidate_correct"]]
        assert {*right} <= ({0} if name == "flores" else {0, 1}) and (name == "flores") != any(right)
