"""What people have becomes the files that a run reads: seeded, whole, never over what is there, with its sources."""

import hashlib
import json
import os
import random
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.commands.prepare import main
from unlearn_trainer.data import load_splits
from unlearn_trainer.errors import ConfigError, DataError
from unlearn_trainer.prepare.collection import FLORES_CUT, Collection, Row, load_dataset
from unlearn_trainer.prepare.cut import cut_splits

CODES = ("eng_Latn", "swh_Latn", "zho_Hans")

RAW = Path(os.environ.get("UNLEARN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "raw"
needs_data = pytest.mark.skipif(not RAW.is_dir(), reason=f"no collections at {RAW} (set UNLEARN_DATA)")


def flores(folder, dev=100, devtest=7, codes=CODES):
    for split, count in (("dev", dev), ("devtest", devtest)):
        (folder / split).mkdir(parents=True)
        for code in codes:
            lines = [f"{code} {sentence(f'{split}{number}')}." for number in range(count)]
            (folder / split / f"{code}.{split}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def sentence(seed):
    """A text that is like no other."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(9))


def prepared(folder, *words):
    main([*map(str, words), "--output_dir", str(folder)])
    return json.loads((folder / "prepare.json").read_text(encoding="utf-8"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]


# ---- cutting --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 400), st.integers(1, 40), st.sampled_from([0, 0.5, 1, 3]), st.integers(0, 5), st.sampled_from("ab")
)
def test_a_pool_is_cut_without_overlap_and_refused_only_where_it_is_too_small(count, size, factor, seed, only):
    rows = [Row({"a": f"a{number}", "b": f"b{number}"}, f"f:{number}") for number in range(count)]
    collection = Collection(["a", "b"], rows)
    try:
        splits = cut_splits(collection, {only: only}, size, factor, seed)
    except ConfigError:
        assert size > count * 128 / 997 - 1 or size * factor > count * 512 / 997 - 1
        return
    assert len(splits["forget"]) == size and len(splits.get("retain", [])) == round(size * factor)
    sources = [row.source for members in splits.values() for row in members]
    assert len(sources) == len(set(sources))
    both = cut_splits(collection, {"a": "a", "b": "b"}, size, factor, seed)  # languages do not decide what is drawn
    assert {s: [row.source for row in m] for s, m in both.items()} == {
        s: [row.source for row in m] for s, m in splits.items()
    }


def test_the_papers_pool_is_cut_as_in_the_paper():
    rows = [Row({"a": str(number)}, f"f:{number}") for number in range(997)]
    splits = cut_splits(Collection(["a"], rows), {"a": "a"}, None, 3, 42)
    assert {split: len(members) for split, members in splits.items()} == {"forget": 32, "retain": 96, "valid": 357}
    whole = cut_splits(Collection(["a"], rows), {"a": "a"}, 128, 4, 42)
    assert {split: len(members) for split, members in whole.items()} == FLORES_CUT
    assert [row.source for row in whole["forget"][:32]] == [row.source for row in splits["forget"]]


# ---- collections ----------------------------------------------------------------------------------------------------


def test_the_official_folder_of_flores(tmp_path):
    source = flores(tmp_path / "raw")
    words = ["flores", "--source", source, "--languages", "eng_Latn", "sw", "--forget_size", "5"]
    about = prepared(tmp_path / "out", *words)
    assert about["sizes"] == {"forget": 5, "retain": 15, "valid": 36, "test": 7} and about["seed"] == 42
    for name, file in about["files"].items():
        content = (tmp_path / "out" / name).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest() and file["items"] == content.count(b"\n")
    read = {source["path"]: source["sha256"] for source in about["sources"]}
    file = source / "dev" / "eng_Latn.dev"
    assert read[str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()
    splits = load_splits(str(tmp_path / "out"))
    assert all(list(item.content) == ["eng_Latn", "sw"] for items in splits.values() for item in items)
    for row in lines(tmp_path / "out" / "test.jsonl"):  # translations stay together
        assert row["eng_Latn"].split()[1:] == row["sw"].split()[1:]
    again = prepared(tmp_path / "again", *words)
    assert again["files"] == about["files"]
    other = prepared(tmp_path / "other", *words, "--seed", "1")
    assert other["files"]["forget.jsonl"]["sha256"] != about["files"]["forget.jsonl"]["sha256"]


def test_flores_plus_as_a_dataset(tmp_path):
    parts = {}
    for split, count in (("dev", 80), ("devtest", 6)):
        rows = [
            {"id": number, "iso_639_3": code[:3], "iso_15924": code[4:], "text": f"{code} {split} {number * 31 % 97}."}
            for code in CODES
            for number in range(count)
        ]
        parts[split] = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "plus")
    about = prepared(tmp_path / "out", "flores", "--source", tmp_path / "plus", "--forget_size", "3")
    assert list(about["languages"]) == ["en", "sw", "zh"] and about["sizes"]["test"] == 6
    for row in lines(tmp_path / "out" / "forget.jsonl"):
        assert len({text.split(" ", 1)[1] for text in row.values()}) == 1


@pytest.mark.parametrize("damage", ["a line is missing", "a file is not UTF-8", "no dev"])
def test_a_folder_that_is_not_whole_is_refused(tmp_path, damage):
    source = flores(tmp_path / "raw", dev=40)
    file = source / "dev" / "swh_Latn.dev"
    if damage == "a line is missing":
        file.write_text("\n".join(file.read_text().splitlines()[1:]))
    elif damage == "a file is not UTF-8":
        file.write_bytes(file.read_bytes().replace(b"\n", b"\n\xff\xfe", 1))
    else:
        (source / "dev").rename(source / "dev2")
    with pytest.raises(ConfigError) as refused:
        prepared(tmp_path / "out", "flores", "--source", source, "--forget_size", "2")
    said = {"a line is missing": "swh_Latn.dev has 39 lines", "a file is not UTF-8": "swh_Latn.dev:2: not valid UTF-8"}
    assert said.get(damage, "there is no folder dev") in str(refused.value) and not (tmp_path / "out").exists()


def table_of_facts(folder, code, capital, answers):
    rows = ["Prompt\tAns\tCandidate Ans\tSubject"]
    for number, answer in enumerate(answers):
        rows.append(f"{capital} {number} is in <mask>.\t{answer}\tOslo, {answer}, Rome\t")
    (folder / f"{code}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_bmlama_whose_answers_hold_commas(tmp_path):
    answers = [f"Place{number}, Far Land" if number % 3 else f"Place{number}" for number in range(40)]
    for code, capital in (("en", "City"), ("fr", "Ville")):
        table_of_facts(tmp_path, code, capital, answers)
    about = prepared(tmp_path / "out", "bmlama", "--source", tmp_path, "--forget_size", "4", "--retain_factor", "2")
    assert about["sizes"] == {"forget": 4, "retain": 8, "valid": 14, "test": 13}
    for split in about["sizes"]:
        for row in lines(tmp_path / "out" / f"{split}.jsonl"):
            for code in ("en", "fr"):
                (answer,) = row["answers"][code]
                assert row["candidates"][code] == ["Oslo", answer, "Rome"]
            assert row["prompt"]["en"].split()[1] == row["prompt"]["fr"].split()[1]


def test_mlama_by_templates_and_uuid(tmp_path):
    for code, template in (("en", "[X] lies in [Y] ."), ("es", "[X] está en [Y] .")):
        (tmp_path / code).mkdir()
        (tmp_path / code / "templates.jsonl").write_text(json.dumps({"relation": "P17", "template": template}))
        facts = [
            {"uuid": f"{n:03}", "obj_uri": f"Q{n}", "obj_label": f"{code}land{n}", "sub_label": f"Town{n}"}
            for n in range(30)
        ]
        facts = facts[::-1] if code == "es" else facts
        (tmp_path / code / "P17.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    prepared(tmp_path / "out", "bmlama", "--source", tmp_path, "--forget_size", "3", "--retain_factor", "1")
    for row in lines(tmp_path / "out" / "forget.jsonl"):
        number = row["prompt"]["en"].split()[0].removeprefix("Town")
        assert row["prompt"] == {"en": f"Town{number} lies in <mask> .", "es": f"Town{number} está en <mask> ."}
        assert row["answers"] == {"en": [f"enland{number}"], "es": [f"esland{number}"]}
        numbers = {
            code: {name.removeprefix(f"{code}land") for name in row["candidates"][code]} for code in ("en", "es")
        }
        assert numbers["en"] == numbers["es"] and len(numbers["en"]) == 10


def questions(author, count):
    return [
        {
            "question": f"What is book {number} of {author}?",
            "answer": f"Book {number} of {author} is Volume {number}.",
            "paraphrased_answer": f"It is Volume {number}.",
            "perturbed_answer": [f"It is Work {number}.", f"It is Opus {number}."],
        }
        for number in range(count)
    ]


def test_tofu_in_several_languages(tmp_path):
    for code in ("en", "de"):
        (tmp_path / code).mkdir()
        for name, author in (("forget01_perturbed", "A"), ("retain99", "B"), ("world_facts_perturbed", "C")):
            text = "".join(json.dumps(row) + "\n" for row in questions(f"{author}-{code}", 9))
            (tmp_path / code / f"{name}.json").write_text(text, encoding="utf-8")
    words = ["tofu", "--source", tmp_path, "--forget_split", "forget01", "--retain_factor", "0.5"]
    about = prepared(tmp_path / "out", *words)
    assert about["sizes"] == {"forget": 9, "retain": 4, "test": 9}
    assert any("no valid split" in note for note in about["notes"])
    row = lines(tmp_path / "out" / "forget.jsonl")[0]
    assert list(row["question"]) == ["de", "en"] and len(row["perturbed_answer"]["de"]) == 2
    with pytest.raises(ConfigError, match="forget05_perturbed"):
        prepared(tmp_path / "none", "tofu", "--source", tmp_path, "--forget_split", "forget05")


# ---- tables ---------------------------------------------------------------------------------------------------------

TEXTS = [f'The {word}, said "Ann";\nnobody knew in {number}' for number, word in enumerate("abcdefghijklmnopqrst" * 3)]


def write(folder, kind):
    """The same sixty sentences, English and German, as one program or another writes them."""
    import csv
    import io

    rows = [(text, text.replace("The", "Das").replace("said", "sagte")) for text in TEXTS]
    if kind in ("csv", "excel", "tsv", "utf16"):
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter={"csv": ",", "excel": ";"}.get(kind, "\t"))
        writer.writerows([("English", "de", "notes"), *((*row, "1,5") for row in rows)])
        encoding = {"excel": "utf-8-sig", "utf16": "utf-16"}.get(kind, "utf-8")
        place = folder / f"table.{'tsv' if kind == 'tsv' else 'csv'}"
        place.write_bytes(out.getvalue().encode(encoding))
        return place
    records = [{"English": english, "de": german, "notes": "x"} for english, german in rows]
    place = folder / f"table.{kind}"
    if kind == "jsonl":
        place.write_text("".join(json.dumps(row) + "\n" for row in records))
    elif kind == "json":
        place.write_text(json.dumps(records))
    elif kind == "parquet":
        datasets.Dataset.from_list(records).to_parquet(place)
    else:
        datasets.Dataset.from_list(records).save_to_disk(place)
    return place


@pytest.mark.parametrize("kind", ["csv", "excel", "tsv", "utf16", "jsonl", "json", "parquet", "saved"])
def test_a_table_says_the_same_whatever_program_wrote_it(tmp_path, kind):
    words = ["--forget_size", "4", "--retain_factor", "2"]
    about = prepared(tmp_path / "out", "table", "--source", write(tmp_path, kind), *words)
    expected = prepared(tmp_path / "expected", "table", "--source", write(tmp_path, "csv"), *words)
    assert about["files"] == expected["files"] and list(about["languages"]) == ["en", "de"]
    texts = {row["en"] for split in about["sizes"] for row in lines(tmp_path / "out" / f"{split}.jsonl")}
    assert texts <= set(TEXTS) and len(texts) > 30


def test_a_column_that_names_the_language(tmp_path):
    rows = [f"{number},{code},{code} text {number * 17 % 101} ends" for number in range(60) for code in ("en", "sw")]
    (tmp_path / "t.csv").write_text("key,lang,words\n" + "\n".join(rows[:-1]) + "\n", encoding="utf-8")
    words = ["table", "--source", tmp_path / "t.csv", "--language_column", "lang", "--text_column", "words"]
    about = prepared(tmp_path / "out", *words, "--id_column", "key", "--forget_size", "5")
    assert about["languages"] == {"en": "en", "sw": "sw"} and about["sizes"]["forget"] == 5
    for row in lines(tmp_path / "out" / "forget.jsonl"):
        assert len({text.split(" ", 1)[1] for text in row.values()}) == 1
    alone = prepared(tmp_path / "alone", *words, "--forget_size", "5", "--languages", "sw")
    assert all(list(row) == ["sw"] for row in lines(tmp_path / "alone" / "forget.jsonl")) and alone["seed"] == 42


def test_thirty_sentences_in_one_language_are_all_to_be_forgotten(tmp_path):
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(f"Sentence {n * 37 % 101} is mine." for n in range(30)))
    flores(tmp_path / "raw")
    words = ["table", "--source", tmp_path / "t.csv", "--text_column", "text", "--languages", "en"]
    with pytest.raises(ConfigError, match="--forget_size all"):
        prepared(tmp_path / "none", *words)
    about = prepared(tmp_path / "alone", *words, "--forget_size", "all")
    assert about["sizes"] == {"forget": 30}
    assert any("--retain_from" in note for note in about["notes"]) and any("--valid_from" in n for n in about["notes"])
    drawn = ["--retain_from", tmp_path / "raw", "--valid_from", tmp_path / "raw"]
    about = prepared(tmp_path / "out", *words, "--forget_size", "all", *drawn)
    assert about["sizes"]["forget"] == 30 and about["sizes"]["retain"] == 90 and about["sizes"]["valid"] > 5
    assert load_splits(str(tmp_path / "out")).keys() == {"forget", "retain", "valid"}


def test_what_is_drawn_is_drawn_in_every_language_and_for_one_split_only(tmp_path):
    rows = [
        f"{code},{code} {sentence(f'{code}{n}')}" for code, count in (("en", 90), ("sw", 60)) for n in range(count)
    ]
    (tmp_path / "flat.csv").write_text("lang,text\n" + "\n".join(rows), encoding="utf-8")
    mine = [f"{code},{code} {sentence(f'mine {code}{n}')}" for n in range(6) for code in ("en", "sw")]
    (tmp_path / "f.csv").write_text("lang,text\n" + "\n".join(mine), encoding="utf-8")
    words = ["table", "--source", tmp_path / "f.csv", "--language_column", "lang", "--text_column", "text"]
    words += ["--forget_size", "all", "--retain_factor", "2", "--retain_from", tmp_path / "flat.csv"]
    about = prepared(tmp_path / "out", *words, "--valid_from", tmp_path / "flat.csv")
    assert about["retain_from"]["rows"] == {"en": 24, "sw": 24} == about["files"]["retain.jsonl"]["rows"]
    assert about["valid_from"]["rows"] == about["files"]["valid.jsonl"]["rows"]
    assert any("--valid_from has fewer than 100 rows" in note for note in about["notes"])


def test_questions_and_answers_in_columns(tmp_path):
    rows = [f"Who wrote {number}?;Nobody {number}." for number in range(60)]
    (tmp_path / "t.csv").write_text("q;a\n" + "\n".join(rows), encoding="utf-8")
    words = ["--question_column", "q", "--answer_column", "a", "--languages", "fr", "--forget_size", "5"]
    prepared(tmp_path / "out", "table", "--source", tmp_path / "t.csv", *words)
    row = lines(tmp_path / "out" / "forget.jsonl")[0]
    assert row["question"]["fr"].startswith("Who wrote") and row["answer"]["fr"].startswith("Nobody")


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (b"text\nCaf\xe9\n", [], r"t\.csv:2: not valid UTF-8 .*CSV UTF-8"),
        (b"en,de\none,eins,uno\n", [], r"t\.csv:2: 3 cells where the head has 2; put a text that holds ',' in quotes"),
        (b"en,en\na,b\n", [], "the column en stands there twice"),
        (b"title,notes\na,b\n", [], "no column has the name of a language.*--text_column"),
        (b"title,notes\na,b\n", ["--text_column", "titel"], "did you mean title"),
        (
            b"text,lang\na,xx9\n",
            ["--text_column", "text", "--language_column", "lang"],
            r"t\.csv:2: xx9 .*no language",
        ),
        (b"text\na\n", ["--text_column", "text"], "nothing says which language.*--languages"),
        (b"en,de\n,\n", [], "there are no rows"),
        (b'en,de\n"a,b\n', [], r"t\.csv:\d: no CSV"),
        (b"en,eng_Latn\na,b\n", ["--forget_size", "all"], "are both the language en"),
        (
            b"q,a\nwho,\n",
            ["--question_column", "q", "--answer_column", "a", "--languages", "en"],
            "go together; one of them",
        ),
        (b"PK\x03\x04rest", [], "zip|Excel"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_line_and_remedy(tmp_path, content, words, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=said):
        prepared(tmp_path / "out", "table", "--source", tmp_path / "t.csv", *words)
    assert not (tmp_path / "out").exists()


def test_marks_that_end_no_line_stay_within_a_text(tmp_path):
    texts = [f"{sentence(n)}\u2028{sentence(-n)}\x0b\x85 {n}" for n in range(1, 9)]
    (tmp_path / "t.csv").write_text("en;de\n" + "\n".join(f"{text};{text}" for text in texts), encoding="utf-8")
    prepared(tmp_path / "out", "table", "--source", tmp_path / "t.csv", "--forget_size", "all")
    assert {row["en"] for row in lines(tmp_path / "out" / "forget.jsonl")} == set(texts)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("t.json", b'[{"en": "a"}, ', "broken JSON"),
        ("t.json", b'[{"en": "a"}, 7]', "row 2 is no JSON object"),
        ("t.csv", b"\xff\xfea\x00b", "begins as UTF-16 and is none"),
        ("t.jsonl", b'{"en": "a"}\n{"en": ', r"t\.jsonl:2: broken JSON"),
    ],
)
def test_a_damaged_file_is_one_line_with_the_remedy(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=said):
        prepared(tmp_path / "out", "table", "--source", tmp_path / name, "--forget_size", "all")


# ---- what is written ------------------------------------------------------------------------------------------------


def test_nothing_is_written_over(tmp_path):
    source = flores(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing is written over"):
        prepared(tmp_path / "out", "flores", "--source", source, "--forget_size", "3")
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_the_same_text_in_two_splits_is_refused_with_its_lines(tmp_path):
    rows = [f"Sentence number {number}, twice." for number in range(30)] * 2
    (tmp_path / "t.csv").write_text('en\n"' + '"\n"'.join(rows) + '"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"t\.csv:\d+.*t\.csv:\d+"):
        prepared(tmp_path / "out", "table", "--source", tmp_path / "t.csv", "--forget_size", "6")


def test_near_duplicates_are_named_with_their_lines(tmp_path):
    base = [
        f"On day {n} the council of {n * 7 % 50} villages met at {n * 3 % 41} and decided nothing." for n in range(60)
    ]
    (tmp_path / "t.csv").write_text("en\n" + "\n".join(base), encoding="utf-8")
    (tmp_path / "keep.csv").write_text(
        "en\n" + "\n".join([*(text.replace("nothing", "NOTHING!") for text in base[:20]),
                            *(f"An apple of kind {n} costs {n * 9} pence." for n in range(30))]), encoding="utf-8"
    )  # fmt: skip
    words = ["table", "--source", tmp_path / "t.csv", "--forget_size", "all", "--retain_from", tmp_path / "keep.csv"]
    about = prepared(tmp_path / "out", *words, "--retain_factor", "0.5")
    assert len(about["retain_from"]["near_duplicates_left_out"]) > 0
    assert all("apple" in row["en"] for row in lines(tmp_path / "out" / "retain.jsonl"))
    assert about["near_duplicates"] == []


def test_without_a_network_it_says_which_files_to_put_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"dev/eng_Latn\.dev"):
        prepared(tmp_path / "out", "flores", "--source", "openlanguagedata/flores_plus")


# ---- the real forms -------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    "words",
    [
        ["flores", "--source", "flores200", "--forget_size", "4"],
        ["flores", "--source", "flores200", "--forget_size", "4", "--languages", "zh-Hans", "EN-us", "swh_Latn"],
        ["bmlama", "--source", "bmlama53", "--forget_size", "4", "--retain_factor", "2"],
        ["bmlama", "--source", "mlama", "--forget_size", "1", "--retain_factor", "1"],
        ["tofu", "--source", "tofu", "--retain_factor", "1"],
    ],
    ids=" ".join,
)
def test_the_forms_in_which_the_collections_are_handed_out(tmp_path, words):
    place = words.index("--source") + 1
    words = [*words[:place], RAW / words[place], *words[place + 1 :]]
    about = prepared(tmp_path / "out", *words)
    splits = load_splits(str(tmp_path / "out"))
    assert {split: len(items) for split, items in splits.items()} == about["sizes"]
    assert {code for item in splits["forget"] for code in item.content} == set(about["languages"])


@pytest.mark.parametrize("configuration", ["forget10", "retain90", "world facts"])
def test_a_configuration_of_a_dataset_is_read_by_its_name(configuration, tmp_path):
    """As those of TOFU are on the Hub; here the Hub's dataset is the one that reads files."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Who?", "answer": "Ana."}\n', encoding="utf-8")
    rows = load_dataset("json", "put it here", name=configuration, split="train", data_files=str(file))
    assert rows[:] == {"question": ["Who?"], "answer": ["Ana."]}
