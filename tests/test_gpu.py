"""What must hold on a CUDA device too: the same pixels, the same rows, no round trip to the host."""

from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import shared
from programs import save_program

from cache.store import Store, find_stores
from pipeline.api import Supervision, run_precompute, run_train
from pipeline.choices import Augmentation, Places, choose_execution
from pipeline.plan import PadCropFlip, RandomResizedCropFlip
from pipeline.render import in_batches, open_renderer
from pipeline.targets import load_index, parse_target

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def draw(index, plan, backend: str, device: str) -> torch.Tensor:
    renderer = open_renderer(
        index, plan, backend=backend, device=torch.device(device), batch_size=16, threads=2
    )
    with closing(renderer):
        batches = list(renderer.render(1, in_batches(np.arange(len(index)), 16)))
    assert all(batch.device.type == device for batch in batches)
    return torch.cat(batches).cpu()


def test_small_pictures_are_the_same_bytes(cifar10_dir, tmp_path):
    index = load_index(parse_target("cifar10"), "train", data_dir=cifar10_dir, index_dir=tmp_path, limit=200)
    plan = PadCropFlip(32, seed=2)
    assert torch.equal(draw(index, plan, "dali", "cuda"), draw(index, plan, "torch", "cpu"))


def test_jpegs_differ_by_at_most_a_grey_level_on_average(tmp_path):
    data = shared("data/imagenet").parent
    index = load_index(parse_target("imagenet"), "test", data_dir=data, index_dir=tmp_path)
    index = index.take(np.arange(0, 1000, 25))
    plan = RandomResizedCropFlip(112, seed=4)
    gap = draw(index, plan, "dali", "cuda").int() - draw(index, plan, "torch", "cpu").int()
    assert gap.abs().float().mean(dim=(1, 2, 3)).max() <= 1.0


def test_pictures_that_are_kept_decoded_give_the_same_bytes(tmp_path):
    data = shared("data/imagenet").parent
    index = load_index(parse_target("imagenet"), "test", data_dir=data, index_dir=tmp_path)
    index = index.take(np.arange(0, 1000, 50))
    plan = RandomResizedCropFlip(112, seed=4)
    renderer = open_renderer(
        index, plan, backend="dali", device=torch.device("cuda"), batch_size=8, threads=2
    )
    batches = in_batches(np.arange(len(index)), 8)
    with closing(renderer):
        alone = [torch.cat(list(renderer.render(view, batches))) for view in (0, 1)]
        with renderer.keeping():
            kept = [torch.cat(list(renderer.render(view, batches))) for view in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(alone, kept, strict=True))


def test_both_stages_run_and_rows_agree_with_the_cpu(tmp_path):
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    rows = {}
    for device in ("cpu", "cuda"):
        places = Places(tmp_path / "data", tmp_path / device)
        execution = choose_execution(device=device, amp="fp32", renderer="auto", threads=2)
        shown = {"augmentation": Augmentation(), "places": places, "execution": execution, "limit": 100}
        run_precompute(["digits"], [source], views=1, say=print, **shown)
        rows[device] = Store.open(find_stores(places.cache_dir)[0]).view(0).astype(np.float32)
        summary = run_train(
            "digits",
            supervision=Supervision(sources=(source,)),
            overrides={"epochs": 2},
            out=tmp_path / f"run-{device}",
            say=print,
            **shown,
        )
        assert summary["labels"] == "cached"
    np.testing.assert_allclose(rows["cuda"], rows["cpu"], rtol=2e-2, atol=2e-2)
