"""Forget objectives: what happens to the tokens that must go. Their options have the published defaults."""

import math
from typing import Annotated

import torch
from torch.nn import functional as F

from .base import NotNegative, Objective, Positive
from .statistics import RowStatistics, TokenStatistics


def gradient_ascent(tokens: TokenStatistics):
    """Ascent on the log loss, -s_t (Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks in Language
    Models"; LingTea's forget half). It has no floor: watch the retain perplexity."""
    return -tokens.nll


def nll(tokens: TokenStatistics):
    """Descent on the log loss: learns the forget set by heart, so that there is something to forget."""
    return tokens.nll


def wga(
    tokens: TokenStatistics,
    *,
    beta: Annotated[Positive, "power of a token's probability that weighs it; the greater, the sooner it rests"] = 1.0,
):
    """Weighted gradient ascent, -p_t^beta s_t with the weight held fixed: what is forgotten already is left alone
    (Wang et al. 2025, "Rethinking LLM Unlearning Objectives")."""
    return -torch.exp(-beta * tokens.nll.detach()) * tokens.nll


def satimp(
    tokens: TokenStatistics,
    *,
    beta1: Annotated[NotNegative, "power of p, by which what is forgotten already counts less (saturation)"] = 5.0,
    beta2: Annotated[NotNegative, "power of 1 - p, by which what is learned by heart counts less (importance)"] = 1.0,
):
    """-p_t^beta1 (1 - p_t)^beta2 s_t, weights held fixed: by saturation and by importance of the token (Yang et al.
    2025, "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning")."""
    log_p = -tokens.nll.detach()
    return -torch.exp(beta1 * log_p) * (1 - log_p.exp()) ** beta2 * tokens.nll


def npo(
    rows: RowStatistics,
    *,
    beta: Annotated[Positive, "the greater, the sooner the ascent on a row fades out; towards 0 it never does"] = 0.1,
):
    """-(2/beta) log sigmoid(beta (S - S_teacher)), S a row's summed NLL: ascent that fades out as the row becomes less
    likely than it was (Zhang et al. 2024, "Negative Preference Optimization")."""
    return -2 / beta * F.logsigmoid(beta * (rows.nll - rows.teacher_nll))


def simnpo(
    rows: RowStatistics,
    *,
    beta: Annotated[Positive, "the greater, the sooner the ascent on a row fades out"] = 4.5,
    delta: Annotated[float, "mean NLL of a row, in nats, around which the ascent fades out"] = 0.0,
):
    """-(2/beta) log sigmoid(beta (S/|y| - delta)): NPO without a teacher, by the mean NLL of a row's |y| tokens (Fan
    et al. 2024, "Simplicity Prevails")."""
    return -2 / beta * F.logsigmoid(beta * (rows.nll / rows.tokens - delta))


def dpo(
    rows: RowStatistics,
    *,
    beta: Annotated[Positive, "the greater, the sooner a row rests whose alternative answer has gained on it"] = 0.1,
):
    """-(2/beta) log sigmoid(beta (gain of the alternative answer - gain of the answer)), gains in log likelihood over
    the teacher (Rafailov et al. 2023; with "I do not know" as alternative: IdkDPO of Maini et al. 2024, TOFU)."""
    other = rows.alternative
    gap = (other.teacher_nll - other.nll) - (rows.teacher_nll - rows.nll)
    return -2 / beta * F.logsigmoid(beta * gap)


def jensun(tokens: TokenStatistics):
    """Jensen-Shannon divergence between the prediction and each token of the alternative answer, in nats and at most
    log 2: bounded, so that it calms down by itself (Singh et al. 2025, "Unlearning That Lasts").

    With q the token's probability, JSD = log 2 + (q log q - (1 + q) log(1 + q)) / 2.
    """
    q = torch.exp(-tokens.nll)
    return math.log(2) + 0.5 * (-q * tokens.nll - (1 + q) * torch.log1p(q))


def _from_the_others(logits, teacher_logits, targets):
    # Finite: -inf times probability 0 has no derivative.
    others = logits.detach().scatter(-1, targets[:, None], torch.finfo(logits.dtype).min)
    return -(others.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def ceu(tokens: TokenStatistics):
    """Cross-entropy to the model's own prediction without the label, held fixed; a row's first labelled token is left
    out (Yang 2025, "CE-U: Cross Entropy Unlearning")."""
    return torch.where(tokens.place > 0, tokens.reduced, 0)


def _from_the_lowered_teacher(
    logits,
    teacher_logits,
    targets,
    *,
    strength: Annotated[Positive, "how much lower the label's logit is in what is learned than in the teacher"] = 10.0,
):
    lowered = teacher_logits.scatter_add(
        -1, targets[:, None], teacher_logits.new_full((len(targets), 1), -float(strength))
    )
    return -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def undial(tokens: TokenStatistics):
    """Self-distillation from the teacher with the label's logit lowered by ``strength`` (Dong et al. 2024,
    "UNDIAL")."""
    return tokens.reduced


def _spread(logits, teacher_logits, targets):
    return (logits.amax(-1) - logits.mean(-1)).square()


def pdu(tokens: TokenStatistics):
    """Squared distance of the greatest logit from the mean: flat logits, a uniform prediction (Entesari et al.
    2025, "Constrained Entropic Unlearning", whose dual half is ``--retain_weighting primal_dual``)."""
    return tokens.reduced


def rmu(
    tokens: TokenStatistics,
    *,
    steering: Annotated[Positive, "length of the random vector that the hidden states are moved to"] = 6.5,
):
    """Mean squared distance of a layer's hidden states from ``steering`` times one random unit vector; a row's tokens
    are averaged first (Li et al. 2024, "The WMDP Benchmark", with its settings for Zephyr-7B)."""
    distance = (tokens.hidden - steering * tokens.control).square().mean(-1)
    return distance / tokens.row_tokens


def _lead_and_moments(logits, teacher_logits, targets):
    targets = targets[:, None]
    others = logits.scatter(-1, targets, torch.finfo(logits.dtype).min)
    lead = logits.gather(-1, targets)[:, 0] - others.amax(-1)
    log_p = logits.log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(-1)
    variance = (log_p.exp() * (log_p - mean[:, None]).square()).sum(-1)
    return torch.stack([lead, mean, (variance + _SMALL).sqrt()], -1)


def calibrated(
    tokens: TokenStatistics,
    *,
    margin: Annotated[NotNegative, "by how much the label's logit shall fall behind the next, at least"] = 0.5,
    spread: Annotated[NotNegative, "factor of the distances of mean and standard deviation of log p under p"] = 0.3,
):
    """Each token is moved to where a never-seen token of its language is, and no further (ours; see docs/methods.md):
    smooth L1 distance of its NLL from the one that the teacher gives the counterpart's token; where the teacher does
    not predict that one, a hinge on the lead of the label's logit over the next, which ends at -``margin``; and
    ``spread`` times the distances of the mean and the standard deviation of log p under p, by which Min-K%++ tells a
    prediction that is sure of something else from one that knows nothing."""
    lead, *moments = tokens.reduced.unbind(-1)
    gap = F.smooth_l1_loss(tokens.nll, tokens.unknown_nll, reduction="none")
    gap = gap + torch.where(tokens.unknown_hit, 0, F.relu(lead + margin))
    for own, unknown in zip(moments, (tokens.unknown_mean, tokens.unknown_std), strict=True):
        gap = gap + spread * F.smooth_l1_loss(own, unknown, reduction="none")
    return gap


# Below the root of a variance that may be 0.
_SMALL = 1e-12
_TOKENS = frozenset({"nll"})
_ROWS = frozenset({"nll", "teacher_nll"})
FORGET_OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("gradient_ascent", gradient_ascent, _TOKENS),
        Objective("nll", nll, _TOKENS),
        Objective("wga", wga, _TOKENS),
        Objective("satimp", satimp, _TOKENS),
        Objective("npo", npo, _ROWS, ("rows",), unit="row"),
        Objective("simnpo", simnpo, _TOKENS, ("rows",), unit="row"),
        Objective("dpo", dpo, _ROWS | {"alternative"}, ("rows",), unit="row"),
        Objective("jensun", jensun, _TOKENS | {"alternative"}),
        # As the public implementation does it: after the words that are to go, not after those of the alternative.
        Objective("jensun_in_place", jensun, _TOKENS | {"alternative"}, in_place=True),
        Objective("ceu", ceu, frozenset({"reduced", "place"}), ("later_tokens",), _from_the_others),
        Objective("undial", undial, frozenset({"reduced", "teacher_logits"}), reduction=_from_the_lowered_teacher),
        Objective("pdu", pdu, frozenset({"reduced"}), reduction=_spread),
        # As the public implementation does it: at the positions where the labels stand, not where they are predicted.
        Objective("pdu_unshifted", pdu, frozenset({"reduced"}), ("labels",), _spread, at_label=True),
        Objective("calibrated", calibrated, frozenset({"nll", "reduced", "counterpart"}), reduction=_lead_and_moments),
        Objective("rmu", rmu, frozenset({"hidden", "control", "row_tokens"}), ("rows",)),
    )
}
