"""Students by timm: any of its networks without the head, by name, with timm's normalisation."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from torch import Tensor

from sskt.errors import RunError
from sskt.students.automatic import Seen, look, once
from sskt.students.timm_names import TIMM, timm_knowing, timm_normalisation
from sskt.students.wrapped import WrappedBackbone

_MOST_BLOCKS = 4  # as ResNets have


class TimmBackbone(WrappedBackbone):
    """The network that timm calls `name`, for images of `side_px`; pooled as timm pools it, or its class
    token. Blocks are its last four stages, or four of a transformer's blocks, evenly spaced.

    Position embeddings are resampled to `side_px` (timm's `set_input_size`). Raises RunError if timm is
    missing, does not know the name, or the network cannot take images of this size.
    """

    def __init__(self, name: str, side_px: int) -> None:
        net = timm_knowing(name).create_model(name, pretrained=False, num_classes=0)
        self._timm_name, self._side_px = name, side_px
        self._n_prefix = int(getattr(net, "num_prefix_tokens", 0))
        self._grid: tuple[int, ...] | None = None
        self._is_nhwc = getattr(net, "output_fmt", "NCHW") == "NHWC"
        try:
            if hasattr(net, "set_input_size"):
                net.set_input_size(img_size=(side_px, side_px))
            self._grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
            blocks = self._stages(net, look(net, (side_px, side_px)))
        except Exception as error:
            raise RunError(
                f"{TIMM}{name} cannot take images of {side_px} px ({_first_line(error)}); choose another "
                f"--size or --model, its own size is {net.pretrained_cfg['input_size'][-1]}"
            ) from error
        super().__init__(net, side_px=side_px, blocks=blocks)
        self.mean, self.std = timm_normalisation(name)
        heads = net.pretrained_cfg.get("classifier") or ()
        self.head_keys = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))

    def as_maps(self, block: Tensor) -> Tensor:
        """Maps (N, C, H, W) of a stage's output, which may be (N, H, W, C) or tokens (N, T, C)."""
        if block.ndim == 3:
            patches = block[:, self._n_prefix :]
            grid = self._grid
            if grid is None or math.prod(grid) != patches.shape[1]:
                grid = (math.isqrt(patches.shape[1]),) * 2
            return patches.transpose(1, 2).reshape(len(block), -1, *grid)
        return block.permute(0, 3, 1, 2) if self._is_nhwc else block

    def layers(self) -> dict[str, int]:
        """See `Backbone.layers`; as timm groups its own network."""
        from timm.models import group_parameters

        matcher = getattr(self.module, "group_matcher", None)
        if matcher is None:
            return super().layers()
        found = group_parameters(self.module, matcher(coarse=False), reverse=True)
        return {f"{self.own_prefix}{name}": int(layer) for name, layer in found.items()}

    def at_published_size(self) -> TimmBackbone | None:
        """The same network for images of the size that its published weights are for, if that is another,
        and only weights of that size fit it; and `resample_from` takes them over.
        """
        net: Any = self.module
        side_px = int(net.pretrained_cfg["input_size"][-1])
        if side_px == self._side_px or not hasattr(net, "set_input_size"):
            return None
        return TimmBackbone(self._timm_name, side_px)

    def resample_from(self, other: TimmBackbone) -> None:
        """Copy the weights of `other`, which is changed, with position embeddings resampled to this size."""
        net: Any = other.module
        net.set_input_size(img_size=(self._side_px, self._side_px))
        self.module.load_state_dict(net.state_dict())

    def _stages(self, net: Any, seen: Seen) -> list[str]:
        """The submodules that end a stage, as timm lists them, as far as they give maps."""
        outputs, stages = once(seen), []
        for info in getattr(net, "feature_info", None) or []:
            name, channels = str(info["module"]), int(info["num_chs"])
            if name in outputs and outputs[name].ndim in (3, 4):
                with suppress(RuntimeError):  # tokens that are no square grid
                    maps = self.as_maps(outputs[name])
                    stages += [name] if maps.shape[1] == channels else []
        if self._n_prefix:  # patch tokens of the last block never reach the class token
            stages = stages[:-1]
            stages = stages[:: -max(1, len(stages) // _MOST_BLOCKS)][::-1]
        return stages[-_MOST_BLOCKS:]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
