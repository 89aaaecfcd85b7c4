"""Training is refused as soon as one thing that a store depends on is not what the store was made from."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import shared
from listening import Remarks
from PIL import Image
from programs import Tiny, save_program

from cache.errors import StoreIncomplete, StoreMismatch
from cache.store import Store, find_stores
from cli import main
from pipeline import api
from pipeline.api import open_dataset
from pipeline.data.augmentation import Augmentation
from pipeline.runtime.execution import choose_execution
from pipeline.runtime.paths import Paths
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")

SIZES = Augmentation(side_px=32, source_side_px=32)


class Project:
    """A copy of a few real scene pictures, a tiny source, and its store of two views."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scenes = shared("data/scene15")
        for split, n in (("train", 4), ("val", 2)):
            for name in ("Coast", "Kitchen", "Store"):
                (folder / "scenes" / split / name).mkdir(parents=True)
                for image in sorted((scenes / split / name).iterdir())[:n]:
                    shutil.copyfile(image, folder / "scenes" / split / name / image.name)
        self.target = f"imagefolder:{folder / 'scenes'}"
        self.source = f"program:{save_program(folder / 'tiny.pt2')}"
        self.paths = Paths(folder / "data", folder / "stores")
        self.execution = choose_execution(device="cpu", amp="auto", renderer="torch", threads=2)
        self.precompute()

    def precompute(self, augmentation: Augmentation = SIZES, views: int = 2) -> None:
        api.precompute(
            [self.target],
            [self.source],
            views=views,
            augmentation=augmentation,
            paths=self.paths,
            execution=self.execution,
            limit=None,
        )

    def train(self, augmentation: Augmentation = SIZES, **supervision) -> dict:
        said = Remarks()
        settings = {"sources": (self.source,), **supervision}
        summary = api.train(
            self.target,
            **settings,
            augmentation=augmentation,
            paths=self.paths,
            execution=self.execution,
            out=self.folder / f"run{len(list(self.folder.glob('run*')))}",
            model="resnet20",
            epochs=1,
            batch_size=6,
        )
        return summary | {"said": said}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_an_unchanged_project_trains_on_the_store(project):
    summary = project.train()
    assert summary["labels"] == "cached"
    assert summary["sources"] == [project.source]


@pytest.mark.parametrize(
    ("augmentation", "field", "stored", "wanted"),
    [
        (Augmentation(seed=1, side_px=32, source_side_px=32), "plan.seed", "0", "1"),
        (Augmentation(side_px=16, source_side_px=32), "plan.side_px", "32", "16"),
        (Augmentation(side_px=32, source_side_px=48), "input.side_px", "32", "48"),
        (
            Augmentation(kind="centre", side_px=32, source_side_px=32),
            "plan.kind",
            '"random-resized-crop-flip"',
            '"centre"',
        ),
    ],
    ids=["seed", "size", "input map", "plan"],
)
def test_another_plan_or_input_map_is_refused(project, augmentation, field, stored, wanted):
    for sources in ((project.source,), ()):
        with pytest.raises(StoreMismatch, match=f"{field} is {stored} in the store and {wanted} in this run"):
            project.train(augmentation, sources=sources)
    assert not list(project.folder.glob("run*"))


def test_other_weights_are_refused(project):
    save_program(project.folder / "tiny.pt2", Tiny(seed=1))
    with pytest.raises(
        StoreMismatch, match=r"source\.weights_sha256 is \w{12} in the store and \w{12} in this"
    ):
        project.train()


def test_one_changed_picture_is_refused_and_named(project):
    dataset = open_dataset(project.target, "train", paths=project.paths)
    path = Path(dataset.name_of(5))
    image = Image.open(path).convert("L")
    image.putpixel((3, 3), 255 - image.getpixel((3, 3)))
    image.save(path, quality=95)
    with pytest.raises(
        StoreMismatch, match=r"target\.contents_sha256 is .* without a row of its own is 5 \(.*" + path.name
    ):
        project.train()


def test_a_renamed_class_has_the_same_rows_and_that_is_said(project):
    for split in ("train", "val"):
        scenes = project.folder / "scenes" / split
        (scenes / "Store").rename(scenes / "Supermarket")
    summary = project.train()
    assert summary["labels"] == "cached"
    assert any("the same images, whose classes had other names" in sentence for sentence in summary["said"])


def test_a_picture_moved_to_another_class_is_refused(project):
    scenes = project.folder / "scenes" / "train"
    image = sorted((scenes / "Store").iterdir())[0]
    image.rename(scenes / "Coast" / "zz.jpg")
    with pytest.raises(StoreMismatch, match=r"target\.\w+_sha256"):
        project.train()


def test_other_labels_of_the_same_pictures_change_no_row_and_that_is_said(project, monkeypatch):
    from pipeline.data import index_copies as opening

    load = opening.load_dataset

    def swapped(spec, split, **options):
        dataset = load(spec, split, **options)
        return replace(dataset, labels=(dataset.labels + 1) % 3)

    monkeypatch.setattr(opening, "load_dataset", swapped)
    summary = project.train()
    assert summary["labels"] == "cached"
    assert any("the same images, which had other labels" in sentence for sentence in summary["said"])


def test_more_samples_than_the_store_has_are_refused(project):
    image = sorted((project.folder / "scenes" / "train" / "Store").iterdir())[0]
    shutil.copyfile(image, image.with_name("zz.jpg"))
    with pytest.raises(
        StoreMismatch, match=r"target\.n_samples is 12 in the store and 13 .* is 12 \(.*zz\.jpg"
    ):
        project.train()


def test_other_pixels_of_the_probe_are_refused(project, monkeypatch):
    import pipeline.stores.fingerprint as fingerprint

    draw = fingerprint.probe_pixels
    monkeypatch.setattr(fingerprint, "probe_pixels", lambda *a: np.roll(draw(*a), 5, axis=3))
    with pytest.raises(StoreMismatch, match=r"probe picture of sample 0 .* grey levels"):
        project.train()


def test_more_views_than_stored_are_refused(project):
    with pytest.raises(StoreIncomplete, match="this run needs 3"):
        project.train(views=3)


def test_a_view_that_lost_a_unit_is_refused_until_precomputed_again(project):
    (path,) = find_stores(project.paths.cache_dir)
    (path / "units" / "c.1.0").unlink()
    with pytest.raises(StoreIncomplete, match="unfinished units"):
        project.train()
    project.precompute()
    assert Store.open(path).verify() == []
    assert project.train()["labels"] == "cached"


def test_the_store_that_fits_is_found_among_several(project):
    other = Augmentation(seed=9, side_px=32, source_side_px=32)
    project.precompute(other)
    assert len(find_stores(project.paths.cache_dir)) == 2
    assert project.train(other)["labels"] == "cached"
    assert project.train()["labels"] == "cached"


def test_cached_and_live_runs_on_the_same_views_are_the_same_run(project):
    cached, live = project.train(labels="cached"), project.train(labels="live", views=2)
    assert live["labels"] == "live"
    for name in ("train_top1", "test_top1"):
        assert cached[name] == live[name]
    weights = [(project.folder / f"run{i}" / "student.safetensors").read_bytes() for i in (0, 1)]
    assert weights[0] == weights[1]


def test_the_command_that_is_named_makes_the_store_that_was_missing(project):
    wanted = Augmentation(seed=4, kind="centre", side_px=16, source_side_px=24)
    shutil.rmtree(project.paths.cache_dir)
    with pytest.raises(RunError) as refused:
        project.train(wanted, labels="cached", views=3)
    (command,) = re.findall(r"`sskt (precompute .*?)`", str(refused.value))
    words = [*command.split(), "--cache-dir", str(project.paths.cache_dir), "--renderer", "torch"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert project.train(wanted, labels="cached", views=3)["labels"] == "cached"


def test_stores_of_two_networks_of_one_name_are_told_apart_by_the_user_alone(project):
    (project.folder / "other").mkdir()
    project.source = f"program:{save_program(project.folder / 'other' / 'tiny.pt2', Tiny(seed=3))}"
    project.precompute()
    with pytest.raises(StoreMismatch) as refused:
        project.train(sources=())
    for path in find_stores(project.paths.cache_dir):
        assert str(path) in str(refused.value)
    for said in ("program:tiny.pt2: 2 stores serve", "other/tiny.pt2 of 20", "--source with its path"):
        assert said in str(refused.value)
    assert project.train()["labels"] == "cached"


def test_without_names_sources_of_another_size_are_left_out_and_said_so(project):
    other = f"program:{save_program(project.folder / 'other.pt2', Tiny(seed=3))}"
    small, first = Augmentation(side_px=16, source_side_px=16), project.source
    project.source = other
    project.precompute(small)
    for augmentation, used, left in ((SIZES, "tiny", "other"), (small, "other", "tiny")):
        found = project.train(augmentation, sources=())
        assert found["sources"] == [f"program:{used}.pt2"]
        (said,) = [line for line in found["said"] if "is left out" in line]
        assert said.startswith(f"program:{left}.pt2 is left out, its logits are of other pictures: ")
    with pytest.raises(StoreMismatch, match=r"input\.side_px is 16 in the store and 32 in this run"):
        project.train(sources=(first, other))
    with pytest.raises(StoreMismatch, match=r"side_px is \d+ in the store and 24 in this run"):
        project.train(Augmentation(side_px=24, source_side_px=24), sources=())
