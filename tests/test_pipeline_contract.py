"""From a declared contract to stored rows and a student: through both stages, on colour-coded images."""

import colorsys
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from listening import Remarks
from PIL import Image
from programs import save_program
from torch import nn

from cache.errors import StoreMismatch
from cache.store import Store
from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, paths_of
from pipeline.commands.rows import source_fields
from pipeline.data.datasets import parse_target
from pipeline.data.datasets.dataset import Dataset
from pipeline.stores.class_check import knowledge_of
from sskt.errors import RunError, SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.contract import Contract
from sskt.sources.registry import parse_source

pytestmark = pytest.mark.usefixtures("narrow")

N = 11  # classes named 1 to 11, which come as 1, 10, 11, 2, ... from a folder
TEXT = sorted(range(N), key=lambda i: str(i + 1))
COLOURS = np.array([colorsys.hsv_to_rgb(i / N, 0.9, 0.8) for i in range(N)])


class Nearest(nn.Module):
    """Logits by the distance of the mean colour, classes in `order`; reads pixels normalised by mean, std."""

    def __init__(self, order, mean=IMAGENET_MEAN, std=IMAGENET_STD, end=lambda z: z, bgr=False):
        super().__init__()
        values = (COLOURS[list(order)], np.reshape(mean, (-1, 1, 1)), np.reshape(std, (-1, 1, 1)))
        for name, value in zip(("colours", "mean", "std"), values, strict=True):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))
        self.end, self.bgr = end, bgr

    def forward(self, x):
        rgb = x * self.std + self.mean
        rgb = rgb.flip(1) if self.bgr else rgb
        return self.end(-20 * (rgb.mean((2, 3))[:, None] - self.colours).square().sum(2))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("contract") / "pics", np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 2)):
        for i in range(N):
            path = folder / split / str(i + 1)
            path.mkdir(parents=True)
            for j in range(n):
                noisy = np.clip(COLOURS[i] + rng.normal(0, 0.03, (20, 20, 3)), 0, 1)
                Image.fromarray((255 * noisy).astype(np.uint8)).save(path / f"{j}.png")
    return folder


@pytest.fixture
def lab(images, tmp_path):
    return Lab(images, tmp_path)


class Lab:
    """Both stages on the images, at 16 px."""

    def __init__(self, images, folder):
        self.folder, self.said = folder, Remarks()
        self.target = f"imagefolder:{images}"
        self.common = {
            "augmentation": Augmentation(side_px=16, source_side_px=16),
            "execution": choose_execution(device="cpu", amp="fp32", threads=1),
        }

    def program(self, name, network):
        return f"program:{save_program(self.folder / f'{name}.pt2', network)}"

    def paths(self, **told):
        contracts = {f"program:{name}.pt2": Contract.from_dict(fields) for name, fields in told.items()}
        return Paths(self.folder / "data", self.folder / "stores", contracts=contracts)

    def precompute(self, source, **told):
        self.said.clear()
        reports = api.precompute([self.target], [source], views=1, paths=self.paths(**told), **self.common)
        return Store.open(reports[0].path)

    def train(self, source, method="sskt", labels="cached", out="run", epochs=1, **told):
        self.said.clear()
        return api.train(
            self.target,
            out=self.folder / out,
            method=method,
            sources=(source,) if source else (),
            labels=labels,
            paths=self.paths(**told),
            model="resnet20",
            epochs=epochs,
            batch_size=66,
            amp="fp32",
            **self.common,
        )

    def heard(self, words):
        return [text for text in self.said if words in text]


def test_one_network_in_three_forms_has_the_same_rows_when_it_is_declared(lab):
    plain = lab.precompute(lab.program("plain", Nearest(TEXT)))
    assert lab.heard("plain.pt2 declares nothing; assumed: ImageNet's mean and std of pixels in 0..1, RGB")
    half = lab.program("half", Nearest(TEXT, (0.5,) * 3, (0.5,) * 3))
    undeclared = lab.precompute(half).view(0)
    assert np.abs(undeclared - plain.view(0)).max() > 1
    store = lab.precompute(half, half={"mean": 0.5, "std": 0.5})
    np.testing.assert_allclose(store.view(0), plain.view(0), atol=0.02)
    caffe = lab.program("caffe", Nearest(TEXT, np.array([104, 117, 124]) / 255, (1 / 255,) * 3, bgr=True))
    told = {"mean": [104, 117, 124], "std": 1, "range": [0, 255], "channels": "bgr"}
    (lab.folder / "caffe.json").write_text(json.dumps(told))
    store = lab.precompute(caffe)
    np.testing.assert_allclose(store.view(0), plain.view(0), atol=0.02)
    assert store.manifest.identity["input"]["channels"] == "bgr"
    assert set(plain.manifest.identity["input"]) == {
        *("side_px", "mean", "std", "interpolation", "align_corners", "antialias")
    }
    assert set(plain.manifest.identity["source"]) == {
        *("name", "architecture", "n_classes", "weights_sha256", "mode")
    }
    assert set(plain.manifest.made_by["asked"]) == {"target", "weights"}


@pytest.mark.parametrize(
    ("kind", "end"), [("probabilities", lambda z: z.softmax(1)), ("sigmoids", lambda z: (z + 3).sigmoid())]
)
def test_probabilities_are_refused_on_real_images_or_stored_as_logits(lab, kind, end):
    source = lab.program("t", Nearest(TEXT, end=end))
    with pytest.raises(SourceError, match=f"on real images.*returns={kind}"):
        lab.precompute(source)
    assert not list((lab.folder / "stores").rglob("*.zarr"))
    with pytest.raises(SourceError, match=f"on real images.*returns={kind}"):
        lab.train(source, labels="live")
    store = lab.precompute(source, t={"returns": kind})
    plain = lab.precompute(lab.program("plain", Nearest(TEXT))).view(0).astype(np.float64)
    expected = plain + 3
    if kind == "probabilities":
        expected = plain - np.log(np.exp(plain).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(store.view(0), expected, atol=0.05)
    assert store.manifest.identity["source"]["returns"] == kind
    found = api.verify(store.path, n_rows=20, paths=lab.paths(), execution=lab.common["execution"])
    assert found.good
    lab.train(source)  # as recorded
    with pytest.raises(StoreMismatch, match=rf"source\.returns is \"{kind}\" in the store and absent"):
        lab.train(source, out="other", t={"returns": "logits"})


def test_a_store_serves_by_the_contract_that_made_it_and_by_no_other(lab):
    source = lab.program("t", Nearest(TEXT, (0.5,) * 3, (0.5,) * 3))
    lab.precompute(source, t={"mean": 0.5, "std": 0.5})
    lab.train(source)
    config = json.loads((lab.folder / "run" / "config.json").read_text())
    assert config["contracts"] == {source: {"mean": [0.5] * 3, "std": [0.5] * 3}}
    with pytest.raises(StoreMismatch, match=r"input\.mean is \[0\.5, 0\.5, 0\.5\] in the store and \[0\.0"):
        lab.train(source, out="b", t={"mean": 0, "std": 1})
    (lab.folder / "t.json").write_text('{"returns": "probabilities"}')
    with pytest.raises(StoreMismatch, match=r"source\.returns is absent in the store"):
        lab.train(source, out="c")
    (lab.folder / "t.json").unlink()
    lab.precompute(source)
    with pytest.raises(StoreMismatch, match=r"2 stores serve this run, made by other contracts.*input\.mean"):
        lab.train(source, out="d")
    lab.train(source, out="e", t={"mean": 0.5, "std": 0.5})


def test_run_that_goes_on_keeps_what_was_said_of_its_source(lab):
    source = lab.program("t", Nearest(range(N)))
    lab.train(source, "kd", "live", t={"classes": "numeric"})
    (lab.folder / "run" / "summary.json").unlink()
    (lab.folder / "run" / "student.safetensors").unlink()
    assert paths_of(lab.folder / "run").contract_of(source) == Contract(classes="numeric")
    how = {"execution": lab.common["execution"]}
    api.resume(lab.folder / "run", **how)
    (lab.folder / "run" / "summary.json").unlink()
    (lab.folder / "run" / "student.safetensors").unlink()
    with pytest.raises(RunError, match="its contracts was"):
        api.resume(lab.folder / "run", paths=lab.paths(t={"classes": "target"}), **how)


def test_run_begun_before_contracts_were_recorded_goes_on(lab):
    lab.train(lab.program("t", Nearest(TEXT)), labels="live")
    run = lab.folder / "run"
    config, state = json.loads((run / "config.json").read_text()), torch.load(run / "last.pt")
    for found in (config, state["config"]):
        assert found.pop("contracts") == {}
    (run / "config.json").write_text(json.dumps(config))
    torch.save(state, run / "last.pt")
    environment = json.loads((run / "environment.json").read_text())
    del environment["places"]["contracts"]
    (run / "environment.json").write_text(json.dumps(environment))
    for name in ("summary.json", "student.safetensors"):
        (run / name).unlink()
    how = {"execution": lab.common["execution"]}
    assert api.resume(run, **how)["epochs"] == 1


def test_declared_size_and_interpolation_are_what_a_program_sees_and_published_ones_keep_the_papers():
    spec = parse_target("digits")
    wants = Contract(size=48, interpolation="bicubic", channels="bgr")
    program = parse_source("program:t.pt2").under(wants)
    seen = Augmentation().input_map(spec, program)
    assert (seen.side_px, seen.interpolation, seen.channels) == (48, "bicubic", "bgr")
    assert Augmentation(source_side_px=20).input_map(spec, program).side_px == 20
    published = Augmentation().input_map(spec, parse_source("imagenet:efficientnet_b0"))
    assert (published.side_px, published.interpolation) == (32, "bilinear")
    clips = parse_target("ucf101")
    half = parse_source("program:t.pt2").under(Contract((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(
        RunError, match=r"--source-frames reference takes .* and program:t\.pt2 declares mean 0\.5"
    ):
        Augmentation(source_frames="reference").input_map(clips, half)


def test_slip_of_the_pen_in_a_contracts_name_is_refused(lab):
    source = lab.program("t", Nearest(TEXT))
    with pytest.raises(RunError, match=r"--contract names program:u\.pt2, this run's sources are"):
        lab.precompute(source, u={"returns": "logits"})
    lab.precompute(source)
    with pytest.raises(RunError, match=r"--contract names program:u\.pt2"):
        lab.train(None, u={"returns": "logits"})


@pytest.mark.parametrize("labels", ["cached", "live", "write-through"])
def test_teacher_in_another_order_is_found_and_named_and_put_right(lab, labels):
    source = lab.program("number", Nearest(range(N)))
    if labels == "cached":
        lab.precompute(source)
        assert lab.heard("100.0 % if its classes are in numeric order")
    with pytest.raises(RunError, match=r"100\.0 % if.*numeric order: declare --contract.*=classes=numeric"):
        lab.train(source, "kd", labels)
    by_name = [str(i + 1) for i in range(N)]
    declared = {"classes": "numeric" if labels == "live" else by_name}
    lab.train(source, "kd", labels, out="a", number=declared)
    assert lab.heard("top-1 100.0 % of")
    right = lab.program("text", Nearest(TEXT))
    lab.train(right, "kd", "live" if labels == "live" else "write-through", out="b")
    found, expected = (json.loads((lab.folder / out / "metrics.jsonl").read_text()) for out in "ab")
    np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(
        found["aux_loss/" + source], expected[f"aux_loss/program:{lab.folder / 'text.pt2'}"], rtol=1e-5
    )
    if labels == "cached":
        with pytest.raises(RunError, match=r"declares the classes .* and imagefolder:pics has 1, 10, 11"):
            lab.train(source, "kd", labels, out="d", number={"classes": [f"x{i}" for i in range(N)]})


def test_source_shows_its_contract(lab):
    name = lab.program("t", Nearest(TEXT))
    (lab.folder / "t.json").write_text('{"mean": 0, "std": 1, "returns": "sigmoids"}')
    fields = source_fields(name)
    assert (fields["mean"], fields["returns"], fields["n_classes"]) == ("0", "sigmoids", N)
    assert fields["assumed"] == "RGB, classes unknown"
    assert source_fields("imagenet")["trained_on"] == "resize 256, crop 224, bilinear"


def dataset_of(labels, multi_hot=None, classes=TEXT):
    n, labels = len(labels), np.asarray(labels)
    return Dataset(
        "t", "train", "array", tuple(str(i + 1) for i in classes), np.arange(n), labels,
        np.zeros((n, 2), np.int32), np.zeros((n, 16), np.uint8), None, multi_hot=multi_hot,
    )  # fmt: skip


def test_agreement_with_labels_is_held_against_chance():
    rng = np.random.default_rng(0)
    labels = np.arange(550) % N
    dataset, rows, same = dataset_of(labels), np.arange(550), np.arange(N)
    random = knowledge_of(torch.from_numpy(rng.normal(size=(550, N))), dataset, rows, same)
    assert random.near_chance
    assert random.order is None
    assert random.matched is None
    assert abs(random.chance - 100 / N) < 1
    one_hot = np.eye(N)[labels]
    weak = knowledge_of(torch.from_numpy(one_hot + 2.0 * rng.normal(size=(550, N))), dataset, rows, same)
    assert not weak.near_chance
    odd = knowledge_of(torch.from_numpy(one_hot[:, [3, 1, 4, 0, 5, 9, 2, 6, 10, 7, 8]]), dataset, rows, same)
    assert odd.near_chance
    assert odd.matched == 100
    assert "its classes give 100.0 %" in odd.sentence("s", "t")
    back = knowledge_of(torch.from_numpy(one_hot[:, ::-1].copy()), dataset, rows, same)
    assert (back.order, back.in_order) == ("reversed", 100)
    declared = knowledge_of(torch.from_numpy(one_hot[:, ::-1].copy()), dataset, rows, same[::-1].copy())
    assert (declared.figure, declared.order) == (100, None)


def test_several_labels_are_held_against_mean_average_precision():
    rng = np.random.default_rng(0)
    multi_hot = (rng.random((300, N)) < 0.3).astype(np.int8)
    dataset, rows = dataset_of(multi_hot.argmax(1), multi_hot), np.arange(300)
    right = knowledge_of(torch.from_numpy(multi_hot.astype(np.float32)), dataset, rows, np.arange(N))
    assert (right.metric, right.figure, right.near_chance) == ("mAP", 100, False)
    numeric = np.array([TEXT.index(i) for i in range(N)])
    other = knowledge_of(
        torch.from_numpy(multi_hot[:, numeric].astype(np.float32)), dataset, rows, np.arange(N)
    )
    assert (other.order, other.in_order) == ("numeric", 100)


def test_contract_option_that_cannot_be_read_is_one_sentence():
    words = ["precompute", "--source", "program:t.pt2", "--target", "digits", "--contract"]
    for told, said in (
        ("program:t.pt2", "is not NAME=KEY=VALUE"),
        ("program:t.pt2=returns=logit", "error: --contract: returns is 'logit', expected one of"),
        ("program:t.pt2=classes=nowhere.txt", "or a text file with one name per line"),
        ("program:t.pt2=mean=0.5,0.5,std=1", "--contract: '0.5' is not KEY=VALUE, e.g. mean=0.485/0.456"),
    ):
        result = CliRunner().invoke(main, [*words, told])
        assert result.exit_code != 0
        assert said in result.stderr.replace("\n", " ")
