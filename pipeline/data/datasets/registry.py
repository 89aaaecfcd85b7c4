"""The registry of targets: families and the targets that have a name of their own, looked up by name.

A family is one class in one file, registered by one line in `pipeline.data.datasets`. Whoever asks something
of a target asks its spec or its family, never its name. Recipes of training (epochs, rates) are in
`sskt.recipes`.
"""

from __future__ import annotations

from typing import Any

from pipeline.data.datasets.dataset import DatasetSpec, Family, absolute_path, file_slug
from pipeline.data.datasets.other_tasks import names_other_task
from sskt.errors import TargetError

FAMILIES: dict[str, Family[Any]] = {}
TARGETS: dict[str, DatasetSpec] = {}  # those that have a name of their own


def register(family: Family[Any]) -> None:
    """Make a family's targets known by name.

    Raises TargetError for a name that is taken, or a target whose spec names another family.
    """
    if family.name in FAMILIES:
        raise TargetError(f"target family {family.name!r} is registered already; choose another name")
    for spec in family.targets:
        if spec.name in TARGETS:
            raise TargetError(
                f"target {spec.name!r} is registered already, by {TARGETS[spec.name].family}; choose another "
                f"name"
            )
        if spec.family != family.name:
            raise TargetError(
                f"target {spec.name!r} is of family {spec.family!r}, expected {family.name!r}, which "
                f"registers it"
            )
    FAMILIES[family.name] = family
    TARGETS.update({spec.name: spec for spec in family.targets})


def family_of(spec: DatasetSpec) -> Family[Any]:
    """The family that reads a target."""
    return FAMILIES[spec.family]


def path_families() -> list[Family[Any]]:
    """The families whose targets are named by a path, such as imagefolder:PATH."""
    return [family for family in FAMILIES.values() if family.is_path]


def path_family(name: str) -> Family[Any] | None:
    """The family of a name such as imagefolder:PATH; None for names of other forms."""
    return next((family for family in path_families() if name.startswith(f"{family.name}:")), None)


def parse_target(name: str) -> DatasetSpec:
    """The spec of a registered name, or of FAMILY:PATH; reads nothing from disk.

    "ucf101:2" is the second official split of a target that has several. Raises TargetError if there is none.
    """
    if name in TARGETS:
        return TARGETS[name]

    head, _, rest = name.partition(":")
    spec: DatasetSpec | None = None
    if family := path_family(name):
        spec = family.from_path(rest)
    elif head in TARGETS and (family := family_of(TARGETS[head])).official_splits:
        spec = family.of_split(TARGETS[head], rest)
    if spec is None:
        with_labels = [family for family in path_families() if family.has_labels]
        *names, last = [*TARGETS, *(f"{family.name}:PATH" for family in with_labels)]
        raise TargetError(
            f"target {name!r} is not known, expected one of {', '.join(names)} or {last}"
            f"{names_other_task(name)}"
        )
    return spec


def target_slug(name: str) -> str:
    """A name that any file system takes: imagefolder:/data/my scenes -> imagefolder-my_scenes."""
    family = path_family(name)
    if family is not None:
        path = name.removeprefix(f"{family.name}:")
        name = f"{family.name}-{absolute_path(path).name}"
    return file_slug(name)
