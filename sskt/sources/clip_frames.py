"""f_s for clips (SSKT eq. 6): which frames of a clip a source sees, and how their logits become one row.

The paper uses the centre frame and leaves better functions as open work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sskt.errors import SourceError

CENTER_FRAME = "center_frame"
MEAN_FRAME = "mean_frame"
FRAMES = "frames"
CLIP = "clip"  # every frame at once: for sources that read clips
REFERENCE = "reference"  # the centre frame as the released code shows it; see pipeline.data.augmentation
NAMES = f"{CENTER_FRAME}, {MEAN_FRAME}, {FRAMES}:K, {FRAMES}:K:log-probabilities or {REFERENCE}"
_LOGITS, _LOG_PROBABILITIES = "logits", "log-probabilities"


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """f_s for clips of `n_frames`; every field is identity."""

    kind: str
    n_frames: int
    k: int = 1  # rows that are averaged to one
    average: str = _LOGITS  # what is averaged; or "log-probabilities"

    @classmethod
    def parse(cls, name: str, n_frames: int) -> ClipFrames:
        """Parse a user's name. Raises SourceError if it is unknown, or takes more frames than a clip has."""
        kind, _, rest = name.partition(":")
        if kind in (CENTER_FRAME, MEAN_FRAME, REFERENCE) and not rest:
            return cls(CENTER_FRAME if kind == REFERENCE else kind, n_frames)
        count, _, average = rest.partition(":")
        if kind != FRAMES or not count.isdecimal() or average not in ("", _LOG_PROBABILITIES):
            raise SourceError(f"what a source sees of a clip is {name!r}, expected {NAMES}")
        if not 0 < int(count) <= n_frames:
            raise SourceError(f"{name} takes {count} frames of clips of {n_frames}; take at most {n_frames}")
        return cls(kind, n_frames, int(count), average or _LOGITS)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a fingerprint."""
        return asdict(self)

    @property
    def picks(self) -> tuple[int, ...]:
        """The positions in a clip that have to be drawn, in order.

        K frames are the middle ones of K equal parts of the clip; the centre frame is n_frames // 2, as in
        the released code.
        """
        if self.kind == CENTER_FRAME:
            return (self.n_frames // 2,)
        if self.kind == FRAMES:
            return tuple((2 * i + 1) * self.n_frames // (2 * self.k) for i in range(self.k))
        return tuple(range(self.n_frames))

    @property
    def averages_probabilities(self) -> bool:
        """Whether rows are averaged as log-probabilities, which only logits have."""
        return self.average == _LOG_PROBABILITIES

    def images(self, picked: Tensor) -> Tensor:
        """Turn picked frames into the network's input: uint8 (N, 3, F, H, W) to (N * r, 3, H, W).

        r is K for K frames, else 1; a mean frame is rounded to whole grey levels. A source that reads clips
        gets (N, 3, F, H, W) unchanged.
        """
        if self.kind == CLIP:
            return picked.contiguous()  # in one memory layout, so that code is compiled once
        if self.kind == MEAN_FRAME:
            return picked.to(torch.float32).mean(dim=2).round().to(torch.uint8)
        return picked.transpose(1, 2).flatten(0, 1)

    def answer(self, logits: Tensor) -> Tensor:
        """Average to one row per clip: float (N * r, classes) to (N, classes)."""
        if self.kind != FRAMES:
            return logits
        rows = logits.view(-1, self.k, logits.shape[1])
        if self.averages_probabilities:
            rows = rows.log_softmax(dim=2)
        return rows.mean(dim=1)
