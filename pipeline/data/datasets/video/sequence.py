"""Tell which images of a folder are the frames of its video, and in which order.

Frames share one name pattern, a text with a running number. Other images (optical flow, depth, a cover) are
left out and counted; if it is ambiguous which pattern is the video's, the folder is unusable.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.data.datasets.decode import SUFFIXES
from pipeline.data.datasets.walk import is_hidden
from sskt.errors import UnreadableError, shown

FRAME_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != ".gif")  # a GIF is a video here

# words in file names that say what an image shows
# fmt: off
_COLOUR = {
    "img", "image", "images", "im", "frame", "frames", "frm", "rgb", "color", "colour", "pic",
    "picture",
}
_OTHER = {
    "flow", "flowx", "flowy", "flows", "of", "tvl", "warp", "warped", "diff", "depth", "disparity",
    "disp", "ir", "infrared", "thermal", "normal", "normals", "mask", "masks", "seg", "segmentation",
    "label", "labels", "saliency", "heatmap", "heat", "skeleton", "pose", "edge", "edges", "alpha", "u",
    "v", "x", "y", "cover", "thumb", "thumbnail", "preview", "poster",
}
# fmt: on


@dataclass(frozen=True, slots=True)
class FrameSequence:
    """A folder's frames in order, the images beside them, and how many numbers are missing in between."""

    frames: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()
    n_missing: int = 0


def find_sequence(folder: Path) -> FrameSequence:
    """Find the frames directly in a folder. Raises UnreadableError if it is ambiguous which images they are,
    and OSError if it cannot be listed.
    """
    files = [p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and not is_hidden(p.name)]
    if not files:
        raise UnreadableError(f"a folder without frames ({', '.join(FRAME_SUFFIXES[:3])}, ...)")
    patterns: dict[str, list[Path]] = {}
    for path in files:
        patterns.setdefault(re.sub(r"\d+", "#", path.stem), []).append(path)
    chosen = _of_the_video(patterns)
    numbered = sorted((_numbers(path.stem), path.name, path) for path in patterns[chosen])
    for (numbers, name, _), (others, other, _) in pairwise(numbered):
        if numbers == others:
            raise UnreadableError(f"{shown(name)} and {shown(other)} are the same frame")
    _require_one_sequence([numbers for numbers, _, _ in numbered], [name for _, name, _ in numbered])
    left_out = sorted(path for pattern, paths in patterns.items() if pattern != chosen for path in paths)
    last = [numbers[-1] for numbers, _, _ in numbered if numbers]
    frames = tuple(path for _, _, path in numbered)
    return FrameSequence(frames, tuple(left_out), _n_missing(last))


def _of_the_video(patterns: dict[str, list[Path]]) -> str:
    """The pattern of the video's frames: numbered ones, of which the names say colour, or at least nothing
    else.
    """
    numbered = [pattern for pattern in patterns if "#" in pattern] or list(patterns)
    if len(numbered) == 1:
        return numbered[0]
    common = set.intersection(*map(_words, numbered))  # the video's own name
    not_other = [pattern for pattern in numbered if not (_words(pattern) - common) & _OTHER]
    colour = [pattern for pattern in not_other if (_words(pattern) - common) & _COLOUR]
    several = [pattern for pattern in not_other if len(patterns[pattern]) > 1]
    for candidates in (colour, not_other, several):
        if len(candidates) == 1:
            return candidates[0]
    examples = ", ".join(shown(patterns[pattern][0].name) for pattern in sorted(numbered)[:3])
    raise UnreadableError(
        f"frames by {len(numbered)} kinds of names ({examples}), and which are the video's cannot be told; "
        f"leave one kind in the folder"
    )


def _words(pattern: str) -> set[str]:
    return set(re.findall(r"[a-z]+", pattern.lower()))


def _numbers(stem: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", stem))


def _require_one_sequence(numbers: list[tuple[int, ...]], names: list[str]) -> None:
    """Raise UnreadableError where the last numbers begin again at the same one: cam1_0001, ..., cam2_0001."""
    runs: dict[tuple[int, ...], list[int]] = {}
    for each in numbers:
        runs.setdefault(each[:-1], []).append(each[-1] if each else 0)
    begins = {run[0] for run in runs.values()}
    if len(runs) > 1 and len(begins) == 1 and min(map(len, runs.values())) > 1:
        raise UnreadableError(
            f"frames of {len(runs)} sequences ({shown(names[0])}, {shown(names[-1])}); give each a folder "
            f"of its own"
        )


def _n_missing(numbers: list[int]) -> int:
    """How many numbers are missing between the first and the last, in the steps that most have."""
    steps = Counter(after - before for before, after in pairwise(numbers))
    if not steps or min(steps) <= 0:  # times of day and such
        return 0
    step = min(step for step, n in steps.items() if n == max(steps.values()))
    return sum(n * (each // step - 1) for each, n in steps.items() if each > step)
