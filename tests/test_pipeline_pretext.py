"""The pretext stage: what is held out, stops, what becomes of an encoder, and what is refused."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from listening import Remarks
from made_motion import make_folder
from safetensors.torch import load_file, save_file
from stopping import stop_after
from videos import make_folder as make_grey

import cli
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.data import SortedFrames, open_renderer
from pipeline.data.datasets import first_frames, frames_dataset
from pipeline.data.render import clips as rendering
from pipeline.data.render.torch import crop, fit_windows
from pipeline.train import loop as training
from pipeline.train.pretext import data as opening
from pipeline.train.pretext import tracks
from pipeline.train.pretext.motion import MOTION, motion_of
from pipeline.train.run_folder import read_metrics
from sskt.errors import RunError, SourceError
from sskt.students import PRETEXTS, build_backbone, load_pretrained, vgg19

CPU = choose_execution(device="cpu", renderer="torch", threads=1)
SMALL = Augmentation(side_px=32)
N, HELD_OUT = 6, 2  # videos of each class; in all


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretext")
    root = make_folder(folder / "videos", N)
    paths = Paths(folder / "data", folder / "stores")
    api.prepare(f"videofolder:{root}", paths=paths)
    return f"videofolder:{root}", paths


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(vgg19, "_SMALL_WIDTHS", (4, 4, 8, 8, 8))
    monkeypatch.setattr(tracks, "_MOST", 2)


def pretext(made, out, task="sorting", **settings):
    target, paths = made
    small = "prednet-small" if task == "prediction" else f"vgg19-{task}-small"
    usual = {"epochs": 2, "batch_size": 4, "amp": "fp32", "augmentation": SMALL, "execution": CPU}
    usual |= {"paths": paths, "model": small}
    return api.pretext(target, task=task, out=out, **{**usual, **settings})


@contextmanager
def stopped_after(n_steps):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, n_steps)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("task", PRETEXTS)
def test_every_task_leaves_an_encoder_from_which_a_student_starts(made, tmp_path, task):
    summary = pretext(made, tmp_path / "run", task)
    assert summary["task"] == task
    assert summary["targets"] == [made[0]]
    if task != "tracking":  # which leaves some out
        assert summary["n_videos"] == 2 * N - HELD_OUT
        assert summary["n_held_out"] == HELD_OUT
        assert summary["iterations"] == 2 * 3
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    places = {"run": str(tmp_path / "run"), "encoder": str(tmp_path / "run" / "encoder.safetensors")}
    assert as_json(summary) == written | places
    assert not (tmp_path / "run" / "student.safetensors").exists()
    metrics = read_metrics(tmp_path / "run")
    assert all(np.isfinite(m["val_loss"]) and 0 <= m["val_top1"] <= 100 for m in metrics)
    assert summary["accuracy"] == metrics[-1]["val_top1"]
    encoder, backbone = load_file(summary["encoder"]), build_backbone(summary["model"])
    load_pretrained(backbone, Path(summary["encoder"]), summary["model"])
    loaded = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    assert set(loaded) == set(encoder)
    assert all(torch.equal(loaded[name], encoder[name]) for name in encoder)


def as_json(summary):
    return json.loads(json.dumps(summary))


def finetune(made, out, summary):
    target, paths = made
    how = {"augmentation": SMALL, "execution": CPU, "paths": paths, "amp": "fp32", "val_share": 0.0}
    how |= {
        "method": "scratch",
        "finetune_from": summary["encoder"],
        "epochs": 1,
        "batch_size": 4,
        "lr": 0.01,
    }
    return api.train(target, model=summary["model"], out=out, **how)


def test_a_fine_tuned_encoder_is_a_source_and_one_that_is_not_is_refused(made, tmp_path):
    summary = pretext(made, tmp_path / "run", epochs=1)
    finetune(made, tmp_path / "teacher", summary)
    target, paths = made
    how = {"views": 1, "augmentation": SMALL, "paths": paths, "execution": CPU}
    (report,) = api.precompute([target], [f"run:{tmp_path / 'teacher'}"], **how)
    assert report.path.is_dir()
    advice = (
        "fine-tune it first with `sskt train --method scratch --model vgg19-sorting-small --finetune-from"
    )
    with pytest.raises(SourceError, match=f"its task was sorting, and it knows no classes; {advice}"):
        api.precompute([target], [f"run:{tmp_path / 'run'}"], **how)
    with pytest.raises(RunError, match=f"its task was sorting, and it knows no classes; {advice}"):
        api.evaluate(tmp_path / "run", execution=CPU)


@pytest.mark.parametrize("task", ["sorting", "tracking"])
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(made, tmp_path, task, monkeypatch):
    """Dropout, negatives and examples included."""
    whole = pretext(made, tmp_path / "whole", task)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with stopped_after(4):
        pretext(made, tmp_path / "stopped", task)
    said = Remarks()
    resumed = api.resume(tmp_path / "stopped", execution=CPU)
    assert any("continues in epoch 2 of 2" in line for line in said)
    assert {k: resumed[k] for k in ("accuracy", "val_loss")} == {
        k: whole[k] for k in ("accuracy", "val_loss")
    }
    for name in ("encoder.safetensors", "best.safetensors"):
        ours, theirs = (load_file(tmp_path / run / name) for run in ("stopped", "whole"))
        assert ours
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert api.resume(tmp_path / "stopped", execution=CPU)["accuracy"] == whole["accuracy"]


def test_held_out_videos_are_not_trained_on_and_labels_and_the_test_split_are_not_shown(
    made, tmp_path, monkeypatch
):
    drawn = {"train": set(), "held out": set()}
    render = rendering.ClipRenderer.render

    def watch(renderer, view, batches):
        assert not renderer._dataset.labels.any()
        assert renderer._dataset.split == "train"
        part = "train" if view < 10 else "held out"
        drawn[part] |= set(renderer._dataset.ids[np.concatenate(batches)].tolist())
        yield from render(renderer, view, batches)

    monkeypatch.setattr(rendering.ClipRenderer, "render", watch)
    pretext(made, tmp_path / "run", "egomotion", epochs=1)
    assert len(drawn["train"]) == 2 * N - HELD_OUT
    assert len(drawn["held out"]) == HELD_OUT
    assert drawn["train"] | drawn["held out"] == set(range(2 * N))


def test_pixels_are_the_planned_windows_of_the_planned_frames(made):
    """Also where each frame of a clip has a window of its own."""
    target, paths = made
    dataset = api.open_dataset(target, "train", paths=paths)
    tables = {int(i): motion_of(dataset, row) for row, i in enumerate(dataset.ids)}
    plan = SortedFrames(32, motion=tables)
    positions = np.array([5, 0, 9])
    rows = plan.rows(1, dataset.ids[positions], dataset.sizes[positions])
    (pixels,) = open_renderer(dataset, plan, CPU, batch_size=3).render(1, [positions])
    images, firsts = frames_dataset(dataset), first_frames(dataset)
    for n, position in enumerate(positions):
        for t, (frame, window) in enumerate(zip(rows.frames[n], rows.windows[n], strict=True)):
            whole = images.pixels_of(int(firsts[position] + frame))
            (expected,) = fit_windows(crop(whole, window)[None], 32, bool(rows.flips[n]))
            assert torch.equal(pixels[n, :, t], expected)


def test_motion_is_the_mean_difference_of_small_grey_frames(made):
    target, paths = made
    dataset = api.open_dataset(target, "train", paths=paths)
    found = motion_of(dataset, 3)
    images, first = frames_dataset(dataset), first_frames(dataset)[3]
    whole = np.stack(
        [images.pixels_of(int(first + t)).astype(float) @ (0.299, 0.587, 0.114) for t in range(24)]
    )
    small = whole.reshape(24, 8, 8, 8, 8).mean(axis=(2, 4))
    expected = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2))
    assert found[0] == 0
    np.testing.assert_allclose(np.diff(found) / 256, expected, atol=0.35)  # JPEG's own scaling
    assert len(found) == 24


def test_a_track_ends_where_its_patch_is_and_not_where_it_was(made):
    """In pixels of the packed video."""
    target, paths = made
    dataset = api.open_dataset(target, "train", paths=paths)
    images, firsts = frames_dataset(dataset), first_frames(dataset)
    followed, stayed = [], []
    for row in range(6):
        found = tracks.tracks_of(dataset, row)
        assert len(found) <= 2
        assert np.array_equal(found, tracks.tracks_of(dataset, row))
        for begin, end, *boxes in found.tolist():
            assert begin >= 0
            assert end == begin + 15 < dataset.sizes[row, 0]
            first, last = (images.pixels_of(int(firsts[row] + t)).astype(float) for t in (begin, end))
            cut = []
            for image, (top, left, height, width) in (
                (first, boxes[:4]),
                (last, boxes[4:]),
                (last, boxes[:4]),
            ):
                assert (height, width) == (32, 32)  # half the short side
                cut.append(image[top : top + 32, left : left + 32].ravel())
                assert len(cut[-1]) == 3 * 32 * 32  # inside
            followed.append(np.corrcoef(cut[0], cut[1])[0, 1])
            stayed.append(np.corrcoef(cut[0], cut[2])[0, 1])
    assert len(followed) >= 6
    assert np.mean(followed) > np.mean(stayed) + 0.1


def test_what_is_known_of_a_video_is_computed_once(made, tmp_path, monkeypatch):
    target, paths = made
    dataset = api.open_dataset(target, "train", paths=paths)
    folder, calls = tmp_path / "kept", []

    def count(dataset, row):
        calls.append(row)
        return motion_of(dataset, row)

    counted = opening.PerVideo(MOTION.name, MOTION.title, count)
    few = counted.of(dataset.take(np.arange(3)), folder, 1)
    every = counted.of(dataset, folder, 1)
    assert len(calls) == len(dataset)
    assert all(np.array_equal(a, b) for a, b in zip(few, every, strict=False))
    (folder / f"{MOTION.name}.npz").write_bytes(b"no archive")
    said = Remarks()
    again = counted.of(dataset, folder, 1)
    assert any("cannot be read" in line and "computed again" in line for line in said)
    assert all(np.array_equal(a, b) for a, b in zip(again, every, strict=True))


def test_other_motion_than_a_run_was_started_with_is_refused(made, tmp_path):
    _, paths = made
    with stopped_after(1):
        pretext(made, tmp_path / "run")
    file = paths.index_dir / "pretext" / f"{MOTION.name}.npz"
    kept = file.read_bytes()
    with np.load(file) as found:
        changed = {key: 2 * array for key, array in found.items()}
    np.savez(file, **changed)
    with pytest.raises(RunError, match=r"contents.motion-1 was \w+ and is \w+ now"):
        api.resume(tmp_path / "run", execution=CPU)
    file.write_bytes(kept)
    api.resume(tmp_path / "run", execution=CPU)


def test_videos_of_several_targets_are_joined(made, tmp_path):
    target, paths = made
    other = f"videofolder:{make_folder(tmp_path / 'more', 2, first=500)}"
    api.prepare(other, paths=paths)
    summary = api.pretext(
        [target, other], task="egomotion", model="vgg19-egomotion-small", out=tmp_path / "run", epochs=1,
        batch_size=7, amp="fp32", augmentation=SMALL, execution=CPU, paths=paths,
    )  # fmt: skip
    assert summary["targets"] == [target, other]
    assert summary["n_videos"] == 2 * N - HELD_OUT + 4


def test_a_series_skips_what_is_finished_and_goes_on_with_what_is_not(made, tmp_path):
    target, paths = made
    how = {
        "epochs": 2,
        "batch_size": 4,
        "amp": "fp32",
        "augmentation": SMALL,
        "execution": CPU,
        "paths": paths,
    }
    how |= {"task": "egomotion", "model": "vgg19-egomotion-small", "out": tmp_path / "run"}
    with stopped_after(2):
        api.pretext_or_resume(target, **how)
    first = api.pretext_or_resume(target, **how)
    assert first["encoder"] == str(tmp_path / "run" / "encoder.safetensors")
    assert api.pretext_or_resume(target, **how) == as_json(first)
    with pytest.raises(RunError, match=r"was started with lr 0\.001, this command has 0\.5"):
        api.pretext_or_resume(target, **how, lr=0.5)
    assert api.pretext(target, **how) == as_json(first)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Grey videos of 8 to 11 frames, in which nothing has texture."""
    folder = tmp_path_factory.mktemp("short")
    root = make_grey(folder / "videos", n_per_class=4, n_frames=8)
    paths = Paths(folder / "data", folder / "stores")
    api.prepare(f"videofolder:{root}", paths=paths)
    return f"videofolder:{root}", paths


def test_videos_that_are_too_short_are_counted_and_left_out(short, tmp_path):
    said = Remarks()
    pretext(short, tmp_path / "run", "egomotion", epochs=1, val_share=0.5)
    lines = [line for line in said if "shorter than the 9 frames that egomotion needs" in line]
    assert any(
        line.endswith("training videos are shorter than the 9 frames that egomotion needs; they are left out")
        for line in lines
    )


def test_a_target_of_videos_that_are_all_too_short_is_refused(tmp_path):
    root = make_grey(tmp_path / "videos", n_per_class=2, n_frames=3)
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    api.prepare(f"videofolder:{root}", paths=paths)
    with pytest.raises(
        RunError, match=r"all 2 training videos are shorter than the 10 frames that prediction"
    ):
        pretext((f"videofolder:{root}", paths), tmp_path / "run", "prediction", val_share=0.5)


def test_a_target_without_tracks_is_refused_with_their_number(short, tmp_path):
    with pytest.raises(
        RunError, match=r"all \d training videos show nothing that moves and can be followed for"
    ):
        pretext(short, tmp_path / "run", "tracking", val_share=0.5)


def run(made, *words):
    _, paths = made
    lie = ("--data-dir", str(paths.data_dir), "--cache-dir", str(paths.cache_dir), "--device", "cpu")
    return CliRunner().invoke(cli.main, ["pretext", *words, *lie])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--task", "sorting", "--target", "digits"),
            "learns from videos, and digits holds images; name ucf101",
        ),
        (("--task", "sorting", "--target", "nothing"), "nothing"),
        (("--task", "tracking", "--target", "TARGET", "--batch-size", "1"), "raise --batch-size (it is 1)"),
        (("--task", "sorting", "--target", "TARGET", "--target", "TARGET"), "is named twice; leave one out"),
        (
            (
                "--task",
                "sorting",
            ),
            "Missing option '--target', or '--resume'",
        ),
        (("--target", "TARGET"), "Missing option '--task', or '--resume'"),
        (
            ("--task", "prediction", "--target", "TARGET", "--size", "30", "--small"),
            "choose another --size or --batch-size",
        ),
        (("--resume", "RUN", "--epochs", "3"), "--epochs is settled by the run that --resume continues"),
    ],
)
def test_the_command_refuses_in_a_line(made, words, message, tmp_path):
    said = [word.replace("TARGET", made[0]).replace("RUN", str(tmp_path)) for word in words]
    out = () if "--resume" in said else ("--out", str(tmp_path / "run"))
    result = run(made, *said, *out)
    assert result.exit_code in (1, 2)
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "colouring"}, "is 'colouring', expected one of sorting, egomotion, tracking, prediction"),
        ({"model": "resnet3d18"}, "is resnet3d18, for sorting expected vgg19-sorting or vgg19-sorting-small"),
        ({"ema": 0.9}, "ema is not a setting of a pretext run, expected one of amp"),
        (
            {"augmentation": Augmentation(n_frames=8)},
            "is 8, and the pretext task sorting chooses it; leave it out",
        ),
        ({"val_share": 0.0}, "is scored on videos that are held out, and here are none"),
    ],
)
def test_settings_that_make_no_pretext_run_are_refused(made, tmp_path, settings, message):
    with pytest.raises(RunError, match=message):
        pretext(made, tmp_path / "run", **settings)


def test_tasks_run_one_after_the_other(made, tmp_path):
    words = ("--task", "egomotion", "--task", "tracking", "--target", made[0], "--small", "--size", "32")
    words += (
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--amp",
        "fp32",
        "--renderer",
        "torch",
        "--out",
        str(tmp_path),
    )
    result = run(made, *words, "--json")
    assert result.exit_code == 0, result.output
    first = json.loads(result.stdout)
    assert [summary["task"] for summary in first] == ["egomotion", "tracking"]
    shutil.rmtree(tmp_path / "tracking")
    again = json.loads(run(made, *words, "--json").stdout)
    assert [summary["run"] for summary in again] == [str(tmp_path / "egomotion"), str(tmp_path / "tracking")]
    assert again[0] == first[0]


def test_a_damaged_encoder_is_refused_by_its_network(made, tmp_path):
    summary = pretext(made, tmp_path / "run", "egomotion", epochs=1)
    state = load_file(summary["encoder"])
    state.popitem()
    save_file(state, summary["encoder"])
    with pytest.raises(SourceError):
        finetune(made, tmp_path / "teacher", summary)
