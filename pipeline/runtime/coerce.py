"""Convert what Python callers pass into plain types: NumPy numbers, a single name for a list, a path as text.
Anything ambiguous is rejected with a one-sentence RunError.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import nn

from cache import Location, location
from sskt.errors import RunError, SettingError
from sskt.recipes import SETTINGS

PLAN_SEEDS = 2**64  # the plan's generator is keyed by two 32-bit words
SEEDS = 2**63  # beyond this NumPy turns a key into a float, and different seeds give the same draws


def whole(value: Any, name: str, *, low: int = 0, below: int | None = None) -> int:
    """A Python int in [low, below). Raises RunError for a fraction, a bool or anything else."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (below is not None and number >= below):
        most = "" if below is None else f" and below 2**{below.bit_length() - 1}"
        raise SettingError(name, f"is {_shown(value)}, expected a whole number of at least {low}{most}")
    return number


def seed(value: Any) -> int:
    """A seed for weights and sample order, or for a check."""
    return whole(value, "seed", below=SEEDS)


def whole_or_none(value: Any, name: str, *, low: int = 1) -> int | None:
    """`whole`, passing None through."""
    return None if value is None else whole(value, name, low=low)


def flag(value: Any, name: str) -> bool:
    """True or False. Raises RunError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise SettingError(name, f"is {_shown(value)}, expected True or False")
    return bool(value)


def number(value: Any, name: str) -> float | int:
    """A Python number, of any range. Raises RunError for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(name, f"is {_shown(value)}, expected a number")
    return value


def number_or_none(value: Any, name: str) -> float | int | None:
    """A Python number, or None. Raises RunError for anything else."""
    return None if value is None else number(value, name)


def numbers(value: Any, name: str) -> tuple[float | int, ...]:
    """A tuple of numbers; a single number is wrapped. Raises RunError for anything else."""
    values = _several(value, (str, float, int, np.number), name, "numbers such as [1, 3]")
    return tuple(number(one, f"one of {name}") for one in values)


def text(value: Any, name: str) -> str:
    """One name. Raises RunError for several names, or anything but text."""
    if not isinstance(value, str):
        raise SettingError(name, f"is {_shown(value)}, expected one name as text")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """A tuple of names; a single name is wrapped, None is empty. Raises RunError for anything else."""
    values = () if value is None else _several(value, (str,), name, "names such as ['cifar10']")
    return tuple(text(one, f"one of {name}") for one in values)


def path(value: Any, name: str) -> Path:
    """A path, possibly given as text. Raises RunError for anything else, and for a URL."""
    if not isinstance(value, str | Path):
        raise SettingError(name, f"is {_shown(value)}, expected a path")
    if "://" in str(value):
        raise SettingError(name, f"is {value}, expected a local path; copy what is there to a disk")
    return Path(value)


def paths(value: Any, name: str) -> tuple[Path, ...]:
    """A tuple of paths; a single path is wrapped. Raises RunError for anything else."""
    return tuple(path(one, f"one of {name}") for one in _several(value, (str, Path), name, "paths"))


def place(value: Any, name: str) -> Location:
    """A path or an object store's URL, possibly given as text. Raises RunError for anything else."""
    return location(value) if isinstance(value, str) else _require_location(value, name)


def place_or_none(value: Any, name: str) -> Location | None:
    """`place`, or None. Raises RunError for anything else."""
    return None if value is None else place(value, name)


def places(value: Any, name: str) -> tuple[Location, ...]:
    """A tuple of paths or URLs; a single one is wrapped. Raises RunError for anything else."""
    values = _several(value, (str, *get_args(Location)), name, "paths or URLs")
    return tuple(place(one, f"one of {name}") for one in values)


def model(value: Any) -> str | nn.Module | None:
    """A student's network by name, or its backbone or module, or None. Raises RunError for anything else."""
    return value if isinstance(value, str) else backbone(value, "model", "a name or a torch.nn.Module")


def backbone(value: Any, name: str = "backbone", expected: str = "a torch.nn.Module") -> nn.Module | None:
    """A backbone, a module that can be made one, or None. Raises RunError otherwise."""
    if value is None or isinstance(value, nn.Module):
        return value
    raise SettingError(name, f"is {_shown(value)}, expected {expected}")


def setting(name: str, value: Any) -> Any:
    """One override, as a config holds it. Raises RunError if the recipe's field has another type."""
    if name in ("epochs", "batch_size", "patience", "peers", "psi", "sketch_dim"):
        return whole(value, name)
    if name == "milestones":
        values = _several(value, (str, int, float, np.generic), name, "epochs such as [60, 120]")
        return tuple(whole(epoch, "one of milestones") for epoch in values)
    if name == "teacher_temperature":
        return _named_numbers(value, name)
    if name in _WORDS:
        return text(value, name)
    if name in ("nesterov", "decay_norms", "transfer_module", "gradient_norms"):
        return flag(value, name)
    is_number = name in SETTINGS or name in _NUMBERS
    return number(value, name) if is_number else value


_WORDS = (
    "optimizer", "schedule", "aux_loss", "aux_head", "primary_loss", "graph_logits", "edges", "transport",
    "graph_features", "vertices", "class_weights",
)  # fmt: skip
_NUMBERS = (
    "clip_norm",
    "mixup",
    "cutmix",
    "probe_weight",
    "probe_temperature",
    "rep_weight",
    "rep_temperature",
)


def _named_numbers(value: Any, name: str) -> dict[str, float | int]:
    """Numbers by name. Raises RunError for anything else."""
    if not isinstance(value, Mapping):
        raise RunError(f"{name} is {_shown(value)}, expected numbers by name such as {{'run:runs/a': 2.0}}")
    return {text(key, f"one of {name}"): number(one, f"one of {name}") for key, one in value.items()}


def _several(value: Any, one: tuple[type, ...], name: str, expected: str) -> Iterable[Any]:
    """The values of an iterable, or a single value whose type is in `one`."""
    if isinstance(value, one):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise SettingError(name, f"is {_shown(value)}, expected {expected}")
    return value


def _require_location(value: Any, name: str) -> Location:
    if not hasattr(value, "is_file"):
        raise SettingError(name, f"is {_shown(value)}, expected a folder or a URL")
    path_or_url: Location = value
    return path_or_url


def _shown(value: Any) -> str:
    """A value with its type, on one line."""
    literal = repr(value).replace("\n", " ")
    return f"{literal if len(literal) <= 60 else literal[:57] + '...'} ({type(value).__name__})"
