"""Text in figures: user-chosen names cut to the room there is, in fonts that have their characters."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cache import Location
from pipeline.runtime.results import write_result
from sskt.errors import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

_BREAKS_AFTER = " ,;+-_/"


def write_figure(
    path: Location,
    draw: Callable[[], Figure],
    *texts: str,
    dpi: int = 150,
    remedy: str = "make room or choose another --out",
) -> None:
    """Save the figure that `draw` makes as a PNG whose fonts cover `texts`, and log if none does. `remedy`
    and errors as for `write_result`.
    """
    data = io.BytesIO()
    with lettering(*texts) as missing:
        draw().savefig(data, dpi=dpi, format="png")
    write_result(path, data.getvalue(), remedy)
    if missing:
        log.info(f"{path}: {boxes(missing)}")


def fitted(text: str, figure: Figure, *, width_px: float, size_pt: float, lines: int) -> str:
    """Wrap `text` to at most `lines` lines no wider than `width_px` of `figure`; cut with an ellipsis what
    still does not fit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties

    canvas: Any = FigureCanvasAgg(figure)  # its methods are untyped
    width_of, font = canvas.get_renderer().get_text_width_height_descent, FontProperties(size=size_pt)

    def fits(part: str) -> bool:
        return bool(width_of(part, font, ismath=False)[0] <= width_px)

    rest = " ".join(shown(text).split())
    wrapped: list[str] = []
    while rest and len(wrapped) < lines:
        n = _longest(rest, fits)
        if n < len(rest) and len(wrapped) + 1 < lines:
            n = _break(rest, n)
        elif n < len(rest):
            wrapped.append(rest[: _longest(rest, lambda part: fits(part.rstrip() + "…"))].rstrip() + "…")
            break
        wrapped.append(rest[:n].rstrip())
        rest = rest[n:].lstrip()
    return "\n".join(wrapped)


@contextmanager
def lettering(*texts: str) -> Iterator[str]:
    """Context to draw and save in: matplotlib uses installed fonts that cover these texts, and parses no name
    as a formula. Yields the characters that no installed font has, which are drawn as boxes.
    """
    import matplotlib

    families, missing = _families("".join(texts))
    settings: Any = {"font.family": families, "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # see `boxes`
        yield missing


def boxes(missing: str) -> str:
    """A message about the characters that `lettering` yields."""
    return (
        f"no installed font has {missing[:20]!r}, so the picture shows boxes; install one that has, such as "
        f"Noto Sans CJK"
    )


def _families(text: str) -> tuple[list[str], str]:
    """The default font, then for each character that it lacks the first installed font that has it; and the
    characters that no font has.
    """
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.ft2font import FT2Font

    own = FontProperties().get_family()
    wanted = {ord(character) for character in text if not character.isspace()}
    wanted -= FT2Font(fontManager.findfont(FontProperties())).get_charmap().keys()
    families = list(own)
    # matplotlib's Last Resort font claims every character, as a box
    real = [entry for entry in fontManager.ttflist if not entry.name.startswith("Last Resort")]
    for entry in real if wanted else ():
        covered = wanted & FT2Font(entry.fname).get_charmap().keys()
        if covered:
            families.append(entry.name)
            wanted -= covered
    return families, "".join(map(chr, sorted(wanted)))


def _longest(text: str, fits: Callable[[str], bool]) -> int:
    """Length of the longest prefix that fits, at least 1."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    return low


def _break(text: str, n: int) -> int:
    """Where to end a line of at most `n` characters: after a word, unless that leaves it under half full."""
    for at in range(n, n // 2, -1):
        if text[at - 1] in _BREAKS_AFTER:
            return at
    return n
