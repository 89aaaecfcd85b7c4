"""Stored rows belong to the pixels that a student sees: real CIFAR-10 and sources, plain re-computations."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import shared
from safetensors.torch import load_file
from torch.nn import functional as F

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import open_dataset
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import parse_target
from pipeline.data.render import in_batches, open_renderer
from pipeline.runtime.execution import Execution, choose_execution
from pipeline.runtime.paths import Paths
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.live import LiveOutputs
from pipeline.source_outputs.placement import Placement
from sskt.sources.frozen import FrozenSource
from sskt.sources.registry import open_source

N, VIEWS = 128, 2
HERE = Placement("device", torch.device("cpu"))
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
PROGRAM = "program:places365_squeezenet.pt2"


class Made:
    """CIFAR-10's stores of both sources, for 128 samples and two views: 256 (sample, view) pairs a source."""

    def __init__(self, data_dir: Path, cache_dir: Path) -> None:
        self.program = shared("weights/places365_squeezenet.pt2")
        self.weights = shared("weights/imagenet_resnet50.safetensors")
        self.paths = Paths(data_dir, cache_dir, {"imagenet": self.weights})
        self.names = {"imagenet": "imagenet", PROGRAM: f"program:{self.program}"}
        self.execution = choose_execution(device="cpu", amp="auto", renderer="dali", threads=2)
        self.reports = api.precompute(
            ["cifar10"],
            list(self.names.values()),
            views=VIEWS,
            augmentation=Augmentation(),
            paths=self.paths,
            execution=self.execution,
            limit=N,
        )
        self.dataset = open_dataset("cifar10", "train", paths=self.paths, limit=N)
        stores = [Store.open(path) for path in find_stores(cache_dir)]
        self.stores = {store.manifest.identity["source"]["name"]: store for store in stores}

    def draw(self, backend: str, view: int, batches: list[np.ndarray], threads: int = 2) -> torch.Tensor:
        plan = Augmentation().training_plan(parse_target("cifar10"))
        largest = max(len(batch) for batch in batches)
        renderer = open_renderer(
            self.dataset,
            plan,
            Execution(torch.device("cpu"), renderer=backend, threads=threads),
            batch_size=largest,
        )
        with closing(renderer):
            return torch.cat(list(renderer.render(view, batches)))

    def plain_network(self, name: str) -> torch.nn.Module:
        """The source, built without any of our code."""
        if name == PROGRAM:
            return torch.export.load(self.program).module()
        network = torchvision.models.resnet50(weights=None)
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(self.weights).items()}
        network.load_state_dict(state)
        return network.eval()


@pytest.fixture(scope="module")
def made(cifar10_dir, tmp_path_factory):
    return Made(cifar10_dir, tmp_path_factory.mktemp("stores"))


def plain_logits(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Eager float32 on pixels upsampled by 7/3 after augmentation (docs/method.md, section 2.4)."""
    x = (pixels.float() / 255 - MEAN) / STD
    # as the released nn.Upsample(scale_factor=7/3): positions are mapped by 7/3, and not by 74/32
    x = F.interpolate(x, scale_factor=7 / 3, mode="bilinear", align_corners=False, antialias=False)
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in x.split(50)])


def agreement(rows: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Smallest cosine of any row, and the share of rows with the same top class."""
    cosine = F.cosine_similarity(rows.float(), reference, dim=1).min().item()
    return cosine, (rows.argmax(dim=1) == reference.argmax(dim=1)).float().mean().item()


@pytest.mark.parametrize("name", ["imagenet", PROGRAM])
def test_256_stored_rows_are_those_of_a_plain_forward_on_the_other_renderers_pixels(made, name):
    network, store = made.plain_network(name), made.stores[name]
    batches = in_batches(np.arange(N), 64)
    reference = torch.cat([plain_logits(network, made.draw("torch", v, batches)) for v in range(VIEWS)])
    stored = torch.cat([torch.from_numpy(store.view(v)) for v in range(VIEWS)])
    cosine, same = agreement(stored, reference)
    print(f"{name}: cosine at least {cosine:.6f}, same top class {100 * same:.1f} %")
    assert cosine >= 0.999
    assert same >= 0.99
    shifted_cosine, shifted_same = agreement(stored.roll(1, dims=0), reference)
    assert shifted_cosine < 0.999
    assert shifted_same < 0.5


@pytest.mark.parametrize("name", ["imagenet", PROGRAM])
def test_live_logits_equal_stored_ones_for_any_batch_and_order(made, name):
    source = open_source(made.names[name], weights=made.paths.weights.get(name), weights_dir=Path("none"))
    input_map = Augmentation().input_map(parse_target("cifar10"), source.spec)
    frozen = FrozenSource(source, input_map, device=torch.device("cpu"))
    live = LiveOutputs({name: frozen}, views=VIEWS)
    cached = CachedOutputs(
        {name: made.stores[name]}, made.dataset, views=VIEWS, placement=HERE, temperature=3.0
    )
    order = np.random.default_rng(3).permutation(N)[:128]
    for epoch, batch_size in enumerate((7, 64, 128)):
        view = epoch % VIEWS
        cached.load(view, np.arange(N))
        for positions in in_batches(order[:21] if batch_size == 7 else order, batch_size):
            pixels = made.draw("dali", view, [positions])
            ours, theirs = cached.logits(positions, pixels)[name], live.logits(positions, pixels)[name]
            assert ours.dtype == theirs.dtype == torch.float16
            assert torch.equal(ours, theirs)


def test_both_renderers_give_the_pixels_of_a_plain_numpy_crop(made):
    plan = Augmentation().training_plan(parse_target("cifar10"))
    rows = plan.rows(1, made.dataset.ids, made.dataset.sizes)
    padded = np.pad(made.dataset.images(np.arange(N)), ((0, 0), (4, 4), (4, 4), (0, 0)))
    plain = np.empty((N, 3, 32, 32), dtype=np.uint8)
    for i, ((top, left, _, _), flip) in enumerate(zip(rows.windows, rows.flips, strict=True)):
        image = padded[i, top + 4 : top + 36, left + 4 : left + 36]
        plain[i] = (image[:, ::-1] if flip else image).transpose(2, 0, 1)
    for backend in ("dali", "torch"):
        for batch_size, threads in ((7, 1), (64, 4), (128, 2)):
            drawn = made.draw(backend, 1, in_batches(np.arange(N), batch_size), threads)
            assert np.array_equal(drawn.numpy(), plain), (backend, batch_size)
    order = np.random.default_rng(0).permutation(N)
    assert np.array_equal(made.draw("dali", 1, in_batches(order, 50)).numpy(), plain[order])


def test_nothing_is_computed_twice_and_more_views_extend_the_store(made):
    def again(views: int):
        return api.precompute(
            ["cifar10"],
            [made.names[PROGRAM]],
            views=views,
            augmentation=Augmentation(),
            paths=Paths(made.paths.data_dir, made.paths.cache_dir),
            execution=made.execution,
            limit=N,
        )[0]

    before = [made.stores[PROGRAM].view(view) for view in range(VIEWS)]
    assert again(VIEWS).rows_done == 0
    assert again(VIEWS + 1).rows_done == N
    store = Store.open(made.stores[PROGRAM].path)
    assert store.n_views == VIEWS + 1
    assert store.complete
    assert all(np.array_equal(store.view(view), rows) for view, rows in enumerate(before))
    assert not np.array_equal(store.view(VIEWS), before[0])


def test_a_subset_is_served_by_the_full_store_with_its_own_rows(made):
    subset = made.dataset.limit(64)
    labels = CachedOutputs(
        {PROGRAM: made.stores[PROGRAM]}, subset, views=VIEWS, placement=HERE, temperature=3.0
    )
    labels.load(1, np.arange(64))
    positions = np.array([5, 0, 63])
    rows = np.flatnonzero(np.isin(made.dataset.ids, subset.ids[positions]))
    expected = {int(made.dataset.ids[row]): made.stores[PROGRAM].view(1)[row] for row in rows}
    found = labels.logits(positions, torch.empty(0))[PROGRAM].numpy()
    for position, row in zip(positions, found, strict=True):
        assert np.array_equal(row, expected[int(subset.ids[position])])
