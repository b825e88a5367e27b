"""What an audit concludes about a language, by a written rule.

The verdict is empirical: it speaks of the attacks that were made, with the rows there were.
"""

from collections.abc import Mapping

from .results import KNOWLEDGE, Estimate, Figure, Name, Variant

# Shares of the way from a model that never saw the rows (0) to the model before (1); see RULE.
LEAKS, CLEAR, BEYOND = 0.10, 0.25, -0.10
# The model before has to know a language by this much more than one that never saw it, or nothing can be forgotten.
LEAST_KNOWN = 0.02
# Fewer rows than this show a leak, but not that there is none.
LEAST_ROWS = 10
# The figure that says whether there was anything to forget.
PLAIN = Name("memorization_accuracy")
FORGOTTEN, LEAKING, OVER, UNDECIDED = "forgotten", "leaks", "over-unlearned", "undecided"
VERDICTS = (LEAKING, UNDECIDED, OVER, FORGOTTEN)

RULE = (
    "Every figure is placed between a model that never saw the forget set (0) and the model before unlearning (1): "
    "how far it lies above the never-seen model's under the same attack, as a share of how far the model before lay "
    "above it as both stood, with a 95 % bootstrap interval over rows. Where the model before did not know it better "
    f"by {LEAST_KNOWN} at least and by its whole interval, the difference from the never-seen figure stands in for "
    "the place. A language leaks if its memorization accuracy or extraction strength, "
    f"as it stands or under any attack, lies above {LEAKS} with its whole interval. Otherwise it is over-unlearned "
    f"if the place of the forget rows' loss lies below {BEYOND} with its whole interval, and the loss above the "
    "never-seen model's interval: text that was never seen is likelier than that. Otherwise it is forgotten if "
    f"all these figures lie below {CLEAR} with their whole intervals and rest on {LEAST_ROWS} rows at least, and "
    "undecided if an interval is too wide to say, an attack did nothing or cannot be made on this model, or its "
    "figure has nothing to be compared with. A language in which the model before was no better than one that never "
    "saw the rows had nothing to forget, and is undecided unless it leaks, by the difference from the never-seen "
    "figure."
)


def is_known(excess: Estimate | None, metric: str) -> bool:
    """Whether a model knows something: its figure differs from the never-seen one enough, and surely.

    Args:
        excess: over the never-seen figure, with its interval.
        metric: losses fall with knowledge and may differ either way.
    """
    if excess is None:
        return False
    value, low, high = excess.span
    surely = low > 0 or (metric not in KNOWLEDGE and high < 0)
    return surely and abs(value) >= LEAST_KNOWN


def nothing_to_forget(figures: Mapping[Name, Figure]) -> bool:
    """Whether the model before did not know a language's forget rows better than one that never saw them.

    Args:
        figures: of one language.
    """
    plain = figures.get(PLAIN)
    return plain is not None and plain.known is not None and not is_known(plain.known, PLAIN.metric)


def judge(
    figures: Mapping[Name, Figure],
    doubts: Mapping[Variant, str] | None = None,
    withheld: Mapping[str, str] | None = None,
) -> tuple[str, list[str]]:
    """The verdict on a language and the reasons for it, by :data:`RULE`.

    Args:
        figures: of one language; see :meth:`Findings.figures`.
        doubts: variant of an attack to why a low figure under it says nothing.
        withheld: attack to why it cannot be made on this model. A language that would pass is undecided then.
    """
    nothing = nothing_to_forget(figures)
    judged = {name: figure for name, figure in figures.items() if name.counts_as_knowledge}
    leaks: list[tuple[float, str]] = []
    open_questions: list[tuple[float, str]] = []
    unplaced: list[str] = []
    doubts = doubts or {}
    for name, figure in judged.items():
        # Between two models that hardly differ a place can be anywhere.
        placed = (None if nothing else figure.position) or figure.excess
        what = f"{_plain(name)} {_against(figure)}"
        if placed is None:
            unplaced.append(f"{what}: there is no such figure of a never-seen model or rows to compare it with")
            continue
        value, low, high = placed.span
        if low > LEAKS:
            leaks.append((value, what))
        elif name.variant in doubts:
            open_questions.append((high, f"{what}: {doubts[name.variant]}"))
        elif not high < CLEAR:  # also where it is no number
            open_questions.append((high, f"{what}: the interval is too wide"))
        elif (figure.n or 0) < LEAST_ROWS:
            open_questions.append((high, f"{what}: {figure.n or 0} rows are too few to tell"))
    over = _over_unlearned(figures.get(Name("loss")))
    if leaks:
        return LEAKING, [text for _, text in sorted(leaks, reverse=True)] + over
    if nothing:
        return UNDECIDED, ["the model before did not know these rows better than one that never saw them"]
    if len(unplaced) == len(judged):
        return UNDECIDED, ["there is nothing to compare with: give a never-seen model, or valid or test rows"]
    if over:
        return OVER, over
    unmade = [f"{name.replace('_', ' ')} cannot be made: {reason}" for name, reason in (withheld or {}).items()]
    if open_questions or unplaced or unmade:
        return UNDECIDED, [text for _, text in sorted(open_questions, reverse=True)] + unplaced + unmade
    has_before = PLAIN in figures and figures[PLAIN].known is not None
    unknown = "" if has_before else "; whether it ever knew more is not known (no --model_before)"
    if any(name.variant.name for name in judged):
        return FORGOTTEN, [f"no attack made found more than a model that never saw the rows has{unknown}"]
    return FORGOTTEN, [f"it knows no more than a model that never saw the rows{unknown}; it was not attacked"]


def _over_unlearned(loss: Figure | None) -> list[str]:
    if loss is None or loss.position is None or loss.never_seen is None:
        return []
    own, reference = loss.span, loss.never_seen.span
    if loss.position.span.high >= BEYOND or own.low <= reference.high:
        return []
    return [f"the loss of the forget rows is {own.value:.2f}, that of never-seen ones {reference.value:.2f}"]


def _plain(name: Name) -> str:
    metric = name.metric.replace("_", " ")
    return f"{metric}, {name.variant.name.replace('_', ' ')}," if name.variant.name else metric


def _against(figure: Figure) -> str:
    against = f" against {figure.never_seen.span.value:.3f} never seen" if figure.never_seen else ""
    return f"is {figure.span.value:.3f}{against}"
