"""Where things lie: data, stores, weights; and the words that say so in a command."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache import Location, local_path
from pipeline.runtime import coerce
from sskt.download import known_digest_of
from sskt.errors import RunError, SourceError
from sskt.names import quoted
from sskt.sources import Contract, kind_of, parse_source

_DATA_DIR, _CACHE_DIR = "data", "stores"  # where a command looks that is told nothing


def folder_words(data_dir: Location, cache_dir: Location) -> list[str]:
    """--data-dir and --cache-dir, where they are not the defaults."""
    paths = (("--data-dir", data_dir, _DATA_DIR), ("--cache-dir", cache_dir, _CACHE_DIR))
    return [f"{option} {quoted(str(place))}" for option, place, usual in paths if str(place) != usual]


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things lie: data sets and weights, stores and indexes, files that stand in for official weights,
    and what is said of sources that their files do not say.
    """

    data_dir: Path = Path("data")
    cache_dir: Location = Path("stores")  # or an object store's URL
    weights: Mapping[str, Path] = field(default_factory=dict)  # source name -> local file
    contracts: Mapping[str, Contract] = field(default_factory=dict)  # source name -> what the user says of it
    moved: Mapping[str, Path] = field(default_factory=dict)  # source named by its path -> where it lies now

    def __post_init__(self) -> None:
        """Paths may be given as text. Raises RunError for what is none."""
        object.__setattr__(self, "data_dir", coerce.path(self.data_dir, "data_dir"))
        object.__setattr__(self, "cache_dir", coerce.place(self.cache_dir, "cache_dir"))
        if not isinstance(self.weights, Mapping):
            raise RunError(
                f"weights are {self.weights!r}, expected paths by source, such as {{'imagenet': PATH}}"
            )
        files = {name: coerce.path(path, f"weights[{name!r}]") for name, path in self.weights.items()}
        object.__setattr__(self, "weights", files)

    @property
    def weights_dir(self) -> Path:
        """Where official weights are downloaded to."""
        return self.data_dir / "weights"

    def weights_sha256(self, source: str) -> str | None:
        """The sha256 of the weights that `source` would have here; None if they are not on this machine.

        Raises SourceError for an unknown source, or for local weights that cannot be read.
        """
        parse_source(source)
        path = self.weights.get(source)
        if path is None:
            path = kind_of(source).weights_path(self.lying(source), self.weights_dir)
            if not path.is_file():
                return None
        try:
            return known_digest_of(path)
        except OSError as error:
            raise SourceError(
                f"{path}: cannot be read ({error.strerror}); check --weights {source}=PATH"
            ) from error

    def lying(self, source: str) -> str:
        """A source by the name that opens it here: a program or a run by where it lies now."""
        path = self.moved.get(source)
        return source if path is None else kind_of(source).name_at(path)

    def told(self, source: str) -> Contract | None:
        """What the user says of a source; programs and runs may be named without their folder."""
        own = parse_source(source).name
        matching = [told for name, told in self.contracts.items() if parse_source(name).name == own]
        return self.contracts.get(source, matching[0] if matching else None)

    def of(self, sources: Collection[str]) -> Paths:
        """Without the weights and contracts of other sources, which a run would reject as typos."""
        return replace(
            self,
            weights={name: path for name, path in self.weights.items() if name in sources},
            contracts={name: told for name in sources if (told := self.told(name)) is not None},
            moved={name: path for name, path in self.moved.items() if name in sources},
        )

    @property
    def index_dir(self) -> Path:
        """Where target indexes are kept: beside the stores, since data may lie on a read-only disk."""
        return (local_path(self.cache_dir) or self.data_dir) / "indexes"

    @property
    def kernels_file(self) -> Path:
        """Where it is kept which kernels were tested."""
        return self.index_dir.parent / "kernels.json"


def require_named(paths: Paths, sources: Sequence[str]) -> None:
    """Raise RunError for local weights or a contract that no source of this run would read: a slip of the
    pen.
    """
    strange = [("--weights", name) for name in sorted(set(paths.weights) - set(sources))]
    known = {parse_source(name).name for name in sources}
    strange += [("--contract", name) for name in paths.contracts if parse_source(name).name not in known]
    for option, name in strange[:1]:
        raise RunError(
            f"{option} names {name}, this run's sources are {', '.join(sources)}; "
            f"give it under the name of one of them, or leave it out"
        )
