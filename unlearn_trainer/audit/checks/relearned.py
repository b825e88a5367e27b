"""Does what was forgotten come back in every language once a single one is learned again?"""

from collections.abc import Mapping

import numpy as np

from ...errors import TrainingDiverged
from ...runs.relearning import relearn
from ..figures import rows_by_language
from ..results import RELEARNED_FROM_OTHER_TEXT, Matrix, Result, Variant
from ..subject import AUDITED, Subject

METRICS = ("memorization_accuracy", "extraction_strength")
RELEARNED, BEST = Variant("relearned"), Variant("relearned_in_best_language")
# Relearning that leaves its own rows below this and no more than the least gain above where they were did nothing.
KNOWN_AGAIN, LEAST_GAIN = 0.5, 0.1


def relearning(subject: Subject) -> Result:
    """Fine-tunes a copy on the forget rows of one language A at a time, and measures them in every language B.

    ``relearned/...`` is, for each row, the mean over all A but the row's own language: what came back without having
    been shown. ``relearned_in_best_language/...`` is what comes back by the A that brings most back in B: chosen on
    one half of B's rows and measured on the other, both ways, so that the choice raises nothing by chance. Where A is
    the only language, half of its rows are relearned and the others measured. The control learns as many steps from
    unseen rows of A instead (as the relearning of Łucki et al. 2024 needs one): what comes back there comes from
    training at all. Weights are trained in float32, as steps this small are lost in bfloat16.
    """
    args = subject.args
    trained = subject.languages[: subject.num_trained]
    asked = args.audit_relearn_languages or trained
    forget = subject.datasets["forget"]
    start = subject.rows({"forget": forget}, description="before relearning")["forget"]
    result, matrix, notes = Result(), {}, []
    # What comes back by training at all is asked of the audited model only.
    control = subject.unseen if subject.name == AUDITED else None
    for name, split in ((subject.name, "forget"), ("control", control)):
        if split is None:
            continue
        measured = {}
        for language in asked:
            columns, problem = _after(subject, subject.datasets[split], language)
            if columns is not None:
                measured[subject.languages.index(language)] = columns
            elif problem:
                notes.append(f"{name}: {problem}")
        matrix[name] = [_means(measured.get(subject.languages.index(each)), subject.languages) for each in asked]
        found = _brought_back(measured)
        if split == "forget" and len(measured) == 1:
            own = _own_half(subject, forget, subject.languages[next(iter(measured))])
            found = [{key: np.concatenate([each[key] for each in (*found, own)]) for key in own}]
        variants = (RELEARNED, BEST) if split == "forget" else (RELEARNED_FROM_OTHER_TEXT,)
        for variant, columns in zip(variants, found, strict=False):
            figures = rows_by_language(columns, subject.languages, METRICS)
            result.add_rows({metric: by_language for metric, by_language in figures.items() if by_language}, variant)
        if split == "forget":
            idle = [subject.languages[index] for index, each in measured.items() if _did_nothing(index, start, each)]
            if idle:
                remedy = "raise --audit_relearn_learning_rate or --audit_relearn_steps"
                notes.append(f"{name}: hardly anything was relearned in {', '.join(idle)}; {remedy}")
                if len(idle) == len(measured):
                    reason = f"the relearning itself learned next to nothing; {remedy}"
                    result.doubts = dict.fromkeys((RELEARNED, BEST), reason)
    notes.append(
        f"{args.audit_relearn_steps} steps of {args.audit_relearn_batch_size} rows at a learning rate of "
        f"{args.audit_relearn_learning_rate:g}; a stronger attacker may bring back more"
    )
    if subject.unseen is None:
        notes.append("no control: there are no unseen rows (valid or test)")
    result.matrix = Matrix(asked, subject.languages, "relearned in", "measured in", METRICS[0], matrix)
    result.notes = notes
    return result


def _after(subject, rows, language):
    """Columns of the forget rows after learning ``rows`` of one language, and what went wrong where there are none."""
    args = subject.args
    if subject.languages.index(language) not in set(rows["language"][:]):
        return None, None  # it is skipped
    try:
        trainer = relearn(
            lambda: subject.load(dtype="float32"),
            args,
            rows.select_columns([name for name in rows.column_names if not name.startswith("candidate")]),
            language,
            subject.languages,
            learning_rate=args.audit_relearn_learning_rate,
            steps=args.audit_relearn_steps,
            batch_size=args.audit_relearn_batch_size,
            seed=subject.seed,
            measured={"forget": subject.datasets["forget"]},
            tokenizer=subject.tokenizer,
        )
    except TrainingDiverged as error:  # on every process at once
        return None, f"relearning in {language} diverged ({error}); lower --audit_relearn_learning_rate"
    return trainer.measure_rows(description=f"{subject.name}: relearned in {language}")["forget"], None


def _brought_back(measured: Mapping[int, Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Columns of the mean over all relearned languages but the row's own, and of the best one of them.

    Args:
        measured: index of the relearned language to the columns of the forget rows, which stand in one order.
    """
    relearned = sorted(measured)
    found: list[dict[str, np.ndarray]] = []
    if not relearned:
        return found
    first = measured[relearned[0]]
    # [relearned, rows]; NaN where a row's own language was relearned.
    tables = {
        metric: np.stack(
            [np.where(first["language"] == index, np.nan, measured[index][metric]) for index in relearned]
        )
        for metric in METRICS
    }
    others = (~np.isnan(tables[METRICS[0]])).sum(0)

    def columns(values, kept):
        kept_columns = {name: first[name][kept] for name in ("language", "item")}
        return kept_columns | {metric: values[metric][kept] for metric in METRICS}

    if others.any():
        sums = {metric: np.nansum(table, 0) / np.maximum(others, 1) for metric, table in tables.items()}
        found.append(columns(sums, others > 0))
    if (others > 1).any():
        chosen = {metric: np.full(len(others), np.nan) for metric in METRICS}
        for language in np.unique(first["language"][others > 1]):
            mine = np.flatnonzero(first["language"] == language)
            rivals = [at for at, index in enumerate(relearned) if index != language]
            for here, there in ((mine[::2], mine[1::2]), (mine[1::2], mine[::2])):
                if len(there) and len(here):
                    best = max(rivals, key=lambda at: tables[METRICS[0]][at, there].mean())
                    for metric in METRICS:
                        chosen[metric][here] = tables[metric][best, here]
        found.append(columns(chosen, ~np.isnan(chosen[METRICS[0]])))
    return found


def _own_half(subject, rows, language):
    """Columns of every other row of the only language, after learning the rest of them."""
    index = subject.languages.index(language)
    mine = np.flatnonzero(np.asarray(rows["language"][:]) == index)
    columns, _ = _after(subject, rows.select(mine[::2]), language)
    if columns is None or len(mine) < 2:
        return {"language": np.array([]), "item": np.array([]), **{metric: np.array([]) for metric in METRICS}}
    kept = np.isin(columns["item"], np.asarray(rows["item"][:])[mine[1::2]]) & (columns["language"] == index)
    return {name: columns[name][kept] for name in ("language", "item", *METRICS)}


def _did_nothing(language, start, after):
    mine = after["language"] == language
    before, now = (each[METRICS[0]][mine].mean() for each in (start, after))
    return now < min(KNOWN_AGAIN, before + LEAST_GAIN)


def _means(columns, languages):
    if columns is None:
        return [None] * len(languages)
    found = []
    for index in range(len(languages)):
        values = columns[METRICS[0]][columns["language"] == index]
        found.append(float(values.mean()) if len(values) else None)
    return found
