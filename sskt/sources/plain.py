"""Compare a source's logits with plain ones, in fp32, eager mode and contiguous memory, on a few real images,
since compilers, low precision and fast layouts are not to be trusted unchecked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sskt.errors import SourceError
from sskt.sources.forward import Forward, exact_kernels

MAX_SHOWN = 4  # images

# the relative error allowed per row; ResNet50 and SqueezeNet in bf16 are off by 1 to 3 %, fp16 has three more
# bits, and fp32 with channels last is off by 1e-6
_TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.15}


class DisagreementError(SourceError):
    """Logits computed compiled, in low precision or with channels last differ from the network's own."""


def plain_answers(module: nn.Module, x: Tensor, *, keeps_layout: bool) -> Tensor:
    """Float32 (N, K) logits for normalised images `x`; with `keeps_layout` the weights' memory layout is not
    changed.
    """
    if not keeps_layout:
        module.to(memory_format=torch.contiguous_format)
    with torch.inference_mode(), exact_kernels(x.device):
        z: Tensor = module(x.contiguous())
    return z.float()


def require_agreement(name: str, forward: Forward, z: Tensor, plain: Tensor) -> None:
    """Raise DisagreementError if a row of `z`, (N, K) logits of the source `name`, is further from `plain`
    than the precision of `forward` explains.

    A constant shared by all classes of a row is ignored, since no softmax sees it. Rows without plain logits,
    and plain logits that are not finite, are not compared.
    """
    n = min(len(z), len(plain), MAX_SHOWN)
    plain = plain[:n]
    difference, reference = z[:n].float() - plain, plain
    if z.shape[1] > 1:
        difference = difference - difference.mean(dim=1, keepdim=True)
        reference = reference - reference.mean(dim=1, keepdim=True)
    # if all classes of a row are alike, its centred logits are little but rounding error
    norm = torch.maximum(reference.norm(dim=1), 0.01 * plain.norm(dim=1)).clamp(min=1e-6)
    error, allowed = float((difference.norm(dim=1) / norm).max()), _TOLERANCES[forward.compute]
    if not error <= allowed and bool(plain.isfinite().all()):
        raise DisagreementError(
            f"{name}: its logits of real pictures, {forward}, are off by {error:.1%} of those in plain fp32, "
            f"expected at most {allowed:.1%}"
        )
