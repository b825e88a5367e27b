"""Objectives in two registries, and the methods that pair them.

Any forget objective combines with any retain objective; ``none`` stands for no rows of that kind at all.
"""

from .base import COUNTERS, IGNORED, Method, Objective, predicted
from .forget import FORGET_OBJECTIVES
from .retain import LINGTEA_RELEASED, RETAIN_OBJECTIVES

METHODS: dict[str, Method] = {
    "lingtea": Method("gradient_ascent", "lingtea"),
    "gradient_ascent": Method("gradient_ascent", "none"),
    "grad_diff": Method("gradient_ascent", "nll"),
    "kl": Method("gradient_ascent", "kl"),
    "memorize": Method("nll", "nll"),
    "retain_only": Method("none", "nll"),
}

__all__ = [
    "COUNTERS",
    "FORGET_OBJECTIVES",
    "IGNORED",
    "LINGTEA_RELEASED",
    "METHODS",
    "RETAIN_OBJECTIVES",
    "Method",
    "Objective",
    "predicted",
]
