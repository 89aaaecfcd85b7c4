"""A finished run answers for any files as it is scored; against Pillow, torchvision and plain torch."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from listening import Remarks
from PIL import Image
from torchvision.transforms.v2 import functional as tvf
from videos import make_folder

import cli
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.data.datasets import Packing, list_named_files, load_named_images
from pipeline.train.finished.student import open_finished
from sskt.errors import RunError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD

pytestmark = pytest.mark.usefixtures("narrow")

CPU = choose_execution(device="cpu", renderer="torch", threads=1)
CLASSES = ("blue", "green", "red")
SIDE, SHORT = 24, 27  # what a student sees, of a short side of so many pixels


def write_image(path, label, seed, size=(45, 36)):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 150, (*size[::-1], 3))
    pixels[..., 2 - label] += 60
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder of images in three classes, and a run on it that is right for some of the test images."""
    folder = tmp_path_factory.mktemp("predict")
    for label, name in enumerate(CLASSES):
        for i in range(8):
            write_image(folder / "pics" / "train" / name / f"{i}.png", label, 10 * label + i)
        for i in range(5):
            write_image(folder / "pics" / "val" / name / f"{i}.jpg", label, 100 + 10 * label + i)
    api.train(
        f"imagefolder:{folder / 'pics'}",
        out=folder / "run",
        paths=Paths(folder / "data", folder / "stores"),
        execution=CPU,
        augmentation=Augmentation(side_px=SIDE),
        method="scratch",
        model="resnet20",
        epochs=3,
        batch_size=8,
        amp="fp32",
        val_share=0.0,
    )
    return folder


@pytest.fixture(scope="module")
def scored(project):
    """What `evaluate` says of the run."""
    return api.evaluate(project / "run", execution=CPU)


def plain_pixels(path):
    """The central square of 24/27 of the short side, by Pillow and torchvision: uint8 (1, 3, 24, 24)."""
    image = tvf.pil_to_tensor(Image.open(path).convert("RGB"))
    side = round(min(image.shape[1:]) * SIDE / SHORT)
    top, left = ((n - side) // 2 for n in image.shape[1:])
    return tvf.resize(image[:, top : top + side, left : left + side], [SIDE, SIDE], antialias=True)[None]


def plain_logits(run, paths):
    """What the exported student says, in plain torch."""
    student = open_finished(run).bare_student("last", None)
    x = torch.cat([plain_pixels(path) for path in paths]).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        return student.predict((x - mean) / std)


def command(*words):
    return CliRunner().invoke(cli.main, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize("renderer", ["torch", "auto"])
def test_what_is_predicted_for_the_test_split_is_what_evaluate_scores(project, scored, renderer):
    execution = choose_execution(device="cpu", renderer=renderer, threads=1)
    if renderer != "torch":
        scored = api.evaluate(project / "run", execution=execution)
    found = api.predict(project / "run", project / "pics" / "val", execution=execution)
    assert [path.name for path in found.files] == [f"{i}.jpg" for _ in CLASSES for i in range(5)]
    truth = np.array([CLASSES.index(path.parent.name) for path in found.files])
    assert scored["test_top1"] == 100 * (found.top == truth).sum() / 15
    with (project / "run" / "confusion.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    counts = [[int(((truth == t) & (found.top == s)).sum()) for s in range(3)] for t in range(3)]
    assert [list(map(int, row[1:])) for row in rows] == counts
    assert len(set(found.top.tolist())) > 1  # or nothing was compared
    by_hand = plain_logits(project / "run", found.files)
    agree = (by_hand.argmax(dim=1).numpy() == found.top).mean()
    assert agree >= 0.9  # JPEG decoders and rounding may differ by a grey level
    np.testing.assert_allclose(found.probabilities, by_hand.softmax(dim=1), atol=0.02)


def test_the_order_and_the_company_of_files_do_not_matter(project):
    paths = sorted((project / "pics" / "val").rglob("*.jpg"))
    every = api.predict(project / "run", paths, execution=CPU)
    few = api.predict(project / "run", [paths[7], paths[2], paths[7]], execution=CPU)
    assert few.files == (paths[7], paths[2], paths[7])
    np.testing.assert_allclose(few.probabilities, every.probabilities[[7, 2, 7]], atol=1e-5)
    assert few.top.tolist() == every.top[[7, 2, 7]].tolist()


def test_unreadable_files_are_named_and_counted_and_the_others_are_predicted(project, tmp_path):
    good = sorted((project / "pics" / "val" / "red").iterdir())[:2]
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(good[0].read_bytes()[:300])
    text = tmp_path / 'say, "cheese".png'
    text.write_text("<html>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "notes.txt").write_text("not an image, and not unreadable")
    shutil.copy(good[1], tmp_path / "mixed" / "a.jpg")
    named = [good[0], torn, text, tmp_path / "gone.jpg", tmp_path / "empty", tmp_path / "mixed"]
    result = command("predict", project / "run", *named, "--csv", "--renderer", "torch")
    assert result.exit_code == 1
    header, *rows = csv.reader(io.StringIO(result.stdout))
    assert header == ["file", "class", "probability", "error", "p_blue", "p_green", "p_red"]
    assert [row[0] for row in rows] == [*map(str, named[:5]), str(tmp_path / "mixed" / "a.jpg")]
    assert [bool(row[3]) for row in rows] == [False, True, True, True, True, False]
    for row in (rows[0], rows[5]):
        shares = dict(zip(CLASSES, map(float, row[4:]), strict=True))
        assert row[1] == max(shares, key=shares.get)
        assert float(row[2]) == shares[row[1]]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert all(row[1:3] + row[4:] == [""] * 5 for row in rows[1:5])
    assert "4 of 6 file(s) have no prediction" in result.stderr
    for path, why in zip(named[1:5], ("", "a web page inside", "no such file", "no image in"), strict=True):
        assert any(str(path) in line and why in line for line in result.stderr.splitlines())
    assert "1 files ignored (1 .txt)" in result.stderr

    found = json.loads(command("predict", project / "run", *named, "--json").stdout)
    assert [row["file"] for row in found["predictions"]] == [rows[0][0], rows[5][0]]
    assert set(found["predictions"][0]) == {"file", "class", "probability", "probabilities"}
    assert [(row["file"], row["error"]) for row in found["errors"]] == [(r[0], r[3]) for r in rows[1:5]]
    table = command("predict", project / "run", named[0])
    assert table.exit_code == 0
    assert table.stdout.splitlines()[0].split() == ["file", "class", "probability"]
    assert command("predict", project / "run", named[0], "--csv", "--json").exit_code == 2


def test_a_student_of_several_labels_gives_each_its_own_probability(project, tmp_path):
    run = shutil.copytree(project / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"primary_loss": "bce"}))
    paths = sorted((project / "pics" / "val" / "red").iterdir())
    found = api.predict(run, paths, execution=CPU)
    shares = plain_logits(run, paths).sigmoid().numpy()
    np.testing.assert_allclose(found.probabilities, shares, atol=0.02)
    for row, own in zip(found.rows(), found.probabilities, strict=True):
        assert row["classes"] == [name for name, share in zip(CLASSES, own, strict=True) if share >= 0.5]
    result = command("predict", run, *paths, "--csv")
    header, *rows = csv.reader(io.StringIO(result.stdout))
    assert header[:5] == ["file", "class", "probability", "classes", "error"]
    assert [row[3].split(";") for row in rows if row[3]] == [
        r["classes"] for r in found.rows() if r["classes"]
    ]
    with pytest.raises(RunError, match="several labels"):
        api.evaluate(run, on=project / "pics" / "val", execution=CPU)


def test_the_export_command_says_how_far_off_the_file_is(project, tmp_path):
    out = tmp_path / "student.safetensors"
    result = command("export", project / "run", "--format", "safetensors", "--out", out)
    assert result.exit_code == 0
    header, figures, path = result.stdout.splitlines()
    assert path == str(out)
    assert header.split()[:3] == ["format", "input", "images"]
    assert "15" in figures.split()
    result = command("export", project / "run", "--format", "pt2", "--out", out)
    assert result.exit_code == 1
    assert result.stderr == f"error: --out is {out}, expected a name that ends in .pt2\n"


def deep(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(30 * 30).reshape(30, 30).astype(np.uint16) * levels).save(path)
    return path


def test_16_bit_images_are_read_as_deep_as_in_training(project, tmp_path):
    twelve, full = deep(tmp_path / "12.png", 4), deep(tmp_path / "16.png", 70)
    files = list_named_files([twelve, full], videos=False)

    dataset, unusable, notes = load_named_images(files, (0, 1), ("a",), lambda: 12)
    assert list(unusable) == [1]
    assert "16 bits" in unusable[1]
    assert "as in training" in notes[0]
    values = np.arange(900).reshape(30, 30) * 4
    assert (dataset.pixels_of(0)[..., 0] == values >> 4).all()

    dataset, unusable, _ = load_named_images(files, (0, 1), ("a",), lambda: 16)
    assert not unusable
    assert (dataset.pixels_of(0)[..., 0] == values >> 8).all()
    dataset, _, notes = load_named_images(files, (0,), ("a",), lambda: None)
    assert (dataset.pixels_of(0)[..., 0] == values >> 4).all()
    assert "fewest bits" in notes[0]

    for name, levels in (("shallow", 4), ("whole", 70)):
        for i in range(6):
            deep(tmp_path / name / "ab"[i % 2] / f"{i}.png", levels)
        write_image(tmp_path / name / "a" / "usual.png", 0, 0)
    write_image(tmp_path / "usual" / "a" / "0.png", 0, 0)
    write_image(tmp_path / "usual" / "b" / "0.png", 0, 1)
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    depths = [
        open_dataset(f"imagefolder:{tmp_path / name}", "train", paths=paths).access.depth
        for name in ("shallow", "whole", "usual")
    ]
    assert depths == [12, 16, None]

    eight = tmp_path / "8.png"
    Image.fromarray((values >> 4).astype(np.uint8)).save(eight)
    data = f"imagefolder:{tmp_path / 'shallow'}"  # where the run's data are said to be
    found = api.predict(project / "run", [twelve, full, eight], target=data, execution=CPU)
    assert list(found.unusable) == [1]
    np.testing.assert_array_equal(found.probabilities[0], found.probabilities[2])


def test_a_run_is_scored_on_any_folder_whose_classes_match_by_name(project, scored, tmp_path):
    before = (project / "run" / "confusion.csv").read_bytes()
    folder = tmp_path / "mine"
    for i in range(4):
        write_image(folder / "red" / f"{i}.png", 2, 200 + i)
        write_image(folder / "blue" / "deeper" / f"{i}.png", 0, 300 + i)
        write_image(folder / "purple" / f"{i}.png", 0, 400 + i)
    (folder / "red" / "bad.png").write_bytes(b"no image")
    result = command("evaluate", project / "run", "--on", folder, "--json", "--renderer", "torch")
    assert result.exit_code == 1  # for the bad file
    figures = json.loads(result.stdout)
    found = api.predict(project / "run", [folder / "blue", folder / "red"], execution=CPU)
    truth = np.array([0] * 4 + [2] * 4)
    top = found.top[[row for row in range(9) if row not in found.unusable]]
    assert figures["test_top1"] == 100 * (top == truth).sum() / 8
    assert figures["n_samples"] == 8
    assert figures["n_unusable"] == 1
    assert figures["classes"]["green"] is None
    assert figures["classes"]["red"] == 100 * (top[4:] == 2).sum() / 4
    assert (
        "1 folder(s) are none of the run's classes and are left out, with their 4 images: purple"
        in result.stderr
    )
    assert "has no folder for 1 of the run's 3 classes, which do not count: green" in result.stderr
    assert "bad.png: cannot be used" in result.stderr
    assert figures["confusion_csv"].endswith("confusion-mine.csv")
    assert (project / "run" / "confusion.csv").read_bytes() == before

    val = project / "pics" / "val"
    whole = command("evaluate", project / "run", "--on", val, "--json", "--renderer", "torch")
    assert whole.exit_code == 0
    figures = json.loads(whole.stdout)
    for name in ("test_top1", "test_loss", "classes"):
        assert figures[name] == scored[name]
    with pytest.raises(RunError, match=r"holds the folders train, val, expected .*blue, green, red"):
        api.evaluate(project / "run", on=project / "pics", execution=CPU)


def test_a_videos_answer_is_the_one_that_evaluate_scores(tmp_path):
    root = make_folder(tmp_path / "videos", n_per_class=2, n_frames=12)
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    target = f"videofolder:{root}"
    api.prepare(target, paths=paths, packing=Packing(24, 70))
    settings = {"epochs": 1, "batch_size": 3, "lr": 0.01, "amp": "fp32", "model": "resnet3d10"}
    shown = Augmentation(side_px=24, n_frames=4)
    out = tmp_path / "run"
    api.train(target, out=out, paths=paths, execution=CPU, augmentation=shown, method="scratch", **settings)
    scored = api.evaluate(out, execution=CPU, clips=2)
    test = open_dataset(target, "test", paths=paths)
    files = [root / name for name in test.access.names]
    found = api.predict(out, files, execution=CPU, clips=2)
    assert scored["test_top1"] == 100 * (found.top == test.labels).sum() / len(test)
    shares = found.probabilities[np.arange(len(test)), test.labels]
    assert not np.allclose(shares, 0.5)
    # scored on the same videos as a folder
    for file, label in zip(files, test.labels, strict=True):
        place = tmp_path / "again" / test.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / file.name)
    again = api.evaluate(out, execution=CPU, clips=2, on=tmp_path / "again")
    assert again["test_top1"] == scored["test_top1"]
    assert again["test_loss"] == pytest.approx(scored["test_loss"], rel=1e-4)

    written = api.export(out, format="safetensors")  # a program of 3D layers takes seconds to make
    assert written["input"] == "float32 N x 3 x 4 x 24 x 24"
    assert written["same_class"] == written["images"] == 4

    (tmp_path / "cut.avi").write_bytes(files[0].read_bytes()[:2000])
    shutil.rmtree(tmp_path / "stores" / "indexes")
    said = Remarks()
    other = api.predict(out, [files[0], tmp_path / "cut.avi"], execution=CPU, clips=2)
    assert list(other.unusable) == [1]
    assert any("not known how its videos were packed" in sentence for sentence in said)
