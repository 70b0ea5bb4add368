"""Losses over preference pairs. Pure functions in float32; every one returns a loss per pair, [B].

A label is the share of people who preferred the first picture: 1, or 0.5 for a tie.

Shape suffix: B pairs; w the preferred picture, l the other.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

Loss = Literal["dpo", "bt", "bce", "btt"]

# How far apart scores must be to be told apart, in btt: theta of Rao and Kupper (1967); VideoAlign uses the same value.
TIE_THETA = 5.0


def margin(*, beta: float, r_w_B: Tensor, r_l_B: Tensor, ref_w_B: Tensor, ref_l_B: Tensor) -> Tensor:
    """u = beta [(r(w) - r_ref(w)) - (r(l) - r_ref(l))]: how much more than the reference the model prefers w."""
    return beta * ((r_w_B - ref_w_B) - (r_l_B - ref_l_B))


def dpo(*, u_B: Tensor, label_B: Tensor, smoothing: float = 0.0) -> Tensor:
    """-q log sigmoid(u) - (1 - q) log sigmoid(-u), q = label moved towards its opposite by `smoothing`.

    With u from `margin` this is direct preference optimisation (Rafailov et al. 2023, eq. 7; smoothing: Mitchell 2023)
    with a scalar reward in the place of log-probabilities: Bradley-Terry around the base model as reference. With the
    references zero it is plain Bradley-Terry.
    """
    q_B = label_B * (1 - smoothing) + (1 - label_B) * smoothing
    return -q_B * logsigmoid(u_B) - (1 - q_B) * logsigmoid(-u_B)


def bce(*, r_w_B: Tensor, r_l_B: Tensor, label_B: Tensor, beta: float = 1.0) -> Tensor:
    """Each picture on its own is good (label) or bad (1 - label): mean of the two binary cross entropies."""
    good_B = binary_cross_entropy_with_logits(beta * r_w_B, label_B, reduction="none")
    bad_B = binary_cross_entropy_with_logits(beta * r_l_B, 1 - label_B, reduction="none")
    return (good_B + bad_B) / 2


def btt(*, u_B: Tensor, label_B: Tensor) -> Tensor:
    """Bradley-Terry with ties (Rao and Kupper 1967; VideoAlign, arXiv:2501.13918).

    P(w) = 1 / (1 + theta e^-u), P(l) = 1 / (1 + theta e^u), P(tie) = (theta² - 1) P(w) P(l). The three add up to 1.
    """
    log_w_B = -softplus(math.log(TIE_THETA) - u_B)
    log_l_B = -softplus(math.log(TIE_THETA) + u_B)
    log_tie_B = math.log(TIE_THETA**2 - 1) + log_w_B + log_l_B
    return -torch.where(label_B == 0.5, log_tie_B, torch.where(label_B > 0.5, log_w_B, log_l_B))


def centered(*, r_w_B: Tensor, r_l_B: Tensor) -> Tensor:
    """(r(w) + r(l))²: pulls the scores of a pair to be centred at 0 (Eisenstein et al. 2023), against drift."""
    return (r_w_B + r_l_B) ** 2


def loss(
    name: Loss,
    *,
    r_w_B: Tensor,
    r_l_B: Tensor,
    ref_w_B: Tensor,
    ref_l_B: Tensor,
    label_B: Tensor,
    beta: float,
    smoothing: float,
    center: float,
) -> Tensor:
    """The configured loss, with the pull to the centre added: [B]. Only `dpo` looks at the reference."""
    none = torch.zeros_like(ref_w_B)
    if name == "dpo":
        u_B = margin(beta=beta, r_w_B=r_w_B, r_l_B=r_l_B, ref_w_B=ref_w_B, ref_l_B=ref_l_B)
        main_B = dpo(u_B=u_B, label_B=label_B, smoothing=smoothing)
    elif name == "bce":
        main_B = bce(r_w_B=r_w_B, r_l_B=r_l_B, label_B=label_B, beta=beta)
    else:
        u_B = margin(beta=beta, r_w_B=r_w_B, r_l_B=r_l_B, ref_w_B=none, ref_l_B=none)
        main_B = btt(u_B=u_B, label_B=label_B) if name == "btt" else dpo(u_B=u_B, label_B=label_B, smoothing=smoothing)
    return main_B + center * centered(r_w_B=r_w_B, r_l_B=r_l_B)
