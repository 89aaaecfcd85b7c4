"""Training and loading as one would write it without this package: a DataLoader, torchvision's transforms,
and eager teachers in the step. The other benchmarks compare with it.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.runtime.execution import autocast, student_precision
from pipeline.studies.demo_sources import demo_sources
from sskt.losses import soft_cross_entropy
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.registry import open_source
from sskt.students.student import build_student

Epoch = Callable[[], tuple[float, float]]  # trains one epoch; returns its seconds and data wait share


class Setting:
    """Dataset, plan, sources and device, shared by every kind of epoch."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args = args
        weights = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.weights)}
        paths = Paths(args.data_dir, scratch / "stores", weights)
        self.execution = choose_execution(
            device=args.device,
            amp=args.source_amp,
            renderer=args.renderer,
            threads=args.threads,
            compiled=True,
        )
        spec = parse_target(args.target)
        self.dataset = load_dataset(
            spec, args.split, data_dir=args.data_dir, index_dir=scratch / "ix", limit=args.limit
        )
        augmentation = Augmentation(side_px=args.size)
        self.plan = augmentation.training_plan(spec)
        names = args.source or [demo_sources(task, Path("stores/demo"))[0] for task in ("letters", "strokes")]
        self.sources = {}
        for name in names:
            source = open_source(name, weights=weights.get(name), weights_dir=paths.weights_dir)
            input_map = augmentation.input_map(spec, source.spec)
            self.sources[name] = (source, input_map)


@contextmanager
def plain_in_process(args: argparse.Namespace, scratch: Path, fast: bool) -> Iterator[Epoch]:
    """The plain epoch in a separate process, since a Trainer changes how its process allocates memory."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_serve_epochs, args=(child, args, scratch, fast))
    process.start()
    child.close()

    def epoch() -> tuple[float, float]:
        parent.send("epoch")
        return parent.recv()

    try:
        yield epoch
    finally:
        parent.close()
        process.join()


def _serve_epochs(pipe, args: argparse.Namespace, scratch: Path, fast: bool) -> None:
    epoch = plain(Setting(args, scratch), fast)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(epoch())


def plain(setting: Setting, fast: bool) -> Epoch:
    """The obvious training loop, without this package; `fast`: under autocast and in channels last."""
    device, side, dataset = setting.execution.device, setting.plan.side_px, setting.dataset
    if dataset.kind == "array":
        drawn = [v2.RandomCrop(side, padding=4), v2.RandomHorizontalFlip()]
    else:
        drawn = [v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()]
    scaled = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    loader = torch.utils.data.DataLoader(
        Images(dataset, v2.Compose([*drawn, *scaled])),
        batch_size=setting.args.batch_size,
        shuffle=True,
        num_workers=setting.args.workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context="spawn",
    )
    layout = torch.channels_last if fast else torch.contiguous_format
    amp = student_precision(setting.args.amp, device) if fast else "fp32"
    source_amp = setting.execution.precision if fast else "fp32"
    teachers = {
        name: (source.module.to(device, memory_format=layout), input_map.side_px)
        for name, (source, input_map) in setting.sources.items()
    }
    torch.manual_seed(0)
    classes = {name: source.spec.n_classes for name, (source, _) in setting.sources.items()}
    student = build_student(setting.args.model, len(dataset.classes), classes, False)
    student = student.to(device, memory_format=layout).train()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def epoch() -> tuple[float, float]:
        started = perf_counter()
        waited, step_done = 0.0, started
        for x, y in loader:
            waited += perf_counter() - step_done
            x, y = (batch.to(device, non_blocking=True) for batch in (x, y))
            x = x.contiguous(memory_format=layout)
            with torch.no_grad(), autocast(device, source_amp):
                soft = {
                    name: module(x if x.shape[-1] == px else F.interpolate(x, size=px, mode="bilinear"))
                    for name, (module, px) in teachers.items()
                }
            with autocast(device, amp):
                primary, auxiliary = student(x)
            loss = F.cross_entropy(primary.float(), y)
            for name, logits in auxiliary.items():
                loss = loss + 0.1 * soft_cross_entropy(logits.float(), soft[name].float(), temperature=3.0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            step_done = perf_counter()
        took = perf_counter() - started
        return took, waited / took

    return epoch


class Images(torch.utils.data.Dataset):
    """A dataset's images, transformed, and their labels."""

    def __init__(self, dataset, transform) -> None:
        self._dataset, self._transform = dataset, transform

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if self._dataset.kind == "array":
            image = Image.fromarray(self._dataset.pixels_of(i))
        else:
            image = Image.open(self._dataset.access.path_of(i)).convert("RGB")
        return self._transform(image), int(self._dataset.labels[i])
