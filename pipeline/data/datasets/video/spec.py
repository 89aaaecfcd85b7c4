"""What a target of videos is: its spec, and the videos that it lists. Reads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pipeline.data.datasets.dataset import DatasetSpec
from pipeline.data.datasets.walk import Ignored


@dataclass(frozen=True, slots=True)
class VideoEntry:
    """One video of a list; `source` is None if it cannot be found."""

    name: str  # "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
    label: int  # where there are several, the first; -1: none
    source: Path | None
    multi_hot: tuple[int, ...] = ()  # 1 or 0 for each class, where videos have several labels


@dataclass(frozen=True, slots=True)
class VideoListing:
    """The videos of each split, in the order of the lists."""

    classes: tuple[str, ...]
    clips: dict[str, list[VideoEntry]]  # by split
    notes: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()  # files that are neither videos nor frames


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpec(DatasetSpec):
    """A target of videos, shown the paper's way: clips of 112 px by multi-scale corner crops, the central
    square for evaluation; sources see their frames at twice that.
    """

    side_px: int = 112
    short_px: int = 112
    plan_kind: Literal["pad-crop-flip", "random-resized-crop-flip", "corner-clip"] = "corner-clip"
    source_scale: Fraction = Fraction(2)
    holds_videos: bool = True
    split: int = 1  # of the official splits
    every: int = 1  # one of so many frames is packed, unless the user says otherwise

    def list_videos(self, data_dir: Path) -> VideoListing:
        """Every listed video, none of which is read. Raises TargetError if the lists are missing or cannot be
        read.
        """
        raise NotImplementedError
