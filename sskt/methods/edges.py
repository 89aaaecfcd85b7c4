"""Edges between the teachers of a logits graph: how much each listens to every other (Zhang and Peng, IJCAI
2018, section 3.1).

e[n, m, k] is the weight of edge k -> m for sample n, in [0, 1]; the edges into a vertex sum to 1, and its own
is among them. The paper calls their origin complementary gain, "based on the imitation feedback of student",
and gives no formula; all three forms are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sskt.losses import layer_normalised

EDGES = ("learned", "gain", "uniform")
_WIDTH = 32  # of a vertex's embedding, and the softness of scores: those of MMGD's public code
_SOFTNESS = 8.0


class LearnedEdges(nn.Module):
    """Scores of pairs of vertices, from the teachers' logits and the student's distance from each.

        u_m = A ln(z_m) + a,   score_{k -> m} = w . tanh(B [u_m; u_k; d_m; d_k] + b) + c
        e_{k -> m} = softmax over k of score_{k -> m} / 8        ln: mean 0 and standard deviation 1 per row

    Departs from MMGD's public code (Luo et al., 2018), on which the paper builds: inputs carry no gradient,
    else a student could lower its loss by moving edges; they are normalised; the feedback d is among them;
    no prior is added to e, which would leave [0, 1]; and there is a hidden layer, as in additive attention
    (Bahdanau et al., 2015), since of a score that is linear in [u_m; u_k] the softmax over k cancels what
    comes from m, so that every vertex would have the same edges.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.vertex = nn.Linear(n_classes, _WIDTH)
        self.pair = nn.Sequential(nn.Linear(2 * _WIDTH + 2, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, 1))

    def forward(self, logits: Tensor, feedback: Tensor) -> Tensor:
        """Edges float (N, M, M) from teachers' logits, float32 (N, M, C), and feedback, float32 (N, M)."""
        n_teachers = logits.shape[1]
        vertices = torch.cat(
            [self.vertex(layer_normalised(logits.detach())), feedback.detach()[..., None]], dim=2
        )
        receivers = vertices[:, :, None].expand(-1, -1, n_teachers, -1)
        givers = vertices[:, None].expand(-1, n_teachers, -1, -1)
        scores = self.pair(torch.cat([receivers, givers], dim=3))[..., 0]
        edges: Tensor = (scores / _SOFTNESS).softmax(dim=2)
        return edges


def gain_edges(feedback: Tensor) -> Tensor:
    """e_{k -> m} = max(0, d_m - d_k) / (M - 1) for k != m, and e_{m -> m} the rest: a teacher gives weight to
    those that the student imitates better, by how much better.

    feedback: d, float (N, M) in [0, 1], taken without gradient. Returns float (N, M, M).
    """
    d = feedback.detach()
    better = (d[:, :, None] - d[:, None]).clamp(min=0) / (d.shape[1] - 1)
    return better + torch.diag_embed(1 - better.sum(dim=2))


def uniform_edges(feedback: Tensor) -> Tensor:
    """1 / M everywhere: what a learned graph has to beat. feedback: (N, M); returns float (N, M, M)."""
    n, m = feedback.shape
    return feedback.new_full((n, m, m), 1 / m)


def imbalance(edges: Tensor) -> Tensor:
    """sum_{m, k} (mean_n e[n, m, k] - 1 / M)^2, a scalar: without it, all weight goes to the teacher that is
    easiest to imitate. Under several processes the mean is over each one's part of the batch.
    """
    return (edges.mean(dim=0) - 1 / edges.shape[1]).square().sum()
