"""The cost of an epoch of stage two, in one run: with cached, constant or live logits, or without sources.

    python benchmarks/epochs.py --target cifar10 --limit 4096 --source imagenet --weights imagenet=FILE

Without sources it uses the demo's sources and digits, so that it runs anywhere. The kinds alternate, one
epoch each; ratios are taken within a round, and their medians over rounds are reported. "constant" is the
same student with the same heads, fed soft labels from memory: the least that knowledge transfer can cost.
"one batch" is that without a loader, with the same pixels on the device in every step: the step alone.
"plain" is what one would write without this package: a DataLoader, torchvision's transforms, eager fp32
teachers in the step; "plain, fast" the same under autocast and in channels last, in the precisions of ours.
They run in a separate process each, untouched by our settings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from plain import Epoch, Setting, plain_in_process

from pipeline.commands.output import show_remarks
from pipeline.data.loader import Loader, Sampler
from pipeline.data.render import open_renderer
from pipeline.precompute.run import fill_stores
from pipeline.runtime.distributed import World
from pipeline.runtime.execution import channels_last, student_precision
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.live import LiveOutputs
from pipeline.source_outputs.placement import choose_placement
from pipeline.stores.job import Job
from pipeline.stores.sources import open_frozen, step_batch_size
from pipeline.train.config import TrainConfig
from pipeline.train.method import open_method
from pipeline.train.trainer import Trainer
from sskt.students import build_backbone

KINDS = (
    "scratch",
    "one batch",
    "constant",
    "cached",
    "cached, transfer module",
    "live",
    "plain",
    "plain, fast",
)
SLOW = ("live", "plain", "plain, fast")


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        Bench(args, Path(scratch)).run()


class Bench(Setting):
    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        super().__init__(args, scratch)
        self.scratch = scratch
        job = Job(args.target, self.dataset, list(self.sources.values()), self.plan, args.views)
        reports = fill_stores(job, cache_dir=scratch / "stores", execution=self.execution, world=World())
        self.stores = {name: _open(report.path) for name, report in zip(self.sources, reports, strict=True)}
        device = self.execution.device
        amp = student_precision(args.amp, device)
        print(
            f"{args.target}, {len(self.dataset)} images of {self.plan.side_px} px, {args.model} in {amp} on "
            f"{device}, batch {args.batch_size}, "
            f"sources {', '.join(self.sources)} in {self.execution.precision}"
        )

    def run(self) -> None:
        """Measure every kind, alternating."""
        with ExitStack() as stack:
            kinds = [kind for kind in KINDS if kind not in self.args.skip]
            epochs = {kind: self.make_epoch(kind) for kind in kinds if not kind.startswith("plain")}
            for kind in kinds:
                if kind.startswith("plain"):
                    fast = kind == "plain, fast"
                    epochs[kind] = stack.enter_context(plain_in_process(self.args, self.scratch, fast))
            self.take_turns(epochs)

    def take_turns(self, epochs: dict[str, Epoch]) -> None:
        for epoch in epochs.values():
            epoch()  # compiles, fills caches, starts workers
        seconds: dict[str, list[float]] = {kind: [] for kind in epochs}
        waits: dict[str, list[float]] = {kind: [] for kind in epochs}
        for i in range(self.args.rounds):
            for kind, epoch in epochs.items():
                if kind in SLOW and i >= self.args.slow_rounds:
                    continue
                took, wait = epoch()
                seconds[kind].append(took)
                waits[kind].append(wait)
        print("\n| epoch | seconds, median (least to most) | data wait |\n|---|---|---|")
        for kind, times in seconds.items():
            spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
            print(f"| {kind} | {spread} | {statistics.median(waits[kind]):.1%} |")
        print("\n| ratio | median over rounds |\n|---|---|")
        for over, under in (
            ("cached", "one batch"),
            ("cached", "constant"),
            ("cached", "scratch"),
            ("cached, transfer module", "scratch"),
            ("live", "cached"),
            ("plain", "cached"),
            ("plain, fast", "cached"),
        ):
            if over in seconds and under in seconds:
                pairs = zip(seconds[over], seconds[under], strict=False)
                print(f"| {over} / {under} | {statistics.median(a / b for a, b in pairs):.3f} |")

    def make_epoch(self, kind: str) -> Epoch:
        labels = None
        if kind.startswith("cached"):
            placement = choose_placement(self.stores, len(self.dataset), self.execution.device)
            labels = CachedOutputs(
                self.stores, self.dataset, views=self.args.views, placement=placement, temperature=3.0
            )
        elif kind in ("constant", "one batch"):
            labels = Constant({name: store.n_classes for name, store in self.stores.items()}, self)
        elif kind == "live":
            teachers = {}
            for name, (source, input_map) in self.sources.items():
                # as a run of some length asks them: compiled, on CUDA about a whole step at once
                n = step_batch_size(source, input_map, self.execution, self.args.batch_size)
                forward = self.execution.forward(len(self.dataset), fastest=n)
                teachers[name] = open_frozen(source, input_map, forward, self.execution, self.plan.side_px)
            labels = LiveOutputs(teachers, views=self.args.views)
        config = self.config(labels, transfer_module="transfer" in kind)
        torch.manual_seed(0)
        method = open_method(config, build_backbone(self.args.model), labels.n_classes if labels else {})
        trainer = Trainer(config, method, self.dataset, labels, self.execution, World())
        order = Sampler(len(self.dataset), self.args.batch_size, 0, World())
        renderer = open_renderer(self.dataset, self.plan, self.execution, batch_size=self.args.batch_size)
        loader = Loader(self.dataset, renderer, order, self.execution.device)
        if kind == "one batch":
            loader = OneBatch(loader)

        def epoch() -> tuple[float, float]:
            started = perf_counter()
            figures = trainer.train_epoch(loader, lambda _: None, lambda: None)
            trainer.end_epoch(None)
            return perf_counter() - started, figures["data_wait_share"]

        return epoch

    def config(self, labels, *, transfer_module: bool) -> TrainConfig:
        device = self.execution.device
        return TrainConfig(
            target=self.args.target,
            classes=self.dataset.classes,
            model=self.args.model,
            method="sskt" if labels else "scratch",
            sources=tuple(labels.n_classes) if labels else (),
            transfer_module=transfer_module,
            primary_loss="ce",
            aux_loss="ce",
            kd_reduction="mean",
            gradient_cosine="off",
            peers=2,
            psi=5,
            temperature=3.0,
            alpha=0.1,
            labels="cached",
            teacher_bn="frozen",
            views=self.args.views,
            epochs=1000,
            batch_size=self.args.batch_size,
            lr=0.01,
            schedule="multistep",
            milestones=(),
            gamma=0.1,
            patience=10,
            momentum=0.9,
            dampening=0.0,
            weight_decay=5e-4,
            clip_norm=None,
            label_smoothing=0.0,
            finetune_from=None,
            freeze_until=None,
            mixup=0.0,
            cutmix=0.0,
            seed=0,
            limit=None,
            eval_every=1,
            amp=student_precision(self.args.amp, device),
            compiled=self.args.compile,
            channels_last=channels_last(device),
            deterministic=False,
            ranks=1,
            plan={},
            eval_plan={},
            augmentation={},
            contents={},
            source_weights={},
        )


class OneBatch:
    """A loader that repeats its first batch."""

    def __init__(self, loader: Loader) -> None:
        self.order, self._first = loader.order, next(iter(loader.epoch(0, 0)))

    def epoch(self, _epoch: int, _view: int, *, first_step: int = 0):
        for step in range(first_step, self.order.n_steps):
            yield replace(self._first, step=step)


class Constant:
    """The same soft labels for every batch, without any lookup."""

    kind, sees_mixtures = "cached", False

    def __init__(self, n_classes: dict[str, int], bench: Bench) -> None:
        self.n_classes, self.views = n_classes, bench.args.views
        size, device = bench.args.batch_size, bench.execution.device
        self._logits = {name: torch.randn(size, k, device=device).half() for name, k in n_classes.items()}

    def load(self, view, positions) -> None: ...

    def prepare(self, view, positions) -> None: ...

    def check(self) -> None: ...

    def finish(self) -> None: ...

    def logits(self, positions, _pixels) -> dict[str, torch.Tensor]:
        return {name: logits[: len(positions)] for name, logits in self._logits.items()}


def _open(path):
    from cache.store import Store

    return Store.open(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="digits")
    parser.add_argument("--split", default="train")
    parser.add_argument("--source", action="append")
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--amp", default="auto", help="of the student")
    parser.add_argument("--source-amp", default="auto")
    parser.add_argument("--compile", action="store_true", help="the student's step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-rounds", type=int, default=2, help="of the live and the plain epochs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--renderer", default="auto")
    parser.add_argument("--threads", type=int, help="that decode; default: one per core")
    parser.add_argument("--workers", type=int, default=2, help="of the plain epochs' DataLoader")
    parser.add_argument("--skip", nargs="*", default=[], choices=KINDS)
    return parser.parse_args()


if __name__ == "__main__":
    with show_remarks():
        main()
