"""What the checks find: run and kept one by one, compared between the models, and summed up.

The result of a check on a model is written to ``<output_dir>/checks`` at once, so that an audit that was stopped goes
on where it was.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..console import say
from ..errors import ConfigError
from ..files import read_own_json, write_json
from .checks.knowledge import forget_quality
from .checks.memorization import privacy_leakage
from .figures import excess, mean_figure, position, seed_of
from .registry import ALL, CHECKS, Check
from .results import Estimate, Figure, Name, Result, Rows, Variant
from .subject import AUDITED, BEFORE, EARLIER, NEVER_SEEN, Subject
from .verdict import RULE, VERDICTS, is_known, judge, nothing_to_forget


class Findings:
    """Results by check and model, read from the folder where they are finished.

    Args:
        folder: ``<output_dir>/checks``.
        subjects: the models by name.
    """

    def __init__(self, folder: Path, subjects: Mapping[str, Subject]):
        self.folder, self.subjects = folder, subjects
        self.results: dict[str, dict[str, Result]] = {}
        self.seconds: dict[str, float] = {}
        self.skipped: dict[str, str] = {}

    def run(self, check: Check) -> None:
        """Run a check on all its models, or take what lies in the folder.

        Raises:
            ConfigError: the folder holds results of other models, rows or settings.
        """
        if reason := check.obstacle(self.subjects):
            self.skipped[check.name] = reason
            return
        found = self.results[check.name] = {}
        for subject in self._subjects_of(check):
            found[subject.name] = self._result(check, subject)

    def take(self, check: Check) -> None:
        """Take a check that is not asked for from the folder, where an earlier audit of the same has finished it."""
        if reason := check.obstacle(self.subjects):
            self.skipped[check.name] = reason
            return
        finished = [self._kept(check, subject) for subject in self._subjects_of(check)]
        if all(known is not None and not changed for _, known, changed, _ in finished):
            self.run(check)
        else:
            self.skipped[check.name] = "not asked for"

    def _subjects_of(self, check: Check) -> list[Subject]:
        return [self.subjects[name] for name in check.models if name in self.subjects]

    def _kept(self, check, subject):
        """The file of a result, what it holds, what has changed since, and what it has to be made of.

        As the first process sees them: another machine may not see the folder, or see other times of the same files.
        """
        file = self.folder / f"{check.name}-{subject.name}.json"
        described = json.loads(json.dumps(subject.fingerprint(check.settings))) if subject.is_main_process else None
        known = None
        if subject.is_main_process and file.exists():
            known = read_own_json(file, ("made_of", "result", "seconds"), "delete it, and the check is run again")
        described, known = broadcast_object_list([described, known])
        made_of = known["made_of"] if known is not None else described
        changed = [key for key, value in described.items() if made_of.get(key) != value]
        return file, known, changed, described

    def _result(self, check: Check, subject: Subject) -> Result:
        file, known, changed, described = self._kept(check, subject)
        if changed:
            raise ConfigError(
                f"{file} was made with other settings ({', '.join(changed)} differ); choose another --output_dir, or "
                "delete the folder of an earlier audit"
            )
        if known is None:
            say(f"audit: {check.name} of the model {subject.name}")
            started = time.time()
            result = check.run(subject).as_json()
            known = {"made_of": described, "result": result, "seconds": time.time() - started}
            if subject.is_main_process:
                write_json(file, known)
        self.seconds[check.name] = self.seconds.get(check.name, 0.0) + known["seconds"]
        return Result.from_json(known["result"])

    @property
    def reference_is_of_same_rows(self) -> bool:
        """Whether the never-seen figures are of the forget rows, under a model that never saw them."""
        return NEVER_SEEN not in self.subjects or self.subjects[NEVER_SEEN].measured == "forget"

    def figures(self) -> dict[str, dict[Name, Figure]]:
        """The figures of every language, compared with the other models."""
        found: dict[str, dict[Name, Figure]] = {language: {} for language in self.subjects[AUDITED].languages}
        for by_model in self.results.values():
            audited = by_model.get(AUDITED, Result())
            for name, by_language in audited.rows.items():
                for language, rows in by_language.items():
                    found[language][name] = self._compared(name, language, rows, by_model)
            for name, estimates in audited.figures.items():
                for language, figure in estimates.items():
                    before, never_seen = (
                        by_model.get(model, Result()).figures.get(name, {}).get(language)
                        for model in (BEFORE, NEVER_SEEN)
                    )
                    place = _place(figure, before, never_seen) if self.reference_is_of_same_rows else None
                    found[language][name] = Figure(
                        **vars(figure), before=before, never_seen=never_seen, position=place
                    )
        self._add_comparisons(found)
        return found

    def _compared(self, name: Name, language: str, rows: Rows, by_model: Mapping[str, Result]) -> Figure:
        seed = seed_of(self.subjects[AUDITED].seed, str(name), language)

        def mean(rows: Rows | None) -> Estimate | None:
            return None if rows is None else Estimate.from_json(mean_figure(rows["values"], seed))

        before, reference = (
            by_model.get(model, Result()).rows.get(name, {}).get(language) for model in (BEFORE, NEVER_SEEN)
        )
        own = Estimate.from_json(mean_figure(rows["values"], seed))
        figure = Figure(**vars(own), before=mean(before), never_seen=mean(reference))
        if reference is None:
            return figure
        same_rows = self.reference_is_of_same_rows
        figure = dataclasses.replace(figure, excess=_estimate(excess(rows, reference, seed, same_rows)))
        # What an attack brings back is measured by all there was to know, not by what it would have brought before.
        # The rows of earlier requests were forgotten before already: for them the difference alone speaks.
        known, unknown = (
            self.results["memorization"].get(model, Result()).rows.get(Name(name.metric), {}).get(language)
            for model in (BEFORE, NEVER_SEEN)
        )
        if known is None or unknown is None:  # a figure that the check alone has
            known, unknown = before, reference
        if known is None or name.variant.name.startswith(EARLIER):
            return figure
        figure = dataclasses.replace(figure, known=_estimate(excess(known, unknown, seed, same_rows)))
        if not is_known(figure.known, name.metric):
            return figure
        place = position(rows, reference, known, seed, same_rows, unknown)
        return dataclasses.replace(figure, position=_estimate(place))

    def _add_comparisons(self, found: Mapping[str, dict[Name, Figure]]) -> None:
        """Figures that need two models."""
        if not self.reference_is_of_same_rows:
            return
        by_model = self.results.get("truth_ratio", {})
        for language, figures in found.items():
            loss = figures.get(Name("auc_loss"))
            if loss is not None and loss.never_seen is not None:
                figures |= privacy_leakage(loss, loss.never_seen)
            pair = [by_model.get(model, Result()).ratios.get(language, ()) for model in (AUDITED, NEVER_SEEN)]
            if all(pair) and all(value is not None and value == value for each in pair for value in each):
                quality = forget_quality(*pair)
                figures[Name("forget_quality")] = Figure(
                    quality["p_value"], n=int(quality["n"]), statistic=quality["statistic"]
                )


def _estimate(found: Mapping[str, Any] | None) -> Estimate | None:
    return None if found is None else Estimate(**found)


def _place(figure: Estimate, before: Estimate | None = None, never_seen: Estimate | None = None) -> Estimate | None:
    """The position of a figure that has one value for all rows; None where the two ends are not surely apart.

    The interval is that of the audited figure: the ends are taken as they are.
    """
    if before is None or never_seen is None:
        return None
    own, known, never = figure.span, before.span, never_seen.span
    if not all(map(math.isfinite, (*own, *known, *never))):
        return None
    lower, upper = sorted((known, never), key=lambda each: each.value)
    if lower.high >= upper.low:
        return None
    value, *ends = ((each - never.value) / (known.value - never.value) for each in own)
    return Estimate(value, min(ends), max(ends), figure.n)


def assemble(findings: Findings) -> dict:
    """The content of audit.json but for how it was made: verdicts, figures and attacks, worst language first."""
    subjects = findings.subjects
    figures = findings.figures()
    of_audited = {name: by_model.get(AUDITED, Result()) for name, by_model in findings.results.items()}
    doubts: dict[Variant, str] = {}
    for result in of_audited.values():
        doubts |= result.doubts
    withheld = {name: result.withheld for name, result in of_audited.items() if result.withheld}
    languages = {}
    for index, (language, found) in enumerate(figures.items()):
        if not any(name.counts_as_knowledge for name in found):
            continue  # it has neither a forget row nor one of an earlier request
        verdict, reasons = judge(found, doubts, withheld)
        languages[language] = {
            "verdict": verdict,
            "reasons": reasons,
            "held_out": index >= subjects[AUDITED].num_trained,
            "figures": {str(name): figure.as_json() for name, figure in found.items()},
        }
    order = sorted(languages, key=lambda code: (VERDICTS.index(languages[code]["verdict"]), -_worst(figures[code])))
    judged = [each["verdict"] for each in languages.values()]
    return {
        "schema_version": 1,
        "models": {name: subjects[name].source if name in subjects else None for name in reversed(ALL)},
        "summary": {
            "verdicts": {verdict: judged.count(verdict) for verdict in VERDICTS},
            "worst_language": order[0] if order else None,
            "nothing_to_forget": [code for code in order if nothing_to_forget(figures[code])],
        },
        "rule": RULE,
        "languages": {code: languages[code] for code in order},
        "attacks": {name: _attack(CHECKS[name], by_model, figures) for name, by_model in findings.results.items()},
        "skipped": findings.skipped,
        "timing": findings.seconds,
    }


def _attack(
    check: Check, by_model: Mapping[str, Result], figures: Mapping[str, Mapping[Name, Figure]]
) -> dict[str, Any]:
    """What a check shows beyond single figures: its variants by language, its matrix with all models, its notes."""
    audited = by_model[AUDITED]
    variants: dict[str, dict[str, dict]] = {}
    found: dict[str, Any] = {"variants": variants, "notes": list(audited.notes)}
    for name in audited.names if check.is_attack else ():
        cells = {code: each[name].as_json() for code, each in figures.items() if name in each}
        variants.setdefault(name.variant.name, {})[name.metric] = {
            code: cell | {AUDITED: {key: cell[key] for key in ("value", "low", "high", "n")}}
            for code, cell in cells.items()
        }
    if audited.matrix:
        tables: dict[str, Sequence[Sequence[float | None]]] = {}
        for result in by_model.values():
            tables |= result.matrix.values if result.matrix else {}
        found["matrix"] = dataclasses.replace(audited.matrix, values=tables).as_json()
    return found


def _worst(figures: Mapping[Name, Figure]) -> float:
    """The greatest share of the way back to the model before, over figures that tell knowledge."""
    known = [figure for name, figure in figures.items() if name.counts_as_knowledge]
    placed = [figure.position or figure.excess for figure in known]
    return max((each.span.value for each in placed if each), default=0.0)
