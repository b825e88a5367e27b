"""Rows that a tokenizer makes the same, special tokens written out in texts, and the state a tokenizer is left in."""

import unicodedata

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from unlearn_trainer.data import tokenize_splits
from unlearn_trainer.data.alternatives import add_alternatives
from unlearn_trainer.data.encoding import encode
from unlearn_trainer.data.items import Passage, parse_row
from unlearn_trainer.errors import DataError

SPECIAL = ["<unk>", "<pad>", "<s>", "</s>", "<|turn|>"]
WORDS = "the café is closed on monday and opens again tuesday who where paris berlin rome".split()
MARKS = dict.fromkeys("\u200e\u200f\u200b\u200d\ufeff\u202a\u202c", "")


def folding(frame="$A", **options):
    """A tokenizer that folds what SentencePiece's nmt_nfkc_cf does: width, marks, accents' composition, case."""
    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS, "?", "."])}, unk_token="<unk>")
    )
    gone = [normalizers.Replace(mark, "") for mark in MARKS]
    backend.normalizer = normalizers.Sequence([*gone, normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **names, additional_special_tokens=["<|turn|>"], **options
    )
    if frame != "$A":
        special = [(name, SPECIAL.index(name)) for name in ("<s>", "</s>")]
        backend = tokenizer.backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return tokenizer


def item(row, line, split):
    return parse_row(row, f"{split}.jsonl:{line}")


def tokenized(tokenizer, length=64, show_texts=False, **splits):
    items = {split: [item(row, n, split) for n, row in enumerate(rows, 1)] for split, rows in splits.items()}
    return tokenize_splits(items, tokenizer, None, max_seq_length=length, show_texts=show_texts)


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in text)


TEXT = "the café is closed on monday"
WRITTEN = {
    "full width": full_width(TEXT),
    "right-to-left mark": "\u200f" + TEXT,
    "embedding": f"\u202a{TEXT}\u202c",
    "zero-width space": TEXT.replace("closed", "clo\u200bsed"),
    "joiner": TEXT.replace("closed", "clo\u200dsed"),
    "byte order mark": "\ufeff" + TEXT,
    "case": TEXT.upper(),
    "decomposed accent and full width": unicodedata.normalize("NFD", full_width(TEXT)),
}


@pytest.mark.parametrize("split", ["retain", "valid", "test"])
@pytest.mark.parametrize("way", WRITTEN)
def test_texts_that_become_the_same_tokens_are_refused_in_two_splits(split, way):
    """Also across languages; the message names both places and languages, and no word of the texts."""
    others = {"retain": [{"en": "in paris"}], split: [{"en": "in rome"}, {"en": "in berlin", "sw": WRITTEN[way]}]}
    with pytest.raises(DataError) as told:
        tokenized(folding(), forget=[{"en": "on tuesday", "sw": "again tuesday"}, {"en": TEXT}], **others)
    for named in (f"{split}.jsonl:2: ", "'sw'", "also in the forget split", "forget.jsonl:2 ('en')"):
        assert named in str(told.value)
    assert not any(word in str(told.value).lower() for word in ("café", "closed", "ｃ"))
    with pytest.raises(DataError, match="closed"):
        tokenized(folding(), forget=[{"en": TEXT}], retain=[{"en": "\u200f" + TEXT}], show_texts=True)


def test_every_way_to_say_a_row_counts_and_what_differs_in_a_token_does_not():
    question = {"question": {"en": "where is the café ?"}, "answer": {"en": "paris"}}
    cloze = {"prompt": {"en": "the café is <mask> ."}, "answers": {"en": ["closed", "PARIS"]}}
    for forget, other in (
        (question, {"en": "Where is the Café ? \u200fParis"}),
        ({"en": "Where is the Café ? \u200fParis"}, question),
        (cloze, {"en": "the café is paris\u200b ."}),  # its second answer, which is not trained on
        ({"en": "The café is closed ."}, cloze),
        (cloze, {"question": {"en": "the café is"}, "answer": {"en": "paris ."}}),
    ):
        with pytest.raises(DataError, match="retain.jsonl:1: .*same tokens.*forget.jsonl:1"):
            tokenized(folding(), forget=[forget], retain=[other])
    berlin = question | {"answer": {"en": "berlin"}}
    assert len(tokenized(folding(), forget=[question], retain=[berlin]).datasets["retain"]) == 1
    # A tokenizer that folds nothing has two rows there.
    assert (
        len(tokenized(ByT5Tokenizer(), forget=[{"en": TEXT}], retain=[{"en": TEXT.upper()}]).datasets["retain"]) == 1
    )


def test_rows_that_truncation_makes_the_same_are_one_row():
    splits = {"forget": [{"en": "in rome"}, {"en": TEXT + " and opens"}], "valid": [{"en": TEXT + " again"}]}
    with pytest.raises(DataError, match=r"valid.jsonl:1: .*cut to 6.*forget.jsonl:2.*raise --max_seq_length"):
        tokenized(folding(), 6, **splits)
    assert len(tokenized(folding(), 16, **splits).datasets["valid"]) == 1


def test_the_rows_of_all_batches_are_compared():
    words = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]
    forget, retain = [{"en": text} for text in words[:130]], [{"en": text} for text in words[130:260]]
    assert tokenized(folding(), forget=forget, retain=retain)
    retain[107] = {"en": words[111].upper()}
    with pytest.raises(DataError, match="retain.jsonl:108: .*forget.jsonl:112 "):
        tokenized(folding(), forget=forget, retain=retain)


FRAMES = {"bos": "<s> $A", "both": "<s> $A </s>", "end first": "</s> $A"}


@pytest.mark.parametrize("frame", FRAMES)
def test_a_text_that_begins_with_what_the_tokenizer_adds_has_it_once(frame):
    tokenizer = folding(FRAMES[frame])
    first = FRAMES[frame].split()[0]
    for passage in (Passage(TEXT), Passage(TEXT, (9, 18)), Passage("paris", (0, 5))):
        span = passage.span and tuple(at + len(first) for at in passage.span)
        for length in (None, 4):
            plain, rendered = (
                encode(tokenizer, [each], length)[0] for each in (passage, Passage(first + passage.text, span))
            )
            assert rendered == plain and plain.input_ids.count(SPECIAL.index(first)) == 1
    # Without a tokenizer that adds it, it is the text's own; and one in the middle stays where it is.
    assert encode(folding(), [Passage(f"<s> {TEXT}")], None)[0].input_ids[0] == SPECIAL.index("<s>")
    assert encode(tokenizer, [Passage(f"paris {first} rome")], None)[0].written == (SPECIAL.index(first),)


def test_special_tokens_written_in_texts_are_named_also_from_the_cache(caplog):
    forget = [
        {"en": "paris is closed"},
        {"en": "rome </s> opens", "sw": "rome opens"},
        {"prompt": {"en": "who is <mask> <|turn|>"}, "answers": {"en": ["paris"]}},
        {
            "prompt": {"en": "where is <mask> ?"},
            "answers": {"en": ["paris"]},
            "candidates": {"en": ["paris", "rome <pad>"]},
        },
        {"question": {"en": "<s> who ?"}, "answer": {"en": "paris </s> </s>"}},
        {"en": "never heard"},
    ]
    for _ in range(2):
        caplog.clear()
        tokenized(folding(), forget=forget, retain=[{"en": "on monday"}])
        (told,) = [each.getMessage() for each in caplog.records if "special tokens" in each.getMessage()]
        assert "the forget split: 4 rows" in told and "the first: forget.jsonl:2 in language 'en' has </s>" in told
        assert all(f"{name} in {count}" in told for name, count in {"</s>": 2, "<|turn|>": 1, "<pad>": 1}.items())
        assert "en: 4" in told and "opens" not in told
    caplog.clear()
    tokenized(ByT5Tokenizer(), forget=[{"en": "a </s> b"}, {"en": "c"}], retain=[{"en": "on monday"}])
    assert "</s> in 1" in caplog.text


def test_special_tokens_in_alternative_answers_are_named(caplog, tmp_path):
    (tmp_path / "no.json").write_text('{"en": ["closed .", "who ? </s>"]}')
    rows = [item({"question": {"en": "who ?"}, "answer": {"en": "paris"}}, 1, "forget")]
    data = tokenize_splits({"forget": rows}, folding(), None)
    add_alternatives(data, rows, folding(), 64, 0, str(tmp_path / "no.json"))
    assert "--alternative_answers: text 2 of language 'en' has the special tokens </s>" in caplog.text


@pytest.mark.parametrize("kept", [None, 7])
def test_tokenizing_leaves_the_tokenizer_as_it_was(kept):
    """What the tokenizer was saved to truncate and pad to stays, whatever length the rows were cut to."""
    tokenizer = folding("<s> $A", truncation_side="left")
    if kept:
        tokenizer.backend_tokenizer.enable_truncation(kept, stride=1, direction="left")
        tokenizer.backend_tokenizer.enable_padding(length=kept, pad_id=1, pad_token="<pad>")
    before = tokenizer.backend_tokenizer.to_str()
    tokenized(tokenizer, 4, forget=[{"en": TEXT}], retain=[{"en": "in rome"}])
    assert tokenizer.backend_tokenizer.to_str() == before and tokenizer.truncation_side == "left"
