"""Both stages on videos: what is stored is what the source says of the student's own clips."""

import json
import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shared
from listening import Remarks
from programs import save_program
from safetensors.torch import load_file, save_file
from torch import nn
from videos import make_folder, make_video

from cache.errors import StoreMismatch
from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.data.labelled_list import listed_in
from pipeline.data.plan import CentreClip, CornerClip, EveryClip
from pipeline.data.render import open_renderer
from pipeline.runtime.execution import Execution
from pipeline.train.evaluate import Evaluator
from pipeline.train.run_folder import read_metrics
from pipeline.train.trainer import Trainer
from sskt.errors import RunError, SourceError, TargetError
from sskt.normalise import (
    ACTIVITYNET_MEAN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINETICS_MEAN,
    WHOLE_LEVELS,
    normalise,
)
from sskt.sources.clip_classifier import ClipClassifier
from sskt.sources.registry import open_source, parse_source
from sskt.students import WrappedBackbone, build_backbone
from sskt.students.student import build_student

pytestmark = pytest.mark.usefixtures("narrow")

CPU = torch.device("cpu")
SMALL = Augmentation(side_px=32, n_frames=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared folder of made videos, and a program that looks at one picture."""
    folder = tmp_path_factory.mktemp("videos")
    root = make_folder(folder / "videos", n_per_class=6, n_frames=12)
    paths = Paths(folder / "data", folder / "stores")
    target = f"videofolder:{root}"
    api.prepare(target, paths=paths)
    program = save_program(folder / "colours.pt2")
    return target, paths, f"program:{program}"


def of_clips() -> WrappedBackbone:
    """A student for what does not depend on which: a 3D ResNet has 14 million weights."""
    torch.manual_seed(0)
    layers = nn.Conv3d(3, 8, 3, stride=2, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 16, 2)
    return WrappedBackbone(nn.Sequential(*layers), side_px=32, n_frames=4)


def train(target, paths, out, **settings):
    usual = {"epochs": 2, "batch_size": 4, "lr": 0.01, "amp": "fp32", "model": "resnet3d10"}
    how = {"augmentation": SMALL, "execution": choose_execution(device="cpu")}
    return api.train(target, paths=paths, out=out, **{**usual, **how, **settings})


def test_hmdb51_trains_through_both_stages_on_every_clip_that_is_here(made, tmp_path):
    """Split 3 lists all four, the one with broken metadata among them."""
    paths = Paths(shared("data/hmdb51").parent, tmp_path / "stores")
    api.prepare("hmdb51:3", paths=paths, allow_missing=True)
    lengths = [open_dataset("hmdb51:3", s, paths=paths).sizes[:, 0] for s in ("train", "test")]
    assert sorted(np.concatenate(lengths).tolist()) == [48, 72, 74, 83]
    _, _, source = made
    api.precompute(["hmdb51:3"], [source], views=1, augmentation=SMALL, paths=paths)
    taught = {"sources": (source,), "labels": "cached"}
    summary = train("hmdb51:3", paths, tmp_path / "run", **taught, epochs=1, model=of_clips())
    assert summary["labels"] == "cached"
    assert np.isfinite(read_metrics(tmp_path / "run")[-1]["train_loss"])


def test_stored_rows_are_the_sources_answers_for_the_students_centre_frames(ucf101):
    """Two rows of each real clip, against a plain forward on the other renderer's whole clips."""
    weights = shared("weights/imagenet_resnet50.safetensors")
    paths = replace(ucf101, weights={"imagenet": weights})
    augmentation = Augmentation(source_side_px=112)
    api.precompute(
        ["ucf101"], ["imagenet"], views=2, augmentation=augmentation, paths=paths,
        execution=choose_execution(device="cpu", compiled=False))  # fmt: skip
    (path,) = find_stores(paths.cache_dir)
    store = Store.open(path)
    dataset = open_dataset("ucf101", "train", paths=paths)
    assert store.manifest.identity["plan"]["n_frames"] == 16
    assert store.manifest.identity["input"]["frames"]["kind"] == "center_frame"
    network = open_source("imagenet", weights=weights, weights_dir=paths.cache_dir).module
    assert len(dataset) >= 15
    positions = np.random.default_rng(0).permutation(len(dataset))
    for backend in ("torch", "dali"):
        for view in (0, 1):
            renderer = open_renderer(
                dataset, CornerClip(112), Execution(CPU, renderer=backend, threads=2), batch_size=50
            )
            with (
                closing(renderer),
                closing(renderer.render(view, [positions])) as drawn,
                torch.inference_mode(),
            ):
                (clips,) = drawn
                x = normalise(clips[:, :, 8].contiguous(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
                truth = network(x)
            stored = torch.from_numpy(store.view(view)[positions].astype(np.float32))
            cosine = F.cosine_similarity(stored, truth, dim=1)
            assert float(cosine.min()) >= 0.999, (backend, view, int(cosine.argmin()))


@pytest.mark.parametrize("frames", ["center_frame", "frames:2", "mean_frame", "reference"])
def test_cached_and_live_train_the_same_student_from_the_same_clips(made, tmp_path, frames):
    target, paths, source = made
    paths = replace(paths, cache_dir=paths.cache_dir)
    augmentation = replace(SMALL, source_frames=frames)
    api.precompute([target], [source], views=2, augmentation=augmentation, paths=paths)
    runs = {}
    for labels in ("cached", "live"):
        taught = {"sources": (source,), "labels": labels, "views": 2}
        train(target, paths, tmp_path / labels, **taught, augmentation=augmentation, model=of_clips())
        runs[labels] = read_metrics(tmp_path / labels)
    for cached, live in zip(*runs.values(), strict=True):
        assert cached["train_loss"] == live["train_loss"]
        assert cached["val_loss"] == live["val_loss"]


def test_videos_without_labels_are_trained_on_as_images_are(made, tmp_path):
    """Those in the folder's own unlabelled/, which is asked for, and those of another folder."""
    target, _, source = made
    root = tmp_path / "videos"
    shutil.copytree(target.partition(":")[2], root)
    paths, more = Paths(tmp_path / "data", tmp_path / "stores"), tmp_path / "more"
    for i in range(3):
        make_video(root / "unlabelled" / ("deep" if i else "") / f"{i}.avi", n=9 + i, mirrored=i == 1)
    make_video(more / "x" / "y.avi", n=14)
    for name in (f"videofolder:{root}", f"unlabelled-videos:{more}"):
        rows = api.prepare(name, paths=paths)
    assert [(row["split"], row["samples"]) for row in rows] == [("unlabelled", 1)]
    how = {"augmentation": SMALL, "paths": paths, "unlabelled": [f"videofolder:{root}", str(more)]}
    reports = api.precompute(f"videofolder:{root}", source, views=1, **how)
    assert [report.n_samples for report in reports] == [12, 3, 1]
    how |= {"sources": source, "views": 1, "batch_size": 6, "execution": choose_execution(device="cpu")}
    cached, live = (
        api.open_training_data(f"videofolder:{root}", labels=kind, **how) for kind in ("cached", "live")
    )
    n_unlabelled = 0
    for ours, theirs in zip(cached.epoch(0), live.epoch(0), strict=True):
        n_unlabelled += int((ours.labels < 0).sum())
        assert torch.equal(ours.labels, theirs.labels)
        for name, logits in theirs.logits.items():
            assert torch.equal(ours.logits[name], logits)
    assert n_unlabelled == 4
    (tmp_path / "names.txt").write_text(f"train/left/0.avi\n{root}/train/right/3.avi\n")
    train_of = open_dataset(f"videofolder:{root}", "train", paths=paths)
    assert listed_in(tmp_path / "names.txt", train_of, root).tolist() == [0, 9]
    shutil.copy(root / "val" / "left" / "1.avi", more / "leak.avi")
    api.prepare(f"unlabelled-videos:{more}", paths=paths)
    with pytest.raises(RunError, match=r"1 of 2 samples are in the test split of videofolder:videos"):
        api.open_training_data(f"videofolder:{root}", labels="live", **how)


def test_a_store_for_other_frames_of_a_clip_is_refused(made, tmp_path):
    target, paths, source = made
    other = replace(paths, cache_dir=tmp_path / "stores")
    api.prepare(target, paths=other)
    api.precompute([target], [source], views=1, augmentation=SMALL, paths=other)
    for changed, field in (
        (replace(SMALL, source_frames="frames:2"), r"input\.frames\.kind is .center_frame. in the store"),
        (replace(SMALL, stride=2), r"plan\.stride is 1 in the store"),
        (replace(SMALL, n_frames=6), r"n_frames is 4 in the store"),
    ):
        with pytest.raises(StoreMismatch, match=field):
            train(target, other, tmp_path / "no", sources=(source,), labels="cached", augmentation=changed)
    assert not (tmp_path / "no").exists()


def test_sources_may_read_clips_beside_sources_that_read_pictures(made, tmp_path):
    target, paths, program = made
    torch.manual_seed(0)
    network = ClipClassifier("resnet3d10", 400).eval()
    state = {k.removeprefix("backbone."): v for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "kinetics.safetensors")
    paths = replace(paths, weights={"kinetics:resnet3d10": tmp_path / "kinetics.safetensors"})
    reports = api.precompute(
        [target], ["kinetics:resnet3d10", program], views=1, augmentation=SMALL, paths=paths
    )
    dataset = open_dataset(target, "train", paths=paths)
    plan = CornerClip(32, n_frames=4)
    renderer = open_renderer(dataset, plan, Execution(CPU, renderer="torch", threads=1), batch_size=12)
    with closing(renderer), closing(renderer.render(0, [np.arange(12)])) as drawn, torch.inference_mode():
        (clips,) = drawn
        truth = network(normalise(clips, ACTIVITYNET_MEAN, WHOLE_LEVELS))
    stored = Store.open(reports[0].path).view(0).astype(np.float32)
    np.testing.assert_allclose(stored, truth, rtol=0.05, atol=0.02 * float(truth.abs().max()))
    summary = train(target, paths, tmp_path / "run", labels="cached", epochs=1, model=of_clips())
    assert set(summary["sources"]) >= {"kinetics:resnet3d10"}
    with pytest.raises(RunError, match="reads clips, and digits holds images"):
        api.precompute(["digits"], ["kinetics:resnet3d10"], paths=paths)


def test_a_program_may_read_clips(made, tmp_path):
    class Motion(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x.mean(dim=(2, 3, 4)), (x[:, :, -1] - x[:, :, 0]).mean(dim=(2, 3))], dim=1)

    target, paths, _ = made
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.zeros(2, 3, 4, 32, 32)
    program = torch.export.export(Motion().eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "motion.pt2")
    name = f"program:{tmp_path / 'motion.pt2'}"
    (report,) = api.precompute([target], [name], views=1, augmentation=SMALL, paths=paths)
    stored = Store.open(report.path)
    assert stored.n_classes == 6
    dataset = open_dataset(target, "train", paths=paths)
    plan = CornerClip(32, n_frames=4)
    renderer = open_renderer(dataset, plan, Execution(CPU, renderer="torch", threads=1), batch_size=12)
    with closing(renderer), closing(renderer.render(0, [np.arange(12)])) as drawn:
        (clips,) = drawn
    truth = Motion()(normalise(clips, IMAGENET_MEAN, IMAGENET_STD))
    np.testing.assert_allclose(stored.view(0).astype(np.float32), truth, atol=0.02)
    summary = train(target, paths, tmp_path / "run", sources=(name,), labels="cached", model=of_clips())
    assert summary["labels"] == "cached"
    other = Augmentation(side_px=32, n_frames=5)
    with pytest.raises(SourceError, match="cannot read"):
        api.precompute([target], [name], views=1, augmentation=other, paths=paths)


def test_a_students_answer_for_a_video_is_the_mean_of_its_clips(made, tmp_path):
    target, paths, _ = made
    train(target, paths, tmp_path / "run", method="scratch")
    figures = api.evaluate(tmp_path / "run", paths=paths, execution=choose_execution(device="cpu"), clips=4)
    dataset = open_dataset(target, "test", paths=paths)
    student = build_student("resnet3d10", 2, {}, transfer_module=False).eval()
    student.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"))
    renderer = open_renderer(
        dataset, CentreClip(32, 4, 1, 4), Execution(CPU, renderer="torch", threads=1), batch_size=4
    )
    clips_right, shares = 0, np.zeros((len(dataset), 2))
    with closing(renderer), torch.inference_mode():
        for view in range(4):
            (clips,) = renderer.render(view, [np.arange(len(dataset))])
            for n, clip in enumerate(clips):
                z = student.predict(normalise(clip[None], ACTIVITYNET_MEAN, WHOLE_LEVELS))[0].numpy()
                clips_right += int(z.argmax() == dataset.labels[n])
                shares[n] += np.exp(z) / np.exp(z).sum() / 4
    right = shares.argmax(axis=1) == dataset.labels
    assert figures["test_top1"] == pytest.approx(100 * right.mean())
    assert figures["test_clip_top1"] == pytest.approx(100 * clips_right / (4 * len(dataset)))
    assert figures["n_clips"] == 4
    lines = (tmp_path / "run" / "confusion.csv").read_text().splitlines()
    matrix = np.array([[int(v) for v in line.split(",")[1:]] for line in lines[1:]])
    expected = np.zeros((2, 2), dtype=int)
    np.add.at(expected, (dataset.labels, shares.argmax(axis=1)), 1)
    np.testing.assert_array_equal(matrix, expected)
    assert (tmp_path / "run" / "confusion.png").stat().st_size > 1000


def test_all_clips_of_videos_of_different_lengths_are_averaged_by_video(tmp_path):
    """Against the released test script's way, one clip after the other."""
    root = make_folder(tmp_path / "videos", n_per_class=2, n_frames=6)
    for path, n in zip(sorted((root / "val").rglob("*.avi")), (5, 9, 12, 3), strict=True):
        make_video(path, n=n, mirrored=path.parent.name == "right")
    target, paths = f"videofolder:{root}", Paths(tmp_path / "data", tmp_path / "stores")
    api.prepare(target, paths=paths)
    train(target, paths, tmp_path / "run", method="scratch")
    dataset = open_dataset(target, "test", paths=paths)
    assert sorted(dataset.sizes[:, 0].tolist()) == [3, 5, 9, 12]
    figures = api.evaluate(
        tmp_path / "run", paths=paths, execution=choose_execution(device="cpu"), clips="all"
    )
    student = build_student("resnet3d10", 2, {}, transfer_module=False).eval()
    student.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"))
    mean = tuple(v / 255 for v in (114.7748, 107.7354, 99.475))
    right, clips_right, n_clips, losses = 0, 0, 0, []
    for n in range(len(dataset)):
        starts = range(0, max(1, int(dataset.sizes[n, 0]) - 1), 4)
        shares = np.zeros(2)
        for view in range(len(starts)):
            renderer = open_renderer(
                dataset, EveryClip(32, 4), Execution(CPU, renderer="torch", threads=1), batch_size=1
            )
            with closing(renderer), torch.inference_mode():
                (clip,) = renderer.render(view, [np.array([n])])
                z = student.predict(normalise(clip, mean, WHOLE_LEVELS))[0]
            shares += z.softmax(dim=0).numpy() / len(starts)
            clips_right += int(z.argmax() == dataset.labels[n])
            losses.append(-float(z.log_softmax(dim=0)[dataset.labels[n]]))
        n_clips += len(starts)
        right += int(shares.argmax() == dataset.labels[n])
    assert figures["n_clips_of_all_videos"] == n_clips
    assert figures["test_top1"] == pytest.approx(100 * right / len(dataset))
    assert figures["test_clip_top1"] == pytest.approx(100 * clips_right / n_clips)
    assert figures["test_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    with pytest.raises(RunError, match="clips is 'most', expected a whole number of at least 1, or all"):
        api.evaluate(tmp_path / "run", paths=paths, clips="most")


def test_a_run_that_does_not_say_its_mean_is_scored_with_the_one_it_had(made, tmp_path):
    """Runs begun before there was a choice took Kinetics' mean off and began with torch's weights."""
    target, paths, _ = made
    said = {}
    for name in ("activitynet", "kinetics"):
        out = tmp_path / name
        tuning = {"amp": "fp32", "clip_mean": name}
        scratch, once = {"method": "scratch"}, {"epochs": 1}
        train(target, paths, out, **scratch, **tuning, **once)
        config = json.loads((out / "config.json").read_text())
        assert (config["clip_mean"], config["init"], config["dropout"]) == (name, "released", 0.0)
        said[name] = api.evaluate(out, paths=paths)["test_loss"]
    assert said["activitynet"] != said["kinetics"]
    old = tmp_path / "kinetics"
    config = json.loads((old / "config.json").read_text())
    state = torch.load(old / "last.pt", weights_only=True)
    for place in (config, state["config"]):
        for added in ("clip_mean", "init", "dropout", "gates"):
            del place[added]
        del place["augmentation"]["source_input"]
    (old / "config.json").write_text(json.dumps(config))
    torch.save(state, old / "last.pt")
    assert api.evaluate(old, paths=paths)["test_loss"] == said["kinetics"]
    assert parse_source(f"run:{old}").mean == KINETICS_MEAN
    assert parse_source(f"run:{tmp_path / 'activitynet'}").mean == ACTIVITYNET_MEAN
    (old / "summary.json").unlink()
    (old / "student.safetensors").unlink()
    lines = Remarks()
    api.resume(old, execution=choose_execution(device="cpu"))
    assert any("its student is written from last.pt" in line for line in lines)
    with pytest.raises(
        RunError, match="--clip-mean kinetics is for resnet3d networks, this student is r3d_1"
    ):
        train(target, paths, tmp_path / "no", model="r3d_18", clip_mean="kinetics", method="scratch")


def test_classes_whose_probability_underflows_are_still_ranked(made):
    target, paths, _ = made
    dataset = replace(open_dataset(target, "test", paths=paths), classes=tuple("abcdefgh"))
    rng = np.random.default_rng(0)
    z = -60.0 * rng.permuted(np.tile(np.arange(8.0), (2, len(dataset), 1)), axis=2)  # e^-120 is 0 in float32
    shares = np.exp(z) / np.exp(z).sum(axis=2, keepdims=True)  # float64 reaches to e^-745
    best = np.argsort(-shares.mean(axis=0), axis=1)
    for place, right in ((4, 100), (5, 0)):
        scorer = Evaluator(
            replace(dataset, labels=best[:, place]), CentreClip(32, 4, 1, 2), choose_execution(device="cpu")
        )
        scorer.predict = lambda *_: torch.from_numpy(z).float()
        assert scorer.accuracy(None, "fp32")["test_top5"] == right


def test_fine_tuning_begins_with_the_weights_and_leaves_frozen_blocks_alone(made, tmp_path):
    target, paths, _ = made
    torch.manual_seed(3)
    pretrained = build_backbone("resnet3d10")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in pretrained.state_dict().items()}}, tmp_path / "k.pth"
    )
    tuning = {"amp": "fp32", "finetune_from": tmp_path / "k.pth", "freeze_until": "layer4"}
    api.train(
        target,
        paths=paths,
        out=tmp_path / "run",
        augmentation=SMALL,
        model="resnet3d10",
        method="scratch",
        **tuning,
        execution=choose_execution(device="cpu"),
        epochs=1,
        batch_size=4,
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["lr"] == 0.01, "table 1: a tenth of the rate from scratch"
    assert config["finetune_from"].startswith("k.pth sha256 ")
    trained = load_file(tmp_path / "run" / "student.safetensors")
    assert torch.equal(trained["backbone.layer1.0.conv1.weight"], pretrained.layer1[0].conv1.weight)
    assert torch.equal(trained["backbone.bn1.running_mean"], pretrained.bn1.running_mean)
    assert not torch.equal(trained["backbone.layer4.0.conv1.weight"], pretrained.layer4[0].conv1.weight)


def test_a_fine_tuned_run_stopped_at_once_begins_with_the_same_weights_again(made, tmp_path, monkeypatch):
    target, paths, _ = made
    torch.manual_seed(3)
    torch.save(build_backbone("resnet3d10").state_dict(), tmp_path / "k.pth")
    settings = {"method": "scratch", "amp": "fp32", "finetune_from": tmp_path / "k.pth"}
    whole = train(target, paths, tmp_path / "whole", **settings)
    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "_take_step", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(target, paths, tmp_path / "stopped", **settings)
    resumed = api.resume(tmp_path / "stopped", execution=choose_execution(device="cpu"))
    assert resumed["test_top1"] == whole["test_top1"]
    ours, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "_take_step", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(target, paths, tmp_path / "lost", **settings)
    (tmp_path / "k.pth").unlink()
    with pytest.raises(RunError, match=r"was started from k\.pth sha256 \w+, which is not at"):
        api.resume(tmp_path / "lost", execution=choose_execution(device="cpu"))


def _interrupt(*_):
    raise KeyboardInterrupt


def test_pictures_and_videos_are_not_mixed_up(made, tmp_path):
    target, paths, _ = made
    with pytest.raises(RunError, match=r"--model r3d_18 reads clips, and digits holds images"):
        train(
            "digits", paths, tmp_path / "run", model="r3d_18", augmentation=Augmentation(), method="scratch"
        )
    with pytest.raises(
        RunError, match="kind is 'pad-crop-flip', for videofolder:videos expected one of corner-clip"
    ):
        train(
            target, paths, tmp_path / "run", augmentation=Augmentation(kind="pad-crop-flip"), method="scratch"
        )
    assert not (tmp_path / "run").exists()


def test_a_target_of_videos_that_is_not_prepared_says_what_to_run(tmp_path):
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    with pytest.raises(TargetError) as caught:
        train("ucf101", paths, tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert "DATA_DIR/ucf101/UCF-101/CLASS/" in lines[1]
    there = f"--data-dir {paths.data_dir} --cache-dir {paths.cache_dir}"
    assert [line.strip() for line in lines[2:]] == [
        f"sskt prepare --target ucf101 {there}",
        f"sskt precompute --target ucf101 --source imagenet --source places365 {there}",
        f"sskt train --target ucf101 {there}",
    ]


def test_commands_in_messages_name_folders_only_where_they_are_not_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError) as caught:
        open_dataset("hmdb51:2", "train", paths=Paths())
    assert str(caught.value).splitlines()[-1].strip() == "sskt train --target hmdb51:2"


def test_write_through_keeps_what_each_source_saw(made, tmp_path):
    """A source for pictures and one for clips, filled on the way, are what precompute would have stored."""
    target, paths, program = made
    torch.manual_seed(0)
    network = ClipClassifier("resnet3d10", 400).eval()
    state = {k.removeprefix("backbone."): v for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "kinetics.safetensors")
    weights = {"kinetics:resnet3d10": tmp_path / "kinetics.safetensors"}
    names = (program, "kinetics:resnet3d10")
    stored = {}
    for kind in ("write-through", "precompute"):
        mine = replace(paths, weights=weights, cache_dir=tmp_path / kind)
        api.prepare(target, paths=mine)
        if kind == "precompute":
            api.precompute([target], names, views=2, augmentation=SMALL, paths=mine)
        else:
            taught = {"sources": names, "labels": "write-through", "views": 2}
            train(target, mine, tmp_path / "run", **taught, amp="fp32", val_share=0.0, model=of_clips())
        for path in find_stores(mine.cache_dir):
            store = Store.open(path)
            stored[kind, store.manifest.identity["source"]["name"]] = [store.view(v) for v in (0, 1)] + [
                store.probe
            ]
    assert len(stored) == 4
    for source in {name for _, name in stored}:
        for a, b in zip(stored["write-through", source], stored["precompute", source], strict=True):
            np.testing.assert_array_equal(a, b)
