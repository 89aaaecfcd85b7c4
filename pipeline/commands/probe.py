"""The command that compares stored sources before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import (
    CACHE_DIR,
    DATA_DIR,
    FILE,
    JSON,
    LIMIT,
    SPLIT,
    as_argument,
    build_augmentation,
    build_paths,
    build_target,
    count_option,
    options,
    text_option,
)
from pipeline.commands.output import say, show, tell, tell_json

if TYPE_CHECKING:
    from pipeline.data import Augmentation
    from pipeline.runtime import Paths

_FIGURES = "source student_px source_px views accuracy spread one_view kNN LEEP H-score seconds"


def _sizes(side_px: int | None, source_side_px: int | None) -> Augmentation:
    return build_augmentation(0, None, side_px=side_px, source_side_px=source_side_px)


@click.command()
@options(
    as_argument("target", build_target, text_option("--target", "As for sskt train.", required=True), SPLIT),
    click.option(
        "--source",
        "sources",
        multiple=True,
        help="A stored source. Repeatable. [default: every source with a whole view stored]",
    ),
    as_argument(
        "augmentation",
        _sizes,
        count_option("--size", "Only stores of this student's size. [default: all sizes]", name="side_px"),
        count_option(
            "--source-size", "Only stores of this source size. [default: all sizes]", name="source_side_px"
        ),
    ),
    LIMIT,
    count_option("--labels-per-class", "Use only N labels per class."),
    click.option(
        "--picture",
        type=FILE,
        help="PNG file to draw the accuracy by number of labels per class to. [default: none]",
    ),
    JSON,
    as_argument("paths", build_paths, DATA_DIR, CACHE_DIR),
)
def probe(target: str, as_json: bool, paths: Paths, **what: Any) -> None:
    """Show which stored source is worth it, before training.

    Fits a linear probe on the stored logits of each source, and of all together, and tests it on labels that
    it has not seen. No network runs. Adds nearest neighbours, LEEP, H-score, what more views and more labels
    bring, and a recommendation.
    """
    from pipeline import api

    report = api.probe(target, paths=paths, **what)
    if as_json:
        tell_json(report)
        return
    low, high = report["labels_per_class"]
    say(
        f"{report['labelled']:,} labelled samples, {low if low == high else f'{low} to {high}'} in each of "
        f"{report['classes']} classes; accuracy: {report['metric']} in %, held out, ± its spread over "
        f"{report['folds']} folds; knowing no image gives {report['chance']:.1f} %"
    )
    show([_figures(row) for row in report["rows"]], False, _FIGURES)
    tell("")
    by_labels = [_by_labels(row) for row in report["rows"]]
    show(by_labels, False, " ".join(dict.fromkeys(name for row in by_labels for name in row)))
    tell("")
    for pair in report["agreement"]:
        tell(f"{pair['agreement']:.1f} % of the samples get the same class from {' and '.join(pair['of'])}")
    tell(report["recommendation"])
    for last in ("train", "picture"):
        if report.get(last):
            tell(report[last])


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the first table: "-" for what is not defined."""
    scores = {"kNN": row["knn"], "LEEP": row["leep"], "H-score": row["h_score"]}
    defined = {name: "-" if value is None else value for name, value in scores.items()}
    return {**row, "source": row["name"], **defined}


def _by_labels(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the second table: the accuracy by number of labels per class."""
    *few, everything = row["curve"]
    cells = {f"{point['labels_per_class']:,}": point["accuracy"] for point in few}
    return {"labels_per_class": row["name"], **cells, "all": everything["accuracy"]}
