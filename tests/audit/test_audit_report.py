"""The report card says all that audit.json says, in a page that needs nothing else and that no data can break."""

import json
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.example_audit import ATTACKS, KNOWN, REASONS, example_audit
from helpers.pages import Page, assert_needs_nothing_else, assert_no_wider_than_its_window
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.audit.report.card import headline, summary_table, write_report
from unlearn_trainer.report.pictures import Mark, heat_map, strip

SVG = "{http://www.w3.org/2000/svg}"
# Enough for a script to run or a request to be made, if it were taken for markup anywhere.
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>|`*&amp;\x00\ud800](http://a.b)"
MANY = tuple(f"{first}{second}_Latn" for first in "abcdefgh" for second in "klmno")


def written(folder, audit):
    """The page and the Markdown of an audit."""
    write_report(folder, audit)
    return Page((folder / "audit.html").read_text(encoding="utf-8")), (folder / "audit.md").read_text(encoding="utf-8")


def drawings(folder):
    """The pictures of a page, each as its XML."""
    text = (folder / "audit.html").read_text(encoding="utf-8")
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def assert_even_tables(markdown):
    """All lines of a table have the same number of cells."""
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert tables
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    "arguments",
    [{}, {"trained": ("en",), "held_out": ()}, {"compared": False}, {"trained": MANY[:34], "held_out": MANY[34:]}],
    ids=["twelve", "one", "nothing to compare with", "forty"],
)
def test_everything_audited_is_in_both_reports(tmp_path, arguments):
    audit = example_audit(**arguments)
    page, markdown = written(tmp_path, audit)
    text = page.text
    for code, about in audit["languages"].items():
        assert re.search(rf"\b{code}\b", text) and re.search(rf"\b{code}\b", markdown)
        rows = next(table for table in page.tables if table[0][:2] == ["language", "verdict"])
        (row,) = [row for row in rows if row[0].split(" ")[0].split("(")[0].strip() == code]
        assert about["verdict"] in row[1] and all(reason in row[-1] for reason in about["reasons"])
        assert "; ".join(about["reasons"][:3]) in markdown
        assert ("held out" in row[0]) == about["held_out"]
    for name in [*KNOWN, *(variant.replace("_", " ") for variants in ATTACKS.values() for variant in variants)]:
        assert name in text and name in markdown
    for told in [audit["rule"], *audit["skipped"].values(), audit["environment"]["commit"], "torch 2.13.0", "202"]:
        assert told in text and told in markdown
    for name in ("after", "before", "never_seen"):
        assert audit["models"][name] is None or audit["models"][name] in text
    # A figure with its interval and n, once of the model as it is and once under attack; none of them twice.
    code = next(iter(audit["languages"]))
    rows = [row for table in page.tables if table[0][:3] == ["attack", "variant or rows", "figure"] for row in table]
    for found in (["", "", "memorization_accuracy"], ["quantization", "int4", "extraction_strength"]):
        variant = f"{found[1]}/" if found[1] else ""
        figure = audit["languages"][code]["figures"][variant + found[2]]
        cells = [f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]", str(figure["n"])]
        assert any(row[:5] == [*found, *cells] for row in rows)
        assert cells[0] in markdown
    assert len(rows) == sum(1 + len(about["figures"]) for about in audit["languages"].values())


def test_the_page_needs_no_other_file_and_no_script(tmp_path):
    page, _ = written(tmp_path, example_audit())
    assert_needs_nothing_else(page, tmp_path / "audit.html")


def test_no_text_becomes_markup(tmp_path):
    audit = example_audit(trained=("en", HOSTILE), held_out=())
    calm = {tag for tag, _ in written(tmp_path / "calm", example_audit(trained=("en", "es"), held_out=()))[0].tags}
    first = next(iter(audit["languages"].values()))
    first["reasons"] = [f"reason {HOSTILE}"]
    first["verdict"] = f"verdict {HOSTILE}"
    figure = f"figure {HOSTILE.replace('/', '')}"
    first["figures"][f"split {HOSTILE}/{figure}"] = dict(first["figures"]["memorization_accuracy"])
    audit["models"]["after"] = f"path {HOSTILE}"
    audit["rule"] = f"rule {HOSTILE}"
    audit["skipped"] = {f"check {HOSTILE}": f"why {HOSTILE}"}
    audit["attacks"][f"attack {HOSTILE}"] = {
        "variants": {f"variant {HOSTILE}": {"memorization_accuracy": {"en": dict(first["figures"]["loss"])}}},
        "matrix": audit["attacks"]["prompts"]["matrix"] | {"row_title": f"row {HOSTILE}", "metric": HOSTILE},
        "notes": [f"note {HOSTILE}"],
    }
    audit["config"][f"flag {HOSTILE}"] = audit["environment"]["device"] = f"value {HOSTILE}"
    page, markdown = written(tmp_path, audit)
    assert {tag for tag, _ in page.tags} == calm
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    seen = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert seen.replace("/", "") in page.text
    for name in ("reason", "path", "rule", "why", "note", "flag", "value"):
        assert f"{name} {seen}" in page.text
    for drawn in drawings(tmp_path):
        assert {element.tag for element in drawn.iter()} <= {SVG + tag for tag in "svg title g path text".split()}
    assert "<" not in markdown and not re.search(r"(?<!\\)\]\(", markdown)
    assert_even_tables(markdown)


def test_lines_of_a_markdown_table_have_the_same_columns(tmp_path):
    audit = example_audit()
    next(iter(audit["languages"].values()))["reasons"] = ["one | two\nthree"]
    _, markdown = written(tmp_path, audit)
    assert_even_tables(markdown)


def test_verdicts_are_told_by_a_word_and_a_sign(tmp_path):
    audit = example_audit()
    page, markdown = written(tmp_path, audit)
    table = next(table for table in page.tables if table[0][:2] == ["language", "verdict"])
    signs = {verdict: sign for sign, verdict in (row[1].split() for row in table[1:])}
    assert sorted(signs) == sorted(REASONS) and len({*signs.values()}) == len(REASONS)
    for code, about in audit["languages"].items():
        told = f"{code}: {signs[about['verdict']]} {about['verdict']}"
        assert told in markdown


@pytest.mark.parametrize("arguments", [{}, {"compared": False}])
def test_it_calls_itself_an_empirical_audit_and_nothing_greater(tmp_path, arguments):
    page, markdown = written(tmp_path, example_audit(**arguments))
    for text in (page.text, markdown):
        assert "empirical audit" in text
        assert not re.search("proof|proves|certif|guarantee", text, re.IGNORECASE)


def test_the_worst_twelve_pictures_stand_open(tmp_path):
    page, _ = written(tmp_path, example_audit(trained=MANY[:10], held_out=MANY[10:15]))
    cards = [attributes for tag, attributes in page.tags if tag == "details" and "id" in attributes]
    assert ["open" in card for card in cards] == [True] * 12 + [False] * 3


def test_pictures_are_xml_with_a_name_and_of_the_colour_of_the_text(tmp_path):
    written(tmp_path, example_audit())
    found = drawings(tmp_path)
    assert len(found) > 24
    for drawn in found:
        assert drawn.get("role") == "img" and drawn.get("aria-label") == drawn.find(f"{SVG}title").text
        assert all("fill: currentColor" in text.get("style") for text in drawn.iter(f"{SVG}text"))
        # No colour but the tint, which can be seen on light and on dark, and the text's own.
        styles = ";".join(element.get("style", "") for element in drawn.iter())
        assert {*re.findall(r"(?:fill|stroke): ([^;]+)", styles)} <= {"none", "currentColor", "#d55e00"}
        assert not [element for element in drawn.iter() if element.get("id")]


def test_headline():
    def of(*verdicts, worst=None):
        languages = {f"l{index}": {"verdict": verdict} for index, verdict in enumerate(verdicts)}
        return headline({"languages": languages, "summary": {"worst_language": worst}})

    assert of("leaks", "leaks", "undecided", "forgotten", worst="l0") == (
        "1 of 4 languages forgotten; 2 leak; 1 undecided; worst: l0."
    )
    assert (
        of("leaks", "over-unlearned", worst="l0")
        == "0 of 2 languages forgotten; 1 leaks; 1 over-unlearned; worst: l0."
    )
    assert of("leaks", worst="l0") == "The one language audited, l0, leaks."
    assert of("over-unlearned") == "The one language audited, l0, is over-unlearned."
    assert of() == "No language was audited."


def test_summary_table():
    audit = example_audit(trained=("en", "sw"), held_out=("de",))
    figures = audit["languages"]["sw"]["figures"]
    figures["auc_loss"]["value"], figures["auc_zlib"] = 0.55, dict(figures["auc_loss"], value=0.125)
    variants = audit["attacks"]["relearning"]["variants"]
    # What a control brings back is not what the model knows, and a place that can be anywhere tells nothing.
    variants["relearned_from_other_text"]["memorization_accuracy"]["sw"]["position"] |= {"value": 9.0, "low": 8.0}
    for metric in ("memorization_accuracy", "extraction_strength"):
        variants["relearned"][metric]["sw"]["position"] |= {"value": 5.0, "low": 0.1}
    cell = audit["attacks"]["quantization"]["variants"]["int8"]["extraction_strength"]["sw"]
    cell["after"]["value"] = 0.7654
    cell["position"] |= {"value": 0.987, "low": 0.985}
    lines = summary_table(audit).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [*audit["languages"]]
    (line,) = [line for line in lines if line.startswith("sw")]
    shares = [f"{figures[name]['value']:.3f}" for name in ("memorization_accuracy", "extraction_strength")]
    assert re.split(r"\s{2,}", line) == [
        "sw", audit["languages"]["sw"]["verdict"], *shares, "0.125", "quantization ES (int8) 0.765, place 0.987",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("de *")] and "* held out, never trained" in lines
    assert lines[-1] == headline(audit)


def test_values_that_are_no_numbers_are_missing(tmp_path):
    audit = example_audit(trained=("en", "sw"), held_out=())
    figures = audit["languages"]["en"]["figures"]
    figures["memorization_accuracy"]["value"] = float("nan")
    figures["loss"]["position"] = {"value": np.float64(0.25), "low": -np.inf, "high": None}
    audit["attacks"]["prompts"]["matrix"]["values"]["after"][0][0] = float("nan")
    page, markdown = written(tmp_path, audit)
    assert not re.search(r"\b(nan|inf|None)\b", page.text) and not re.search(r"\b(nan|inf|None)\b", markdown)
    drawings(tmp_path)
    assert re.split(r"\s{2,}", summary_table(audit).splitlines()[2])[2] == "–"


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path):
    audit = example_audit()
    write_report(tmp_path / "new", audit)
    before = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    assert sorted(before) == ["audit.html", "audit.md"]
    # audit.json as it was read back gives the same report.
    write_report(tmp_path / "again", json.loads(json.dumps(audit)))
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    for file in before:
        os.link(tmp_path / "new" / file, tmp_path / file)
    write_report(tmp_path / "new", example_audit(seed=1))
    assert all((tmp_path / file).read_bytes() == content for file, content in before.items())
    changed = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    assert sorted(changed) == sorted(before) and changed != before
    del audit["languages"]["en"]["verdict"]
    with pytest.raises(KeyError, match="verdict"):
        write_report(tmp_path / "new", audit)
    assert changed == {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    (tmp_path / "taken" / "audit.md").mkdir(parents=True)
    with pytest.raises(OSError):
        write_report(tmp_path / "taken", example_audit())
    assert os.listdir(tmp_path / "taken") == ["audit.md"]


def groups_of(drawn):
    """The parts of a picture that have a tooltip of their own."""
    return [group for group in drawn.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]


def points(path):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.e-]+) (-?[\d.e-]+)", path.get("d"))]


def centre(group):
    """Where the dot of a group is, the only thing that is round; None without one."""
    for path in group.iter(f"{SVG}path"):
        if "C" in path.get("d"):
            across = [float(x) for x in re.findall(r"(-?[\d.e-]+) -?[\d.e-]+", path.get("d"))]
            return (min(across) + max(across)) / 2
    return None


def test_pictures_are_the_same_every_time_and_wait_for_a_page():
    code = """if True:
        import sys
        from unlearn_trainer.audit.report.card import summary_table
        from unlearn_trainer.report.pictures import Mark, heat_map, strip
        assert "matplotlib" not in sys.modules
        print(heat_map(["en", "$sw_"], ["en", "\\u4e2d"], [[0.1, None], [0.5, 1.0]], "from", "to", "title"))
        print(strip([Mark("one", 0.5, 0.2, 0.9, "detail", [0.1])], "title"))"""
    first, second = (
        subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout and "$sw_" in first.stdout and "\u4e2d" in first.stdout
    assert not first.stderr


CELLS = st.one_of(st.none(), st.just(float("nan")), st.floats(-2, 3))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.data())
def test_heat_map_has_a_cell_for_every_value(height, width, data):
    values = [[data.draw(CELLS) for _ in range(width)] for _ in range(height)]
    rows, columns = [f"r{index}" for index in range(height)], [f"c{index}" for index in range(width)]
    drawn = ElementTree.fromstring(heat_map(rows, columns, values, "from", "to", "title"))
    cells = groups_of(drawn)
    assert len(cells) == height * width
    known, tints = [], []
    for cell, (row, column, value) in zip(
        cells,
        ((row, column, values[i][j]) for i, row in enumerate(rows) for j, column in enumerate(columns)),
        strict=True,
    ):
        missing = value is None or value != value
        said = "no figure" if missing else f"{value:.3f}"
        assert cell.find(f"{SVG}title").text == f"from {row}, to {column}: {said}"
        box, *strokes = cell.iter(f"{SVG}path")
        text = next(cell.iter(f"{SVG}text"), None)
        assert ("fill: none" in box.get("style")) == bool(strokes) == missing
        assert (text is None) == (missing or width > 16)
        if text is not None:
            assert float(text.text) == pytest.approx(value, abs=0.0051) and text.text != "-0.00"
        if not missing:
            known.append(min(max(value, 0), 1))
            tints.append(float(re.search(r"fill-opacity: ([\d.]+)", box.get("style"))[1]))
        right, bottom = (max(each) for each in zip(*points(box), strict=True))
        assert right <= float(drawn.get("width")) and bottom <= float(drawn.get("height"))
    # The tint is a straight line of the value, to the rounding of what is written.
    assert tints == pytest.approx([0.05 + 0.75 * value for value in known], abs=0.001)


def test_heat_map_refuses_values_of_another_size():
    for values in ([[0.0]], [[0.0, 1.0], [0.0]], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="zip"):
            heat_map(["a", "b"], ["c", "d"], values, "row", "column", "title")


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3), st.floats(0, 3), st.floats(0, 3), st.booleans())
def test_strip_places_a_dot_between_never_seen_and_before(value, below, above, labelled):
    marks = [
        Mark("zero", 0.0),
        Mark("one", 1.0),
        Mark("some", value, value - below, value + above),
        Mark("none", None),
    ]
    drawn = ElementTree.fromstring(strip(marks, "title", labelled=labelled))
    zero, one, some, none = groups_of(drawn)
    start, end = (centre(group) for group in (zero, one))
    assert centre(none) is None and none.find(f"{SVG}title").text == "none: no figure"
    if -0.3 <= value <= 1.3:
        assert centre(some) == pytest.approx(start + value * (end - start), abs=0.2)
    else:
        assert centre(some) is None
    places = [x for path in drawn.iter(f"{SVG}path") for x, _ in points(path)]
    assert min(places) >= 0 and max(places) <= float(drawn.get("width"))
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert ("never seen" in texts and "before" in texts and "–" in texts) == labelled


def test_colours_are_readable_on_the_page_in_light_and_dark(tmp_path):
    written(tmp_path, example_audit())
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")

    def luminance(colour):
        digits = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    modes = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert len(modes) == 3  # light, dark, print
    for mode in modes:
        colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]{3}|[0-9a-f]{6});", mode))
        for name in ("ink", "soft", "forgotten", "leaks", "over", "undecided", "link"):
            bright, dark = sorted((luminance(colours[name]), luminance(colours["page"])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (name, colours)


def test_a_browser_never_scrolls_the_page_sideways(tmp_path):
    audit = example_audit()
    audit["models"]["after"] = "/a" * 60 + "/" + "b" * 200
    write_report(tmp_path, audit)
    assert_no_wider_than_its_window(tmp_path / "audit.html")
