"""Frame prediction (Lotter et al., ICLR 2017): what does the next frame look like?

L = 1/9 sum_t sum_l lambda_l mean(E_l^t) over the nine steps after the first of ten frames, with the weights
(1, 0.1, 0.1, 0.1) of the original's L_all: what is used later is the top layer, which an error of pixels
alone would train through the layers below it only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sskt.methods.method import Losses, stacked
from sskt.methods.pretext.pretext import Pretext, PretextConfig
from sskt.students import Backbone, Features, PredNet, Student

N_FRAMES = 10
_WEIGHTS = (1.0, 0.1, 0.1, 0.1)  # of the layers, from the pixels up


class Prediction(Pretext):
    """Labels are not read: int64 (N, 1). Correct is a clip whose frames are predicted with a smaller mean
    squared error than by showing each one's predecessor; both errors are recorded.
    """

    task = "prediction"
    chance = None

    def __init__(self, student: Student, config: PretextConfig, *, channels_last: bool) -> None:
        super().__init__(student, config, channels_last=channels_last)
        self.recorded_names = ("next_frame_mse", "copy_mse")

    @classmethod
    def head(cls, backbone: Backbone) -> nn.Module:
        """See `Pretext.head`."""
        cls.require(isinstance(backbone, PredNet))
        return _Pooled()

    def losses(self, pixels: Tensor, labels: Tensor) -> Losses:  # noqa: ARG002
        """See `Pretext.losses`; pixels are ten frames."""
        net, frames = self.student.backbone, self._seen(pixels)
        assert isinstance(net, PredNet)  # noqa: S101 - `head` has looked
        losses, squares = [], []
        for step, state in enumerate(net.steps(frames)):
            if step == 0:  # nothing was known before it
                continue
            means = [error.float().mean() for error in state.errors]
            losses.append(sum(weight * mean for weight, mean in zip(_WEIGHTS, means, strict=True)))
            # positive and negative parts of 3 differences are 6 channels
            squares.append(2 * state.errors[0].detach().float().square().mean(dim=(1, 2, 3)))
        loss = torch.stack([torch.as_tensor(each) for each in losses]).mean()
        predicted = torch.stack(squares).mean(dim=0)
        copied = (frames[:, :, 1:] - frames[:, :, :-1]).square().mean(dim=(1, 2, 3, 4))
        recorded = stacked([predicted.mean(), copied.mean()], loss)
        return Losses(loss, loss.detach(), stacked([], loss), (predicted < copied).sum(), recorded)


class _Pooled(nn.Module):
    """No head: the network's own errors are what it learns from."""

    def forward(self, features: Features) -> Tensor:
        return features.pooled
