"""Compare a source's logits with plain ones, fp32 in eager mode and contiguous memory, on a few real images:
compilers, low precision and fast layouts are not trusted unchecked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sskt.errors import SourceError
from sskt.sources.forward import Forward, exact_kernels

MOST_SHOWN = 4  # images

# relative error that a row may have; ResNet50 and SqueezeNet in bf16 are off by 1 to 3 %, fp16 has
# three bits more, and fp32 with channels last is off by 1e-6
_TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.15}


class DisagreementError(SourceError):
    """Logits computed compiled, in low precision or with channels last differ from the network's own."""


def plain_answers(module: nn.Module, x: Tensor, *, keeps_layout: bool) -> Tensor:
    """Float32 (N, K) logits for normalised images `x`; `keeps_layout` leaves the weights' memory alone."""
    if not keeps_layout:
        module.to(memory_format=torch.contiguous_format)
    with torch.inference_mode(), exact_kernels(x.device):
        z: Tensor = module(x.contiguous())
    return z.float()


def require_agreement(name: str, forward: Forward, z: Tensor, plain: Tensor) -> None:
    """Raise DisagreementError if a row of `z`, (N, K) logits of the source `name`, is further from `plain`
    than the precision of `forward` explains.

    What all classes of a row share is left out, since no softmax sees it. Rows without plain logits, and
    plain logits that are not finite, are not compared.
    """
    n = min(len(z), len(plain), MOST_SHOWN)
    plain = plain[:n]
    apart, size = z[:n].float() - plain, plain
    if z.shape[1] > 1:
        apart, size = (each - each.mean(dim=1, keepdim=True) for each in (apart, size))
    # rows whose classes are all alike have little else than rounding
    norm = torch.maximum(size.norm(dim=1), 0.01 * plain.norm(dim=1)).clamp(min=1e-6)
    error, allowed = float((apart.norm(dim=1) / norm).max()), _TOLERANCES[forward.compute]
    if not error <= allowed and bool(plain.isfinite().all()):
        raise DisagreementError(
            f"{name}: its logits of real pictures, {forward}, are off by {error:.1%} of those in plain fp32, "
            f"expected at most {allowed:.1%}"
        )
