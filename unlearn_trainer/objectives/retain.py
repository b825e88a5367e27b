"""Retain objectives: what keeps everything else."""

import dataclasses
import math

from .base import Objective
from .statistics import TokenStatistics


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


def _between(logits, teacher_logits, targets):
    p, t = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    mixture = p.logaddexp(t) - math.log(2)
    return 0.5 * (p.exp() * (p - mixture) + t.exp() * (t - mixture)).sum(-1)


def jsd(tokens: TokenStatistics):
    """Jensen-Shannon divergence between student and teacher at every labelled token, in nats and at most log 2 (the
    retain half of JensUn: Singh et al. 2025)."""
    return tokens.reduced


def rmu(tokens: TokenStatistics):
    """Mean squared distance of a layer's hidden states from the teacher's (Li et al. 2024, "The WMDP Benchmark"); a
    row's tokens are averaged first."""
    return (tokens.hidden - tokens.teacher_hidden).square().mean(-1) / tokens.row_tokens


RETAIN_OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("nll", nll, frozenset({"nll"})),
        Objective("kl", kl, frozenset({"kl"})),
        Objective("lingtea", lingtea, frozenset({"nll", "kl", "teacher_nll", "distill_weight"}), ("tokens", "tokens")),
        Objective("jsd", jsd, frozenset({"reduced", "teacher_logits"}), reduction=_between),
        Objective("rmu", rmu, frozenset({"hidden", "teacher_hidden", "row_tokens"}), ("rows",)),
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
    at_label=True,
)
# The same for XGLM, whose loss in transformers 4.44 had the next token as the target of a position, and the pad token
# as that of the last one; the code weighs it by the teacher's probability of the position's own token.
LINGTEA_RELEASED_XGLM = dataclasses.replace(LINGTEA_RELEASED, predicts_next=True)
