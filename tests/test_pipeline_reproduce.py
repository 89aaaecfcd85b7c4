"""Every published row can be run, once each source has looked, and goes on where it was."""

import csv
import json
import os
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import shared
from listening import Remarks
from programs import Tiny, save_program
from videos import make_folder

from cli import main
from pipeline import api
from pipeline.api import Paths, choose_execution, open_dataset
from pipeline.data import augmentation as choices
from pipeline.data import index_copies as opening
from pipeline.data.datasets.dataset import Dataset
from pipeline.data.datasets.images import ArrayImages
from pipeline.data.datasets.registry import TARGETS
from pipeline.runtime.lock import LOCK, alone_in
from pipeline.studies import series as again
from pipeline.studies.reproduce import all_clips, published, report
from pipeline.studies.reproduce import rows as attempt
from pipeline.studies.reproduce import run as runner
from pipeline.studies.reproduce.campaign import Campaign
from pipeline.studies.reproduce.gain_plot import draw_gains
from pipeline.studies.reproduce.marks import Mark, departures
from pipeline.studies.reproduce.published import published_rows
from pipeline.studies.reproduce.report import Scratch, write_report
from pipeline.studies.reproduce.rows import TEACHERS, Shrink, attempts
from pipeline.train.divergence import DivergedError
from pipeline.train.run_folder import Run
from sskt.errors import RunError
from sskt.methods import METHODS
from sskt.normalise import KINETICS_MEAN
from sskt.recipes import all_recipes, recipe_for
from sskt.students import build_backbone, student
from sskt.students.resnet3d import ResNet3D

pytestmark = pytest.mark.usefixtures("narrow")

TABLES = list(dict.fromkeys(row.table for row in published_rows() if row.table != "G"))
SIDE, N = 32, 6
ACTIVITYNET = (114.77 / 255, 107.74 / 255, 99.48 / 255)


def test_the_published_rows_are_those_of_the_papers():
    original = []
    for name in ("results.csv", "results_missing.csv"):  # what the scan had, and the rows that it had cut off
        with shared(f"paper/{name}").open(newline="") as file:
            original += csv.DictReader(file)
    with Path(published.__file__).with_name("published.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == original, "every field as it was typed in"
    ours = published_rows()
    assert len(ours) == len(original) == 286 + 27
    for row, fields in zip(ours, original, strict=True):
        assert (row.table, row.target) == (fields["table"], fields["target"])
        assert row.model == ("" if fields["method"].startswith("models ") else fields["model"])
        assert row.metric_percent == float(fields["metric_percent"])
    names = [(row.table, row.name) for row in ours]
    assert len(set(names)) == len(names)
    for row in ours:
        if row.table != "G":
            assert row.method in (*METHODS, "finetune")
            assert row.model in recipe_for(row.target).models


def test_every_table_has_its_rows():
    """Counted by hand in the papers."""
    counts = {table: len(published_rows(table)) for table in (*TABLES, "G")}
    grids = dict.fromkeys(("S1", "S2", "S3", "S4", "S6", "S7"), 26) | {"S5": 39, "S8": 35}
    assert counts == grids | {"M2": 4, "M7": 4, "M8": 22, "R": 5, "G": 48}
    assert sum(counts.values()) - counts["G"] == 265
    hmdb51 = {row.name: row.metric_percent for row in published_rows("S6") if row.target == "hmdb51"}
    assert len(hmdb51) == 13, "scratch, and three sets of sources by two losses, with and without module"
    assert hmdb51["hmdb51-resnet3d18-sskt-places365+imagenet-ce"] == 19.75
    voc = {row.name: (row.metric_percent, row.std) for row in published_rows("S8") if row.target == "voc"}
    assert voc["voc-resnet18-sskt-from-imagenet-imagenet-tm-kd"] == (92.19, 0.09)
    elsewhere = {row.name for row in published_rows("M7")}
    assert len(voc | dict.fromkeys(elsewhere)) == 13, "the other four are in the main paper's table"


def cited_rows():
    return [row for row in published_rows() if row.is_cited]


def test_cited_rows_are_shown_and_never_run(bare, monkeypatch):
    rows = cited_rows()
    assert {row.table for row in rows} == {"G"}
    assert [row.target for row in rows] == ["ucf101", "hmdb51", "ccv"] * 5
    assert {(row.authors, row.model) for row in rows[:3]} == {("Wang et al. 2015", "")}
    for name in ("train_or_resume", "precompute_once"):
        monkeypatch.setattr(runner, name, lambda *_, **__: pytest.fail("a cited row was run"))
    listed = api.reproduce("G", bare, rows=["cited"], dry_run=True)
    assert [result.row for result in listed] == rows
    assert {result.cost(3)["runs_left"] for result in listed} == {0}
    assert api.reproduce("G", bare, rows=["cited"]) == listed
    with (bare.out / "table-G.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["paper"]) for row in written] == [row.metric_percent for row in rows]
    assert {(row["ours"], row["seeds"]) for row in written} == {("-", "0")}
    assert "a figure of Purushwalkam and Gupta 2016" in (bare.out / "table-G.md").read_text()


def test_a_cited_row_stands_among_those_that_are_run(bare, monkeypatch):
    first, second = published_rows("M2")[:2]
    cited = replace(cited_rows()[0], table="M2")
    monkeypatch.setattr(published, "_all_rows", lambda: (first, cited, second))
    results = api.reproduce("M2", bare, dry_run=True)
    assert [result.row for result in results] == [first, cited, second]
    assert [result.teachers_left + result.live for result in results][1] == 0
    assert [a.row for a in attempts("M2", [], shrink=Shrink(), stand_ins={})] == [first, second]


def test_the_recipes_are_table_1():
    """As in docs/method.md, section 4, typed in again: lr, milestones, weight decay, loss, T and alpha."""
    table = {
        "cifar10": (0.1, (150, 250, 350), 5e-4, "ce", 3, 0.1),
        "cifar100": (0.1, (60, 120, 160, 200), 5e-4, "ce", 3, 0.1),
        "stl10": (0.1, (60, 120, 160, 200), 5e-4, "ce", 3, 0.1),
        "places365": (0.1, (30, 60, 90), 1e-4, "ce", 3, 0.1),
        "imagenet": (0.1, (30, 60, 90), 1e-4, "ce", 3, 0.1),
        "voc": (0.1, (30, 60, 90), 1e-4, "bce", 3, 0.1),
        "ucf101": (0.1, (), 1e-3, "ce", 1, 1),
        "hmdb51": (0.1, (), 1e-3, "ce", 1, 1),
    }
    for target, wanted in table.items():
        r = recipe_for(target)
        assert (r.lr, r.milestones, r.weight_decay, r.primary_loss, r.temperature, r.alpha) == wanted, target
        assert (r.batch_size, r.momentum) == (128, 0.9)
        assert r.schedule == ("plateau" if target in ("ucf101", "hmdb51") else "multistep")
        assert r.finetune_lr == (0.01 if target in ("voc", "ucf101", "hmdb51") else None)
    assert {r.target for r in all_recipes() if r.published} >= set(table)


def test_a_short_training_drops_its_rate_once_at_a_time():
    """By torch's own schedule, of every recipe and length."""
    for recipe in all_recipes():
        if recipe.schedule != "multistep":
            continue
        assert recipe.milestones_in(recipe.epochs) == recipe.milestones
        for epochs in range(1, 30):
            milestones = recipe.milestones_in(epochs)
            optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(milestones), gamma=recipe.gamma)
            rates = []
            for _ in range(epochs):
                rates.append(optimiser.param_groups[0]["lr"])
                optimiser.step()
                schedule.step()
            assert rates[0] == 1.0, "the first epoch has the full rate"
            drops = [b / a for a, b in pairwise(rates) if b != a]
            assert drops == pytest.approx([recipe.gamma] * len(drops)), (recipe.target, epochs, milestones)
            if epochs >= 10:  # none is lost but by a milestone at the end
                assert len(drops) == sum(m < recipe.epochs for m in recipe.milestones)
    assert recipe_for("cifar100").milestones_in(3) == (1, 2)
    assert recipe_for("stl10").milestones_in(20) == (6, 12, 16, 20), (
        "as runs have recorded it; 20 never comes"
    )
    assert recipe_for("ucf101").patience_in(200) == 10
    assert recipe_for("ucf101").patience_in(3) == 1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Sources and weights to begin with, and a few samples of every target, in its classes."""
    folder = tmp_path_factory.mktemp("papers")
    paths = Paths(folder, folder / "stores")
    root = make_folder(folder / "videos", n_per_class=N // 2, n_frames=17)
    api.prepare(f"videofolder:{root}", paths=paths)
    videos = {s: open_dataset(f"videofolder:{root}", s, paths=paths) for s in ("train", "test")}
    stand_ins = {}
    for seed, name in enumerate(("places365", "imagenet", "imagenet:vgg16")):
        path = save_program(folder / f"{name.replace(':', '-')}.pt2", Tiny(seed))
        stand_ins[name] = f"program:{path}"
    weights = {}
    for name, model in (("kinetics", "resnet3d18"), ("imagenet:resnet18", "resnet18")):
        weights[name] = folder / f"{model}.pth"
        torch.save(build_backbone(model).state_dict(), weights[name])
    return folder, paths, videos, stand_ins, weights


def few(spec, split, videos):
    """A few made samples of a target."""
    classes = tuple(f"class {c}" for c in range(spec.n_classes))
    rng = np.random.default_rng(spec.n_classes + (split == "train"))
    if spec.holds_videos:
        return replace(videos[split], target=spec.name, classes=classes)
    pixels = rng.integers(0, 256, size=(N, SIDE, SIDE, 3), dtype=np.uint8)
    multi_hot = None
    if spec.is_multilabel:
        multi_hot = rng.integers(-1, 2, size=(N, spec.n_classes)).astype(np.int8)
        multi_hot[:, 0] = 1
    return Dataset(
        spec.name,
        split,
        "array",
        classes,
        np.arange(N),
        rng.integers(0, spec.n_classes, size=N),
        np.full((N, 2), SIDE, dtype=np.int32),
        rng.integers(0, 256, size=(N, 16), dtype=np.uint8),
        ArrayImages(spec.name, pixels, np.arange(N)),
        multi_hot=multi_hot,
    )


@pytest.fixture
def tiny_targets(small, monkeypatch):
    _folder, _places, videos, *_ = small
    monkeypatch.setattr(choices, "DEFAULT_CLIP", (4, 1))
    for name, spec in TARGETS.items():
        monkeypatch.setitem(TARGETS, name, replace(spec, side_px=SIDE, short_px=SIDE))
    monkeypatch.setattr(opening, "load_dataset", lambda spec, split, **_: few(spec, split, videos))


def pairs_of(row):
    """Every two of the things that decide the code that runs a row; of a network, those that it knows of."""
    spec = TARGETS[row.target]
    known = (row.init, row.transfer_module, spec.holds_videos, spec.is_multilabel)
    told = (*known, row.method, row.primary_loss, row.aux_loss, row.psi, len(row.sources))
    return {*combinations(enumerate(told), 2), *product([row.model], enumerate(known))}


@cache
def rows_to_run():
    """By table, the numbers of few rows that hold every two things that any row holds together."""
    every = {(name, n): pairs_of(row) for name in TABLES for n, row in enumerate(published_rows(name), 1)}
    chosen, left = [], set().union(*every.values())
    while left:
        chosen.append(max(every, key=lambda row: len(every[row] & left)))
        left -= every[chosen[-1]]
    chosen = sorted(every if "EVERY_ROW" in os.environ else chosen)
    return {name: [str(n) for table, n in chosen if table == name] for name, _ in chosen}


@pytest.mark.parametrize("table", rows_to_run())
def test_published_rows_take_two_steps(small, tiny_targets, table, tmp_path, monkeypatch):
    """30 of 265, all with EVERY_ROW=1 in the environment; golden tests hold the settings of all."""
    numbers = rows_to_run()[table]
    rows = [published_rows(table)[int(n) - 1] for n in numbers]
    monkeypatch.setattr(Run, "save_checkpoint", lambda *_: None)  # hundreds of megabytes a run
    # at full width their gradients take most of the time; tests/test_sskt_student.py has the paper's widths
    module = student.TransferModule
    monkeypatch.setattr(student, "TransferModule", lambda blocks, width, *a, **k: module(blocks, 32, *a, **k))
    monkeypatch.setattr(report, "draw_gains", lambda *_: b"")  # after every row
    scale = 2 / min(recipe_for(row.target).epochs for row in published_rows(table))
    if table != "M8":  # whose teachers are runs
        monkeypatch.setattr(Run, "save_student", lambda *_: None)
        monkeypatch.setattr(all_clips, "evaluate", lambda *_, **__: {"test_top1": 50.0})
    _folder, paths, _videos, stand_ins, weights = small
    campaign = Campaign(
        tmp_path,
        replace(paths, weights=weights, cache_dir=tmp_path / "stores"),
        choose_execution(device="cpu", threads=2),
        seeds=1,
        shrink=Shrink(scale=scale),
        views=2,
        amp="fp32",
    )
    results = api.reproduce(table, campaign, rows=numbers, stand_ins=stand_ins)
    assert [result.row for result in results] == rows
    for result in results:
        assert len(result.values) == 1, result.row.name
        if result.row.target in ("ucf101", "hmdb51"):
            kept = json.loads((campaign.folder(result.row.name, 0) / "all-clips.json").read_text())
            assert result.values == (kept["test_top1"],)
            assert kept.get("n_clips_of_all_videos", 18) == 18, "2 videos of 17 and 2 of 18 frames, by 4"
        assert np.isfinite(result.values[0])
        assert result.epochs >= 2
        notes = [mark.note for mark in result.marks]
        assert f"scale {scale:g} of the paper's epochs" in notes
        assert all(f"{name} is {stand_ins[name]}" in notes for name in result.row.sources)
        config = json.loads((campaign.folder(result.row.name, 0) / "config.json").read_text())
        assert config["transfer_module"] == result.row.transfer_module
        assert config["aux_loss"] == (result.row.aux_loss or config["aux_loss"])
        assert config["primary_loss"] == (result.row.primary_loss or config["primary_loss"])
        assert (config["finetune_from"] is None) == (result.row.init == "random")
        assert config["freeze_until"] == ("layer4" if result.row.init == "kinetics" else None)
    stores = list((tmp_path / "stores").rglob("*.zarr")) if (tmp_path / "stores").exists() else []
    sources = {(row.target, source) for row in rows for source in row.sources}
    sources |= {(row.target, TEACHERS[row.model]) for row in rows if row.method == "kd"}
    assert len(stores) == len(sources), "one precompute a target and source, however many rows"


def test_rows_cost_one_look_of_each_source_and_a_stopped_table_goes_on(
    small, tiny_targets, tmp_path, monkeypatch
):
    _folder, paths, _videos, stand_ins, _weights = small
    campaign = short(tmp_path / "out", paths, seeds=2, views=3)
    chosen = [f"resnet20-sskt-{sources}-ce" for sources in ("places365", "imagenet", "places365+imagenet")]
    trained, train = [], again.train

    def stops(*args, **settings):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(settings["out"])
        return train(*args, **settings)

    with monkeypatch.context() as stopping:
        stopping.setattr(again, "train", stops)
        with pytest.raises(KeyboardInterrupt):
            api.reproduce("S1", campaign, rows=chosen, stand_ins=stand_ins)
    first = (tmp_path / "out" / "table-S1.csv").read_text()
    assert first.count(",1,") == 2
    (trained[1] / "summary.json").unlink()  # as if killed before its end
    stores = tmp_path / "out" / "stores"
    before = {path: path.stat().st_mtime_ns for path in stores.rglob("c.*")}
    assert before
    results = api.reproduce("S1", campaign, rows=chosen, stand_ins=stand_ins)
    assert {path: path.stat().st_mtime_ns for path in stores.rglob("c.*")} == before
    assert [len(result.values) for result in results] == [2] * 3
    html = (tmp_path / "out" / "table-S1.html").read_text()
    markdown = (tmp_path / "out" / "table-S1.md").read_text()
    # two sources x 3 views x 6 samples; live: 2 seeds x 2 epochs x 6 samples x (1 + 1 + 2) source heads
    assert "Teacher forwards: 36 for all rows and seeds" in markdown
    assert "asked live in every epoch they would be 96" in html
    with (tmp_path / "out" / "table-S1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(row["our_gain"] for row in rows), "scratch has not been run here"
    for row, result in zip(rows, results, strict=True):
        values = [float(v) for v in row["values"].split()]
        assert row["ours"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
        assert float(row["difference"]) == pytest.approx(
            np.mean(values) - result.row.metric_percent, abs=0.006
        )


def test_gains_are_over_the_same_network_from_scratch_in_the_same_settings(small, tiny_targets, tmp_path):
    _folder, paths, _videos, stand_ins, _weights = small
    campaign = short(tmp_path, paths, seeds=2, views=2)
    api.reproduce("S1", campaign, rows=["1", "3"], stand_ins=stand_ins)
    (kd,) = api.reproduce("M8", campaign, rows=["1"])  # whose scratch row is in table S1

    def figures_of(name):
        return [
            json.loads((tmp_path / f"{name}-seed{i}" / "summary.json").read_text())["test_top1"]
            for i in (0, 1)
        ]

    scratch = figures_of("cifar10-resnet20-scratch")
    rows = {}
    for table in ("S1", "M8"):
        with (tmp_path / f"table-{table}.csv").open(newline="") as file:
            rows |= {row["row"]: row for row in csv.DictReader(file)}
        assert (tmp_path / f"table-{table}.png").read_bytes()[1:4] == b"PNG"
    assert rows.pop("cifar10-resnet20-scratch")["our_gain"] == ""
    paper = {"cifar10-resnet20-kd": 91.75 - 92.19, "cifar10-resnet20-sskt-places365-kd": 92.24 - 92.19}
    assert rows.keys() == paper.keys()
    for name, row in rows.items():
        assert float(row["our_gain"]) == pytest.approx(
            np.mean(figures_of(name)) - np.mean(scratch), abs=0.006
        )
        assert float(row["paper_gain"]) == pytest.approx(paper[name], abs=0.006)
    assert Mark("teacher", "teacher: resnet32 of ours, from scratch") in kd.marks
    assert Mark("data", "6 training samples, not the official 50,000") in kd.marks
    # each seed's teacher looks at 2 views of 6 samples; live, 2 seeds of 2 epochs would
    assert (sum(kd.stored.values()), kd.live) == (2 * 2 * N, 2 * 2 * N)
    config = json.loads((tmp_path / "cifar10-resnet20-kd-seed1" / "config.json").read_text())
    assert config["labels"] == "cached"
    assert "cifar10-resnet32-scratch-seed1" in config["sources"][0]
    shorter = replace(campaign, shrink=Shrink(scale=0.0025))
    (listed,) = api.reproduce("S1", shorter, rows=["3"], stand_ins=stand_ins, dry_run=True)
    assert listed.values == ()
    assert listed.scratch.values == ()


def test_a_run_of_another_process_is_left_to_it_and_the_others_are_done(small, tiny_targets, tmp_path):
    _folder, paths, _videos, stand_ins, _weights = small
    campaign = short(tmp_path, paths, seeds=1, views=2)
    said, theirs = Remarks(), tmp_path / "cifar10-resnet20-scratch-seed0"
    theirs.mkdir()
    with alone_in(theirs):
        busy, done = api.reproduce("S1", campaign, rows=["1", "2"], stand_ins=stand_ins)
    assert (len(busy.values), len(done.values)) == (0, 1)
    assert names_in_report(tmp_path) == [theirs.name[: -len("-seed0")], done.row.name]
    assert any(f"{theirs}: another process trains this run" in line for line in said)
    assert list(theirs.iterdir()) == [theirs / LOCK]
    (result,) = api.reproduce("S1", campaign, rows=["1"], stand_ins=stand_ins)
    assert len(result.values) == 1
    assert names_in_report(tmp_path) == [result.row.name, done.row.name], "of both calls"


def short(out, paths, *, seeds, views):
    """Two epochs of CIFAR-10's recipe, with stores of its own."""
    return Campaign(
        out,
        replace(paths, cache_dir=out / "stores"),
        choose_execution(device="cpu", threads=2),
        seeds=seeds,
        shrink=Shrink(scale=0.005),
        views=views,
        amp="fp32",
    )


def names_in_report(folder):
    with (folder / "table-S1.csv").open(newline="") as file:
        return [row["row"] for row in csv.DictReader(file)]


def test_runs_of_another_scale_are_never_taken_for_these(small, tiny_targets, tmp_path):
    _folder, paths, _videos, stand_ins, _weights = small
    campaign = short(tmp_path / "out", paths, seeds=1, views=2)
    api.reproduce("S1", campaign, rows=["1"], stand_ins=stand_ins)
    for other, message in (
        (replace(campaign, shrink=Shrink(scale=0.01)), "was started with epochs 2, this command has 4"),
        (replace(campaign, views=3), "was started with views 2, this command has 3"),
        (
            replace(campaign, shrink=Shrink(0.005, limit=5)),
            "was started with limit None, this command has 5",
        ),
    ):
        with pytest.raises(RunError, match=message):
            api.reproduce("S1", other, rows=["1"], stand_ins=stand_ins)


def test_rows_are_chosen_by_number_range_and_name():
    def names(*rows):
        return [a.row.name for a in attempts("S1", rows, shrink=Shrink(), stand_ins={})]

    everything = names()
    assert len(everything) == 26
    assert names("1-3", "7") == [*everything[:3], everything[6]]
    assert names("resnet32-sskt-imagenet") == [n for n in everything if "resnet32-sskt-imagenet" in n]
    with pytest.raises(RunError, match="--rows chooses none of the 26 rows of table S1"):
        names("resnet99")
    with pytest.raises(RunError, match="--table is 'S9', expected one of S1"):
        attempts("S9", [], shrink=Shrink(), stand_ins={})
    with pytest.raises(RunError, match=r"--scale is 1\.5"):
        attempts("S1", [], shrink=Shrink(scale=1.5), stand_ins={})


def test_the_command_line_lists_rows_and_recipes(tmp_path, small, tiny_targets):
    result = CliRunner().invoke(
        main,
        ["reproduce", "--table", "S3", "--rows", "1", "--dry-run", "--data-dir", str(tmp_path), "--json"],
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["row"] == "stl10-resnet20-scratch"
    assert row["training_samples"] == 5_000
    assert not list(tmp_path.iterdir())
    result = CliRunner().invoke(main, ["recipes", "--json"])
    listed = json.loads(result.stdout)
    assert {r["target"] for r in listed} >= {"cifar10", "ucf101", "voc"}
    assert all(r["aux_loss"] == recipe_for(r["target"]).aux_loss for r in listed)


def dry(table, rows, campaign, **stand_ins):
    return api.reproduce(table, campaign, rows=rows, stand_ins=stand_ins, dry_run=True)


@pytest.fixture
def bare(tmp_path):
    """A campaign with nothing there."""
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    return Campaign(tmp_path / "out", paths, choose_execution(device="cpu", threads=2), amp="fp32")


WORDS = {  # what differs from the paper or its released code, row by row (docs/method.md, section 5)
    ("S1", "1"): "protocol augmentation epochs schedule",
    ("S2", "2"): "protocol augmentation epochs sources",
    ("S3", "1"): "protocol",
    ("S3", "3"): "protocol sources",
    ("M7", "2"): "protocol metric labels augmentation epochs schedule sources",
    ("S6", "1"): "shortcut",
    ("S6", "2"): "input schedule shortcut sources",
    ("S6", "3"): "input schedule shortcut loss sources",
    ("S8", "1"): "freezing",
    ("S8", "2"): "input schedule freezing sources",
    ("M8", "stl10-resnet20-kd"): "teacher protocol loss",
    ("M8", "stl10-resnet20-dml"): "peers protocol schedule",
    ("M8", "hmdb51-resnet3d18-dml-from"): "peers schedule freezing",
    ("M8", "voc-resnet50-kd"): "teacher protocol metric labels augmentation epochs schedule loss loss",
    ("R", "1"): "protocol augmentation epochs steps",
    ("R", "3"): "protocol augmentation epochs schedule schedule loss sources",
    ("R", "4"): "protocol augmentation epochs schedule sources",
}


@pytest.mark.parametrize(("table", "row"), WORDS)
def test_every_difference_from_the_paper_is_a_word_and_a_footnote(bare, table, row, monkeypatch):
    monkeypatch.setattr(ResNet3D, "mean", ACTIVITYNET)
    for target in ("ucf101", "hmdb51"):
        monkeypatch.setitem(attempt._METRICS, target, "test_top1_all_clips")
    (result,) = dry(table, [row], bare)
    words = [mark.word for mark in result.marks]
    assert words == [*WORDS[table, row].split(), "views"]
    (low,) = dry(table, [row], replace(bare, amp="bf16"))
    assert low.marks == (*result.marks, Mark("precision", "students compute in bf16"))


def test_footnotes_follow_the_settings():
    (row,) = attempts("S3", ["3"], shrink=Shrink(), stand_ins={})
    setup = row.setup
    other = replace(setup, config=replace(setup.config, teacher_bn="batch-stats", gamma=0.1, epochs=150))
    notes = {mark.word: mark.note for mark in departures(other)}
    assert notes.keys() == {"protocol", "epochs", "schedule"}
    assert notes["epochs"] == "150 epochs; the released code takes 200"
    assert notes["schedule"].startswith("the rate is multiplied by 0.1 at each milestone")
    focal = replace(setup, config=replace(setup.config, aux_loss="focal"))
    assert any("softened by T = 3" in mark.note for mark in departures(focal))
    focal = replace(setup, config=replace(setup.config, aux_loss="focal", temperature=1.0))
    assert not any(mark.word == "loss" for mark in departures(focal))


def test_clips_with_another_mean_and_scored_by_some_of_a_video_are_marked(monkeypatch):
    (row,) = attempts("S6", ["1"], shrink=Shrink(), stand_ins={})

    def notes(mean, metric):
        monkeypatch.setattr(ResNet3D, "mean", mean)
        return {mark.word: mark.note for mark in departures(replace(row.setup, metric=metric))}

    assert notes(ACTIVITYNET, "test_top1_all_clips").keys() == {"shortcut"}
    found = notes(KINETICS_MEAN, "test_top1")
    assert found.keys() == {"protocol", "mean", "shortcut"}
    assert found["protocol"].startswith("a video's score is the mean of 3 evenly spaced clips")


def test_a_page_explains_every_word_once_and_numbers_those_of_two_footnotes(bare):
    results = dry("R", ["1", "3", "4"], bare)
    write_report("R", results, bare.out)
    with (bare.out / "table-R.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        rows[1]["differs"] == "protocol, augmentation, epochs, schedule-1, schedule-2, loss, sources, views"
    )
    assert rows[2]["differs"] == "protocol, augmentation, epochs, schedule-1, sources, views"
    markdown, html = (
        (bare.out / f"table-R.{suffix}").read_text().partition("Differs from")[2] for suffix in ("md", "html")
    )
    for word in {word for row in rows for word in row["differs"].split(", ")}:
        assert markdown.count(f"\n* {word}: ") == html.count(f">{word}</span>: ") == 1
    for row in rows:
        for note in row["differs_in"].split("; ") if row is rows[2] else ():
            assert note in markdown


def test_a_spread_of_zero_is_printed(bare):
    (still,) = [row for row in published_rows("S1") if row.std == 0]
    (result,) = dry("S1", [still.name], bare)
    assert (
        replace(result, values=(50.0, 50.0)).cells(dict.fromkeys(result.marks, ""))["ours"] == "50.00 ± 0.00"
    )
    assert result.cells(dict.fromkeys(result.marks, ""))["paper"] == "92.29 ± 0.00"


def test_a_gains_error_bar_has_scratchs_spread_in_it(bare):
    (result,) = dry("S1", ["3"], bare)
    ours, scratch = (91.0, 92.5, 92.0), (90.0, 90.2, 91.3)
    gain = replace(result, values=ours, scratch=Scratch(92.19, scratch)).gain
    assert gain.ours == pytest.approx(np.mean(ours) - np.mean(scratch))
    # the variance of all differences between two independent draws of what was seen, each n - 1
    variance = np.cov(ours) + np.cov(scratch)
    assert gain.deviation == pytest.approx(float(np.sqrt(variance)))
    assert replace(result, values=ours, scratch=Scratch(92.19, scratch[:1])).gain.deviation is None
    assert draw_gains("one seed of scratch", [replace(gain, deviation=None)])[1:4] == b"PNG"
    write_report("S1", [replace(result, values=ours, scratch=Scratch(92.19, scratch))], bare.out)
    assert "root of the summed squares of both standard deviations" in (bare.out / "table-S1.md").read_text()


def test_a_plateau_is_looked_at_in_every_epoch():
    (steps,) = attempts("S1", ["1"], shrink=Shrink(scale=0.5), stand_ins={})
    (plateau,) = attempts("S6", ["1"], shrink=Shrink(scale=0.5), stand_ins={})
    assert [attempt.eval_every(None) for attempt in (steps, plateau)] == [10, 1]
    assert [attempt.eval_every(5000) for attempt in (steps, plateau)] == [200, 1]


def test_a_dry_run_counts_the_teachers_training(bare):
    first, second = dry("M8", ["cifar10-resnet20-kd", "cifar10-resnet32-kd"], bare)
    assert (first.cost(3)["teacher_runs_left"], second.cost(3)["teacher_runs_left"]) == (3, 3)
    assert first.cost(3)["student_samples"] == (3 + 3) * 400 * 50_000
    bigger, same = dry("M8", ["voc-resnet34-kd", "voc-resnet50-kd"], bare)
    assert (bigger.teachers_left, same.teachers_left) == (3, 0), "both learn from the same runs"


def test_mistyped_names_are_refused(bare):
    with pytest.raises(RunError, match="--stand-in names placess365, the published rows have places365, "):
        dry("S1", [], bare, placess365="program:net.pt2")
    with pytest.raises(RunError, match=r"makes program:net\.pt2 both sources of cifar10-resnet20-sskt"):
        dry("S1", ["11"], bare, places365="program:net.pt2", imagenet="program:net.pt2")
    mistyped = replace(bare.paths, weights={"imagnet": Path("x.pth")})
    with pytest.raises(RunError, match="--weights names imagnet, the published rows have places365, "):
        dry("S1", [], replace(bare, paths=mistyped))


def test_a_probe_stands_in_beside_a_source_with_a_head(small, tiny_targets, tmp_path, monkeypatch):
    _folder, paths, videos, stand_ins, _weights = small
    two_classes = {"labels": np.arange(N) % 2}  # of three samples each, for the probe's folds
    monkeypatch.setattr(
        opening, "load_dataset", lambda spec, split, **_: replace(few(spec, split, videos), **two_classes)
    )
    places, imagenet = stand_ins["places365"], stand_ins["imagenet"]
    probe = f"probe:{imagenet}+{places}"
    campaign = short(tmp_path, paths, seeds=1, views=2)
    for _ in range(2):  # the second time from the report's runs
        (result,) = api.reproduce("S1", campaign, rows=["12"], stand_ins={**stand_ins, "imagenet": probe})
    config = json.loads((campaign.folder(result.row.name, 0) / "config.json").read_text())
    assert (config["sources"], config["transfer_module"]) == ([places, probe], True)
    assert any(mark.note.startswith(f"imagenet is {probe}, which teaches") for mark in result.marks)
    assert result.sources == (places, probe)
    assert result.stored == {("cifar10", places): 2 * N, ("cifar10", imagenet): 2 * N}


def test_a_probe_alone_cannot_reproduce_a_row(bare):
    probe = "probe:imagenet+places365"
    beside = "1,2,3,4,5,10,11,12,13,14,15,16,17,18,23,24,25,26"
    with pytest.raises(RunError, match=f"sskt-imagenet-ce has no other source; choose --rows {beside}, or "):
        dry("S1", [], bare, imagenet=probe)
    assert len(dry("S1", beside.split(","), bare, imagenet=probe)) == 18
    with pytest.raises(RunError, match=r"choose rows of another source as well, or train .* --sources probe"):
        dry("S1", ["6"], bare, imagenet=probe)
    with pytest.raises(RunError, match=r"probe is fitted on whatever is stored.* probe:imagenet\+places365"):
        dry("S1", ["10"], bare, imagenet="probe")


def test_a_row_that_diverges_is_marked_and_the_others_go_on(small, tiny_targets, bare, monkeypatch):
    called = []

    def diverges(_target, folder, **_asked):
        called.append(folder.name)
        if "resnet20" in folder.name:
            raise DivergedError("the loss is nan", {})

    monkeypatch.setattr(runner, "train_or_resume", diverges)
    here = replace(bare, paths=small[1], seeds=2)
    first, second = api.reproduce("S1", here, rows=["1", "14"])
    assert called == [f"cifar10-resnet{depth}-scratch-seed{seed}" for seed in (0, 1) for depth in (20, 32)]
    assert [mark.note for mark in first.marks[-2:]] == ["seed 0 diverged", "seed 1 diverged"]
    assert not any(mark.word == "diverged" for mark in second.marks)
    assert "seed 1 diverged" in (bare.out / "table-S1.md").read_text()
