"""What a kind of source is: everything that depends on how a source is named, in one class.

`sskt.sources.registry` holds the existing kinds; code that has a source's name asks the registry instead of
comparing strings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from sskt.download import digest_of, known_digest_of
from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.contract import Contract
from sskt.sources.outputs import LOGITS_OUTPUT, network_of
from sskt.sources.source import Source, SourceSpec


class Kind(ABC):
    """All sources whose names are `prefix` alone or PREFIX:REST, with or without an output
    (`sskt.sources.outputs`); `parse` and `open` get names without one.
    """

    prefix: str
    forms: tuple[str, ...]  # of names, for messages: ("imagenet", "imagenet:ARCHITECTURE")
    weights_note = "your own"  # where weights come from, for a listing, if none are published
    is_path = False  # whether REST is a path, so that a source that moves gets another name
    must_be_named = False  # whether its stores serve only runs that name the source
    sees_target_size = False  # whether it sees images in the student's size, without upsampling
    is_fitted = False  # whether it is fitted to the target's labels, so that its classes are the target's
    files: tuple[str, ...] = ()  # in the folder that a name contains, all that the source needs
    outputs: tuple[str, ...] = (LOGITS_OUTPUT,)  # kinds of them that its networks may have
    is_foreign = False  # whether its normalisation is known only if it is declared

    @abstractmethod
    def parse(self, name: str) -> SourceSpec:
        """What `name` tells about a source, without its weights. Raises SourceError for an invalid name."""

    @abstractmethod
    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """The source with the weights in the file `weights`, under the contract that the user declares.

        Raises SourceError; see `sskt.sources.registry.open_source`.
        """

    @abstractmethod
    def weights_path(self, name: str, weights_dir: Path) -> Path:
        """The file that holds the weights if the user gives none, whether it exists or not."""

    def digest(self, weights: Path) -> str:
        """The sha256 by which stores recognise the weights in a file that `weights_path` names. Raises
        OSError.
        """
        return known_digest_of(weights)

    def fetch_weights(self, name: str, weights_dir: Path) -> Path:
        """`weights_path`, downloaded and verified if need be. Raises SourceError or DownloadError."""
        return self.weights_path(name, weights_dir)

    def published(self) -> list[SourceSpec]:
        """Every source of this kind that has published weights."""
        return []

    def unopened(self, name: str, architecture: str) -> SourceSpec:
        """The spec of a source whose file was not read: its classes are not known, nor is its input."""
        return SourceSpec(name, self.prefix, architecture, n_classes=0, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def slug(self, name: str) -> str:
        """What follows `prefix` in the name of the folder that holds the source's stores."""
        return self.parse(name).architecture

    def path(self, name: str) -> Path | None:
        """The path of the source, if names of this kind contain it."""
        return rest_path(name) if self.is_path else None

    def name_at(self, path: Path | str) -> str:
        """The name of the source that lies at `path`."""
        return f"{self.prefix}:{path}"

    def name_by_weights(self, weights: Path | str) -> str | None:
        """The name of the source whose weights are the file `weights`, if this kind is named by path."""
        return self.name_at(weights) if self.is_path else None

    def declared(self, name: str, told: Contract) -> Contract:  # noqa: ARG002
        """`told`, completed by what the source's own file declares, if it exists."""
        return told

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """What is known about a source without a download, and statements of who declares it. Raises
        SourceError.
        """
        return self.parse(name), []


def rest_path(name: str) -> Path:
    """The PATH of a name PREFIX:PATH or PREFIX:PATH@OUTPUT."""
    return Path(network_of(name).partition(":")[2]).expanduser()


def weights_digest(path: Path) -> str:
    """The sha256 of a file's bytes. Raises SourceError if it cannot be read."""
    try:
        return digest_of(path)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error
