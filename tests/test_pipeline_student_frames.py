"""A network for images as the student of videos: the centre frame of each clip, and no other is decoded."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from listening import Remarks
from programs import save_program
from videos import make_folder

from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.data.render import clips as rendering
from pipeline.train.run_folder import read_metrics
from sskt.errors import RunError
from sskt.students.alexnet import AlexNet

pytestmark = pytest.mark.usefixtures("narrow")

CPU = choose_execution(device="cpu", renderer="torch", threads=1)
SMALL = Augmentation(side_px=64, n_frames=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    root = make_folder(folder / "videos", n_per_class=4, n_frames=12)
    paths = Paths(folder / "data", folder / "stores")
    target, source = f"videofolder:{root}", f"program:{save_program(folder / 'colours.pt2')}"
    api.prepare(target, paths=paths)
    api.precompute([target], [source], views=2, augmentation=SMALL, paths=paths, execution=CPU)
    return target, paths, source


@pytest.fixture
def looks(monkeypatch):
    """What networks were shown, and the frames of every clip that was drawn."""
    seen = {"images": [], "frames": []}
    forward, rows = AlexNet.forward, rendering.ClipRenderer.render

    def watch(network, x):
        seen["images"].append((network.training, x.detach().clone()))
        return forward(network, x)

    def count(renderer, view, batches):
        for pixels in rows(renderer, view, batches):
            seen["frames"].append(pixels.shape[2])
            yield pixels

    monkeypatch.setattr(AlexNet, "forward", watch)
    monkeypatch.setattr(rendering.ClipRenderer, "render", count)
    return seen


def train(target, paths, out, **settings):
    usual = {"epochs": 2, "batch_size": 4, "lr": 0.01, "amp": "fp32", "model": "alexnet-small"}
    how = {"augmentation": SMALL, "execution": CPU, "val_share": 0.0}
    return api.train(target, paths=paths, out=out, **{**usual, **how, **settings})


def test_stored_labels_need_one_frame_of_a_clip_and_live_ones_all_of_them(made, looks, tmp_path):
    target, paths, source = made
    shown = {}
    for labels in ("cached", "live"):
        looks["images"].clear(), looks["frames"].clear()
        train(target, paths, tmp_path / labels, sources=(source,), labels=labels, views=2)
        shown[labels] = [x for training, x in looks["images"] if training and len(x) == 4]
        assert set(looks["frames"]) == ({1} if labels == "cached" else {1, 6})  # 1: in evaluation
    assert len(shown["cached"]) == 4
    assert all(map(torch.equal, shown["cached"], shown["live"]))
    ours, theirs = (read_metrics(tmp_path / labels) for labels in ("cached", "live"))
    assert [m["train_loss"] for m in ours] == [m["train_loss"] for m in theirs]
    config = json.loads((tmp_path / "cached" / "config.json").read_text())
    assert (config["student_frames"], config["plan"]["n_frames"]) == ("center_frame", 6)


def test_a_run_goes_on_and_is_scored_by_centre_frames(made, looks, tmp_path):
    target, paths, _ = made
    said = Remarks()
    trained = train(target, paths, tmp_path / "run", method="scratch", optimizer="adam", lr=1e-3)
    assert "alexnet-small reads images: of each clip it sees frame 3 of 6, counted from 0" in said
    (tmp_path / "run" / "summary.json").unlink()
    resumed = api.resume(tmp_path / "run", execution=CPU)
    assert resumed["test_top1"] == trained["test_top1"]
    looks["frames"].clear()
    for clips, n in ((3, 3), ("all", None)):
        figures = api.evaluate(tmp_path / "run", clips=clips, execution=CPU)
        assert figures.get("n_clips") == n
        assert {"test_top1", "test_clip_top1"} <= set(figures)
    assert set(looks["frames"]) == {1}
    assert api.evaluate(tmp_path / "run", clips=3, execution=CPU)["test_top1"] == trained["test_top1"]


def test_a_student_of_centre_frames_is_a_source_that_sees_what_it_saw(made, looks, tmp_path):
    target, paths, _ = made
    train(target, paths, tmp_path / "run", method="scratch", epochs=1)
    shown = torch.cat([x for training, x in looks["images"] if training])
    looks["images"].clear()
    api.precompute(
        [target], [f"run:{tmp_path / 'run'}"], views=1, paths=paths, augmentation=SMALL, execution=CPU
    )
    asked = torch.cat([x for _, x in looks["images"] if not x.is_meta]).flatten(1)
    distances = torch.cdist(shown[-8:].flatten(1), asked, p=1).min(dim=1).values
    assert float(distances.max()) == 0


def test_what_cannot_be_done_is_refused(made, tmp_path):
    target, paths, _ = made
    train(target, paths, tmp_path / "run", method="scratch", epochs=1)
    with pytest.raises(RunError, match="its student was trained on videos, and maps are of pictures"):
        api.explain([tmp_path / "run"], out=tmp_path / "map.png", paths=paths, execution=CPU)
    with pytest.raises(RunError, match="--method maxl does not support --optimizer adam; leave that out"):
        train(target, paths, tmp_path / "no", method="maxl", optimizer="adam")
    few = replace(SMALL, n_frames=3)
    with pytest.raises(
        RunError, match=r"4 frames of a clip, and this one has 3\); .* --size, --clip-frames or"
    ):
        train(target, paths, tmp_path / "no", method="scratch", model="vgg19-sorting-small", augmentation=few)
    assert not (tmp_path / "no").exists()
    assert np.isfinite(read_metrics(tmp_path / "run")[-1]["train_loss"])


def test_the_store_of_a_student_of_frames_serves_where_its_run_is_gone(made, tmp_path):
    """What it saw is then known from the store alone."""
    target, paths, _ = made
    teacher = tmp_path / "gone"
    train(
        target, paths, teacher, method="scratch", epochs=1, seed=1
    )  # a network of its own, so a store of its own
    source = f"run:{teacher}"
    api.precompute([target], [source], views=1, augmentation=SMALL, paths=paths, execution=CPU)
    how = {"method": "kd", "sources": (source,), "labels": "cached", "epochs": 1}
    train(target, paths, tmp_path / "before", **how)
    shutil.rmtree(teacher)
    train(target, paths, tmp_path / "after", **how)
    before, after = (read_metrics(tmp_path / name)[-1]["train_loss"] for name in ("before", "after"))
    assert before == after
