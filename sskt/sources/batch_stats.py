"""Sources as the released SSKT code runs them: in train mode, so that batch norm uses the batch's own
statistics (docs/method.md, section 5.1).

A row's logits then depend on the other rows of its batch, so they cannot be stored; this is only for runs
that are compared with the released code. Our own sources are frozen (`sskt.sources.frozen`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sskt.errors import SourceError
from sskt.sources.contract import as_logits
from sskt.sources.forward import DTYPES, exact_kernels
from sskt.sources.input_map import InputMap
from sskt.sources.source import Source

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchStatisticsSource:
    """A source with fixed weights that normalises by batch statistics; it takes ownership of the source's
    module.
    """

    def __init__(self, source: Source, input_map: InputMap, *, device: torch.device, compute: str) -> None:
        """Raises SourceError for a network without batch norm, or whose batch norms were folded."""
        if source.is_traced:
            raise SourceError(
                f"{source.spec.name}: has no batch norm to take batch statistics in, a program's mode is "
                f"fixed at export; leave --teacher-bn out, or name an architecture and its --weights"
            )
        norms = [module for module in source.module.modules() if isinstance(module, _NORMS)]
        if not norms:
            raise SourceError(
                f"{source.spec.name}: has no batch norm to take batch statistics in; leave --teacher-bn out"
            )
        if all(_is_folded(norm) for norm in norms):
            raise SourceError(
                f"{source.weights_path}: its batch norms were folded into other weights, their means are all "
                f"0 and variances 1; use the original weights, or leave --teacher-bn out"
            )
        self.source = source
        self.input_map, self._device, self._dtype = input_map, device, DTYPES[compute]
        self._module = source.module.to(device).train()

    def submit(self, pixels: Tensor, *, in_order: bool = True) -> Callable[[], Tensor]:  # noqa: ARG002
        """See `sskt.sources.frozen.FrozenSource.submit`; nothing is waited for."""
        logits = self.logits(pixels)
        return lambda: logits

    def logits(self, pixels: Tensor) -> Tensor:
        """See `sskt.sources.frozen.FrozenSource.logits`; the running statistics are updated."""
        with (
            torch.no_grad(),
            torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32),
            exact_kernels(self._device),
        ):
            frames = self.input_map.frames
            images = pixels if frames is None else frames.images(pixels)
            z = self._module(self.input_map(images.to(self._device)))
            z = z[0] if isinstance(z, tuple) else z  # GoogLeNet and Inception have more heads in train mode
            z = as_logits(z, self.source.spec.returns)
        return (z if frames is None else frames.answer(z)).to(torch.float16)


def _is_folded(norm: nn.Module) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and not mean.any() and bool((var == 1).all())
