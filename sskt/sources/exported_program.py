"""Open networks saved with torch.export (.pt2): any architecture, without its Python class.

A program is code: its shape guards and size expressions are text that torch evaluates when it opens the file,
so open only programs from people whose scripts you would run. No more trust than that is needed: pickled
objects and compiled libraries, which an archive may also carry, are refused, and tensors are loaded with
weights_only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sskt.errors import SourceError
from sskt.sources.exported_archive import open_archive
from sskt.sources.exported_calls import Logits, find_image, find_logits, keep_output
from sskt.sources.purity import require_pure


@dataclass(frozen=True, slots=True)
class Program:
    """An opened network: float32 (N, 3, H, W), or (N, 3, D, H, W), to (N, n_classes) logits."""

    module: nn.Module
    n_classes: int
    side_range_px: tuple[int, int] | None  # image sides that it accepts; None: any
    reads_clips: bool
    batch_range: tuple[int, int | None]  # batch sizes that it accepts; None: no upper limit
    notes: tuple[str, ...]  # which input or output was used, if there was a choice


def read_program(path: Path) -> Program:
    """Open a torch.export program that was exported in eval mode.

    Raises SourceError if it is missing, unreadable, carries code, is random or in train mode, or does not map
    one batch of RGB images or clips to logits, alone or beside other outputs.
    """
    if path.is_dir():
        raise SourceError(f"{path}: is a folder; give the .pt2 file itself")
    if not path.is_file():
        raise SourceError(f"{path}: no such program; give a .pt2 file written by torch.export.save")
    if path.suffix != ".pt2":
        raise SourceError(
            f"{path}: is not named .pt2; give a file written by torch.export.save, under such a name"
        )
    exported = open_archive(path)
    image, logits = find_image(exported, path), find_logits(exported, path)
    require_pure(exported, logits.node, str(path))
    graph = exported.module()
    notes = []
    if logits.n_outputs > 1:
        notes.append(
            f"{path}: its output {logits.name} is taken for the logits, of {logits.n_outputs} outputs"
        )
    if exported.call_spec.out_spec != pytree.treespec_leaf():
        keep_output(graph, logits)
    module: nn.Module = graph
    shape, dtype = image.meta.shape, image.meta.dtype
    if dtype != torch.float32 or logits.meta.ndim != 2 or image.kwargs or len(image.args) > 1:
        module = Logits(graph, image)
    if dtype != torch.float32:
        notes.append(f"{path}: takes {str(dtype).removeprefix('torch.')} pictures and computes in that")
    return Program(
        module.requires_grad_(False),
        int(logits.meta.shape[1]),
        _side_range(exported, tuple(shape)),
        len(shape) == 5,
        _bounds(exported, shape[0]),
        tuple(notes),
    )


def _side_range(exported: ExportedProgram, shape: tuple[int | torch.SymInt, ...]) -> tuple[int, int] | None:
    """The smallest and largest side that both image axes accept; None if there is no largest."""
    low, high = 0, None
    for size in shape[-2:]:
        lower, upper = _bounds(exported, size)
        low = max(low, lower)
        high = upper if high is None else high if upper is None else min(high, upper)
    return (low, high) if high is not None else None


def _bounds(exported: ExportedProgram, size: int | torch.SymInt) -> tuple[int, int | None]:
    """The range of one dimension: equal ends if the program is tied to one size, None for no upper limit."""
    if isinstance(size, int):
        return size, size
    limits = exported.range_constraints.get(size.node.expr)
    if limits is None:
        return 0, None
    lower = int(limits.lower) if limits.lower.is_Integer else 0
    return lower, int(limits.upper) if limits.upper.is_Integer else None
