"""program:FILE.pt2, any network saved with torch.export, with its own weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sskt.sources.contract import Contract
from sskt.sources.declared import declared_of
from sskt.sources.exported_program import read_program
from sskt.sources.source import EMBEDDED, LOGITS_OUTPUT, Kind, Source, SourceSpec, rest_path, weights_digest


class ProgramKind(Kind):
    """The user's programs; their contracts are in the file or beside it."""

    prefix, forms, weights_note = "program", ("program:FILE.pt2",), "your torch.export program"
    is_path = is_foreign = True
    outputs = (LOGITS_OUTPUT, EMBEDDED)

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`; reads no file, so the number of classes is 0."""
        return self.unopened(self.name_at(rest_path(name).name), "program")

    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """See `Kind.open`."""
        program = read_program(weights)
        declared = declared_of(weights, told)
        spec = self.parse(name).under(declared.contract)
        spec = replace(spec, n_classes=program.n_classes, reads_clips=program.reads_clips)
        return Source(
            spec,
            program.module,
            weights_digest(weights),
            weights,
            program.side_range_px,
            declared,
            batch_range=program.batch_range,
            notes=program.notes,
            is_traced=True,
        )

    def weights_path(self, name: str, weights_dir: Path) -> Path:  # noqa: ARG002
        """See `Kind.weights_path`: the program itself."""
        return rest_path(name)

    def slug(self, name: str) -> str:
        """The file name without its suffix."""
        return rest_path(name).stem

    def declared(self, name: str, told: Contract) -> Contract:
        """See `Kind.declared`."""
        path = rest_path(name)
        return declared_of(path, told).contract if path.is_file() else told

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """See `Kind.describe`; opens the program."""
        path = rest_path(name)
        program, declared = read_program(path), declared_of(path)
        spec = replace(self.parse(name).under(declared.contract), n_classes=program.n_classes)
        return spec, [*declared.statements, *declared.remarks]
