"""What an ONNX file holds beside its graph: the contract in its metadata, and weights in other files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sskt.download import digest_of_data, known_digest_of
from sskt.errors import SourceError
from sskt.extras import is_installed, library
from sskt.sources.contract import Contract
from sskt.sources.declared import METADATA, parse_json

_LOCATION = "location"  # the key of a file's name in an external tensor's record


def contract_inside(path: Path) -> Contract:
    """The contract in a file's metadata; an empty one if it has none. Raises SourceError for one that cannot
    be read.
    """
    for entry in _model(path).metadata_props:
        if entry.key == METADATA:
            return parse_json(entry.value, f"{path}: its contract ({METADATA})")
    return Contract()


def data_files(path: Path) -> list[Path]:
    """The files that hold a file's weights, if it does not hold them itself; sorted. Raises SourceError for
    one outside of its folder, or missing.
    """
    found = sorted({entry for tensor in _tensors(_model(path).graph) for entry in _locations(tensor)})
    for name in found:
        if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            raise SourceError(f"{path}: keeps weights in {name}, expected a file in its own folder")
        if not (path.parent / name).is_file():
            raise SourceError(f"{path}: keeps its weights in {name}, which is not beside it; put it there")
    return [path.parent / name for name in found]


def digest_with_data(path: Path) -> str:
    """The sha256 of a file, or of its digest and those of the files with its weights. Raises OSError."""
    own = known_digest_of(path)
    if not is_installed("onnx"):  # to use a store, which records what was seen when it was made
        return own
    digests = [[file.name, known_digest_of(file)] for file in data_files(path)]
    return digest_of_data([own, *digests]) if digests else own


def _model(path: Path) -> Any:
    """The file's protobuf, without weights from other files."""
    onnx = library("onnx", extra="onnx", needed_by=f"onnx:{path.name}")
    message = library("google.protobuf", extra="onnx", needed_by="onnx", module="google.protobuf.message")
    try:
        return onnx.load(str(path), load_external_data=False)
    except (message.DecodeError, OSError, ValueError) as error:
        raise SourceError(f"{path}: is not a whole ONNX file ({error}); export it again") from error


def _tensors(graph: Any) -> Iterator[Any]:
    """Every stored tensor of a graph and of those nested in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for nested in (attribute.g, *attribute.graphs):
                if nested.node:
                    yield from _tensors(nested)


def _locations(tensor: Any) -> Iterator[str]:
    for entry in tensor.external_data:
        if entry.key == _LOCATION:
            yield entry.value
