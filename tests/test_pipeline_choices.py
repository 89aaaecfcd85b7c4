"""What sources see of a target: as released, or as stores made before have it."""

from __future__ import annotations

import pytest

from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets.registry import parse_target
from sskt.errors import RunError
from sskt.sources.input_map import InputMap
from sskt.sources.registry import parse_source


def test_what_sources_see_by_default_is_as_released_and_may_be_as_it_was_before():
    imagenet, kinetics = parse_source("imagenet"), parse_source("kinetics")
    of = {name: parse_target(name) for name in ("cifar10", "stl10", "imagefolder:x", "ucf101")}
    now, before = Augmentation(), Augmentation(source_input="earlier")
    assert before.input_map(of["cifar10"], imagenet) == InputMap(74)
    assert now.input_map(of["cifar10"], imagenet).to_dict() == {**InputMap(74).to_dict(), "scale": "7/3"}
    assert Augmentation(source_side_px=74).input_map(of["cifar10"], imagenet) == InputMap(74)
    assert now.input_map(of["stl10"], imagenet) == InputMap(224), "whole: nothing changes"
    assert now.input_map(of["imagefolder:x"], imagenet) == InputMap(224)
    activitynet, kinetics_mean = [114.7748, 107.7354, 99.475], [110.63666788, 103.16065604, 96.29023126]
    shown = {"ucf101": kinetics, "reference": imagenet}
    for name, source in shown.items():
        frames = {"source_frames": "reference"} if name == "reference" else {}
        for source_input, mean in (("released", activitynet), ("earlier", kinetics_mean)):
            asked = Augmentation(source_input=source_input, **frames)
            found = asked.input_map(of["ucf101"], source)
            assert [255 * v for v in found.mean] == pytest.approx(mean), (name, source_input)
    r3d = parse_source("kinetics:r3d_18")
    assert before.input_map(of["ucf101"], r3d) == now.input_map(of["ucf101"], r3d)
    with pytest.raises(RunError, match="source_input is 'later', expected one of released, earlier"):
        Augmentation(source_input="later").input_map(of["cifar10"], imagenet)
