"""The representation graph of graph distillation (Zhang and Peng, IJCAI 2018, section 3.2), between maps.

    L_r = mean_n sum_k w_k MMD^2(channels of softmax(R), channels of D_k)              eq. 9, 10
    D_k = softmax(V_k / (tau RMS(V_k))) over positions                                 eq. 8
    w = softmax over k of <E_k, V_k> / sqrt(b)                                         eq. 10

R is the student's map and V_k a vertex of b numbers: with "graph" the compact bilinear product of a pair of
teachers (`sskt.bilinear`), with "uniform", the paper's single feature distillation, each teacher's own map,
where w is 1 / M. Eq. 8's T_k is tau RMS(V_k) here: V_k has norm 1, so at a T_k near 1 all D_k are flat.
Teachers' maps come averaged to a grid, where the paper sketches whole ones. Everything is in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from sskt.bilinear import bilinear_product, count_hash, count_sketch, normalised_root
from sskt.discrepancy import discrepancies, selectivity
from sskt.errors import RunError

GRAPH_FEATURES = ("off", "uniform", "graph")
SKETCH_DIMS = {"located": 512, "flat": 64}  # by the reading of eq. 7: channels of a vertex
VERTICES = tuple(SKETCH_DIMS)
_SMALLEST_RMS = 1e-12


class BilinearVertices(nn.Module):
    """V of each pair of teachers, in the order of a run's sources: float (N, channels, S).

    "located" sketches the channels at each position to `channels` numbers, as eq. 9 needs them; "flat" the
    whole map to channels * S numbers, as eq. 7 is typed, folded to the same shape: there hashing mixes the
    positions. The paper gives neither dimension.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], *, kind: str, channels: int) -> None:
        super().__init__()
        self._kind, self._channels = kind, channels
        for i, (c, height, width) in enumerate(shapes):
            places = height * width
            n, self._width = (c, channels) if kind == "located" else (c * places, channels * places)
            for name, values in zip(("columns", "signs"), count_hash(i, n, self._width), strict=True):
                self.register_buffer(f"{name}{i}", values, persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """From each teacher's map, float32 (N, C, S), without gradient."""
        sketches = []
        for i, each in enumerate(maps):
            x = each if self._kind == "located" else each.flatten(start_dim=1)
            hashes = self.get_buffer(f"columns{i}"), self.get_buffer(f"signs{i}")
            sketches.append(count_sketch(x, *hashes, self._width))
        shape = (len(maps[0]), self._channels, maps[0].shape[2])
        return [
            normalised_root(bilinear_product(first, second)).view(shape)
            for first, second in combinations(sketches, 2)
        ]


class Representations(nn.Module):
    """L_r of a student's map from the teachers', whose shapes (C, g, g) are given by name."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int, int]],
        *,
        graph: bool,
        vertices: str = "located",
        channels: int | None = None,
        temperature: float = 1.0,
        learned: bool = True,
    ) -> None:
        """`channels` of a vertex, None for those of SKETCH_DIMS; `learned`: whether E is, else w is uniform.
        Raises RunError for maps of different grids, and for too few.
        """
        super().__init__()
        _require_maps(shapes, graph=graph)
        self.grid = next(iter(shapes.values()))[1]
        self.names, self._sources, self._temperature = tuple(shapes), tuple(shapes), temperature
        self.vertices = self.scores = None
        if graph:
            self.names = tuple("+".join(pair) for pair in combinations(shapes, 2))
            channels = channels or SKETCH_DIMS[vertices]
            self.vertices = BilinearVertices(tuple(shapes.values()), kind=vertices, channels=channels)
            if learned:
                self.scores = nn.Parameter(torch.zeros(len(self.names), channels * self.grid**2))

    def forward(self, block: Tensor, teachers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """MMD^2 from each vertex, and w, both float32 (N, K): of the student's block, float (N, C, H, W) or
        of clips (N, C, D, H, W), which is averaged over D and to the teachers' grid; only the first carries
        a gradient into it. Raises RunError for a block that is coarser than the grid.
        """
        ours = selectivity(self._student_map(block))
        with torch.no_grad():
            maps = [teachers[name].float().flatten(start_dim=2) for name in self._sources]
            vertices = maps if self.vertices is None else self.vertices(maps)
            wanted = [selectivity(self._tempered(vertex)) for vertex in vertices]
        distances = torch.stack(discrepancies(ours, wanted), dim=1)
        return distances, self._weights(vertices)

    def _weights(self, vertices: Sequence[Tensor]) -> Tensor:
        n, k = len(vertices[0]), len(vertices)
        if self.scores is None:
            return vertices[0].new_full((n, k), 1 / k)
        pairs = zip(vertices, self.scores, strict=True)
        scores = torch.stack([vertex.flatten(start_dim=1) @ e for vertex, e in pairs], dim=1)
        weights: Tensor = (scores / self.scores.shape[1] ** 0.5).softmax(dim=1)
        return weights

    def _tempered(self, vertex: Tensor) -> Tensor:
        """In units of its root mean square per sample, over tau; a vertex of zeros stays one."""
        rms = vertex.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=_SMALLEST_RMS)
        return vertex / (rms * self._temperature)

    def _student_map(self, block: Tensor) -> Tensor:
        block = block.float()
        if block.ndim == 5:
            block = block.mean(dim=2)
        if min(block.shape[2:]) < self.grid:
            height, width = block.shape[2:]
            raise RunError(
                f"the student's maps are {height}x{width} for these images, and the teachers' "
                f"{self.grid}x{self.grid} are finer; precompute theirs at a grid of {min(height, width)}, "
                f"or train on larger images"
            )
        return nn.functional.adaptive_avg_pool2d(block, self.grid).flatten(start_dim=2)


def weight_imbalance(weights: Tensor) -> Tensor:
    """sum_k (mean_n w[n, k] - 1 / K)^2, a scalar, of w, float (N, K): as `sskt.methods.edges.imbalance`."""
    return (weights.mean(dim=0) - 1 / weights.shape[1]).square().sum()


def _require_maps(shapes: Mapping[str, tuple[int, int, int]], *, graph: bool) -> None:
    """Raise RunError for maps that are not of one grid, for none, and for too few to have pairs."""
    if not shapes:
        raise RunError(
            f"--graph-features {'graph' if graph else 'uniform'} compares maps, and no source gives any; add "
            f"--source NAME@layer4 for each teacher"
        )
    (first, (_, grid, _)), *others = shapes.items()
    if graph and not others:
        raise RunError(
            f"--graph-features graph joins the maps of two or more teachers, and {first} is the only one; "
            f"add another --source NAME@layer4, or use --graph-features uniform"
        )
    for name, (_, other, _) in others:
        if other != grid:
            raise RunError(
                f"{name} is maps of {other}x{other} and {first} of {grid}x{grid}; name the same grid for both"
            )
