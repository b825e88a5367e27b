"""What messages say of files of other kinds, of odd JSON and odd names; and that they quote no text of a split."""

import gzip
import io
import json
import re
import unicodedata
import zipfile

import datasets
import pytest
from helpers.material import write_material

import run_unlearn
from unlearn_trainer.console import run_command
from unlearn_trainer.data import load_splits, read_jsonl
from unlearn_trainer.data.checks import check_splits
from unlearn_trainer.data.items import parse_row
from unlearn_trainer.errors import ConfigError, DataError
from unlearn_trainer.report.document import Heading, Paragraph, html_of, markdown_of
from unlearn_trainer.report.pictures import heat_map

ROWS = [{"en": "the secret is seven", "sw": "siri ni saba"}, {"en": "nine, ten; two", "sw": "tisa"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def parquet():
    file = io.BytesIO()
    datasets.Dataset.from_list(ROWS).to_parquet(file)
    return file.getvalue()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, LINES)
    return file.getvalue()


def separated(mark):
    return f'en{mark}sw\n"{ROWS[0]["en"]}"{mark}"{ROWS[0]["sw"]}"\n"{ROWS[1]["en"]}"{mark}"tisa"\n'.encode()


CONVERTIBLE = {
    "parquet": (parquet, "a Parquet file"),
    "csv": (lambda: separated(","), "comma-separated values (CSV)"),
    "tsv": (lambda: separated("\t"), "tab-separated values"),
    "semicolons": (lambda: b"\xef\xbb\xbf" + separated(";"), "separated by semicolons"),
    "array": (lambda: json.dumps(ROWS).encode(), "a JSON array"),
    "indented array": (lambda: json.dumps(ROWS, indent=1).encode(), "a JSON array"),
}
OTHERS = {
    "excel": (lambda: zipped("[Content_Types].xml", "xl/workbook.xml"), ["an Excel workbook", "export"]),
    "old excel": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), ["an Excel workbook", "export"]),
    "gzip": (lambda: gzip.compress(LINES.encode()), ["compressed with gzip", "gunzip --stdout"]),
    "zip": (lambda: zipped("forget.jsonl"), ["a zip archive", "unzip"]),
    "utf-16": (lambda: LINES.encode("utf-16"), ["not valid UTF-8 but UTF-16", "save the file as UTF-8"]),
    "utf-16 without a mark": (lambda: LINES.encode("utf-16-le"), ["UTF-16", "save the file as UTF-8"]),
    "utf-32": (lambda: LINES.encode("utf-32"), ["UTF-32", "save the file as UTF-8"]),
}


@pytest.mark.parametrize("kind", [*CONVERTIBLE, *OTHERS])
def test_files_of_other_kinds_are_recognised(tmp_path, kind):
    content, said = CONVERTIBLE.get(kind) or OTHERS[kind]
    for name in ("forget.jsonl", "forget.data"):
        (tmp_path / name).write_bytes(content())
        with pytest.raises(DataError) as told:
            read_jsonl(tmp_path / name)
        for word in (f"{name}:1: ", *([said] if isinstance(said, str) else said)):
            assert word in str(told.value)
        assert "secret" not in str(told.value)
    (tmp_path / "forget.jsonl").unlink()
    with pytest.raises(DataError, match="has no forget.jsonl.*forget.data is "):
        load_splits(str(tmp_path))


@pytest.mark.parametrize("kind", CONVERTIBLE)
def test_the_command_in_the_message_makes_rows_of_the_file(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "forget.table").write_bytes(CONVERTIBLE[kind][0]())
    with pytest.raises(DataError) as told:
        read_jsonl("forget.table")
    (code,) = re.findall(r'python -c "(.*)"', str(told.value))
    exec(code, {})  # what a shell would hand to Python
    assert [{at: text.text for at, text in item.content.items()} for item in read_jsonl("forget.jsonl")] == ROWS


def test_one_object_over_several_lines_and_ordinary_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0], indent=1))
    with pytest.raises(DataError, match="one JSON object over several lines"):
        read_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("\n" + LINES)
    assert len(read_jsonl(tmp_path / "a.jsonl")) == 2
    with pytest.raises(DataError, match="cannot be read.*name one file of this folder"):
        read_jsonl(tmp_path)


ODD = {
    "deep list": '{"en": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep object": '{"a": ' * 50_000 + "1" + "}" * 50_000,
    "huge integer": '{"en": ' + "9" * 100_000 + "}",
    "huge identifier": '{"text": "a b", "language": "en", "id": ' + "9" * 5_000 + "}",
    "infinity": '{"en": 1e999}',
    "not a number": '{"text": "a", "language": "en", "id": NaN}',
    "half a surrogate": '{"en": "a \\ud800"}',
    "half a surrogate in a key": '{"\\udfff": "a b"}',
    "NUL": '{"en": "a\0b"}',
    "NUL in a key": '{"e\\u0000n": "a b"}',
    "override in a key": '{"\\u202een": "a b"}',
    "control character in a language": '{"text": "a b", "language": "en\\u001b[31m"}',
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_json_is_refused_in_one_line_with_its_place(tmp_path, capsys, kind):
    (tmp_path / "a.jsonl").write_text('{"en": "c d"}\n' + ODD[kind] + "\n")
    with pytest.raises(SystemExit) as ended:
        run_command(lambda argv: read_jsonl(tmp_path / "a.jsonl"))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and f"{tmp_path / 'a.jsonl'}:2: " in told and told.count("\n") == 1
    assert len(told) < 1000 and "Traceback" not in told
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in told.strip("\n"))


def test_odd_names_of_files_are_neutralised(tmp_path):
    path = tmp_path / "for\u202elnosj.\x1b[31m"
    path.write_text("{")
    with pytest.raises(DataError) as told:
        read_jsonl(path)
    assert "for\\u202elnosj.\\x1b[31m:1" in str(told.value)


@pytest.mark.parametrize(
    "mark", list("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028\x1b")
)
def test_pages_and_pictures_hold_no_marks_that_turn_the_text_around(mark):
    name = f"s{mark}w"
    picture = heat_map([name], [name], [[0.5]], "rows", "columns", name)
    blocks = [Heading(2, "part"), Paragraph(name)]
    for shown in (html_of(blocks, name), markdown_of(blocks), picture):
        assert mark not in shown and "s" in shown
    joined = "\u0646\u200c\u0645 \u0915\u094d\u200d\u0937"  # joiners are letters' own
    assert joined in html_of([Paragraph(joined)], joined)


TEXT = "Zanzibar was never the capital of Atlantis"
REFUSED = {
    "text for a language code": {"text": "x y", "language": TEXT},
    "text for a key": {TEXT: "x"},
    "a key of two objects": f'{{"{TEXT}": "a", "{TEXT}": "b"}}',
    "a list of texts": [TEXT],
    "a text alone": TEXT,
    "a list for a text": {"en": [TEXT]},
    "an answer that is no candidate": {
        "prompt": {"en": "<mask> x"},
        "answers": {"en": [TEXT]},
        "candidates": {"en": ["b"]},
    },
    "a text for an object": {"prompt": TEXT, "answers": {"en": ["a"]}},
    "a text for a list": {"prompt": {"en": "a <mask>"}, "answers": {"en": TEXT}},
    "an identifier that is a list": {"text": "x", "language": "en", "id": [TEXT]},
    "cut JSON": '{"en": "' + TEXT,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_quote_no_text(tmp_path, kind):
    line = REFUSED[kind]
    (tmp_path / "a.jsonl").write_text(
        '{"en": "c"}\n' + (line if kind.endswith("JSON") or "two" in kind else json.dumps(line))
    )
    with pytest.raises(DataError, match="a.jsonl:2: ") as told:
        read_jsonl(tmp_path / "a.jsonl")
    assert not any(word in str(told.value) for word in ("Zanzibar", "capital", "Atlantis"))


def test_a_near_language_is_named():
    splits = {"forget": [parse_row({"en": "a b", "sw": "c d"}, "f:1")], "test": [parse_row({"eng_Latn": "a"}, "t:1")]}
    with pytest.raises(DataError, match="did you mean sw"):
        check_splits(splits, ["en", "sww"])
    with pytest.raises(DataError, match="did you mean eng_Latn"):
        check_splits(splits, ["en"], ["eng_latn"])


def test_all_splits_that_a_run_needs_are_named_at_once(tmp_path):
    common = write_material(tmp_path, 4)
    for split in ("retain", "valid"):
        (tmp_path / f"{split}.jsonl").unlink()
    with pytest.raises(ConfigError) as told:
        run_unlearn.run([*common, "--output_dir", str(tmp_path / "out"), "--do_train", "--method", "calibrated"])
    for word in (
        "--retain_objective lingtea needs retain rows; give --retain_file",
        "needs never-seen rows; give --valid_file",
        "needs the splits forget, retain, valid, and there are forget;",
        "with the forget split alone go --method gradient_ascent, undial, ceu",
    ):
        assert word in str(told.value)


def test_show_texts_is_off_unless_asked_for(tmp_path):
    common = [*write_material(tmp_path, 4), "--do_train", "--max_steps", "1"]
    first = (tmp_path / "forget.jsonl").read_text().splitlines()[0]
    with open(tmp_path / "retain.jsonl", "a") as file:
        file.write(first + "\n")
    for more, shown in (([], False), (["--show_texts"], True)):
        with pytest.raises(DataError, match="also in the forget split") as told:
            run_unlearn.run([*common, "--output_dir", str(tmp_path / "out"), *more])
        assert (json.loads(first)["en"][:20] in str(told.value)) == shown
