"""Presets: what a run does where its user says nothing. "paper" is SSKT as published; "best" is what taught
most where we measured (benchmarks/RESULTS.md): the fast recipe, or finetune for pretrained students, and a
linear probe of the sources where some samples have no label, else a head per source.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.runtime import coerce
from sskt.errors import SettingError
from sskt.recipes import has_recipe
from sskt.sources import kind_of

log = logging.getLogger(__name__)

PRESETS = ("paper", "best")


class Choice(NamedTuple):
    """What a preset chooses; see `pipeline.train.resolve.resolve`."""

    recipe: str
    sources: tuple[str, ...]
    probe_views: str | None


def makes_probe(preset: str | None, method: str, sources: str | Sequence[str] | None) -> bool:
    """Whether `preset` turns these sources into those of a probe."""
    named = coerce.texts(sources, "sources")
    return preset == "best" and method == "sskt" and not any(kind_of(name).is_fitted for name in named)


def preset_choice(
    preset: str,
    target: str,
    method: str,
    *,
    recipe: str | None,
    sources: Sequence[str],
    labels: str,
    probe_views: str | None,
    finetuned: bool = False,
    heads_told: bool = False,
) -> Choice:
    """What `preset` makes of what was said. What was said stays: a recipe, and sources among which there is a
    probe.

    "best" turns the sources of `--method sskt`, or all stored ones if none is named, into those of a probe;
    where every sample has a label, or nothing is stored of them, `pipeline.train.open_probe` lets them teach
    by heads, and so they do where `heads_told`: something of heads was set. `finetuned` is for a student that
    starts from pretrained weights. Raises SettingError for an unknown preset.
    """
    if preset not in PRESETS:
        raise SettingError("preset", f"is {preset!r}, expected one of {', '.join(PRESETS)}")
    sources = tuple(sources)
    if preset == "paper":
        return Choice(recipe or "paper", sources, probe_views)
    usual = "finetune" if finetuned else "fast"
    chosen = recipe or (usual if has_recipe(target, method, usual) else "paper")
    said = f"--recipe {chosen}"
    if makes_probe(preset, method, sources) and not heads_told:
        sources = ("probe:" + "+".join(sources),) if sources else ("probe",)
        said += f" --source {sources[0]}, or a head per source where all samples have a label"
        if labels in ("live", "write-through"):  # which know no other views of a sample
            probe_views = probe_views or "own"
    log.info(f"--preset best is {said}; --preset paper: as published")
    return Choice(chosen, sources, probe_views)
