"""Which layer of a network a parameter belongs to, counted from the input, for learning rates that are lower
in the first layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def group_layers(network: nn.Module) -> dict[str, int]:
    """The layer of each parameter by name: 0 for the first.

    Containers are taken apart, and so is a module that holds more than half of all parameters; any other
    module, such as a residual block, is one layer. Vectors alone (a norm) join the layer before them; what
    belongs to no child (position embeddings) is in layer 0. The order is that of the modules' definition.
    """
    half = sum(weight.numel() for weight in network.parameters()) / 2
    layers, n = {name: 0 for name, _ in network.named_parameters()}, -1
    for prefix, part in _parts(network, "", half):
        names = {f"{prefix}{name}": weight for name, weight in part.named_parameters()}
        n += any(weight.ndim > 1 for weight in names.values())
        layers |= dict.fromkeys(names, max(0, n))
    return layers


def _parts(module: nn.Module, prefix: str, half: float) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        below = f"{prefix}{name}."
        large = sum(weight.numel() for weight in child.parameters()) > half
        if (large or isinstance(child, _CONTAINERS)) and any(True for _ in child.children()):
            yield from _parts(child, below, half)
        else:
            yield below, child


def layer_factors(layers: Mapping[str, int], network: nn.Module, decay: float) -> dict[Tensor, float]:
    """The factor on each parameter's rate: decay ** (L - l) in layer l = 0 .. L - 1. Heads are layer L."""
    n_layers = max(layers.values(), default=-1) + 1
    return {weight: decay ** (n_layers - layers[name]) for name, weight in network.named_parameters()}
