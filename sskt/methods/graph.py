"""Graph distillation (Zhang and Peng, IJCAI 2018): several teachers of the same task, joined by a logits
graph whose edges say, sample by sample, which teacher the student should listen to.

    L = (1 - alpha) * L_prim + alpha * (l_s + 10 * R)                                  eq. 2
    l_s = mean_n sum_m sum_k e_{k -> m} d_k                                            eq. 4
    d_k = EM(softmax(z_k / T_k), softmax(z))                                           eq. 5, 6

e are the graph's edges (`sskt.methods.edges`), d the earth mover's distance (`sskt.transport`), and R keeps
the learned edges' means near 1 / M (`imbalance`). The student has no temperature, as in eq. 6. Only the sums
of e over m matter to it, which add up to M: eq. 4 has no mean. With mu~_m = sum_k e_{k -> m} mu_k, the
teachers' answers adjusted to their neighbours', EM(mu~_m, eta) is at most m's part of l_s.

With `graph_logits` "cosine" it is MMGD (Luo et al., 2018), the paper's baseline: d_k = 1 - cos(z_k, z) of raw
logits, all else alike. The paper's representation graph is not here yet: it would add a term beside l_s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.errors import RunError, SettingError
from sskt.methods.config import TaughtConfig, require_choice, require_range
from sskt.methods.edges import EDGES, LearnedEdges, gain_edges, imbalance, uniform_edges
from sskt.methods.method import Losses, Method, Parts, n_correct, require_teachers
from sskt.methods.mixture import Mixture
from sskt.students import Student
from sskt.transport import transport_per_batch, transport_per_sample

GRAPH_LOGITS = ("em", "cosine")
TRANSPORTS = ("sample", "batch")
_BALANCE = 10.0  # weight of R: that of MMGD's public code


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig(TaughtConfig):
    """`alpha` is the teachers' share of the loss, the paper's lambda; `temperature` that of teachers which
    `teacher_temperature` does not name.
    """

    temperature: float = 2.0
    alpha: float = 0.6
    graph_logits: str = "em"  # one of GRAPH_LOGITS
    edges: str = "learned"  # one of EDGES
    transport: str = "sample"  # one of TRANSPORTS
    teacher_temperature: Mapping[str, float] = field(default_factory=dict)  # T_k by teacher

    def __post_init__(self) -> None:
        """Raises RunError for a value that no training can have."""
        TaughtConfig.__post_init__(self)
        require_choice("graph_logits", self.graph_logits, GRAPH_LOGITS)
        require_choice("edges", self.edges, EDGES)
        require_choice("transport", self.transport, TRANSPORTS)
        require_range("alpha", self.alpha, 0, 1)
        for name, temperature in self.teacher_temperature.items():
            if not 0 < temperature < math.inf:
                raise SettingError("teacher_temperature", f"of {name} is {temperature}, expected more than 0")
        if self.graph_logits == "cosine" and self.transport != "sample":
            raise RunError(
                f"--transport {self.transport} is of --graph-logits em, this run has cosine; leave it out"
            )


class Graph(Method):
    """A student without auxiliary heads, two or more teachers that know its own classes, and their edges."""

    Config = GraphConfig
    needs = ("logits",)
    shares_classes = reads_unlabelled = every_number = True
    mixes = compiles = False

    @classmethod
    def build(cls, config: GraphConfig, parts: Parts) -> Graph:
        """See `Method.build`."""
        student = parts.student(parts.backbone, {})
        return cls(student, config, channels_last=parts.channels_last, teachers=parts.source_classes)

    def __init__(
        self, student: Student, config: GraphConfig, *, channels_last: bool, teachers: Mapping[str, int]
    ) -> None:
        """`teachers`: their number of classes by name, in the order of the graph's vertices. Raises RunError
        for fewer than two, and for one of other classes.
        """
        super().__init__(student, config, channels_last=channels_last)
        n_classes = student.head.out_features
        require_teachers("graph", teachers, n_classes)
        if len(teachers) < 2:
            raise RunError(
                f"--method graph joins two or more teachers, and {next(iter(teachers))} is the only one; add "
                f"another --source run:FOLDER, or use --method kd"
            )
        self.auxiliary_names = tuple(teachers)
        self.recorded_names = tuple(f"edges_from/{name}" for name in teachers)
        self.edges = LearnedEdges(n_classes) if config.edges == "learned" else None
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
        """See `Method.forward`. Auxiliary losses are the mean distances from the teachers; recorded are the
        mean weights of the edges that leave them.
        """
        logits, _ = self.student(self._seen(pixels))
        primary = self.config.primary(logits, labels, mixed, self.labelled_share)
        with torch.autocast(logits.device.type, enabled=False):
            teachers = torch.stack([source_logits[name].float() for name in self.auxiliary_names], dim=1)
            distances = self.distances(logits.float(), teachers)
            edges = self._edges(teachers, distances)
            taught = (edges * distances[:, None]).sum(dim=(1, 2)).mean()
            if self.edges is not None:
                taught = taught + _BALANCE * imbalance(edges)
        total = (1 - self.config.alpha) * primary + self.config.alpha * taught
        return Losses(
            total,
            primary.detach(),
            distances.detach().mean(dim=0),
            n_correct(logits, labels),
            edges.detach().mean(dim=(0, 1)),
        )

    def distances(self, logits: Tensor, teachers: Tensor) -> Tensor:
        """d, float (N, M), of the student's logits, float32 (N, C), from the teachers', float32 (N, M, C),
        which carry no gradient.
        """
        if self.config.graph_logits == "cosine":
            return 1 - F.cosine_similarity(teachers, logits[:, None], dim=2, eps=1e-6)
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
