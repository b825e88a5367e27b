"""What an objective is, and the counts it is divided by."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Literal, get_args

import torch

from ..errors import ConfigError, check_bounds, did_you_mean
from .statistics import RowStatistics, TokenStatistics

IGNORED = -100
# What the frozen original model has to run for.
FROM_TEACHER = {"kl", "teacher_nll", "teacher_logits", "teacher_hidden", "counterpart"}
# What a function of tokens and one of rows can ask for, and what cannot be asked for without another.
_OF_TOKENS = FROM_TEACHER | {
    *("nll", "reduced", "log_prob_moments", "distill_weight", "place", "row_tokens", "hidden", "control"),
    "alternative",
}
_OF_ROWS = {"nll", "teacher_nll", "alternative"}
_WITH = {"distill_weight": "teacher_nll", "teacher_hidden": "hidden", "control": "hidden", "teacher_logits": "reduced"}


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """The least value of an objective's option, in its annotation: ``Annotated[float, AtLeast(0)]``.

    With ``excluded`` the bound itself is not allowed.
    """

    bound: float
    excluded: bool = False

    def __str__(self):
        return f"{'above' if self.excluded else 'at least'} {self.bound:g}"

    def allows(self, value: float) -> bool:
        return value > self.bound if self.excluded else value >= self.bound


NotNegative = Annotated[float, AtLeast(0)]
Positive = Annotated[float, AtLeast(0, excluded=True)]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss on the forget or on the retain rows of a step.

    ``function`` takes the :class:`~unlearn_trainer.head.tiles.TokenStatistics` of some labelled tokens, with
    exactly the fields in ``needs``, and returns one value a token for each of its terms; with ``unit`` "row" it takes
    :class:`RowStatistics` and returns one value a row. The trainer multiplies the values by the language's weight,
    sums them, and divides by the term's count over the *whole* optimizer step (all accumulated batches of all
    processes), so that no split of a step changes its gradient. Functions are pure; those of tokens are additive and
    are called on chunks. Their keyword-only parameters are the objective's options, with the published defaults:
    ``npo(rows, *, beta=0.1)`` is what makes the flag ``--npo_beta``.

    Args:
        name: as on the command line.
        function: ``TokenStatistics -> Tensor [tokens]`` or a tuple of such, one a term; or of rows.
        needs: a subset of ``nll``, ``kl``, ``teacher_nll``, ``reduced``, ``teacher_logits``, ``log_prob_moments``,
            ``distill_weight``, ``place``, ``row_tokens``, ``hidden``, ``teacher_hidden``, ``control``,
            ``counterpart`` and ``alternative``. The last gives rows the figures of their alternative answers; a
            function of tokens gets the tokens of the alternative answers in place of those that are to go. With
            ``counterpart`` the statistics have ``unknown_nll``, ``unknown_hit``, ``unknown_mean`` and ``unknown_std``,
            and KL to the teacher keeps the counterparts as they are (``--counterpart_coef``). With ``hidden`` the
            tokens are those that *carry* a label.
        counts: which of :data:`COUNTERS` divides each term.
        reduction: for ``reduced``: maps (logits [n, V], the teacher's or ``None``, targets [n]) to one value a token
            or several [n, k], differentiable by the logits.
        unit: what ``function`` gets.
        at_label: take ``kl``, ``teacher_nll`` and ``reduced`` at the position that *carries* the label, a row's first
            one too, whose ``nll`` is 0: nothing predicts it.
        predicts_next: with ``at_label`` all at that position: ``nll`` is then of the *next* token, and the last
            position of every row, up to which short rows are padded, predicts the pad token. Where a position has no
            label ``distill_weight`` is 0, and where the next one has none ``nll`` is.
        in_place: with ``alternative`` its tokens are put, over and over, where those stand that are to go.
    """

    name: str
    function: Callable
    needs: frozenset[str]
    counts: tuple[str, ...] = ("tokens",)
    reduction: Callable[..., torch.Tensor] | None = None
    unit: Literal["token", "row"] = "token"
    at_label: bool = False
    predicts_next: bool = False
    in_place: bool = False

    def __post_init__(self):
        known = _OF_TOKENS if self.unit == "token" else _OF_ROWS
        if unknown := sorted(self.needs - known):
            raise ConfigError(
                f"objective {self.name}: a {self.unit}'s loss cannot need {', '.join(unknown)}"
                f"{did_you_mean(unknown[0], sorted(known))}"
            )
        missing = {other for need, other in _WITH.items() if need in self.needs} - self.needs
        if missing:
            raise ConfigError(f"objective {self.name}: its needs lack {', '.join(sorted(missing))}")
        if "counterpart" in self.needs and self.needs & {"kl", "teacher_nll", "teacher_logits", "hidden"}:
            raise ConfigError(f"objective {self.name}: with counterpart the teacher runs on the counterparts alone")
        if (self.predicts_next and not self.at_label) or (self.in_place and "alternative" not in self.needs):
            raise ConfigError(
                f"objective {self.name}: predicts_next goes with at_label, in_place with alternative among its needs"
            )
        if ("reduced" in self.needs) != (self.reduction is not None):
            raise ConfigError(f"objective {self.name}: reduced among its needs and a reduction go together")
        if unknown := [count for count in self.counts if count not in COUNTERS]:
            raise ConfigError(f"objective {self.name}: counts {', '.join(unknown)}; there are {', '.join(COUNTERS)}")

    @property
    def needs_teacher(self) -> bool:
        """Whether the frozen original model has to run on the objective's rows."""
        return bool(self.needs & FROM_TEACHER)

    @property
    def options(self) -> dict[str, float]:
        """The names and defaults of the keyword-only parameters of ``function`` and ``reduction``."""
        found = {}
        for part in filter(None, (self.function, self.reduction)):
            parameters = inspect.signature(part).parameters.values()
            found |= {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return found

    def with_options(self, settings: object) -> "Objective":
        """The objective with its options from ``settings``: the attributes ``<name>_<option>``, where it has them."""

        def bound(part):
            if part is None:
                return None
            options = [
                p for p in inspect.signature(part, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY
            ]
            given = {p.name: getattr(settings, f"{self.name}_{p.name}", self.options[p.name]) for p in options}
            for option in options:
                self._check_option(option, given[option.name])
            return functools.partial(part, **given) if given else part

        return dataclasses.replace(self, function=bound(self.function), reduction=bound(self.reduction))

    def _check_option(self, option: inspect.Parameter, value: object) -> None:
        if not isinstance(option.default, (int, float)) or isinstance(option.default, bool):
            return
        bounds = [note for note in get_args(option.annotation) if isinstance(note, AtLeast)]
        check_bounds(f"--{self.name}_{option.name}", value, bounds)

    def terms(self, statistics: TokenStatistics | RowStatistics, count: int) -> tuple[torch.Tensor, ...]:
        """The function's values for ``count`` tokens or rows, each a tensor [count].

        Raises:
            ConfigError: the function asks for a field that is not there, or returns something else.
        """
        try:
            values = self.function(statistics)
        except (AttributeError, TypeError) as error:
            if isinstance(error, AttributeError) and isinstance(error.obj, (TokenStatistics, RowStatistics)):
                known = [item.name for item in dataclasses.fields(error.obj)]
                raise ConfigError(
                    f"objective {self.name} asks for {error.name}, which it was not given: there is no such "
                    f"field{did_you_mean(error.name, known)}"
                ) from error
            if "NoneType" in str(error):
                self._check_given(statistics, error)
            raise
        terms = values if isinstance(values, tuple) else (values,)
        if any(value is None for value in terms):
            self._check_given(statistics)
        for value in terms:
            if not isinstance(value, torch.Tensor) or value.shape != (count,):
                returned = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ConfigError(
                    f"objective {self.name} must return one value a {self.unit}, a tensor [{count}] here, not "
                    f"{returned}; leave sums and means to the trainer"
                )
        return terms

    def _check_given(self, statistics: TokenStatistics | RowStatistics, error: Exception | None = None) -> None:
        """Tells whether it is a field that was not given on which the function, pure as it is, failed."""
        read: list[str] = []
        with contextlib.suppress(AttributeError, TypeError):
            self.function(_read_though_absent(statistics, read))
        if read:
            raise ConfigError(
                f"objective {self.name} asks for {read[-1]}, which it was not given: add "
                f"{_GIVEN_WITH.get(read[-1], read[-1])} to its needs"
            ) from error


# Fields that come with a need of another name.
_GIVEN_WITH = {
    **dict.fromkeys(("log_prob_mean", "log_prob_std"), "log_prob_moments"),
    **dict.fromkeys(("unknown_nll", "unknown_hit", "unknown_mean", "unknown_std"), "counterpart"),
}


def _read_though_absent(statistics: TokenStatistics | RowStatistics, read: list[str]):
    """A copy of ``statistics`` that adds to ``read`` each field that is asked for and was not given."""
    values = dict(vars(statistics))
    names = set(values)

    class Watched(type(statistics)):
        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            if value is None and name in names:
                read.append(name)
            return value

    for name, value in values.items():
        if isinstance(value, RowStatistics):
            values[name] = _read_though_absent(value, read)
    return Watched(**values)


@dataclasses.dataclass(frozen=True)
class Method:
    """A named pair of objectives, either of which may be ``none``, and the settings published with it."""

    forget_objective: str
    retain_objective: str
    settings: dict[str, object] = dataclasses.field(default_factory=dict)


def predicted(labels: torch.Tensor) -> torch.Tensor:
    """Mask [rows, length - 1] over positions that predict a labelled token; their targets are ``labels[:, 1:]``."""
    return labels[:, 1:] != IGNORED


# Each maps (labels [rows, length], attention_mask [rows, length]) to a whole number, summed over the step.
COUNTERS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "tokens": lambda labels, mask: predicted(labels).sum(),
    "rows": lambda labels, mask: predicted(labels).any(1).sum(),
    "attended": lambda labels, mask: mask[predicted(labels).any(1)].sum(),
    "labels": lambda labels, mask: (labels != IGNORED)[predicted(labels).any(1)].sum(),
    "later_tokens": lambda labels, mask: ((labels != IGNORED).sum(1) - 1).clamp(min=0).sum(),
}
