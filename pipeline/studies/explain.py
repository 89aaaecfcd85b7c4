"""Compare students on one image: what each predicts, and where it looks (Grad-CAM; SSKT figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import Location
from pipeline.data import ArrayImages, Dataset, decode, open_dataset, open_renderer
from pipeline.runtime import Execution, Paths, coerce, fitted, write_figure
from pipeline.train import FinishedRun, TrainConfig, open_finished, whereabouts_of
from sskt.errors import RunError, UnreadableError, shown
from sskt.normalise import normalise
from sskt.students import Student, grad_cam

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_IN = 2.6
_TITLE_PT, _LINE_IN = 9.0, 0.17


def explain(
    runs: Location | str | Sequence[Location | str],
    *,
    out: Path,
    image: Path | None = None,
    sample: int | None = None,
    class_name: str | None = None,
    paths: Paths | None = None,
    execution: Execution,
) -> list[dict[str, Any]]:
    """Draw `out`, a PNG: the image as the first run's evaluation sees it, and each run's map over it.

    The image is a file, or a sample of the first run's test split by its id (default: the first sample).
    Maps are of `class_name`, or of each student's top class. Returns one dict per run. Raises RunError for
    runs that read clips, or a class that a student does not know.
    """
    folders = coerce.places(runs, "runs")
    out, image = coerce.path(out, "out"), None if image is None else coerce.path(image, "image")
    sample = coerce.whole_or_none(sample, "sample", low=0)
    if not folders:
        raise RunError("there is no run to explain; name at least one")
    opened = [_open(run, execution.device) for run in folders]
    dataset = _one_image(image) if image else _sample(opened[0][0], sample, paths)
    rows: list[dict[str, Any]] = []
    panels = []
    for finished, student in opened:
        run, config = finished.folder, finished.config
        pixels = _render(dataset, finished, execution)
        x = normalise(pixels, student.backbone.mean, student.backbone.std)
        with torch.inference_mode():
            logits = student.predict(x)[0]
        # with several labels per image, classes are independent
        shares = logits.sigmoid() if config.primary_loss == "bce" else logits.softmax(dim=0)
        label = int(shares.argmax()) if class_name is None else _label(class_name, config, run)
        heat = grad_cam(student, x, torch.tensor([label], device=x.device))[0]
        rows.append(
            {
                "run": str(run),
                "method": config.method,
                "class": shown(config.classes[label]),
                "share": float(shares[label]),
            }
        )
        panels.append((pixels[0].permute(1, 2, 0).cpu().numpy(), heat.cpu().numpy()))
    names = [Path(dataset.name_of(0)).name, *(text for row in rows for text in (row["run"], row["class"]))]
    write_figure(out, lambda: _figure(rows, panels, names[0]), *names)
    return rows


def _open(run: Location, device: torch.device) -> tuple[FinishedRun, Student]:
    finished = open_finished(run)
    student = finished.bare_student("last", None)
    if student.backbone.reads_clips:
        raise RunError(f"{run}: its student reads clips, and maps are of pictures")
    if finished.config.student_frames is not None:
        raise RunError(f"{run}: its student was trained on videos, and maps are of pictures")
    return finished, student.to(device)


def _sample(finished: FinishedRun, sample: int | None, paths: Paths | None) -> Dataset:
    where = whereabouts_of(finished.folder, finished.config, paths=paths)
    dataset = open_dataset(where.target, "test", paths=where.paths)
    positions = np.flatnonzero(dataset.ids == (dataset.ids[0] if sample is None else sample))
    if not len(positions):
        raise RunError(
            f"{where.target}: its test split has no sample {sample}; ids reach to {dataset.ids.max()}"
        )
    return dataset.take(positions)


def _one_image(path: Path) -> Dataset:
    """An image file as a dataset of one sample."""
    try:
        pixels = decode.to_pixels(path.read_bytes(), depth=None)
    except (OSError, UnreadableError) as error:
        raise RunError(f"{path}: cannot be read as a picture ({error}); give an image file") from None
    return Dataset(
        target=path.name,
        split="test",
        kind="array",
        classes=(),
        ids=np.zeros(1, dtype=np.int64),
        labels=np.zeros(1, dtype=np.int64),
        sizes=np.array([pixels.shape[:2]], dtype=np.int32),
        contents=np.zeros((1, 16), dtype=np.uint8),
        access=ArrayImages(str(path), pixels[None], np.zeros(1, dtype=np.int64)),
    )


def _render(dataset: Dataset, finished: FinishedRun, execution: Execution) -> torch.Tensor:
    """The image as this run's evaluation sees it: uint8 (1, 3, side, side)."""
    renderer = open_renderer(dataset, finished.plan, replace(execution, renderer="torch"), batch_size=1)
    with closing(renderer), closing(renderer.render(0, [np.zeros(1, dtype=np.int64)])) as drawn:
        return next(drawn).to(execution.device)


def _label(name: str, config: TrainConfig, run: Location) -> int:
    if name not in config.classes:
        raise RunError(
            f"{run}: its student knows no class {name!r}, but {', '.join(config.classes[:5])}, ..."
        )
    return config.classes.index(name)


def _figure(
    rows: Sequence[dict[str, Any]],
    panels: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]],
    name: str,
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL_IN * (len(panels) + 1), _PANEL_IN))
    titles = [_fit_panel(name, figure, lines=4)]
    titles += [_title(row, figure, empty=not heat.any()) for row, (_, heat) in zip(rows, panels, strict=True)]
    above = 0.1 + _LINE_IN * (1 + max(title.count("\n") for title in titles))
    figure.set_figheight(_PANEL_IN + above)
    axes = figure.subplots(1, len(panels) + 1)
    figure.subplots_adjust(0.01, 0.01, 0.99, _PANEL_IN / (_PANEL_IN + above), wspace=0.04)
    axes[0].imshow(panels[0][0])
    for axis, (image, heat) in zip(axes[1:], panels, strict=True):
        axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        axis.imshow(heat, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=_TITLE_PT)
        axis.axis("off")
    return figure


def _title(row: dict[str, Any], figure: Figure, *, empty: bool) -> str:
    """Method and run, share and class; `empty`: no part of the image supports the class."""
    lines = [
        _fit_panel(f"{row['method']}: {Path(row['run']).name}", figure, lines=3),
        _fit_panel(f"{100 * row['share']:.0f} % {row['class']}", figure, lines=2),
    ]
    return "\n".join([*lines, "no evidence in the picture"] if empty else lines)


def _fit_panel(text: str, figure: Figure, *, lines: int) -> str:
    """Wrap `text` to a panel's width."""
    width_px = 0.92 * _PANEL_IN * figure.dpi
    return fitted(text, figure, width_px=width_px, size_pt=_TITLE_PT, lines=lines)
