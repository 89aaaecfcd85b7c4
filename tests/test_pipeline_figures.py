"""The figures that a person would put in a paper: what they show is what the networks say."""

import csv
import json

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
from pipeline.api import Places, Supervision, choose_execution, open_index, run_train
from pipeline.explain import run_explain
from pipeline.run import read_summary
from pipeline.sweep import Grid, run_sweep
from sskt.errors import RunError
from sskt.gradcam import grad_cam
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.student import build_student

QUICK = {"epochs": 1, "batch_size": 30}


def quiet(_text):
    pass


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
        "places": Places(folder / "data", folder / "stores"),
        "execution": choose_execution(device="cpu", threads=2),
        "limit": 60,
        "say": quiet,
    }
    for seed in (0, 1):
        run_train(
            "digits",
            out=folder / f"run{seed}",
            supervision=Supervision(method="scratch"),
            seed=seed,
            overrides=QUICK,
            **common,
        )
    return folder, common


def test_several_students_are_set_beside_one_picture(project, tmp_path):
    folder, common = project
    runs = [folder / "run0", folder / "run1"]
    index = open_index("digits", "test", places=common["places"], say=quiet)
    sample = int(index.ids[7])
    rows = run_explain(runs, out=tmp_path / "a.png", sample=sample, execution=common["execution"], say=quiet)
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width > 2 * drawn.height
    pixels = torch.from_numpy(index.pixels_of(7)).permute(2, 0, 1)[None]
    for run, row in zip(runs, rows, strict=True):
        student = build_student("resnet20", 10, {}, False).eval()
        student.load_state_dict(load_file(run / "student.safetensors"))
        grey = tvf.resize(pixels, [16, 16], antialias=True)
        with torch.inference_mode():
            shares = student.predict(normalise(grey, IMAGENET_MEAN, IMAGENET_STD)).softmax(dim=1)[0]
        assert row["class"] == str(int(shares.argmax()))
        assert row["share"] == pytest.approx(float(shares.max()), abs=0.02)
    (row, _) = run_explain(
        runs,
        out=tmp_path / "b.png",
        class_name="3",
        execution=common["execution"],
        say=quiet,
        picture=next(shared("data/imagenet/val").rglob("*.JPEG")),
    )
    assert row["class"] == "3"
    with pytest.raises(RunError, match="its student knows no class 'dog'"):
        run_explain(runs, out=tmp_path / "c.png", class_name="dog", execution=common["execution"], say=quiet)
    with pytest.raises(RunError, match="its test split has no sample 99999"):
        run_explain(runs, out=tmp_path / "c.png", sample=99999, execution=common["execution"], say=quiet)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(RunError, match="cannot be read as a picture"):
        run_explain(
            runs,
            out=tmp_path / "c.png",
            picture=tmp_path / "text.jpg",
            execution=common["execution"],
            say=quiet,
        )
    assert not (tmp_path / "c.png").exists()


def test_a_sweep_reads_one_store_and_goes_on_where_it_was(project, tmp_path):
    _folder, common = project
    a, b = (f"program:{save_program(tmp_path / f'{name}.pt2', Tiny(seed))}" for seed, name in enumerate("ab"))
    grid = Grid(((a,), (a, b)), (1.0, 3.0), (0.1, 1.0, 2.0), (False, True))
    settings = {"out": tmp_path / "sweep", "views": 1, "overrides": QUICK, **common}
    rows = run_sweep("digits", grid, **settings)
    assert len(rows) == 1 + 2 * 2 * 2 * 3
    assert len(list((common["places"].cache_dir / "digits").rglob("*.zarr"))) == 2
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    scratch = tmp_path / "sweep" / "scratch-seed0"
    assert json.loads((scratch / "config.json").read_text())["sources"] == []
    assert float(table[0]["mean"]) == rows[0]["mean"] == read_summary(scratch)["test_top1"]
    for row, line in zip(rows[1:], table[1:], strict=True):
        names = "+".join(part.rpartition("/")[2].removesuffix(".pt2") for part in row["sources"].split("+"))
        tm = "-tm" if row["transfer_module"] else ""
        run = tmp_path / "sweep" / f"{names}{tm}-T{row['temperature']:g}-alpha{row['alpha']:g}-seed0"
        config = json.loads((run / "config.json").read_text())
        assert (config["temperature"], config["alpha"]) == (row["temperature"], row["alpha"])
        assert config["transfer_module"] == row["transfer_module"]
        assert float(line["mean"]) == row["mean"] == read_summary(run)["test_top1"]
    with Image.open(tmp_path / "sweep" / "sweep.png") as drawn:
        assert np.asarray(drawn).std() > 10
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("summary.json")}
    assert run_sweep("digits", grid, **settings) == rows
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(RunError, match="a sweep needs at least one"):
        run_sweep("digits", Grid((), (1.0,), (0.1,)), **settings)


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
        "--json",
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert [row["temperature"] for row in json.loads(result.stdout)] == [None, 1.0, 2.0]
    config = json.loads((tmp_path / "sweep" / "a-T1-alpha0.1-seed0" / "config.json").read_text())
    assert (config["epochs"], config["milestones"], config["aux_loss"]) == (2, [1, 2], "kd")
    result = CliRunner().invoke(main, [*words[:6], "1,-2", *words[7:]])
    assert result.exit_code == 2
    assert "is not a list of numbers above 0" in result.output
    result = CliRunner().invoke(main, ["explain", str(folder / "run0"), "--out", str(tmp_path / "e.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "e.png").is_file()
