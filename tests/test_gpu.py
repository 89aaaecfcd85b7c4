"""What must hold on a CUDA device too: the same pixels, the same rows, no round trip to the host."""

from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import shared
from programs import Tiny, save_program
from torch.torch_version import TorchVersion
from videos import make_folder

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import open_dataset
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.plan import CornerClip, PadCropFlip, RandomResizedCropFlip
from pipeline.data.render import in_batches, open_renderer
from pipeline.runtime.execution import Execution, choose_execution
from pipeline.runtime.paths import Paths
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.placement import Placement
from pipeline.train.run_folder import read_metrics
from pipeline.train.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def draw(dataset, plan, backend: str, device: str) -> torch.Tensor:
    renderer = open_renderer(
        dataset, plan, Execution(torch.device(device), renderer=backend, threads=2), batch_size=16
    )
    with closing(renderer):
        batches = list(renderer.render(1, in_batches(np.arange(len(dataset)), 16)))
    assert all(batch.device.type == device for batch in batches)
    return torch.cat(batches).cpu()


def test_small_pictures_are_the_same_bytes(cifar10_dir, tmp_path):
    dataset = load_dataset(
        parse_target("cifar10"), "train", data_dir=cifar10_dir, index_dir=tmp_path, limit=200
    )
    plan = PadCropFlip(32, seed=2)
    assert torch.equal(draw(dataset, plan, "dali", "cuda"), draw(dataset, plan, "torch", "cpu"))


@pytest.mark.parametrize("backend", ["dali", "resident"])
def test_small_pictures_are_changed_as_on_a_cpu(cifar10_dir, tmp_path, backend):
    dataset = load_dataset(
        parse_target("cifar10"), "train", data_dir=cifar10_dir, index_dir=tmp_path, limit=200
    )
    shown = Augmentation(seed=2, augment="randaugment", color_jitter=0.4, random_erasing=0.5)
    plan = shown.training_plan(parse_target("cifar10"))
    first, again = draw(dataset, plan, backend, "cuda"), draw(dataset, plan, backend, "cuda")
    gap = (first.int() - draw(dataset, plan, "torch", "cpu").int()).abs()
    assert torch.equal(first, again)
    assert gap.float().mean(dim=(1, 2, 3)).max() <= 1.0


def test_changed_jpegs_differ_by_at_most_a_grey_level_on_average(tmp_path):
    data = shared("data/imagenet").parent
    dataset = load_dataset(parse_target("imagenet"), "test", data_dir=data, index_dir=tmp_path)
    dataset = dataset.take(np.arange(0, 1000, 25))
    plan = Augmentation(seed=4, side_px=112, augment="randaugment").training_plan(parse_target("imagenet"))
    gap = draw(dataset, plan, "dali", "cuda").int() - draw(dataset, plan, "torch", "cpu").int()
    assert gap.abs().float().mean() <= 1.0


def test_jpegs_differ_by_at_most_a_grey_level_on_average(tmp_path):
    data = shared("data/imagenet").parent
    dataset = load_dataset(parse_target("imagenet"), "test", data_dir=data, index_dir=tmp_path)
    dataset = dataset.take(np.arange(0, 1000, 25))
    plan = RandomResizedCropFlip(112, seed=4)
    gap = draw(dataset, plan, "dali", "cuda").int() - draw(dataset, plan, "torch", "cpu").int()
    assert gap.abs().float().mean(dim=(1, 2, 3)).max() <= 1.0


def test_jpegs_decoded_on_the_host_are_those_of_a_cpu(tmp_path):
    data = shared("data/imagenet").parent
    dataset = load_dataset(parse_target("imagenet"), "test", data_dir=data, index_dir=tmp_path)
    dataset, plan = dataset.take(np.arange(0, 1000, 50)), RandomResizedCropFlip(112, seed=4)
    execution = Execution(torch.device("cuda"), renderer="dali-cpu", threads=2)
    with closing(open_renderer(dataset, plan, execution, batch_size=8)) as renderer:
        drawn = torch.cat(list(renderer.render(1, in_batches(np.arange(len(dataset)), 8))))
    assert drawn.device.type == "cpu"
    assert torch.equal(drawn, draw(dataset, plan, "dali", "cpu"))


def test_resident_pictures_are_the_same_bytes(cifar10_dir, tmp_path):
    dataset = load_dataset(
        parse_target("cifar10"), "train", data_dir=cifar10_dir, index_dir=tmp_path, limit=200
    )
    plan = PadCropFlip(32, seed=2)
    assert torch.equal(draw(dataset, plan, "resident", "cuda"), draw(dataset, plan, "torch", "cpu"))


def test_within_cache_decoded_pictures_are_the_same_bytes(tmp_path):
    data = shared("data/imagenet").parent
    dataset = load_dataset(parse_target("imagenet"), "test", data_dir=data, index_dir=tmp_path)
    dataset = dataset.take(np.arange(0, 1000, 50))
    plan = RandomResizedCropFlip(112, seed=4)
    renderer = open_renderer(
        dataset, plan, Execution(torch.device("cuda"), renderer="dali", threads=2), batch_size=8
    )
    batches = in_batches(np.arange(len(dataset)), 8)
    with closing(renderer):
        alone = [torch.cat(list(renderer.render(view, batches))).cpu() for view in (0, 1)]
        with renderer.cache_decoded():
            kept = [torch.cat(list(renderer.render(view, batches))).cpu() for view in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(alone, kept, strict=True))


def test_clips_differ_by_at_most_a_grey_level_on_average(tmp_path):
    root = make_folder(tmp_path / "videos")
    paths, target = Paths(tmp_path, tmp_path / "stores"), f"videofolder:{root}"
    api.prepare(target, paths=paths)
    dataset, plan = open_dataset(target, "train", paths=paths), CornerClip(24, n_frames=6)
    on_gpu = draw(dataset, plan, "dali", "cuda")
    assert on_gpu.shape == (len(dataset), 3, 6, 24, 24)
    assert (on_gpu.int() - draw(dataset, plan, "torch", "cpu").int()).abs().float().mean() <= 1.0
    summary = api.train(
        target,
        method="scratch",
        augmentation=Augmentation(side_px=32, n_frames=4),
        model="resnet3d10",
        # before 2.15 torch has no deterministic gradient of this network's pooling on CUDA
        deterministic=TorchVersion(torch.__version__) >= (2, 15),
        epochs=1,
        batch_size=4,
        paths=paths,
        execution=choose_execution(device="cuda"),
        out=tmp_path / "run",
    )
    assert np.isfinite(summary["test_top1"])


def test_both_stages_run_and_rows_agree_with_the_cpu(tmp_path):
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    rows = {}
    for device in ("cpu", "cuda"):
        paths = Paths(tmp_path / "data", tmp_path / device)
        execution = choose_execution(device=device, amp="fp32", renderer="auto", threads=2)
        shown = {"augmentation": Augmentation(), "paths": paths, "execution": execution, "limit": 100}
        api.precompute(["digits"], [source], views=1, **shown)
        rows[device] = Store.open(find_stores(paths.cache_dir)[0]).view(0).astype(np.float32)
        summary = api.train("digits", sources=(source,), epochs=2, out=tmp_path / f"run-{device}", **shown)
        assert summary["labels"] == "cached"
    np.testing.assert_allclose(rows["cuda"], rows["cpu"], rtol=2e-2, atol=2e-2)


def test_a_step_as_a_cuda_graph_learns_what_an_eager_one_does(tmp_path):
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    api.precompute(["digits"], [source], views=2, paths=paths, limit=99)
    arguments = {"paths": paths, "limit": 99, "sources": (source,), "amp": "fp32", "lr": 0.02, "epochs": 3}
    arguments |= {"execution": choose_execution(device="cuda"), "batch_size": 20}  # batches of 20 and of 19
    api.train("digits", out=tmp_path / "eager", **arguments)
    api.train("digits", out=tmp_path / "graph", compiled=True, **arguments)
    eager, graph = (read_metrics(tmp_path / name) for name in ("eager", "graph"))
    for ours, theirs in zip(graph, eager, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-2)
        assert ours["primary_loss"] == pytest.approx(theirs["primary_loss"], rel=1e-2)


@pytest.mark.parametrize("labels", ["live", "write-through"])
def test_steps_ask_live_sources_and_wait_for_none(tmp_path, labels):
    sources = tuple(f"program:{save_program(tmp_path / f'{i}.pt2', Tiny(seed=i))}" for i in range(2))
    paths = Paths(tmp_path / "data", tmp_path / labels)
    arguments = {"paths": paths, "limit": 100, "sources": sources, "amp": "fp32", "epochs": 2, "views": 2}
    arguments |= {"execution": choose_execution(device="cuda", amp="fp32"), "batch_size": 20}
    api.train("digits", out=tmp_path / "run", labels=labels, **arguments)
    stores = [Store.open(path) for path in find_stores(paths.cache_dir)] if labels == "write-through" else []
    assert len(stores) == (2 if labels == "write-through" else 0)
    for store in stores:
        assert not store.pending(2)
        assert store.manifest.made_by["rows"] == 20  # a step's


@pytest.mark.parametrize("kind", ["device", "pinned", "map"])
def test_rows_are_the_same_wherever_they_lie(tmp_path, kind):
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    api.precompute(["digits"], [source], views=2, paths=paths, limit=100)
    store = Store.open(find_stores(paths.cache_dir)[0])
    dataset = open_dataset("digits", "train", paths=paths, limit=100)
    placement = Placement(kind, torch.device("cuda"))
    labels = CachedOutputs({"a": store}, dataset, views=2, placement=placement, temperature=3.0)
    asked = np.random.default_rng(0).permutation(100)[:30]
    for view in (0, 1):
        labels.load(view, np.arange(100))
        found = labels.logits(asked, torch.empty(0))["a"]
        assert found.device.type == "cuda"
        assert np.array_equal(found.cpu().numpy(), store.view(view)[asked])


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
def test_a_deterministic_run_goes_on_to_the_same_numbers(tmp_path, amp, monkeypatch):
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    api.precompute(["digits"], [source], views=2, paths=paths, limit=100)
    arguments = {
        "paths": paths,
        "execution": choose_execution(device="cuda"),
        "limit": 100,
        "sources": (source,),
        "amp": amp,
        "deterministic": True,
        "mixup": 0.2,
        "clip_norm": 5.0,
        "epochs": 3,
        "batch_size": 20,
    }
    api.train("digits", out=tmp_path / "whole", **arguments)
    monkeypatch.setattr("pipeline.train.loop._SAVE_EVERY_S", 0.0)
    step, taken = Trainer._take_step, []

    def interrupted(self, batch):
        taken.append(1)
        if len(taken) > 7:
            raise KeyboardInterrupt
        step(self, batch)

    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "_take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.train("digits", out=tmp_path / "run", **arguments)
    api.resume(tmp_path / "run", execution=arguments["execution"])
    whole, again = (read_metrics(tmp_path / name) for name in ("whole", "run"))
    for ours, theirs in zip(whole, again, strict=True):
        assert [ours[n] for n in ("train_loss", "test_loss")] == [
            theirs[n] for n in ("train_loss", "test_loss")
        ]
    assert whole[0]["peak_cuda_mb"] > 0
