"""Both stages in one run: stage one against the bare forward, and epochs with cached labels, live labels and
none.

usage: stages.py [--target NAME --source NAME ... --weights NAME=PATH ... --data-dir DIR --limit N --model
    NAME --repeats N]

Without sources it takes the demo's drawn ones, so that it runs anywhere. Stores go to a temporary folder.
Every figure is the median over repeats, and what is compared is a ratio of two figures of this run.
"""

import argparse
import statistics
import tempfile
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np

from pipeline.api import Supervision, run_precompute, run_train
from pipeline.choices import Augmentation, Places, choose_execution
from pipeline.drawn import drawn_source
from pipeline.render import in_batches, open_renderer
from pipeline.run import read_metrics
from pipeline.targets import load_index, parse_target
from sskt.frozen import FrozenSource
from sskt.sources import open_source


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        bench(args, Path(scratch))


def bench(args: argparse.Namespace, scratch: Path) -> None:
    sources = args.source or [
        f"program:{drawn_source(t, Path('stores/demo'))}" for t in ("letters", "strokes")
    ]
    weights = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.weights)}
    places = Places(args.data_dir, scratch / "stores", weights)
    execution = choose_execution(device="auto", amp=args.amp, renderer="auto", threads=2)
    spec = parse_target(args.target)
    index = load_index(spec, "train", data_dir=places.data_dir, index_dir=places.index_dir, limit=args.limit)
    print(
        f"{args.target}, {len(index)} samples, {', '.join(sources)}, {execution.device}, {execution.compute}"
    )

    bare_s = bare_forward_s(args, sources, places, execution, spec, index)
    started = perf_counter()
    run_precompute(
        [args.target],
        sources,
        views=args.repeats,
        augmentation=Augmentation(),
        places=places,
        execution=execution,
        limit=args.limit,
        say=lambda _: None,
    )
    stage_one_s = (perf_counter() - started) / args.repeats
    print(f"{'stage one, all sources':<34}{len(index) / stage_one_s:>12.0f} images/s")
    print(f"{'bare forwards on resident pictures':<34}{len(index) / bare_s:>12.0f} images/s")
    print(f"{'stage one / bare':<34}{bare_s / stage_one_s:>12.2f}\n")

    seconds = {}
    for name, supervision in {
        "scratch": Supervision(method="scratch", views=args.repeats),
        "cached": Supervision(sources=tuple(sources), labels="cached"),
        "cached, transfer module": Supervision(sources=tuple(sources), labels="cached", transfer_module=True),
        "live": Supervision(sources=tuple(sources), labels="live", views=args.repeats),
    }.items():
        out = scratch / name
        run_train(
            args.target,
            supervision=supervision,
            augmentation=Augmentation(),
            places=places,
            execution=execution,
            out=out,
            say=lambda _: None,
            model=args.model,
            limit=args.limit,
            overrides={"epochs": args.repeats},
            eval_every=args.repeats,
        )
        metrics = read_metrics(out)
        seconds[name] = statistics.median(m["epoch_s"] for m in metrics)
        print(
            f"epoch, {name:<27}{seconds[name]:>12.2f} s"
            f"   logits {statistics.median(m['label_s'] for m in metrics):.3f} s"
            f"   data wait {statistics.median(m['data_wait_s'] for m in metrics):.3f} s"
        )
    print(f"\n{'cached / scratch':<34}{seconds['cached'] / seconds['scratch']:>12.2f}")
    print(f"{'live / cached':<34}{seconds['live'] / seconds['cached']:>12.2f}")


def bare_forward_s(args, sources, places, execution, spec, index) -> float:
    """Seconds that the sources alone need for as many pictures, on one batch that is in memory already."""
    plan = Augmentation().training_plan(spec)
    renderer = open_renderer(index, plan, device=execution.device, batch_size=64, threads=2)
    with closing(renderer):
        pixels = next(iter(renderer.render(0, in_batches(np.arange(min(64, len(index))), 64))))
    total = 0.0
    for name in sources:
        source = open_source(name, weights=places.weights.get(name), weights_dir=places.weights_dir)
        input_map = Augmentation().input_map(spec, source.spec.mean, source.spec.std)
        forward = execution.forward(len(index))
        frozen = FrozenSource(source, input_map, device=execution.device, forward=forward)
        frozen.logits(pixels)
        times = []
        for _ in range(5 * args.repeats):
            started = perf_counter()
            frozen.logits(pixels).cpu()
            times.append(perf_counter() - started)
        total += statistics.median(times) / len(pixels)
    return total * len(index)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="digits")
    parser.add_argument("--source", action="append")
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--model")
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
