"""The figures that a person would put in a paper: what they show is what the networks say."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import shared
from PIL import Image
from programs import Tiny, save_program
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as tvf

from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.commands.rows import store_rows
from pipeline.studies import explain, sweep
from pipeline.studies.series import matches, train_or_resume
from pipeline.studies.sweep_grid import Grid, panels_of
from pipeline.train.divergence import DivergedError
from pipeline.train.run_folder import read_summary
from sskt.errors import RunError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.students.gradcam import grad_cam
from sskt.students.student import build_student

pytestmark = pytest.mark.usefixtures("narrow")

QUICK = {"epochs": 1, "batch_size": 30}


@pytest.mark.parametrize("model", ["resnet20", "resnet18", "mobilenet_v2", "vgg16", "densenet121"])
def test_grad_cam_is_the_gradient_through_the_whole_network(model):
    torch.manual_seed(0)
    student = build_student(model, 5, {}, transfer_module=False).eval()
    x, classes = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    heat = grad_cam(student, x, classes)
    assert heat.shape == (2, 64, 64)
    for n in range(2):
        features = student.backbone(x[n : n + 1])
        last = features.blocks[-1]
        last.retain_grad()
        student.head(features.pooled)[0, classes[n]].backward()
        weights = last.grad[0].mean(dim=(1, 2))
        by_hand = F.relu((weights[:, None, None] * last[0]).sum(dim=0)).detach()
        expected = F.interpolate(by_hand[None, None], size=(64, 64), mode="bilinear", align_corners=False)[
            0, 0
        ]
        expected = expected / expected.max().clamp(min=1e-12)
        torch.testing.assert_close(heat[n], expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    common = {
        "paths": Paths(folder / "data", folder / "stores"),
        "execution": choose_execution(device="cpu", threads=2),
        "limit": 60,
    }
    for seed in (0, 1):
        api.train("digits", out=folder / f"run{seed}", method="scratch", seed=seed, **QUICK, **common)
    return folder, common


def test_several_students_are_set_beside_one_picture(project, tmp_path):
    folder, common = project
    runs = [folder / "run0", folder / "run1"]
    dataset = open_dataset("digits", "test", paths=common["paths"])
    sample = int(dataset.ids[7])
    rows = api.explain(runs, out=tmp_path / "a.png", sample=sample, execution=common["execution"])
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width > 2 * drawn.height
    pixels = torch.from_numpy(dataset.pixels_of(7)).permute(2, 0, 1)[None]
    for run, row in zip(runs, rows, strict=True):
        student = build_student("resnet20", 10, {}, False).eval()
        student.load_state_dict(load_file(run / "student.safetensors"))
        grey = tvf.resize(pixels, [16, 16], antialias=True)
        with torch.inference_mode():
            shares = student.predict(normalise(grey, IMAGENET_MEAN, IMAGENET_STD)).softmax(dim=1)[0]
        assert row["class"] == str(int(shares.argmax()))
        assert row["share"] == pytest.approx(float(shares.max()), abs=0.02)
    (row, _) = api.explain(
        runs,
        out=tmp_path / "b.png",
        class_name="3",
        execution=common["execution"],
        image=next(shared("data/imagenet/val").rglob("*.JPEG")),
    )
    assert row["class"] == "3"
    with pytest.raises(RunError, match="its student knows no class 'dog'"):
        api.explain(runs, out=tmp_path / "c.png", class_name="dog", execution=common["execution"])
    with pytest.raises(RunError, match="its test split has no sample 99999"):
        api.explain(runs, out=tmp_path / "c.png", sample=99999, execution=common["execution"])
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(RunError, match="cannot be read as a picture"):
        api.explain(runs, out=tmp_path / "c.png", image=tmp_path / "text.jpg", execution=common["execution"])
    assert not (tmp_path / "c.png").exists()


def test_a_sweep_reads_one_store_and_goes_on_where_it_was(project, tmp_path):
    _folder, common = project
    a, b = (f"program:{save_program(tmp_path / f'{name}.pt2', Tiny(seed))}" for seed, name in enumerate("ab"))
    grid = Grid(((a,), (a, b)), (1.0, 3.0), (0.1, 2.0), {"transfer_module": (True,)})
    settings = {"out": tmp_path / "sweep", "views": 1, "overrides": QUICK, **common}
    rows = api.sweep("digits", grid, **settings)
    assert len(rows) == 1 + 2 * 2 * 2
    assert len(list((common["paths"].cache_dir / "digits").rglob("*.zarr"))) == 2
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    scratch = tmp_path / "sweep" / "scratch-seed0"
    assert json.loads((scratch / "config.json").read_text())["sources"] == []
    assert float(table[0]["mean"]) == rows[0]["mean"] == read_summary(scratch)["test_top1"]
    for row, line in zip(rows[1:], table[1:], strict=True):
        names = "+".join(part.rpartition("/")[2].removesuffix(".pt2") for part in row["sources"].split("+"))
        run = tmp_path / "sweep" / f"{names}-tm-T{row['temperature']:g}-alpha{row['alpha']:g}-seed0"
        config = json.loads((run / "config.json").read_text())
        assert (config["temperature"], config["alpha"]) == (row["temperature"], row["alpha"])
        assert config["transfer_module"] == row["transfer_module"]
        assert float(line["mean"]) == row["mean"] == read_summary(run)["test_top1"]
        assert (line["target"], line["model"], line["aux_loss"]) == ("digits", "resnet20", "ce")
    with Image.open(tmp_path / "sweep" / "sweep.png") as drawn:
        assert np.asarray(drawn).std() > 10
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("summary.json")}
    assert api.sweep("digits", grid, **settings) == rows
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(RunError, match="a sweep needs at least one"):
        api.sweep("digits", Grid((), (1.0,), (0.1,)), **settings)


def test_a_sweep_varies_settings_and_has_a_student_from_scratch_for_each(project, tmp_path):
    _folder, common = project
    a, b = (f"program:{save_program(tmp_path / f'{name}.pt2', Tiny(seed))}" for seed, name in enumerate("ab"))
    probe = f"probe:{a}+{b}"
    vary = {"probe_weight": (0.5, 0.9), "labels_per_class": (2,)}
    grid = Grid(((a,), (a, probe), (probe,)), (1.0, 3.0), (0.1,), vary)
    settings = {"out": tmp_path / "sweep", "views": 2, "overrides": QUICK, **common}
    rows = api.sweep("digits", grid, **settings)
    columns = ("sources", "labels_per_class", "probe_weight", "temperature")
    both = f"{a}+{probe}"
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("", 2, None, None), (a, 2, None, 1.0), (a, 2, None, 3.0),
        (both, 2, 0.5, 1.0), (both, 2, 0.5, 3.0), (both, 2, 0.9, 1.0), (both, 2, 0.9, 3.0),
        (probe, 2, 0.5, None), (probe, 2, 0.9, None),
    ]  # fmt: skip
    runs = {
        path.name: json.loads((path / "config.json").read_text()) for path in settings["out"].glob("*-seed0")
    }
    assert len(runs) == len(rows)
    config = runs["a+probe-a+b-labels-per-class-2-probe-weight-0.5-T3-alpha0.1-seed0"]
    assert (config["labels_per_class"], config["probe_weight"], config["temperature"]) == (2, 0.5, 3.0)
    assert config["sources"] == [a, probe]
    scratch = runs["scratch-labels-per-class-2-seed0"]
    assert (scratch["method"], scratch["labels_per_class"]) == ("scratch", 2)
    before = {path: path.stat().st_mtime_ns for path in settings["out"].rglob("summary.json")}
    assert api.sweep("digits", grid, **settings) == rows
    assert {path: path.stat().st_mtime_ns for path in before} == before
    save_program(tmp_path / "b.pt2", Tiny(7))
    with pytest.raises(RunError, match="was fitted on other stores than are there now"):
        api.sweep("digits", Grid(((probe,),), (1.0,), (0.1,), vary), **settings)


def test_a_figure_has_an_axis_for_every_distinct_panel(tmp_path):
    probe = "probe:imagenet+places365"
    vary = {"aux_loss": ("ce", "cosine"), "epochs": (1, 2)}
    panels = panels_of(Grid((("imagenet",), (probe,)), (1.0, 3.0), (0.1,), vary), 10, {})
    assert [len(panel.points) for panel in panels[0]] == [2, 2, 1, 1], "cosine reads no temperature"
    assert [panel.scratch.name for panel in panels[0]] == ["scratch-epochs-1", "scratch-epochs-2"] * 2
    points = [point for row in panels for panel in row for point in (panel.scratch, *panel.points)]
    rows = {point.name: {"mean": 50.0 + len(point.name), "diverged": 0} for point in points}
    figure = sweep.draw("digits", panels, rows)
    shown = [axis.axison for axis in figure.axes[:8]]
    assert shown == [True] * 4 + [True, True, False, False]
    assert "from scratch 66.0 %" in figure.axes[4].get_title().replace("\n", " ")
    texts = [text.get_text() for text in figure.axes[4].texts]
    assert texts == [f"{rows[panels[1][0].points[0].name]['mean']:.1f}"]
    assert panels[1][0].points[0].name == "probe-imagenet+places365-epochs-1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", "probe-weight=0.5,lots"], "probe-weight: 'lots' is not a valid float range"),
        (["--vary", "aux-loss=ce,kl"], "aux-loss: 'kl' is not one of"),
        (["--vary", "schedule"], "'schedule' is not NAME=V,V"),
        (["--vary", "temperature=1,2"], "temperature has an option of its own, --temperatures"),
        (["--vary", "teacher-bn=frozen"], "'teacher-bn' cannot be varied, expected one of"),
        (["--vary", "mixup=0,0.2", "--vary", "mixup=1"], "mixup is given twice"),
        (["--vary", "epochs=1,2", "--epochs", "3"], "--epochs and --vary epochs both set it"),
        (["--vary", "mixup=0,-1"], "mixup: -1.0 is not in the range"),
        (["--vary", "probe-weight=0.5,0.9"], "the grid varies probe_weight, which no student of"),
        (["--vary", "label-smoothing=0,2"], "is 2.0, expected"),
        (["--vary", "model=resnet20,resnet21"], "model 'resnet21' is unknown"),
        (["--sources", "probe"], "probe is fitted on whatever is stored"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_runs(tmp_path, words, said):
    source = f"program:{save_program(tmp_path / 'a.pt2')}"
    asked = ["sweep", "--target", "digits", "--sources", source, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*asked, "--cache-dir", str(tmp_path / "stores"), *words])
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.zarr"))


def test_the_command_line_sweeps_and_explains(project, tmp_path):
    folder, _ = project
    source = f"program:{save_program(tmp_path / 'a.pt2')}"
    words = [
        "sweep",
        "--target",
        "digits",
        "--sources",
        source,
        "--temperatures",
        "1,2",
        "--alphas",
        "0.1",
        "--epochs",
        "2",
        "--aux-loss",
        "kd",
        "--views",
        "1",
        "--limit",
        "60",
        "--cache-dir",
        str(tmp_path / "stores"),
        "--out",
        str(tmp_path / "sweep"),
        "--size",
        "16",
        "--source-size",
        "32",
        "--json",
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert [row["temperature"] for row in json.loads(result.stdout)] == [None, 1.0, 2.0]
    config = json.loads((tmp_path / "sweep" / "a-T1-alpha0.1-seed0" / "config.json").read_text())
    assert (config["epochs"], config["milestones"], config["aux_loss"]) == (2, [1], "kd")
    (store,) = store_rows(tmp_path / "stores")
    assert (config["plan"]["side_px"], store["student_px"], store["source_px"]) == (16, 16, 32)
    result = CliRunner().invoke(main, [*words[:6], "1,-2", *words[7:]])
    assert result.exit_code == 2
    assert "is not a list of numbers above 0" in result.output
    result = CliRunner().invoke(main, ["explain", str(folder / "run0"), "--out", str(tmp_path / "e.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "e.png").is_file()


def test_a_series_takes_no_other_run_for_its_own(project, monkeypatch):
    folder, common = project
    out = folder / "run0"
    monkeypatch.setattr("pipeline.train.run.run_epochs", None)  # a finished run is looked at, no more
    asked = {"method": "scratch", **QUICK, **common}
    assert train_or_resume("digits", out, **asked) == read_summary(out)
    for other, message in (
        ({"model": "resnet32"}, "started with model resnet20, this command has resnet32; choose another"),
        ({"method": "dml", "peers": 3}, "method scratch, this command has dml"),
        ({"augmentation": Augmentation(side_px=24)}, "started with plan.side_px "),
        ({"freeze_until": "layer3"}, "freeze_until None, this command has layer3"),
        ({"finetune_from": out / "student.safetensors"}, "started with finetune_from None"),
        ({"lr": 0.02}, "started with lr 0.05, this command has 0.02"),
        ({"seed": 5}, "started with seed 0, this command has 5"),
        ({"eval_every": 2}, "started with eval_every 1, this command has 2"),
    ):
        with pytest.raises(RunError, match=message):
            train_or_resume("digits", out, **{**asked, **other})
    config = json.loads((out / "config.json").read_text())
    kept = dict(config["contents"])
    (out / "config.json").write_text(json.dumps(config | {"contents": {**kept, "test": "other pictures"}}))
    with pytest.raises(RunError, match=r"started with contents\.test other pictures, this command has"):
        train_or_resume("digits", out, **asked)
    (out / "config.json").write_text(json.dumps(config, indent=2))


def test_a_series_goes_on_with_runs_of_the_version_that_began_it(project, tmp_path):
    _folder, common = project
    asked, out = {"method": "scratch", "ema": 0.9, **QUICK, **common}, tmp_path / "run"
    train_or_resume("digits", out, **asked)
    config = json.loads((out / "config.json").read_text())
    assert config["ema_matched"]
    (out / "config.json").write_text(json.dumps(config | {"ema_matched": False}))
    assert matches("digits", out, **asked)


def test_other_weights_under_the_same_name_are_another_run(project, tmp_path):
    folder, common = project
    source = f"program:{save_program(tmp_path / 'a.pt2', Tiny(0))}"
    begun = shutil.copy(folder / "run0" / "student.safetensors", tmp_path / "w.safetensors")
    asked = {
        "sources": (source,),
        "labels": "live",
        "views": 1,
        "finetune_from": begun,
        **QUICK,
        **common,
    }
    out = tmp_path / "run"
    train_or_resume("digits", out, **asked)
    assert matches("digits", out, **asked)
    shutil.copy(folder / "run1" / "student.safetensors", begun)
    assert not matches("digits", out, **asked)
    shutil.copy(folder / "run0" / "student.safetensors", begun)
    assert matches("digits", out, **asked)
    save_program(tmp_path / "a.pt2", Tiny(1))
    with pytest.raises(RunError, match=r"started with source_weights\.program:"):
        train_or_resume("digits", out, **asked)


def test_a_point_that_diverges_is_marked_and_the_others_go_on(project, tmp_path, monkeypatch):
    _folder, common = project
    (tmp_path / "a.pt2").touch()

    def trains(target, out, **asked):
        out.mkdir(parents=True, exist_ok=True)
        config = {"target": target, "model": "resnet20", "primary_loss": "ce", "epochs": 1, "aux_loss": "kd"}
        config |= {"temperature": asked.get("temperature"), "alpha": asked.get("alpha")}
        (out / "config.json").write_text(json.dumps(config))
        if asked.get("alpha") == 1e25:
            raise DivergedError("the loss is nan", {})
        return {"metric": "test_top1", "test_top1": 50.0}

    drawn = []
    monkeypatch.setattr(sweep, "precompute_once", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "train_or_resume", trains)
    draw = sweep.draw
    monkeypatch.setattr(sweep, "draw", lambda *asked: drawn.append(draw(*asked)) or drawn[-1])
    grid = Grid(((f"program:{tmp_path / 'a.pt2'}",),), (1.0,), (0.1, 1e25, 1.0))
    rows = api.sweep("digits", grid, out=tmp_path / "out", **common)
    assert [(row["mean"], row["seeds"], row["diverged"]) for row in rows[1:]] == [
        (50.0, 1, 0),
        (None, 0, 1),
        (50.0, 1, 0),
    ]
    assert (tmp_path / "out" / "sweep.csv").read_text().count("\n") == 5
    assert (tmp_path / "out" / "sweep.png").is_file()
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert texts == ["50.0", "diverged", "50.0"]
    assert "digits, resnet20, 1 epoch, auxiliary loss kd" in " ".join(drawn[0].get_suptitle().split())


def test_every_class_of_several_labels_has_a_share_of_its_own(project, tmp_path, monkeypatch):
    folder, common = project
    run = shutil.copytree(folder / "run0", tmp_path / "several")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"primary_loss": "bce"}))
    figures, draw = [], explain._figure
    monkeypatch.setattr(explain, "_figure", lambda *asked: figures.append(draw(*asked)) or figures[-1])
    monkeypatch.setattr(explain, "grad_cam", lambda _student, x, _classes: torch.zeros(1, *x.shape[2:]))
    settings = {"out": tmp_path / "a.png", "class_name": "3", "execution": common["execution"]}
    one, several = api.explain([folder / "run0", run], paths=common["paths"], **settings)
    student = build_student("resnet20", 10, {}, False).eval()
    student.load_state_dict(load_file(run / "student.safetensors"))
    dataset = open_dataset("digits", "test", paths=common["paths"])
    grey = tvf.resize(torch.from_numpy(dataset.pixels_of(0)).permute(2, 0, 1)[None], [16, 16], antialias=True)
    with torch.inference_mode():
        logits = student.predict(normalise(grey, IMAGENET_MEAN, IMAGENET_STD))[0]
    assert several["share"] == pytest.approx(float(logits[3].sigmoid()), abs=0.02)
    assert one["share"] == pytest.approx(float(logits.softmax(dim=0)[3]), abs=0.02)
    title = figures[0].axes[2].get_title()
    assert title.splitlines()[0] == "scratch: several"
    assert title.splitlines()[-1] == "no evidence in the picture"


def test_a_sweep_tells_sources_of_one_name_apart_and_goes_on_where_the_stores_are_now(project, tmp_path):
    _folder, common = project
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "a.pt2", tmp_path / "other" / "a.pt2"]
    sources = [f"program:{save_program(path, Tiny(seed))}" for seed, path in enumerate(paths)]
    grid = Grid(tuple((source,) for source in sources), (1.0, 1.0000001), (0.1,))
    paths = Paths(common["paths"].data_dir, tmp_path / "stores")
    settings = {"out": tmp_path / "sweep", "views": 1, "overrides": QUICK, **common}
    rows = api.sweep("digits", grid, **settings | {"paths": paths})
    assert len(rows) == len(list((tmp_path / "sweep").glob("*-seed0"))) == 1 + 2 * 2
    (tmp_path / "stores").rename(tmp_path / "moved")
    stopped = next((tmp_path / "sweep").glob("a-*-seed0"))
    (stopped / "summary.json").unlink()
    again = api.sweep("digits", grid, **settings | {"paths": replace(paths, cache_dir=tmp_path / "moved")})
    assert again == rows
