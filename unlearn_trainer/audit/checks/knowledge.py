"""What a model still prefers and says: candidates in every language, truth ratios, continuations, and its utility."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from ...evaluation.generation import continued_rows
from ...evaluation.metrics import mean_reciprocal_rank, probing_accuracy, truth_ratio_score
from ...evaluation.probing import CandidateScores
from ..figures import bootstrap, rows_by_language, seed_of
from ..results import Estimate, Matrix, Name, Result, Variant
from ..subject import Subject

# Items of a split and language that the utility is measured on, evenly spaced: as many as tell models apart.
UTILITY_ITEMS = 100
UTILITY_SPLITS = ("retain", "valid", "test")


def probing(subject: Subject) -> Result:
    """Which candidate the model prefers for the forget rows, and whether its languages agree on that.

    ``probing_accuracy`` (the right one has the lowest mean NLL of the whole sentence; Kassner et al. 2021),
    ``probing_accuracy_answer_tokens`` (of its own tokens alone), ``mean_reciprocal_rank`` (by the sentence), and
    ``rank_consistency`` of a language with each other one (RankC, Qi et al. 2023). Rows with one candidate are always
    right, and have no part in the consistency.
    """
    scored = _candidates(subject, "forget", "probing")
    if not scored:
        return Result(notes=["no forget row has candidates"])
    figures: dict[str, list[float]] = {
        "probing_accuracy": [probing_accuracy([row.sentence_losses], [row.correct])[0] for row in scored],
        "probing_accuracy_answer_tokens": [probing_accuracy([row.token_losses], [row.correct])[0] for row in scored],
        "mean_reciprocal_rank": [mean_reciprocal_rank([row.sentence_losses], [row.correct]) for row in scored],
    }
    result = Result()
    result.add_rows(_by_language(subject, scored, figures))
    complete = [row for row in scored if row.offers_a_choice and _is_complete(subject, row)]
    pairs = consistencies(complete)
    if not pairs:
        result.notes = ["no two languages have the same candidates for a row: no RankC"]
        return result
    agreement: dict[int, dict[int, list[float]]] = {}
    between: dict[tuple[int, int], list[float]] = {}
    for (item, first, second), value in pairs.items():
        agreement.setdefault(first, {}).setdefault(item, []).append(value)
        between.setdefault((first, second), []).append(value)
    result.rows[Name("rank_consistency")] = {
        subject.languages[language]: {
            "items": list(by_item),
            "values": [math.fsum(values) / len(values) for values in by_item.values()],
        }
        for language, by_item in sorted(agreement.items())
    }
    order = sorted(agreement)
    codes = [subject.languages[language] for language in order]
    table = [[math.fsum(found) / len(found) if (found := between.get((a, b))) else None for b in order] for a in order]
    result.matrix = Matrix(codes, codes, "language", "language", "rank_consistency", {subject.name: table})
    result.notes = [
        "RankC compares the order of the candidates in two languages, whether it is right or not; orders drawn "
        f"at random would have {np.mean([_chance(len(row.correct)) for row in complete]):.2f}."
    ]
    return result


def rank_consistency(first: Sequence[int], second: Sequence[int]) -> float:
    """RankC of one row in two languages, from 0 to 1 (Qi et al. 2023, Cross-Lingual Consistency of Factual Knowledge).

    The share that the best j of both have in common, averaged over j with the weights softmax(N - j): for N = 10 the
    best one alone has 63 % of the weight.

    Args:
        first, second: indices of the same N candidates, the preferred one first.

    Raises:
        ValueError: they do not order the same candidates.
    """
    if sorted(first) != sorted(second) or not len(first):
        raise ValueError(f"{list(first)} and {list(second)} do not order the same candidates")
    shares = [len({*first[:j]} & {*second[:j]}) / j for j in range(1, len(first) + 1)]
    return math.fsum(w * share for w, share in zip(_rank_weights(len(first)), shares, strict=True))


def consistencies(scored: Sequence[CandidateScores]) -> dict[tuple[int, int, int], float]:
    """``{(item, language, other language): RankC}``, both ways, of rows whose candidates stand in the same order.

    That is taken for granted where there are equally many and the same ones are right, as in BMLAMA.
    """
    by_item: dict[int, list[tuple[CandidateScores, list[int]]]] = {}
    for row in scored:
        order = np.argsort(row.sentence_losses, kind="stable").tolist()
        by_item.setdefault(row.item, []).append((row, order))
    found = {}
    for item, rows in by_item.items():
        for index, (row, order) in enumerate(rows):
            for other, other_order in rows[:index]:
                if row.correct == other.correct:
                    value = rank_consistency(order, other_order)
                    found[item, row.language, other.language] = found[item, other.language, row.language] = value
    return found


def truth_ratio(subject: Subject) -> Result:
    """Whether the right answer, paraphrased, is likelier than wrong ones: TOFU's truth ratio R on the forget rows.

    ``truth_ratio`` is min(R, 1/R) with R = mean P(wrong) / P(right), P = exp(-mean NLL) of an answer's tokens and the
    arithmetic mean: 1 where the model does not tell right from wrong (Maini et al. 2024). ``ratios`` has log R of each
    row by language, of which :func:`forget_quality` of two models is made.
    """
    scored = [row for row in _candidates(subject, "forget", "truth ratio") if row.offers_a_choice]
    if not scored:
        return Result(notes=["no forget row has a wrong answer to compare with"])
    ratios: dict[str, list[float]] = {}
    for row in scored:
        ratios.setdefault(subject.languages[row.language], []).append(row.log_truth_ratio)
    scores = [truth_ratio_score(row.log_truth_ratio, is_forget=True) for row in scored]
    result = Result(ratios=ratios)
    result.add_rows(_by_language(subject, scored, {"truth_ratio": scores}))
    return result


def forget_quality(audited: Sequence[float], never_seen: Sequence[float]) -> dict[str, float]:
    """Two-sample Kolmogorov-Smirnov test between the truth ratios of two models: TOFU's forget quality.

    A ratio and its logarithm give the same. The p-value is exact (conservative where values tie) but for samples whose
    sizes' least common multiple exceeds 2^31; log10 of it is what TOFU plots. It says how surely the two
    can be told apart, which grows with n: a high one with few rows means little.

    Args:
        audited, never_seen: a ratio of each row.

    Returns:
        ``statistic``, the largest distance of the two distribution functions; ``p_value``; ``n`` of the smaller
        sample.

    Raises:
        ValueError: a sample is empty or has a NaN.
    """
    from scipy import stats  # takes a second to import

    first, second = (np.asarray(values, dtype=np.float64) for values in (audited, never_seen))
    m, n = len(first), len(second)
    if not m or not n or np.isnan(first).any() or np.isnan(second).any():
        raise ValueError(f"no test between {m} and {n} ratios, or one of them is not a number")
    with warnings.catch_warnings():
        # Where rounding takes a chance of nearly 1 beyond 1, SciPy warns and takes the asymptotic one.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        test = stats.ks_2samp(first, second, method="exact")
    # Every order of the two samples has a distance of one row at least.
    p_value = 1.0 if test.statistic * max(m, n) < 1 + 1e-9 else float(test.pvalue)
    return {"statistic": float(test.statistic), "p_value": p_value, "n": min(m, n)}


def generation(subject: Subject) -> Result:
    """What the model says by itself after the beginning of a forget row, greedily and as long as the row goes on.

    ``rouge_l`` is ROUGE-L recall by words, or by characters where a script has no spaces; ``exact_match`` the share of
    rows continued word for word (Carlini et al. 2023). A text begins with its first half, a cloze row with what stands
    before the answer, a qa row with the question.
    """
    with subject.ready() as model:
        columns = _continued(subject, model, {"forget": subject.datasets["forget"]}, "generation")["forget"]
    result = Result()
    result.add_rows(rows_by_language(columns, subject.languages, ("rouge_l", "exact_match")))
    return result


def utility(subject: Subject) -> Result:
    """How much the model is still worth on what it was to keep: TOFU's model utility (Maini et al. 2024).

    The harmonic mean of probability, ROUGE-L recall and, where rows have wrong answers, max(0, 1 - R) of the truth
    ratio R. ``model_utility`` is that of the retain split; TOFU takes real authors and world facts in, but here valid
    and test hold what the model never saw, and a harmonic mean is hardly greater than its least part. Each split has
    ``<split>/model_utility`` besides, where there are several. Only without a retain split ``model_utility`` is over
    all splits there are.
    """
    splits = {
        split: _spaced(subject.datasets[split], UTILITY_ITEMS)
        for split in UTILITY_SPLITS
        if len(subject.datasets.get(split, ()))
    }
    if not splits:
        return Result(notes=["there is neither a retain nor a valid or test split"])
    with subject.ready() as model:
        measured = subject.rows(splits, model=model, description="utility")
        continued = _continued(subject, model, splits, "utility")
        scored = subject.evaluator.candidates(
            model, splits, subject.args.device, description=f"{subject.name}: utility"
        )
    samples: dict[str, dict[str, np.ndarray]] = {}
    for split, columns in measured.items():
        ratios = {
            (row.language, row.item): row.log_truth_ratio for row in scored.get(split, ()) if row.offers_a_choice
        }
        keys = list(zip(columns["language"].tolist(), columns["item"].tolist(), strict=True))
        truth = [truth_ratio_score(ratios[key], is_forget=False) if key in ratios else math.nan for key in keys]
        # Both come in the order of the split.
        table = np.stack([columns["probability"], continued[split]["rouge_l"], truth], axis=1)
        for index, language in enumerate(subject.languages):
            chosen = table[columns["language"] == index]
            if len(chosen):
                samples.setdefault(language, {})[split] = chosen[:, ~np.isnan(chosen).all(0)]
    counted = ["retain"] if "retain" in splits else list(splits)
    figures: dict[Name, dict[str, Estimate]] = {}
    for language, by_split in samples.items():
        named = {Name("model_utility"): [by_split[split] for split in counted if split in by_split]}
        if len(splits) > 1:
            named |= {Name("model_utility", Variant.named(split)): [table] for split, table in by_split.items()}
        # One seed for all, so that what is there under two names is the same to the last digit.
        seed = seed_of(subject.seed, "model_utility", language)
        for name, tables in named.items():
            if tables:
                found = Estimate.from_json(bootstrap(harmonic_mean_of_means, *tables, seed=seed))
                figures.setdefault(name, {})[language] = found
    why = " alone; valid and test rows were never seen" if counted == ["retain"] else ""
    notes = [
        f"Model utility without a split's name is of {' and '.join(counted)} rows{why}.",
        f"It is measured on at most {UTILITY_ITEMS} items of a split in each language.",
    ]
    return Result(figures=figures, notes=notes)


def harmonic_mean_of_means(*tables: np.ndarray) -> np.ndarray:
    """Statistic: the harmonic mean [resamples] over all columns' means of [resamples, rows, columns], NaN left out.

    0 as soon as one of the means is 0.
    """
    means = []
    for table in tables:
        known = ~np.isnan(table)
        with np.errstate(invalid="ignore"):
            means.append(np.where(known, table, 0.0).sum(1) / known.sum(1))
    columns = np.concatenate(means, axis=1)
    with np.errstate(divide="ignore"):
        return columns.shape[1] / (1 / columns).sum(1)


def _candidates(subject: Subject, split: str, what: str) -> list[CandidateScores]:
    rows = {split: subject.datasets[split]}
    with subject.ready() as model:
        found = subject.evaluator.candidates(model, rows, subject.args.device, description=f"{subject.name}: {what}")
    return found.get(split, [])


def _continued(subject: Subject, model, rows: Mapping[str, Dataset], what: str) -> dict[str, dict[str, np.ndarray]]:
    return continued_rows(
        model,
        rows,
        subject.tokenizer,
        subject.args.device,
        subject.args.per_device_eval_batch_size,
        show_progress=not subject.args.disable_tqdm,
        description=f"{subject.name}: {what}",
    )


def _by_language(
    subject: Subject, scored: Sequence[CandidateScores], figures: Mapping[str, Sequence[float]]
) -> dict[str, dict]:
    named = {"language": [row.language for row in scored], "item": [row.item for row in scored], **figures}
    columns = {name: np.array(values) for name, values in named.items()}
    return rows_by_language(columns, subject.languages, list(figures))


def _is_complete(subject: Subject, row: CandidateScores) -> bool:
    """Whether truncation has left all candidates: one that is missing would shift those after it."""
    content = subject.items["forget"][row.item].content[subject.languages[row.language]]
    return len(content.choices()) == len(row.correct)


def _spaced(rows: Dataset, count: int) -> Dataset:
    """At most ``count`` items of each language, in the split's order: the same ones where all languages have all."""
    columns = rows.with_format(None)
    languages, items = np.array(columns["language"][:]), np.array(columns["item"][:])
    chosen = np.zeros(len(rows), dtype=bool)
    # Each language by itself: of flat rows every k-th item may be one of the same language.
    for language in np.unique(languages):
        known = np.unique(items[languages == language])
        chosen |= (languages == language) & np.isin(items, known[:: math.ceil(len(known) / count)])
    return rows.select(np.flatnonzero(chosen))


def _rank_weights(count: int) -> np.ndarray:
    weights = np.exp(-np.arange(count, dtype=np.float64))
    return weights / weights.sum()


def _chance(count: int) -> float:
    """RankC to be expected of two orders drawn at random: the best j have j^2 / N in common on average."""
    return float(_rank_weights(count) @ np.arange(1, count + 1)) / count
