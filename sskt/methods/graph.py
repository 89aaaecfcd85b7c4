"""Graph distillation (Zhang and Peng, IJCAI 2018): several teachers of the same task, joined by a logits
graph whose edges say, sample by sample, which teacher the student should listen to, and by a graph of their
maps.

    L = (1 - alpha) * L_prim + alpha * (l_s + 10 * R + rep_weight * L_r + 10 * R_r)    eq. 2
    l_s = mean_n sum_m sum_k e_{k -> m} d_k                                            eq. 4
    d_k = EM(softmax(z_k / T_k), softmax(z))                                           eq. 5, 6

e are the graph's edges (`sskt.methods.edges`), d the earth mover's distance (`sskt.transport`), and R keeps
the learned edges' means near 1 / M (`imbalance`). The student has no temperature, as in eq. 6. Only the sums
of e over m matter to it, which add up to M: eq. 4 has no mean. With mu~_m = sum_k e_{k -> m} mu_k, the
teachers' answers adjusted to their neighbours', EM(mu~_m, eta) is at most m's part of l_s.

With `graph_logits` "cosine" it is MMGD (Luo et al., 2018), the paper's baseline: d_k = 1 - cos(z_k, z) of raw
logits, all else alike. L_r and R_r are those of the representation graph (`sskt.methods.representations`),
between the student's fourth block and the teachers' maps; either graph may be off. The text does not
say where L_r stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sskt.errors import RunError
from sskt.methods.edges import LearnedEdges, gain_edges, imbalance, uniform_edges
from sskt.methods.gradients import gradients_of
from sskt.methods.graph_config import GraphConfig
from sskt.methods.method import Losses, Method, Mixture, Parts, n_correct, require_teachers
from sskt.methods.representations import Representations, weight_imbalance
from sskt.students import Features, Student
from sskt.transport import transport_per_batch, transport_per_sample

_BALANCE = 10.0  # weight of R: that of MMGD's public code


class _Term(NamedTuple):
    """What one graph gives of a batch."""

    loss: Tensor  # float32 scalar
    plain: Tensor  # the same without weight and R: l_s or L_r
    distances: Tensor  # float32 (K,), means over the batch
    weights: Tensor  # float32 (K,), likewise


class Graph(Method):
    """A student without auxiliary heads, teachers that know its own classes, and the weights between them."""

    Config = GraphConfig
    needs = ("logits", "map")
    shares_classes = reads_unlabelled = every_number = True
    mixes = compiles = False

    @classmethod
    def build(cls, config: GraphConfig, parts: Parts) -> Graph:
        """See `Method.build`."""
        student = parts.student(parts.backbone, {})
        return cls(
            student,
            config,
            channels_last=parts.channels_last,
            teachers=parts.source_classes,
            maps=parts.source_maps,
        )

    def __init__(
        self,
        student: Student,
        config: GraphConfig,
        *,
        channels_last: bool,
        teachers: Mapping[str, int],
        maps: Mapping[str, tuple[int, int, int]] = MappingProxyType({}),
    ) -> None:
        """`teachers`: their number of classes by name, in the order of the graph's vertices; `maps`: (C, g,
        g) of each that gives maps. Raises RunError for fewer than two, for one of other classes or another
        grid, for those of a graph that is off, and for a student without a layer to compare.
        """
        super().__init__(student, config, channels_last=channels_last)
        n_classes = student.head.out_features
        self._teachers, self.edges = tuple(teachers), None
        if config.gradient_norms and student.backbone.conv4 is None:
            raise RunError(
                f"--gradient-norms are those on the fourth layer of alexnet, vgg19-* or prednet, and the "
                f"student is {type(student.backbone).__name__}; leave it out, or use --model alexnet"
            )
        self.representations = _representations(student, config, maps)
        if config.graph_logits == "off":
            _require_unread(teachers, "logits", "--graph-logits")
        else:
            if maps and not teachers:
                raise RunError(
                    f"--graph-logits {config.graph_logits} compares logits, and all sources give maps; add "
                    f"--source NAME of each teacher, without @layer, or --graph-logits off"
                )
            _require_several(teachers, n_classes)
            self.edges = LearnedEdges(n_classes) if config.edges == "learned" else None
        vertices = self.representations.names if self.representations is not None else ()
        self.auxiliary_names = (*teachers, *vertices)
        graphs = {"logits_graph": teachers, "representation_graph": vertices}
        norms = ("primary", *(graph for graph, names in graphs.items() if names))
        self.recorded_names = (
            *(f"edges_from/{name}" for name in teachers),
            *(f"vertex_weight/{name}" for name in vertices),
            *(f"gradient_norm/{name}" for name in norms if config.gradient_norms),
        )
        own = config.teacher_temperature
        temperatures = [own.get(name, config.temperature) for name in teachers]
        self.temperatures: Tensor
        self.register_buffer("temperatures", torch.tensor(temperatures)[:, None], persistent=False)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],
        mixed: Mixture | None = None,
        mixed_sources: Mixture | None = None,  # noqa: ARG002
    ) -> Losses:
        """See `Method.forward`. Auxiliary losses are the mean distances from the teachers and from the
        vertices of their maps; recorded are the mean weights of the edges that leave the teachers, those of
        the vertices and, if asked for, `_gradient_norms`.
        """
        features, logits = self.student.features_and_logits(self._seen(pixels))
        primary = self.config.primary(logits, labels, mixed, self.labelled_share)
        with torch.autocast(logits.device.type, enabled=False):
            terms = []
            if self.config.graph_logits != "off":
                terms.append(self._logits_graph(logits.float(), source_logits))
            if self.representations is not None:
                block = self._distilled(features)
                terms.append(self._representation_graph(self.representations, block, source_logits))
            taught = torch.stack([term.loss for term in terms]).sum()
        total = (1 - self.config.alpha) * primary + self.config.alpha * taught
        recorded = [term.weights.detach() for term in terms]
        if self.config.gradient_norms:
            losses = [primary, *(term.plain for term in terms)]
            recorded.append(self._gradient_norms(losses, self._distilled(features)))
        return Losses(
            total,
            primary.detach(),
            torch.cat([term.distances.detach() for term in terms]),
            n_correct(logits, labels),
            torch.cat(recorded),
        )

    def _distilled(self, features: Features) -> Tensor:
        """The student's fourth block."""
        conv4 = self.student.backbone.conv4
        assert conv4 is not None  # noqa: S101 - as has been checked
        return features.blocks[conv4]

    def _gradient_norms(self, losses: Sequence[Tensor], block: Tensor) -> Tensor:
        """The norm of each loss's gradient, a mean over the batch, on the student's fourth block of this
        rank's samples: float32 (K,). Each costs a backward pass down to that block.
        """
        if not torch.is_grad_enabled():
            return torch.zeros(len(losses), device=block.device)
        norms = []
        for loss in losses:
            (gradient,) = gradients_of(loss, [block], self.scaled)
            norms.append(
                torch.zeros((), device=block.device) if gradient is None else gradient.float().norm()
            )
        return torch.stack(norms)

    def _logits_graph(self, logits: Tensor, outputs: Mapping[str, Tensor]) -> _Term:
        teachers = torch.stack([outputs[name].float() for name in self._teachers], dim=1)
        distances = self.distances(logits, teachers)
        edges = self._edges(teachers, distances)
        plain = loss = (edges * distances[:, None]).sum(dim=(1, 2)).mean()
        if self.edges is not None:
            loss = loss + _BALANCE * imbalance(edges)
        return _Term(loss, plain, distances.mean(dim=0), edges.mean(dim=(0, 1)))

    def _representation_graph(
        self, graph: Representations, block: Tensor, outputs: Mapping[str, Tensor]
    ) -> _Term:
        distances, weights = graph(block, outputs)
        plain = (weights * distances).sum(dim=1).mean()
        loss = self.config.rep_weight * plain
        if graph.scores is not None:
            loss = loss + _BALANCE * weight_imbalance(weights)
        return _Term(loss, plain, distances.mean(dim=0), weights.mean(dim=0))

    def distances(self, logits: Tensor, teachers: Tensor) -> Tensor:
        """d, float (N, M), of the student's logits, float32 (N, C), from the teachers', float32 (N, M, C),
        which carry no gradient.
        """
        if self.config.graph_logits == "cosine":
            return 1 - nn.functional.cosine_similarity(teachers, logits[:, None], dim=2, eps=1e-6)
        several = self.config.primary_loss == "bce"
        softened = teachers / self.temperatures
        mu = softened.sigmoid() if several else softened.softmax(dim=2)
        eta = logits.sigmoid() if several else logits.softmax(dim=1)
        transport = transport_per_batch if self.config.transport == "batch" else transport_per_sample
        return transport(mu, eta, several=several)

    def _edges(self, teachers: Tensor, distances: Tensor) -> Tensor:
        """e, float (N, M, M)."""
        largest = 2.0 if self.config.graph_logits == "cosine" else 1.0
        feedback = distances.detach() / largest
        if self.edges is not None:
            found: Tensor = self.edges(teachers, feedback)
            return found
        return gain_edges(feedback) if self.config.edges == "gain" else uniform_edges(feedback)


def _representations(
    student: Student, config: GraphConfig, maps: Mapping[str, tuple[int, int, int]]
) -> Representations | None:
    """The graph of a run's maps, None if it is off. Raises RunError as `Graph` does."""
    if config.graph_features == "off":
        _require_unread(maps, "maps", "--graph-features")
        return None
    if student.backbone.conv4 is None:
        raise RunError(
            f"--graph-features {config.graph_features} compares the fourth layer of alexnet, vgg19-* or "
            f"prednet, and the student is {type(student.backbone).__name__}; use --model alexnet"
        )
    return Representations(
        maps,
        graph=config.graph_features == "graph",
        vertices=config.vertices,
        channels=config.sketch_dim,
        temperature=config.rep_temperature,
        learned=config.edges != "uniform",
    )


def _require_several(teachers: Mapping[str, int], n_classes: int) -> None:
    """Raise RunError for fewer than two teachers, and for one of other classes."""
    require_teachers("graph", teachers, n_classes)
    if len(teachers) < 2:
        raise RunError(
            f"--method graph joins two or more teachers, and {next(iter(teachers))} is the only one; add "
            f"another --source run:FOLDER, or use --method kd"
        )


def _require_unread(sources: Mapping[str, object], what: str, option: str) -> None:
    """Raise RunError for sources of a graph that is off, which would not be read."""
    for name in sources:
        instead = "graph" if what == "maps" else "em"
        raise RunError(
            f"{name} gives {what}, which {option} off does not read; leave it out, or add {option} {instead}"
        )
