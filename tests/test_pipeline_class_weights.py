"""Weights of classes are scikit-learn's, weigh torch's loss, are recorded, and hold for resumed runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from own_images import draw, write_csv
from programs import small_student
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.train import loop as training
from sskt.errors import RunError
from sskt.losses import weighted_cross_entropy
from sskt.methods.config import LabelConfig

pytestmark = pytest.mark.usefixtures("narrow")

EXECUTION = choose_execution(device="cpu", renderer="torch", threads=2)
COUNTS = {"a": 9, "b": 4, "c": 2}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("weighed")
    rows = []
    for label, n in COUNTS.items():
        for i in range(n + 1):
            name = f"{label}{i}.png"
            draw(folder / name, 100 * ord(label) + i)
            rows.append({"path": name, "label": label, "split": "train" if i < n else "test"})
    return f"list:{write_csv(folder, folder / 'list.csv', rows)}"


def train(target: str, out: Path, **settings) -> dict:
    settings = {"method": "scratch", "class_weights": "balanced"} | settings
    return api.train(
        target, out=out, model=small_student(), augmentation=Augmentation(side_px=16),
        paths=Paths(out, out.parent / "stores"), execution=EXECUTION, epochs=2, batch_size=5, amp="fp32",
        val_share=0.0, **settings,
    )  # fmt: skip


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def test_weights_are_those_of_scikit_learn_and_recorded(target, tmp_path):
    train(target, tmp_path / "run")
    labels = np.repeat(list(COUNTS), list(COUNTS.values()))
    expected = compute_class_weight("balanced", classes=np.array(list(COUNTS)), y=labels)
    config = config_of(tmp_path / "run")
    assert config["class_weights"] == "balanced"
    assert config["weight_of_class"] == pytest.approx(expected)
    train(target, tmp_path / "off", class_weights="off")
    assert config_of(tmp_path / "off")["weight_of_class"] == []
    weighed, plain = (load_file(tmp_path / run / "student.safetensors") for run in ("run", "off"))
    assert any(not torch.equal(weighed[name], plain[name]) for name in plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_weighted_mean_over_samples(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    labels = torch.tensor([0, 1, 2, 2, -1, 0, 1, -1])
    weights = (0.5, 2.0, 4.0)
    known = labels >= 0
    expected = [
        weights[int(label)] * F.cross_entropy(z[None], label[None], label_smoothing=smoothing)
        for z, label in zip(logits[known], labels[known], strict=True)
    ]
    found = weighted_cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, torch.stack(expected).mean())
    if not smoothing:  # torch's own mean is over weights
        mean = F.cross_entropy(logits, labels, weight=torch.tensor(weights), ignore_index=-1)
        total = torch.tensor(weights)[labels[known]].sum()
        torch.testing.assert_close(found, mean * total / known.sum())
    config = LabelConfig(label_smoothing=smoothing, class_weights="balanced", weight_of_class=weights)
    torch.testing.assert_close(config.primary(logits[known], labels[known]), found)
    equal = LabelConfig(label_smoothing=smoothing, class_weights="balanced", weight_of_class=(1.0, 1.0, 1.0))
    plain = LabelConfig(label_smoothing=smoothing)
    torch.testing.assert_close(
        equal.primary(logits[known], labels[known]), plain.primary(logits[known], labels[known])
    )


def test_parts_of_a_batch_add_up():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = (0.5, 2.0, 4.0)
    whole = weighted_cross_entropy(logits, labels, weights, label_smoothing=0.0)
    parts = [
        weighted_cross_entropy(logits[p], labels[p], weights, label_smoothing=0.0)
        for p in (slice(2), slice(2, 6))
    ]
    torch.testing.assert_close(whole, (2 * parts[0] + 4 * parts[1]) / 6)


def test_a_run_continues_to_the_same_weights(target, tmp_path, monkeypatch):
    train(target, tmp_path / "whole")

    class Stopped(Exception):  # noqa: N818
        pass

    monkeypatch.setattr(training.Trainer, "train_epoch", _stopping(training.Trainer.train_epoch, Stopped))
    with pytest.raises(Stopped):
        train(target, tmp_path / "stopped")
    monkeypatch.undo()
    api.resume(tmp_path / "stopped", execution=EXECUTION, backbone=small_student())
    whole, again = (load_file(tmp_path / run / "student.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert config_of(tmp_path / "stopped") == config_of(tmp_path / "whole")


def _stopping(train_epoch, stopped):
    def train(self, *arguments):
        if self.epoch == 1:
            raise stopped
        return train_epoch(self, *arguments)

    return train


def test_where_weights_mean_nothing_they_are_refused(target, tmp_path):
    for settings, expected in (
        ({"primary_loss": "focal"}, "weighs the classes of --primary-loss ce, and this run has focal"),
        ({"method": "maxl"}, "--class-weights balanced: --method maxl does not read it"),
        ({"class_weights": "inverse"}, "is 'inverse', expected one of off, balanced"),
    ):
        with pytest.raises(RunError, match=expected):
            train(target, tmp_path / "run", **settings)
        assert not (tmp_path / "run").exists()
    file = Path(target.removeprefix("list:"))
    several = file.with_name("several.csv")
    several.write_text(file.read_text().replace("path,label,", "path,labels,"))
    with pytest.raises(RunError, match="this run has several labels per image; leave it out"):
        train(f"list:{several}", tmp_path / "run")
