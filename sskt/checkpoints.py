"""Read weights files of every kind that training tools write, without running foreign code.

This reads the nest as it was saved; `sskt.weights` finds which of its tensors are a network's weights, and
under which prefix.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sskt.errors import SourceError

SUFFIXES = (".pth", ".pt", ".pth.tar", ".ckpt", ".bin", ".safetensors")

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
# Settings and metrics that tools save beside weights. They are never imported: an empty object replaces each,
# and its contents are dropped.
_BESIDE_WEIGHTS = re.compile(
    r"argparse\.Namespace|numpy\..+|pathlib\.\w*Path|datetime\.\w+|typing\.\w+|omegaconf\..+|easydict\.EasyDict"
)
_FOREIGN = {  # what a file is, by its first bytes
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x1f\x8b": "compressed with gzip",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}
_HELP = {
    b"\x89HDF": "load it into the PyTorch network and save that one's state_dict()",
    b"\x1f\x8b": "unpack it first",
    b"version https://git-lfs": "fetch it with `git lfs pull`",
}
_MAX_DEPTH = 6  # how deep in a nest weights are searched for


@dataclass(frozen=True, slots=True)
class Tensors:
    """A mapping of names to tensors somewhere in a checkpoint."""

    place: tuple[str, ...]  # keys that lead to it; empty: the file itself
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A weights file: every mapping in it that holds tensors, outermost first."""

    path: Path
    mappings: tuple[Tensors, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the tensors of a file written by torch.save or safetensors, on the CPU, in their own precision.

    Raises SourceError if the file is missing, unreadable, of another kind or without tensors; code in a
    pickle is refused, never run.
    """
    if path.is_dir():
        raise SourceError(f"{path}: is a folder; give the weights file in it, one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise SourceError(f"{path}: no such weights file; give one of {', '.join(SUFFIXES)}")
    try:
        _require_weights(path)
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except SafetensorError as error:
        raise SourceError(
            f"{path}: is not a whole safetensors file ({error}); fetch or save it again"
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    mappings = tuple(_mappings(content, ()))
    if not mappings:
        raise SourceError(f"{path}: holds {_kind(content)}, expected a state dict; save module.state_dict()")
    return Checkpoint(path, mappings)


def _require_weights(path: Path) -> None:
    """Raise SourceError, saying what the file is, if it is recognised as something other than weights."""
    with path.open("rb") as file:
        head = file.read(64)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise SourceError(f"{path}: is {what}, expected PyTorch weights; {_HELP[magic]}")
    if path.name.endswith(".index.json"):
        raise SourceError(
            f"{path}: only says which files the weights are in; put them into one: `state = {{}}`, `for part "
            f"in parts: state |= safetensors.torch.load_file(part)`, `safetensors.torch.save_file(state, "
            f"'whole.safetensors')`"
        )
    if zipfile.is_zipfile(path):
        _require_checkpoint(path)
    elif head.startswith(b"PK"):
        raise SourceError(
            f"{path}: is not a whole PyTorch checkpoint, its end is missing; fetch or save it again"
        )
    elif not path.name.endswith(SUFFIXES) and head[:1] != b"\x80":
        raise SourceError(
            f"{path}: cannot tell what kind of weights file this is, expected one of {', '.join(SUFFIXES)}"
        )


def _require_checkpoint(path: Path) -> None:
    """Raise SourceError unless a zip archive is what torch.save writes of a state dict."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}
    if "archive_format" in inside or "serialized_exported_program.json" in names:
        raise SourceError(
            f"{path}: is a torch.export program, not weights; give it as --source program:{path}"
            + ("" if path.suffix == ".pt2" else ", renamed to .pt2")
        )
    if "constants.pkl" in inside:
        raise SourceError(
            f"{path}: is a TorchScript program, not a state dict; save its weights alone: "
            f"`torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')`"
        )
    if any(name.endswith(".npy") for name in names):
        raise SourceError(
            f"{path}: holds NumPy arrays, as JAX networks are published, expected PyTorch weights; load it "
            f"into the PyTorch network (timm reads such files) and save that one's state_dict()"
        )
    if "data.pkl" not in inside:
        raise SourceError(
            f"{path}: is not a whole PyTorch checkpoint but another zip archive; fetch or unpack it"
        )


def _load_pickle(path: Path) -> Any:
    """torch.load, limited to tensors and plain containers; settings beside them are left out."""
    try:
        beside = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _UNREADABLE:
        beside = []  # in torch's old format, or damaged
    left_out: list[Any] = [(_LeftOut, name) for name in beside if _BESIDE_WEIGHTS.fullmatch(name)]
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about pickle protocols: users cannot act on them
            torch.serialization.safe_globals(left_out),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if name := re.search(r"(?:[Uu]nsupported (?:global: )?)?GLOBAL (\S+)", str(error)):
            raise SourceError(
                f"{path}: holds {name[1]} beside tensors, refused because unpickling it could run code; if "
                f"you trust the file, save its weights alone: `content = torch.load({path.name!r}, "
                f"weights_only=False)`, then torch.save of module.state_dict() or of the state dict in it"
            ) from error
        raise SourceError(
            f"{path}: is not a whole PyTorch checkpoint ({type(error).__name__}); fetch or save it again"
        ) from error


class _LeftOut:
    """Placeholder for settings that are not weights: ignores whatever it is constructed or filled with."""

    def __init__(self, *_args: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def _mappings(content: Any, place: tuple[str, ...]) -> Iterator[Tensors]:
    """Every mapping of names to tensors in a nest of mappings."""
    if not isinstance(content, Mapping) or len(place) > _MAX_DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield Tensors(place, tensors)
    for key, value in content.items():
        yield from _mappings(value, (*place, str(key)))


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"no tensors ({', '.join(map(str, list(value)[:3]))})" if value else "nothing"
    return f"a {type(value).__name__}"
