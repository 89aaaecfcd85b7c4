"""Does our preprocessing show a source what it was trained on? Top-1 accuracy on images of its own task.

usage: source_accuracy.py SOURCE TARGET [--weights PATH] [--data-dir DIR] [--renderer dali|torch] [--amp
    fp32|bf16]

Renders the target's test split by its evaluation plan and counts how often the source's best class is the
label.
"""

import argparse
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.render import in_batches, open_renderer
from pipeline.runtime.execution import Execution, choose_execution
from sskt.sources.frozen import FrozenSource
from sskt.sources.registry import open_source


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    parser.add_argument("--renderer", default="auto")
    parser.add_argument("--amp", default="auto")
    args = parser.parse_args()
    execution = choose_execution(device="auto", amp=args.amp, renderer=args.renderer, threads=2)
    spec = parse_target(args.target)
    dataset = load_dataset(spec, "test", data_dir=args.data_dir, index_dir=args.cache_dir / "indexes")
    source = open_source(args.source, weights=args.weights, weights_dir=args.data_dir / "weights")
    input_map = Augmentation().input_map(spec, source.spec)
    frozen = FrozenSource(source, input_map, device=execution.device, forward=execution.forward(len(dataset)))
    renderer = open_renderer(
        dataset,
        Augmentation().evaluation_plan(spec),
        Execution(execution.device, renderer=args.renderer, threads=2),
        batch_size=64,
    )
    with closing(renderer):
        batches = in_batches(np.arange(len(dataset)), 64)
        logits = torch.cat([frozen.logits(pixels).cpu() for pixels in renderer.render(0, batches)])
    correct = int((logits.argmax(dim=1).numpy() == dataset.labels).sum())
    print(
        f"{args.source} on {len(dataset)} images of {args.target}, {renderer.name}, {execution.precision}: "
        f"top-1 {100 * correct / len(dataset):.1f} %"
    )


if __name__ == "__main__":
    main()
