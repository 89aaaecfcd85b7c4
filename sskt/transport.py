"""Earth mover's distance between what teachers and a student answer: the logits graph's distance (Zhang and
Peng, IJCAI 2018, eq. 5).

The paper's classes have no geometry, so it costs 1 to move probability from any class to any other, and the
distance of two distributions is their total variation. It is never that of cumulative sums, which depends on
the order of the class names. Where an image has several labels, its answer is one Bernoulli distribution per
class, and the distance the mean over classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """1/2 sum_k |p_k - q_k|, in [0, 1]: float (...,) of distributions (..., C)."""
    return 0.5 * (p - q).abs().sum(dim=-1)


def bernoulli_distance(p: Tensor, q: Tensor) -> Tensor:
    """mean_k |p_k - q_k|, in [0, 1]: float (...,) of C independent probabilities (..., C)."""
    return (p - q).abs().mean(dim=-1)


def transport_per_sample(mu: Tensor, eta: Tensor, *, several: bool) -> Tensor:
    """d_nm of teachers' answers mu, float (N, M, C), from the student's eta, float (N, C), sample by sample:
    float (N, M). `several`: whether the C numbers are probabilities of their own.
    """
    distance = bernoulli_distance if several else total_variation
    return distance(mu, eta[:, None])


def transport_per_batch(mu: Tensor, eta: Tensor, *, several: bool) -> Tensor:
    """The same of the batch as a whole: each teacher's N answers are N equal masses, to be moved onto the
    student's N answers at the least cost, which is the distance of the two that are matched.

    Returns float (N, M): row n is the cost of the teacher's answer n. Its mean over n is at most that of
    `transport_per_sample`. The gradient is that of the matched costs, the matching held fixed (envelope
    theorem). Under several processes each matches its own part of the batch. Waits for a GPU.
    """
    from scipy.optimize import linear_sum_assignment

    distance = bernoulli_distance if several else total_variation
    costs = []
    for answers in mu.unbind(dim=1):
        # in proportion to the distances; what is not finite is for the trainer to report, with its samples
        cost = torch.cdist(answers, eta.detach(), p=1).nan_to_num(nan=0.0)
        _, matched = linear_sum_assignment(cost.cpu().numpy())
        costs.append(distance(answers, eta[torch.from_numpy(matched).to(eta.device)]))
    return torch.stack(costs, dim=1)
