"""Grad-CAM (Selvaraju et al., 2017): which part of an image made a student choose a class (SSKT figure 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.students.student import Student


def grad_cam(student: Student, x: Tensor, classes: Tensor) -> Tensor:
    """relu(sum_c w_c A_c) of the last block's maps A, w_c the mean gradient of the class's logit on A_c.

    x: normalised float (N, 3, H, W). classes: int64 (N,). Returns float (N, H, W), from 0 to 1 in each image;
    all 0 if no position supports the class.
    """
    student.eval()
    with torch.enable_grad():
        features = student.backbone(x.detach())
        maps = features.blocks[-1].detach().requires_grad_()
        logits = student.head(maps.flatten(start_dim=2).mean(dim=2))
        class_logits = logits.gather(1, classes[:, None])
        (gradient,) = torch.autograd.grad(class_logits.sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = (weights * maps.detach()).sum(dim=1, keepdim=True).relu()
    heat = F.interpolate(heat, size=x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
