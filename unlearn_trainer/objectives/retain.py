"""Retain objectives: what keeps everything else."""

from ..lm_head import TokenStatistics
from .base import Objective


def nll(tokens: TokenStatistics):
    """Ordinary fine-tuning on the retain rows, s_t (GradDiff: Liu et al. 2022)."""
    return tokens.nll


def kl(tokens: TokenStatistics):
    """KL(teacher, student) at every labelled token (Maini et al. 2024, TOFU)."""
    return tokens.kl


def lingtea(tokens: TokenStatistics):
    """w KL + (1 - w) s_t, w being how well the teacher knows the token or its language (Choi, Min, Choo 2024)."""
    w = tokens.distill_weight
    return w * tokens.kl, (1 - w) * tokens.nll


RETAIN_OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("nll", nll, frozenset({"nll"})),
        Objective("kl", kl, frozenset({"kl"})),
        Objective("lingtea", lingtea, frozenset({"nll", "kl", "teacher_nll", "distill_weight"}), ("tokens", "tokens")),
    )
}

# The step of the code released with the paper: teacher probability and KL are read one position late, where the token
# stands instead of where it is predicted, and the two terms have different denominators. Chosen by
# ``--lingtea_alignment released``.
LINGTEA_RELEASED = Objective(
    "lingtea",
    lingtea,
    frozenset({"nll", "kl", "teacher_nll", "distill_weight"}),
    counts=("rows", "attended"),
    kl_at_label=True,
)
