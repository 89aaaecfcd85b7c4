"""Boxes and masks beside images are not taken for classes, and what is out of scope is said."""

import pytest
from PIL import Image

from pipeline.api import Paths, open_dataset
from sskt.errors import TargetError

SCOPE = "detection, segmentation and regression are out of scope"


def fill(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16), (number, len(name), 9)).save(folder / name / f"{number}.png")


@pytest.mark.parametrize(
    "names",
    [
        ("images", "masks"),
        ("JPEGImages", "SegmentationClass", "Annotations"),
        ("train/images", "train/labels", "val/images"),
    ],
)
def test_a_folder_of_boxes_or_masks_is_refused(tmp_path, names):
    fill(tmp_path / "data", *names)
    with pytest.raises(TargetError, match=SCOPE):
        open_dataset(f"imagefolder:{tmp_path / 'data'}", "train", paths=Paths(tmp_path, tmp_path / "stores"))


def test_classes_with_such_names_among_others_are_classes(tmp_path):
    fill(tmp_path / "data", "masks", "images", "hats")
    assert open_dataset(
        f"imagefolder:{tmp_path / 'data'}", "train", paths=Paths(tmp_path, tmp_path / "stores")
    ).classes == ("hats", "images", "masks")


@pytest.mark.parametrize("name", ["coco", "COCO-2017", "ade20k"])
def test_a_data_set_of_another_task_is_named_as_such(name):
    with pytest.raises(TargetError, match=SCOPE):
        open_dataset(name, "train", paths=Paths())
    with pytest.raises(TargetError, match=r"imagefolder:PATH[^;]*$"):
        open_dataset("cifar11", "train", paths=Paths())
