"""The settings of a sweep, and the names of its runs and panels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from cache import digest
from pipeline.runtime import coerce
from sskt.sources import at_output, kind_of, output_of

Panel = tuple[tuple[str, ...], bool]  # sources, transfer module


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings to sweep: every combination, `seeds` times each."""

    sources: tuple[tuple[str, ...], ...]  # sets of sources
    temperatures: tuple[float, ...]
    alphas: tuple[float, ...]
    transfer_modules: tuple[bool, ...] = (False,)
    seeds: int = 1

    def __post_init__(self) -> None:
        """A single value counts as a list, a single name as a set. Raises RunError for anything else."""
        sources: Any = self.sources
        modules: Any = self.transfer_modules
        sets = [sources] if isinstance(sources, str) else sources
        object.__setattr__(self, "sources", tuple(coerce.texts(names, "sources") for names in sets))
        object.__setattr__(self, "temperatures", coerce.numbers(self.temperatures, "temperatures"))
        object.__setattr__(self, "alphas", coerce.numbers(self.alphas, "alphas"))
        object.__setattr__(
            self, "transfer_modules", (modules,) if isinstance(modules, bool) else tuple(modules)
        )
        object.__setattr__(self, "seeds", coerce.whole(self.seeds, "seeds"))

    def panels(self) -> list[Panel]:
        """The figure's panels: every set of sources with every choice of transfer module."""
        return list(product(self.sources, self.transfer_modules))


def short_name(name: str) -> str:
    """program:/a/b/net.pt2 as net, and its embedding as net@embedding."""
    path = kind_of(name).path(name)
    return name if path is None else at_output(path.stem, output_of(name))


def slugs_of(panels: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The part of a folder's name that stands for each set of sources: short, plus a digest if two short
    names collide.
    """
    short = {sources: "+".join(short_name(name).replace(":", "-") for name in sources) for sources in panels}
    taken = Counter(short.values())
    return {
        sources: slug if taken[slug] == 1 else f"{slug}-{digest({'sources': list(sources)})[:8]}"
        for sources, slug in short.items()
    }


def number_text(value: float) -> str:
    """The shortest text that keeps two numbers apart, with 3.0 as 3."""
    return repr(float(value)).removesuffix(".0")
