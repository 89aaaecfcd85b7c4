"""Grad-CAM (Selvaraju et al., 2017): which part of an image made a student choose a class (SSKT figure 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sskt.students.student import Student


def grad_cam(student: Student, x: Tensor, classes: Tensor) -> Tensor:
    """relu(sum_c w_c A_c) of the maps A of `Backbone.mapped`, w_c the mean gradient of the class's logit on
    A_c; in most networks the last block's, in transformers those of the last tokens that mix.

    x: normalised float (N, 3, H, W). classes: int64 (N,). Returns float (N, H, W), from 0 to 1 in each image;
    all 0 if no position supports the class.
    """
    student.eval()
    with torch.enable_grad():
        block, pooled = student.backbone.mapped(x.detach().requires_grad_())  # weights may be frozen
        class_logits = student.head(pooled).gather(1, classes[:, None])
        (gradient,) = torch.autograd.grad(class_logits.sum(), block)
    maps, slopes = student.backbone.as_maps(block.detach()), student.backbone.as_maps(gradient)
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    heat = (weights * maps).sum(dim=1, keepdim=True).relu()
    heat = nn.functional.interpolate(heat, size=x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
