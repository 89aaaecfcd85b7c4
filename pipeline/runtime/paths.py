"""Paths of data, stores and weights, and the command-line options that name them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from cache import Location, local_path, location, read_file, require_bucket
from pipeline.runtime import coerce
from pipeline.runtime.results import write_result
from sskt.errors import RunError, SourceError, quoted
from sskt.sources import Contract, asked_of, at_output, kind_of, network_of, output_of, parse_source

_DATA_DIR, _CACHE_DIR = "data", "stores"  # the commands' defaults


def folder_words(data_dir: Location, cache_dir: Location) -> list[str]:
    """--data-dir and --cache-dir, unless they are the defaults."""
    paths = (("--data-dir", data_dir, _DATA_DIR), ("--cache-dir", cache_dir, _CACHE_DIR))
    return [f"{option} {quoted(str(path))}" for option, path, default in paths if str(path) != default]


@dataclass(frozen=True, slots=True)
class Paths:
    """Folders of datasets, weights, stores and indexes, local files that replace official weights, and
    contracts for sources whose files do not declare them.
    """

    data_dir: Path = Path("data")
    cache_dir: Location = Path("stores")  # or an object store's URL
    weights: Mapping[str, Path] = field(default_factory=dict)  # source name -> local file
    contracts: Mapping[str, Contract] = field(default_factory=dict)  # source name -> as the user declares it
    moved: Mapping[str, Path] = field(default_factory=dict)  # source named by its path -> its present path

    def __post_init__(self) -> None:
        """Paths may be given as text. Raises RunError for anything else."""
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
        """The folder that official weights are downloaded to."""
        return self.data_dir / "weights"

    def weights_sha256(self, source: str) -> str | None:
        """The sha256 of the weights that `source` would load; None if they are not on this machine.

        Raises SourceError for an unknown source, or local weights that cannot be read.
        """
        parse_source(source)
        path = self.weights_of(source)
        kind = kind_of(source)
        if path is None:
            path = kind.weights_path(self.lying(source), self.weights_dir)
            if not path.is_file():
                return None
        try:
            return kind.digest(path)
        except OSError as error:
            raise SourceError(
                f"{path}: cannot be read ({error.strerror}); check --weights {source}=PATH"
            ) from error

    def weights_of(self, source: str) -> Path | None:
        """The local file that the user gives for a source's network, whatever output is asked of it."""
        return self.weights.get(source, self.weights.get(network_of(source)))

    def lying(self, source: str) -> str:
        """The name that opens `source` on this machine: for a program or run, with its present path."""
        path = self.moved.get(source)
        return source if path is None else at_output(kind_of(source).name_at(path), output_of(source))

    def local(self, place: Location) -> Path:
        """The file at `place`; of one at a URL, which may have changed, a copy that is fetched each time.
        Raises RunError if there is no such file, or the copy cannot be written.
        """
        if path := local_path(place):
            return path
        try:
            content = read_file(place)
        except FileNotFoundError:
            require_bucket(place)
            raise RunError(
                f"{place}: there is no such file; correct the URL, or let the run that writes it finish"
            ) from None
        key = sha256(str(place.parent).encode()).hexdigest()[:12]
        copy = self.weights_dir / key / place.parent.name / place.name
        write_result(copy, content, "choose another --data-dir")
        return copy

    def fetched(self, sources: Iterable[str]) -> Paths:
        """With the local copies of those sources that lie at a URL. Raises RunError as `local` does."""
        moved = dict(self.moved)
        for name in {each for source in sources for each in asked_of(source)}:
            url = network_of(name).partition(":")[2]
            if "://" in url:
                for file in kind_of(name).files:
                    moved[name] = self.local(location(url) / file).parent
        return replace(self, moved=moved)

    def contract_of(self, source: str) -> Contract | None:
        """The contract that the user gives for a source; programs and runs may be named without their
        folder.
        """
        own = _network(source)
        matching = [contract for name, contract in self.contracts.items() if _network(name) == own]
        return self.contracts.get(source, matching[0] if matching else None)

    def of(self, sources: Collection[str]) -> Paths:
        """Keep only these sources' weights and contracts, of a probe those of the sources that it is fitted
        on: a run would reject others as typos.
        """
        sources = {each for name in sources for each in (name, *asked_of(name))}
        return replace(
            self,
            weights={name: path for name, path in self.weights.items() if name in _with_networks(sources)},
            contracts={name: own for name in sources if (own := self.contract_of(name)) is not None},
            moved={name: path for name, path in self.moved.items() if name in sources},
        )

    @property
    def index_dir(self) -> Path:
        """The folder of target indexes: beside the stores, since data may be on a read-only disk."""
        return (local_path(self.cache_dir) or self.data_dir) / "indexes"

    @property
    def kernels_file(self) -> Path:
        """The file of kernel test results."""
        return self.index_dir.parent / "kernels.json"


def require_named(paths: Paths, sources: Sequence[str]) -> None:
    """Raise RunError for local weights or a contract of a source that this run does not have: a typo."""
    unused = [("--weights", name) for name in sorted(set(paths.weights) - _with_networks(sources))]
    known = {_network(name) for name in sources}
    unused += [("--contract", name) for name in paths.contracts if _network(name) not in known]
    for option, name in unused[:1]:
        raise RunError(
            f"{option} names {name}, this run's sources are {', '.join(sources)}; "
            f"give it under the name of one of them, or leave it out"
        )


def _with_networks(sources: Collection[str]) -> set[str]:
    """Sources, and the networks whose outputs they are."""
    return {*sources, *map(network_of, sources)}


def _network(source: str) -> str:
    """The network's name as it is recorded, without a folder."""
    return network_of(parse_source(source).name)
