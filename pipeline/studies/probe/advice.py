"""What the figures say, in one sentence: which sources to keep, and whether size and views matter.

A difference counts if it is larger than its own standard deviation over the folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.studies.probe.figures import Figures, HeldOut
from pipeline.studies.probe.rows import Samples


def choose(found: Sequence[Figures]) -> Figures:
    """The set of sources to keep. `found`: best first, with one source at least."""
    best = next(figures for figures in found if len(figures.sources) == 1)
    together = _together(found)
    if together is None:
        return best
    gain, spread = together.all_views.gain_over(best.all_views)
    return together if gain > spread else best


def know_anything(found: Sequence[Figures], samples: Samples) -> bool:
    """Whether the best set of sources is further from chance than its spread. `found`: best first."""
    best = found[0].all_views
    return best.score - samples.chance > best.spread


def recommend(found: Sequence[Figures], samples: Samples, names: Mapping[Figures, str]) -> str:
    """The sentence. `found`: best first. `names`: what to call each."""
    if not know_anything(found, samples):
        return (
            f"no stored source tells these classes apart: {names[found[0]]} reaches "
            f"{_score(found[0].all_views, samples)}, and knowing no image {samples.chance:.1f} %; precompute "
            f"another source, or label more samples"
        )
    chosen = choose(found)
    sentence = f"keep {names[chosen]}: {_score(chosen.all_views, samples)}"
    parts = [sentence, _on_others(found, chosen, names), _on_sizes(found, chosen), _on_views(chosen)]
    return "; ".join(part for part in parts if part)


def _together(found: Sequence[Figures]) -> Figures | None:
    """The best set of several sources."""
    return next((figures for figures in found if len(figures.sources) > 1), None)


def _score(figure: HeldOut, samples: Samples) -> str:
    return f"{figure.score:.1f} ± {figure.spread:.1f} % {samples.metric}"


def _on_others(found: Sequence[Figures], chosen: Figures, names: Mapping[Figures, str]) -> str:
    """How the chosen set does beside the best single source, or beside all together."""
    best = next(figures for figures in found if len(figures.sources) == 1)
    if chosen is not best:
        gain, spread = chosen.all_views.gain_over(best.all_views)
        return f"{gain:.1f} ± {spread:.1f} points more than {names[best]} alone"
    together = _together(found)
    if together is None:
        return ""
    gain, spread = together.all_views.gain_over(best.all_views)
    return f"all together gain nothing beyond the spread ({gain:+.1f} ± {spread:.1f} points)"


def _on_sizes(found: Sequence[Figures], chosen: Figures) -> str:
    """How the same sources do at the best of their other sizes."""
    size = (chosen.student_px, chosen.source_px)
    others = [
        figures
        for figures in found
        if figures.sources == chosen.sources and (figures.student_px, figures.source_px) != size
    ]
    if not others:
        return ""
    gain, spread = chosen.all_views.gain_over(others[0].all_views)
    if gain > spread:
        return f"{chosen.size} is {gain:.1f} ± {spread:.1f} points better than {others[0].size}"
    difference = f"{gain:+.1f} ± {spread:.1f} points"
    return f"{chosen.size} is no better than {others[0].size} beyond the spread ({difference})"


def _on_views(figures: Figures) -> str:
    if figures.one_view is None:
        return "what more views than one would add is not known"
    gain, spread = figures.all_views.gain_over(figures.one_view)
    if gain > spread:
        return f"{figures.views} views are {gain:.1f} ± {spread:.1f} points better than one"
    return (
        f"{figures.views} views are no better than one beyond the spread ({gain:+.1f} ± {spread:.1f} points)"
    )
