"""What a kind of source is: everything that depends on how a source is named, in one class of one file.

`sskt.sources.registry` holds the kinds there are; whoever has a source's name asks it, and tests no strings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from sskt.download import digest_of
from sskt.errors import SourceError
from sskt.sources.contract import Contract
from sskt.sources.source import Source, SourceSpec


class Kind(ABC):
    """The sources whose names are `prefix` alone or PREFIX:REST."""

    prefix: str
    forms: tuple[str, ...]  # of its names, for messages: ("imagenet", "imagenet:ARCHITECTURE")
    weights_note = "your own"  # where weights come from, for a listing of a kind that has none published
    is_path = False  # whether REST is a path, so that a source that moves gets another name
    must_be_named = False  # whether its stores serve only the runs that name them
    sees_target_size = False  # whether it sees images as large as the student does, not upsampled
    is_foreign = False  # whether nothing is known of its normalisation but what is declared

    @abstractmethod
    def parse(self, name: str) -> SourceSpec:
        """What `name` says of a source, without its weights. Raises SourceError for a name that is none."""

    @abstractmethod
    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """The source with its weights, read from the file `weights`, under what the user says of it.

        Raises SourceError; see `sskt.sources.registry.open_source`.
        """

    @abstractmethod
    def weights_path(self, name: str, weights_dir: Path) -> Path:
        """The file that holds the weights if the user gives none, whether it exists or not."""

    def fetch_weights(self, name: str, weights_dir: Path) -> Path:
        """`weights_path`, downloaded and verified if need be. Raises SourceError or DownloadError."""
        return self.weights_path(name, weights_dir)

    def published(self) -> list[SourceSpec]:
        """Every source of this kind that has published weights."""
        return []

    def slug(self, name: str) -> str:
        """What follows `prefix` in the name of the source's folder of stores."""
        return self.parse(name).architecture

    def path(self, name: str) -> Path | None:
        """Where the source lies, if names of this kind say so."""
        return rest_path(name) if self.is_path else None

    def name_at(self, path: Path | str) -> str:
        """The name of the source that lies at `path`."""
        return f"{self.prefix}:{path}"

    def name_by_weights(self, weights: Path | str) -> str | None:
        """The name of the source whose weights are the file `weights`, if names of this kind say so."""
        return self.name_at(weights) if self.is_path else None

    def declared(self, name: str, told: Contract) -> Contract:  # noqa: ARG002
        """`told`, completed by what the source's own file declares if it is there."""
        return told

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """What can be told of a source without a download, and who says so. Raises SourceError."""
        return self.parse(name), []


def rest_path(name: str) -> Path:
    """PATH of a name PREFIX:PATH."""
    return Path(name.partition(":")[2]).expanduser()


def weights_digest(path: Path) -> str:
    """The sha256 of a file's bytes. Raises SourceError if it cannot be read."""
    try:
        return digest_of(path)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error
