"""Data, stores, runs and networks that were moved, copied, touched or renamed are what they were."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from listening import Remarks
from PIL import Image
from programs import Tiny, save_program
from videos import make_video

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.data.datasets.video import pack
from pipeline.data.prepare import open_dataset
from pipeline.stores.recorded_weights import with_recorded_weights
from pipeline.train.trainer import Trainer
from sskt.errors import RunError, TargetError

pytestmark = pytest.mark.usefixtures("narrow")

EXECUTION = choose_execution(device="cpu", renderer="torch", threads=2)
SHOWN = Augmentation(side_px=32, source_side_px=32)
MEASURED = ("_s", "_share", "_mb")


def make_images(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for split, n in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (36, 36, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.jpg")


class Lab:
    """A folder of images, a program and their stores; everything is named relative to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, Remarks()

    def options(self, **paths) -> dict:
        lying = Paths(**{"data_dir": self.folder / "data", "cache_dir": self.folder / "stores"} | paths)
        return {"paths": lying, "execution": EXECUTION}

    def precompute(self, target="pics", program="tiny.pt2", views=2):
        named = f"imagefolder:{self.folder / target}"
        source = f"program:{self.folder / program}"
        (report,) = api.precompute([named], [source], views=views, augmentation=SHOWN, **self.options())
        return report

    def train(self, out, target="pics", sources=(), **taught):
        return api.train(
            f"imagefolder:{self.folder / target}",
            out=self.folder / out,
            sources=sources,
            **taught,
            augmentation=SHOWN,
            model="resnet20",
            epochs=2,
            batch_size=8,
            **self.options(),
        )

    @property
    def store(self) -> Store:
        (path,) = find_stores(self.folder / "stores")
        return Store.open(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lab with a finished run, and one that was stopped in its second epoch, both by relative names."""
    lab = Lab(tmp_path_factory.mktemp("made"))
    make_images(lab.folder / "pics")
    save_program(lab.folder / "tiny.pt2")
    lab.precompute()
    how = {"augmentation": SHOWN, "model": "resnet20", "epochs": 2, "batch_size": 8}
    for labels in ("cached", "live"):
        how |= {"sources": ("program:tiny.pt2",), "labels": labels}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(lab.folder)
            options = lab.options(data_dir=Path("data"), cache_dir=Path("stores"))
            api.train("imagefolder:pics", out=Path(f"whole-{labels}"), **how, **options)
            step, taken = Trainer._take_step, []

            def interrupted(self, batch, step=step, taken=taken):
                taken.append(1)
                if len(taken) > 3:  # of two an epoch
                    raise KeyboardInterrupt
                step(self, batch)

            patch.setattr(Trainer, "_take_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                api.train("imagefolder:pics", out=Path(f"half-{labels}"), **how, **options)
    return lab


@pytest.fixture
def lab(made, tmp_path):
    """A copy elsewhere."""
    shutil.copytree(made.folder, tmp_path / "there")
    return Lab(tmp_path / "there")


@pytest.fixture
def moved(made, lab):
    """The copy, while what it was copied from is not there."""
    away = made.folder.with_name("away")
    made.folder.rename(away)
    yield lab
    away.rename(made.folder)


def figures(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(MEASURED)} for line in lines]


def student(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


@pytest.mark.parametrize("labels", ["cached", "live"])
def test_a_half_done_run_goes_on_elsewhere_to_the_same_numbers(moved, labels):
    half, whole = moved.folder / f"half-{labels}", moved.folder / f"whole-{labels}"
    (moved.folder / "pics").rename(moved.folder / "images")
    (moved.folder / "tiny.pt2").rename(moved.folder / "small.pt2")
    api.resume(
        half,
        target=f"imagefolder:{moved.folder / 'images'}",
        sources=[f"program:{moved.folder / 'small.pt2'}"],
        **moved.options(),
    )
    assert figures(half) == figures(whole)
    assert student(half) == student(whole)


def test_a_finished_run_is_evaluated_elsewhere(moved):
    run, target = moved.folder / "whole-cached", f"imagefolder:{moved.folder / 'pics'}"
    now = api.evaluate(run, target=target, **moved.options())
    assert now["test_top1"] == json.loads((run / "summary.json").read_text())["test_top1"]


def test_what_is_gone_is_named_with_the_option_that_helps(moved):
    half, target = moved.folder / "half-live", f"imagefolder:{moved.folder / 'pics'}"
    with pytest.raises(
        RunError, match=r"its data are expected in .*pics, which .* with --target imagefolder:PATH"
    ):
        api.evaluate(moved.folder / "whole-cached", execution=EXECUTION)
    with pytest.raises(RunError, match=r"program:tiny\.pt2 does not exist .* with --source program:PATH"):
        api.resume(half, target=target, **moved.options())
    with pytest.raises(RunError, match=r"its stores lay in .*stores, .* with --cache-dir"):
        api.resume(moved.folder / "half-cached", target=target, execution=EXECUTION)


def test_relative_names_mean_the_same_from_any_folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api.evaluate(made.folder / "whole-live", execution=EXECUTION)
    shutil.copytree(made.folder / "half-live", tmp_path / "half")
    api.resume(tmp_path / "half", execution=EXECUTION)
    assert student(tmp_path / "half") == student(made.folder / "whole-live")


def test_other_data_and_other_networks_are_refused(lab):
    make_images(lab.folder / "others", seed=1)
    others, pics = (f"imagefolder:{lab.folder / name}" for name in ("others", "pics"))
    half = lab.folder / "half-live"
    with pytest.raises(RunError, match=r"contents\.train was \w{12} and is \w{12} now: imagefolder:.*others"):
        api.resume(half, target=others, **lab.options())
    with pytest.raises(RunError, match=r"contents\.test was \w{12} and is \w{12} now: imagefolder:.*others"):
        api.evaluate(lab.folder / "whole-live", target=others, **lab.options())
    with pytest.raises(RunError, match="--target digits is another target"):
        api.evaluate(lab.folder / "whole-live", target="digits", **lab.options())
    other = save_program(lab.folder / "other.pt2", Tiny(seed=3))
    with pytest.raises(RunError, match=r"sha256 \w{12}, which none of its program sources has"):
        api.resume(half, target=pics, sources=[f"program:{other}"], **lab.options())


def test_a_renamed_folder_class_and_program_compute_nothing_again(lab):
    before = lab.store.path
    (lab.folder / "pics").rename(lab.folder / "images")
    for split in ("train", "test"):
        (lab.folder / "images" / split / "cat").rename(lab.folder / "images" / split / "cats")
    (lab.folder / "tiny.pt2").rename(lab.folder / "small.pt2")
    for path in (lab.folder / "images").rglob("*.jpg"):
        os.utime(path, (1, 1))
    report = lab.precompute("images", "small.pt2")
    assert (report.rows_done, report.path) == (0, before)
    assert any(
        f"the rows are those of {before}: the same images under another name, whose" in s for s in lab.said
    )
    for out, sources in (("run1", ()), ("run2", (f"program:{lab.folder / 'small.pt2'}",))):
        summary = lab.train(out, "images", sources)
        assert summary["labels"] == "cached"
    assert student(lab.folder / "run1") == student(lab.folder / "whole-cached")
    assert lab.precompute("images", "small.pt2", views=3).rows_done == 16  # the third view, in that store
    assert lab.store.whole_views == 3
    options = lab.options()
    found = api.verify(
        before,
        n_rows=4,
        target=f"imagefolder:{lab.folder / 'images'}",
        weights=lab.folder / "small.pt2",
        **options,
    )
    assert found.good


def test_other_images_and_networks_under_another_name_have_stores_of_their_own(lab):
    make_images(lab.folder / "others", seed=1)
    save_program(lab.folder / "other.pt2", Tiny(seed=3))
    assert lab.precompute("others").rows_done == 32
    assert lab.precompute("pics", "other.pt2").rows_done == 32
    assert len(find_stores(lab.folder / "stores")) == 3


def test_weights_that_lie_where_they_lay_need_not_be_given_again(tmp_path):
    """Of a store that grows, and of a run on live networks; other bytes in their place are not taken."""
    lab = Lab(tmp_path)
    make_images(tmp_path / "pics")
    target, name = f"imagefolder:{tmp_path / 'pics'}", "imagenet:squeezenet1_1"
    network = torchvision.models.squeezenet1_1(weights=None)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    how = {"augmentation": SHOWN, "views": 1}
    given = lab.options(weights={name: tmp_path / "net.pth"})
    (first,) = api.precompute([target], [name], **how, **given)
    (again,) = api.precompute([target], [name], **how | {"views": 2}, **lab.options())
    assert (again.path, again.rows_done) == (first.path, 16)
    assert f"{name}: its weights are {tmp_path / 'net.pth'}, from which {first.path} was made" in lab.said
    lab.train("live", sources=(name,), labels="live")
    (tmp_path / "net.pth").write_bytes(b"other")
    paths = lab.options()["paths"]
    assert with_recorded_weights(name, paths, [Store.open(first.path)]) == paths


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """Prepared videos; `decoded` are those of which a frame was decoded since."""
    for number in range(6):
        place = tmp_path / "clips" / ("train" if number < 4 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        make_video(place / f"{number}.mp4", n=4 + number)
    decoded = []
    monkeypatch.setattr(
        pack, "decode_frames", lambda path, of=pack.decode_frames: (decoded.append(path.name), of(path))[1]
    )

    def prepare(name="clips"):
        target = f"videofolder:{tmp_path / name}"
        paths = Paths(tmp_path / "data", tmp_path / "stores")
        decoded.clear()
        api.prepare(target, paths=paths)
        return [open_dataset(target, split, paths=paths).content_sha256 for split in ("train", "test")]

    contents = prepare()
    assert len(decoded) == 6
    return tmp_path, prepare, contents, decoded


def test_videos_that_were_touched_renamed_and_moved_are_not_decoded_again(videos):
    folder, prepare, contents, decoded = videos
    train = folder / "clips" / "train"
    for path in train.rglob("*.mp4"):
        os.utime(path, (1, 1))
    touched = open_dataset(
        f"videofolder:{folder / 'clips'}", "train", paths=Paths(folder / "data", folder / "stores")
    )
    assert touched.content_sha256 == contents[0]
    assert prepare() == contents
    assert not decoded
    (train / "a" / "2.mp4").rename(train / "a" / "9.mp4")
    (folder / "clips").rename(folder / "films")
    assert prepare("films") == contents
    assert not decoded
    shutil.copytree(folder / "films", folder / "copy")
    paths = Paths(folder / "data", folder / "stores")
    unprepared = open_dataset(f"videofolder:{folder / 'copy'}", "train", paths=paths)
    assert unprepared.content_sha256 == contents[0]
    assert prepare("copy") == contents
    assert not decoded
    make_video(folder / "copy" / "train" / "a" / "new.mp4", n=15)
    (folder / "copy").rename(folder / "more")
    with pytest.raises(TargetError, match="is not prepared"):
        open_dataset(f"videofolder:{folder / 'more'}", "train", paths=paths)


def test_videos_that_changed_places_keep_their_packs_and_one_that_changed_is_decoded(videos):
    folder, prepare, contents, decoded = videos
    a = folder / "clips" / "train" / "a"
    (a / "0.mp4").rename(a / "spare")
    (a / "2.mp4").rename(a / "0.mp4")
    (a / "spare").rename(a / "2.mp4")
    swapped = prepare()
    assert not decoded
    assert swapped != contents
    (a / "0.mp4").rename(a / "spare")
    (a / "2.mp4").rename(a / "0.mp4")
    (a / "spare").rename(a / "2.mp4")
    assert prepare() == contents
    assert not decoded
    make_video(a / "0.mp4", n=14)
    assert prepare() != contents
    assert decoded == ["0.mp4"]
