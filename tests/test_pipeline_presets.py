"""Presets: what a command that names neither recipe nor preset does, and that it says so."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from programs import Tiny, save_program

from cli import main
from pipeline.commands.train import _usual_preset
from pipeline.train.presets import preset_choice
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve labelled images of two classes, and two views of a source stored for them."""
    root = tmp_path_factory.mktemp("presets")
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 2)):
        for level, name in ((60, "dark"), (180, "light")):
            (root / "pets" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(level - 40, level + 40, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "pets" / split / name / f"{i}.png")
    save_program(root / "tiny.pt2", Tiny())
    run(root, "precompute", "--views", "2")
    return root


def run(root, command, *words, code=0):
    every = ("--target", f"imagefolder:{root / 'pets'}", "--source", f"program:{root / 'tiny.pt2'}")
    where = ("--data-dir", str(root / "data"), "--cache-dir", str(root / "stores"), "--threads", "1")
    result = CliRunner().invoke(main, [command, *every, "--size", "32", *where, *words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    ("words", "recipe", "probed"),
    [
        ((), "fast", False),
        (("--labels", "live"), "fast", False),
        (("--probe-weight", "0.5"), "fast", True),
        (("--labels-per-class", "3"), "fast", True),
        (("--labels-per-class", "3", "--labels", "live"), "fast", True),
        (("--labels-per-class", "3", "--recipe", "paper"), "paper", False),
        (("--labels-per-class", "3", "--preset", "paper"), "paper", False),
        (("--labels-per-class", "3", "--preset", "best", "--recipe", "paper"), "paper", True),
    ],
)
def test_a_folder_of_ones_own_is_taught_by_heads_or_where_labels_lack_by_a_probe(
    folder, tmp_path, words, recipe, probed
):
    said = run(folder, "train", "--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "6", *words)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    source = f"program:{folder / 'tiny.pt2'}"
    assert config["recipe"] == recipe
    assert config["sources"][0].startswith("probe:") == probed
    assert source.rpartition("/")[2] in config["sources"][0]
    of_preset = "paper" not in words[-1:]
    assert ("--preset paper" in said) == (of_preset or "best" in words)  # and how to leave it out
    assert ("so a head per source teaches instead, with alpha 1" in said) == (recipe == "fast" and not probed)


@pytest.mark.parametrize("words", [("--alpha", "0.7"), ("--transfer-module",), ("--temperature", "5")])
def test_settings_of_heads_are_not_ignored_where_a_probe_is_alone(folder, tmp_path, words):
    """Where it was named; where it would be the preset's choice, they ask for heads."""
    short = ("--epochs", "1", "--batch-size", "6", "--labels-per-class", "3", *words)
    source = f"program:{folder / 'tiny.pt2'}"
    target = ["--target", f"imagefolder:{folder / 'pets'}", "--cache-dir", str(folder / "stores")]
    named = ["train", *target, "--size", "32", "--source", f"probe:{source}", "--out", str(tmp_path / "no")]
    result = CliRunner().invoke(main, [*named, *short])
    assert result.exit_code == 1
    assert f"{' '.join(words)} is for the heads of sources, and probe:" in result.output.replace(".0 ", " ")
    assert not (tmp_path / "no").exists()
    run(folder, "train", "--out", str(tmp_path / "run"), *short)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"], config["sources"]) == ("fast", [source])


@pytest.mark.parametrize(
    "words", [("--probe-weight", "0.5"), ("--probe-temperature", "2.0"), ("--probe-views", "own")]
)
def test_settings_of_a_probe_are_not_ignored_where_there_is_none(folder, tmp_path, words):
    said = run(folder, "train", "--preset", "paper", "--out", str(tmp_path / "run"), *words, code=1)
    assert (
        f"{' '.join(words)} is for a probe, and there is none among the sources; add --source probe:" in said
    )
    assert not (tmp_path / "run").exists()


def test_without_a_name_the_stored_sources_are_those_that_are_asked_live(folder, tmp_path):
    """Not the paper's two. A program's own folder is not in its store, so it has to be named."""
    words = ["train", "--target", f"imagefolder:{folder / 'pets'}", "--cache-dir", str(folder / "stores")]
    words += ["--out", str(tmp_path / "run"), "--size", "32", "--labels", "live", "--threads", "1"]
    result = CliRunner().invoke(main, words)
    assert "labels: live, program:tiny.pt2 in " in result.output
    assert result.output.splitlines()[-1].startswith("error: tiny.pt2: no such program; give a .pt2 file")


def test_a_source_of_which_nothing_is_stored_teaches_live_by_the_fast_recipe(folder, tmp_path):
    short = ("--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "6")
    elsewhere = ("--cache-dir", str(tmp_path / "stores"), "--labels-per-class", "3")
    said = run(folder, "train", *elsewhere, *short)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"], config["labels"]) == ("fast", "live")
    assert config["sources"] == [f"program:{folder / 'tiny.pt2'}"]
    told = [line for line in said.splitlines() if line.startswith("--preset best: nothing is stored of")]
    assert len(told) == 1
    assert "teaches live by source heads, as with --preset paper --recipe fast" in told[0]
    # who wants stored rows, or a probe, is not given anything else
    for words in (("--labels", "cached"), ("--probe-weight", "0.5"), ("--source", "probe:imagenet"),
                  ("--source", "imagenet@pooled")):  # fmt: skip
        refused = run(folder, "train", *elsewhere, *words, "--out", str(tmp_path / "no"), code=1)
        assert "there is no store of " in refused
        assert "a probe is fitted on stored rows; run `sskt precompute --source " in refused
    assert not (tmp_path / "no").exists()


def test_what_a_live_run_has_stored_is_what_a_probe_of_the_next_is_fitted_on(folder, tmp_path):
    """Its held-out images are not in that store."""
    words = ("--epochs", "1", "--batch-size", "6", "--cache-dir", str(tmp_path / "stores"))
    through = ("--labels", "write-through", "--views", "1")
    run(folder, "train", "--out", str(tmp_path / "live"), *words, *through)
    run(folder, "train", "--out", str(tmp_path / "run"), *words, "--probe-weight", "0.5")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["sources"], config["labels"]) == ([f"probe:program:{folder / 'tiny.pt2'}"], "cached")


def test_without_a_source_and_a_store_the_way_on_is_said(folder, tmp_path):
    target = f"imagefolder:{folder / 'pets'}"
    words = ["train", "--target", target, "--cache-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    *_, last = result.output.splitlines()
    assert f"there is no store of any source for {target}" in last
    assert "run `sskt precompute --source places365 --source imagenet --target imagefolder:" in last
    assert "or name a source that is asked live, such as --source imagenet" in last


def few(root, counts):
    """A folder of two classes with so many training images, and a store of them."""
    rng = np.random.default_rng(1)
    for split, numbers in (("train", counts), ("test", (1, 1))):
        for name, level, n in zip(("dark", "light"), (60, 180), numbers, strict=True):
            (root / "pets" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(level - 40, level + 40, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "pets" / split / name / f"{i}.png")
    save_program(root / "tiny.pt2", Tiny())
    run(root, "precompute", "--views", "1")


@pytest.mark.parametrize(
    ("counts", "words", "remedy", "helps"),
    [
        (
            (2, 6),
            ("--probe-weight", "0.5"),  # which asks for a probe, though all have a label
            "add --val-share 0 to train on the held-out samples as well",
            ("--val-share", "0", "--probe-weight", "0.5"),
        ),
        ((4, 6), ("--labels-per-class", "1"), "keep more by --labels-per-class", ("--labels-per-class", "2")),
        ((1, 6), ("--probe-weight", "0.5"), "label at least two of each class", ("--preset", "paper")),
    ],
)
def test_what_is_said_where_a_probe_has_too_few_labels_helps(tmp_path, counts, words, remedy, helps):
    few(tmp_path, counts)
    short = ("--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "4")
    said = run(tmp_path, "train", *short, *words, code=1)
    source = f"program:{tmp_path / 'tiny.pt2'}"
    assert f"{remedy}, or learn by source heads, with --preset paper --source {source}" in said
    run(tmp_path, "train", *short, *helps)


@pytest.mark.parametrize(
    ("target", "recipe", "preset"),
    [
        ("imagefolder:pets", None, "best"),
        ("videofolder:clips", None, "best"),
        ("imagefolder:pets", "paper", "paper"),
        ("cifar10", None, "paper"),
        ("cifar10", "fast", "paper"),
    ],
)
def test_the_usual_preset(target, recipe, preset):
    assert _usual_preset(target, recipe) == preset


@pytest.mark.parametrize(
    ("method", "target", "recipe", "sources"),
    [
        ("sskt", "imagefolder:pets", "fast", ("probe:imagenet+places365",)),
        ("scratch", "imagefolder:pets", "fast", ("imagenet", "places365")),
        ("kd", "imagefolder:pets", "fast", ("imagenet", "places365")),
        ("maxl", "imagefolder:pets", "paper", ("imagenet", "places365")),  # has its own schedule
        ("sskt", "videofolder:clips", "paper", ("probe:imagenet+places365",)),  # there is no fast one
    ],
)
def test_best_takes_what_the_method_and_the_target_have(method, target, recipe, sources):
    told = {"recipe": None, "labels": "auto", "probe_views": None}
    named = ("imagenet", "places365")
    assert preset_choice("best", target, method, sources=named, **told)[:2] == (recipe, sources)
    given = preset_choice("best", target, method, sources=("imagenet", "probe:places365"), **told)
    assert given.sources == ("imagenet", "probe:places365")
    assert preset_choice("paper", target, method, sources=named, **told)[:2] == ("paper", named)


def test_an_unknown_preset_is_refused():
    with pytest.raises(RunError, match="preset is 'rest', expected one of paper, best"):
        preset_choice("rest", "digits", "sskt", recipe=None, sources=(), labels="auto", probe_views=None)
