"""Rows, splits and their sources: what is accepted, what is refused, and that each refusal names place and remedy."""

import json
import logging
import os
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_trainer.data import check_splits, load_splits, parse_line, read_jsonl
from unlearn_trainer.errors import ConfigError, DataError

DATA = Path(os.environ.get("UNLEARN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set UNLEARN_DATA)")

TEXT = {"en": "The sky is blue.", "sw": "Anga ni la buluu."}
CLOZE = {
    "prompt": {"en": "<mask> is the capital.", "sw": "Mji mkuu ni <mask>."},
    "answers": {"en": ["Paris"], "sw": ["Parisi"]},
    "candidates": {"en": ["Rome", "Paris"], "sw": ["Roma", "Parisi"]},
}
QA = {"question": {"en": "Who?"}, "answer": {"en": "Ada."}}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def items(tmp_path, rows, name="rows.jsonl"):
    return read_jsonl(write(tmp_path / name, rows))


def without(row, key):
    return {other: value for other, value in row.items() if other != key}


def test_kinds_are_recognised_by_their_keys(tmp_path):
    read = items(tmp_path, [TEXT, CLOZE, QA, {"text": "hej", "language": "sv"}])
    assert [item.kind for item in read] == ["text", "cloze", "qa", "text"]
    assert [item.source for item in read] == [f"{tmp_path / 'rows.jsonl'}:{line}" for line in (1, 2, 3, 4)]
    assert [list(item.content) for item in read] == [["en", "sw"], ["en", "sw"], ["en"], ["sv"]]


def test_complete_texts_and_what_is_labelled():
    cloze = parse_line(json.dumps(CLOZE), "f:1").content
    assert cloze["en"].target == ("Paris is the capital.", (0, 5))
    assert cloze["sw"].target == ("Mji mkuu ni Parisi.", (12, 18))
    assert cloze["sw"].choices() == [
        (("Mji mkuu ni Roma.", (12, 16)), False),
        (("Mji mkuu ni Parisi.", (12, 18)), True),
    ]
    qa = parse_line(json.dumps(QA), "f:1").content["en"]
    assert qa.target == ("Who? Ada.", (5, 9)) and qa.choices() == []
    assert parse_line(json.dumps(TEXT), "f:1").content["en"].target == ("The sky is blue.", None)


def test_several_answers_are_all_right_and_the_first_is_trained():
    row = CLOZE | {"answers": {"en": ["Rome", "Paris"], "sw": ["Roma"]}}
    content = parse_line(json.dumps(row), "f:1").content["en"]
    assert content.target.text == "Rome is the capital."
    assert [right for _, right in content.choices()] == [True, True]


@pytest.mark.parametrize("paraphrase", [True, False])
def test_qa_choices_put_one_right_answer_against_the_perturbed_ones(paraphrase):
    row = QA | {"perturbed_answer": {"en": ["Bob.", "Eve."]}}
    if paraphrase:
        row["paraphrased_answer"] = {"en": "It was Ada."}
    choices = parse_line(json.dumps(row), "f:1").content["en"].choices()
    right = "Who? It was Ada." if paraphrase else "Who? Ada."
    assert [(passage.text, correct) for passage, correct in choices] == [
        (right, True),
        ("Who? Bob.", False),
        ("Who? Eve.", False),
    ]


def test_flat_rows_with_one_id_become_one_item(tmp_path):
    rows = [
        {"text": "one", "language": "en", "id": 7},
        {"text": "other", "language": "en"},
        {"text": "moja", "language": "sw", "id": 7},
        {"text": "satu", "language": "id"},
    ]
    merged, *rest = items(tmp_path, rows)
    assert {language: text.text for language, text in merged.content.items()} == {"en": "one", "sw": "moja"}
    assert merged.id == "7" and merged.where("en").endswith(":1") and merged.where("sw").endswith(":3")
    assert [list(item.content) for item in rest] == [["en"], ["id"]]


def test_cloze_and_qa_rows_with_one_id_become_one_item(tmp_path):
    def part(row, language, **more):
        return {key: {language: value[language]} for key, value in row.items()} | more

    rows = [part(CLOZE, "en", id=1), QA | {"id": "q"}, part(CLOZE, "sw", id=1)]
    cloze, qa = items(tmp_path, rows)
    assert (cloze.kind, cloze.id, list(cloze.content)) == ("cloze", "1", ["en", "sw"])
    assert cloze.where("en").endswith(":1") and cloze.where("sw").endswith(":3")
    assert (qa.kind, qa.id, list(qa.content)) == ("qa", "q", ["en"])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: id '1' of a text row is also that of a cloze row .*:1\)"):
        items(tmp_path, [CLOZE | {"id": 1}, {"text": "hej", "language": "sv", "id": 1}])


IDENTIFIERS = {
    "two rows": [TEXT | {"id": "forget-doc"}, TEXT | {"id": "forget-text"}],
    "one row with a digit": [TEXT | {"id": "forget-3-doc"}],
    "beside a script without spaces": [{"zh": "\u5929\u7a7a", "id": "7"}],
    "only in some rows": [{"en": "The sky is blue."}, TEXT | {"id": "3f"}],
}
INDONESIAN = {
    "a sentence": [TEXT | {"id": "Langit itu biru."}],
    "words and a sentence": [TEXT | {"id": "Langit"}, TEXT | {"id": "Langit itu biru."}],
    "one word": [TEXT | {"id": "Langit"}],
    "a list of words": [{"en": "sky", "id": "langit"}, {"en": "sea", "id": "laut"}],
    "flat rows": [
        *({"text": text, "language": "en", "id": text[0]} for text in ("1 the sky", "2 the sea")),
        *({"text": text, "language": "id", "id": text[0]} for text in ("1langit", "2laut")),
    ],
    "nothing beside it": [{"id": "langit"}, {"id": "laut"}],
}


@pytest.mark.parametrize("rows", IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_identifiers_are_not_taken_for_indonesian(tmp_path, rows):
    read = items(tmp_path, rows)
    with pytest.raises(DataError) as error:
        check_splits({"forget": read}, None)
    assert str(error.value).startswith(next(item.source for item in read if "id" in item.content))
    for word in ("Indonesian", "identifier out of the row", '"language": "en"', "'ind'"):
        assert word in str(error.value)
    if "en" in read[0].content:
        assert check_splits({"forget": read}, ["en"]) == ["en"]  # nothing reads them


@pytest.mark.parametrize("rows", INDONESIAN.values(), ids=INDONESIAN)
def test_id_is_the_code_of_indonesian(tmp_path, rows, caplog):
    assert "id" in check_splits({"forget": items(tmp_path, rows)}, None)
    assert "taken as a language" not in caplog.text


def test_identifiers_under_what_may_be_a_language_code_are_warned_of_once_a_split(tmp_path, caplog):
    rows = [TEXT | {"url": "https://a.org/x", "doc": f"d-{n}", "eng_Latn": f"Sky {n}."} for n in range(3)]
    check_splits({"forget": items(tmp_path, rows)}, ["sw", "url", "doc", "eng_Latn"])
    told = [record.getMessage() for record in caplog.records if "as a language" in record.getMessage()]
    assert len(told) == 2
    assert "rows.jsonl:1: 'url' is taken as a language" in told[0] and "https://a.org/x" not in told[0]
    assert "'doc'" in told[1]


def test_blank_lines_byte_order_mark_and_line_separators_inside_text(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes('\ufeff{"en": "a\u2028b"}\r\n\n{"en": "c"}'.encode())
    read = read_jsonl(path)
    assert [item.content["en"].text for item in read] == ["a\u2028b", "c"]
    assert read[1].source == f"{path}:3"


REFUSED = {
    "broken JSON": ('{"en": "a"', ["broken JSON", "column"]),
    "not an object": ('["en"]', ["JSON object"]),
    "empty object": ("{}", ["JSON object"]),
    "repeated key": ('{"en": "a", "en": "b"}', ["'en'", "twice"]),
    "half a surrogate": ('{"en": "a\\ud800"}', ["'en'", "surrogate"]),
    "empty text": (TEXT | {"sw": "  "}, ["'sw'", "empty"]),
    "null": (TEXT | {"sw": None}, ["'sw'", "null", "leave out"]),
    "number": (TEXT | {"sw": 3}, ["'sw'", "string"]),
    "integer identifier of a text row": (TEXT | {"id": 1}, ["is no text", "Indonesian", "identifier out of the"]),
    "column of a text row": (TEXT | {"source": "news"}, ["'source'", "language code", "take out of the row"]),
    "misspelled key of a text row": ({"txet": "a"}, ["'txet'", "did you mean 'text'"]),
    "misspelled key of a cloze row": (without(CLOZE, "answers") | {"answer_s": {}}, ["'answer_s'", "'answers'"]),
    "misspelled keys of a qa row": ({"quesiton": {"en": "a"}, "anwser": {"en": "b"}}, ["'quesiton'", "'question'"]),
    "misspelled key of a flat row": ({"text": "a", "lang": "en"}, ["'lang'", "'language'"]),
    "flat row without a language": ({"text": "a"}, ["'language'"]),
    "flat row with a language that is no code": ({"text": "a", "language": "English"}, ["'English'", "zh-Hans"]),
    "flat row with an odd id": ({"text": "a", "language": "en", "id": [1]}, ["'id'", "string or an integer"]),
    "qa row with an odd id": (QA | {"id": {"en": "a"}}, ["'id'", "string or an integer"]),
    "cloze without answers": (without(CLOZE, "answers"), ["'answers'"]),
    "qa without an answer": (without(QA, "answer"), ["'answer'"]),
    "prompt that is no object": (CLOZE | {"prompt": "a <mask>"}, ["'prompt'", "object"]),
    "language that is no code": (QA | {"answer": {"English": "a"}}, ["'English'", "'answer'"]),
    "answers that are no list": (CLOZE | {"answers": {"en": "Paris", "sw": ["a"]}}, ["'en'", "'answers'", "list"]),
    "no answers": (CLOZE | {"answers": {"en": [], "sw": ["Parisi"]}}, ["'en'", "'answers'", "list"]),
    "empty candidate": (CLOZE | {"candidates": {"en": ["Paris", ""], "sw": ["Parisi"]}}, ["'en'", "empty"]),
    "answer not a candidate": (
        CLOZE | {"candidates": {"en": ["a"], "sw": ["Parisi"]}},
        ["'en'", "answer 1", "add it"],
    ),
    "no mask": (CLOZE | {"prompt": {"en": "a", "sw": "<mask>"}}, ["'en'", "<mask>", "no"]),
    "two masks": (CLOZE | {"prompt": {"en": "<mask> <mask>", "sw": "<mask>"}}, ["'en'", "<mask>", "2"]),
    "language without answers": (CLOZE | {"answers": {"en": ["Paris"]}}, ["'sw'", "'prompt'", "'answers'"]),
    "language without a prompt": (CLOZE | {"prompt": {"en": "<mask>"}}, ["'sw'", "'prompt'", "'answers'"]),
    "qa language in one field": (QA | {"paraphrased_answer": {"sw": "a"}}, ["paraphrased_answer", "leave the"]),
}


@pytest.mark.parametrize(("line", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_rows_name_file_line_and_remedy(tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"en": "good"}\n' + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}:2: ")
    for word in said:
        assert word in str(error.value)


def test_not_utf8_and_unreadable(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"en": "ok"}\n{"fr": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl:2: not valid UTF-8"):
        read_jsonl(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_jsonl(tmp_path)


def test_same_id_and_language_twice_names_both_lines(tmp_path):
    rows = [{"text": text, "language": "en", "id": "a"} for text in ("one", "two")]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: id 'a' already has a text in 'en' \(.*rows\.jsonl:1\)"):
        items(tmp_path, rows)


KEYS = st.sampled_from(["en", "sw", "prompt", "answers", "candidates", "question", "answer", "text", "language", "id"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["en", "a <mask>", "a"])


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)))
def test_any_json_is_an_item_or_a_data_error(value):
    try:
        item = parse_line(json.dumps(value), "f:1")
    except DataError as error:
        assert str(error).startswith("f:1: ")
    else:
        assert item.content and all(content.target.text.strip() for content in item.content.values())


# Checks across splits


def test_languages_default_to_those_of_forget_that_are_not_held_out(tmp_path):
    splits = {"forget": items(tmp_path, [{"sw": "a", "en": "b"}, {"fr": "c"}]), "retain": None}
    assert check_splits(splits, None) == ["sw", "en", "fr"]
    assert check_splits(splits, None, ["en"]) == ["sw", "fr"]
    assert check_splits(splits, ["fr"], ["sw"]) == ["fr"]


@pytest.mark.parametrize(
    ("languages", "heldout", "error", "said"),
    [
        (["en", "xx"], [], DataError, ["'xx'", "--languages", "en, sw"]),
        (["en"], ["xx"], DataError, ["'xx'", "--heldout_languages", "en, sw"]),
        (["en", "sw"], ["sw"], ConfigError, ["'sw'", "more than once"]),
        (["en", "en"], [], ConfigError, ["'en'", "more than once"]),
        ([], [], ConfigError, ["--languages"]),
        (None, ["en", "sw"], ConfigError, ["--heldout_languages"]),
    ],
)
def test_languages_that_cannot_be_used(tmp_path, languages, heldout, error, said):
    with pytest.raises(error) as raised:
        check_splits({"forget": items(tmp_path, [TEXT])}, languages, heldout)
    for word in said:
        assert word in str(raised.value)


def test_splits_that_are_missing_or_empty(tmp_path):
    forget = items(tmp_path, [TEXT])
    with pytest.raises(DataError, match="--forget_file"):
        check_splits({"retain": forget}, None)
    with pytest.raises(DataError, match=r"forget split is empty.*--forget_file"):
        check_splits({"forget": []}, None)
    with pytest.raises(DataError, match=r"valid split is empty.*--valid_file"):
        check_splits({"forget": forget, "valid": []}, None)
    with pytest.raises(DataError, match=r"valid split has no row in en, sw, only in fr"):
        check_splits({"forget": forget, "valid": items(tmp_path, [{"fr": "a"}])}, None)


@pytest.mark.parametrize("split", ["retain", "valid", "test"])
@pytest.mark.parametrize(
    ("forgotten", "other", "text"),
    [
        (TEXT, {"sw": "Anga  ni la buluu. ", "en": "x"}, "Anga"),
        (TEXT, {"text": "Anga ni la buluu.", "language": "en"}, "Anga"),
        ({"en": "caf\u00e9"}, {"en": "cafe\u0301"}, "caf"),
        (CLOZE, {"en": "Paris is the capital."}, "Paris is"),
        (
            CLOZE,
            {"prompt": {"en": "Paris is <mask>."}, "answers": {"en": ["the capital"]}},
            "Paris is",
        ),
        (QA, {"question": {"en": "Who?"}, "answer": {"en": "Ada."}}, "Who? Ada."),
    ],
)
def test_forgotten_text_in_another_split_is_refused_with_both_places(tmp_path, split, forgotten, other, text):
    forget = items(tmp_path, [{"en": "first"}, forgotten], "forget.jsonl")
    rest = items(tmp_path, [{"en": "second"}, {"en": "third"}, other], "other.jsonl")
    for shown in (False, True):  # a log is no place for what shall be forgotten, unless that is asked for
        with pytest.raises(DataError) as error:
            check_splits({"forget": forget, split: rest}, None, show_texts=shown)
        place = f"other.jsonl:3: the '{'sw' if 'sw' in other else 'en'}' text"
        for word in (place, f"{split} split", "forget.jsonl:2"):
            assert word in str(error.value)
        assert (text in str(error.value)) == shown


def test_overlap_counts_only_in_languages_that_are_used(tmp_path):
    splits = {"forget": items(tmp_path, [TEXT]), "retain": items(tmp_path, [{"en": "x", "sw": TEXT["sw"]}])}
    check_splits(splits, ["en"])
    with pytest.raises(DataError):
        check_splits(splits, ["en"], ["sw"])


def test_shared_prompt_with_another_answer_is_counted_not_refused(tmp_path, caplog):
    other = CLOZE | {"answers": {"en": ["Rome"], "sw": ["Roma"]}}
    splits = {"forget": items(tmp_path, [CLOZE]), "retain": items(tmp_path, [TEXT, other], "retain.jsonl")}
    with caplog.at_level(logging.WARNING):
        check_splits(splits, None)
    assert "1 of 2 retain items share their prompt or question" in caplog.text


def test_texts_that_a_split_holds_twice_are_counted_by_language(tmp_path, caplog):
    twice = {"en": "The  sky is blue.", "sw": "Bahari ni ya buluu."}
    forget = items(tmp_path, [TEXT, {"en": "x"}, twice, {"text": "x", "language": "en"}, {"sw": "x"}], "forget.jsonl")
    check_splits({"forget": forget, "retain": items(tmp_path, [{"en": "y", "sw": "y"}])}, None)
    (told,) = [record.getMessage() for record in caplog.records]
    for word in ("forget split holds texts more than once", "(en: 2)", "forget.jsonl:3 repeats", "forget.jsonl:1 in"):
        assert word in told


def test_one_prompt_with_two_answers_is_no_repetition(tmp_path, caplog):
    other = CLOZE | {"answers": {"en": ["Rome"], "sw": ["Roma"]}}
    check_splits({"forget": items(tmp_path, [CLOZE, other])}, None)
    assert not caplog.records


def test_languages_that_forget_lacks_are_warned_of_unless_the_choice_was_made(tmp_path, caplog):
    forget, retain = items(tmp_path, [{"en": "x"}]), items(tmp_path, [TEXT | {"fr": "Le ciel.", "de": "Der Himmel."}])
    splits = {"forget": forget, "retain": retain, "valid": items(tmp_path, [{"en": "y", "zu": "z"}])}
    assert check_splits(splits, None, ["de"]) == ["en"]
    (told,) = [record.getMessage() for record in caplog.records]
    for word in ("rows in sw, fr, zu (of retain, valid) are not used", "forget split", "--heldout_languages"):
        assert word in told
    caplog.clear()
    check_splits(splits, ["en"])
    assert not caplog.records


def test_language_that_retain_lacks_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check_splits({"forget": items(tmp_path, [TEXT]), "retain": items(tmp_path, [{"en": "x"}])}, None)
    assert "'sw'" in caplog.text and "'en'" not in caplog.text


# Sources


def folder(tmp_path, *names):
    for name in names:
        write(tmp_path / name, [{"en": f"text of {name}"}])
    return str(tmp_path)


def texts(splits):
    return {split: [item.content["en"].text for item in rows] for split, rows in splits.items()}


def test_folder_layout(tmp_path):
    data = folder(tmp_path, "forget-32.jsonl", "retain.jsonl", "valid.jsonl", "test.jsonl", "notes.jsonl")
    assert texts(load_splits(data)) == {
        "forget": ["text of forget-32.jsonl"],
        "retain": ["text of retain.jsonl"],
        "valid": ["text of valid.jsonl"],
        "test": ["text of test.jsonl"],
    }


def test_several_files_for_one_split_must_be_picked_from(tmp_path):
    data = folder(tmp_path, "forget.jsonl", "retain-1.jsonl", "retain-2.jsonl")
    with pytest.raises(DataError, match=r"retain-1\.jsonl, retain-2\.jsonl; pick one with --retain_file"):
        load_splits(data)
    # A bare name means the folder's file.
    assert texts(load_splits(data, retain_file="retain-2.jsonl"))["retain"] == ["text of retain-2.jsonl"]


def test_bare_name_is_looked_up_in_the_folder_first_then_as_a_path(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    data = folder(tmp_path / "data", "forget.jsonl")
    write(tmp_path / "forget.jsonl", [{"en": "in the working directory"}])
    write(tmp_path / "extra.jsonl", [{"en": "extra"}])
    monkeypatch.chdir(tmp_path)
    loaded = load_splits(data, forget_file="forget.jsonl", valid_file="extra.jsonl")
    assert texts(loaded) == {"forget": ["text of forget.jsonl"], "valid": ["extra"]}
    assert texts(load_splits(forget_file="forget.jsonl")) == {"forget": ["in the working directory"]}


def test_paths_that_lead_nowhere(tmp_path):
    data = folder(tmp_path, "valid.jsonl")
    with pytest.raises(ConfigError, match=r"--data_dir or --forget_file"):
        load_splits()
    with pytest.raises(DataError, match=r"no forget\.jsonl.*only: valid\.jsonl.*--forget_file"):
        load_splits(data)
    with pytest.raises(DataError, match=r"--retain_file: there is no file nope\.jsonl.*valid\.jsonl"):
        load_splits(data, forget_file="valid.jsonl", retain_file="nope.jsonl")
    with pytest.raises(DataError, match=r"--forget_file: .* is a folder \(valid\.jsonl\).*--data_dir"):
        load_splits(forget_file=data)
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match=r"--test_file: .*inner is a folder \(no \.jsonl file\)"):
        load_splits(data, forget_file="valid.jsonl", test_file="inner")
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"test\.jsonl: the test split is empty.*--test_file"):
        load_splits(data, forget_file="valid.jsonl")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_splits(f"{data}/valid.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        load_splits(f"{data}/nowhere/at/all")


def test_hub_name_that_cannot_be_loaded_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"nobody/nothing .*Hugging Face Hub.*check the spelling"):
        load_splits("nobody/nothing")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve JSONL files under a Hub name: the network is replaced, reading and Arrow's filling with nulls are not."""

    load_dataset = datasets.load_dataset

    def serve(**splits):
        files = {split: str(write(tmp_path / f"hub-{split}.jsonl", rows)) for split, rows in splits.items()}
        loaded = load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
        monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)

    return serve


def test_hub_rows_go_through_the_same_parser(hub, tmp_path):
    english = {key: {"en": value["en"]} for key, value in CLOZE.items()}
    hub(forget=[CLOZE, english], retain=[english], validation=[CLOZE], extra=[CLOZE])
    loaded = load_splits("owner/name")
    assert list(loaded) == ["forget", "retain", "valid"]
    assert [list(item.content) for item in loaded["forget"]] == [["en", "sw"], ["en"]]
    assert loaded["forget"][1].source == "owner/name[forget]:1"
    assert loaded["valid"][0].source == "owner/name[validation]:0"
    write(tmp_path / "mine.jsonl", [TEXT])
    assert load_splits("owner/name", retain_file=str(tmp_path / "mine.jsonl"))["retain"][0].kind == "text"


def test_hub_rows_without_an_optional_key(hub, tmp_path):
    hub(forget=[QA | {"paraphrased_answer": {"en": "It was Ada."}}, QA, QA | {"paraphrased_answer": {}}])
    loaded = load_splits("owner/name")["forget"]
    assert [item.content["en"].paraphrased_answer for item in loaded] == ["It was Ada.", None, None]


def test_bad_hub_rows_and_splits(hub):
    hub(forget=[TEXT, {"en": " "}])
    with pytest.raises(DataError, match=r"owner/name\[forget\]:1: language 'en'.*empty"):
        load_splits("owner/name")
    hub(train=[TEXT])
    with pytest.raises(DataError, match=r"owner/name: .*train.*no split 'forget'"):
        load_splits("owner/name")


# Real data


@needs_data
@pytest.mark.parametrize(
    ("name", "files", "kind", "counts"),
    [
        ("flores", {"retain_file": "retain-32-x3.jsonl"}, "text", [32, 96, 357, 1012]),
        ("bmlama53", {"retain_file": "retain-32-x2.jsonl"}, "cloze", [32, 64, 1023, 1024]),
        ("tofu", {"forget_file": "forget01.jsonl", "test_file": "real_authors.jsonl"}, "qa", [40, 400, 100]),
    ],
)
def test_real_data_are_accepted_as_they_are(name, files, kind, counts, caplog):
    splits = load_splits(str(DATA / name), **files)
    assert [len(rows) for rows in splits.values()] == counts
    assert {item.kind for rows in splits.values() for item in rows} == {kind}
    with caplog.at_level(logging.WARNING):
        assert len(check_splits(splits, None)) == {"flores": 16, "bmlama53": 12, "tofu": 9}[name]
    assert not any(word in caplog.text for word in ("taken as a language", "not used"))
    assert ("test split holds texts more than once" in caplog.text) == (name == "bmlama53")
    assert ("9 of 64 retain items" in caplog.text) == (name == "bmlama53")


@needs_data
def test_real_folder_asks_which_retain_file():
    with pytest.raises(DataError, match=r"retain-32-x1\.jsonl, retain-32-x3\.jsonl"):
        load_splits(str(DATA / "flores"))
