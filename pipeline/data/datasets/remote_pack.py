"""Packs in an object store: each is fetched whole, when first read, into a local folder of limited size."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, cast

from filelock import FileLock
from upath import UPath

from cache import location, require_bucket
from sskt.errors import TargetError

LIMIT = "SSKT_PACKS_GB"  # environment variable: the most that `folder` may hold
_SHARE = 0.9  # of the free disk, where that is not set
_PREFIX = "pack-"


@dataclass(frozen=True, slots=True)
class RemotePack:
    """A file in an object store as it was listed, which counts as another one when length or time change."""

    place: UPath
    nbytes: int
    mtime_ns: int
    folder: Path | None  # of the local copies, for all processes of this machine; None: there are none

    @property
    def name(self) -> str:
        """The file's name."""
        return str(self.place.name)

    @property
    def parent(self) -> UPath:
        """The folder that it lies in."""
        return self.place.parent

    def __str__(self) -> str:
        return str(self.place)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open the local copy, which is fetched if it is not there. Raises OSError if that fails, and
        TargetError for a pack that the folder has no room for.
        """
        if self.folder is None:
            return self.place.open(mode)
        key = sha256(f"{self.place} {self.nbytes} {self.mtime_ns}".encode()).hexdigest()[:24]
        copy = self.folder / f"{_PREFIX}{key}"
        if (opened := _opened(copy, mode)) is not None:
            return opened
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{key[:2]}.lock"):  # else every process and thread would fetch it
            while (opened := _opened(copy, mode)) is None:
                self._make_room(self.folder)
                self._fetch(copy)
            return opened

    def _fetch(self, copy: Path) -> None:
        part = copy.with_name(f"part-{copy.name}")  # ours by the lock; one that a kill left is replaced
        try:
            self.place.fs.get_file(self.place.path, str(part))
            n = part.stat().st_size
            if n != self.nbytes:
                raise OSError(f"{self.place} has {n:,} bytes, and {self.nbytes:,} when it was listed")
            part.replace(copy)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, folder: Path) -> None:
        """Remove the copies that were fetched first; whoever has one open keeps it. What others fetch at this
        moment comes on top. Stage one reads packs one after another, and training needs room for all.
        """
        limit = limit_of(folder)
        if self.nbytes > limit:
            raise TargetError(
                f"{self.place} has {self.nbytes / 1e9:.2f} GB, and {folder} may hold {limit / 1e9:.2f} GB "
                f"of packs; raise {LIMIT}, or give a --data-dir with more room"
            )
        copies = sorted((changed, nbytes, copy) for copy, nbytes, changed in _copies(folder))
        held = sum(nbytes for _, nbytes, _ in copies)
        for _, nbytes, copy in copies:
            if held + self.nbytes <= limit:
                break
            copy.unlink(missing_ok=True)
            held -= nbytes


Pack = Path | RemotePack


def _opened(copy: Path, mode: str) -> IO[bytes] | None:
    """A local copy, opened; None if it is not there, or was removed by another process."""
    try:
        return cast(IO[bytes], copy.open(mode))
    except FileNotFoundError:
        return None


def _copies(folder: Path) -> list[tuple[Path, int, int]]:
    """The local copies, their bytes, and when each was fetched, in ns."""
    found = []
    for copy in folder.glob(f"{_PREFIX}*"):
        try:
            found.append((copy, *stamp_of(copy)))
        except FileNotFoundError:  # another process removed it
            continue
    return found


def url_path(url: str) -> Path:
    """The place that a URL names: a `UPath`, which has the methods of a path. Raises CacheError if this kind
    of URL cannot be opened.
    """
    return cast(Path, location(url))


def is_url(place: object) -> bool:
    """Whether a place is in an object store."""
    return isinstance(place, UPath) and not isinstance(place, Path)


def path_in_store(place: Any) -> str:
    """A place without what precedes the path in its URL; of a local path, itself."""
    return str(place.path) if is_url(place) else str(place)


def beside(root: Any, path: str) -> Any:
    """Another place in the same object store, a `UPath` as `root` is."""
    return UPath(path, protocol=root.protocol, **root.storage_options)


def list_remote(root: Any, names: list[str], folder: Path | None, *, wild: bool) -> dict[str, RemotePack]:
    """The files of an object store that `names` name, by name and sorted: patterns where `wild`, a folder if
    it is one name, else files of one folder. One request, of patterns one for each.

    Raises CacheError for a missing bucket, and TargetError if they cannot be listed.
    """
    require_bucket(root)
    try:
        if wild:
            found = {path: info for name in names for path, info in root.fs.glob(name, detail=True).items()}
        else:
            above = names[0] if len(names) == 1 else os.path.commonpath([n.rpartition("/")[0] for n in names])
            found = root.fs.find(above, detail=True)
    except OSError as error:
        raise TargetError(f"{root}: cannot be listed ({error}); check the URL") from error
    chosen = set(found) if wild or len(names) == 1 else set(names)
    return {
        path: RemotePack(beside(root, path), info["size"], _mtime_ns(info), folder)
        for path, info in sorted(found.items())
        if info["type"] == "file" and path in chosen
    }


def _mtime_ns(info: dict[str, Any]) -> int:
    """When a file of an object store changed; 0 where it does not say."""
    changed = next(
        (info[name] for name in ("LastModified", "mtime", "updated", "created") if name in info), 0
    )
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else changed
    return int(seconds * 10**9) if isinstance(seconds, int | float) else 0


def stamp_of(pack: Pack) -> tuple[int, int]:
    """Bytes of a pack, and when it was changed, in ns."""
    if isinstance(pack, RemotePack):
        return pack.nbytes, pack.mtime_ns
    stat = pack.stat()
    return stat.st_size, stat.st_mtime_ns


def limit_of(folder: Path) -> int:
    """Bytes of packs that a folder may hold. Raises TargetError for a limit that is no number."""
    said = os.environ.get(LIMIT)
    if said is not None:
        try:
            return int(float(said) * 1e9)
        except ValueError:
            raise TargetError(f"{LIMIT} is {said!r}, expected gigabytes, such as 200") from None
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    held = sum(nbytes for _, nbytes, _ in _copies(folder))
    return int(_SHARE * (shutil.disk_usage(there).free + held))


def note_on_room(packs: list[Pack]) -> list[str]:
    """A note on packs that do not fit into their folder together."""
    remote = [pack for pack in packs if isinstance(pack, RemotePack)]
    nbytes = sum(pack.nbytes for pack in remote)
    folder = remote[0].folder if remote else None
    if folder is None or nbytes <= (limit := limit_of(folder)):
        return []
    note = (
        f"{remote[0].parent}: of {nbytes / 1e9:.1f} GB of packs {folder} may hold {limit / 1e9:.1f} GB; "
        f"training, which reads in random order, would fetch them again and again: raise {LIMIT}, or give a "
        f"--data-dir with more room (precompute reads each once per task)"
    )
    return [note]
