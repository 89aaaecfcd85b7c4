"""Names of any length and script fit into pictures."""

import io
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.runtime.figures import boxes, fitted, lettering
from pipeline.studies import explain, sweep
from pipeline.studies.sweep_grid import Grid, panels_of
from pipeline.train import confusion

NAMES = [
    "cat",
    "W" * 300,
    "my_very_long_teacher_name_that_somebody_exported_from_a_notebook_on_friday_v2_final",
    "white-tailed eagle, Haliaeetus albicilla, of the northern coasts and the lakes behind them",
    "$no_{formula $ at all^",
]


def inside(text, room):
    box = text.get_window_extent()
    return box.x0 >= room.x0 - 1 and box.x1 <= room.x1 + 1 and box.y0 >= room.y0 - 1 and box.y1 <= room.y1 + 1


@pytest.mark.parametrize(("name", "grid"), [*((name, (1, 1)) for name in NAMES), (NAMES[2], (4, 4))])
def test_titles_of_a_sweep_fit(name, grid):
    n_temperatures, n_alphas = grid
    sources = ((f"program:/a/{name}.pt2",), (f"program:/a/{name}.pt2", "imagenet", f"run:/b/{name}"))
    swept = Grid(
        sources,
        (1.0, 3.0, 5.0, 10.0)[:n_temperatures],
        (0.1, 0.5, 1.0, 2.0)[:n_alphas],
        {"transfer_module": (False, True)},
    )
    panels = panels_of(swept, 10, {})
    points = [panel.scratch for row in panels for panel in row]
    points += [point for row in panels for panel in row for point in panel.points]
    rows = {point.name: {"mean": 50.0 + n, "diverged": 0} for n, point in enumerate(points)}
    with lettering(name):
        figure = sweep.draw(f"{name}, resnet20, 3 epochs, test top-1 in %", panels, rows)
        figure.draw_without_rendering()
    titles = [axis.title for axis in figure.axes[:4]]
    assert all(inside(text, figure.bbox) for text in (figure._suptitle, *titles))
    left, right = (text.get_window_extent() for text in titles[:2])
    assert left.x1 < right.x0
    assert figure._suptitle.get_window_extent().y0 >= max(left.y1, right.y1) - 1
    if name == "cat":
        assert titles[3].get_text().replace("\n", " ") == "transfer module, cat + imagenet + cat"


@pytest.mark.parametrize("name", NAMES)
def test_titles_of_maps_fit_and_keep_method_and_share(name):
    rows = [{"run": f"runs/{name}", "method": "sskt", "class": name, "share": 0.934}] * 2
    panels = [(np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 8), dtype=np.float32))] * 2
    with lettering(name):
        figure = explain._figure(rows, panels, name)
        figure.draw_without_rendering()
    titles = [axis.title for axis in figure.axes]
    assert all(inside(text, figure.bbox) for text in titles)
    boxes_of = [text.get_window_extent() for text in titles]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes_of))
    lines = titles[1].get_text().splitlines()
    assert lines[0].startswith("sskt: ")
    assert any(line.startswith("93 % ") for line in lines)
    assert lines[-1] == "no evidence in the picture"


@pytest.mark.parametrize("text", NAMES)
@pytest.mark.parametrize("lines", [1, 3])
def test_lines_are_as_long_as_there_is_room(text, lines):
    figure, font = Figure(), {"fontsize": 9.0}
    with lettering(text):
        found = fitted(text, figure, width_px=150, size_pt=9.0, lines=lines)
        widths = [figure.text(0, 0, line, **font).get_window_extent().width for line in found.splitlines()]
        whole = figure.text(0, 0, text, **font).get_window_extent().width
    assert max(widths) <= 150
    assert len(widths) <= lines
    kept = "".join(found.split())
    assert "".join(text.split()).startswith(kept.removesuffix("…"))
    assert kept.endswith("…") == (kept != "".join(text.split()))
    if whole <= 150:
        assert found == text
    elif kept.endswith("…"):
        assert widths[-1] > 120, "cut where the line is full"


def counted(n):
    """A matrix of counts up to four digits."""
    rng = np.random.default_rng(n)
    return rng.integers(0, 30, (n, n)) + np.diag(rng.integers(1000, 2000, n))


@pytest.mark.parametrize("n", [2, 10])
def test_counts_stand_in_the_cells_where_there_is_room(n):
    matrix = counted(n)
    with lettering():
        figure = confusion.draw_confusion(matrix, tuple(f"class {c}" for c in range(n)))
        figure.draw_without_rendering()
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [str(count) for count in matrix.flat]
    cell = axes.get_window_extent().width / n
    assert max(text.get_window_extent().width for text in axes.texts) < cell
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"class {c}" for c in range(n)]


def test_a_matrix_without_room_has_no_counts_and_long_names_leave_room_for_it():
    many = confusion.draw_confusion(counted(60), tuple(map(str, range(60))))
    assert not many.axes[0].texts
    with lettering(*NAMES):
        figure = confusion.draw_confusion(counted(5), tuple(NAMES))
        figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_window_extent().width > figure.bbox.width / 4
    assert all(inside(text, figure.bbox) for text in (*axes.get_xticklabels(), *axes.get_yticklabels()))


def test_fonts_are_found_for_what_the_usual_one_lacks_and_boxes_are_told_of():
    of_stix, unassigned = (
        "\ue000",
        "\u0378",
    )  # matplotlib comes with a font that has the first; nobody the other
    with lettering(f"cat {of_stix}") as missing:
        assert missing == ""
    with lettering(of_stix, unassigned) as missing:
        figure = Figure()
        figure.text(0.5, 0.5, of_stix + unassigned)
        figure.savefig(io.BytesIO())  # without a warning
    assert missing == unassigned
    assert boxes(missing).startswith(r"no installed font has '\u0378'")
