"""A dot plot of gains over scratch, the paper's beside ours."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

_PAPER, _OURS = "#777777", "#0b6e99"


@dataclass(frozen=True, slots=True)
class Gain:
    """One row's gain over the same network from scratch, in percentage points."""

    name: str
    paper: float
    ours: float
    deviation: float | None  # of ours over the seeds, including scratch's; None: unknown


def draw_gains(title: str, gains: Sequence[Gain]) -> bytes:
    """Draw a PNG with one line per row, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.4 + 0.3 * len(gains)), layout="constrained")
    axes = figure.add_subplot()
    at = range(len(gains))
    axes.axvline(0, color="black", linewidth=0.8)
    for line, gain in zip(at, gains, strict=True):
        axes.plot([gain.paper, gain.ours], [line, line], color="#cccccc", linewidth=1, zorder=1)
    axes.plot([gain.paper for gain in gains], at, "o", color=_PAPER, markersize=6, label="paper")
    axes.errorbar(
        [gain.ours for gain in gains],
        at,
        xerr=[math.nan if gain.deviation is None else gain.deviation for gain in gains],
        fmt="o",
        color=_OURS,
        markersize=6,
        capsize=3,
        label="ours, ± root of the summed squares of both standard deviations, the row's and scratch's",
    )
    axes.set_yticks(at, [gain.name for gain in gains], fontsize=8)
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.set(xlabel="gain over the same network from scratch (percentage points)", title=title)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    out = io.BytesIO()
    figure.savefig(out, dpi=150, format="png")
    return out.getvalue()
