"""VOC: pictures with several labels, their loss and their average precisions."""

import re
import shutil

import numpy as np
import pytest
import torch
from conftest import shared
from programs import save_program
from sklearn.metrics import average_precision_score

from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.data.datasets.voc import CLASSES
from pipeline.train.run_folder import read_metrics
from sskt.errors import RunError, TargetError
from sskt.losses import focal, multilabel_bce, soft_focal
from sskt.metrics import average_precision, multilabel_figures, voc_average_precision

pytestmark = pytest.mark.usefixtures("narrow")

VOC = "data/voc/VOCdevkit/VOC2012"


def small_kit(tmp_path):
    """A writable copy of the real annotations and pictures."""
    year = tmp_path / "data" / "voc" / "VOCdevkit" / "VOC2012"
    shutil.copytree(shared(VOC), year)
    return Paths(tmp_path / "data", tmp_path / "stores"), year


def test_presence_is_what_the_annotations_say(tmp_path):
    paths = Paths(shared("data"), tmp_path)
    for split, name, n in (("train", "train", 80), ("test", "val", 20)):
        dataset = open_dataset("voc", split, paths=paths)
        names = (shared(VOC) / "ImageSets" / "Main" / f"{name}.txt").read_text().split()
        assert (len(dataset), dataset.classes) == (n, CLASSES)
        for row, image in enumerate(names):
            text = (shared(VOC) / "Annotations" / f"{image}.xml").read_text()
            objects = re.findall(r"<object>(.*?)</object>", text, re.DOTALL)
            parts = [re.sub(r"<part>.*?</part>", "", o, flags=re.DOTALL) for o in objects]
            expected = np.zeros(20, dtype=np.int8)
            for c, label in enumerate(CLASSES):
                hard = ["<difficult>1" in o for o in parts if f"<name>{label}</name>" in o]
                expected[c] = 0 if not hard else -1 if all(hard) else 1
            np.testing.assert_array_equal(dataset.multi_hot[row], expected, err_msg=image)
            assert dataset.name_of(row).endswith(f"JPEGImages/{image}.jpg")
        limited = dataset.limit(20)
        np.testing.assert_array_equal(limited.multi_hot, dataset.multi_hot[limited.ids])


def test_what_is_missing_is_named(tmp_path):
    paths, year = small_kit(tmp_path)
    name = (year / "ImageSets" / "Main" / "train.txt").read_text().split()[3]
    (year / "JPEGImages" / f"{name}.jpg").unlink()
    with pytest.raises(TargetError, match=rf"1 of 80 pictures cannot be used: JPEGImages/{name}\.jpg"):
        open_dataset("voc", "train", paths=paths)
    (year / "Annotations" / f"{name}.xml").write_text(
        "<annotation><object><name>yeti</name></object></annotation>"
    )
    with pytest.raises(TargetError, match=rf"{name}\.xml: has an object 'yeti', which is no class of VOC"):
        open_dataset("voc", "train", paths=paths)
    (year / "Annotations" / f"{name}.xml").write_text("<annotation>")
    with pytest.raises(TargetError, match="restore the official annotation"):
        open_dataset("voc", "train", paths=paths)
    with pytest.raises(TargetError, match=r"VOC2007/ImageSets/Main/trainval\.txt: cannot be read"):
        open_dataset("voc2007", "train", paths=paths)


def test_another_annotation_is_another_target(tmp_path):
    paths, year = small_kit(tmp_path)
    before = open_dataset("voc", "train", paths=paths)
    name = (year / "ImageSets" / "Main" / "train.txt").read_text().split()[0]
    path = year / "Annotations" / f"{name}.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    after = open_dataset("voc", "train", paths=paths)
    assert after.classes_sha256 != before.classes_sha256
    assert after.content_sha256 == before.content_sha256


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=20).round(1 if seed % 2 else 8).astype(np.float32)  # with ties and without
    positive = rng.random(20) < 0.3
    positive[0] = True
    assert average_precision(scores, positive) == pytest.approx(
        average_precision_score(positive, scores), abs=1e-12
    )


def test_vocs_average_precision_of_a_case_by_hand():
    """Right, wrong, right, wrong, wrong, right: precision 1, 2/3 and 1/2 at the recalls of a third each."""
    scores = np.array([6, 5, 4, 3, 2, 1], dtype=np.float32)
    positive = np.array([1, 0, 1, 0, 0, 1], dtype=bool)
    assert voc_average_precision(scores, positive, eleven_points=False) == pytest.approx(
        (1 + 2 / 3 + 1 / 2) / 3
    )
    # recalls 0 to 0.3: 1; 0.4 to 0.6: 2/3; 0.7 to 1: 1/2
    by_hand = (4 * 1 + 3 * 2 / 3 + 4 / 2) / 11
    assert voc_average_precision(scores, positive, eleven_points=True) == pytest.approx(by_hand)
    assert np.isnan(voc_average_precision(scores, positive & False, eleven_points=True))


def test_figures_leave_out_what_is_not_counted():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(30, 4)).astype(np.float32)
    multi_hot = rng.choice([-1, 0, 1], size=(30, 4), p=[0.2, 0.5, 0.3]).astype(np.int8)
    multi_hot[:, 3] = 0  # a class that nothing shows
    figures = multilabel_figures(scores, multi_hot)
    rows = []
    for s, p in zip(scores, multi_hot, strict=True):
        counted = p >= 0
        if (p[counted] == 1).any():
            rows.append(average_precision_score(p[counted] == 1, s[counted]))
    assert figures["test_image_ap"] == pytest.approx(100 * np.mean(rows))
    other = scores.copy()
    other[multi_hot == -1] = 99
    assert multilabel_figures(other, multi_hot) == figures


def test_losses_are_the_written_equations():
    torch.manual_seed(0)
    z, zs = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    labels = torch.tensor([0, 6, 2, 2, 5])
    q = np.exp(z.numpy()) / np.exp(z.numpy()).sum(axis=1, keepdims=True)
    hard = -np.mean([(1 - q[n, k]) ** 2 * np.log(q[n, k]) for n, k in enumerate(labels)])
    assert float(focal(z, labels)) == pytest.approx(hard, abs=1e-12)
    for temperature in (1.0, 3.0):
        qt = np.exp(z.numpy() / temperature)
        qt /= qt.sum(axis=1, keepdims=True)
        p = np.exp(zs.numpy() / temperature)
        p /= p.sum(axis=1, keepdims=True)
        soft = -(temperature**2) * np.mean((p * (1 - qt) ** 2 * np.log(qt)).sum(axis=1))
        assert float(soft_focal(z, zs, temperature=temperature)) == pytest.approx(soft, abs=1e-12)
    multi_hot = torch.tensor(np.random.default_rng(0).choice([-1, 0, 1], size=(5, 7)))
    s = 1 / (1 + np.exp(-z.numpy()))
    terms = [
        -np.log(s[n, k]) if multi_hot[n, k] else -np.log(1 - s[n, k])
        for n in range(5)
        for k in range(7)
        if multi_hot[n, k] >= 0
    ]
    assert float(multilabel_bce(z, multi_hot)) == pytest.approx(np.mean(terms), abs=1e-12)
    assert torch.isfinite(focal(torch.tensor([[1e4, -1e4]]), torch.tensor([1])))


def test_a_student_of_voc_is_trained_taught_and_scored(tmp_path):
    paths = Paths(shared("data"), tmp_path / "stores")
    source = f"program:{save_program(tmp_path / 'colours.pt2')}"
    shown = {
        "augmentation": Augmentation(side_px=48),
        "paths": paths,
        "execution": choose_execution(device="cpu"),
    }
    api.prepare("voc", paths=paths)
    api.precompute(["voc"], [source], views=2, **shown)
    summary = api.train(
        "voc",
        sources=(source,),
        labels="cached",
        amp="fp32",
        mixup=0.2,
        epochs=2,
        batch_size=40,
        lr=0.01,
        out=tmp_path / "run",
        **shown,
    )
    assert summary["metric"] == "test_map"
    last = read_metrics(tmp_path / "run")[-1]
    figures = api.evaluate(tmp_path / "run", paths=paths, execution=choose_execution(device="cpu"))
    for name in ("test_map", "test_map_11", "test_image_ap", "test_loss"):
        assert figures[name] == pytest.approx(last[name], abs=1e-3)
    shown_classes = [v for v in figures["classes"].values() if v is not None]
    assert figures["test_map"] == pytest.approx(np.mean(shown_classes))
    with pytest.raises(
        RunError, match="--primary-loss ce: the images of voc have several labels each; use bce"
    ):
        api.train("voc", method="scratch", primary_loss="ce", out=tmp_path / "no", **shown)
    with pytest.raises(RunError, match="the images of digits have one label each; use ce or focal"):
        api.train(
            "digits",
            method="scratch",
            primary_loss="bce",
            out=tmp_path / "no",
            **{**shown, "augmentation": Augmentation()},
        )
    assert not (tmp_path / "no").exists()
