"""A student that is not ours trains, is scored, explained, exported, resumed, and teaches, from the command
line and from Python.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from stopping import stop_after
from torch import nn

from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from sskt.errors import RunError
from sskt.sources.contract import Contract
from sskt.sources.registry import kind_of

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1))
        self.fc = nn.Linear(16, 7)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean(dim=(2, 3)))

def build():
    return Net()
"""
MODULE = "nets_of_a_test"
MODEL = f"{MODULE}:build"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of images in three colours, and a module of one's own beside it."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 10), ("val", 4)):
        for label, colour in enumerate(("blue", "green", "red")):
            folder = tmp_path / "pics" / split / colour
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (24, 24, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop(MODULE, None)


def sskt(*words: object) -> str:
    found = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def numbers(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_s", "_share", "_mb"))} for line in lines]


def test_a_function_of_ones_own_serves_every_command(project):
    words = ("--target", "imagefolder:pics", "--method", "scratch", "--model", MODEL, "--size", "16")
    sskt(
        "train",
        *words,
        "--recipe",
        "fast",
        "--epochs",
        "2",
        "--batch-size",
        "10",
        "--out",
        "run",
        "--device",
        "cpu",
    )
    config = json.loads(Path("run/config.json").read_text())
    assert config["model"] == MODEL
    figures = json.loads(sskt("evaluate", "run", "--json"))
    answers = json.loads(sskt("predict", "run", "pics/val", "--json"))["predictions"]
    right = [Path(answer["file"]).parent.name == answer["class"] for answer in answers]
    assert figures["test_top1"] == pytest.approx(100 * np.mean(right))
    sskt("explain", "run", "--out", "looks.png")
    assert Path("looks.png").stat().st_size > 1000
    sskt("export", "run", "--format", "pt2")

    source = kind_of("run:run").open("run:run", Path("run/student.safetensors"), Contract())
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.load("run/exported.pt2").module()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (source.spec.mean, source.spec.std))
    with torch.no_grad():
        torch.testing.assert_close(source.module(x), program(x * std + mean), rtol=1e-4, atol=1e-5)
    assert source.spec.n_classes == 3


def test_a_run_whose_function_has_changed_is_scored_with_a_word_and_does_not_go_on(project, monkeypatch):
    how = {"execution": choose_execution(device="cpu", renderer="torch"), "paths": Paths()}
    settings = {"method": "scratch", "epochs": 3, "batch_size": 10, "augmentation": Augmentation(side_px=16)}
    api.train("imagefolder:pics", out="whole", model=MODEL, **settings, **how)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 4)
        with pytest.raises(KeyboardInterrupt):
            api.train("imagefolder:pics", out="run", model=MODEL, **settings, **how)
    Path(f"{MODULE}.py").write_text(SOURCE + "\n# changed\n")
    with pytest.raises(RunError, match=r"source of nets_of_a_test:build has changed .*; restore the source"):
        api.resume("run", execution=how["execution"])
    found = CliRunner().invoke(main, ["evaluate", "whole"])
    assert found.exit_code == 0
    assert "source of nets_of_a_test:build has changed since the run was started" in found.stderr
    Path(f"{MODULE}.py").write_text(SOURCE)
    api.resume("run", execution=how["execution"])
    assert numbers(Path("run")) == numbers(Path("whole"))
    sys.modules.pop(MODULE)
    Path(f"{MODULE}.py").rename("elsewhere.py")
    found = CliRunner().invoke(main, ["evaluate", "run"])
    assert found.exit_code == 1
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error")]
    assert "cannot import nets_of_a_test (ModuleNotFoundError: No module named" in line
    assert "run from the folder that holds it" in line


def test_fine_tuning_a_timm_network_goes_on_to_the_same_numbers(project, monkeypatch):
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=9).state_dict(), "weights.safetensors")
    words = ("train", "--target", "imagefolder:pics", "--method", "scratch", "--model", "timm:test_resnet",
             "--size", "32", "--epochs", "3", "--device", "cpu", "--renderer", "torch")  # fmt: skip
    sskt(*words, "--finetune-from", "weights.safetensors", "--out", "whole")
    with monkeypatch.context() as stopping:
        stop_after(stopping, 5)
        CliRunner().invoke(main, [*words, "--finetune-from", "weights.safetensors", "--out", "run"])
    sskt("train", "--resume", "run")
    assert numbers(Path("run")) == numbers(Path("whole"))
    config = json.loads(Path("run/config.json").read_text())
    expected = {"recipe": "finetune", "optimizer": "adamw", "schedule": "warm-cosine", "layer_decay": 0.75,
                "epochs": 3, "batch_size": 8, "lr": 5e-4 * 0.5}  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    # the stem learns at 0.75 to the number of layers of the head's rate, so it hardly moves
    first, last = load_file("weights.safetensors"), load_file("whole/student.safetensors")
    moved = {
        name: float((last[f"backbone.module.{name}"] - first[name]).abs().mean())
        for name in ("conv1.0.weight", "layer4.0.conv1.weight")
    }
    assert 0 < moved["conv1.0.weight"] < moved["layer4.0.conv1.weight"]

    found = CliRunner().invoke(main, [*words, "--recipe", "finetune"])
    assert found.exit_code == 1
    assert "would start from random ones; add --pretrained or --finetune-from FILE" in found.stderr
    for option, value, expected in (
        ("--layer-decay", "1.5", "--layer-decay is 1.5, expected more than 0 and at most 1"),
        ("--cool-down", "0.5", "--cool-down is for --schedule trapezoid, this run has warm-cosine"),
    ):
        found = CliRunner().invoke(main, [*words, "--finetune-from", "weights.safetensors", option, value])
        assert found.exit_code == 1
        assert expected in found.stderr


def test_a_plain_module_is_copied_and_taken_back_for_scoring(project):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.conv(x).relu().mean(dim=(2, 3)))

    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    how = {"execution": choose_execution(device="cpu", renderer="torch"), "paths": Paths()}
    settings = {"method": "scratch", "epochs": 1, "batch_size": 10, "augmentation": Augmentation(side_px=16)}
    summary = api.train("imagefolder:pics", out="run", model=net, recipe="finetune", **settings, **how)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert set(before) == set(net.state_dict())
    figures = api.evaluate("run", backbone=Net(), execution=how["execution"])
    assert figures["test_top1"] == summary["test_top1"]
    with pytest.raises(RunError, match="its student is own:WrappedBackbone; continue from Python"):
        api.predict("run", "pics/val")
