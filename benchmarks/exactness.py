"""Do a store's rows match the pixels that a student sees? Compare random rows with a plain recomputation.

usage: exactness.py STORE --target NAME --source NAME [--weights PATH] [--data-dir DIR] [--pairs N]
                    [--device DEVICE]

For N random (sample, view) pairs, compares the stored row with an eager fp32 forward, batch by batch and
without any of our execution code, on pixels drawn by a renderer other than the store's; and with our own live
path on the store's renderer. The same check with every row shifted by one sample must fail. For videos whole
clips are drawn, and an image source sees their centre frames (the default of --source-frames).
"""

import argparse
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cache.store import Store
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.render import open_renderer
from pipeline.runtime.execution import Execution, choose_execution
from pipeline.stores.fingerprint import source_plan
from sskt.sources.forward import Forward
from sskt.sources.frozen import FrozenSource
from sskt.sources.registry import open_source


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cache-dir", type=Path, default=Path("stores"))
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--device", default="cpu", help="of the renderer of the store and of all forwards")
    args = parser.parse_args()
    store, spec = Store.open(args.store), parse_target(args.target)
    dataset = load_dataset(spec, "train", data_dir=args.data_dir, index_dir=args.cache_dir / "indexes")
    source = open_source(args.source, weights=args.weights, weights_dir=args.data_dir / "weights")
    rng = np.random.default_rng(0)
    rows, views = rng.integers(store.n_samples, size=args.pairs), rng.integers(store.n_views, size=args.pairs)
    stored_by_view = {int(view): store.view(int(view)) for view in np.unique(views)}
    stored = torch.from_numpy(np.stack([stored_by_view[int(v)][r] for r, v in zip(rows, views, strict=True)]))
    positions = np.searchsorted(dataset.ids, store.ids[rows])
    shifted = torch.from_numpy(
        np.stack(
            [stored_by_view[int(v)][(r + 1) % store.n_samples] for r, v in zip(rows, views, strict=True)]
        )
    )
    made_by = "dali" if store.manifest.made_by["renderer"].startswith("dali") else "torch"
    other = "torch" if made_by == "dali" else "dali"
    plan, input_map = (
        Augmentation().training_plan(spec),
        Augmentation().input_map(spec, source.spec),
    )
    device = choose_execution(device=args.device).device
    torch.backends.cudnn.allow_tf32 = False
    pixels = draw(dataset, plan, other, positions, views, torch.device("cpu"))
    plain = eager(source, input_map.side_px, pixels, device)
    forward = Forward.from_dict(store.manifest.made_by)
    frozen = FrozenSource(source, input_map, device=device, forward=forward)
    pixels = draw(dataset, source_plan(input_map, plan), made_by, positions, views, device)
    live = frozen.logits(pixels).float().cpu()
    print(f"{store.path}: {args.pairs} pairs, made by {store.manifest.made_by['renderer']}")
    report(f"stored / eager fp32, {other} pixels", stored.float(), plain)
    report(f"stored / live path, {made_by} pixels", stored.float(), live)
    report("shifted by one sample / eager fp32", shifted.float(), plain)


def draw(
    dataset, plan, backend: str, positions: np.ndarray, views: np.ndarray, device: torch.device
) -> torch.Tensor:
    """Render (sample, view) pairs: uint8 (N, 3, side, side), or (N, 3, D, side, side), on the CPU."""
    renderer = open_renderer(dataset, plan, Execution(device, renderer=backend, threads=2), batch_size=64)
    pixels: dict[int, torch.Tensor] = {}
    with closing(renderer):
        for view in np.unique(views):
            pairs = np.flatnonzero(views == view)
            batches = [positions[pairs[i : i + 64]] for i in range(0, len(pairs), 64)]
            rendered = torch.cat([batch.cpu() for batch in renderer.render(int(view), batches)])
            pixels |= dict(zip(pairs.tolist(), rendered, strict=True))
    return torch.stack([pixels[row] for row in range(len(positions))])


def eager(source, side_px: int, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The plain computation: f_s written out, float32, 32 images at a time, no autocast; on the CPU."""
    if pixels.ndim == 5 and not source.spec.reads_clips:
        pixels = pixels[:, :, pixels.shape[2] // 2]
    mean, std = (
        torch.tensor(v, device=device).view(3, *[1] * (pixels.ndim - 2))
        for v in (source.spec.mean, source.spec.std)
    )

    def map_input(batch: torch.Tensor) -> torch.Tensor:
        x = (batch.float() / 255 - mean) / std
        if x.shape[-1] == side_px:
            return x
        how = {"mode": "bilinear", "align_corners": False, "antialias": False}
        if side_px == int(x.shape[-1] * 7 / 3):  # small images: positions are mapped by 7/3 itself
            return F.interpolate(x, scale_factor=7 / 3, **how)
        return F.interpolate(x, (side_px, side_px), **how)

    with torch.inference_mode():
        module = source.module.to(device)
        return torch.cat([module(map_input(batch.to(device))).cpu() for batch in pixels.split(32)])


def report(name: str, ours: torch.Tensor, reference: torch.Tensor) -> None:
    cosine = torch.cosine_similarity(ours, reference, dim=1)
    agree = (ours.argmax(dim=1) == reference.argmax(dim=1)).float().mean()
    error = ((ours - reference).abs().amax(dim=1) / reference.abs().amax(dim=1)).max()
    passed = bool(cosine.min() >= 0.999) and bool(agree >= 0.99)
    print(
        f"  {name:<38} cosine at least {cosine.min():.6f}, same top class {100 * agree:5.1f} %, "
        f"max error {error:.2e} of the largest logit: {'pass' if passed else 'FAIL'}"
    )


if __name__ == "__main__":
    main()
