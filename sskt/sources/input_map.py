"""The input map f_s (SSKT eq. 6): what a source sees of the student's own pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Self

from torch import Tensor, nn, stack

from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.sources.clip_frames import ClipFrames

# the rule before these fields existed: a fingerprint holds a field only if it differs from that
_EARLIER_RULES = {"frames": None, "scale": None, "channels": "rgb"}


@dataclass(frozen=True, slots=True)
class InputMap:
    """f_s (SSKT eq. 6): how a source sees the target's own augmented image or clip; every field is
    identity.
    """

    side_px: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    align_corners: bool = False
    antialias: bool = False
    frames: ClipFrames | None = None  # for clips
    scale: str | None = None  # the factor that maps positions, such as "7/3"; None: side_px / image side
    channels: str = "rgb"  # or "bgr"; mean and std are in this order

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a fingerprint; later fields appear only if they differ from the earlier rule."""
        fields = {k: list(value) if isinstance(value, tuple) else value for k, value in asdict(self).items()}
        return {k: v for k, v in fields.items() if k not in _EARLIER_RULES or v != _EARLIER_RULES[k]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        frames = arguments.pop("frames", None)
        return cls(**arguments, frames=frames and ClipFrames(**frames))

    def pick(self, pixels: Tensor) -> Tensor:
        """Pick the frames of clips, uint8 (N, 3, D, H, W), that the source sees; images pass through."""
        if self.frames is None:
            return pixels
        # by slices, since a list of indices would be copied to a GPU, which waits for it
        return stack([pixels[:, :, position] for position in self.frames.picks], dim=2)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 RGB (N, 3, H, W) to float32 (N, 3, side_px, side_px) in the order of `channels`, normalised,
        then resized if the size differs; clips (N, 3, D, H, W) frame by frame.
        """
        x = normalise(pixels.flip(1) if self.channels == "bgr" else pixels, self.mean, self.std)
        size = (self.side_px, self.side_px)
        if tuple(x.shape[-2:]) == size:
            return x
        images = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
        resized = nn.functional.interpolate(
            images,
            size=size if self.scale is None else None,
            scale_factor=None if self.scale is None else _quotient(self.scale),
            mode=self.interpolation,
            align_corners=self.align_corners,
            antialias=self.antialias,
        )
        if tuple(resized.shape[-2:]) != size:
            raise SourceError(
                f"pictures of {x.shape[-1]} px times {self.scale} are {resized.shape[-1]} px wide, sources "
                f"were to see {self.side_px}; say --source-size {self.side_px}"
            )
        return resized.view(len(x), -1, *resized.shape[1:]).transpose(1, 2) if x.ndim == 5 else resized


def _quotient(scale: str) -> float:
    """float(Fraction(scale)), which torch 2.11's compiler does not trace."""
    numerator, _, denominator = scale.partition("/")
    return int(numerator) / int(denominator or "1")


def scaled_side(side_px: int, scale: Fraction) -> int:
    """floor(side * scale), in integers: 7/3 takes 32 to 74 and 96 to 224 (docs/method.md, section 2.4)."""
    return side_px * scale.numerator // scale.denominator
