"""Objectives in two registries, and the methods that pair them.

Any forget objective combines with any retain objective; ``none`` stands for no rows of that kind at all.
"""

from .base import COUNTERS, IGNORED, Method, Objective, predicted
from .forget import FORGET_OBJECTIVES
from .retain import LINGTEA_RELEASED, LINGTEA_RELEASED_XGLM, RETAIN_OBJECTIVES
from .statistics import RowStatistics

# The settings are those published with a method, where they differ from what a run has by default.
METHODS: dict[str, Method] = {
    "lingtea": Method("gradient_ascent", "lingtea"),
    "gradient_ascent": Method("gradient_ascent", "none"),
    "grad_diff": Method("gradient_ascent", "nll"),
    "kl": Method("gradient_ascent", "kl"),
    "npo": Method("npo", "nll"),
    "simnpo": Method("simnpo", "nll", {"forget_coef": 0.125}),
    "dpo": Method("dpo", "nll"),
    "rmu": Method("rmu", "rmu", {"retain_coef": 1200.0}),
    "undial": Method("undial", "none"),
    "wga": Method("wga", "nll"),
    "satimp": Method("satimp", "nll", {"retain_coef": 0.1}),
    "ceu": Method("ceu", "none"),
    "pdu": Method("pdu", "nll", {"retain_weighting": "primal_dual"}),
    "calibrated": Method("calibrated", "lingtea", {"retain_coef": 5.0, "relearn_coef": 2.0}),
    "jensun": Method("jensun", "jsd"),
    "memorize": Method("nll", "nll"),
    "retain_only": Method("none", "nll"),
}


def objective_options() -> dict[str, float]:
    """Flag ``<objective>_<option>`` to its default, over both registries."""
    found: dict[str, float] = {}
    for objective in (*FORGET_OBJECTIVES.values(), *RETAIN_OBJECTIVES.values()):
        found |= {f"{objective.name}_{option}": default for option, default in objective.options.items()}
    return found


__all__ = [
    "COUNTERS",
    "FORGET_OBJECTIVES",
    "IGNORED",
    "LINGTEA_RELEASED",
    "LINGTEA_RELEASED_XGLM",
    "METHODS",
    "RETAIN_OBJECTIVES",
    "Method",
    "Objective",
    "RowStatistics",
    "objective_options",
    "predicted",
]
