"""Losses against what a frozen source says, logits (SSKT eq. 2 and 3) or an embedding:
L = L_prim + alpha * sum over sources of L_aux (eq. 1).

Cross-entropy, KD and BCE have the released code's exact form; each docstring says what it averages over and
where it departs from that code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PRIMARY_LOSSES = ("ce", "focal", "bce")
LOGITS_LOSSES = ("ce", "kd", "focal")  # which read a source's numbers as classes
VECTOR_LOSSES = ("cosine", "smooth-l1")  # which read them as a vector: embeddings, and logits too
AUXILIARY_LOSSES = (*LOGITS_LOSSES, *VECTOR_LOSSES)
KD_REDUCTIONS = ("mean", "batchmean")
UNLABELLED = -1  # the label of a sample that has none
_SMALLEST = 1e-6  # standard deviation of a row that is all but constant


def soft_cross_entropy(logits: Tensor, source_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2-scaled cross-entropy against a softened source ("CE, soft label").

    T^2 * mean_n sum_k -softmax(z_s / T)_nk * log_softmax(z_t / T)_nk

    logits, source_logits: (N, K) float32; source_logits carries no gradient. Returns a scalar, mean over N.
    """
    target = (source_logits / temperature).softmax(dim=1)
    log_q = (logits / temperature).log_softmax(dim=1)
    return -(temperature**2) * (target * log_q).sum(dim=1).mean()


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: tuple[float, ...], *, label_smoothing: float
) -> Tensor:
    """Cross-entropy with a weight for each class.

    1 / N * sum_n w_{y_n} * CE(z_n, y_n), over the N samples with a label

    logits: (N, K) float32. labels: int64 (N,); UNLABELLED ones do not count. class_weights: (K,). Returns a
    scalar. Unlike torch's weighted mean, it divides by the number of samples and not by their weights: so
    parts of a batch add up, and a batch of rare classes alone weighs more than one without.
    """
    losses = F.cross_entropy(
        logits, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=UNLABELLED
    )
    weights = logits.new_tensor(class_weights)[labels.clamp(min=0)]
    return (weights * losses).sum() / (labels != UNLABELLED).sum()


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss: cross-entropy that down-weights easy samples (Lin et al., 2017, gamma 2).

    mean_n sum_k -p_nk * (1 - q_nk)^2 * log q_nk,  q = softmax(z)

    logits: (N, K) float32. target: p, float (N, K) rows that sum to 1, or int64 (N,) labels, of which
    UNLABELLED ones do not count. Returns a scalar, mean over N.
    """
    log_q = logits.log_softmax(dim=1)
    terms = (1 - log_q.exp()) ** 2 * log_q
    if target.ndim == 1:
        labelled = target != UNLABELLED
        of_label = terms.gather(1, target.clamp(min=0)[:, None])[:, 0]
        return -(of_label * labelled).sum() / labelled.sum()
    return -(target * terms).sum(dim=1).mean()


def soft_focal(logits: Tensor, source_logits: Tensor, *, temperature: float) -> Tensor:
    """`focal` of softened logits against a softened source, scaled by T^2 like the other two losses.

    Departs from the released code, whose focal loss has no temperature; for T = 1 the two agree.
    logits, source_logits: (N, K) float32; source_logits carries no gradient. Returns a scalar, mean over N.
    """
    target = (source_logits / temperature).softmax(dim=1)
    return temperature**2 * focal(logits / temperature, target)


def multilabel_bce(logits: Tensor, multi_hot: Tensor) -> Tensor:
    """Binary cross-entropy per class, for images with several labels (SSKT table 1, VOC).

    logits: (N, C) float32. multi_hot: (N, C) integer, 1 present, 0 absent, -1 ignored. Returns a scalar, mean
    over the entries that are not ignored. Departs from the released code, which ignores nothing: a class
    whose objects are all difficult counts as absent.
    """
    counted = multi_hot >= 0
    terms = F.binary_cross_entropy_with_logits(
        logits, multi_hot.clamp(min=0).to(logits.dtype), reduction="none"
    )
    return (terms * counted).sum() / counted.sum().clamp(min=1)


def multilabel_divergence(
    logits: Tensor, source_logits: Tensor, *, temperature: float, reduction: str
) -> Tensor:
    """`kd_divergence` for multi-label targets: the divergence of two Bernoulli distributions per class.

    T^2 * R_nk [ p_nk log(p_nk / q_nk) + (1 - p_nk) log((1 - p_nk) / (1 - q_nk)) ],
    p = sigmoid(z_s / T), q = sigmoid(z_t / T)

    `reduction` and shapes are those of `kd_divergence`; "mean" averages as `multilabel_bce` does.
    """
    _require_reduction(reduction)
    z_t, z_s = logits / temperature, source_logits / temperature
    p = z_s.sigmoid()
    terms = F.binary_cross_entropy_with_logits(z_t, p, reduction="none")
    terms = terms - F.binary_cross_entropy_with_logits(z_s, p, reduction="none")
    return temperature**2 * (terms.mean() if reduction == "mean" else terms.sum(dim=1).mean())


def kd_divergence(logits: Tensor, source_logits: Tensor, *, temperature: float, reduction: str) -> Tensor:
    """T^2-scaled Kullback-Leibler divergence from a softened source ("KD"; Hinton et al., 2015).

    T^2 * R_nk p_nk * (log p_nk - log q_nk),  p = softmax(z_s / T), q = softmax(z_t / T)

    reduction "mean" is R = mean over batch x classes, as in the released code: 1/K of "batchmean", which sums
    over classes as the divergence is defined. There is no default, since it changes the loss's weight
    K-fold. logits, source_logits: (N, K) float32; source_logits carries no gradient. Returns a scalar.
    """
    _require_reduction(reduction)
    log_p = (source_logits / temperature).log_softmax(dim=1)
    log_q = (logits / temperature).log_softmax(dim=1)
    # reduced here rather than by kl_div, since torch has announced a change of its "mean"
    terms = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    return temperature**2 * (terms.mean() if reduction == "mean" else terms.sum(dim=1).mean())


def cosine_distance(predicted: Tensor, vectors: Tensor) -> Tensor:
    """1 - cosine similarity with a source's layer-normalised row ("cosine").

    mean_n [ 1 - <z_n, v'_n> / (|z_n| |v'_n|) ],  v' = `layer_normalised`(v)

    predicted: z, (N, K) float32, what the source's head says. vectors: v, (N, K) float32, without gradient.
    Returns a scalar in [0, 2], mean over N.
    """
    return (1 - F.cosine_similarity(predicted, layer_normalised(vectors), dim=1, eps=_SMALLEST)).mean()


def smooth_l1(predicted: Tensor, vectors: Tensor) -> Tensor:
    """Smooth L1 distance from a source's layer-normalised row ("smooth-l1"; Huber's loss of threshold 1).

    mean_nk h(z_nk - v'_nk),  h(d) = d^2 / 2 if |d| < 1 else |d| - 1/2,  v' = `layer_normalised`(v)

    Only the source's rows are normalised: the head learns v' itself. Shapes as for `cosine_distance`. Returns
    a scalar, mean over N and K.
    """
    return F.smooth_l1_loss(predicted, layer_normalised(vectors), reduction="mean", beta=1.0)


def layer_normalised(rows: Tensor) -> Tensor:
    """Rows (..., K) with mean 0 and standard deviation 1 each; a constant one is all 0.

    v' = (v - mean_k v) / max(std_k v, 1e-6), std over K without correction.
    """
    centred = rows - rows.mean(dim=-1, keepdim=True)
    return centred / centred.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=_SMALLEST)


def _require_reduction(reduction: str) -> None:
    if reduction not in KD_REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(KD_REDUCTIONS)}")
