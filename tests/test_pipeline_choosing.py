"""A val split, or a part of the training samples, chooses the best epoch; the test split scores once."""

import json
import shutil

import numpy as np
import pytest
import torch
from listening import Remarks
from PIL import Image
from programs import save_program

import pipeline.train.loop as training
from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.studies.series import matches, train_or_resume
from pipeline.studies.sweep_grid import Grid
from pipeline.train.evaluate import Evaluator
from pipeline.train.run_folder import read_metrics
from pipeline.train.splits import open_splits
from pipeline.train.trainer import Trainer
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")

# from the fourth epoch on, so that the best is not the last; clipped, far from what counts as diverged
SPOILT = {"milestones": (3,), "gamma": 100.0, "clip_norm": 1.0}
CPU = choose_execution(device="cpu", renderer="torch", threads=1)
SMALL = Augmentation(side_px=16, source_side_px=16)
SCRATCH = {"method": "scratch", "views": 2}
MEASURED = ("_s", "_share", "_bytes", "_mb")


def fill(root, counts, seed=0):
    """Noise whose colour tells the class, not quite; counts: pictures of each class by split folder."""
    rng = np.random.default_rng(seed)
    for split, n in counts.items():
        for label, name in enumerate("abc"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 180, (20, 20, 3))
                pixels[..., label] += 70
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with train and test, its copy with a val split, and a store of all its training pictures."""
    folder = tmp_path_factory.mktemp("choosing")
    fill(folder / "two" / "pics", {"train": 10, "test": 6})
    shutil.copytree(folder / "two" / "pics", folder / "three" / "pics")
    fill(folder / "three" / "pics", {"valid": 7}, seed=1)
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    paths = Paths(folder / "data", folder / "stores")
    shown = {"augmentation": SMALL, "paths": paths, "execution": CPU}
    api.precompute([f"imagefolder:{folder / 'two' / 'pics'}"], [source], views=2, **shown)
    return folder, source, shown


def train(project, which, out, **settings):
    folder, _, shown = project
    usual = {"epochs": 6, "batch_size": 8, "lr": 0.05, "model": "resnet20", "amp": "fp32"}
    taught = {} if "sources" in settings else SCRATCH
    target = f"imagefolder:{folder / which / 'pics'}"
    return api.train(target, out=out, **{**usual, **taught, **shown, **settings})


def numbers(run):
    lines = [{k: v for k, v in m.items() if not k.endswith(MEASURED)} for m in read_metrics(run)]
    students = [(run / f"{name}.safetensors").read_bytes() for name in ("student", "best")]
    return lines, students


def chosen_by_hand(history):
    """The first epoch with the largest accuracy and, among those, the smallest loss."""
    return sorted(history, key=lambda m: (-m["val_top1"], m["val_loss"], m["epoch"]))[0]


@pytest.mark.parametrize("which", ["two", "three"])
def test_val_chooses_and_test_scores_the_last_and_the_chosen_student_once(
    project, which, tmp_path, monkeypatch
):
    predict, seen = Evaluator.predict, []

    def watched(self, student, amp):
        seen.append((self._dataset.split, len(self._dataset)))
        return predict(self, student, amp)

    monkeypatch.setattr(Evaluator, "predict", watched)
    said = Remarks()
    summary = train(project, which, tmp_path / "run", **SPOILT)
    history = read_metrics(tmp_path / "run")
    best = chosen_by_hand(history)
    assert best["epoch"] < 6
    val = ("train", 3) if which == "two" else ("val", 21)
    assert seen == [val] * 6 + [("test", 18)] * 2
    assert not any(name.startswith(("test", "best_test")) for m in history[:-1] for name in m)
    assert (summary["chosen_on"], summary["metric"]) == ("val", "test_top1")
    assert (summary["best_epoch"], summary["best_val_top1"]) == (best["epoch"], best["val_top1"])
    for name, which_student in (("test_top1", "last"), ("best_test_top1", "best")):
        figures = api.evaluate(tmp_path / "run", execution=CPU, which=which_student)
        assert summary[name] == history[-1][name] == figures["test_top1"]
    (line,) = [line for line in said if "the best epoch" in line]
    text = {"two": "3 of 30 training samples are not trained on and choose", "three": "the val split chooses"}
    assert line.startswith(text[which])
    assert "the test split scores once, at the end" in line


def test_what_the_test_split_holds_changes_nothing_but_its_figures(project, tmp_path):
    """With other pictures under other labels in test/: same epochs, same choice, same students."""
    folder, source, shown = project
    shutil.copytree(folder / "two" / "pics", tmp_path / "pics")
    shutil.rmtree(tmp_path / "pics" / "test")
    fill(tmp_path / "pics", {"test": 5}, seed=9)
    (tmp_path / "pics" / "test" / "a").rename(tmp_path / "x")
    (tmp_path / "pics" / "test" / "b").rename(tmp_path / "pics" / "test" / "a")
    (tmp_path / "x").rename(tmp_path / "pics" / "test" / "b")
    taught = {"sources": (source,), "labels": "cached"}
    plateau = {"schedule": "plateau", "patience": 1, "epochs": 8}
    train(project, "two", tmp_path / "sound", **taught, **plateau)
    train((tmp_path.parent, source, shown), tmp_path.name, tmp_path / "garbage", **taught, **plateau)
    sound, garbage = numbers(tmp_path / "sound"), numbers(tmp_path / "garbage")
    assert sound[1] == garbage[1]
    differ = {name for a, b in zip(sound[0], garbage[0], strict=True) for name in a if a[name] != b[name]}
    assert differ
    assert all(name.startswith(("test_", "best_test_")) for name in differ)
    assert len({m["lr"] for m in sound[0]}) > 1, "the rate drops by the loss on what chooses"


def test_a_share_of_each_class_is_held_out_by_contents(tmp_path):
    root = tmp_path / "pics"
    for name, n in (("a", 25), ("b", 2), ("c", 1), ("d", 10)):
        (root / "train" / name).mkdir(parents=True)
        (root / "test" / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (4, 4), (n, i, 0)).save(root / "train" / name / f"{i:02d}.png")
        Image.new("RGB", (4, 4), (n, 99, 0)).save(root / "test" / name / "0.png")
    target, paths = f"imagefolder:{root}", Paths(tmp_path / "data", tmp_path / "stores")
    whole = open_dataset(target, "train", paths=paths)

    def held(share):
        splits = open_splits(target, paths=paths, val_share=share)
        assert sorted([*splits.train.ids, *splits.val.ids]) == list(range(38))
        assert splits.train.classes == splits.val.classes
        return {splits.val.contents[row].tobytes() for row in range(len(splits.val))}, splits.val.labels

    contents, labels = held(None)
    assert np.bincount(labels, minlength=4).tolist() == [2, 1, 0, 1]
    for label in (0, 1, 3):
        mine = sorted(whole.contents[row].tobytes() for row in np.flatnonzero(whole.labels == label))
        assert set(mine[: max(1, round(len(mine) / 10))]) <= contents
    assert np.bincount(held(0.99)[1], minlength=4).tolist() == [24, 1, 0, 9], "never all of a class"
    assert contents < held(0.3)[0]
    (root / "train" / "a" / "00.png").rename(root / "train" / "a" / "renamed.png")
    assert held(None)[0] == contents
    limited = open_splits(target, paths=paths, limit=12, val_share=0.2)
    assert set(limited.val.ids) <= set(whole.limit(12).ids)
    assert len(limited.val) + len(limited.train) == 12


@pytest.mark.parametrize(
    ("which", "share", "message"),
    [
        ("two", 1.0, r"val_share is 1.0, expected at least 0 and less than 1"),
        ("two", float("nan"), r"val_share is nan, expected"),
        ("three", 0.2, r"--val-share 0.2 is of the training samples, and imagefolder:.* has a val split"),
    ],
)
def test_a_share_that_cannot_be_is_refused(project, which, share, message, tmp_path):
    with pytest.raises(RunError, match=message):
        train(project, which, tmp_path / "run", val_share=share)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["two", "three"])
def test_without_a_share_no_epoch_is_chosen(project, which, tmp_path):
    said = Remarks()
    summary = train(project, which, tmp_path / "run", val_share=0.0, epochs=3)
    assert summary["chosen_on"] is None
    assert not [name for name in summary if "best" in name]
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert ["test_top1" in m for m in read_metrics(tmp_path / "run")] == [False, False, True]
    assert len([line for line in said if "no epoch is chosen" in line]) == 1
    with pytest.raises(RunError, match="was trained with --val-share 0, so it has no best epoch"):
        api.evaluate(tmp_path / "run", execution=CPU, which="best")
    with pytest.raises(RunError, match=r"--schedule plateau watches a loss,.*--val-share 0 leaves none"):
        train(project, which, tmp_path / "plateau", val_share=0.0, schedule="plateau")


def test_an_official_target_is_chosen_on_its_test_split_unless_a_share_is_given(tmp_path):
    paths, said = Paths(tmp_path / "data", tmp_path / "stores"), Remarks()
    for share, expected in ((None, "test"), (0.1, "val"), (0.0, None)):
        splits = open_splits("digits", paths=paths, limit=100, val_share=share)
        assert splits.chosen_on == expected
        assert (len(splits.train), splits.val and len(splits.val)) == (
            (90, 10) if expected == "val" else (100, None)
        )
    assert (
        said[0]
        == "the best epoch is chosen on the test split; --val-share 0.1 chooses on training labels instead"
    )


@pytest.mark.parametrize("limit", [None, 20])
def test_a_store_of_all_training_pictures_serves_those_that_are_trained_on(project, limit, tmp_path):
    """The same figures as from the live source, which is asked about these pictures only."""
    _, source, _ = project
    for labels in ("cached", "live"):
        taught = {"sources": (source,), "labels": labels, "views": 2}
        train(project, "two", tmp_path / labels, **taught, limit=limit, epochs=2)
    cached, live = (read_metrics(tmp_path / labels) for labels in ("cached", "live"))
    for ours, theirs in zip(cached, live, strict=True):
        for name in ("train_loss", "val_loss", f"aux_loss/{source}"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_a_store_that_a_run_filled_without_what_it_held_out_can_be_verified(project, tmp_path):
    folder, source, _ = project
    paths = Paths(folder / "data", tmp_path / "stores")
    taught = {"sources": (source,), "labels": "write-through", "views": 1}
    train(project, "two", tmp_path / "run", **taught, paths=paths, epochs=1)
    (path,) = find_stores(tmp_path / "stores")
    store = Store.open(path)
    assert store.n_samples == 27
    found = api.verify(path, n_rows=16, paths=paths, execution=CPU)
    assert found.good, found.verdict
    served = train(
        project,
        "two",
        tmp_path / "served",
        paths=paths,
        epochs=1,
        sources=(source,),
        labels="cached",
        views=1,
    )
    assert served["labels"] == "cached"


@pytest.mark.parametrize(("which", "n_steps"), [("two", 21), ("three", 6)])
def test_a_stopped_run_chooses_and_scores_as_one_without_a_stop(
    project, which, n_steps, tmp_path, monkeypatch
):
    """Step 21 of 24 is in the last epoch, when the best student is on the disk alone."""
    _, source, _ = project
    taught = {"sources": (source,), "labels": "live", "views": 2}
    whole = train(project, which, tmp_path / "whole", **taught, **SPOILT)
    assert whole["best_epoch"] < 6
    step, taken = Trainer._take_step, []

    def interrupted(self, batch):
        taken.append(1)
        if len(taken) > n_steps:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "_take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(project, which, tmp_path / "run", **taught, **SPOILT)
    resumed = api.resume(tmp_path / "run", execution=CPU)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    names = [name for name in whole if not name.endswith(MEASURED)]
    assert [resumed[name] for name in names] == [whole[name] for name in names]


def begun_before(run):
    """What a run looks like that was begun before a best epoch was chosen on anything but the test split."""
    for path in (run / "config.json", run / "last.pt"):
        state = (
            json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)
        )
        config = state if path.suffix == ".json" else state["config"]
        assert config.pop("val_share") == 0.0
        assert config.pop("chosen_on") == "test"
        if path.suffix == ".json":
            path.write_text(json.dumps(state))
        else:
            torch.save(state, path)


def test_a_run_begun_before_goes_on_and_is_scored_as_it_was(project, tmp_path, monkeypatch):
    """Then the val split, where there was one, was the test split, and it chose the best epoch."""
    import pipeline.train.data as data

    with monkeypatch.context() as before:
        before.setattr(
            data,
            "open_splits",
            lambda target, **asked: open_splits(target, **{**asked, "chosen_on": "test"}),
        )
        train(project, "three", tmp_path / "whole")
        before.setattr(training, "_SAVE_EVERY_S", 0.0)
        step, taken = Trainer._take_step, []

        def interrupted(self, batch):
            taken.append(1)
            if len(taken) > 9:
                raise KeyboardInterrupt
            step(self, batch)

        before.setattr(Trainer, "_take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(project, "three", tmp_path / "run")
    begun_before(tmp_path / "run")
    summary = api.resume(tmp_path / "run", execution=CPU)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    by_epoch = [m["test_top1"] for m in read_metrics(tmp_path / "run")]
    assert (summary["best_test_top1"], summary["chosen_on"]) == (max(by_epoch), "test")
    figures = api.evaluate(tmp_path / "run", execution=CPU)
    assert (figures["split"], figures["n_samples"]) == ("val", 21)
    assert figures["test_top1"] == by_epoch[-1]


def test_a_series_takes_a_run_that_chose_alike_and_no_other(project, tmp_path):
    folder, _, shown = project
    target = f"imagefolder:{folder / 'two' / 'pics'}"
    asked = {
        **SCRATCH, "model": "resnet20", "epochs": 1, "batch_size": 8, **shown
    }  # fmt: skip
    first = train_or_resume(target, tmp_path / "run", amp="fp32", **asked)
    again = train_or_resume(target, tmp_path / "run", amp="fp32", **asked)
    assert (again["test_top1"], again["epoch_s"]) == (first["test_top1"], first["epoch_s"])
    with pytest.raises(RunError, match=r"was started with (contents|val_share).* this command has"):
        train_or_resume(target, tmp_path / "run", amp="fp32", val_share=0.3, **asked)


def test_an_official_run_begun_before_is_still_taken_for_the_one_that_is_asked_for(tmp_path):
    asked = {
        **SCRATCH,
        "epochs": 1,
        "limit": 20,
        "amp": "fp32",
        "paths": Paths(tmp_path / "data", tmp_path / "stores"),
        "execution": CPU,
    }
    api.train("digits", out=tmp_path / "run", **asked)
    begun_before(tmp_path / "run")
    assert matches("digits", tmp_path / "run", **asked)
    api.train("digits", out=tmp_path / "val", **{**asked, "amp": "fp32", "val_share": 0.2})
    assert not matches("digits", tmp_path / "val", **asked)


def test_a_sweep_compares_students_on_what_chooses(project, tmp_path):
    folder, source, shown = project
    said = Remarks()
    rows = api.sweep(
        f"imagefolder:{folder / 'two' / 'pics'}",
        Grid(((source,),), (2.0,), (0.5,)),
        out=tmp_path,
        views=2,
        amp="fp32",
        model="resnet20",
        overrides={"epochs": 1, "batch_size": 8},
        **shown,
    )
    summary = json.loads((tmp_path / "scratch-seed0" / "summary.json").read_text())
    assert rows[0]["mean"] == summary["val_top1"]
    assert "students are compared by the accuracy on the val split" in said
