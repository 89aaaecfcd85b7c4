"""Both renderers draw what the plan says: real JPEGs against torchvision, and each other, in any order."""

import gc
import hashlib
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shared
from PIL import Image
from processes import run_python
from torchvision.transforms.v2 import functional as tvf

from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.plan import Centre, PadCropFlip, RandomResizedCropFlip
from pipeline.data.render import in_batches, open_renderer
from pipeline.data.render.resident import gather_windows
from pipeline.runtime.execution import Execution
from sskt.errors import RunError, TargetError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory):
    """What is learnt once of the real pictures here."""
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def photos(index_dir):
    """40 of the real ImageNet pictures, colour JPEGs of many sizes."""
    data = shared("data/imagenet").parent
    dataset = load_dataset(parse_target("imagenet"), "test", data_dir=data, index_dir=index_dir)
    return dataset.take(np.arange(0, 1000, 25))


@pytest.fixture(scope="module")
def small(cifar10_dir, index_dir):
    """300 of the real CIFAR-10 pictures."""
    return load_dataset(
        parse_target("cifar10"), "train", data_dir=cifar10_dir, index_dir=index_dir, limit=300
    )


def draw(dataset, plan, backend, *, view=3, batches=None, batch_size=16, threads=2) -> torch.Tensor:
    batches = in_batches(np.arange(len(dataset)), batch_size) if batches is None else batches
    renderer = open_renderer(
        dataset, plan, Execution(CPU, renderer=backend, threads=threads), batch_size=batch_size
    )
    with closing(renderer):
        return torch.cat(list(renderer.render(view, batches)))


def plain(dataset, plan, view: int) -> torch.Tensor:
    """Pillow and torchvision's own resized crop, picture by picture."""
    rows = plan.rows(view, dataset.ids, dataset.sizes)
    images = []
    for i, ((top, left, height, width), flip) in enumerate(
        zip(rows.windows.tolist(), rows.flips, strict=True)
    ):
        image = tvf.pil_to_tensor(Image.open(dataset.name_of(i)).convert("RGB"))
        side = [plan.side_px, plan.side_px]
        image = tvf.resized_crop(image, top, left, height, width, side, antialias=True)
        images.append(tvf.horizontal_flip(image) if flip else image)
    return torch.stack(images)


@pytest.mark.parametrize(
    "plan", [RandomResizedCropFlip(112, seed=4), Centre(112, 128)], ids=["random", "centre"]
)
def test_jpegs_come_out_as_torchvision_has_them(photos, plan):
    reference = plain(photos, plan, view=3)
    assert torch.equal(draw(photos, plan, "torch"), reference)
    gap = (draw(photos, plan, "dali").int() - reference.int()).abs().float()
    assert gap.mean(dim=(1, 2, 3)).max() <= 1.0
    assert (gap > 3).float().mean() < 1e-3  # chroma at the window's edge: DALI decodes only the window


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_picture_does_not_depend_on_order_batch_or_threads(photos, backend):
    plan = RandomResizedCropFlip(64, seed=1)
    whole = draw(photos, plan, backend)
    order = np.random.default_rng(0).permutation(len(photos))
    for batch_size, threads in ((1, 1), (7, 4), (40, 2)):
        shuffled = draw(
            photos,
            plan,
            backend,
            batches=in_batches(order, batch_size),
            batch_size=batch_size,
            threads=threads,
        )
        assert torch.equal(shuffled, whole[order])


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_another_process_draws_the_same_bytes(photos, backend, index_dir):
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import hashlib
from pathlib import Path
import numpy as np
from pipeline.data.plan import RandomResizedCropFlip
from pipeline.data.datasets import load_dataset, parse_target
from test_pipeline_render import draw
data, index_dir = Path({str(shared("data/imagenet").parent)!r}), Path({str(index_dir)!r})
index = load_dataset(parse_target("imagenet"), "test", data_dir=data, index_dir=index_dir)
pixels = draw(index.take(np.arange(0, 1000, 25)), RandomResizedCropFlip(64, seed=1), {backend!r}, threads=1)
print(hashlib.sha256(pixels.numpy().tobytes()).hexdigest())
"""
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    here = draw(photos, RandomResizedCropFlip(64, seed=1), backend).numpy().tobytes()
    assert done.stdout.split()[-1] == hashlib.sha256(here).hexdigest()


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_leaving_a_view_early_does_not_disturb_the_next(photos, backend):
    plan = RandomResizedCropFlip(64, seed=1)
    batches = in_batches(np.arange(len(photos)), 4)
    renderer = open_renderer(photos, plan, Execution(CPU, renderer=backend, threads=2), batch_size=4)
    with closing(renderer):
        with closing(renderer.render(0, batches)) as drawn:
            next(drawn)
        again = torch.cat(list(renderer.render(1, batches)))
    assert torch.equal(again, draw(photos, plan, backend, view=1))


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_file_that_vanishes_while_it_is_needed_is_named(photos, backend, tmp_path):
    import shutil

    folder = tmp_path / "pictures"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            shutil.copyfile(photos.name_of(i), folder / name / f"{i}.jpg")
    dataset = load_dataset(
        parse_target(f"imagefolder:{folder}"), "train", data_dir=tmp_path, index_dir=tmp_path / "index"
    )
    gone = dataset.name_of(3)
    (folder / gone).unlink()
    with pytest.raises(TargetError, match="cannot be read since it was indexed"):
        draw(dataset, RandomResizedCropFlip(64), backend)


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_file_that_is_damaged_while_it_is_needed_is_named_and_others_are_drawn(backend, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 50, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    dataset = load_dataset(
        parse_target(f"imagefolder:{path.parents[1]}"), "train", data_dir=tmp_path, index_dir=tmp_path / "i"
    )
    plan, batches = RandomResizedCropFlip(16), in_batches(np.arange(len(dataset)), 2)
    whole = draw(dataset, plan, backend, batches=batches)
    damaged = Path(dataset.name_of(5))
    damaged.write_bytes(damaged.read_bytes()[:300])
    renderer = open_renderer(dataset, plan, Execution(CPU, renderer=backend, threads=2), batch_size=2)
    with closing(renderer):
        with pytest.raises(TargetError, match=f"{damaged}: is damaged since it was indexed"):
            list(renderer.render(3, batches))
        again = torch.cat(list(renderer.render(3, batches[:2])))
    assert torch.equal(again, whole[:4])


def test_small_pictures_are_resized_alike_by_both(tmp_path):
    dataset = load_dataset(parse_target("digits"), "train", data_dir=tmp_path, index_dir=tmp_path, limit=50)
    plan = PadCropFlip(16, pad=1, flip=0.0)
    ours, theirs = draw(dataset, plan, "torch"), draw(dataset, plan, "dali")
    assert ours.shape == (50, 3, 16, 16)
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_an_unknown_renderer_is_refused(photos):
    with pytest.raises(RunError, match="renderer is 'opencv', expected one of auto, dali, dali-cpu, torch"):
        open_renderer(photos, Centre(32, 32), Execution(CPU, renderer="opencv", threads=1), batch_size=1)


@pytest.mark.parametrize("backend", ["dali", "torch"])
@pytest.mark.parametrize(
    "plan", [RandomResizedCropFlip(96, seed=4), Centre(96, 112)], ids=["random", "centre"]
)
def test_kept_pictures_give_the_same_bytes_and_no_file_is_read_twice(photos, plan, backend, monkeypatch):
    batches = in_batches(np.arange(len(photos)), 16)
    plain = [draw(photos, plan, backend, view=view) for view in range(3)]
    reads, read = [], type(photos.access)._read
    monkeypatch.setattr(type(photos.access), "_read", lambda self, row: reads.append(row) or read(self, row))
    renderer = open_renderer(photos, plan, Execution(CPU, renderer=backend, threads=2), batch_size=16)
    with closing(renderer), renderer.cache_decoded():
        for view in range(3):
            assert torch.equal(torch.cat(list(renderer.render(view, batches))), plain[view])
    assert sorted(reads) == list(range(len(photos)))


@pytest.mark.parametrize("plan", [PadCropFlip(32, seed=5), PadCropFlip(32, pad=0), Centre(32, 32)])
def test_small_pictures_are_the_same_bytes_by_all_three(small, plan):
    dataset = small
    by_hand = []  # the window of a picture with a black border, mirrored
    rows = plan.rows(3, dataset.ids, dataset.sizes)
    for i, ((top, left, _, _), flip) in enumerate(zip(rows.windows.tolist(), rows.flips, strict=True)):
        framed = np.pad(dataset.pixels_of(i), ((32, 32), (32, 32), (0, 0)))
        window = framed[32 + top : 64 + top, 32 + left : 64 + left]
        by_hand.append((window[:, ::-1] if flip else window).transpose(2, 0, 1))
    expected = torch.from_numpy(np.stack(by_hand))
    order = np.random.default_rng(1).permutation(len(dataset))
    for backend in ("dali", "torch", "resident"):
        assert torch.equal(draw(dataset, plan, backend), expected)
        shuffled = draw(dataset, plan, backend, batches=in_batches(order, 7), batch_size=7)
        assert torch.equal(shuffled, expected[order])
    border = getattr(plan, "pad", 0)  # and what the resident renderer does on a GPU
    corners, flips = torch.from_numpy(rows.windows[:, :2].astype(np.int64)) + border, rows.flips
    images = torch.from_numpy(dataset.images(np.arange(len(dataset))))
    assert torch.equal(gather_windows(images, corners, torch.from_numpy(flips), border), expected)


def test_the_resident_renderer_is_taken_for_small_pictures_and_refuses_others(photos, small):
    dataset = small.take(np.arange(30))
    for plan, expected in ((PadCropFlip(32), "resident-cpu"), (PadCropFlip(48), "dali-cpu")):
        renderer = open_renderer(dataset, plan, Execution(CPU, renderer="auto", threads=1), batch_size=4)
        with closing(renderer):
            assert renderer.name == expected
    with pytest.raises(RunError, match="--renderer resident draws pictures that lie in memory"):
        draw(photos, Centre(64, 64), "resident")


def test_a_closed_renderer_leaves_its_graph_without_a_garbage_collection(photos):
    plan = RandomResizedCropFlip(64, seed=1)
    renderer = open_renderer(photos, plan, Execution(CPU, renderer="dali", threads=2), batch_size=4)
    for _ in renderer.render(0, in_batches(np.arange(4), 4)):
        pass
    (graph,) = map(weakref.ref, renderer._pipes.values())
    gc.disable()
    try:
        renderer.close()
        assert graph() is None
    finally:
        gc.enable()
