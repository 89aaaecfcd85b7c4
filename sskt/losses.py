"""Losses against a frozen source's logits (SSKT eq. 2 and 3): L = L_prim + alpha * sum over sources of L_aux
(eq. 1).

In the released code's exact form; see each for what it averages over.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

AUXILIARY_LOSSES = ("ce", "kd")
KD_REDUCTIONS = ("mean", "batchmean")


def soft_cross_entropy(logits: Tensor, source_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2-scaled cross-entropy against a softened source ("CE, soft label").

    T^2 * mean_n sum_k -softmax(z_s / T)_nk * log_softmax(z_t / T)_nk

    logits, source_logits: (N, K) float32; source_logits carries no gradient. Returns a scalar, mean over N.
    """
    target = (source_logits / temperature).softmax(dim=1)
    log_q = (logits / temperature).log_softmax(dim=1)
    return -(temperature**2) * (target * log_q).sum(dim=1).mean()


def kd_divergence(logits: Tensor, source_logits: Tensor, *, temperature: float, reduction: str) -> Tensor:
    """T^2-scaled Kullback-Leibler divergence from a softened source ("KD"; Hinton et al., 2015).

    T^2 * R_nk p_nk * (log p_nk - log q_nk),  p = softmax(z_s / T), q = softmax(z_t / T)

    reduction "mean" is R = mean over batch x classes, as the released code has it: 1/K of "batchmean", which
    sums over classes as the divergence is defined. It has no default because it changes the weight of the
    loss K-fold. logits, source_logits: (N, K) float32; source_logits carries no gradient. Returns a scalar.
    """
    if reduction not in KD_REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(KD_REDUCTIONS)}")
    log_p = (source_logits / temperature).log_softmax(dim=1)
    log_q = (logits / temperature).log_softmax(dim=1)
    # summed here and not by kl_div, whose "mean" torch announces to change
    terms = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    return temperature**2 * (terms.mean() if reduction == "mean" else terms.sum(dim=1).mean())
