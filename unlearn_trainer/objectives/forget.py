"""Forget objectives: what happens to the tokens that must go."""

from ..lm_head import TokenStatistics
from .base import Objective


def gradient_ascent(tokens: TokenStatistics):
    """Ascent on the log loss, -s_t (Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks in Language
    Models"; LingTea's forget half). It has no floor: watch the retain perplexity."""
    return -tokens.nll


def nll(tokens: TokenStatistics):
    """Descent on the log loss: learns the forget set by heart, so that there is something to forget."""
    return tokens.nll


FORGET_OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("gradient_ascent", gradient_ascent, frozenset({"nll"})),
        Objective("nll", nll, frozenset({"nll"})),
    )
}
