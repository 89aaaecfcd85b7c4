"""Make a backbone of a plain module without being told how: take its last linear layer off, and find the
blocks that give maps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sskt.errors import RunError
from sskt.students.backbone import Backbone
from sskt.students.wrapped import WrappedBackbone

Wrappable = nn.Module  # what `wrap_module` takes: a Backbone, or a module that can be made one
_MOST_BLOCKS = 4  # as ResNets have


class Seen(NamedTuple):
    """What one forward of a module showed."""

    output: Any
    outputs: list[tuple[str, Any]]  # of its submodules by name, in the order in which they finished


def wrap_module(module: Wrappable, sizes: Sequence[tuple[int, ...]], name: str) -> Backbone:
    """A backbone of `module`, which is changed: if its output is that of a Linear, that layer is replaced by
    an Identity, and the feature is what it read. A Backbone is returned as it is.

    `sizes` are of inputs after (N, 3): (H, W) for images, (D, H, W) for clips; the first that the module can
    take counts. Blocks are the last modules to finish at each resolution, at most four. `name` is for
    messages; what was assumed is `Backbone.note`. Raises RunError for a module that takes none of the sizes,
    or gives neither a vector nor maps.
    """
    if isinstance(module, Backbone):
        return module
    size, seen = _first_that_runs(module, sizes, name)
    if not isinstance(seen.output, Tensor) or seen.output.ndim not in (2, 2 + len(size)):
        raise RunError(
            f"{name} gives {_described(seen.output)} for 2 images, and a student needs a feature vector: "
            f"expected one tensor (N, C) or (N, C, H, W); return that from its forward"
        )
    head, note = _head(module, seen), ""
    if head is not None:
        parent, _, child = head.rpartition(".")
        linear: Any = module.get_submodule(head)
        setattr(module.get_submodule(parent), child, nn.Identity())
        n_features = linear.in_features
        note = (
            f"{name}: its last layer {head} ({n_features} to {linear.out_features}) is taken off, and heads "
            f"read the {n_features} numbers before it; to keep it, wrap the module yourself in "
            f"sskt.students.WrappedBackbone"
        )
    n_frames = size[0] if len(size) == 3 else None
    backbone = WrappedBackbone(module, side_px=size[-1], n_frames=n_frames, blocks=_blocks(seen, len(size)))
    if head is not None:
        backbone.head_keys, backbone.note = (f"{head}.",), note
    return backbone


def _first_that_runs(
    module: nn.Module, sizes: Sequence[tuple[int, ...]], name: str
) -> tuple[tuple[int, ...], Seen]:
    """The first size that the module can take, and what it did with it."""
    reasons = []
    for size in sizes:
        try:
            return size, look(module, size)
        except Exception as error:  # noqa: BLE001 - whatever a foreign forward raises
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"{'x'.join(map(str, (2, 3, *size)))}: {lines[0]}")
    raise RunError(
        f"{name} cannot take images ({'; '.join(reasons)}); a student reads float (N, 3, H, W), or "
        f"(N, 3, D, H, W) of clips: choose another --size or --model"
    )


def look(module: nn.Module, size: tuple[int, ...]) -> Seen:
    """Run a module once on two images or clips of zeros, in eval mode and without a trace. Raises whatever
    its forward raises.
    """
    outputs: list[tuple[str, Any]] = []

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.append((name, output))

    hooks = [part.register_forward_hook(keep(name)) for name, part in module.named_modules() if name]
    was_training = {part: part.training for part in module.modules()}
    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = module.eval()(torch.zeros(2, 3, *size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for part, training in was_training.items():
            part.training = training
    return Seen(output, outputs)


def _head(module: nn.Module, seen: Seen) -> str | None:
    """The Linear whose output is the module's own; None if there is none."""
    for name, output in seen.outputs:
        if output is seen.output and isinstance(module.get_submodule(name), nn.Linear):
            return name
    return None


def _blocks(seen: Seen, n_sides: int) -> list[str]:
    """For each resolution, the last module that gave maps of it; the last four."""
    last: dict[tuple[int, ...], str] = {}
    for name, output in once(seen).items():
        if output.ndim == 2 + n_sides:
            height_width = tuple(output.shape[-2:])
            if output.shape[0] == 2 and height_width != (1, 1):
                last.pop(height_width, None)  # so that the order is that of the last ones
                last[height_width] = name
    return list(last.values())[-_MOST_BLOCKS:]


def once(seen: Seen) -> dict[str, Tensor]:
    """The outputs of submodules that ran once and gave a tensor, by name."""
    counts = Counter(name for name, _ in seen.outputs)
    return {name: out for name, out in seen.outputs if counts[name] == 1 and isinstance(out, Tensor)}


def _described(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"
