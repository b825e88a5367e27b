"""The three weights of a language, and the rules by which they move: numbers in, numbers out, nothing else.

Languages are not forgotten at the same pace. One weight for all would go on destroying the first when the last is not
there yet, so every trained language has three numbers of its own:

- **forget**, u: what its forget rows count in the loss. Under ``target`` it is proportional to what is left to forget
  (:func:`target_weights`): much where much is remembered, 0 for a language that has reached its target. Such a
  language rests, and wakes up when what is done in the others brings its memory back.
- **retain**, r: what its retain rows count. Under ``primal_dual`` it grows while the language's perplexity on them is
  above what it was at the start, and shrinks while it is below (:func:`primal_dual_weights`).
- **distill**, w: within a retain loss that mixes both, what the teacher's answer counts against the text's own token.
  Under ``language`` it is the probability that the teacher gives the language's retain tokens on average: a teacher
  that does not know a language is not to be imitated in it.

u and r begin at 1 and stay there under ``uniform``; w begins at ``distill_constant``, and stays there unless it is
``language``. (Under ``token`` each token has its own w, and the language's is not used.)

Weights move at three moments, and between two of them every step has the same ones:

1. before the first step, by the figures of the start model, which are also what "remembered at the start", "target"
   and "perplexity at the start" mean from then on (``LanguageWeights.begin``);
2. every ``weight_update_steps`` optimizer steps, by the rows that the batches since the last such update held
   (``LanguageWeights.move_by_window``): these cost nothing, as the loss has computed them anyway;
3. after every evaluation, by its figures, which are of all rows (``LanguageWeights.after_evaluation``).

From here read on in ``state.py``, what a run knows of its languages, and ``callback.py``, how a training calls it.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from ..errors import ConfigError

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
