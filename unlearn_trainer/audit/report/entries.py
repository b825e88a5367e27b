"""Single figures of an audit.json, and how they are written and named wherever people read them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...report.drawing import finite
from ..results import Estimate, Figure, Name, Variant, read_figures

UNMEASURED = "–"
UNKNOWN = Estimate(None)
SHORT = {
    "memorization_accuracy": "MA",
    "extraction_strength": "ES",
    "probing_accuracy": "PA",
    "probing_accuracy_answer_tokens": "PA, answer only",
    "mean_reciprocal_rank": "MRR",
    "rank_consistency": "RankC",
    "min_k_plus_plus": "Min-K++",
    "rouge_l": "ROUGE-L",
}
MEANINGS = {
    "memorization_accuracy": "mean over rows of the share of a row's labelled tokens that the model predicts from the "
    "true prefix",
    "extraction_strength": "mean over rows of the share of a row's labelled tokens that follow, all right, from the "
    "shortest sufficient prefix",
    "probability": "mean over rows of the geometric mean of the probabilities of a row's labelled tokens",
    "loss": "mean over rows of the mean negative log-likelihood of a row's labelled tokens; its place is 1 like "
    "before, too, and below 0 where the texts are less likely than to a model that never saw them",
    "perplexity": "exp of the negative log-likelihood of all rows over the number of their labelled tokens",
    "nll_per_character": "negative log-likelihood of all rows over the number of their labelled characters, whatever "
    "tokens these are cut into",
    "probing_accuracy": "share of the rows whose right candidate gives the whole sentence the lowest mean negative "
    "log-likelihood of a token",
    "rouge_l": "mean over rows of the longest common subsequence of the generated continuation and the true one, over "
    "the true one's length",
    "truth_ratio": "mean over rows of min(R, 1/R), R the likelihood of wrong answers over that of the paraphrased "
    "right one: 1 where the model does not tell them apart",
    "forget_quality": "p-value of a Kolmogorov-Smirnov test between the truth ratios and the never-seen model's",
    "privleak": "percent by which 1 - AUC (by the loss) differs from the never-seen model's; below 0 the rows are "
    "still more familiar than to that one",
    "privacy_score": "1 where the AUC (by the loss) is that of the never-seen model, towards 0 the farther it is",
}


@dataclass(frozen=True)
class Entry:
    """One figure of one language.

    Args:
        attack: name of the attack; empty for a figure of the model and its prompts as they are.
        name: its metric, and the attack's variant; without an attack, the split or request that the figure is of.
        figure: of the audited model, with those of the others where they are known.
    """

    attack: str
    name: Name
    figure: Figure

    @property
    def metric(self) -> str:
        return self.name.metric

    @property
    def variant(self) -> str:
        return self.name.variant.name

    @property
    def value(self) -> float | None:
        return finite(self.figure.value)

    @property
    def position(self) -> Estimate:
        return self.figure.position or UNKNOWN

    @property
    def place(self) -> float | None:
        """Between a model that never saw the texts (0) and the model before (1)."""
        return finite(self.position.value)

    @property
    def judged(self) -> bool:
        """Whether the verdict rests on it: a greater figure then means that more is left."""
        return self.name.counts_as_knowledge

    @property
    def height(self) -> tuple[int, float, float]:
        """Sorts figures of one kind by how much is left, by what tells it best of what is known.

        Judged by the low end of the interval, as a verdict of leaking is: a place between two models that hardly
        differ can be anywhere. It counts up to 1 and to a tenth; of equals the greater figure shows more.
        """
        for rank, known in ((1, self.position), (1, self.figure.excess or UNKNOWN), (0, self.figure)):
            value, low = finite(known.value), finite(known.low)
            if value is not None:
                return rank, round(min(value if low is None else low, 1.0), 1), self.value or 0.0
        return -1, 0.0, 0.0

    @property
    def line(self) -> str:
        """What it is, without the attack's variant."""
        of = self.attack or self.variant
        return f"{words(of)} {short(self.metric)}" if of else short(self.metric)

    def __str__(self) -> str:
        variant = f" ({words(self.variant)})" if self.attack and self.variant not in ("", self.attack) else ""
        place = "" if self.place is None else f", place {number(self.place)}"
        return f"{self.line}{variant} {number(self.value)}{place}"


def entries_of(audit: Mapping[str, Any], code: str) -> list[Entry]:
    """All figures of a language once each: those of the model as it is, then attack by attack."""
    attacked = []
    for attack, about in audit.get("attacks", {}).items():
        for variant, metrics in (about.get("variants") or {}).items():
            for metric, by_language in metrics.items():
                cell = by_language.get(code)
                if cell:
                    name = Name(metric, Variant.named(variant))
                    attacked.append(Entry(attack, name, Figure.from_json({**cell, **(cell.get("after") or {})})))
    known = {entry.name for entry in attacked}
    figures = read_figures(audit["languages"][code].get("figures", {}))
    plain = [Entry("", name, figure) for name, figure in figures.items() if name not in known]
    return plain + attacked


def worst(entries: Iterable[Entry]) -> Entry | None:
    """The one that shows most knowledge for certain, of those that the verdict rests on."""
    judged = (entry for entry in entries if entry.judged and entry.value is not None)
    return max(judged, key=lambda entry: entry.height, default=None)


def number(value: float | None) -> str:
    """A figure as it is written everywhere: three decimals unless it is large or tiny."""
    value = finite(value)
    if value is None:
        return UNMEASURED
    if abs(value) >= 10_000 or 0 < abs(value) < 5e-4:
        return f"{value:.1e}"
    # Adding 0 takes the sign from a zero.
    return f"{value + 0.0:.3f}" if abs(value) < 100 else f"{value:.1f}"


def interval(estimate: Estimate | None) -> str:
    """A value with its interval."""
    estimate = estimate or UNKNOWN
    text, low, high = number(estimate.value), finite(estimate.low), finite(estimate.high)
    return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]"


def short(metric: str) -> str:
    """A metric's short name; a prefix such as that of a split stays before it."""
    for name, abbreviation in SHORT.items():
        if metric == name or metric.endswith(f"_{name}"):
            return words(metric.removesuffix(name)).replace("auc", "AUC") + abbreviation
    return words(metric).replace("auc", "AUC")


def words(name: str) -> str:
    """A name from audit.json as words."""
    return name.replace("_", " ")
