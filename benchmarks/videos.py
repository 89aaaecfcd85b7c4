"""Videos: the clip loader against seeking in the files, and stage one's cost per view.

    python benchmarks/videos.py --data-dir DATA --source imagenet --weights imagenet=FILE

The target (UCF101) must be prepared under --cache-dir. "seeking" is a DataLoader with two workers that opens
the video with PyAV, seeks to the key frame before a random start, decodes up to the clip, and crops, resizes
and mirrors it with torchvision. Stage one is compared with the least that a view can cost: drawing its
frames, and as many forwards of the same compiled source on a resident batch.
"""

import argparse
import statistics
import tempfile
from contextlib import closing
from pathlib import Path
from time import perf_counter

import av
import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf

from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.commands.output import show_remarks
from pipeline.data.datasets import parse_target
from pipeline.data.loader import Loader, Sampler
from pipeline.data.render import in_batches, open_renderer
from pipeline.precompute.run import fill_stores
from pipeline.runtime.distributed import World
from pipeline.stores.fingerprint import source_plan
from pipeline.stores.job import Job
from pipeline.stores.sources import choose_forward, open_frozen
from sskt.sources.registry import open_source

N_FRAMES = 16


def main() -> None:
    args = _arguments()
    weights = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.weights)}
    paths = Paths(args.data_dir, args.cache_dir, weights)
    spec = parse_target(args.target)
    dataset = open_dataset(args.target, "train", paths=paths)
    clips = spec.list_videos(args.data_dir).clips["train"]
    files = [clips[i].source for i in dataset.ids]
    packed = sum(Path(dataset.name_of(row)).stat().st_size for row in range(len(dataset)))
    stored = sum(file.stat().st_size for file in files)
    frames = int(dataset.sizes[:, 0].sum())
    print(
        f"{len(dataset)} videos, {frames:,} frames: packed {packed / 1e6:.1f} MB, {packed / frames:,.0f} "
        f"bytes per frame, {packed / stored:.2f} x the files ({stored / 1e6:.1f} MB)"
    )
    loaders(args, dataset, files, parse_target(args.target))
    if args.source:
        stage_one(args, dataset, paths, spec)


def loaders(args: argparse.Namespace, dataset, files: list[Path], spec) -> None:
    execution = choose_execution(device="cpu", threads=2)
    plan = Augmentation().training_plan(spec)
    rates: dict[str, list[float]] = {"seeking, DataLoader, 2 workers": [], "ours": []}
    order = Sampler(len(dataset), args.batch_size, 0, World())
    seeking = torch.utils.data.DataLoader(
        Seeking(files, [int(n) for n in dataset.sizes[:, 0]], plan.side_px),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    with closing(open_renderer(dataset, plan, execution, batch_size=args.batch_size)) as renderer:
        loader = Loader(dataset, renderer, order, torch.device("cpu"))
        for round_ in range(args.rounds + 1):
            started = perf_counter()
            n = sum(len(clips) for clips in seeking)
            took = perf_counter() - started
            started = perf_counter()
            ours = sum(
                len(batch.pixels)
                for repeat in range(4)
                for batch in loader.epoch(repeat, 4 * round_ + repeat)
            )
            took_ours = perf_counter() - started
            if round_:  # round 0 warms both up
                rates["seeking, DataLoader, 2 workers"].append(n / took)
                rates["ours"].append(ours / took_ours)
    base = statistics.median(rates["seeking, DataLoader, 2 workers"])
    for name, values in rates.items():
        middle, spread = statistics.median(values), f"({min(values):.1f} to {max(values):.1f})"
        print(f"{name:<40}{middle:>8.1f} clips/s {spread}{middle / base:>8.2f} x")


class Seeking(torch.utils.data.Dataset):
    """The obvious clip dataset, without this package."""

    def __init__(self, files: list[Path], lengths: list[int], side_px: int) -> None:
        self._files, self._lengths, self._side = files, lengths, side_px

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> torch.Tensor:
        torch.set_num_threads(1)
        start = int(torch.randint(0, max(1, self._lengths[i] - N_FRAMES + 1), ()))
        frames: list[np.ndarray] = []
        with av.open(str(self._files[i]), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(int(start / stream.average_rate / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.pts * stream.time_base * stream.average_rate >= start:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == N_FRAMES:
                    break
        while len(frames) < N_FRAMES:
            frames.append(frames[len(frames) % max(1, len(frames))])
        clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        side = int(min(clip.shape[2:]) * 2 ** (-int(torch.randint(0, 5, ())) / 4))
        top, left = (int(torch.randint(0, size - side + 1, ())) for size in clip.shape[2:])
        clip = tvf.resized_crop(clip, top, left, side, side, [self._side, self._side], antialias=True)
        return clip.flip(-1) if torch.rand(()) < 0.5 else clip


def stage_one(args: argparse.Namespace, dataset, paths: Paths, spec) -> None:
    execution = choose_execution(device="cpu", threads=2, compiled=True, amp=args.amp)
    augmentation = Augmentation(source_side_px=args.source_size)
    plan = augmentation.training_plan(spec)
    name = args.source
    source = open_source(name, weights=paths.weights.get(name), weights_dir=paths.weights_dir)
    input_map = augmentation.input_map(spec, source.spec)
    n = len(dataset) * args.views

    def draw_s(drawn_plan) -> float:
        """Seconds to draw every view."""
        batches = in_batches(np.arange(len(dataset)), 64)
        with closing(open_renderer(dataset, drawn_plan, execution, batch_size=64)) as renderer:
            for _ in renderer.render(0, batches):
                pass
            started = perf_counter()
            for view in range(args.views):
                for _ in renderer.render(view, batches):
                    pass
            return perf_counter() - started

    def forward_s() -> float:
        """Seconds that as many forwards take on a resident batch."""
        forward = choose_forward(source, input_map, execution, plan.side_px, len(dataset), args.views)
        frozen = open_frozen(source, input_map, forward, execution, plan.side_px)
        pixels = torch.randint(0, 256, frozen.dummy_input(64).shape, dtype=torch.uint8)
        frozen.logits(pixels)
        times = []
        while sum(times) < args.seconds:
            started = perf_counter()
            for logits in [frozen.submit(pixels) for _ in range(4)]:
                logits()
            times.append(perf_counter() - started)
        return n / (4 * len(pixels) / statistics.median(times))

    before = forward_s()
    picked_s, whole_s = draw_s(source_plan(input_map, plan)), draw_s(plan)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(args.target, dataset, [(source, input_map)], plan, args.views)
        (report,) = fill_stores(job, cache_dir=Path(folder), execution=execution, world=World())
    forwards_s = statistics.mean([before, forward_s()])
    print(
        f"{n} rows: stage one {report.wall_s:.1f} s; frames drawn {picked_s:.1f} s + forwards "
        f"{forwards_s:.1f} s: ratio {report.wall_s / (picked_s + forwards_s):.3f}; whole clips would take "
        f"{whole_s:.1f} s to draw"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="ucf101")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    parser.add_argument("--source")
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--source-size", type=int)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    return parser.parse_args()


if __name__ == "__main__":
    with show_remarks():
        main()
