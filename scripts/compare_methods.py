#!/usr/bin/env python
"""One table over methods and seeds: what each forgets, gives away, keeps, and gives back.

    python scripts/compare_methods.py --output_dir outputs/comparison --seeds 42 43 44
    python scripts/compare_methods.py --output_dir outputs/comparison --methods npo lingtea --max_steps 100

Every method starts from the same memorized model of its seed, with the settings of the preset, those of
scripts/compare_methods.json (key "*": for all; a key that is no method is a variant and names its "method") and, which
win, further flags of run_unlearn.py; once with --forget_weighting uniform and once with target. In the first rows
stand the models before and never seen and, with --train_never_seen, a second one that never saw the rows, trained in
another order: how far it is from the first is how near any method can be expected to come. What is finished lies in
the output folder and is not run again, unless its settings changed. One process is used.

The columns of the table, each the mean over the seeds and the standard deviation:
  forget MA      memorization accuracy of the forget rows, in the language where it is highest
  unseen MA      the same of the model that never saw them
  AUC, gap       membership AUC by the loss, forget rows against never-seen rows (test, else valid), of the language
                 where it is farthest from the never-seen model's; and how far that is
  recognisable   the greatest max(AUC, 1 - AUC) of any language: 0.5 is best
  Min-K++, gap   AUC and gap by Min-K%++
  retain, unseen perplexity over that of the model before, in the language where it grew most; of test, else valid
  regained       memorization accuracy of the forget rows in all other languages, after relearning them in one: the
                 mean over --relearn_languages, and the worst of them
  excess         how much more that is than the never-seen model regains, which regains something where languages share
                 words: again the worst
  seconds        of the training and the measurements that belong to it
"""

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from run_unlearn import make_trainer
from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.console import CompactPrinter, run_command, say
from unlearn_trainer.engine.engines import engine_of_its_own
from unlearn_trainer.errors import ConfigError, TrainingDiverged, did_you_mean
from unlearn_trainer.evaluation.membership import membership_auc, recognisability
from unlearn_trainer.files import held_folder, json_text, nan_for_null, read_own_json, write_json, write_whole
from unlearn_trainer.model.loading import load_model, save_trained
from unlearn_trainer.objectives import METHODS
from unlearn_trainer.runs.environment import environment
from unlearn_trainer.runs.loading import load_data
from unlearn_trainer.runs.relearning import STEPS, regained, relearn
from unlearn_trainer.runs.stages import prepare_stages, stage_folder
from unlearn_trainer.weights.policy import perplexity_ratio

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = Path(__file__).with_suffix(".json")
STAGES = ("memorize", "retain_only")
REFERENCES = ("before", "never seen")
# Another model of the second kind.
AGAIN = "never seen again"
COLUMNS = {
    "forget_ma": "forget MA",
    "never_seen_ma": "unseen MA",
    "loss_auc": "AUC",
    "loss_gap": "gap",
    "recognisable": "recognisable",
    "min_k_plus_plus_auc": "Min-K++",
    "min_k_plus_plus_gap": "gap",
    "retain_ratio": "retain",
    "unseen_ratio": "unseen",
    "regained": "regained",
    "regained_worst": "worst",
    "regained_excess": "excess",
    "seconds": "seconds",
}
# What a file of a row holds of numbers that may be NaN: those of a model that is ruined.
FIGURES = ("memorization_accuracy", "loss", "membership", "regained")
QUIET = {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "report_to": "none"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a method or variant under one weighting, or a model that is only measured."""

    name: str
    weighting: str = ""

    @property
    def file(self) -> str:
        return f"{self.name.replace(' ', '_')}{f'-{self.weighting}' if self.weighting else ''}.json"


def as_words(settings: dict[str, object]) -> list[str]:
    """``{"max_steps": 5, "languages": ["en", "sw"]}`` as words of a command line."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(each).lower() if isinstance(each, bool) else str(each) for each in values)]
    return words


class SeedRun:
    """All rows of one seed, on the models and data of its folder.

    Args:
        flags: of this script; ``rest``: of run_unlearn.py; ``settings``: what scripts/compare_methods.json holds.
    """

    def __init__(self, flags: argparse.Namespace, rest: list[str], settings: dict[str, dict], seed: int):
        self.flags, self.rest, self.settings, self.seed = flags, rest, settings, seed
        self.folder = Path(flags.output_dir) / f"seed-{seed}"
        fixed = as_words({"output_dir": self.folder, "seed": seed})
        model_args, data_args, args = parse_arguments([flags.preset, *rest, *fixed])
        tokenizer, data = load_data(model_args, data_args, args)
        start, reference = prepare_stages(model_args, args, data, tokenizer)
        if reference is None:
            raise ConfigError(
                "the methods are compared with a model that never saw the forget set: give "
                "--train_never_seen or --never_seen_model"
            )
        self.unseen = "test" if "test" in data.datasets else "valid"
        if not {"retain", "valid", self.unseen} <= data.datasets.keys():
            raise ConfigError("forget, retain and valid rows are measured; give --retain_file and --valid_file")
        self.models = dict(zip(REFERENCES, (start, reference), strict=True))
        if args.train_never_seen:
            other = engine_of_its_own(args, seed=seed + 1)
            folder = stage_folder(AGAIN.replace(" ", "_"), "retain_only", model_args, other, data, tokenizer)
            self.models[AGAIN] = dataclasses.replace(reference, model_name_or_path=str(folder))
        self.data_dir, self.languages = data_args.data_dir, data.languages
        self.relearned = flags.relearn_languages or list(dict.fromkeys([data.languages[0], data.languages[-1]]))
        if unknown := [language for language in self.relearned if language not in data.languages]:
            raise ConfigError(f"--relearn_languages {' '.join(unknown)}: not one of {', '.join(data.languages)}")

    def check(self, rows: Sequence[Row]) -> None:
        """Refuse before the first training what cannot be compared.

        Raises:
            ConfigError: settings that contradict each other, or a method that takes rows which all are measured on.
        """
        for row in rows:
            args = parse_arguments([self.flags.preset, *self._words(row), "--output_dir", str(self.folder)])[2]
            if self.unseen == "valid" and args.needs_companion("counterpart"):
                raise ConfigError(
                    f"{row.name} takes half of the valid rows for itself, and all methods are measured on these where "
                    "there is no test split; give --test_file, or choose other --methods"
                )

    def result(self, row: Row) -> dict:
        """What the row's file says, which is run first where it is missing or was made with other settings."""
        file = self.folder / "rows" / row.file
        words = self._words(row)
        described = {
            "words": words,
            "relearning": [self.relearned, self.flags.relearn_steps, self.flags.relearn_learning_rate],
        }
        found = read_own_json(file, ("settings",), "delete it, and it is made anew") if file.exists() else {}
        if found.get("settings") != described:
            found = {"name": row.name, "weighting": row.weighting, "seed": self.seed, "settings": described}
            found |= self._run(row, words)
            write_json(file, found)
            found = read_own_json(file, (), "run the command again")  # the same table now and after a second start
        return found | {name: nan_for_null(found[name]) for name in FIGURES if name in found}

    def _words(self, row: Row) -> list[str]:
        if row.name in self.models:
            return [*self.rest, *as_words({"forget_weighting": "uniform"})]
        chosen = {"method": row.name, **self.settings.get("*", {}), **self.settings.get(row.name, {})}
        return [*as_words(chosen), *self.rest, *as_words({"forget_weighting": row.weighting})]

    def _run(self, row, words):
        model = self.models.get(row.name, self.models["before"])
        with tempfile.TemporaryDirectory() as folder:
            places = {"model_name_or_path": model.model_name_or_path, "output_dir": folder, "seed": self.seed}
            if self.data_dir is not None:
                places["data_dir"] = self.data_dir
            stages = {"memorize_first": False, "train_never_seen": False}
            measured = {"do_train": True, "do_eval": True, "do_predict": True}
            argv = [self.flags.preset, *words, *as_words(QUIET | places | stages | measured)]
            model_args, data_args, args = parse_arguments(argv)
            tokenizer, data = load_data(model_args, data_args, args)
            trainer = make_trainer(model_args, args, data, tokenizer)
            trainer.remove_callback(CompactPrinter)
            found: dict[str, Any] = {"seconds": 0.0, "steps": 0, "stop_reason": None}
            if row.name not in self.models:
                started = time.perf_counter()
                try:
                    trainer.train_to_the_end(f"during {row.name} {row.weighting}; the same command goes on from there")
                except TrainingDiverged as error:
                    return found | {"stop_reason": f"diverged: {error}"}
                found = {
                    "seconds": time.perf_counter() - started,
                    "steps": trainer.state.global_step,
                    "stop_reason": trainer.language_weights.stop_reason,
                }
                save_trained(trainer, dataclasses.replace(model_args, merge_adapter=model_args.use_peft))
                model_args = dataclasses.replace(model_args, model_name_or_path=folder, gguf_file=None, revision=None)
            found |= self._figures(trainer.measure_rows())
            found["regained"] = {
                language: self._regained(language, model_args, args, data, tokenizer) for language in self.relearned
            }
            return found

    def _regained(self, language, model_args, args, data, tokenizer):
        """What comes back in each other language; NaN of a model that is too far gone to learn anything."""
        forget = data.datasets["forget"]
        try:
            relearned = relearn(
                lambda: load_model(model_args, tokenizer),
                args,
                forget,
                language,
                [*data.languages, *data.heldout_languages],
                learning_rate=self.flags.relearn_learning_rate,
                steps=self.flags.relearn_steps,
                seed=self.seed,
                measured={"forget": forget},
                tokenizer=tokenizer,
            )
        except TrainingDiverged:
            return {other: math.nan for other in self.languages if other != language}
        return regained(relearned.measure_rows()["forget"], language, self.languages)

    def _figures(self, rows):
        def by_language(split, figure):
            columns = rows[split]
            chosen = {code: columns["language"] == index for index, code in enumerate(self.languages)}
            return {code: float(figure(columns, mask)) for code, mask in chosen.items() if mask.any()}

        def loss(columns, mask):
            return columns["loss"][mask] @ columns["tokens"][mask] / columns["tokens"][mask].sum()

        return {
            "memorization_accuracy": by_language(
                "forget", lambda columns, mask: columns["memorization_accuracy"][mask].mean()
            ),
            "loss": {split: by_language(split, loss) for split in rows},
            "membership": membership_auc(rows["forget"], rows[self.unseen], self.languages),
        }


def worst(values: Iterable[float]) -> float:
    """The greatest; NaN where one is NaN."""
    return float(np.max(list(values)))


def summary(found: dict, before: dict, never_seen: dict) -> dict[str, float]:
    """The columns of a row from its figures by language; none of a training that diverged."""
    if "membership" not in found:
        return {}
    known, reference = found["membership"], never_seen["membership"]
    cells = {
        "forget_ma": worst(found["memorization_accuracy"].values()),
        "never_seen_ma": worst(never_seen["memorization_accuracy"].values()),
        "recognisable": worst(recognisability(areas["loss"]) for areas in known.values()),
    }
    for score in ("loss", "min_k_plus_plus"):
        gaps = {language: abs(areas[score] - reference[language][score]) for language, areas in known.items()}
        farthest = max(gaps, key=lambda language: gaps[language])
        cells |= {f"{score}_auc": known[farthest][score], f"{score}_gap": gaps[farthest]}
    unseen = "test" if "test" in found["loss"] else "valid"  # some methods take rows of valid for themselves
    for split, column in (("retain", "retain_ratio"), (unseen, "unseen_ratio")):
        grown = [loss - before["loss"][split][language] for language, loss in found["loss"][split].items()]
        cells[column] = perplexity_ratio(worst(grown))
    back, unseen_back = (
        {language: statistics.fmean(others.values()) for language, others in each["regained"].items()}
        for each in (found, never_seen)
    )
    return cells | {
        "regained": statistics.fmean(back.values()),
        "regained_worst": worst(back.values()),
        "regained_excess": worst(value - unseen_back[language] for language, value in back.items()),
        "seconds": found["seconds"],
    }


def deviation(values: Sequence[float]) -> float:
    """The standard deviation; NaN where a value is."""
    return math.nan if any(map(math.isnan, values)) else statistics.stdev(values)


def table(results: dict[Row, list[dict[str, float]]]) -> list[dict]:
    """A dict a row: the means over the seeds, the standard deviations under ``sd``, and how many seeds there were."""
    lines = []
    for row, summaries in results.items():
        finished = [cells for cells in summaries if cells]
        spread: dict[str, float | None] = {}
        line: dict[str, Any] = {"method": row.name, "weighting": row.weighting, "runs": len(summaries)}
        line |= {"diverged": len(summaries) - len(finished), "sd": spread}
        for column in COLUMNS if finished else ():
            values = [cells[column] for cells in finished]
            line[column] = statistics.fmean(values)
            spread[column] = deviation(values) if len(values) > 1 else None
        lines.append(line)
    return lines


def markdown(lines: list[dict]) -> str:
    """The table as text; ± is the standard deviation over the seeds."""

    def cell(line, column):
        if column not in line:
            return "diverged"
        decimals = 1 if column == "seconds" else 3
        spread = line["sd"][column]
        return number(line[column], decimals) + ("" if spread is None else f" ± {number(spread, decimals)}")

    def number(value, decimals):
        return f"{value:.{decimals}f}" if value < 1000 else f"{value:.1e}"

    text = ["| method | weighting | " + " | ".join(COLUMNS.values()) + " |"]
    text.append("|---|---|" + "---:|" * len(COLUMNS))
    for line in lines:
        cells = [line["method"], line["weighting"], *(cell(line, column) for column in COLUMNS)]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def write_docs(lines: list[dict], flags: argparse.Namespace, rest: list[str], settings: dict[str, dict]) -> None:
    """docs/comparison.md: the table, what its columns mean, and what it was made with."""
    made_with = environment(torch.device("cpu"), 1)
    versions = ", ".join(f"{name} {version}" for name, version in made_with["versions"].items() if version)
    columns = __doc__[__doc__.index("The columns") :]
    text = f"""# Methods compared

Written by `scripts/compare_methods.py --write_docs`: preset {flags.preset}, seeds {", ".join(map(str, flags.seeds))},
{flags.relearn_steps} relearning steps at {flags.relearn_learning_rate:g}{f", {' '.join(rest)}" if rest else ""}.
Commit {made_with["commit"]}; {versions}.

{markdown(lines)}

```
{columns.strip()}
```

Settings beyond the preset's (`scripts/compare_methods.json`; `*`: all):

```json
{json.dumps({name: chosen for name, chosen in settings.items() if chosen}, indent=1)}
```
"""
    write_whole(ROOT / "docs" / "comparison.md", text)


def read_settings(file: Path) -> dict[str, dict]:
    """Overrides by method or variant.

    Raises:
        ConfigError: the file cannot be read, or a key is no method and names none.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--settings {file}: {error}") from error
    for name, chosen in settings.items():
        if not isinstance(chosen, dict):
            raise ConfigError(f"{file}: {name!r} must be an object of flags, not {json.dumps(chosen)}")
        method = chosen.get("method", name)
        if name != "*" and method not in METHODS:
            raise ConfigError(f"{file}: {method!r} is no method{did_you_mean(method, METHODS)}")
    return settings


def run(argv: Sequence[str] | None = None) -> list[dict]:
    """Run what is not finished yet, print the table; returns it as :func:`table` does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--preset", default="quickstart", help="preset or JSON file; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--methods", nargs="+", help="methods and variants; default: all")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="overrides of the methods")
    parser.add_argument("--relearn_languages", nargs="+", help="default: the first and the last")
    parser.add_argument("--relearn_steps", type=int, default=STEPS)
    parser.add_argument(
        "--relearn_learning_rate", type=float, default=1e-3, help="the default suits the tiny model of quickstart"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--write_docs", action="store_true", help="also write docs/comparison.md")
    flags, rest = parser.parse_known_args(argv)
    settings = read_settings(flags.settings)
    names = list(dict.fromkeys([*(name for name in METHODS if name not in STAGES), *settings]))
    names.remove("*") if "*" in names else None
    for name in flags.methods or ():
        if name not in names:
            raise ConfigError(f"--methods {name} is not one of {', '.join(names)}{did_you_mean(name, names)}")
    chosen = [Row(name, weighting) for name in flags.methods or names for weighting in ("uniform", "target")]
    with held_folder(flags.output_dir):
        lines = table(compare(flags, rest, settings, chosen))
    if flags.write_docs:
        write_docs(lines, flags, rest, settings)
    say(json_text(lines) if flags.json else markdown(lines))
    return lines


def compare(
    flags: argparse.Namespace, rest: list[str], settings: dict[str, dict], chosen: list[Row]
) -> dict[Row, list[dict[str, float]]]:
    """The cells of each row, one set a seed; what is finished is read."""
    results: dict[Row, list[dict[str, float]]] = {}
    for number, seed in enumerate(flags.seeds):
        seed_run = SeedRun(flags, rest, settings, seed)
        rows = [Row(name) for name in seed_run.models] + chosen
        count = len(rows) * len(flags.seeds)
        seed_run.check(chosen)
        before, never_seen = (seed_run.result(Row(name)) for name in REFERENCES)
        for index, row in enumerate(rows, start=1 + number * len(rows)):
            started = time.perf_counter()
            cells = summary(seed_run.result(row), before, never_seen)
            results.setdefault(row, []).append(cells)
            shown = ", ".join(f"{COLUMNS[name]} {value:.3f}" for name, value in cells.items()) or "diverged"
            took = time.perf_counter() - started
            say(f"[{index}/{count}] seed {seed} {row.name} {row.weighting}: {shown} ({took:.0f} s)")
    return results


if __name__ == "__main__":
    run_command(run)
