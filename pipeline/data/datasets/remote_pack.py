"""Packs in an object store: each is fetched whole, when first read, into a local folder of limited size."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from filelock import FileLock
from upath import UPath

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
        with contextlib.suppress(FileNotFoundError):
            return copy.open(mode)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{key[:2]}.lock"):  # else every process and thread would fetch it
            while True:
                with contextlib.suppress(FileNotFoundError):
                    return copy.open(mode)
                self._make_room(self.folder)
                self._fetch(copy)

    def _fetch(self, copy: Path) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=copy.parent, prefix=_PREFIX)
        os.close(descriptor)
        try:
            self.place.fs.get_file(self.place.path, temporary)
            n = Path(temporary).stat().st_size
            if n != self.nbytes:
                raise OSError(f"{self.place} has {n:,} bytes, and {self.nbytes:,} when it was listed")
            Path(temporary).replace(copy)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _make_room(self, folder: Path) -> None:
        """Remove the copies that were fetched first; whoever has one open keeps it. Stage one reads packs one
        after another, and training needs room for all.
        """
        limit = limit_of(folder)
        if self.nbytes > limit:
            raise TargetError(
                f"{self.place} has {self.nbytes / 1e9:.2f} GB, and {folder} may hold {limit / 1e9:.2f} GB "
                f"of packs; raise {LIMIT}, or give a --data-dir with more room"
            )
        copies = []
        for copy in folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                copies.append((copy.stat(), copy))
        held = sum(stat.st_size for stat, _ in copies)
        for stat, copy in sorted(copies, key=lambda each: each[0].st_mtime_ns):
            if held + self.nbytes <= limit:
                break
            copy.unlink(missing_ok=True)
            held -= stat.st_size


Pack = Path | RemotePack


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
    held = sum(copy.stat().st_size for copy in folder.glob(f"{_PREFIX}*"))
    return int(_SHARE * (shutil.disk_usage(there).free + held))


def note_on_room(packs: Sequence[Pack]) -> list[str]:
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
