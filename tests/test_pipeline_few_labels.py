"""Methods that learn from labels alone train on the samples that keep theirs, and say so."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from listening import Remarks

import cli
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.data import open_dataset
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")

SHORT = {"epochs": 1, "batch_size": 10, "amp": "fp32"}


def train(folder, name, **settings):
    """A student of the digits, and what was said on the way."""
    execution = choose_execution(device="cpu", threads=1)
    paths = Paths(folder / "data", folder / "stores")
    remarks = Remarks()
    api.train("digits", out=folder / name, paths=paths, execution=execution, **SHORT, **settings)
    return (folder / name / "student.safetensors").read_bytes(), remarks


def test_scratch_with_few_labels_trains_on_what_a_limit_would_leave(tmp_path):
    few, remarks = train(tmp_path, "few", method="scratch", labels_per_class=3)
    limited, _ = train(tmp_path, "limited", method="scratch", limit=30)
    assert few == limited
    n = len(open_dataset("digits", "train", paths=Paths(tmp_path / "data", tmp_path / "stores")))
    assert any(f"trains on the 30 samples with a label and leaves {n - 30:,} out" in said for said in remarks)


def test_a_list_of_labels_names_the_samples_that_are_trained_on(tmp_path):
    dataset = open_dataset("digits", "train", paths=Paths(tmp_path / "data", tmp_path / "stores"))
    ids = np.concatenate([dataset.ids[dataset.labels == label][:2] for label in range(10)])
    (tmp_path / "labelled.txt").write_text("\n".join(map(str, ids)) + "\n")
    words = ("--method", "scratch", "--labelled", "labelled.txt", "--epochs", "1", "--batch-size", "10")
    lie = ("--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "stores"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(cli.main, ["train", "--target", "digits", *words, *lie, "--out", "run"])
        assert result.exit_code == 0, result.output
    assert "trains on the 20 samples with a label" in result.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (
        config["contents"]["train"] == dataset.take(np.flatnonzero(np.isin(dataset.ids, ids))).content_sha256
    )


def test_images_that_never_had_a_label_are_still_refused(tmp_path):
    with pytest.raises(RunError, match="scratch does not support images without labels"):
        train(tmp_path, "refused", method="scratch", limit=30, unlabelled=str(_images(tmp_path)))


def _images(folder):
    """A folder of two images without labels."""
    from PIL import Image

    (folder / "images").mkdir()
    for shade in (40, 200):
        Image.new("RGB", (16, 16), (shade, shade, shade)).save(folder / "images" / f"{shade}.png")
    return folder / "images"
