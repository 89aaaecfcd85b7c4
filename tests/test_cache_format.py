"""The examples of docs/store-format.md, run as they stand on a store made here."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorstore  # noqa: F401 - the second example's only need
import torch
import zarr
from cache_samples import filled_store, new_store

from cache.errors import CacheError
from cache.row_format import REPRESENTATIONS
from cache.store import Store
from cache.unit import Unit
from sskt.topk import encode

DOCUMENT = Path(__file__).parents[1] / "docs" / "store-format.md"
ZARR, TOP_K, TENSORSTORE = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
PATH = "stores/cifar10/train/imagenet-resnet50/0123456789ab.zarr"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an example where its relative path leads to a store; gives the names that it has made."""

    def run(example, store):
        assert PATH in example
        (tmp_path / PATH).parent.mkdir(parents=True)
        store.path.rename(tmp_path / PATH)
        monkeypatch.chdir(tmp_path)
        names = {}
        exec(example, names)
        return names

    return run


def about_row_4(example, store):
    """The example with the sample id of that row."""
    return re.sub(r"\b42\b", str(store.ids[4]), example)


@pytest.mark.parametrize("example", [ZARR, TENSORSTORE], ids=["zarr", "tensorstore"])
def test_the_documented_example_finds_the_row_of_a_sample(tmp_path, capsys, run, example):
    store, logits = filled_store(tmp_path)
    found = run(about_row_4(example, store), store)
    np.testing.assert_array_equal(found["logits"], logits[0])
    shown = capsys.readouterr().out.splitlines()[0].strip("[]").split()
    np.testing.assert_allclose([float(x) for x in shown], logits[0, 4], rtol=1e-3)


@pytest.mark.parametrize("example", [ZARR, TENSORSTORE], ids=["zarr", "tensorstore"])
def test_the_documented_example_refuses_an_incomplete_view(tmp_path, run, example):
    with pytest.raises((SystemExit, AssertionError), match="view 0 is not complete"):
        run(example, new_store(tmp_path))


def test_the_documented_example_reads_the_top_of_a_row(tmp_path, capsys, run):
    z = (np.random.default_rng(2).normal(0, 4, (50, 300)) + np.linspace(0, 6, 300)).astype(np.float16)
    store = new_store(tmp_path, n=50, classes=300, views=1, block_rows=50, top_k=64)
    store.write_unit(Unit(0, 0), encode(torch.from_numpy(z), 64).numpy())
    run(TOP_K, store)
    p = np.exp(z[42].astype(float) / 5)
    p /= p.sum()
    shown = re.findall(r"(\d+): (?:np.float64\()?([\d.e-]+)", capsys.readouterr().out)
    assert [int(c) for c, _ in shown] == np.argsort(-z[42].astype(float), kind="stable")[:5].tolist()
    np.testing.assert_allclose([float(x) for _, x in shown], np.sort(p)[::-1][:5], rtol=5e-3)


def test_a_store_of_representations_is_read_by_zarr_under_its_own_name(tmp_path):
    store, rows = filled_store(tmp_path, kind=REPRESENTATIONS)
    group = zarr.open_group(store.path, mode="r")
    assert "logits" not in group
    assert np.array_equal(group["representations"][:], rows)
    again = Store.open(store.path)
    assert (again.form.kind, again.form.array, again.top_k) == (REPRESENTATIONS, REPRESENTATIONS, None)
    with pytest.raises(CacheError, match="representations cannot keep the top 2"):
        new_store(tmp_path / "other", kind=REPRESENTATIONS, top_k=2)
