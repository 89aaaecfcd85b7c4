"""Which output of a network a source's name asks for: NAME its logits, NAME@pooled the input of its last
linear layer, NAME@embedding the vector that a program returns, NAME@layer4 the maps of its fourth layer,
averaged to 6x6, and NAME@layer4:13 those averaged to 13x13.

A probe has no output but its logits; its name holds those of its inputs, which may have some.
"""

from __future__ import annotations

import re

LOGITS_OUTPUT = "logits"  # the output that every source has
POOLED, EMBEDDED = "pooled", "embedding"
MAP = "map"  # the kind of the outputs layerN:G
OUTPUTS = (LOGITS_OUTPUT, POOLED, EMBEDDED)  # that are written as they are
OUTPUT_FORMS = (*OUTPUTS, "layerN", "layerN:GRID")  # for messages
DEFAULT_GRID = 6  # the side of AlexNet's maps at 112 px, which graph distillation compares others' with
_LAYER = re.compile(r"layer([1-9]\d?)(?::([1-9]\d{0,2}))?")
_PROBE = "probe"


def split_output(name: str) -> tuple[str, str]:
    """A network's name and the output that `name` asks for, in full: ("imagenet", "layer4:6") of
    "imagenet@layer4".

    What follows an "@" and is no output belongs to the network's name, which may be a path.
    """
    network, at, asked = name.rpartition("@")
    output = as_output(asked)
    if not at or output is None or name.partition(":")[0] == _PROBE:
        return name, LOGITS_OUTPUT
    return network, output


def as_output(text: str) -> str | None:
    """An output as it is recorded, with a map's grid; None if `text` names none."""
    layer = _LAYER.fullmatch(text)
    if layer is not None:
        return f"layer{layer[1]}:{layer[2] or DEFAULT_GRID}"
    return text if text in OUTPUTS else None


def output_kind(output: str) -> str:
    """What an output is: one of OUTPUTS, or MAP."""
    return MAP if _LAYER.fullmatch(output) else output


def layer_and_grid(output: str) -> tuple[int, int]:
    """The number of a map's layer, from 1, and the side of the grid that it is averaged to."""
    layer = _LAYER.fullmatch(output)
    if layer is None:
        raise ValueError(f"{output} is no map")
    return int(layer[1]), int(layer[2] or DEFAULT_GRID)


def row_shape(output: str, n_numbers: int) -> tuple[int, ...]:
    """The shape of one sample's `n_numbers` of an output: (K,), or of a map (channels, grid, grid)."""
    return map_shape(output, n_numbers) if output_kind(output) == MAP else (n_numbers,)


def map_shape(output: str, n_numbers: int) -> tuple[int, int, int]:
    """The shape of one sample's map of `n_numbers`: (channels, grid, grid)."""
    _, grid = layer_and_grid(output)
    return n_numbers // grid**2, grid, grid


def network_of(name: str) -> str:
    """The name of the network, whose weights and contract serve all of its outputs."""
    return split_output(name)[0]


def output_of(name: str) -> str:
    """The output that a source's name asks for, in full."""
    return split_output(name)[1]


def at_output(network: str, output: str) -> str:
    """The name of an output of a network, given by its name."""
    return network if output == LOGITS_OUTPUT else f"{network}@{output}"


def with_usual_output(name: str, output: str) -> str:
    """`name` with `output`, unless it says which, or is a probe."""
    says_which = "@" in name and as_output(name.rpartition("@")[2]) is not None
    return name if says_which else at_output(name, output)
