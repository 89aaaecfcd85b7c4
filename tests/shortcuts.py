"""What takes time in most tests and is the subject of few: the others go by shorter ways."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.figure import Figure
from programs import open_once

from pipeline.data.datasets import Dataset
from pipeline.data.datasets.digits import Digits
from pipeline.runtime.kernels import wrong_layers
from pipeline.train import confusion, kernel_check
from sskt.sources import exported_program

# files of tests that count the digits, compare shares of them, or continue runs recorded elsewhere
ALL_DIGITS = (
    "test_cli",
    "test_golden",
    "test_pipeline_earlier_runs",
    "test_pipeline_ensemble",
    "test_pipeline_export",
    "test_pipeline_targets_arrays",
)


@contextmanager
def shortcuts(about: str) -> Iterator[None]:
    """Waiting for the disk, opening a program or looking at a network's kernels again, drawing a confusion
    matrix, scoring 539 digits: only in the files of tests that are about it, of which this is one.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not about.startswith("test_cache_"):
            patch.setattr(os, "fsync", lambda _descriptor: None)
        if about != "test_sskt_programs":
            patch.setattr(exported_program, "open_archive", open_once)
        if "kernels" not in about:
            patch.setattr(kernel_check, "wrong_layers", wrong_layers_once)
        if about not in ("test_pipeline_titles", "test_pipeline_video_train", "test_sskt_names"):
            patch.setattr(confusion, "draw_confusion", lambda *_: Figure(figsize=(1, 1)))
        if about not in ALL_DIGITS:
            patch.setattr(Digits, "load", few_digits)
        yield


_kernels: dict[tuple[object, ...], object] = {}


def wrong_layers_once(networks, shape, how, *, learns, plain=(), kept_in):
    """`wrong_layers`; networks of the same layers as some before are not looked at again."""
    layers = [(prefix, repr(net), *map(type, net.modules())) for prefix, net in networks.items()]
    key = (*layers, shape, how, learns, plain)
    if key not in _kernels:
        _kernels[key] = wrong_layers(networks, shape, how, learns=learns, plain=plain, kept_in=kept_in)
    return _kernels[key]


_load_digits, _digits = Digits.load, dict[tuple[str, str], Dataset]()


def few_digits(family, spec, split, *folders):
    """`Digits.load`, read once; its test split has a fifth of its images: all 539 take as long to score as a
    short run takes to train.
    """
    if (spec.name, split) not in _digits:
        whole = _load_digits(family, spec, split, *folders)
        some = whole.take(np.arange(0, len(whole), 5))
        _digits[spec.name, split] = some if split == "test" else whole
    return _digits[spec.name, split]
