"""The settings of graph distillation, and which of them a run does not read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sskt.errors import RunError, SettingError
from sskt.methods.config import TaughtConfig
from sskt.methods.edges import EDGES
from sskt.methods.method import require_choice, require_range
from sskt.methods.representations import GRAPH_FEATURES, VERTICES

GRAPH_LOGITS = ("em", "cosine", "off")
TRANSPORTS = ("sample", "batch")


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
    graph_features: str = "off"  # one of GRAPH_FEATURES
    vertices: str = "located"  # one of VERTICES
    sketch_dim: int | None = None  # channels of a vertex; None: those of SKETCH_DIMS
    rep_weight: float = 1.0  # of L_r
    rep_temperature: float = 1.0  # tau of D_k
    gradient_norms: bool = False  # whether those of L_prim, l_s and L_r are recorded

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
        if self.graph_logits != "em" and self.transport != "sample":
            raise RunError(
                f"--transport {self.transport} is of --graph-logits em, this run has {self.graph_logits}; "
                f"leave it out"
            )
        require_choice("graph_features", self.graph_features, GRAPH_FEATURES)
        require_choice("vertices", self.vertices, VERTICES)
        require_range("rep_weight", self.rep_weight, 0, math.inf)
        require_range("rep_temperature", self.rep_temperature, math.ulp(0), math.inf)
        if self.sketch_dim is not None:
            require_range("sketch_dim", self.sketch_dim, 1, math.inf)
        self._require_read()

    def _require_read(self) -> None:
        """Raise RunError for settings that nothing would read."""
        features, logits = self.graph_features, self.graph_logits
        if features == logits == "off":
            raise RunError(
                "--graph-logits off and --graph-features off leave --method graph nothing to teach; leave "
                "one out"
            )
        if features != "graph" and (self.vertices, self.sketch_dim) != ("located", None):
            raise RunError(
                f"--vertices and --sketch-dim are of --graph-features graph, this run has {features}; leave "
                f"them out"
            )
        if features == "off" and (self.rep_weight, self.rep_temperature) != (1, 1):
            raise RunError(
                "--rep-weight and --rep-temperature are of --graph-features graph or uniform, this run has "
                "off; leave them out"
            )
        if logits == "off" and (self.edges == "gain" or (features == "uniform" and self.edges != "learned")):
            raise RunError(
                f"--edges {self.edges} is not read by --graph-logits off with --graph-features {features}; "
                f"leave it out"
            )
