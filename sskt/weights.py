"""Weights from files: read without running foreign code, compared key by key with the network before anything
is loaded.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sskt.errors import SourceError

SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors")

_NAMED = 3  # keys written out in a message before only their number is
# What torch.load raises, by stage, for files that are truncated, foreign or damaged.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
)
# torchvision's and CSAILVision's DenseNet files predate a renaming in torchvision ("norm.1" is now "norm1").
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth, .pt, .pth.tar or .safetensors file, on the CPU, floating point as float32.

    A dict around it ({"state_dict": ...}) is unwrapped and DataParallel's `module.` removed. Raises
    SourceError when the file is missing, unreadable or holds anything but tensors; code in a pickle is
    refused, never run.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such weights file; give one of {', '.join(SUFFIXES)}")
    if not path.name.endswith(SUFFIXES):
        raise SourceError(
            f"{path}: cannot tell what kind of weights file this is, expected one of {', '.join(SUFFIXES)}"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except SafetensorError as error:
        raise SourceError(
            f"{path}: is not a whole safetensors file ({error}); fetch or save it again"
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise SourceError(f"{path}: holds {_kind(content)}, expected a state dict; save module.state_dict()")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise SourceError(f"{path}: {key} is {_kind(value)}, expected a tensor; save module.state_dict()")
    state = OrderedDict((_modern_key(key), _as_float32(value)) for key, value in content.items())
    # load_state_dict tells old layouts of some networks (MNASNet) by this attribute
    state._metadata = getattr(content, "_metadata", OrderedDict())  # type: ignore[attr-defined]
    return state


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], where: str, *, task: str, n_classes: int
) -> None:
    """Copy `state` into `module`, strictly: every key of either must be in both, with one shape.

    `where` names the weights in messages, `task` and `n_classes` what the network is for. BatchNorm's
    num_batches_tracked, which evaluation does not use, may be missing. Raises SourceError naming what does
    not fit; `module` is then unchanged.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misfits = [key for key in own if key in state and own[key].shape != state[key].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing keys ({_some(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected keys ({_some(unexpected)})")
    for key in misfits:
        if _is_class_count(own[key], state[key], n_classes):
            raise SourceError(
                f"{where}: {key} has {len(state[key])} classes, {task} expects {n_classes}; "
                f"give weights trained for {task}"
            )
    if misfits:
        shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in misfits]
        problems.append(f"{len(misfits)} tensors of another shape ({_some(shapes)})")
    if problems:
        raise SourceError(
            f"{where}: does not fit {type(module).__name__} for {task}: {'; '.join(problems)}; "
            f"name the architecture that the weights belong to"
        )
    module.load_state_dict(state, strict=False)  # strictness is above; False only for num_batches_tracked


def _load_pickle(path: Path) -> Any:
    """torch.load that unpickles tensors and plain containers only."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols, which a user cannot act on
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if found := re.search(r"(?:Unsupported global: )?GLOBAL (\S+)", str(error)):
            raise SourceError(
                f"{path}: holds {found[1]} beside tensors, refused because unpickling it could run code; "
                f"save module.state_dict() alone, or as .safetensors"
            ) from error
        raise SourceError(
            f"{path}: is not a whole PyTorch checkpoint ({type(error).__name__}); fetch or save it again"
        ) from error


def _modern_key(key: str) -> str:
    """Without DataParallel's `module` (which may wrap only a part, as in CSAILVision's AlexNet), in today's
    spelling.
    """
    key = ".".join(part for part in key.split(".") if part != "module")
    return _OLD_DENSENET.sub(r"\1\2", key)


def _as_float32(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def _is_class_count(own: Tensor, found: Tensor, n_classes: int) -> bool:
    """Whether two shapes differ only in the first axis, and ours is the number of classes: a head for another
    task.
    """
    return (
        own.ndim > 0
        and own.ndim == found.ndim
        and own.shape[0] == n_classes
        and own.shape[1:] == found.shape[1:]
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _kind(value: Any) -> str:
    return "nothing" if isinstance(value, Mapping) else f"a {type(value).__name__}"
