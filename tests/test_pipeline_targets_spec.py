"""Names of targets, and how their pictures are shown."""

from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.data.datasets.registry import TARGETS, parse_target, target_slug
from sskt.errors import TargetError


@pytest.mark.parametrize(
    ("name", "side", "source_side", "plan"),
    [
        ("cifar10", 32, 74, "pad-crop-flip"),
        ("cifar100", 32, 74, "pad-crop-flip"),
        ("stl10", 96, 224, "pad-crop-flip"),
        ("imagenet", 224, 224, "random-resized-crop-flip"),
        ("places365", 224, 224, "random-resized-crop-flip"),
        ("digits", 16, 32, "pad-crop-flip"),
    ],
)
def test_sources_see_what_the_paper_says(name, side, source_side, plan):
    spec = parse_target(name)
    assert (spec.name, spec.side_px, spec.plan_kind) == (name, side, plan)
    assert isinstance(spec.source_scale, Fraction)
    assert int(spec.side_px * spec.source_scale) == source_side


def test_unknown_name_lists_what_exists():
    with pytest.raises(
        TargetError, match=r"'cifar' is not known.*cifar10.*digits, imagefolder:PATH, .* or videofolder:PATH"
    ):
        parse_target("cifar")
    assert set(TARGETS) == {
        "cifar10",
        "cifar100",
        "stl10",
        "imagenet",
        "places365",
        "voc",
        "voc2007",
        "ucf101",
        "hmdb51",
        "ccv",
        "digits",
    }


@pytest.mark.parametrize("name", ["imagefolder:", "imagefolder:/"])
def test_imagefolder_without_a_folder_is_refused(name):
    with pytest.raises(TargetError, match="names no folder"):
        parse_target(name)


def test_imagefolder_is_recorded_by_its_name_and_not_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (f"{tmp_path}/my scenes", "my scenes", "./x/../my scenes/"):
        spec = parse_target(f"imagefolder:{path}")
        assert (spec.name, spec.root) == ("imagefolder:my scenes", Path(tmp_path, "my scenes"))
        assert target_slug(spec.name) == target_slug(f"imagefolder:{path}") == "imagefolder-my_scenes"
    assert target_slug("cifar10") == "cifar10"


@pytest.mark.parametrize("kind", ["imagefolder", "videofolder"])
@pytest.mark.parametrize("url", ["s3://bucket/pictures", "s3:/bucket", "gs://bucket", "http://host/x.zip"])
def test_a_url_is_refused_in_one_sentence(kind, url):
    with pytest.raises(TargetError, match=f"target {kind}:{url} is a URL, expected a local folder; copy"):
        parse_target(f"{kind}:{url}")


def test_a_long_name_gives_a_slug_that_file_systems_take():
    slugs = {target_slug(f"imagefolder:/data/{name}") for name in ("\u65e5" * 85, "\u65e5" * 84, "x" * 250)}
    assert len(slugs) == 3
    assert max(len(slug.encode()) for slug in slugs) < 160
