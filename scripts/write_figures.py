#!/usr/bin/env python
"""Write the figures of finished runs into the texts that quote them, with the seed and the commit they were made with.

    python run_unlearn.py quickstart --output_dir outputs/quickstart --audit
    python scripts/write_figures.py quickstart=outputs/quickstart

A text marks what it quotes, and of which run:

    <!-- figures: output of quickstart -->
    <!-- end of figures -->

What stands between the two lines is written anew, and the first line is given seed and commit. Kinds of figures:

    output      what the run prints at its end: the table, the verdict, examples, where everything lies
    verdicts    a sentence on its audit
    METHOD      of the run called "comparison": a sentence on that method's row in docs/comparison.md, which is read by
                itself and needs no folder

Blocks of runs that are not named stay as they are.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from unlearn_trainer.console import run_command  # noqa: E402
from unlearn_trainer.errors import ConfigError  # noqa: E402
from unlearn_trainer.files import write_whole  # noqa: E402
from unlearn_trainer.report.table import comparison_table  # noqa: E402
from unlearn_trainer.runs.outcome import closing_words  # noqa: E402

TEXTS = ("README.md", "docs/methods.md", "docs/audit.md", "docs/comparison.md", "docs/performance.md")
COMPARISON = "comparison"
WIDTH = 119
BLOCK = re.compile(
    r"<!-- figures: (?P<kind>[\w-]+) of (?P<run>[\w-]+)(?P<source>[^>\n]*) -->\n(?P<text>.*?)<!-- end of figures -->",
    re.DOTALL,
)
COMMIT = re.compile(r"\b[0-9a-f]{40}\b")

# What makes a kind of figures: the text, and what it comes from ("seed 42; commit ...").
Maker = Callable[[str], tuple[str, str]]


def rewrite(text: str, makers: Mapping[str, Maker]) -> str:
    """``text`` with the blocks of the given runs made anew.

    Args:
        makers: by the name of a run.
    """

    def replaced(block: re.Match) -> str:
        if block["run"] not in makers:
            return block[0]
        content, source = makers[block["run"]](block["kind"])
        head = f"<!-- figures: {block['kind']} of {block['run']}; {source} -->"
        return f"{head}\n{content}\n<!-- end of figures -->"

    return BLOCK.sub(replaced, text)


def maker_of_run(name: str, folder: Path) -> Maker:
    """Makes ``output`` and ``verdicts`` of the run in ``folder``.

    Raises:
        ConfigError: the folder holds no finished run, or one of an unknown commit.
    """
    results = _read(folder / "results.json")

    def make(kind: str) -> tuple[str, str]:
        if kind == "output":
            said = f"{comparison_table(results, width=WIDTH)}\n{closing_words(results, written=True)}"
            return f"```\n{said}\n```", _source(results, results, folder)
        if kind == "verdicts":
            audit = _read(folder / "audit" / "audit.json")
            return _wrapped(_verdicts(name, results, audit)), _source(results, audit, folder)
        raise ConfigError(f"figures: {kind} of {name}: a run has output and verdicts")

    return make


def maker_of_comparison(text: str) -> Maker:
    """Makes a sentence on a method of ``text``, that of docs/comparison.md."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    by_method = {row[0]: row for row in rows if len(row) > 13 and row[1] == "uniform"}
    seeds = re.findall(r"seeds ([\d, ]+\d)", text)[0]

    def make(kind: str) -> tuple[str, str]:
        if kind not in by_method:
            raise ConfigError(f"figures: {kind} of {COMPARISON}: no such row in docs/comparison.md")
        mean = [cell.partition(" ")[0] for cell in by_method[kind]]
        forget, gap, retain, excess = (float(mean[column]) for column in (2, 5, 9, 13))
        grown = f"{retain:.2f}" if retain < 1000 else f"{retain:.0e}"
        sentence = (
            f"`{kind}`: forget MA {forget:.2f}, AUC {gap:.2f} from the never-seen model's, retain perplexity x "
            f"{grown}, {excess:.2f} more regained."
        )
        return _wrapped(sentence), f"seeds {seeds}; commit {_commit_of_row(text, kind)}"

    return make


def _commit_of_row(text: str, method: str) -> str:
    """The commit that ``text`` names for a row: a later paragraph may name another one for some rows."""
    first, *others = re.findall(r"(?:\A|\n)((?:The rows|Commit)[^.;]*?[0-9a-f]{40})", text)
    for paragraph in others:
        if any(re.fullmatch(rf"{re.escape(name)}(-.*)?", method) for name in re.findall(r"`([^`]+)`", paragraph)):
            return COMMIT.findall(paragraph)[0]
    return COMMIT.findall(first)[0]


def _verdicts(name: str, results: Mapping, audit: Mapping) -> str:
    languages = audit["languages"]
    by_verdict: dict[str, list[str]] = {}
    for language, judged in languages.items():
        by_verdict.setdefault(judged["verdict"], []).append(language)
    said = ", ".join(
        f"{verdict} in {len(members)} ({' '.join(sorted(members))})" for verdict, members in by_verdict.items()
    )
    regained = [
        figure["position"]["value"]
        for judged in languages.values()
        for variant, figure in judged["figures"].items()
        if variant.startswith(("relearned/", "relearned_in_best_language/")) and figure.get("position")
    ]
    attack = f" Relearning brings back at most {max(regained):.2f} of the way." if regained else ""
    method = results["config"]["method"]
    return f"The audit of the {name} (`{method}`) says of {len(languages)} languages: {said}.{attack}"


def _source(results: Mapping, made: Mapping, folder: Path) -> str:
    commit = made.get("environment", {}).get("commit")
    if not COMMIT.fullmatch(commit or ""):
        raise ConfigError(f"{folder}: the run does not say which commit made it; run it in a checkout")
    return f"seed {results['config']['seed']}; commit {commit}"


def _wrapped(sentence: str) -> str:
    return "\n".join(textwrap.wrap(sentence, WIDTH, break_long_words=False, break_on_hyphens=False))


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); name the folder of a finished run") from error


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Rewrite the blocks in all texts; those of ``comparison`` always."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="NAME=FOLDER", help="a finished run, by the name the texts call it")
    makers = {COMPARISON: maker_of_comparison((root / "docs/comparison.md").read_text(encoding="utf-8"))}
    for word in parser.parse_args(argv).runs:
        name, is_pair, folder = word.partition("=")
        if not is_pair:
            raise ConfigError(f"{word}: give NAME=FOLDER, such as quickstart=outputs/quickstart")
        makers[name] = maker_of_run(name, Path(folder))
    changed = {}
    for name in TEXTS:
        text = (root / name).read_text(encoding="utf-8")
        if (new := rewrite(text, makers)) != text:
            changed[root / name] = new
    for path, new in changed.items():
        write_whole(path, new)
        print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
