"""The precision of a student's forward pass."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from sskt.sources.forward import DTYPES


def autocast(device: torch.device, amp: str) -> torch.autocast | nullcontext[None]:
    """Plain fp32, or autocast to bf16 or fp16."""
    return nullcontext() if amp == "fp32" else torch.autocast(device.type, dtype=DTYPES[amp])
