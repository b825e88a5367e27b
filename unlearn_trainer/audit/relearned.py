"""Does what was forgotten come back in every language once a single one is learned again?"""

import numpy as np

from ..relearning import relearn
from .figures import rows_by_language
from .subject import AUDITED, Subject

METRICS = ("memorization_accuracy", "extraction_strength")


def relearning(subject: Subject) -> dict:
    """Fine-tunes a copy on the forget rows of one language A at a time, and measures them in every language B.

    ``relearned/...`` is, for each row, the mean over all A but the row's own language: what came back without having
    been shown. The control learns as many steps from unseen rows of A instead (as the relearning of Łucki et al. 2024
    needs one): what comes back there comes from training at all.
    """
    args = subject.args
    trained = subject.languages[: subject.num_trained]
    asked = args.audit_relearn_languages or trained
    # A language without rows in a split is skipped there.
    matrix: dict[str, list] = {}
    sums: dict[str, dict[tuple[int, int], list[float]]] = {}
    # What comes back by training at all is asked of the audited model only.
    control = subject.unseen if subject.name == AUDITED else None
    for name, split in (("", "forget"), ("control", control)):
        if split is None:
            continue
        table = []
        for language in asked:
            columns = _after(subject, split, language)
            table.append(_means(columns, subject.languages))
            if columns is not None:
                _collect(sums.setdefault(name, {}), columns, subject.languages.index(language))
        matrix[name or subject.name] = table
    rows = {}
    for name, collected in sums.items():
        prefix = "relearned" if not name else "relearned_from_other_text"
        keys = sorted(collected)
        columns = {
            "language": np.array([language for language, _ in keys]),
            "item": np.array([item for _, item in keys]),
        }
        for at, metric in enumerate(METRICS):
            columns[metric] = np.array([np.mean([each[at] for each in collected[key]]) for key in keys])
        found = rows_by_language(columns, subject.languages, METRICS)
        rows |= {f"{prefix}/{metric}": by_language for metric, by_language in found.items()}
    notes = [
        f"{args.audit_relearn_steps} steps of {args.audit_relearn_batch_size} rows at a learning rate of "
        f"{args.audit_relearn_learning_rate:g}; a stronger attacker may bring back more"
    ]
    if subject.unseen is None:
        notes.append("no control: there are no unseen rows (valid or test)")
    return {
        "rows": rows,
        "matrix": {
            "rows": asked,
            "columns": subject.languages,
            "row_title": "relearned in",
            "column_title": "measured in",
            "metric": "memorization_accuracy",
            "values": matrix,
        },
        "notes": notes,
    }


def _after(subject, split, language):
    """Columns of the forget rows after learning the split's rows of one language; None where it has none."""
    args, rows = subject.args, subject.datasets[split]
    if subject.languages.index(language) not in set(rows["language"]):
        return None
    trainer = relearn(
        subject.load,
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
    return trainer.measure_rows(description=f"{subject.name}: relearned in {language}")["forget"]


def _means(columns, languages):
    if columns is None:
        return [None] * len(languages)
    found = []
    for index in range(len(languages)):
        values = columns[METRICS[0]][columns["language"] == index]
        found.append(float(values.mean()) if len(values) else None)
    return found


def _collect(collected, columns, relearned):
    for language, item, *values in zip(
        columns["language"].tolist(),
        columns["item"].tolist(),
        *(columns[metric].tolist() for metric in METRICS),
        strict=True,
    ):
        if language != relearned:
            collected.setdefault((language, item), []).append(values)
