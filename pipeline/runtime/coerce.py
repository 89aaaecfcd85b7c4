"""What a caller from Python gives, as what is meant: NumPy's numbers, a name where several may be, a path as
text. What cannot be meant is refused in one sentence.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cache import Location, location
from sskt.errors import RunError
from sskt.recipes import SETTINGS
from sskt.students import Backbone

PLAN_SEEDS = 2**64  # the plan's generator has a key of two words of 32 bits
SEEDS = 2**63  # beyond, NumPy turns a key into a float, and seeds that differ give the same draws


def whole(value: Any, name: str, *, low: int = 0, below: int | None = None) -> int:
    """A whole number from `low` on, as Python's. Raises RunError for a fraction, a bool or anything else."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (below is not None and number >= below):
        most = "" if below is None else f" and below 2**{below.bit_length() - 1}"
        raise RunError(f"{name} is {_shown(value)}, expected a whole number of at least {low}{most}")
    return number


def seed(value: Any) -> int:
    """The seed of weights and order, or of a check."""
    return whole(value, "seed", below=SEEDS)


def whole_or_none(value: Any, name: str, *, low: int = 1) -> int | None:
    """`whole`, or None as it is."""
    return None if value is None else whole(value, name, low=low)


def number(value: Any, name: str) -> float | int:
    """A number, as Python's; whether it is in range is another question. Raises RunError for what is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RunError(f"{name} is {_shown(value)}, expected a number")
    return value


def numbers(value: Any, name: str) -> tuple[float | int, ...]:
    """Several of them; one counts as several. Raises RunError for what is none."""
    each = _several(value, (str, float, int, np.number), name, "numbers such as [1, 3]")
    return tuple(number(one, f"one of {name}") for one in each)


def text(value: Any, name: str) -> str:
    """One name. Raises RunError for several, or for what is no text."""
    if not isinstance(value, str):
        raise RunError(f"{name} is {_shown(value)}, expected one name as text")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Several names; one counts as several, None as no name. Raises RunError for what is none."""
    each = () if value is None else _several(value, (str,), name, "names such as ['cifar10']")
    return tuple(text(one, f"one of {name}") for one in each)


def path(value: Any, name: str) -> Path:
    """A path, also as text. Raises RunError for what is none."""
    if not isinstance(value, str | Path):
        raise RunError(f"{name} is {_shown(value)}, expected a path")
    return Path(value)


def paths(value: Any, name: str) -> tuple[Path, ...]:
    """Several of them; one counts as several. Raises RunError for what is none."""
    return tuple(path(one, f"one of {name}") for one in _several(value, (str, Path), name, "paths"))


def place(value: Any, name: str) -> Location:
    """A path, or an object store's URL, also as text. Raises RunError for what is none."""
    return location(value) if isinstance(value, str) else _is_place(value, name)


def model(value: Any) -> str | Backbone | None:
    """A student's network by name, or its backbone; None as it is. Raises RunError for what is neither."""
    return value if isinstance(value, str) else backbone(value, "model", "a name or a Backbone")


def backbone(value: Any, name: str = "backbone", expected: str = "a Backbone") -> Backbone | None:
    """A backbone, or None. Raises RunError for another module, and says how a backbone is made of it."""
    if value is None or isinstance(value, Backbone):
        return value
    if isinstance(value, nn.Module):
        raise RunError(
            f"{name} is the module {type(value).__name__}, expected {expected}, which "
            f"sskt.students.WrappedBackbone(module, side_px=...) makes of a module without its last layer"
        )
    raise RunError(f"{name} is {_shown(value)}, expected {expected}")


def setting(name: str, value: Any) -> Any:
    """One override as a config has it. Raises RunError for another kind of value than a recipe's."""
    if name in ("epochs", "batch_size", "patience", "peers", "psi"):
        return whole(value, name)
    if name == "milestones":
        each = _several(value, (str, int, float, np.generic), name, "epochs such as [60, 120]")
        return tuple(whole(epoch, "one of milestones") for epoch in each)
    if name in ("schedule", "aux_loss", "primary_loss"):
        return text(value, name)
    is_number = name in SETTINGS or name in ("clip_norm", "mixup", "cutmix", "label_smoothing")
    return number(value, name) if is_number else value


def _several(value: Any, one: tuple[type, ...], name: str, expected: str) -> Iterable[Any]:
    """The values of a sequence, or a single one of a kind in `one`."""
    if isinstance(value, one):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise RunError(f"{name} is {_shown(value)}, expected {expected}")
    return value


def _is_place(value: Any, name: str) -> Location:
    if not hasattr(value, "is_file"):
        raise RunError(f"{name} is {_shown(value)}, expected a folder or a URL")
    kept: Location = value
    return kept


def _shown(value: Any) -> str:
    """A value with its type, in one line."""
    said = repr(value).replace("\n", " ")
    return f"{said if len(said) <= 60 else said[:57] + '...'} ({type(value).__name__})"
