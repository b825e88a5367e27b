"""What a run knows of its languages: plain numbers, the same on every process, and how they move.

Nothing here knows of tensors, processes or a Trainer: the callback beside it brings the sums of the batches and the
figures of the evaluations. The rules stand in ``policy.py``: read that first.
"""

import dataclasses
import math
from collections.abc import Sequence

from transformers.utils import logging

from ..errors import ConfigError
from .policy import (
    NOTHING_TO_FORGET,
    WeightPolicy,
    perplexity_ratio,
    primal_dual_weights,
    remembered,
    target_weights,
    unlearning_score,
)

logger = logging.get_logger(__name__)

# Sums kept for every (side, language) between two updates.
SUMS = ("tokens", "nll", "rows", "memorization_accuracy", "extraction_strength", "teacher_probability")
SIDES = ("forget", "retain")
# All that a checkpoint holds beside the languages and the policy, in this order.
CHECKPOINTED = (
    *("forget", "retain", "distill"),
    "identity",
    *("figures_at_start", "start", "target", "metric"),
    *("retain_loss_at_start", "watched_at_start", "kept_split"),
    *("window", "teacher_sums"),
    *("best_score", "evaluations_without_gain", "history", "stop_reason"),
)


@dataclasses.dataclass(eq=False)
class LanguageWeights:
    """The forget, retain and distill weights of every language, and what moves them or ends the run.

    Lists hold one entry a language, in the order of ``languages``. ``figures`` are ``{split: {language: {metric:
    number}}}``, as the evaluator gives them.

    Args:
        languages: codes of the trained languages, in the order of the rows' ``language`` column.
        policy: how the weights move; a ``dict`` of its fields where it was read from a checkpoint.
    """

    languages: list[str]
    policy: WeightPolicy
    # The weights.
    forget: list[float] = dataclasses.field(init=False)
    retain: list[float] = dataclasses.field(init=False)
    distill: list[float] = dataclasses.field(init=False)
    # What a resumed run must have in common with this one: kept here because checkpoints hold this state as it is.
    identity: dict | None = dataclasses.field(init=False, default=None)
    # Before the first step: all figures; of forget_metric what was remembered, and what counts as forgotten.
    figures_at_start: dict | None = dataclasses.field(init=False, default=None)
    start: list[float] = dataclasses.field(init=False)
    target: list[float] = dataclasses.field(init=False)
    metric: list[float] | None = dataclasses.field(init=False, default=None)  # of the last window or evaluation
    retain_loss_at_start: list[float] | None = dataclasses.field(init=False, default=None)
    watched_at_start: list[float] | None = dataclasses.field(init=False, default=None)  # the loss of what `watch` sees
    kept_split: str | None = dataclasses.field(init=False, default=None)  # the one whose perplexity the score takes
    # Sums over the batches since the last update, {side: [languages][SUMS]}.
    window: dict[str, list[list[float]]] = dataclasses.field(init=False)
    # The teacher's probabilities of all retain tokens seen, and how many these were: [languages][2].
    teacher_sums: list[list[float]] = dataclasses.field(init=False)
    # Stops.
    best_score: float = dataclasses.field(init=False, default=-1.0)
    evaluations_without_gain: int = dataclasses.field(init=False, default=0)
    history: list[dict] = dataclasses.field(init=False)  # the weights after each move, with its step
    stop_reason: str | None = dataclasses.field(init=False, default=None)

    def __post_init__(self):
        self.languages = list(self.languages)
        if not isinstance(self.policy, WeightPolicy):
            self.policy = WeightPolicy(**self.policy)
        count = len(self.languages)
        self.forget, self.retain = [1.0] * count, [1.0] * count
        self.distill = [self.policy.distill_constant] * count
        self.start, self.target = [1.0] * count, [0.0] * count
        self.window = _zeros(count)
        self.teacher_sums = [[0.0, 0.0] for _ in range(count)]
        self.history = []

    # ---- the beginning ---------------------------------------------------------------------------------------------

    def begin(self, figures: dict, memorized_first: bool = False) -> None:
        """Set targets and references from the figures before the first step.

        Args:
            figures: ``{split: {language: {metric: number}}}`` of the start model.
            memorized_first: that model was trained on the forget rows by this run; for the remedy in a warning.

        Raises:
            ConfigError: see :meth:`WeightPolicy.check_measured`.
        """
        self.policy.check_measured(figures)
        self.figures_at_start = figures
        if "forget" in figures:
            self.start = self._of(figures, "forget", self.policy.forget_metric)
            self.metric = list(self.start)
            self.target = self._targets(figures)
        self.kept_split = next((split for split in ("valid", "retain") if split in figures), None)
        if "retain" in figures:
            self.retain_loss_at_start = self._of(figures, "retain", "loss")
            self.distill = self._distill(self._of(figures, "retain", "token_probability"))
        idle = self.nothing_to_forget
        if "forget" in figures and idle:
            everywhere = len(idle) == len(self.languages)
            remedy = "; memorize it first (--memorize_first) to show forgetting"
            if memorized_first:
                remedy = "; raise --memorize_epochs or --memorize_learning_rate, so that there is something to forget"
            logger.warning(
                "nothing to forget in %s: %s on the forget set is within %.2f of unseen text before any unlearning%s",
                "any language" if everywhere else ", ".join(idle),
                self.policy.forget_metric,
                NOTHING_TO_FORGET,
                remedy if everywhere else "",
            )
        self._reweigh(0)

    @property
    def nothing_to_forget(self) -> list[str]:
        """Languages whose forget set was known no better than unseen text at the start."""
        return [
            language
            for language, m0, tau in zip(self.languages, self.start, self.target, strict=True)
            if remembered(m0, m0, tau) is None
        ]

    def _of(self, figures: dict, split: str, metric: str) -> list[float]:
        found = figures[split]
        known = [found[language][metric] for language in self.languages if language in found]
        if not known:
            raise ConfigError(f"the {split} split has no row in any trained language ({', '.join(self.languages)})")
        mean = sum(known) / len(known)
        return [found[language][metric] if language in found else mean for language in self.languages]

    def _targets(self, figures: dict) -> list[float]:
        if self.policy.forget_target != "auto":
            return [float(self.policy.forget_target)] * len(self.languages)
        if "valid" in figures:
            return self._of(figures, "valid", self.policy.forget_metric)
        return [0.0] * len(self.languages)

    def _distill(self, probabilities: Sequence[float]) -> list[float]:
        return list(probabilities) if self.policy.distill_weighting == "language" else list(self.distill)

    # ---- moves ------------------------------------------------------------------------------------------------------

    def add_to_window(self, sums: Sequence[Sequence[Sequence[float]]]) -> None:
        """Add sums [sides][languages][SUMS] of all processes to those since the last update."""
        for side, fresh in zip(SIDES, sums, strict=True):
            for total, more in zip(self.window[side], fresh, strict=True):
                total[:] = [a + b for a, b in zip(total, more, strict=True)]

    def move_by_window(self, step: int) -> None:
        """Move the weights by the batches since the last update, and begin a new window."""
        window, self.window = self.window, _zeros(len(self.languages))
        forget, retain = window["forget"], window["retain"]
        if self.metric is not None:
            column = SUMS.index(self.policy.forget_metric)
            rows = SUMS.index("rows")
            self.metric = [
                row[column] / row[rows] if row[rows] else m for row, m in zip(forget, self.metric, strict=True)
            ]
        tokens, nll = SUMS.index("tokens"), SUMS.index("nll")
        losses = [row[nll] / row[tokens] if row[tokens] else None for row in retain]
        for total, row in zip(self.teacher_sums, retain, strict=True):
            total[0] += row[SUMS.index("teacher_probability")]
            total[1] += row[tokens]
        if self.policy.distill_weighting == "language":
            self.distill = [q / n if n else w for (q, n), w in zip(self.teacher_sums, self.distill, strict=True)]
        self._move_retain(losses)
        self._reweigh(step)

    def after_evaluation(self, figures: dict, score: float | None, step: int) -> None:
        """Move the weights by the figures of an evaluation, which replace the running means.

        The window stays as it is: the rows seen since the last update count in the next one, whether or not there was
        an evaluation in between. Emptied, it would lose what the teacher said of them, and leave the next update to
        the few rows of the rest.
        """
        if "forget" in figures:
            self.metric = self._of(figures, "forget", self.policy.forget_metric)
        if "retain" in figures:
            self._move_retain(self._of(figures, "retain", "loss"))
        self._reweigh(step)
        if score is not None and score > self.best_score:
            self.evaluations_without_gain, self.best_score = 0, score
        else:
            self.evaluations_without_gain += 1

    def _move_retain(self, losses: Sequence[float | None]) -> None:
        if self.retain_loss_at_start is None:
            return
        gaps = [
            loss - loss0 if loss is not None else None
            for loss, loss0 in zip(losses, self.retain_loss_at_start, strict=True)
        ]
        if self.policy.retain_weighting == "primal_dual":
            excess = [gap - self.policy.retain_epsilon if gap is not None else 0.0 for gap in gaps]
            self.retain = primal_dual_weights(
                self.retain,
                excess,
                self.policy.retain_eta,
                self.policy.retain_weight_min,
                self.policy.retain_weight_max,
            )
        self._guard(gaps)

    def _reweigh(self, step: int) -> None:
        if self.policy.forget_weighting == "target" and self.metric is not None:
            self.forget = target_weights(self.metric, self.start, self.target)
        weights = {
            kind: dict(zip(self.languages, getattr(self, kind), strict=True))
            for kind in ("forget", "retain", "distill")
        }
        if self.history and self.history[-1]["step"] == step:
            self.history.pop()
        self.history.append({"step": step, **weights})

    # ---- stops ------------------------------------------------------------------------------------------------------

    def watch(self, figures: dict) -> None:
        """Guard a method that trains on no retain rows by figures of some of them; the first are the reference."""
        losses = self._of(figures, "retain", "loss")
        if self.watched_at_start is None:
            self.watched_at_start = losses
        self._guard([loss - loss0 for loss, loss0 in zip(losses, self.watched_at_start, strict=True)])

    def _guard(self, gaps: Sequence[float | None]) -> None:
        """Stop a run whose retain perplexity went beyond the limit."""
        limit = self.policy.max_retain_perplexity_ratio
        known = [gap for gap in gaps if gap is not None]
        if limit and known and not sum(known) / len(known) <= math.log(limit):
            ratio = perplexity_ratio(sum(known) / len(known))
            found = "not a number" if math.isnan(ratio) else f"{ratio:.3g} times its start"
            self.stop_reason = f"retain perplexity is {found} (--max_retain_perplexity_ratio {limit:g})"
            logger.warning("stopping: %s", self.stop_reason)

    def stop_if_forgotten(self) -> None:
        """End the run once every language is at its target and no evaluation of the last ``patience`` was better."""
        waited = self.evaluations_without_gain >= self.policy.patience
        if self.policy.stop_when_forgotten and waited and self.all_forgotten():
            self.stop_reason = f"forgotten in every language, no better for {self.policy.patience} evaluations"

    def all_forgotten(self) -> bool:
        """Whether every language that had something to forget is at its target."""
        if self.metric is None:
            return False
        shares = [remembered(m, m0, t) for m, m0, t in zip(self.metric, self.start, self.target, strict=True)]
        shares = [share for share in shares if share is not None]
        return bool(shares) and not any(shares)

    # ---- what is reported -------------------------------------------------------------------------------------------

    def score(self, figures: dict) -> float | None:
        """The unlearning score of ``figures`` against the start, see :func:`unlearning_score`.

        ``None`` where there was nothing to forget in any language, or where neither valid nor retain rows are
        measured, so that nobody can say what was kept.
        """
        if self.kept_split is None or self.figures_at_start is None:
            return None
        metric = self._of(figures, "forget", self.policy.forget_metric)
        loss = self._of(figures, self.kept_split, "loss")
        loss_at_start = self._of(self.figures_at_start, self.kept_split, "loss")
        shares, ratios = {}, {}
        for index, language in enumerate(self.languages):
            shares[language] = remembered(metric[index], self.start[index], self.target[index])
            ratios[language] = perplexity_ratio(loss[index] - loss_at_start[index])
        return unlearning_score(shares, ratios)

    def logged_weights(self) -> dict[str, float]:
        """``weights/<kind>/<language>`` of every kind that moves."""
        moving = {
            "forget": self.policy.forget_weighting != "uniform",
            "retain": self.policy.retain_weighting != "uniform",
            "distill": self.policy.distill_weighting == "language",
        }
        return {
            f"weights/{kind}/{language}": getattr(self, kind)[index]
            for kind, moves in moving.items()
            if moves
            for index, language in enumerate(self.languages)
        }

    def reported_history(self) -> list[dict]:
        """``history`` for results.json: ``distill`` is null where each token, and no language, has such a weight."""
        if self.policy.distill_weighting != "token":
            return self.history
        return [entry | {"distill": dict.fromkeys(self.languages)} for entry in self.history]


def check_saved(saved: dict) -> None:
    """Refuse what is not the whole state of language weights, as a checkpoint holds it.

    Args:
        saved: ``{"args": {"languages", "policy"}, "attributes": {...}}``, the latter with all of :data:`CHECKPOINTED`.

    Raises:
        ConfigError: names what is missing, unknown or of another form.
    """
    _check_keys("the state", saved, ("args", "attributes"))
    given, kept = saved["args"], saved["attributes"]
    _check_keys("args", given, ("languages", "policy"))
    _check_keys("policy", given["policy"], [field.name for field in dataclasses.fields(WeightPolicy)])
    _check_keys("attributes", kept, CHECKPOINTED)
    count = len(given["languages"]) if isinstance(given["languages"], list) else -1
    tables = {"teacher_sums": (kept["teacher_sums"], 2)}
    for side in SIDES:
        tables[f"window {side}"] = kept["window"].get(side) if isinstance(kept["window"], dict) else None, len(SUMS)
    wrong = [name for name in ("forget", "retain", "distill", "start", "target") if not _finite(kept[name], count)]
    for name in ("metric", "retain_loss_at_start", "watched_at_start"):  # of a ruined model they may be NaN
        wrong += [name] if kept[name] is not None and not _numbers(kept[name], count) else []
    for name, (table, columns) in tables.items():
        is_table = isinstance(table, list) and len(table) == count and all(_numbers(line, columns) for line in table)
        wrong += [] if is_table else [name]
    if wrong or not _numbers([kept["best_score"], kept["evaluations_without_gain"]], 2):
        raise ConfigError(f"language weights: {', '.join(wrong) or 'best_score'} is not of a number for each language")
    if not isinstance(kept["history"], list):
        raise ConfigError("language weights: history is no list")


def _check_keys(place, found, wanted):
    if not isinstance(found, dict):
        raise ConfigError(f"language weights: {place} is no object")
    lacking = [name for name in wanted if name not in found]
    unknown = [str(name) for name in found if name not in wanted]
    said = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has the unknown {', '.join(unknown)}"] * bool(unknown)
    if said:
        raise ConfigError(f"language weights: {place} {' and '.join(said)}, as another version may have written it")


def _numbers(values, count):
    """Whether these are ``count`` numbers."""
    return isinstance(values, list) and len(values) == count and all(type(value) in (int, float) for value in values)


def _finite(values, count):
    return _numbers(values, count) and all(map(math.isfinite, values))


def _zeros(count: int) -> dict[str, list[list[float]]]:
    return {side: [[0.0] * len(SUMS) for _ in range(count)] for side in SIDES}
