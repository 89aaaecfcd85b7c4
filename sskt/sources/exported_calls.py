"""How to call a program: which input is the image, and which output holds the logits.

Exports differ: logits come alone, in a dict, in a tuple of one, in a ModelOutput, or as (N, K, 1, 1); images
go in as float32 or in half precision, by position or by keyword.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from sskt.errors import SourceError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LOGITS = "logits"
_FEATURES = re.compile("hidden|pool|feature|embed")  # in the names of outputs that are not logits
_MAX_LISTED = 6  # outputs that a message lists
_IMAGE = object()  # marks the image among a program's inputs


@dataclass(frozen=True, slots=True)
class ImageInput:
    """Where a program's only tensor input goes, among constants that were fixed at export."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str  # a position in `args` or a key of `kwargs`
    meta: Tensor  # its precision and its shape, which may hold symbols


@dataclass(frozen=True, slots=True)
class LogitsOutput:
    """One output of a program."""

    position: int  # among the program's flattened outputs
    node: str  # the node of the program's graph that computes it
    name: str  # "logits", "1", or "" for an only output without a name
    n_outputs: int
    meta: Tensor


class Logits(nn.Module):
    """A program that returns its logits alone: float32 (N, 3, H, W) or (N, 3, D, H, W) to (N, K)."""

    def __init__(self, program: nn.Module, image: ImageInput) -> None:
        super().__init__()
        self.program = program
        self._args, self._kwargs, self._place = list(image.args), image.kwargs, image.place
        self._dtype = image.meta.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Flatten the logits, (N, K), (N, K, 1, 1) or (N, K, 1, 1, 1), to (N, K)."""
        args, kwargs, x = list(self._args), dict(self._kwargs), x.to(self._dtype)
        if isinstance(self._place, int):
            args[self._place] = x
        else:
            kwargs[self._place] = x
        z: Tensor = self.program(*args, **kwargs)
        return z.flatten(1)


def find_image(exported: ExportedProgram, path: Path) -> ImageInput:
    """Find the input for images or clips. Raises SourceError if the program takes something else."""
    inputs = [s.arg for s in exported.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    tensors = [arg.name for arg in inputs if isinstance(values.get(arg.name), Tensor)]
    image = values[tensors[0]] if len(tensors) == 1 else None
    if image is None or image.ndim not in (4, 5) or image.shape[1] != 3 or image.dtype not in _FLOATS:
        what = f"{len(tensors)} inputs" if image is None else shape_of(image)
        remedy = "export the network for pictures or clips"
        if image is not None and image.ndim in (4, 5) and image.shape[-1] == 3:
            remedy = "export a network whose forward moves the channels to where it wants them"
        elif image is not None and not image.is_floating_point():
            remedy = "export a network whose forward undoes the normalisation and rounds"
        raise SourceError(
            f"{path}: takes {what}, expected one float32 (N, 3, H, W) or (N, 3, D, H, W) input; {remedy}"
        )
    leaves = [
        _IMAGE if arg.name == tensors[0] else arg.value if isinstance(arg, ConstantArgument) else None
        for arg in inputs
    ]
    args, kwargs = pytree.tree_unflatten(leaves, exported.call_spec.in_spec)
    positions = [i for i, value in enumerate(args) if value is _IMAGE]
    keys = [key for key, value in kwargs.items() if value is _IMAGE]
    if not positions and not keys:
        raise SourceError(
            f"{path}: takes its pictures inside a {type(next(iter(args), kwargs)).__name__}, expected a "
            f"tensor; export a network whose forward takes the tensor itself"
        )
    return ImageInput(tuple(args), kwargs, (*positions, *keys)[0], image)


def find_logits(exported: ExportedProgram, path: Path) -> LogitsOutput:
    """Find the output that is (N, K) logits: the only one, or the one called logits.

    Raises SourceError if there is none or more than one, or the number of classes is not fixed.
    """
    outputs = exported.graph_signature.user_outputs
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    names = list(_names(exported.call_spec.out_spec, exported.graph_module.meta))
    candidates = [
        LogitsOutput(i, node, names[i] if len(names) == len(outputs) else str(i), len(outputs), values[node])
        for i, node in enumerate(outputs)
        if isinstance(node, str) and isinstance(values.get(node), Tensor)
    ]
    chosen = _choose(candidates)
    if chosen is None:
        listed = ", ".join(f"{o.name or o.position} {shape_of(o.meta)}" for o in candidates[:_MAX_LISTED])
        listed += ", ..." if len(candidates) > _MAX_LISTED else ""
        raise SourceError(
            f"{path}: returns {len(outputs)} outputs, expected one (N, K) tensor of logits or one called "
            f"logits, found {listed}; export a network with a classification head whose forward returns its "
            f"logits alone, as `return net(x){_selector(candidates, exported.call_spec.out_spec)}`"
        )
    if problem := _shape_problem(chosen.meta):
        which = f" as {chosen.name}" if chosen.name else ""
        raise SourceError(
            f"{path}: returns {shape_of(chosen.meta)}{which}, expected one (N, K) tensor of logits; {problem}"
        )
    return chosen


def keep_output(program: torch.fx.GraphModule, output: LogitsOutput) -> None:
    """Make an exported program's module return that output alone, as a bare tensor."""
    graph: Any = program.graph  # its code generator has no types
    last = graph.output_node()
    last.args = ((last.args[0][output.position],),)
    graph._codegen.pytree_info = graph._codegen.pytree_info._replace(out_spec=pytree.treespec_leaf())
    program.recompile()


def shape_of(value: Tensor) -> str:
    """Precision and shape, in words."""
    return f"{value.dtype} {tuple(value.shape)}"


def _choose(outputs: list[LogitsOutput]) -> LogitsOutput | None:
    """The only output, the one called logits, or the only floating-point one; None if that is ambiguous."""
    candidates = (
        [o for o in outputs if o.name.split(".")[-1] == _LOGITS]
        or [o for o in outputs if _LOGITS in o.name.split(".")[-1].lower()]
        or [o for o in outputs if o.meta.is_floating_point()]
        or outputs
    )
    distinct = {o.node: o for o in reversed(candidates)}
    return next(iter(distinct.values())) if len(distinct) == 1 else None


def _shape_problem(meta: Tensor) -> str | None:
    """What to do about an output that cannot be read as (N, K); None if it can."""
    sizes: list[Any] = list(meta.shape)  # some of them may be symbols
    if any(not isinstance(size, int) or size != 1 for size in sizes[2:]):
        if len(sizes) == 3:
            return "export a network that ends in a classification head"
        return "if these are maps of logits, export a network whose forward averages each of them"
    if not meta.is_floating_point() or len(sizes) < 2:
        return "export a network whose forward returns the logits, not what is made of them"
    if not isinstance(sizes[1], int):
        return "its number of classes changes with the input: export a network whose head has a fixed one"
    return None


def _selector(outputs: list[LogitsOutput], structure: pytree.TreeSpec) -> str:
    """The Python expression that selects the likeliest of several outputs."""
    name = next((o.name for o in outputs if o.meta.ndim == 2 and not _FEATURES.search(o.name)), _LOGITS)
    if not name.isidentifier():
        return f"[{name or 0}]"
    return f"[{name!r}]" if structure.type in (dict, OrderedDict) else f".{name}"


def _names(structure: pytree.TreeSpec, meta: dict[str, Any], before: str = "") -> Iterator[str]:
    """A name for each leaf of an output structure: its keys, fields or positions, joined by dots."""
    if structure.is_leaf():
        yield before
        return
    n = structure.num_children
    for key, child in zip(_keys(structure, n, meta), structure.children(), strict=True):
        yield from _names(child, meta, f"{before}.{key}" if before else str(key))


def _keys(structure: pytree.TreeSpec, n: int, meta: dict[str, Any]) -> list[Any]:
    """The keys of a dict, the fields of a dataclass or named tuple, else positions. The context holds them in
    different forms: a list of names, such a list among others, or a class.
    """
    context = structure.context
    if isinstance(context, type):
        fields = meta.get("treespec_namedtuple_fields", {}).get(context.__name__)
        return list(getattr(context, "_fields", None) or fields or range(n))
    candidates = [context, *context] if isinstance(context, list | tuple) else [context]
    for names in candidates:
        if isinstance(names, list | tuple) and len(names) == n and all(isinstance(k, str) for k in names):
            return list(names)
    return list(range(n))
