"""Several outputs of a network from one forward, each as rows: logits, the pooled feature, maps of layers.

A network of ours gives its blocks itself. torchvision's are traced, and the values that are asked for become
the results of the traced graph; it computes what the network computes, in the same order.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from sskt.errors import SourceError
from sskt.sources.source import EMBEDDED, LOGITS_OUTPUT, MAP, POOLED, layer_and_grid, output_kind
from sskt.students import Features

_TRIED_PX = 64  # side of the image that a network is shown to find out its widths


class OwnNetwork(nn.Module):
    """A source that is one of our backbones with a head."""

    block_channels: tuple[int, ...]  # of the backbone
    n_features: int  # of its pooled feature

    @abstractmethod
    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """The backbone's features of normalised images or clips, and the logits (N, n_classes)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes)."""
        return self.features_and_logits(x)[1]


class OutputRows(nn.Module):
    """From a network's input to the rows of some of its outputs, side by side: float32 (N, D).

    A map's numbers are those of (channels, grid, grid): the layer's maps (N, C, H, W), averaged to the grid
    by `adaptive_avg_pool2d`; those of clips (N, C, D, H, W) are averaged over D first. Raises SourceError for
    a layer that the network does not have.
    """

    def __init__(self, network: nn.Module, outputs: Sequence[str], n_classes: int, name: str) -> None:
        """`n_classes` and `name`, for messages, are the network's."""
        super().__init__()
        self.outputs, self._name = tuple(outputs), name
        layers = {layer_and_grid(output)[0] for output in outputs if output_kind(output) == MAP}
        if isinstance(network, OwnNetwork):
            _require_layers(layers, len(network.block_channels), name)
            channels = {layer: network.block_channels[layer - 1] for layer in layers}
            n_features = network.n_features if POOLED in outputs else 0
            self.values: nn.Module = _OfOurs(network, outputs)
        else:
            _require_layers(layers, _n_layers(network), name)
            channels = {layer: _n_channels(network, layer) for layer in layers}
            last, n_features = _last_linear(network, n_classes, name) if POOLED in outputs else ("", 0)
            self.values = _traced(network, outputs, last)
        known = {LOGITS_OUTPUT: n_classes, EMBEDDED: n_classes, POOLED: n_features}
        self.widths = tuple(  # numbers of each output
            known[output]
            if output in known
            else channels[layer_and_grid(output)[0]] * layer_and_grid(output)[1] ** 2
            for output in self.outputs
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class. Raises SourceError if a layer's maps are smaller than the grid."""
        values = zip(self.outputs, self.values(x), strict=True)
        return torch.cat([self._rows(output, value).float() for output, value in values], dim=1)

    def _rows(self, output: str, value: Tensor) -> Tensor:
        if output == POOLED and value.ndim == 4:  # read by a 1x1 convolution, averaged afterwards
            return nn.functional.adaptive_avg_pool2d(value, 1).flatten(start_dim=1)
        if output_kind(output) != MAP:
            return value
        layer, grid = layer_and_grid(output)
        maps = value.float().mean(dim=2) if value.ndim == 5 else value.float()
        if maps.ndim != 4:
            raise SourceError(
                f"{self._name}: layer{layer} gives {tuple(value.shape)}, expected maps of (N, C, H, W); "
                f"ask for pooled"
            )
        side = min(maps.shape[2:])
        if side < grid:
            raise SourceError(
                f"{self._name}: layer{layer} gives maps of {maps.shape[2]}x{maps.shape[3]} here, and a grid "
                f"of {grid}x{grid} is finer; ask for layer{layer}:{side} or larger images"
            )
        return nn.functional.adaptive_avg_pool2d(maps, grid).flatten(start_dim=1)


class _OfOurs(nn.Module):
    """The values of some outputs, in their order, of one of our networks."""

    def __init__(self, network: OwnNetwork, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self._outputs = network, tuple(outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        features, logits = self.network.features_and_logits(x)
        known = {LOGITS_OUTPUT: logits, EMBEDDED: logits, POOLED: features.pooled}
        return [
            known[output] if output in known else features.blocks[layer_and_grid(output)[0] - 1]
            for output in self._outputs
        ]


def _traced(network: nn.Module, outputs: Sequence[str], last: str) -> fx.GraphModule:
    """A copy of `network`, with the same weights, whose results are the values of `outputs`; the pooled
    feature is what the layer called `last` reads.
    """
    graph = fx.Tracer().trace(network)
    result = next(node for node in graph.nodes if node.op == "output")
    values = []
    for output in outputs:
        if output == LOGITS_OUTPUT:
            values.append(result.args[0])
        elif output == POOLED:
            values.append(next(node for node in graph.nodes if node.target == last).args[0])
        else:  # the last value that is computed within the layer
            layer = f"layer{layer_and_grid(output)[0]}"
            values.append([n for n in graph.nodes if layer in n.meta.get("nn_module_stack", {})][-1])
    graph.erase_node(result)
    graph.output(values)
    module = fx.GraphModule(network, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _last_linear(network: nn.Module, n_classes: int, name: str) -> tuple[str, int]:
    """The name and the input width of the last layer that gives `n_classes` numbers from a vector at each
    place; the last, since GoogLeNet and Inception have auxiliary ones before it.
    """
    for layer_name, layer in reversed(list(network.named_modules())):
        if isinstance(layer, nn.Linear) and layer.out_features == n_classes:
            return layer_name, layer.in_features
        # SqueezeNet's: a 1x1 convolution, whose outputs are averaged over the image
        if isinstance(layer, nn.Conv2d) and (layer.out_channels, layer.kernel_size) == (n_classes, (1, 1)):
            return layer_name, layer.in_channels
    raise SourceError(
        f"{name} has no linear layer that gives its {n_classes} classes; export the network without its "
        f"classifier, as program:FILE.pt2@{EMBEDDED}"
    )


def _n_layers(network: nn.Module) -> int:
    """How many children layer1, layer2, ... a network has."""
    return len([name for name, _ in network.named_children() if re.fullmatch(r"layer\d+", name)])


def _n_channels(network: nn.Module, layer: int) -> int:
    """Channels of the maps of the child layerN."""
    (values,) = _traced(network, [f"layer{layer}"], "")(torch.zeros(1, 3, _TRIED_PX, _TRIED_PX))
    return int(values.shape[1])


def _require_layers(layers: set[int], n_layers: int, name: str) -> None:
    """Raise SourceError for a layer beyond the last."""
    if not layers or max(layers) <= n_layers:
        return
    layer = max(layers)
    if n_layers:
        raise SourceError(f"{name} has no layer{layer}, expected one of layer1 to layer{n_layers}")
    raise SourceError(
        f"{name} has no layer{layer}: of published networks, those with layer1, layer2, ... (ResNets) have "
        f"maps; ask for {POOLED}, or train a student and name it run:FOLDER@layer{layer}"
    )
