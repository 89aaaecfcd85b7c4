"""The examples of docs/store-format.md, run as they stand on a store made here."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorstore  # noqa: F401 - the second example's only need
from cache_samples import filled_store, new_store

DOCUMENT = Path(__file__).parents[1] / "docs" / "store-format.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
PATH = "stores/cifar10/train/imagenet-resnet50/0123456789ab.zarr"


def adapted(example, store):
    """The example with this store's path and one of its sample ids."""
    assert PATH in example
    of_sample = re.sub(r"\b42\b", str(store.ids[4]), example)  # first: a path may hold a 42 too
    return of_sample.replace(PATH, str(store.path))


@pytest.mark.parametrize("example", EXAMPLES, ids=["zarr", "tensorstore"])
def test_the_documented_example_finds_the_row_of_a_sample(tmp_path, capsys, example):
    store, logits = filled_store(tmp_path)
    found = {}
    exec(adapted(example, store), found)
    np.testing.assert_array_equal(found["logits"], logits[0])
    shown = capsys.readouterr().out.splitlines()[0].strip("[]").split()
    np.testing.assert_allclose([float(x) for x in shown], logits[0, 4], rtol=1e-3)


@pytest.mark.parametrize("example", EXAMPLES, ids=["zarr", "tensorstore"])
def test_the_documented_example_refuses_an_incomplete_view(tmp_path, example):
    store = new_store(tmp_path)
    with pytest.raises((SystemExit, AssertionError), match="view 0 is not complete"):
        exec(adapted(example, store), {})
