"""Deep mutual learning (Zhang et al., 2018): peers that learn the labels, and what the others say.

L_k = L_prim(z_k) + mean over the other peers l of KL(softmax(z_l) || softmax(z_k)), all peers in one step;
what a peer says carries no gradient to it. With several labels per image it is the mean divergence of each
class's two answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sskt.errors import SettingError
from sskt.losses import kd_divergence, multilabel_divergence
from sskt.methods.config import LabelConfig
from sskt.methods.method import Losses, Method, Mixture, Parts, n_correct, stacked
from sskt.students import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class DmlConfig(LabelConfig):
    """Settings of deep mutual learning."""

    peers: int = 2


class Dml(Method):
    """Two or more peers; the first is the one that is scored."""

    Config = DmlConfig

    @classmethod
    def build(cls, config: DmlConfig, parts: Parts) -> Dml:
        """See `Method.build`."""
        backbones = [parts.backbone, *(parts.another() for _ in range(config.peers - 1))]
        peers = [parts.student(backbone, {}) for backbone in backbones]
        return cls(peers, config, channels_last=parts.channels_last)

    def __init__(self, peers: Sequence[Student], config: DmlConfig, *, channels_last: bool) -> None:
        """Raises SettingError for fewer than two peers."""
        if len(peers) < 2:
            raise SettingError("peers", f"is {len(peers)}, deep mutual learning needs two or more")
        super().__init__(peers[0], config, channels_last=channels_last)
        self.others = nn.ModuleList(peers[1:])
        self.auxiliary_names = tuple(f"peer {k + 1}" for k in range(len(peers)))
        self.recorded_names = tuple(f"peer_top1/{k + 1}" for k in range(len(peers)))

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],  # noqa: ARG002
        mixed: Mixture | None = None,
        mixed_sources: Mixture | None = None,  # noqa: ARG002
    ) -> Losses:
        """See `Method.forward`; auxiliary losses are what each peer's distances from the others come to."""
        x = self._seen(pixels)
        logits = [peer.predict(x).float() for peer in (self.student, *self.others)]
        primary = [self.config.primary(z, labels, mixed) for z in logits]
        distances = []
        for k, mine in enumerate(logits):
            theirs = [z.detach() for i, z in enumerate(logits) if i != k]
            distances.append(torch.stack([self._distance(mine, z) for z in theirs]).mean())
        total = torch.stack([*primary, *distances]).sum()
        right = [100 * n_correct(z, labels) / len(z) for z in logits]
        return Losses(
            total,
            primary[0].detach(),
            stacked(distances, total),
            n_correct(logits[0], labels),
            stacked(right, total),
        )

    def _distance(self, logits: Tensor, others: Tensor) -> Tensor:
        """KL(softmax(others) || softmax(logits)), mean over the batch."""
        if self.config.primary_loss != "bce":
            return kd_divergence(logits, others, temperature=1.0, reduction="batchmean")
        return multilabel_divergence(logits, others, temperature=1.0, reduction="mean")
