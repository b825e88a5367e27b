#!/usr/bin/env python
"""Which languages forget with which: unlearn in one language A alone, measure the forget set in every language B.

    python scripts/leakage_matrix.py quickstart --output_dir outputs/leakage
    python scripts/leakage_matrix.py my_run.json --output_dir outputs/leakage --distances syntax.json

Takes the preset and flags of run_unlearn.py. L[A, B] = (m_B after unlearning in A - tau_B) / (m_B before - tau_B), cut
to 0..1, where m is the --forget_metric on the forget rows and tau_B the same of the never-seen model or, without one,
of the valid rows under the model before: 1 where all of it is still there, 0 where it is forgotten. One line a
language, each kept in <output_dir>/rows, so that the grid goes on where it stopped. Written are leakage.json,
leakage.md and leakage.svg, with the smallest set of languages to train on that covers all and, given --distances, how
L goes with them.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from run_unlearn import make_trainer
from unlearn_trainer.audit.verdict import LEAST_KNOWN
from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.console import CompactPrinter, run_command, say
from unlearn_trainer.data.collator import TrainingRows
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.files import held_folder, nan_for_null, read_own_json, write_json, write_whole
from unlearn_trainer.report.pictures import heat_map
from unlearn_trainer.runs.environment import configuration, environment
from unlearn_trainer.runs.loading import load_data
from unlearn_trainer.runs.stages import prepare_stages
from unlearn_trainer.weights.policy import perplexity_ratio

Matrix = list[list[float | None]]
PERMUTATIONS = 1999


def leakage(after: float, before: float, tau: float) -> float | None:
    """L of one pair, 0 to 1; None where the model before knew the language no better than ``tau``."""
    if before - tau < LEAST_KNOWN:
        return None
    return min(1.0, max(0.0, (after - tau) / (before - tau)))


def greedy_cover(languages: Sequence[str], matrix: Matrix, bound: float) -> tuple[list[str], list[str]]:
    """Training languages chosen one by one, each the one that covers most of what is left (ties: the first).

    B is covered by A where L[A, B] is at most ``bound``. That two languages together cover what either covers alone is
    an assumption; train on the set to be sure.

    Returns:
        The set, and the languages that no single one covers.
    """
    covers = {
        language: {other for other, value in zip(languages, line, strict=True) if value is not None and value <= bound}
        for language, line in zip(languages, matrix, strict=True)
    }
    known = {other for column, other in enumerate(languages) if any(line[column] is not None for line in matrix)}
    left, chosen = set(known), []
    while left:
        best = max(languages, key=lambda language: len(covers[language] & left))
        if not covers[best] & left:
            break
        chosen.append(best)
        left -= covers[best]
    return chosen, [language for language in languages if language in left]


def correlation(matrix: Matrix, distances: Matrix, seed: int = 0) -> dict[str, float | None]:
    """Spearman's rank correlation of the pairs A != B, and its p value by permuting languages (Mantel 1967).

    Args:
        matrix, distances: [languages, languages]; pairs that lack either are left out.
    """
    leak, far = (
        np.array([[math.nan if v is None else v for v in line] for line in each]) for each in (matrix, distances)
    )

    def spearman(first, second):
        known = ~np.isnan(first) & ~np.isnan(second) & ~np.eye(len(first), dtype=bool)
        if known.sum() < 3:
            return math.nan
        ranks = [_ranks(each[known]) for each in (first, second)]
        if min(each.std() for each in ranks) == 0:
            return math.nan
        return float(np.corrcoef(*ranks)[0, 1])

    found = spearman(leak, far)
    if math.isnan(found):
        return {"spearman": None, "p_value": None}
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(len(far)) for _ in range(PERMUTATIONS))
    drawn = [spearman(leak, far[np.ix_(order, order)]) for order in orders]
    as_far = sum(abs(value) >= abs(found) - 1e-12 for value in drawn)
    return {"spearman": found, "p_value": (1 + as_far) / (1 + PERMUTATIONS)}


def _ranks(values):
    """Ranks from 0, ties sharing their mean."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts + 1) / 2)[index]


def read_distances(file: Path, languages: Sequence[str]) -> Matrix:
    """``{"en": {"sw": 0.4, ...}, ...}``, [languages, languages]; a pair given one way only counts both ways.

    Raises:
        ConfigError: the file cannot be read, holds something else, or lacks a pair.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        table = [[given.get(a, {}).get(b, given.get(b, {}).get(a)) for b in languages] for a in languages]
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"--distances {file}: no object of objects of numbers ({error})") from error
    for a, line in zip(languages, table, strict=True):
        for b, value in zip(languages, line, strict=True):
            if a != b and not isinstance(value, int | float):
                raise ConfigError(f"--distances {file}: no number for {a} and {b}")
    return [
        [None if a == b else value for b, value in zip(languages, line, strict=True)]
        for a, line in zip(languages, table, strict=True)
    ]


class Grid:
    """The runs of a leakage matrix, all from one model.

    Args:
        argv: words of run_unlearn.py.
    """

    def __init__(self, argv: Sequence[str]):
        self.argv = list(argv)
        self.model_args, self.data_args, self.args = parse_arguments(self.argv)
        tokenizer, data = load_data(self.model_args, self.data_args, self.args)
        self.languages = data.languages
        if len(self.languages) < 2:
            raise ConfigError("a leakage matrix needs two languages at least; give --languages")
        self.start, self.reference = prepare_stages(self.model_args, self.args, data, tokenizer)
        self.folder = self.args.folder / "rows"
        # All that the figures rest on but the model: flags alone do not tell that a file they name was replaced.
        config = json.dumps(configuration(self.model_args, self.data_args, self.args), sort_keys=True)
        self.described = {
            "flags": hashlib.sha256(config.encode()).hexdigest()[:16],
            "rows": {split: TrainingRows(rows, None).digests()["forget"] for split, rows in data.datasets.items()},
            "languages": self.languages,
        }

    def row(self, language: str) -> dict:
        """Figures of every language after unlearning in one alone: of the file, or run now."""
        return self._kept(language, self.start, lambda: self._run(language, trains=True))

    def never_seen(self) -> dict | None:
        """Figures of the model that never saw the forget rows, where there is one."""
        if self.reference is None:
            return None
        return self._kept("never_seen", self.reference, lambda: self._run(self.languages[0], trains=False))

    def _kept(self, name, model, run):
        file = self.folder / f"{name}.json"
        described = {**self.described, "model": _weights(model.model_name_or_path)}
        if not file.exists():
            write_json(file, {"settings": described, **run()})
        found = read_own_json(file, ("settings",), "delete it, and it is made anew")
        if changed := [key for key, value in described.items() if found["settings"].get(key) != value]:
            raise ConfigError(
                f"{file} was made with other settings ({', '.join(changed)} differ); choose another --output_dir or "
                "delete it"
            )
        return found | {name: nan_for_null(found[name]) for name in ("before", "after")}

    def _run(self, language, trains):
        others = [other for other in self.languages if other != language]
        with tempfile.TemporaryDirectory() as folder:
            # Of a flag that is given twice the last one counts, with all its values.
            words = [*self.argv, "--output_dir", folder, "--languages", language, "--heldout_languages", *others]
            words += ["--memorize_first", "false", "--train_never_seen", "false"]
            words += ["--do_train", "true", "--do_eval", "true", "--save_strategy", "no", "--disable_tqdm", "true"]
            source = self.start if trains or self.reference is None else self.reference
            words += ["--model_name_or_path", source.name]
            if self.data_args.data_dir is not None:
                words += ["--data_dir", self.data_args.data_dir]
            model_args, data_args, args = parse_arguments(words)
            tokenizer, data = load_data(model_args, data_args, args)
            trainer = make_trainer(dataclasses.replace(source), args, data, tokenizer)
            trainer.remove_callback(CompactPrinter)
            started = time.time()
            if not trains:
                return {"after": trainer.measure(description="never seen"), "before": {}, "seconds": 0.0}
            trainer.train_to_the_end(f"while {language} was unlearned; the same command goes on with it")
            found = {
                "before": trainer.language_weights.figures_at_start,
                "after": trainer.measure(description="after"),
            }
            return found | {"seconds": time.time() - started, "steps": trainer.state.global_step}


def _weights(name):
    """Name, size and time of each file of weights of a model; of one that lies in no folder its name tells all."""
    files = sorted(path for path in Path(name).glob("*") if path.suffix in (".safetensors", ".bin", ".gguf"))
    return [name, *([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files)]


def assemble(languages: Sequence[str], metric: str, rows: Mapping[str, dict], never_seen: dict | None) -> dict:
    """Taus, figures before, and the matrix, from the figures of each run."""
    before = next(iter(rows.values()))["before"]
    known = {code: before["forget"][code][metric] for code in languages if code in before["forget"]}
    source = never_seen["after"]["forget"] if never_seen else before.get("valid")
    if source is None:
        raise ConfigError("what never-seen rows look like is unknown: give --valid_file, or --train_never_seen")
    tau = {code: source[code][metric] for code in known if code in source}
    matrix = [
        [leakage(rows[a]["after"]["forget"][b][metric], known[b], tau[b]) if b in tau else None for b in languages]
        for a in languages
    ]
    kept = [_kept_ratio(rows[a]) for a in languages]
    return {
        "before": known,
        "tau": tau,
        "tau_of": "never_seen" if never_seen else "valid",
        "matrix": matrix,
        "retain_perplexity_ratio": kept,
    }


def _kept_ratio(row):
    """How much the retain perplexity of the trained languages grew, the worst of all; None without retain rows."""
    before, after = row["before"].get("retain", {}), row["after"].get("retain", {})
    grown = [after[code]["loss"] - before[code]["loss"] for code in before if code in after]
    return perplexity_ratio(float(np.max(grown))) if grown else None  # np.max keeps NaN


def markdown(found: Mapping) -> str:
    languages, matrix = found["languages"], found["matrix"]
    lines = [
        "# Leakage between languages",
        "",
        f"Metric: {found['metric']}. One line a language that was unlearned in; "
        "1: all of the column's language is still there, 0: forgotten as in a model that never saw it.",
        "",
    ]
    lines += ["| unlearned in | " + " | ".join(languages) + " |", "|---|" + "---:|" * len(languages)]
    for language, line in zip(languages, matrix, strict=True):
        lines.append(f"| {language} | " + " | ".join("-" if v is None else f"{v:.2f}" for v in line) + " |")
    cover = found["cover"]
    lines += [
        "",
        f"Smallest set found by taking the best language each time (bound {cover['bound']}): "
        f"{' '.join(cover['languages']) or 'none'}."
        + (f" Covered by none: {' '.join(cover['uncovered'])}." if cover["uncovered"] else ""),
    ]
    if found.get("correlation"):
        value = found["correlation"]
        said = (
            "undefined" if value["spearman"] is None else f"{value['spearman']:.3f} (p {value['p_value']:.4f}, Mantel)"
        )
        lines.append(f"Spearman's correlation of leakage with the distances given: {said}.")
    return "\n".join(lines) + "\n"


def run(argv: Sequence[str] | None = None) -> dict:
    """Run what is not finished yet; returns what is written to leakage.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--distances", type=Path, help="JSON file {language: {language: distance}}")
    parser.add_argument("--cover_bound", type=float, default=0.1, help="covered is what leaks at most this")
    flags, rest = parser.parse_known_args(argv)
    args = parse_arguments(rest)[2]
    if not args.output_dir:
        raise ConfigError("give --output_dir")
    with held_folder(args.output_dir):
        return measure_leakage(Grid(rest), flags)


def measure_leakage(grid: Grid, flags: argparse.Namespace) -> dict:
    """The matrix of ``grid``, its files written; runs what is not finished yet."""
    metric = grid.args.forget_metric
    distances = read_distances(flags.distances, grid.languages) if flags.distances else None
    never_seen, rows = grid.never_seen(), {}
    for number, language in enumerate(grid.languages, start=1):
        started = time.time()
        rows[language] = grid.row(language)
        say(f"[{number}/{len(grid.languages)}] unlearned in {language} ({time.time() - started:.0f} s)")
    found: dict[str, Any] = {"schema_version": 1, "languages": grid.languages, "metric": metric}
    found |= assemble(grid.languages, metric, rows, never_seen)
    chosen, uncovered = greedy_cover(grid.languages, found["matrix"], flags.cover_bound)
    found["cover"] = {"languages": chosen, "uncovered": uncovered, "bound": flags.cover_bound}
    if distances:
        found["correlation"] = correlation(found["matrix"], distances, grid.args.seed)
    found |= {
        "environment": environment(grid.args.device, grid.args.world_size),
        "config": configuration(grid.model_args, grid.data_args, grid.args),
    }
    folder = grid.args.folder
    write_json(folder / "leakage.json", found)
    text = markdown(found)
    write_whole(folder / "leakage.md", text)
    picture = heat_map(grid.languages, grid.languages, found["matrix"], "unlearned in", "measured in", "leakage")
    write_whole(folder / "leakage.svg", picture)
    say(text)
    return found


if __name__ == "__main__":
    run_command(run)
