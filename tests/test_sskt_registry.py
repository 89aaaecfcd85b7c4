"""A kind of source is one file and one line: a strange one works from the command line like ours."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_python
from torch import nn

from cache.store import Store, find_stores
from pipeline.stores.fingerprint import source_identity
from sskt.errors import SourceError
from sskt.sources.frozen import FrozenSource
from sskt.sources.input_map import InputMap
from sskt.sources.registry import kind_of, open_source, parse_source, register, split_names
from sskt.sources.source import Source
from sskt.sources.torchvision import ImageNet

DUMMY = '''
"""dummy:CLASSES, a network that tells brightness: its weights are this file."""

from pathlib import Path

import torch
from processes import run_python
from torch import nn

from sskt.errors import SourceError
from sskt.sources.registry import register
from sskt.sources.source import Kind, Source, SourceSpec, weights_digest


class Brightness(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, x):
        return x.mean(dim=(1, 2, 3))[:, None] * torch.arange(self.n_classes, device=x.device)


class Dummy(Kind):
    prefix, forms, weights_note = "dummy", ("dummy:CLASSES",), "none needed"

    def parse(self, name):
        n_classes = name.partition(":")[2]
        if not n_classes.isdecimal():
            raise SourceError(f"source {name!r}: {n_classes!r} is no number of classes; give dummy:CLASSES")
        return SourceSpec(name, "dummy", "brightness", int(n_classes), mean=(0.0,) * 3, std=(1.0,) * 3)

    def open(self, name, weights, told):
        spec = self.parse(name).under(told)
        return Source(spec, Brightness(spec.n_classes).eval(), weights_digest(weights), weights)

    def weights_path(self, name, weights_dir):
        return Path(__file__)


register(Dummy())
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the strange kind's file is, and a store of it."""
    folder = tmp_path_factory.mktemp("dummy")
    (folder / "dummy.py").write_text(DUMMY)
    words = ("--target", "digits", "--limit", "40", "--views", "2", "--device", "cpu", "--amp", "fp32")
    done = run(folder, "precompute", "--source", "dummy:5", *words)
    assert done.returncode == 0, done.stderr
    return folder


def run(folder, *words):
    """`sskt` with the strange kind registered."""
    code = "import sys, dummy, cli; cli.main(sys.argv[1:])"
    return run_python("-c", code, *words, cwd=folder)


def test_a_strange_kind_fills_a_store_that_is_opened_again(folder):
    (path,) = find_stores(folder / "stores")
    assert path.parent == folder / "stores" / "digits" / "train" / "dummy-brightness"
    rows = Store.open(path).view(1).astype(np.float32)
    assert rows.shape == (40, 5)
    np.testing.assert_allclose(rows, rows[:, 1:2] * np.arange(5), rtol=2e-3)
    assert len(np.unique(rows[:, 1])) > 20, "as bright as 40 digits are"
    done = run(folder, "cache", "verify", str(path), "--recompute", "10", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["agreement"]["rows"] == 10


def test_a_strange_kind_teaches_by_name_from_its_store(folder):
    words = ("--target", "digits", "--limit", "40", "--epochs", "1", "--batch-size", "20", "--amp", "fp32")
    done = run(folder, "train", "--source", "dummy:5", *words, "--out", "student", "--json")
    assert done.returncode == 0, done.stderr
    assert "labels: cached, 2 view(s) of dummy:5" in done.stderr
    config = json.loads((folder / "student" / "config.json").read_text())
    assert config["sources"] == ["dummy:5"]
    assert len(config["source_weights"]["dummy:5"]) == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dummy:many", "error: source 'dummy:many': 'many' is no number of classes; give dummy:CLASSES"),
        ("dmmy:5", "or dummy:CLASSES; sskt sources lists them"),
    ],
)
def test_a_bad_name_of_a_strange_kind_is_refused(folder, name, message):
    for command in ("precompute", "train"):
        done = run(folder, command, "--target", "digits", "--source", name)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_strange_kind_is_listed(folder):
    rows = json.loads(run(folder, "sources", "--json").stdout)
    assert rows[-1] == {
        "source": "dummy:CLASSES",
        "architecture": "any",
        "classes": None,
        "weights": "none needed",
    }


def test_a_prefix_is_registered_once():
    with pytest.raises(SourceError, match="'imagenet' is registered already, ImageNet; choose another"):
        register(ImageNet())
    assert kind_of("imagenet:resnet18").prefix == "imagenet"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("places365+imagenet", ("places365", "imagenet")),
        (
            "imagenet:resnet18+kinetics:r3d_18+places365",
            ("imagenet:resnet18", "kinetics:r3d_18", "places365"),
        ),
        (
            "run:runs/a+b+program:x+imagenet-y.pt2+imagenet",
            ("run:runs/a+b", "program:x+imagenet-y.pt2", "imagenet"),
        ),
        ("program:a+imagenets/b.pt2+imagenet", ("program:a+imagenets/b.pt2", "imagenet")),
    ],
)
def test_a_plus_joins_sources_where_the_name_of_one_follows(text, names):
    assert split_names(text) == names


def test_weights_beside_a_source_that_is_its_own_file_are_refused(tmp_path):
    for name in ("program:net.pt2", "run:student"):
        with pytest.raises(SourceError, match=f"{name} carries its own weights, other.pth was given beside"):
            open_source(name, weights=Path("other.pth"), weights_dir=tmp_path)


def test_another_output_than_the_logits_is_identity_and_must_be_there():
    spec = parse_source("imagenet")
    features = replace(spec, output="features")
    assert "output" not in source_identity(spec, "0" * 64, 1000)
    assert source_identity(features, "0" * 64, 1000) == {
        **source_identity(spec, "0" * 64, 1000),
        "output": "features",
    }
    source = Source(features, nn.Identity(), "0" * 64, Path("net.pth"))
    with pytest.raises(SourceError, match="imagenet has no output 'features', expected one of logits"):
        FrozenSource(source, InputMap(8), device=torch.device("cpu"))
