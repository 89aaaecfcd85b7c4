"""The demo's sources: two small networks trained on drawings of letters and strokes, so nothing is
downloaded.

Drawings are bright on black and reduced to 8 x 8 pixels, like scikit-learn's digits; no digit is drawn.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from pipeline.runtime import Progress
from sskt.errors import RunError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources import InputMap, save_source
from sskt.students import Student, build_student

_CANVAS_PX = 64
_IMAGE_PX = 8  # the size of scikit-learn's digits
_SOURCE_PX = 32
_N_DRAWINGS = 4000
_EPOCHS = 3
_BATCH = 64
_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
)

Draw = Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]


def demo_sources(task: str, folder: Path) -> tuple[str, str]:
    """The sources of a task, "letters" or "strokes", by name: a network's logits, and what its last layer
    reads. It is trained on the first call, then reused.
    """
    logits, features = folder / f"{task}.pt2", folder / f"{task}-features.pt2"
    if not (logits.is_file() and features.is_file()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{folder}: cannot be made ({error.strerror}); choose another --cache-dir"
            ) from error
        network = _train(task)
        _save(_Logits(network), logits, returns="logits")
        _save(_Features(network), features, returns="embedding")
    return f"program:{logits}", f"program:{features}@embedding"


def _save(module: nn.Module, path: Path, *, returns: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.zeros(2, 3, _SOURCE_PX, _SOURCE_PX)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes={"x": {0: batch}})
    save_source(path, program, mean=IMAGENET_MEAN, std=IMAGENET_STD, returns=returns, channels="rgb")


def drawings(task: str, n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw n random images, uint8 (n, 3, 8, 8), and their classes, int64 (n,)."""
    draw, n_classes = _TASKS[task]
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n)
    images = np.empty((n, _IMAGE_PX, _IMAGE_PX), dtype=np.uint8)
    for row, label in enumerate(labels):
        canvas = Image.new("L", (_CANVAS_PX, _CANVAS_PX))
        draw(ImageDraw.Draw(canvas), int(label), rng)
        images[row] = np.asarray(_distort(canvas, rng).resize((_IMAGE_PX, _IMAGE_PX), Image.Resampling.BOX))
    return np.repeat(images[:, None], 3, axis=1), labels


class _Logits(nn.Module):
    """A trained network as a source: normalised images in, logits out."""

    def __init__(self, network: Student) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.predict(x)


class _Features(_Logits):
    """The same, but for its last layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.network.backbone(x).pooled
        return pooled


def _train(task: str) -> Student:
    """Train a ResNet20 for a few epochs on drawings of one task; returns it in eval mode."""
    images, labels = drawings(task, _N_DRAWINGS, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_student("resnet20", _TASKS[task][1], {}, transfer_module=False)
        order = torch.Generator().manual_seed(0)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        steps = _EPOCHS * math.ceil(_N_DRAWINGS / _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        with Progress(f"draw and learn {task}", total=_EPOCHS * _N_DRAWINGS) as progress:
            for _ in range(_EPOCHS):
                for rows in torch.randperm(len(x), generator=order).split(_BATCH):  # type: ignore[no-untyped-call]
                    logits, _ = network(_source_input(x[rows]))
                    optimiser.zero_grad(set_to_none=True)
                    nn.functional.cross_entropy(logits, y[rows]).backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    schedule.step()
                    progress.advance(len(rows))
    return network.eval()


def _source_input(pixels: torch.Tensor) -> torch.Tensor:
    """Map drawings as digits will be mapped for the source: float32 (N, 3, 32, 32)."""
    return InputMap(side_px=_SOURCE_PX, mean=IMAGENET_MEAN, std=IMAGENET_STD)(pixels)


def _distort(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate, shear, scale and shift a drawing slightly."""
    turn, shear = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.2, 0.2)
    scale_x, scale_y = rng.uniform(0.85, 1.25, size=2)
    matrix = np.array([[math.cos(turn), -math.sin(turn) + shear], [math.sin(turn), math.cos(turn)]])
    matrix = matrix * np.array([[scale_x], [scale_y]])
    centre = np.full(2, _CANVAS_PX / 2)
    offset = centre - matrix @ centre + rng.uniform(-5, 5, size=2)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    return canvas.transform(canvas.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _draw_letter(draw: ImageDraw.ImageDraw, label: int, rng: np.random.Generator) -> None:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(
        fonts / f"{_FONTS[rng.integers(len(_FONTS))]}.ttf", size=int(rng.integers(48, 60))
    )
    middle = (_CANVAS_PX / 2, _CANVAS_PX / 2)
    draw.text(
        middle,
        string.ascii_uppercase[label],
        fill=255,
        font=font,
        anchor="mm",
        stroke_width=int(rng.integers(3)),
    )


def _draw_stroke(draw: ImageDraw.ImageDraw, label: int, rng: np.random.Generator) -> None:
    """Draw a line, corner, arc or loop: the parts of written signs."""
    width = int(rng.integers(6, 11))
    start = int(rng.integers(0, 360))
    points = [
        (math.cos(a) * 24 + 32, math.sin(a) * 24 + 32) for a in np.deg2rad(start + np.arange(0, 360, 120))
    ]
    if label == 0:
        draw.ellipse((10, 8, 54, 56), outline=255, width=width)
    elif label == 1:
        draw.line((32, 6, 32, 58), fill=255, width=width)
    elif label == 2:
        draw.line((8, 32, 56, 32), fill=255, width=width)
    elif label == 3:
        draw.arc((10, 10, 54, 54), start, start + 180, fill=255, width=width)
    elif label == 4:
        draw.line(points, fill=255, width=width, joint="curve")
    elif label == 5:
        draw.line([*points, points[0]], fill=255, width=width, joint="curve")
    elif label == 6:
        draw.line((32, 8, 32, 56), fill=255, width=width)
        draw.line((10, 32, 54, 32), fill=255, width=width)
    elif label == 7:
        draw.line((10, 10, 54, 54), fill=255, width=width)
        draw.line((54, 10, 10, 54), fill=255, width=width)
    elif label == 8:
        draw.ellipse((18, 4, 46, 32), outline=255, width=width)
        draw.ellipse((18, 30, 46, 60), outline=255, width=width)
    else:
        draw.arc((14, 4, 50, 34), 180, 90, fill=255, width=width)
        draw.arc((14, 30, 50, 60), 270, 180, fill=255, width=width)


_TASKS: dict[str, tuple[Draw, int]] = {"letters": (_draw_letter, 26), "strokes": (_draw_stroke, 10)}
