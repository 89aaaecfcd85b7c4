"""Exported students answer as their run does; read back by torch, safetensors and onnxruntime themselves."""

import importlib.util
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pipeline import api
from pipeline.api import Paths, choose_execution, open_dataset
from pipeline.data.render import open_renderer
from pipeline.train.evaluate import Evaluator
from pipeline.train.finished.formats import FORMATS
from pipeline.train.finished.student import open_finished
from sskt.errors import RunError, SettingError
from sskt.sources import open_source
from sskt.students import Student, WrappedBackbone

pytestmark = pytest.mark.usefixtures("narrow")

CPU = choose_execution(device="cpu", renderer="torch", threads=1)


def small():
    """A network of the caller's, which is exported in a moment."""
    torch.manual_seed(0)
    blocks = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2)
    return WrappedBackbone(nn.Sequential(*blocks), side_px=16, blocks=["0"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on 60 digits, and its paths."""
    folder = tmp_path_factory.mktemp("export")
    paths = Paths(folder / "data", folder / "stores")
    settings = {"method": "scratch", "model": small(), "epochs": 2, "batch_size": 20, "limit": 60}
    api.train("digits", out=folder / "run", paths=paths, execution=CPU, amp="fp32", val_share=0.1, **settings)
    return folder / "run", paths


@pytest.fixture(scope="module")
def asked(digits):
    """200 test images as float32 pixels from 0 to 1, and what the run says of them."""
    run, paths = digits
    dataset = open_dataset("digits", "test", paths=paths).take(np.arange(200))
    finished = open_finished(run)
    renderer = open_renderer(dataset, finished.plan, CPU, batch_size=len(dataset))
    (pixels,) = renderer.render(0, [np.arange(len(dataset))])
    renderer.close()
    student = finished.student("last", small(), CPU, None)
    return pixels.float() / 255, Evaluator(dataset, finished.plan, CPU).predict(student, "fp32")[0]


def require_alike(answers, reference):
    assert (answers.argmax(dim=1) == reference.argmax(dim=1)).all()
    assert float((answers.softmax(dim=1) - reference.softmax(dim=1)).abs().max()) <= 1e-4


def test_a_pt2_answers_as_the_run_and_teaches_as_a_source(digits, asked):
    run, _ = digits
    x, reference = asked
    written = api.export(run, format="pt2", backbone=small())
    assert (written["images"], written["same_class"]) == (32, 32)
    assert written["max_difference"] <= 1e-4
    assert written["input"] == "float32 N x 3 x 16 x 16"
    extra = {"sskt_contract.json": "", "sskt_notes.json": ""}
    program = torch.export.load(written["file"], extra_files=extra).module()
    require_alike(program(x), reference)
    require_alike(program(x[:1]), reference[:1])
    contract, notes = (json.loads(text) for text in extra.values())
    assert contract["classes"] == [str(i) for i in range(10)]
    assert (contract["size"], contract["range"], contract["returns"]) == (16, [0, 1], "logits")
    assert (notes["model"], notes["probabilities"]) == ("own:WrappedBackbone", "softmax")
    source = open_source(f"program:{written['file']}", weights_dir=run)
    assert source.spec.contract.classes == tuple(map(str, range(10)))
    assert (source.spec.mean, source.spec.std) == ((0.0,) * 3, (1.0,) * 3)
    require_alike(source.module(x), reference)


def test_safetensors_hold_the_weights_and_say_how_to_normalise(digits, asked, tmp_path):
    run, _ = digits
    x, reference = asked
    out = tmp_path / "new" / "weights.safetensors"
    api.export(run, format="safetensors", out=out, backbone=small())
    student = Student(small(), 10, {}, transfer_module=False).eval()
    student.load_state_dict(load_file(out))
    with safe_open(out, "pt") as file:
        about = file.metadata()
    contract = json.loads(about["sskt_contract"])
    mean, std = (torch.tensor(contract[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        require_alike(student.predict((x - mean) / std), reference)
    assert json.loads(about["classes"]) == contract["classes"]
    assert about["probabilities"] == "softmax"


def test_an_onnx_file_answers_as_the_run(digits, asked, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, _ = digits
    x, reference = asked
    out = tmp_path / "student.onnx"
    api.export(run, format="onnx", out=out, backbone=small())
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for part in (slice(0, 200), slice(3, 4)):
        (found,) = session.run(["logits"], {"images": x[part].numpy()})
        require_alike(torch.from_numpy(found), reference[part])
    about = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(about["classes"]) == [str(i) for i in range(10)]
    assert json.loads(about["sskt_contract"])["size"] == 16
    assert list(tmp_path.iterdir()) == [out]


def test_what_to_install_is_said(digits, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(RunError, match=r"onnx\w* is not installed; run pip install 'sskt\[onnx\]'"):
        api.export(digits[0], format="onnx")


def test_a_file_that_answers_otherwise_is_not_written(digits, monkeypatch):
    run, _ = digits
    before = sorted(run.iterdir())
    kind = FORMATS["safetensors"]
    for off in (2e-2, float("nan")):

        def answer(path, network, x, off=off):
            return kind.answer(path, network, x) + off * torch.arange(10)

        monkeypatch.setitem(FORMATS, "safetensors", replace(kind, answer=answer))
        with pytest.raises(RunError, match="answers are not those of"):
            api.export(run, format="safetensors", out=run / "other.safetensors", backbone=small())
        assert sorted(run.iterdir()) == before


def test_names_that_would_harm_or_mislead_are_refused(digits, tmp_path):
    run, paths = digits
    with pytest.raises(SettingError, match="'h5', expected one of onnx, pt2, safetensors"):
        api.export(run, format="h5")
    with pytest.raises(RunError, match=r"expected a name that ends in \.pt2"):
        api.export(run, format="pt2", out=tmp_path / "student.onnx")
    with pytest.raises(RunError, match="the run's own student"):
        api.export(run, format="safetensors", out=run / "student.safetensors")
    gone = shutil.copytree(run, tmp_path / "gone")
    (gone / "student.safetensors").unlink()
    with pytest.raises(RunError, match=r"has no student\.safetensors"):
        api.export(gone, format="pt2", paths=paths, backbone=small())
    with pytest.raises(RunError, match="its student is own:WrappedBackbone"):
        api.export(run, format="pt2")
