"""Check that a program is a function of its image: it draws no random numbers and uses no batch statistics.

Known operators are judged by their arguments, before anything runs, since attention and dropout carry torch's
tag for randomness whether they drop anything or not. Everything else is judged by what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from sskt.errors import SourceError

_RATES = ("dropout_p", "p", "dropout")  # names of the dropout rate among operators' arguments
_MODES = ("train", "training")


def require_pure(exported: ExportedProgram, output: str, where: str) -> None:
    """Raise SourceError naming the first operator that makes the output `output` random, or makes a row of it
    depend on the other rows of its batch.

    `where` names the program in messages.
    """
    for node in _operators(exported, output):
        if _draws(node):
            raise SourceError(
                f"{where}: {_name(node)} is in train mode or random, a source must be a function of its "
                f"picture; call module.eval() before torch.export.export, and if it is still there, take it "
                f"out of forward"
            )
        if _mixes_rows(node):
            raise SourceError(
                f"{where}: {_name(node)} is in train mode or random, its statistics are those of the batch "
                f"and a source must be a function of its picture; call module.eval() before "
                f"torch.export.export; a batch norm with track_running_stats=False has no other statistics "
                f"and cannot be used"
            )


def require_same_bits(run: Callable[[Tensor], Tensor], like: Tensor, name: str) -> None:
    """Raise SourceError unless `run` gives an image of noise the same bits again among other images.

    like: uint8 (N, ...), two rows or as many as the program takes; `name` is the source's in messages.
    """
    noise = np.random.default_rng(0).integers(0, 256, like.shape, dtype=np.uint8)
    pixels = torch.from_numpy(noise).to(like.device)
    others = pixels.clone()
    others[1:] = 255 - pixels[1:]
    first, second = run(pixels), run(others)
    if _equal(first[0], second[0]):
        return
    if not _equal(first[0], run(pixels)[0]):
        raise SourceError(
            f"{name} gives other logits when it is asked again about the same picture; call module.eval() "
            f"before torch.export.export, and take what is random out of forward"
        )
    raise SourceError(
        f"{name} gives a picture other logits beside other pictures, as batch norm in train mode does; call "
        f"module.eval() before torch.export.export, and let no operator of it mix the rows of a batch"
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _operators(exported: ExportedProgram, output: str) -> Iterator[Node]:
    """The calls of torch operators that `output` depends on, including those in nested graphs (autocast,
    no_grad, cond).
    """
    needed = {node for node in exported.graph.nodes if node.name == output}
    for node in reversed(exported.graph.nodes):
        target = node.target
        is_mutable = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
        if is_mutable or node in needed:  # a tensor written in place may be read under another name
            needed.add(node)
            needed.update(node.all_input_nodes)
    for graph_module in exported.graph_module.modules():
        if isinstance(graph_module, GraphModule):
            is_nested = graph_module is not exported.graph_module
            for node in graph_module.graph.nodes:
                if isinstance(node.target, torch._ops.OpOverload) and (is_nested or node in needed):
                    yield node


def _arguments(node: Node) -> dict[str, Any]:
    """Every argument by name, including defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    return {a.name: a.default_value for a in schema.arguments if a.has_default_value()} | given | node.kwargs


def _draws(node: Node) -> bool:
    """Whether random numbers change this operator's result."""
    if torch.Tag.nondeterministic_seeded not in node.target.tags:  # type: ignore[union-attr]
        return False
    arguments = _arguments(node)
    off = any(arguments.get(mode) is False for mode in _MODES)
    return not off and not any(arguments.get(rate) == 0 for rate in _RATES if rate in arguments)


def _mixes_rows(node: Node) -> bool:
    """Whether this is a batch norm that uses statistics of several rows. Instance norm, which is written as a
    batch norm over a single row, (1, N * C, H, W), is not.
    """
    if "batch_norm" not in _name(node):
        return False
    arguments = _arguments(node)
    trains = any(arguments.get(mode) is True for mode in _MODES) or "with_update" in _name(node)
    x = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
    return trains and isinstance(x, Tensor) and not _is_one(x.shape[0])


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _name(node: Node) -> str:
    name: str = node.target._schema.name  # type: ignore[union-attr]
    return name
