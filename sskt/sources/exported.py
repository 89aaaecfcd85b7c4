"""program:FILE.pt2, any network saved with torch.export, with its own weights; and what it has in common with
other files that hold a whole network.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

from sskt.sources.contract import Contract
from sskt.sources.declared import Declared, declared_of
from sskt.sources.exported_program import Program, read_program
from sskt.sources.source import EMBEDDED, LOGITS_OUTPUT, Kind, Source, SourceSpec, rest_path


class FileKind(Kind):
    """The user's files with a network and its weights; their contracts are in the file or beside it."""

    is_path = is_foreign = True
    outputs = (LOGITS_OUTPUT, EMBEDDED)
    runs_itself = False  # see `Source.runs_itself`

    @abstractmethod
    def read(self, path: Path) -> Program:
        """The network in a file. Raises SourceError if it cannot be used."""

    def declarations(self, path: Path, told: Contract | None = None) -> Declared:
        """See `declared_of`."""
        return declared_of(path, told)

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`; reads no file, so the number of classes is 0."""
        return self.unopened(self.name_at(rest_path(name).name), self.prefix)

    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """See `Kind.open`."""
        program, declared = self.read(weights), self.declarations(weights, told)
        spec = self.parse(name).under(declared.contract)
        return Source(
            replace(spec, n_classes=program.n_classes, reads_clips=program.reads_clips),
            program.module,
            self.digest(weights),
            weights,
            program.side_range_px,
            declared,
            batch_range=program.batch_range,
            notes=program.notes,
            is_traced=True,
            runs_itself=self.runs_itself,
        )

    def weights_path(self, name: str, weights_dir: Path) -> Path:  # noqa: ARG002
        """See `Kind.weights_path`: the file itself."""
        return rest_path(name)

    def slug(self, name: str) -> str:
        """The file name without its suffix."""
        return rest_path(name).stem

    def declared(self, name: str, told: Contract) -> Contract:
        """See `Kind.declared`."""
        path = rest_path(name)
        return self.declarations(path, told).contract if path.is_file() else told

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """See `Kind.describe`; opens the file."""
        path = rest_path(name)
        program, declared = self.read(path), self.declarations(path)
        spec = replace(self.parse(name).under(declared.contract), n_classes=program.n_classes)
        return spec, [*declared.statements, *declared.remarks]


class ProgramKind(FileKind):
    """The user's programs."""

    prefix, forms, weights_note = "program", ("program:FILE.pt2",), "your torch.export program"

    def read(self, path: Path) -> Program:
        """See `read_program`."""
        return read_program(path)
