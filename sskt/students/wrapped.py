"""Make a backbone of any module, for custom students."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sskt.errors import RunError
from sskt.students.backbone import Backbone, Features

_AXES = {2: "N, C", 4: "N, C, H, W", 5: "N, C, D, H, W"}


class WrappedBackbone(Backbone):
    """A module whose output is the last feature, (N, C) or (N, C, H, W), tapped at named submodules.

    `blocks` are names as in `module.named_modules()`, ordered from the input on, each with a (N, C, H, W)
    output; transfer modules and maps read them. `transfer_width` is the output width of their bottlenecks:
    the paper uses 64 for CIFAR-style networks and 1000 for ImageNet-style and 3D ones. With `n_frames` the
    module reads clips, and there is one more axis after C. The module runs once on images of `side_px` to
    find out its widths. Raises RunError for a name or a shape that does not fit.
    """

    own_prefix = "module."

    def __init__(
        self,
        module: nn.Module,
        *,
        side_px: int,
        n_frames: int | None = None,
        blocks: Sequence[str] = (),
        transfer_width: int = 1000,
    ) -> None:
        super().__init__()
        self.module = module
        self.reads_clips = n_frames is not None
        self.transfer_width = transfer_width
        self._tapped: dict[str, Tensor] = {}
        submodules = dict(module.named_modules())
        for name in blocks:
            if name not in submodules:
                near = ", ".join([n for n in submodules if n and "." not in n][:8])
                raise RunError(
                    f"{type(module).__name__} has no submodule {name!r}, expected one of {near}, ..."
                )
            submodules[name].register_forward_hook(partial(_tap, self._tapped, name))
        self._names = tuple(blocks)
        self.block_channels, self.n_features = self._find_widths(
            (side_px, side_px) if n_frames is None else (n_frames, side_px, side_px)
        )

    def network(self) -> nn.Module:
        """See `Backbone.network`."""
        return self.module

    def forward(self, x: Tensor) -> Features:
        """From float (N, 3, [D,] H, W) to the outputs of the tapped submodules and the pooled output."""
        blocks, pooled = self._run(x)
        return Features([self.as_maps(block) for block in blocks], pooled)

    def mapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.mapped`. Raises RunError if no submodule is tapped."""
        blocks, pooled = self._run(x)
        if not blocks:
            raise RunError(
                f"{type(self.module).__name__} has no block whose maps could be shown; name submodules that "
                f"give (N, C, H, W) as WrappedBackbone(module, blocks=...)"
            )
        return blocks[-1], pooled

    def _run(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The outputs of the tapped submodules as they are, and the pooled output."""
        self._tapped.clear()
        last = self.module(x)
        blocks = [self._tapped.pop(name) for name in self._names]
        n_axes = 5 if self.reads_clips else 4
        return blocks, last.flatten(start_dim=2).mean(dim=2) if last.ndim == n_axes else last

    def _find_widths(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """The channels of every block and of the pooled output, for inputs of `size`, (H, W) or (D, H, W)."""
        training = self.module.training
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        with torch.no_grad():
            features = self.eval()(torch.zeros(2, 3, *size, device=device))
        self.train(training)
        shapes = {name: tuple(block.shape) for name, block in zip(self._names, features.blocks, strict=True)}
        shapes["the module itself"] = tuple(features.pooled.shape)
        for name, shape in shapes.items():
            n_axes = 2 if name == "the module itself" else 2 + len(size)
            if len(shape) != n_axes or shape[0] != 2:
                raise RunError(
                    f"{type(self.module).__name__}: {name} gives {shape} for 2 pictures, expected "
                    f"{n_axes} axes, ({_AXES[n_axes]})"
                )
        *widths, n_features = (shape[1] for shape in shapes.values())
        return tuple(widths), n_features


def _tap(tapped: dict[str, Tensor], name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
    """A forward hook that stores a submodule's output under `name`. A copy of the backbone, such as the one
    that averages its weights, has copies of `tapped` and of the hook, which refers to it.
    """
    tapped[name] = output
