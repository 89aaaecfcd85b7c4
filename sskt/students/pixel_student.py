"""A student for other programs, which normalises its input itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sskt.students.student import Student


class PixelStudent(nn.Module):
    """A student that normalises its input itself: float32 pixels from 0 to 1 in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        shape = (-1, 1, 1, 1) if student.backbone.reads_clips else (-1, 1, 1)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(student.backbone, name)).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """From (N, 3, H, W) or (N, 3, D, H, W) to (N, C)."""
        return self.student.predict((x - self.mean) / self.std)
