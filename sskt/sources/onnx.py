"""onnx:FILE, any network as an ONNX file, computed by ONNX Runtime with its own weights.

Its contract is declared as a program's is: by the user, in the file's metadata (`sskt export` writes it
there), or in a JSON file beside it.
"""

from __future__ import annotations

from pathlib import Path

from sskt.errors import SsktError
from sskt.sources.contract import Contract
from sskt.sources.declared import Declared, declared_of
from sskt.sources.exported import FileKind
from sskt.sources.exported_program import Program
from sskt.sources.onnx_file import contract_inside, digest_with_data
from sskt.sources.onnx_network import read_network


class OnnxKind(FileKind):
    """The user's ONNX files."""

    prefix, forms, weights_note = "onnx", ("onnx:FILE.onnx",), "your ONNX file"
    runs_itself = True

    def read(self, path: Path) -> Program:
        """See `read_network`."""
        return read_network(path)

    def declarations(self, path: Path, told: Contract | None = None) -> Declared:
        """See `declared_of`; the file's own declaration is in its metadata."""
        return declared_of(path, told, inside=contract_inside(path))

    def digest(self, weights: Path) -> str:
        """See `Kind.digest`; of a file whose weights are in others, that of their digests as well."""
        return digest_with_data(weights)

    def declared(self, name: str, told: Contract) -> Contract:
        """See `Kind.declared`."""
        try:
            return super().declared(name, told)
        except SsktError:  # a store records what it declared
            return told
