"""How well a model knows the rows as they stand, and whether its losses tell forget rows from never-seen ones."""

import zlib
from collections import Counter

import numpy as np

from ...evaluation.membership import area
from ..figures import bootstrap, mean, perplexity_of_sums, ratio_of_sums, rows_by_language, seed_of
from ..results import Estimate, Figure, Name, Result, Variant
from ..subject import EARLIER, Subject

ROW_FIGURES = ("memorization_accuracy", "extraction_strength", "probability", "loss")
# Columns of the evaluator, and the two made here, that fall as a row is known better.
SCORES = ("loss", "zlib", "zlib_mean", "min_k", "min_k_40", "min_k_plus_plus")


def memorization(subject: Subject) -> Result:
    """MA, ES, probability and losses of every split, and membership AUCs of the forget rows against unseen rows.

    An AUC is the chance that a forget row is more familiar than an unseen one, by loss (Yeom et al. 2018), zlib
    (Carlini et al. 2021), Min-K% (Shi et al. 2024; 20 and 40 %) and Min-K%++ (Zhang et al. 2025); all compare rows of
    one language only. ``auc_zlib`` divides the sum of a row's NLL by the bytes of its compressed text,
    ``auc_zlib_mean`` the mean over its tokens, as the literature does.
    ``nll_per_character`` is what can be compared between languages whose tokens differ in length.
    An AUC of scores that are not all numbers, as a model that has diverged gives them, is left out with a note.
    """
    splits = {name: rows for name, rows in subject.datasets.items() if len(rows)}
    columns = subject.rows(splits, description="memorization")
    for split, found in columns.items():
        texts = labelled_texts(subject, split)
        found["nll"] = found["loss"] * found["tokens"]
        found["characters"] = np.array([max(1, len(text)) for text in texts])
        compressed = np.array([len(zlib.compress(text.encode())) for text in texts])
        found["zlib"], found["zlib_mean"] = found["nll"] / compressed, found["loss"] / compressed
    result = Result()
    result.add_rows(rows_by_language(columns["forget"], subject.languages, ROW_FIGURES))
    for split in (name for name in columns if name.startswith(EARLIER)):
        # Rows that were never seen stand for those of every request.
        found = columns[split if subject.measured == "forget" else "forget"]
        result.add_rows(rows_by_language(found, subject.languages, ROW_FIGURES[:2]), Variant.named(split))
    figures: dict[Name, dict[str, Estimate]] = {}
    without: Counter[str] = Counter()

    def add(name, language, statistic, *samples):
        seed = seed_of(subject.seed, str(name), language)
        found = Estimate.from_json(bootstrap(statistic, *samples, seed=seed))
        figures.setdefault(name, {})[language] = found

    for index, language in enumerate(subject.languages):
        for split, found in columns.items():
            chosen = found["language"] == index
            if not chosen.any():
                continue
            sums = np.stack([found["nll"][chosen], found["tokens"][chosen]], axis=1)
            if split.startswith(EARLIER):
                continue
            variant = Variant() if split == "forget" else Variant.named(split)
            add(Name("perplexity", variant), language, perplexity_of_sums, sums)
            if split == "forget":
                by_character = np.stack([found["nll"][chosen], found["characters"][chosen]], axis=1)
                add(Name("nll_per_character"), language, ratio_of_sums, by_character)
            else:
                values = found["memorization_accuracy"][chosen]
                add(Name("memorization_accuracy", variant), language, mean, values)
        if subject.unseen is None:
            continue
        inside, outside = (columns[split]["language"] == index for split in ("forget", subject.unseen))
        if inside.any() and outside.any():
            for score in SCORES:
                known, unknown = -columns["forget"][score][inside], -columns[subject.unseen][score][outside]
                if np.isnan(known).any() or np.isnan(unknown).any():
                    without[score] += 1
                else:
                    add(Name(f"auc_{score}"), language, area, known, unknown)
    result.figures = figures
    result.notes = [
        f"auc_{score} was left out in {count} language{'s' * (count > 1)}: the score of a row is not a number."
        for score, count in without.items()
    ]
    return result


def privacy_leakage(audited: Estimate, never_seen: Estimate) -> dict[Name, Figure]:
    """PrivLeak (Shi et al. 2024, MUSE) and the privacy score, of an AUC against the never-seen model's.

    PrivLeak is 100 (A - A0) / A0 with A = 1 - AUC: below 0 where forget rows are still too familiar, above 0 where
    they are conspicuously unfamiliar. The score is 1 - min(1, |AUC - AUC0| / AUC0). The intervals are those of the
    audited AUC; the never-seen model's is taken as it is.

    Args:
        audited, never_seen: an AUC each.
    """
    reference, own = never_seen.span.value, audited.span
    found = {}
    if reference < 1:
        value, low, high = (100 * (reference - end) / (1 - reference) for end in (own.value, own.high, own.low))
        found[Name("privleak")] = Figure(value, low, high, audited.n)
    if reference > 0:
        ends = sorted(1 - min(1.0, abs(end - reference) / reference) for end in (own.low, own.high))
        value = 1 - min(1.0, abs(own.value - reference) / reference)
        inside = own.low <= reference <= own.high
        high = 1.0 if inside else max(ends[1], value)
        found[Name("privacy_score")] = Figure(value, min(ends[0], value), high, audited.n)
    return found


def labelled_texts(subject: Subject, split: str) -> list[str]:
    """The text that a row's labels spell, row by row, but for one at the first position, which nothing predicts."""
    rows = subject.datasets[split].with_format(None)
    return subject.tokenizer.batch_decode(
        [[label for label in labels[1:] if label >= 0] for labels in rows["labels"]], skip_special_tokens=True
    )
