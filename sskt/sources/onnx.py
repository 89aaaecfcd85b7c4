"""onnx:FILE, any network as an ONNX file, computed by ONNX Runtime with its own weights.

Its contract is declared as a program's is: by the user, in the file's metadata (`sskt export` writes it
there), or in a JSON file beside it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sskt.errors import SsktError
from sskt.sources.contract import Contract
from sskt.sources.declared import declared_of
from sskt.sources.onnx_file import contract_inside, digest_with_data
from sskt.sources.onnx_network import read_network
from sskt.sources.source import EMBEDDED, LOGITS_OUTPUT, Kind, Source, SourceSpec, rest_path


class OnnxKind(Kind):
    """The user's ONNX files."""

    prefix, forms, weights_note = "onnx", ("onnx:FILE.onnx",), "your ONNX file"
    is_path = is_foreign = True
    outputs = (LOGITS_OUTPUT, EMBEDDED)

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`; reads no file, so the number of classes is 0."""
        return self.unopened(self.name_at(rest_path(name).name), "onnx")

    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """See `Kind.open`."""
        network = read_network(weights)
        declared = declared_of(weights, told, inside=contract_inside(weights))
        spec = replace(self.parse(name).under(declared.contract), n_classes=network.n_numbers)
        return Source(
            spec,
            network.module,
            self.digest(weights),
            weights,
            network.side_range_px,
            declared,
            batch_range=network.batch_range,
            notes=network.notes,
            is_traced=True,
            runs_itself=True,
        )

    def weights_path(self, name: str, weights_dir: Path) -> Path:  # noqa: ARG002
        """See `Kind.weights_path`: the file itself."""
        return rest_path(name)

    def digest(self, weights: Path) -> str:
        """See `Kind.digest`; of a file whose weights are in others, that of their digests as well."""
        return digest_with_data(weights)

    def slug(self, name: str) -> str:
        """The file name without its suffix."""
        return rest_path(name).stem

    def declared(self, name: str, told: Contract) -> Contract:
        """See `Kind.declared`."""
        path = rest_path(name)
        try:
            return declared_of(path, told, inside=contract_inside(path)).contract if path.is_file() else told
        except SsktError:  # a store records what it declared
            return told

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """See `Kind.describe`; opens the file."""
        path = rest_path(name)
        network, declared = read_network(path), declared_of(path, inside=contract_inside(path))
        spec = replace(self.parse(name).under(declared.contract), n_classes=network.n_numbers)
        return spec, [*declared.statements, *declared.remarks]
