"""Peak memory of stage one with more samples and more views: it must not grow with either.

    python benchmarks/memory.py

Each figure is the peak resident set of a separate process that draws JPEGs of 320 x 240 at 64 px and runs a
tiny source. A block holds 4,096 images, and with more than one view its decoded images are kept while up to
four views are drawn: a job that takes less memory is merely smaller than a block.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4096)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _save_source(folder / "tiny.pt2")
        first = None
        print("| samples | views | images drawn | peak RSS, MB | of the first |\n|---|---|---|---|---|")
        for times_samples, views in ((1, 1), (8, 1), (1, 2), (8, 2), (1, 16), (8, 16)):
            n = times_samples * args.samples
            images = folder / f"images{times_samples}"
            if not images.exists():
                _make_images(images, n)
            peak = _in_process(folder, images, views)
            first = first or peak
            print(f"| {n:,} | {views} | {n * views:,} | {peak:,.0f} | {peak / first:.2f} |", flush=True)


def _in_process(folder: Path, images: Path, views: int) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_run, (folder, images, views))


def _run(folder: Path, images: Path, views: int) -> float:
    from pipeline import api
    from pipeline.data.augmentation import Augmentation
    from pipeline.runtime.execution import choose_execution
    from pipeline.runtime.paths import Paths

    api.precompute(
        [f"imagefolder:{images}"],
        [f"program:{folder / 'tiny.pt2'}"],
        views=views,
        augmentation=Augmentation(side_px=64, source_side_px=64),
        paths=Paths(folder / "data", folder / f"stores-{images.name}-{views}"),
        execution=choose_execution(device="cpu", amp="fp32", renderer="auto", threads=2, compiled=False),
        limit=None,
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _make_images(folder: Path, n: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", n), ("val", 2)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
        for i in range(count):
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((320, 240), Image.Resampling.BILINEAR)
            image.save(folder / split / "ab"[i % 2] / f"{i}.jpg", quality=80)


def _save_source(path: Path) -> None:
    import torch
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 100)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(Tiny().eval(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


if __name__ == "__main__":
    main()
