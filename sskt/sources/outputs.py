"""Which output of a network a source's name asks for: NAME its logits, NAME@pooled the input of its last
linear layer, NAME@embedding the vector that a program returns.

A probe has no output but its logits; its name holds those of its inputs, which may have some.
"""

from __future__ import annotations

LOGITS_OUTPUT = "logits"  # the output that every source has
POOLED, EMBEDDED = "pooled", "embedding"
OUTPUTS = (LOGITS_OUTPUT, POOLED, EMBEDDED)
_PROBE = "probe"


def split_output(name: str) -> tuple[str, str]:
    """A network's name and the output that `name` asks for: ("imagenet", "pooled") of "imagenet@pooled".

    What follows an "@" and is not one of OUTPUTS belongs to the network's name, which may be a path.
    """
    network, at, output = name.rpartition("@")
    if not at or output not in OUTPUTS or name.partition(":")[0] == _PROBE:
        return name, LOGITS_OUTPUT
    return network, output


def network_of(name: str) -> str:
    """The name of the network, whose weights and contract serve all of its outputs."""
    return split_output(name)[0]


def output_of(name: str) -> str:
    """The output that a source's name asks for, one of OUTPUTS."""
    return split_output(name)[1]


def at_output(network: str, output: str) -> str:
    """The name of an output of a network, given by its name."""
    return network if output == LOGITS_OUTPUT else f"{network}@{output}"


def with_usual_output(name: str, output: str) -> str:
    """`name` with `output`, unless it says which, or is a probe."""
    says_which = name.rpartition("@")[2] in OUTPUTS and "@" in name
    return name if says_which else at_output(name, output)
