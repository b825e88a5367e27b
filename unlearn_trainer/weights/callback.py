"""Adaptive language weights: statistics of the training batches in, three weight vectors out.

``forget`` u, ``retain`` r and ``distill`` w hold one number a trained language. :class:`LanguageWeightCallback` owns
them; the trainer reads them and adds every batch's token statistics. Every ``weight_update_steps`` optimizer steps,
and after every evaluation, the sums of all processes are reduced and the policies below move the weights.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..errors import ConfigError

logger = logging.get_logger(__name__)

# Sums kept for every (side, language) between two updates.
SUMS = ("tokens", "nll", "rows", "memorization_accuracy", "extraction_strength", "teacher_probability")
SIDES = ("forget", "retain")
# A metric no more than this above its target at the start leaves nothing whose forgetting could be shown.
NOTHING_TO_FORGET = 0.02


def target_weights(metric: Sequence[float], start: Sequence[float], target: Sequence[float]) -> list[float]:
    """Forget weights u proportional to what is still remembered, clip((m - tau) / (m0 - tau), 0, 1).

    Mean 1 over the languages still above their target; 0 at or below it; 1 where there was nothing to forget.
    """
    left = [remembered(m, m0, tau) for m, m0, tau in zip(metric, start, target, strict=True)]
    active = [share for share in left if share]
    mean = sum(active) / len(active) if active else 1.0
    return [1.0 if share is None else share / mean for share in left]


def remembered(metric: float, start: float, target: float) -> float | None:
    """Share of the memorization still there, in [0, 1]; ``None`` where there was none to begin with."""
    if start - target < NOTHING_TO_FORGET:
        return None
    return min(1.0, max(0.0, (metric - target) / (start - target)))


def perplexity_ratio(rise: float) -> float:
    """How many times the perplexity has become after the loss rose by ``rise``, e^rise; NaN where that is NaN."""
    return math.exp(min(rise, 700.0))  # in this order: min() keeps its first argument against NaN


def primal_dual_weights(
    weights: Sequence[float], excess: Sequence[float], eta: float, low: float, high: float
) -> list[float]:
    """Retain weights after one dual ascent step on ``excess`` = log PPL - log PPL0 - epsilon of every language."""
    return [min(high, max(low, r + eta * e)) for r, e in zip(weights, excess, strict=True)]


def unlearning_score(shares: Mapping[str, float | None], perplexity_ratios: Mapping[str, float]) -> float | None:
    """Harmonic mean over languages of forgotten = 1 - share and kept = min(1, PPL0 / PPL); 0 if any of them is 0.

    Args:
        shares: :func:`remembered` of each language; those with ``None`` are left out, and if all are, there is no
            score: ``None``.
        perplexity_ratios: PPL / PPL0 of each language.
    """
    terms = []
    for language, share in shares.items():
        if share is not None:
            # In this order: min() keeps its first argument against NaN, and a NaN perplexity must not pass as kept.
            terms += [1 - share, min(1 / perplexity_ratios[language], 1.0)]
    if not terms:
        return None
    if not all(term > 0 and math.isfinite(term) for term in terms):
        return 0.0
    return len(terms) / sum(1 / term for term in terms)


@dataclasses.dataclass(frozen=True)
class WeightPolicy:
    """How the weights move; the fields are the flags of the same name, whose defaults stand in ``UnlearnConfig``."""

    forget_weighting: str
    retain_weighting: str
    distill_weighting: str
    distill_constant: float
    forget_metric: str
    forget_target: str | float
    weight_update_steps: int
    retain_eta: float
    retain_epsilon: float
    retain_weight_min: float
    retain_weight_max: float
    stop_when_forgotten: bool
    patience: int
    max_retain_perplexity_ratio: float | None

    @classmethod
    def from_config(cls, config) -> "WeightPolicy":
        """Take the fields of an ``UnlearnConfig``."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})

    def check_measured(self, splits: Collection[str]) -> None:
        """Refuse weights that could not move, because what they rest on is not among the evaluated ``splits``.

        Raises:
            ConfigError: names the flags, and what to evaluate.
        """
        for flag, policy, needed in (
            ("forget_weighting", self.forget_weighting, "forget"),
            ("retain_weighting", self.retain_weighting, "retain"),
        ):
            if policy != "uniform" and needed not in splits:
                raise ConfigError(
                    f"--{flag} {policy} needs the figures of the {needed} rows: add --do_eval true, or pass "
                    f"UnlearnTrainer an eval_dataset with {needed}"
                )
        if self.forget_weighting == "target" and self.forget_target == "auto" and "valid" not in splits:
            raise ConfigError(
                "--forget_weighting target needs text the model never saw: give --valid_file, or a number "
                "with --forget_target"
            )


class LanguageWeightCallback(TrainerCallback, ExportableState):
    """Owns the forget, retain and distill weights of every language, and the stops that depend on them.

    Its whole state is JSON and identical on all processes, so checkpoints restore it; look it up in
    ``trainer.callback_handler`` each time, because restoring builds a new instance.

    Args:
        languages: codes of the trained languages, in the order of the rows' ``language`` column.
        policy: how the weights move.
    """

    def __init__(self, languages: Sequence[str], policy: "WeightPolicy | dict"):
        self.languages = list(languages)
        self.policy = policy if isinstance(policy, WeightPolicy) else WeightPolicy(**policy)
        count = len(self.languages)
        self.forget = [1.0] * count
        self.retain = [1.0] * count
        self.distill = [self.policy.distill_constant] * count
        self.identity: dict | None = None
        self.figures_at_start: dict | None = None
        self.start = [1.0] * count
        self.target = [0.0] * count
        self.metric: list[float] | None = None
        self.retain_loss_at_start: list[float] | None = None
        self.watched_at_start: list[float] | None = None
        self.kept_split: str | None = None
        self.window = _zeros(count)
        self.teacher_sums = [[0.0, 0.0] for _ in range(count)]
        self.best_score = -1.0
        self.evaluations_without_gain = 0
        self.history: list[dict] = []
        self.stop_reason: str | None = None
        self._batch_sums: torch.Tensor | None = None

    # ---- state ------------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Everything a resumed run needs, as JSON; call :meth:`reduce_batches` on all processes before."""
        arguments = {"languages": self.languages, "policy": dataclasses.asdict(self.policy)}
        kept = {name: value for name, value in vars(self).items() if name not in arguments and name[0] != "_"}
        return {"args": arguments, "attributes": kept}

    def reduce_batches(self) -> None:
        """Move the sums of every process's batches into ``window``, the same on all of them."""
        if self._batch_sums is None:
            return
        sums = reduce(self._batch_sums.contiguous(), reduction="sum").tolist()
        for side, mine in zip(SIDES, sums, strict=True):
            for total, fresh in zip(self.window[side], mine, strict=True):
                total[:] = [a + b for a, b in zip(total, fresh, strict=True)]
        self._batch_sums.zero_()

    def add_batch(self, side: str, language: torch.Tensor, figures: Mapping[str, torch.Tensor]) -> None:
        """Add one micro-batch on the device, without a host sync.

        Args:
            side: ``forget`` or ``retain``.
            language: [rows] language of each row.
            figures: each of :data:`SUMS` but ``rows``, a tensor [rows]; without a teacher no ``teacher_probability``.
        """
        if self._batch_sums is None:
            self.prepare(language.device)
        columns = [figures.get(name) for name in SUMS]
        columns[SUMS.index("rows")] = figures["tokens"] > 0
        table = torch.stack([torch.zeros_like(language) if c is None else c for c in columns], 1)
        self._batch_sums[SIDES.index(side)].index_add_(0, language, table.to(self._batch_sums.dtype))

    def prepare(self, device: torch.device) -> None:
        """Allocate the sums: on every process, also where a language or a side has not been seen yet."""
        if self._batch_sums is None:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            shape = (len(SIDES), len(self.languages), len(SUMS))
            self._batch_sums = torch.zeros(shape, dtype=dtype, device=device)

    # ---- where the run stands ---------------------------------------------------------------------------------------

    @property
    def nothing_to_forget(self) -> list[str]:
        """Languages whose forget set was known no better than unseen text at the start."""
        return [
            language
            for language, m0, tau in zip(self.languages, self.start, self.target, strict=True)
            if remembered(m0, m0, tau) is None
        ]

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

    def score(self, figures: dict) -> float | None:
        """The unlearning score of ``figures`` against the start, see :func:`unlearning_score`.

        ``None`` where there was nothing to forget in any language, or where neither valid nor retain rows are
        measured, so that nobody can say what was kept.
        """
        if self.kept_split is None:
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

    # ---- events -----------------------------------------------------------------------------------------------------

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.policy.weight_update_steps == 0:
            self.update(state.global_step)
            if self.stop_reason:
                control.should_training_stop = True

    def on_train_begin(self, args, state, control, **kwargs):
        self.prepare(args.device)

    def update(self, step: int) -> None:
        """Reduce the window since the last update over all processes and move the weights."""
        self.reduce_batches()
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
        """Move the weights by the figures of an evaluation, which replace the running means."""
        self.reduce_batches()
        if "forget" in figures:
            self.metric = self._of(figures, "forget", self.policy.forget_metric)
        if "retain" in figures:
            self._move_retain(self._of(figures, "retain", "loss"))
        self._reweigh(step)
        gained = score is not None and score > self.best_score
        self.evaluations_without_gain = 0 if gained else self.evaluations_without_gain + 1
        self.best_score = score if gained else self.best_score

    def on_evaluate(self, args, state, control, **kwargs):
        if (
            self.policy.stop_when_forgotten
            and self.all_forgotten()
            and self.evaluations_without_gain >= self.policy.patience
        ):
            self.stop_reason = f"forgotten in every language, no better for {self.policy.patience} evaluations"
        if self.stop_reason and state.global_step:
            control.should_training_stop = True

    def all_forgotten(self) -> bool:
        """Whether every language that had something to forget is at its target."""
        if self.metric is None:
            return False
        shares = [remembered(m, m0, t) for m, m0, t in zip(self.metric, self.start, self.target, strict=True)]
        shares = [share for share in shares if share is not None]
        return bool(shares) and not any(shares)

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


def _zeros(count: int) -> dict[str, list[list[float]]]:
    return {side: [[0.0] * len(SUMS) for _ in range(count)] for side in SIDES}
