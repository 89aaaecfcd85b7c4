"""Teachers from timm, Transformers and ONNX through both stages, on images of plain colours."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from teachers import save_classifier, save_onnx, save_pair, save_timm
from transformers.utils import logging as hf_logging

from cache.errors import StoreMismatch
from cache.store import Store
from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from sskt.errors import MissingExtraError
from sskt.sources import Contract, prompts_sha256

pytestmark = pytest.mark.usefixtures("narrow")

COLOURS = {"blue": (20, 30, 220), "green": (20, 210, 40), "red": (220, 20, 30)}
EXTRAS = ("timm", "transformers", "huggingface_hub", "onnx", "onnxruntime")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("teachers") / "pics", np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 2)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                noisy = np.clip(colour + rng.normal(0, 12, (24, 24, 3)), 0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


class Lab:
    """Both stages on the images; sources see them in the size that they declare."""

    def __init__(self, images, folder):
        self.images, self.folder = images, folder
        self.execution = choose_execution(device="cpu", amp="fp32", threads=1)
        self.augmentation = Augmentation(side_px=16)

    def paths(self, weights=None, **contracts):
        return Paths(
            self.folder / "data",
            self.folder / "stores",
            weights=weights or {},
            contracts={name: Contract.from_dict(fields) for name, fields in contracts.items()},
        )

    def precompute(self, *sources, paths=None):
        reports = api.precompute(
            [f"imagefolder:{self.images}"],
            sources,
            views=1,
            paths=paths or self.paths(),
            augmentation=self.augmentation,
            execution=self.execution,
        )
        return [Store.open(report.path) for report in reports]

    def train(self, *sources, out="run", method="sskt", labels="cached", paths=None):
        return api.train(
            f"imagefolder:{self.images}",
            out=self.folder / out,
            method=method,
            sources=sources,
            labels=labels,
            paths=paths or self.paths(),
            model="resnet20",
            epochs=1,
            batch_size=24,
            amp="fp32",
            augmentation=self.augmentation,
            execution=self.execution,
        )

    def verify(self, store, paths=None):
        return api.verify(store.path, n_rows=24, paths=paths or self.paths(), execution=self.execution)


@pytest.fixture
def lab(images, tmp_path):
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    return Lab(images, tmp_path)


def without_extras(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in EXTRAS else found(name))


def test_every_door_leads_to_rows_that_a_run_without_the_extras_reads(lab, monkeypatch):
    weights = {"timm:test_resnet": save_timm(lab.folder / "net.pth", "test_resnet", n_classes=3)}
    paths = lab.paths(weights, **{"timm:test_resnet": {"size": 40}})
    own = lab.folder / "own.onnx"
    save_onnx(own, n_numbers=3)
    folder = save_classifier(lab.folder / "vit", classes=("blue", "green", "red"))
    names = (
        "timm:test_resnet",
        "timm:test_resnet@pooled",
        f"hf:{folder}",
        f"hf:{folder}@pooled",
        f"onnx:{own}",
    )
    stores = lab.precompute(*names, paths=paths)
    assert [store.n_classes for store in stores] == [3, 96, 3, 32, 3]
    assert [store.manifest.identity["input"]["side_px"] for store in stores[:4]] == [40, 40, 32, 32]
    identity = stores[2].manifest.identity["source"]
    assert (identity["name"], identity["architecture"]) == ("hf:vit", "ViTForImageClassification")
    assert len(identity["config_sha256"]) == 64
    again = lab.precompute(*names, paths=paths)  # finds every row there
    assert [store.path for store in again] == [store.path for store in stores]
    for store in (stores[0], stores[2], stores[4]):
        assert lab.verify(store).good
    without_extras(monkeypatch)
    lab.train("timm:test_resnet", f"hf:{folder}", f"onnx:{own}", method="kd")
    with pytest.raises(MissingExtraError, match=r"pip install 'sskt\[timm\]'"):
        lab.train("timm:test_resnet", labels="live", out="live", paths=paths)


def test_zero_shot_classifier_is_of_the_targets_classes(lab):
    folder = save_pair(lab.folder / "clip")
    name = f"hf:{folder}"
    (store,) = lab.precompute(name)
    assert store.n_classes == len(COLOURS)
    identity = store.manifest.identity["source"]
    assert identity["prompts_sha256"] == prompts_sha256(None, sorted(COLOURS))
    assert lab.verify(store).good
    lab.train(name, method="kd")
    lab.train(name, method="kd", labels="live", out="live")
    sketch = lab.paths(**{name: {"prompts": ["a sketch of {}"]}})
    with pytest.raises(StoreMismatch, match=r"source\.prompts_sha256 is"):
        lab.train(name, method="kd", out="other", paths=sketch)
    (other,) = lab.precompute(name, paths=sketch)
    assert other.path != store.path
    assert lab.verify(other).good
    assert np.abs(other.view(0) - store.view(0)).max() > 0.01


def test_renamed_class_is_another_zero_shot_classifier(lab, images):
    lab.images = shutil.copytree(images, lab.folder / "own")
    pair, own = f"hf:{save_pair(lab.folder / 'clip')}", f"hf:{save_classifier(lab.folder / 'vit')}"
    lab.precompute(pair, own)
    for split in ("train", "val"):
        (lab.images / split / "red").rename(lab.images / split / "rod")
    lab.train(own)  # whose rows no name of a class changes
    with pytest.raises(StoreMismatch, match=r"source\.prompts_sha256 is"):
        lab.train(pair, out="other")


def test_command_line_names_bad_inputs_in_one_line(lab, tmp_path):
    torn = tmp_path / "torn.onnx"
    save_onnx(torn)
    torn.write_bytes(torn.read_bytes()[:60])
    own, nan = tmp_path / "own.onnx", tmp_path / "nan.onnx"
    save_onnx(own)
    save_onnx(nan, n_numbers=3, weight=np.full((3, 3), np.nan, dtype=np.float32))
    wrong = tmp_path / "wrong.pth"
    torch.save({"fc.weight": torch.zeros(10, 10)}, wrong)
    cases = {
        (f"onnx:{tmp_path}/gone.onnx",): "no such ONNX file",
        (f"onnx:{torn}",): "is not a whole ONNX file",
        (f"onnx:{nan}",): "gave NaN",
        (f"onnx:{nan}@pooled",): "layers cannot be told apart",
        ("timm:resnet5O",): "did you mean resnet50",
        ("timm:test_vit",): "--weights timm:test_vit=FILE",
        ("timm:test_vit", "--weights", f"timm:test_vit={wrong}"): "does not fit",
        ("hf:nobody/nothing",): "nothing is downloaded here",
        (f"hf:{tmp_path}",): "has no config.json",
        (f"onnx:{own}", "--amp", "bf16"): "leave --amp bf16 out",
    }
    for (source, *more), message in cases.items():
        words = ["--source", source, *more, "--target", f"imagefolder:{lab.images}", "--views", "1"]
        places = ["--cache-dir", str(tmp_path / "stores"), "--data-dir", str(tmp_path / "data")]
        result = CliRunner().invoke(main, ["precompute", *words, *places, "--size", "16", "--device", "cpu"])
        last = result.output.strip().splitlines()[-1]
        assert result.exit_code, source
        assert isinstance(result.exception, SystemExit), source
        assert message in last, (source, result.output)
    assert not list(tmp_path.rglob("*.zarr"))  # nothing is left of what was refused


def test_sources_shows_what_each_expects(lab, tmp_path):
    folder = save_pair(tmp_path / "clip")
    result = CliRunner().invoke(main, ["sources", f"hf:{folder}"])
    for words in ("CLIPModel", "bicubic", "0.481455/0.457827/0.408211", "a photo of a {}.", "target"):
        assert words in result.output
    result = CliRunner().invoke(main, ["sources", "timm:test_vit"])
    for words in ("size           160", "1,000", "timm's test_vit.r160_in1k"):
        assert words in result.output
    result = CliRunner().invoke(main, ["sources"])
    for words in ("timm:NAME", "hf:REPO-OR-FOLDER", "onnx:FILE.onnx"):
        assert words in result.output
