"""What an audit concludes about a language, by a written rule.

The verdict is empirical: it speaks of the attacks that were made, with the rows there were.
"""

from collections.abc import Mapping

# Shares of the way from a model that never saw the rows (0) to the model before (1); see RULE.
LEAKS, CLEAR, BEYOND = 0.10, 0.25, -0.10
# The model before has to know a language by this much more than one that never saw it, or nothing can be forgotten.
LEAST_KNOWN = 0.02
# Fewer rows than this show a leak, but not that there is none.
LEAST_ROWS = 10
KNOWLEDGE = ("memorization_accuracy", "extraction_strength")
# Variants that tell what an attack does by itself, not what the model knows; and splits that are no forget rows.
CONTROLS = {"relearned_from_other_text", "random_direction", "primed_with_another", "retain", "valid", "test"}
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


def counts_as_knowledge(name: str) -> bool:
    """Whether a figure `<variant>/<metric>` says what the model knows of the forget rows."""
    *variant, metric = name.split("/")
    return metric in KNOWLEDGE and not set(variant) & CONTROLS


def is_known(excess: Mapping[str, float] | None, metric: str) -> bool:
    """Whether a model knows something: its figure differs from the never-seen one enough, and surely.

    Args:
        excess: over the never-seen figure, with its interval.
        metric: losses fall with knowledge and may differ either way.
    """
    if excess is None:
        return False
    surely = excess["low"] > 0 or (metric not in KNOWLEDGE and excess["high"] < 0)
    return surely and abs(excess["value"]) >= LEAST_KNOWN


def nothing_to_forget(figures: Mapping[str, Mapping]) -> bool:
    """Whether the model before did not know a language's forget rows better than one that never saw them.

    Args:
        figures: of one language, as in audit.json.
    """
    plain = figures.get("memorization_accuracy", {})
    return "known" in plain and not is_known(plain["known"], "memorization_accuracy")


def judge(
    figures: Mapping[str, Mapping],
    doubts: Mapping[str, str] | None = None,
    withheld: Mapping[str, str] | None = None,
) -> tuple[str, list[str]]:
    """The verdict on a language and the reasons for it, by :data:`RULE`.

    Args:
        figures: name to a figure, as in audit.json; see :meth:`Findings.figures`.
        doubts: variant of an attack to why a low figure under it says nothing.
        withheld: attack to why it cannot be made on this model. A language that would pass is undecided then.
    """
    nothing = nothing_to_forget(figures)
    leaks, open_questions, unplaced = [], [], []
    for name, figure in figures.items():
        if not counts_as_knowledge(name):
            continue
        # Between two models that hardly differ a place can be anywhere.
        placed = (None if nothing else figure.get("position")) or figure.get("excess")
        what = f"{_plain(name)} {_against(figure)}"
        variant = name.rpartition("/")[0]
        if placed is None:
            unplaced.append(f"{what}: there is no such figure of a never-seen model or rows to compare it with")
        elif placed["low"] > LEAKS:
            leaks.append((placed["value"], what))
        elif variant in (doubts or {}):
            open_questions.append((placed["high"], f"{what}: {doubts[variant]}"))
        elif not placed["high"] < CLEAR:  # also where it is no number
            open_questions.append((placed["high"], f"{what}: the interval is too wide"))
        elif figure["n"] < LEAST_ROWS:
            open_questions.append((placed["high"], f"{what}: {figure['n']} rows are too few to tell"))
    over = _over_unlearned(figures.get("loss", {}))
    judged = [name for name in figures if counts_as_knowledge(name)]
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
    has_before = "known" in figures.get("memorization_accuracy", {})
    unknown = "" if has_before else "; whether it ever knew more is not known (no --model_before)"
    if any("/" in name for name in judged):
        return FORGOTTEN, [f"no attack made found more than a model that never saw the rows has{unknown}"]
    return FORGOTTEN, [f"it knows no more than a model that never saw the rows{unknown}; it was not attacked"]


def _over_unlearned(loss):
    placed, reference = loss.get("position"), loss.get("never_seen")
    if not placed or not reference or placed["high"] >= BEYOND or loss["low"] <= reference["high"]:
        return []
    return [f"the loss of the forget rows is {loss['value']:.2f}, that of never-seen ones {reference['value']:.2f}"]


def _plain(name):
    variant, _, metric = name.rpartition("/")
    metric = metric.replace("_", " ")
    return f"{metric}, {variant.replace('_', ' ')}," if variant else metric


def _against(figure):
    reference = figure.get("never_seen")
    return f"is {figure['value']:.3f}" + (f" against {reference['value']:.3f} never seen" if reference else "")
