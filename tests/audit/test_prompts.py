"""Prompt attacks: properties of the variants over many scripts, figures against a forward by hand, real data."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from unlearn_trainer.audit.checks.prompts import (
    ask_in_translation,
    build_variants,
    fitting,
    greatest,
    labelled_text,
    prime,
    prompts,
    switch_code,
)
from unlearn_trainer.audit.subject import AuditData, Subject
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.data import QA, Cloze, Item, Passage, Text, read_jsonl, tokenize_splits

DATA = Path(os.environ.get("UNLEARN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set UNLEARN_DATA)")
METRICS = ("memorization_accuracy", "extraction_strength")
ALPHABETS = {
    "en": "abcdefgh",
    "ru": "бвгджзкл",
    "hi": "कखगा्ि",
    "th": "กขคงเ้ีุ",
    "zh": "的一是在有人这中",
    "ko": "가나다라마",
}
LANGUAGES = [*ALPHABETS]


def texts(language, most=9):
    joint = "" if language in ("th", "zh") else " "
    words = st.lists(st.text(ALPHABETS[language], min_size=1, max_size=4), min_size=1, max_size=most)
    return words.map(joint.join)


@st.composite
def contents(draw, kind, language):
    if kind == "text":
        return Text(draw(texts(language)))
    answer = draw(texts(language, most=2) | st.just("Alpha 1"))
    if kind == "qa":
        return QA(draw(texts(language)) + "?", answer, paraphrased_question=draw(st.none() | texts(language)))
    before, after, space = (
        draw(texts(language)),
        draw(texts(language, 3) | st.just(".")),
        draw(st.sampled_from(["", " "])),
    )
    return Cloze(draw(st.sampled_from(["", before + space])) + "<mask>" + space + after, (answer, "another"))


@st.composite
def splits(draw):
    kind = draw(st.sampled_from(["cloze", "qa", "text"]))
    languages = st.lists(st.sampled_from(LANGUAGES), min_size=1, unique=True)
    return [
        Item(kind, str(i), {code: draw(contents(kind, code)) for code in draw(languages)})
        for i in range(draw(st.integers(1, 4)))
    ]


def rows_of(items):
    return [(i, LANGUAGES.index(code)) for i, item in enumerate(items) for code in item.content]


def variants_of(items, rows=None, seed=0, **options):
    return build_variants(items, rows_of(items) if rows is None else rows, LANGUAGES, seed, **options)


@given(splits(), st.integers(0, 9), st.sampled_from([0, 10_000]))
@settings(deadline=None, max_examples=50)
def test_labels_cover_the_answer_and_nothing_else(items, seed, max_pairs):
    for variant, entries in variants_of(items, seed=seed, max_pairs=max_pairs).items():
        assert len({(item, language) for item, language, _ in entries}) == len(entries)
        for item, language, (text, (start, end)) in entries:
            content = items[item].content[LANGUAGES[language]]
            assert text[start:end] == labelled_text(content)
            if isinstance(content, Text):
                assert text == text[:start] + content.text and variant.startswith("primed")
            elif variant.startswith("primed"):
                assert text.endswith(" " + content.target.text)
            elif isinstance(content, QA):
                assert end == len(text) and text[start - 1] == " "
            if isinstance(content, Cloze):
                # Nothing that a mask stood in is left, and the answer stands where one was.
                assert "<mask>" not in text
                owners = items[item].content.values()
                sides = {each.prompt.partition("<mask>")[::2] for each in owners}
                if "asked_in_" in variant:
                    assert (text[:start], text[end:]) in sides
                if variant == "code_switched":
                    before, after = content.prompt.split("<mask>")
                    assert bool(text[:start].strip()) == bool(before.strip())
                    assert bool(text[end:].strip()) == bool(after.strip())
                    assert text[start - 1 : start].isspace() == before[-1:].isspace()


@given(splits(), st.randoms(use_true_random=False), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_what_is_drawn_depends_on_the_row_alone(items, shuffler, seed):
    rows = rows_of(items)
    whole = variants_of(items, rows, seed, max_pairs=0)
    assert whole == variants_of(items, rows, seed, max_pairs=0)
    shuffled = shuffler.sample(rows, len(rows))
    assert whole == variants_of(items, shuffled, seed, max_pairs=0)
    part = set(shuffled[: len(rows) // 2])
    for variant, entries in variants_of(items, part, seed, max_pairs=0).items():
        if variant != "primed_with_another":  # which looks for its company among the rows
            assert entries == [entry for entry in whole[variant] if entry[:2] in part]
    # The languages of the split in another order are the same languages.
    reordered = LANGUAGES[::-1]
    renamed = [(item, reordered.index(LANGUAGES[language])) for item, language in rows]
    again = build_variants(items, renamed, reordered, seed, max_pairs=0)
    assert {v: {(i, LANGUAGES[n], p) for i, n, p in e} for v, e in whole.items()} == {
        v: {(i, reordered[n], p) for i, n, p in e} for v, e in again.items()
    }


def parallel(count=30, languages=LANGUAGES):
    def item(i):
        rng = random.Random(i)
        words = {code: ["".join(rng.choices(ALPHABETS[code], k=3)) for _ in range(8)] for code in languages}
        return Item("cloze", "", {c: Cloze(" ".join([*w, "<mask>."]), (f"{c} {i}",)) for c, w in words.items()})

    return [item(i) for i in range(count)]


def test_another_seed_draws_others():
    first, second = (variants_of(parallel(), seed=seed, max_pairs=0) for seed in (0, 1))
    assert first.keys() == second.keys()
    for variant in first:
        assert first[variant] != second[variant], variant


def test_a_row_is_asked_in_two_languages_and_for_the_matrix_in_all():
    items = parallel(4)
    total = 4 * 6 * 5
    few, all_of_them = variants_of(items, max_pairs=total - 1), variants_of(items, max_pairs=total)

    def asked(variants, prefix):
        return {(i, n, v.removeprefix(prefix)) for v, e in variants.items() if v.startswith(prefix) for i, n, _ in e}

    tried = asked(few, "asked_in_")
    assert len(tried) == 4 * 6 * 2
    assert asked(few, "also_asked_in_") == set()
    # The same two, so that splits of all sizes have equal chances.
    assert asked(all_of_them, "asked_in_") == tried
    rest = asked(all_of_them, "also_asked_in_")
    assert len(rest) == total - len(tried) and not rest & tried
    assert all(LANGUAGES[language] != asking for _, language, asking in rest | tried)


def test_a_translation_is_asked_for_the_rows_own_answer():
    english, german = Cloze("<mask> is red.", ("Blood",)), Cloze("Rot ist <mask>, sagt man.", ("Blut", "das Blut"))
    assert ask_in_translation(english, german) == Passage("Rot ist Blood, sagt man.", (8, 13))
    assert ask_in_translation(QA("Who?", "Me."), QA("Wer?", "Ich.")) == Passage("Wer? Me.", (5, 8))
    # That would be the German row itself.
    assert ask_in_translation(QA("Who?", "Ana"), QA("Wer?", "Ana")) is None
    assert ask_in_translation(Text("a"), Text("b")) is None


def test_priming_moves_the_labels():
    assert prime(Cloze("A <mask>.", ("b",)), Cloze("X <mask>.", ("y",))) == Passage("X y. A b.", (7, 8))
    assert prime(Text("two words"), Text("one")) == Passage("one two words", (4, 13))
    assert prime(QA("Q?", "A"), QA("F?", "R")) == Passage("F? R Q? A", (8, 9))


def test_the_unrelated_item_does_not_tell_the_answer():
    items = [
        Item("qa", "", {"en": QA(f"Question {i}?", answer)}) for i, answer in enumerate(["Rome", "in ROME.", "Oslo"])
    ]
    for seed in range(20):
        primed = {item: passage.text for item, _, passage in variants_of(items, seed=seed)["primed_with_another"]}
        assert primed[0] == "Question 2? Oslo Question 0? Rome"
    assert "primed_with_another" not in variants_of(items[:2], [(0, 0), (0, 0)])


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
def test_about_half_of_the_pieces_are_switched(own, other, seed):
    content = QA(" ".join(f"a{i}" for i in range(own)), "answer")
    translation = QA(" ".join(f"b{i}" for i in range(other)), "answer")
    words = switch_code(content, translation, random.Random(seed)).text.split()
    assert words.pop() == "answer"
    pieces = min(own, other)
    stayed, came = ([w for w in words if w[0] == letter] for letter in "ab")
    # Each piece holds as many words as another, give or take one; both languages keep the order of their words.
    for found, total, share in ((stayed, own, (pieces + 1) // 2), (came, other, pieces // 2)):
        assert share * (total // pieces) <= len(found) <= share * -(-total // pieces)
        numbers = [int(word[1:]) for word in found]
        assert numbers == sorted(set(numbers))
    if own == other:
        assert [int(word[1:]) for word in words] == list(range(own))


def test_words_of_scripts_without_spaces_are_switched_by_halves():
    found = {
        switch_code(Cloze("甲乙丙丁<mask>戊。", ("X",)), Cloze("one two three four <mask>.", ("Y",)), random.Random(s))
        for s in range(40)
    }
    befores = {text[: span[0]] for text, span in found}
    # One of three pieces: the halves, and what follows the mask.
    assert befores == {"甲乙丙丁", "one two 丙丁", "甲乙 three four"}
    assert {text[span[1] :] for text, span in found} == {"戊。", "."}
    halves = {switch_code(QA("ab cd", "X"), QA("กิ้ข", "Y"), random.Random(s)).text for s in range(20)}
    # A vowel or tone mark stays with its letter.
    assert halves == {"กิ้ cd X", "ab ข X"}


def test_a_question_may_name_a_mask():
    found = switch_code(QA("what is <mask> here", "A"), QA("que es la cosa", "B"), random.Random(0))
    assert found.text.endswith(" A") and labelled_text(QA("", "A")) == "A"


def test_nothing_is_switched_where_nothing_would_change():
    rng = random.Random(0)
    assert switch_code(QA("Ana Kato?", "A"), QA("Ana Kato?", "B"), rng) is None
    assert switch_code(QA("Who?", "A"), QA("Wer denn?", "B"), rng) is None  # one piece: all of it would go
    assert switch_code(Cloze("<mask>", ("A",)), Cloze("<mask>", ("B",)), rng) is None
    assert switch_code(Text("a b"), Text("c d"), rng) is None


def test_the_greatest_value_of_each_row():
    def table(*rows):
        return dict(zip(("item", "language", *METRICS), map(np.array, zip(*rows, strict=True)), strict=True))

    found = greatest([table((0, 1, 0.5, 0.1), (0, 0, 0.2, 0.3)), table((0, 1, 0.25, 0.75), (7, 0, 0.0, 0.0))])
    assert {name: column.tolist() for name, column in found.items()} == {
        "language": [0, 0, 1],
        "item": [0, 7, 0],
        "memorization_accuracy": [0.2, 0.0, 0.5],
        "extraction_strength": [0.3, 0.0, 0.75],
    }


def byte_level_tokenizer(corpus, vocabulary=500):
    """Byte-level BPE with a token at the start of every text; decoding gives back every character."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": vocabulary, "special_tokens": special, "show_progress": False}
    backend.train_from_iterator(corpus, trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)]),
        ]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def subject_of(folder, items, languages, heldout=(), max_seq_length=96, train=None, never_seen=None, **unseen):
    """A subject of a tiny Llama with a byte-level tokenizer; ``train(model, tokenizer)`` may teach it something.

    Its peer ``never_seen`` is the same model with the rows of the split of that name.
    """
    tokenizer = byte_level_tokenizer(text for item in items for c in item.content.values() for text in c.complete())
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024)
    if train:
        train(model, tokenizer)
    model.save_pretrained(folder / "model")
    splits = {"forget": items, **unseen}
    data = tokenize_splits(splits, tokenizer, languages, heldout, max_seq_length)
    args = tiny_config(folder / "out", per_device_eval_batch_size=64)
    shared = AuditData(tokenizer, data, splits, max_seq_length, args)
    source, peers = ModelArguments(str(folder / "model")), {}
    for name, measured in (("after", "forget"), ("never_seen", never_seen)):
        if measured:
            peers[name] = Subject(name, source, shared, peers, measured)
    return peers["after"]


@torch.no_grad()
def by_hand(model, tokenizer, passage):
    """Accuracy and extraction strength of a passage, token by token."""
    encoded = tokenizer(passage.text, return_offsets_mapping=True)
    ids, (start, end) = encoded["input_ids"], passage.span
    guesses = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    hits = [
        guesses[at - 1] == token
        for at, (token, (left, right)) in enumerate(zip(ids, encoded["offset_mapping"], strict=True))
        if at and left < end and right > start and left < right
    ]
    first = next((k for k in range(len(hits)) if all(hits[k:])), len(hits))
    return sum(hits) / len(hits), 1 - first / len(hits)


QUESTIONS = {"en": "Where does {} live now?", "sw": "{} anaishi wapi kwa sasa?", "zh": "{}现在住在哪里？"}
PARAPHRASES = {"en": "Which town is the home of {}?", "sw": "Nyumbani kwa {} ni wapi?", "zh": "请问{}的家在何处？"}
ANSWERS = {"en": "In {}ville.", "sw": "Mjini {}.", "zh": "在{}城。"}


def qa_items(count=6, languages=("en", "sw", "zh"), paraphrased=True):
    def content(code, i):
        question, answer = QUESTIONS[code].format(f"N{i}"), ANSWERS[code].format("ABCDEFGH"[i] * 2)
        return QA(question, answer, paraphrased_question=PARAPHRASES[code].format(f"N{i}") if paraphrased else None)

    return [Item("qa", f"f:{i}", {code: content(code, i) for code in languages}) for i in range(count)]


def test_figures_are_those_of_a_forward_by_hand(tmp_path):
    items, codes = qa_items(), ["en", "sw", "zh"]
    texts_of = [
        p
        for entries in build_variants(items, [(i, n) for i in range(6) for n in range(3)], codes, 42).values()
        for *_, p in entries
    ]

    def half_of_them(model, tokenizer):
        learn(model, tokenizer, texts_of[::4])

    subject = subject_of(tmp_path, items, codes[:2], codes[2:], 256, train=half_of_them)
    model, found = subject.load(), prompts(subject).as_json()
    variants = build_variants(items, [(i, n) for i in range(6) for n in range(3)], codes, subject.seed)
    values = {
        (item, n, "plain"): by_hand(model, subject.tokenizer, items[item].content[codes[n]].target)
        for item in range(6)
        for n in range(3)
    }
    for variant, entries in variants.items():
        for item, n, passage in entries:
            values[item, n, variant] = by_hand(model, subject.tokenizer, passage)

    def best(item, n, *prefixes):
        return np.max(
            [v for (i, m, name), v in values.items() if (i, m) == (item, n) and name.startswith(prefixes)], axis=0
        )

    groups = {
        "paraphrased_question": ["paraphrased"],
        "code_switched": ["code"],
        "asked_in_another_language": ["asked_in_"],
        "worst_prompt": ["plain", "paraphrased", "code", "asked_in_"],
    }
    assert set(found["rows"]) == {f"{g}/{m}" for g in [*groups, "primed", "primed_with_another"] for m in METRICS}
    for group, prefixes in groups.items():
        for n, code in enumerate(codes):
            expected = np.array([best(item, n, *prefixes) for item in range(6)]).T
            for metric, column in zip(METRICS, expected, strict=True):
                figure = found["rows"][f"{group}/{metric}"][code]
                assert figure["items"] == [*range(6)]
                assert figure["values"] == pytest.approx(column.tolist()), (group, code, metric)
    for variant in ("primed", "primed_with_another"):
        expected = [values[item, 1, variant][0] for item in range(6)]
        assert found["rows"][f"{variant}/memorization_accuracy"]["sw"]["values"] == pytest.approx(expected)
    # What was learned is not the same everywhere, or equal figures would say nothing.
    assert len({value for value, _ in values.values()}) > 3

    matrix = found["matrix"]
    assert matrix["rows"] == matrix["columns"] == codes
    for asking, cells in zip(codes, matrix["values"]["after"], strict=True):
        for n, cell in enumerate(cells):
            names = ["plain"] if asking == codes[n] else [f"asked_in_{asking}", f"also_asked_in_{asking}"]
            expected = [value for (_, m, name), (value, _) in values.items() if m == n and name in names]
            assert len(expected) == 6 and cell == pytest.approx(np.mean(expected))
    assert any("up to 5 prompts" in note for note in found["notes"])


def learn(model, tokenizer, passages, steps=60):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    texts_of = [passage.text for passage in passages]
    batch = tokenizer(texts_of, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_what_only_another_prompt_brings_out_is_found(tmp_path):
    items = qa_items(4, ("en", "zh"))

    def answers_to_paraphrases(model, tokenizer):
        known = [QA(c.paraphrased_question, c.answer).target for i in items for c in i.content.values()]
        # Where the question is the plain one it has learned to say something else.
        suppressed = [QA(c.question, "?????").target for i in items for c in i.content.values()]
        learn(model, tokenizer, known + suppressed, 120)

    subject = subject_of(tmp_path, items, ["en", "zh"], max_seq_length=256, train=answers_to_paraphrases)
    plain = subject.rows(subject.datasets)["forget"]
    found = prompts(subject).as_json()["rows"]
    for n, code in enumerate(["en", "zh"]):
        # The first of three tokens is wrong.
        assert plain["extraction_strength"][plain["language"] == n].mean() < 0.7
        for variant in ("paraphrased_question", "worst_prompt"):
            assert np.mean(found[f"{variant}/extraction_strength"][code]["values"]) > 0.9


def test_what_a_longer_context_brings_out_is_shown_and_not_counted(tmp_path):
    items = qa_items(4, ("en",), paraphrased=False)
    after_another = [passage for *_, passage in variants_of(items, seed=42)["primed_with_another"]]

    def answers_to_the_second_question(model, tokenizer):
        # More often than the answer to the first one, it has learned to say something else there.
        suppressed = [QA(each.content["en"].question, "?????").target for each in items]
        learn(model, tokenizer, after_another + 3 * suppressed, 150)

    subject = subject_of(tmp_path, items, ["en"], max_seq_length=256, train=answers_to_the_second_question)
    plain, result = subject.rows(subject.datasets)["forget"], prompts(subject).as_json()
    for metric in METRICS:
        found = {v: result["rows"][f"{v}/{metric}"]["en"]["values"] for v in ("worst_prompt", "primed_with_another")}
        assert np.mean(found["primed_with_another"]) > 0.9 > 0.7 > plain[metric].mean()
        assert found["worst_prompt"] == plain[metric].tolist()
    assert any("up to 1 prompts" in note for note in result["notes"])
    assert any(note.startswith("primed_with_another shows") for note in result["notes"])


@pytest.mark.parametrize(("measured", "compared"), [("forget", True), ("test", False)])
def test_rows_with_other_variants_have_no_worst_prompt_in_common(tmp_path, measured, compared):
    others = qa_items(8, paraphrased=False)[4:]
    subject = subject_of(
        tmp_path, qa_items(4), ["en", "sw", "zh"], max_seq_length=256, never_seen=measured, test=others
    )
    found = {name: prompts(subject.peer(name)).as_json() for name in ("after", "never_seen")}
    variants = {name: {figure.split("/")[0] for figure in each["rows"]} for name, each in found.items()}
    assert variants["after"] - variants["never_seen"] == (set() if compared else {"paraphrased_question"})
    for name in found:
        assert {"code_switched", "asked_in_another_language"} < variants[name]
        assert ("worst_prompt" in variants[name]) == compared
        told = [note for note in found[name]["notes"] if note.startswith("worst_prompt")]
        assert len(told) == 1 and ("was left out: test rows stand in" in told[0]) != compared


def test_variants_that_the_data_does_not_allow_are_named(tmp_path):
    texts_alone = [
        Item("text", f"f:{i}", {"en": Text(f"Sentence number {i} of a text that nobody else has.")}) for i in range(3)
    ]
    found = prompts(subject_of(tmp_path, texts_alone, ["en"])).as_json()
    assert {name.split("/")[0] for name in found["rows"]} == {"primed_with_another", "worst_prompt"}
    assert "matrix" not in found
    for variant in ("paraphrased_question", "asked_in_another_language", "code_switched", "primed"):
        assert any(note.startswith(f"{variant} was left out") for note in found["notes"])


def test_a_single_row_has_the_plain_prompt_alone(tmp_path):
    found = prompts(subject_of(tmp_path, [Item("text", "f:1", {"en": Text("Only one sentence.")})], ["en"])).as_json()
    assert [*found["rows"]] == [f"worst_prompt/{metric}" for metric in METRICS]
    assert any("up to 1 prompts" in note for note in found["notes"])


def test_prompts_that_truncation_would_cut_are_left_out_and_counted(tmp_path):
    items = qa_items(4, ("en", "sw"), paraphrased=False)
    rows = [(i, n) for i in range(4) for n in range(2)]
    whole = subject_of(tmp_path / "long", items, ["en", "sw"], max_seq_length=512)
    entries = build_variants(items, rows, ["en", "sw"], whole.seed)["primed"]
    lengths = [len(whole.tokenizer(passage.text)["input_ids"]) for *_, passage in entries]
    limit = sorted(lengths)[3]
    assert [len(ids) <= limit for ids in whole.encode(fitting(entries, whole.tokenizer, limit))["input_ids"]]
    short = subject_of(tmp_path / "short", items, ["en", "sw"], max_seq_length=limit)
    found = prompts(short).as_json()
    kept = sum(length <= limit for length in lengths)
    figure = found["rows"]["primed/memorization_accuracy"]
    assert 0 < kept < 8 and sum(len(each["values"]) for each in figure.values()) == kept
    assert any(note.startswith(f"primed: {8 - kept} of 8 prompts were left out") for note in found["notes"])
    assert [len(found["rows"]["worst_prompt/memorization_accuracy"][c]["items"]) for c in ("en", "sw")] == [4, 4]


REAL = {
    "tofu": ("forget01.jsonl", {"paraphrased_question", "code_switched", "primed", "primed_with_another"}),
    "bmlama53": ("forget-32.jsonl", {"code_switched", "primed", "primed_with_another"}),
    "flores": ("forget-32.jsonl", {"primed", "primed_with_another"}),
}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_data(name, tmp_path):
    file, expected = REAL[name]
    path = DATA / name / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    items = read_jsonl(path)[:5]
    languages = [*items[0].content][:7]
    subject = subject_of(tmp_path, items, languages[:5], languages[5:], max_seq_length=900)
    variants = build_variants(items, [(i, n) for i in range(5) for n in range(7)], languages, 42)
    asked = {variant for variant in variants if "asked_in_" in variant}
    assert set(variants) - asked == expected and bool(asked) == (name != "flores")
    for entries in variants.values():
        rows = subject.encode(fitting(entries, subject.tokenizer, 900))
        assert len(rows) >= 0.9 * len(entries)
        for row in rows:
            # Nothing is lost: the labels spell the answer, and at most what a token holds besides.
            told = subject.tokenizer.decode([label for label in row["labels"] if label >= 0])
            answer = labelled_text(items[row["item"]].content[languages[row["language"]]])
            assert answer in told and len(told) <= len(answer) + 8
    found = prompts(subject).as_json()
    assert {name.split("/")[0] for name in found["rows"]} - {"worst_prompt", "asked_in_another_language"} == expected
    for figure in found["rows"].values():
        assert set(figure) <= set(languages)
        assert all(0 <= value <= 1 for each in figure.values() for value in each["values"])
    assert len(found["rows"]["worst_prompt/memorization_accuracy"]) == 7


def test_a_variant_of_which_nothing_fits_is_no_error(tmp_path):
    subject = subject_of(tmp_path, qa_items(3, ("en", "sw")), ["en", "sw"], max_seq_length=512)
    subject.max_seq_length = max(map(len, subject.datasets["forget"]["input_ids"]))
    found = prompts(subject).as_json()
    assert not any(name.startswith("primed/") for name in found["rows"])
    assert any(note.startswith("primed: 6 of 6 prompts were left out") for note in found["notes"])
    assert len(found["rows"]["worst_prompt/extraction_strength"]["en"]["values"]) == 3
