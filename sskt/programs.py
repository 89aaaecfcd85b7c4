"""Networks saved with torch.export (.pt2) as sources: any architecture, without its Python class.

A program is a program: its shape guards and size expressions are text that torch evaluates when it opens the
file, so open only programs from people whose scripts you would run. What needs no trust is not asked for any:
pickled objects and compiled libraries, which an archive may also carry, are refused, and tensors are loaded
with weights_only.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.export.pt2_archive import PT2ArchiveReader

from sskt.errors import SourceError

# File names by which torch's loader decides to unpickle an object, and the folder of compiled code that it
# would run.
_RUNS_CODE = ("data/constants/custom_obj_", "data/constants/opaque_obj_", "data/aotinductor/")
_UNREADABLE = (
    RuntimeError,
    ValueError,
    LookupError,
    AssertionError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
)
_LOADING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Program:
    """An opened program: float32 (N, 3, H, W), or (N, 3, D, H, W), to (N, n_classes) logits."""

    module: nn.Module
    n_classes: int
    side_range_px: tuple[int, int] | None  # pictures it reads, None where any
    reads_clips: bool


def read_program(path: Path) -> Program:
    """Open a torch.export program that was exported in eval mode.

    Raises SourceError when it is missing, unreadable, carries code, was exported in train mode, or does not
    map one batch of RGB pictures or clips to one matrix of logits.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such program; give a .pt2 file written by torch.export.save")
    if path.suffix != ".pt2":
        raise SourceError(f"{path}: is not named .pt2; give a file written by torch.export.save")
    try:
        with PT2ArchiveReader(str(path)) as archive:
            names = [name.lower() for name in archive.get_file_names()]
        carried = next((name for name in names if name.startswith(_RUNS_CODE)), None)
        if carried is None and "archive_format" in names:
            with _tensors_only():
                exported = torch.export.load(str(path))
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: carries pickled objects beside tensors, refused because loading them could run code; "
            f"export the plain network"
        ) from error
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{path}: is not a whole torch.export program ({reason[:120]}); save it again"
        ) from error
    if carried is not None:
        raise SourceError(
            f"{path}: carries {carried}, refused because loading it runs code; export the plain network"
        )
    if "archive_format" not in names:
        raise SourceError(
            f"{path}: is in the format of torch before 2.8; save the program again with a newer torch"
        )
    _require_eval(exported, path)
    shape = _input_shape(exported, path)
    n_classes = _n_classes(exported, path)
    return Program(
        exported.module().requires_grad_(False), n_classes, _side_range(exported, shape), len(shape) == 5
    )


def on_device(program: nn.Module, device: torch.device) -> nn.Module:
    """A program's module moved, with its constants and the devices that are written into its graph, where
    `.float()` or `torch.arange` leave that of the machine which exported it.
    """
    for graph_module in program.modules():
        if not isinstance(graph_module, torch.fx.GraphModule):
            continue
        for node in graph_module.graph.nodes:
            node.args = tuple(device if isinstance(a, torch.device) else a for a in node.args)
            if node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": device}
        graph_module.recompile()
        for name, value in list(vars(graph_module).items()):
            if isinstance(value, torch.Tensor):
                setattr(graph_module, name, value.to(device))
    return program.to(device)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torch.load inside is weights_only, which torch.export.load does not offer as an argument; its log is
    quiet.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    log = logging.getLogger("torch.export")
    with _LOADING:
        before, level = os.environ.get(name), log.level
        os.environ[name] = "1"
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _require_eval(exported: ExportedProgram, path: Path) -> None:
    """A frozen source is in eval mode, and a program cannot be put into it afterwards: the mode is an
    argument in its graph.
    """
    for node in exported.graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            continue
        arguments = (
            dict(zip((a.name for a in target._schema.arguments), node.args, strict=False)) | node.kwargs
        )
        trains = any(arguments.get(flag) is True for flag in ("train", "training"))
        draws = torch.Tag.nondeterministic_seeded in target.tags and arguments.get("train") is not False
        if trains or draws:
            raise SourceError(
                f"{path}: {target._schema.name} is in train mode or random, a source must be a function of "
                f"its picture; call module.eval() before torch.export.export"
            )


def _input_shape(exported: ExportedProgram, path: Path) -> tuple[Any, ...]:
    """The axes of the one input, some of them symbols."""
    inputs = [
        spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT
    ]
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    found = values.get(inputs[0]) if len(inputs) == 1 else None
    if (
        not isinstance(found, torch.Tensor)
        or found.ndim not in (4, 5)
        or found.dtype != torch.float32
        or found.shape[1] != 3
    ):
        what = f"{_shape(found)}" if len(inputs) == 1 else f"{len(inputs)} inputs"
        raise SourceError(
            f"{path}: takes {what}, expected one float32 (N, 3, H, W) or (N, 3, D, H, W) input; export the "
            f"network for pictures or clips"
        )
    return tuple(found.shape)


def _side_range(exported: ExportedProgram, shape: tuple[Any, ...]) -> tuple[int, int] | None:
    """Smallest and largest side that both picture axes accept."""
    low, high = 0, None
    for size in shape[-2:]:
        lower, upper = _bounds(exported, size)
        low = max(low, lower)
        high = upper if high is None else high if upper is None else min(high, upper)
    return (low, high) if high is not None else None


def _bounds(exported: ExportedProgram, size: Any) -> tuple[int, int | None]:
    """The range of one dimension: both ends alike where the program is tied to one size, no upper end where
    it has none.
    """
    if isinstance(size, int):
        return size, size
    limits = exported.range_constraints.get(size.node.expr)
    if limits is None or not limits.upper.is_finite:
        return 0, None
    return int(limits.lower), int(limits.upper)


def _n_classes(exported: ExportedProgram, path: Path) -> int:
    """K of the one (N, K) output, read from the program's own record of shapes."""
    outputs = exported.graph_signature.user_outputs
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    found = values.get(outputs[0]) if len(outputs) == 1 and isinstance(outputs[0], str) else None
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or not isinstance(found.shape[1], int):
        what = _shape(found) if len(outputs) == 1 else f"{len(outputs)} outputs"
        raise SourceError(
            f"{path}: returns {what}, expected one (N, K) tensor of logits; export the logits alone"
        )
    return found.shape[1]


def _shape(value: Any) -> str:
    return (
        f"{value.dtype} {tuple(value.shape)}"
        if isinstance(value, torch.Tensor)
        else f"a {type(value).__name__}"
    )
