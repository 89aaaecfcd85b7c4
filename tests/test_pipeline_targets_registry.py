"""A family of targets is one file and one line: a strange one works from the command line like ours."""

import json
from dataclasses import replace

import pytest
from processes import run_python
from programs import save_program

from cache.store import Store, find_stores
from pipeline.data.datasets.digits import Digits
from pipeline.data.datasets.registry import (
    FAMILIES,
    TARGETS,
    parse_target,
    path_family,
    register,
    target_slug,
)
from sskt.errors import RunError, TargetError
from sskt.recipes import recipe_for
from sskt.recipes import register as register_recipe

STRIPES = '''
"""stripes, and stripes_in:PATH of the user's: images of vertical or horizontal stripes, one .npz file."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.data.datasets.dataset import DatasetSpec, Family, own_folder
from pipeline.data.datasets.images import array_dataset
from pipeline.data.datasets.registry import register
from sskt import recipes
from sskt.errors import TargetError

SPEC = DatasetSpec(
    name="stripes", family="stripes", n_classes=2, side_px=12, short_px=12, plan_kind="pad-crop-flip",
    source_scale=Fraction(2), how_to_prepare="allow the download", pad=1, root=Path("stripes"),
)


class Stripes(Family):
    name, targets = "stripes", (SPEC,)

    def load(self, spec, split, data_dir, index_dir):
        file = data_dir / spec.root / f"{split}.npz"
        if not file.is_file():
            raise TargetError(f"{file}: no such file; {spec.how_to_prepare}")
        with np.load(file) as data:
            pixels, labels = data["pixels"], data["labels"]
        return array_dataset(spec.name, split, ("across", "down"), pixels, labels, np.arange(len(labels)))

    def is_prepared(self, spec, split, data_dir, index_dir):
        return (data_dir / spec.root / f"{split}.npz").is_file()

    def obtain(self, spec, data_dir, *, download):
        (data_dir / spec.root).mkdir(parents=True, exist_ok=True)
        for split, n in (("train", 24), ("test", 8)):
            labels = np.arange(n) % 2
            down = (np.arange(12) // 3 % 2 * 200).astype(np.uint8) * np.ones((12, 1), np.uint8)
            pixels = np.stack([down if label else down.T for label in labels])
            pixels = pixels[..., None].repeat(3, axis=3) + np.arange(n, dtype=np.uint8)[:, None, None, None]
            np.savez(data_dir / spec.root / f"{split}.npz", pixels=pixels, labels=labels)


class StripesIn(Stripes):
    name, targets, is_path = "stripes_in", (), True

    def from_path(self, path):
        root = own_folder(self.name, path)
        name = f"{self.name}:{root.name}"
        return replace(
            SPEC, name=name, family=self.name, n_classes=None, root=root, is_own_folder=True,
            how_to_prepare="put train.npz and test.npz there",
        )

    def obtain(self, spec, data_dir, *, download):
        """Leave it to the user."""


register(Stripes())
register(StripesIn())
for name in ("stripes", "stripes_in"):
    recipes.register(replace(recipes.recipe_for("digits"), target=name))
'''
NAMES = (
    "cifar10, cifar100, stl10, imagenet, places365, voc, voc2007, ucf101, hmdb51, ccv, digits, stripes, "
    "imagefolder:PATH, list:PATH, tar:PATH, hf-dataset:PATH, videofolder:PATH or stripes_in:PATH"
)
SHORT = ("--epochs", "1", "--batch-size", "8", "--amp", "fp32", "--device", "cpu")


def run(folder, *words):
    """`sskt` with the strange families registered."""
    code = "import sys, stripes, cli; cli.main(sys.argv[1:])"
    return run_python("-c", code, *words, cwd=folder)


def done(folder, *words):
    result = run(folder, *words)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the strange families' file is, a prepared target of each, and a store of either."""
    folder = tmp_path_factory.mktemp("stripes")
    (folder / "stripes.py").write_text(STRIPES)
    save_program(folder / "tiny.pt2")
    rows = json.loads(done(folder, "prepare", "--target", "stripes", "--json").stdout)
    assert [(row["split"], row["samples"], row["classes"]) for row in rows] == [
        ("train", 24, 2),
        ("test", 8, 2),
    ]
    (folder / "data" / "stripes").rename(folder / "mine")
    words = ("--source", "program:tiny.pt2", "--views", "2", "--device", "cpu", "--amp", "fp32")
    done(folder, "precompute", "--target", "stripes", "--target", "stripes_in:mine", *words)
    return folder


def test_a_strange_target_is_obtained_and_teaches_from_its_store(folder):
    assert {path.parents[2].name for path in find_stores(folder / "stores")} == {
        "stripes",
        "stripes_in-mine",
    }
    for path in find_stores(folder / "stores"):
        assert Store.open(path).view(1).shape == (24, 7)
    for target, out in (("stripes", "named"), ("stripes_in:mine", "by-path")):
        words = ("--target", target, "--source", "program:tiny.pt2", "--preset", "paper", "--out", out)
        trained = done(folder, "train", *words, *SHORT)
        assert "labels: cached, 2 view(s) of program:tiny.pt2" in trained.stderr
        config = json.loads((folder / out / "config.json").read_text())
        assert (config["target"], config["model"]) == (target, "resnet20")


def test_without_a_name_the_strange_target_is_among_those_that_are_prepared(folder):
    words = ("--source", "program:tiny.pt2", "--views", "2", "--device", "cpu", "--amp", "fp32")
    assert "targets prepared under data: stripes\n" in done(folder, "precompute", *words).stderr
    listed = {row["target"]: row for row in json.loads(done(folder, "targets", "--json").stdout)}
    assert (listed["stripes"]["prepared"], listed["digits"]["prepared"]) == (True, True)
    assert (listed["cifar10"]["prepared"], listed["stripes_in:PATH"]["prepared"]) == (False, None)
    assert [*listed] == NAMES.replace(" or ", ", ").split(", ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("prepare", "--target", "strips"),
            f"error: target 'strips' is not known, expected one of {NAMES}",
        ),
        (
            ("prepare", "--target", "stripes_in:away"),
            "away/train.npz: no such file; put train.npz and test.npz there",
        ),
        (
            ("prepare", "--target", "stripes_in:s3://bucket"),
            "error: target stripes_in:s3://bucket is a URL, expected a local folder",
        ),
        (
            ("prepare", "--target", "stripes", "--split", "2"),
            "is for ucf101 and hmdb51, not for stripes",
        ),
        (
            ("train", "--target", "stripes", "--model", "resnet3d18", *SHORT, "--method", "scratch"),
            "reads clips, and stripes holds images",
        ),
    ],
)
def test_wrong_names_are_refused_in_one_sentence(folder, words, message):
    result = run(folder, *words)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_moved_is_told_to_a_run_that_goes_on(folder):
    words = ("--target", "stripes_in:mine", "--method", "scratch", "--out", "moved", *SHORT)
    done(folder, "train", *words)
    (folder / "mine").rename(folder / "moved-away")
    try:
        gone = run(folder, "evaluate", "moved")
        assert "say where they are with --target stripes_in:PATH" in gone.stderr
        other = run(folder, "evaluate", "moved", "--target", "imagefolder:moved-away")
        assert (
            "was trained on stripes_in:mine, and --target imagefolder:moved-away is another" in other.stderr
        )
        done(folder, "evaluate", "moved", "--target", "stripes_in:moved-away")
    finally:
        (folder / "moved-away").rename(folder / "mine")


def test_a_name_is_registered_once():
    before = (dict(FAMILIES), dict(TARGETS))
    with pytest.raises(TargetError, match="family 'digits' is registered already; choose another name"):
        register(Digits())

    class Others(Digits):
        name = "others"

    with pytest.raises(TargetError, match="target 'digits' is registered already, by digits; choose another"):
        register(Others())
    Others.targets = (replace(parse_target("digits"), name="other"),)
    with pytest.raises(TargetError, match="'other' is of family 'digits', expected 'others'"):
        register(Others())
    assert before == (FAMILIES, TARGETS), "and nothing is half registered"
    with pytest.raises(RunError, match="target 'digits' has a recipe already"):
        register_recipe(recipe_for("digits"))


def test_only_a_name_with_a_path_is_of_a_path_family():
    assert path_family("imagefolder:a:b").name == "imagefolder"
    assert [path_family(name) for name in ("imagefolder", "digits", "ucf101:2", "images:a")] == [None] * 4
    assert target_slug("ucf101:2") == "ucf101_2"
    for name in ("imagefolder", "digits:1", "voc:2"):
        with pytest.raises(TargetError, match=f"target '{name}' is not known"):
            parse_target(name)
