"""Files that are no JSON lines: which kind they are, and how to make JSON lines of them."""

import re
import zipfile
from pathlib import Path

# First bytes to the kind of file and how `datasets` reads it, if it does.
STARTS = {
    b"PAR1": ("a Parquet file", "parquet"),
    b"ARROW1": ("an Arrow file", "arrow"),
    b"\xff\xff\xff\xff": ("an Arrow file", "arrow"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", None),
    b"SQLite format 3": ("an SQLite database", None),
    b"\x1f\x8b": ("compressed with gzip", "gunzip"),
    b"(\xb5/\xfd": ("compressed with zstd", "unzstd"),
    b"BZh": ("compressed with bzip2", "bunzip2"),
    b"\xfd7zXZ": ("compressed with xz", "unxz"),
}
# The same of text files: what is between two columns.
SEPARATED = (
    (b"\t", "tab-separated values", ", sep='\\t'"),
    (b",", "comma-separated values (CSV)", ""),
    (b";", "values separated by semicolons", ", sep=';'"),
)
ROWS = "with a column for each language, or the columns text and language"


def foreign_format(path: str | Path, content: bytes) -> str | None:
    """Which other kind of file this is, with the remedy, as the end of an error message; None for JSON lines.

    Args:
        content: all of the file.
    """
    for start, (kind, reader) in STARTS.items():
        if content.startswith(start) and reader in ("parquet", "arrow"):
            return f"{kind}, not JSON lines; convert it {ROWS}: {_command(path, reader)}"
        if content.startswith(start):
            return f"{kind}, not JSON lines; {_unpack(path, reader)}"
    if content.startswith(b"PK\x03\x04"):
        return _of_zip(path)
    for encoding, marks in (("UTF-32", (b"\xff\xfe\0\0", b"\0\0\xfe\xff")), ("UTF-16", (b"\xff\xfe", b"\xfe\xff"))):
        if content.startswith(marks):
            return f"not valid UTF-8 but {encoding}; save the file as UTF-8"
    if content[:400].count(0) > len(content[:400]) // 3:
        return "not valid UTF-8 but UTF-16 or binary data; save the file as UTF-8"
    text = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    first = text.split(b"\n", 1)[0].strip()
    if first == b"[" or re.match(rb"\[\s*\{", text):
        return f"a JSON array, not one JSON object a line; convert it: {_command(path, 'json')}"
    if first == b"{":
        return f"one JSON object over several lines, not one a line; convert it: {_command(path, 'json')}"
    for mark, kind, more in SEPARATED:
        if mark in first and re.match(rb"[^\W\d]|\"", first):
            return f"{kind}, not JSON lines; convert it {ROWS}: {_command(path, 'csv', more)}"
    return None


def _command(path: str | Path, reader: str, more: str = "") -> str:
    made = Path(path).with_suffix(".jsonl").name
    made = made if made != Path(path).name else f"{Path(path).stem}-lines.jsonl"
    return (
        f"python -c \"from datasets import load_dataset; load_dataset('{reader}', data_files='{path}', split='train'"
        f"{more}).to_json('{made}', force_ascii=False)\""
    )


def _unpack(path: str | Path, program: str | None) -> str:
    return (
        f"unpack it: {program} --stdout '{path}' > rows.jsonl" if program else "export its table to CSV or JSON lines"
    )


def _of_zip(path: str | Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        names = []
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook, not JSON lines; export its table to CSV or JSON lines"
    if "content.xml" in names:
        return "an OpenDocument file, not JSON lines; export its table to CSV or JSON lines"
    return f"a zip archive, not JSON lines; unpack it: unzip '{path}'"
