"""The networks that timm knows, and how their published weights expect pixels. timm is an extra, and imported
late.
"""

from __future__ import annotations

import difflib
from typing import Any

from sskt.errors import RunError
from sskt.extras import library

TIMM = "timm:"


def timm_knowing(name: str) -> Any:
    """timm, if it knows `name`. Raises RunError if not, and MissingExtraError if it is not installed."""
    timm = library("timm", extra="timm", needed_by=f"--model {TIMM}{name}")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f", did you mean {' or '.join(near)}" if near else ""
        raise RunError(
            f"--model {TIMM}{name}: timm {timm.__version__} has no network {architecture!r}{hint}; "
            f"timm.list_models() lists them"
        )
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")] if tag else []
    if tag and tag not in tags:
        raise RunError(
            f"--model {TIMM}{name}: {architecture} has no weights {tag!r}, expected one of "
            f"{', '.join(tags) or 'none'}"
        )
    return timm


def timm_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in 0..1 that the network's published weights expect. Raises RunError as
    TimmBackbone.
    """
    config = timm_knowing(name).get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)
