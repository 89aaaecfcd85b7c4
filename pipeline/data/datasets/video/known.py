"""The sha256 of the bytes that each pack was made from, kept in `sources.json` beside the packs.

So a video that was touched, moved, copied or renamed is not decoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cache import TEMPORARY, write_durably
from pipeline.data.datasets.video.decode import frame_files
from pipeline.data.datasets.video.pack import PackInfo, Packing, Stamp, is_sound, read_pack
from pipeline.data.datasets.video.pack_record import pack_path
from pipeline.data.datasets.video.spec import VideoSpec

_FILE = "sources.json"


@dataclass(frozen=True, slots=True)
class _Source:
    """A video as it was last seen, and its pack."""

    sha256: str
    nbytes: int
    mtime_ns: int
    content: str  # hex, of the pack that was made from these bytes
    pack: str  # its file, relative to where packs lie


class KnownVideos:
    """The videos of one target by name, and those of others of its family by their bytes."""

    def __init__(self, spec: VideoSpec, data_dir: Path, index_dir: Path) -> None:
        self._folder = pack_path(spec, data_dir, index_dir, "-").parent
        self._sources = _read(self._folder)
        self._changed = False
        folders = [self._folder]
        if spec.is_own_folder:
            folders += sorted(index_dir.glob(f"{spec.family}-*/"))
        self._waiting: list[tuple[Path, Path]] = []
        self.lengths: set[int] = set()  # in bytes, of all that are known
        self._packs: dict[str, list[tuple[Path, str]]] = {}  # by sha256: packs and their contents
        for folder in dict.fromkeys(folders):
            for source in _read(folder).values():
                self.lengths.add(source.nbytes)
                self._packs.setdefault(source.sha256, []).append((folder / source.pack, source.content))

    def is_of(self, packed: PackInfo, name: str, video: Path, stamp: Stamp) -> bool:
        """Whether a pack was made from a video's bytes, which are read if its length and time do not tell.
        Raises OSError if they cannot be read.
        """
        known = self._sources.get(name)
        if known is None or known.content != packed.content.hex():
            return packed.stamp == stamp
        if packed.stamp == stamp or (known.nbytes, known.mtime_ns) == (stamp.nbytes, stamp.mtime_ns):
            return True
        if known.sha256 != bytes_sha256(video):
            return False
        self._keep(name, known.sha256, stamp, known.content, known.pack)
        return True

    def take(self, sha256: str, name: str, path: Path, packing: Packing, stamp: Stamp) -> bool:
        """Link or copy a sound pack of the same bytes, which `settle` moves to `path`; returns whether there
        is one. Raises OSError if it cannot be written.
        """
        for other, content in self._packs.get(sha256, []):
            packed = read_pack(other)
            if packed is None or packed.packing != packing or packed.content.hex() != content:
                continue
            if not is_sound(other, packed):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            waiting = path.with_name(f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}{TEMPORARY}moved")
            waiting.unlink(missing_ok=True)
            try:
                waiting.hardlink_to(other)  # packs are replaced, never written into
            except OSError:  # another disk, or a file system without links
                write_durably(waiting, other.read_bytes())
            self._waiting.append((waiting, path))
            self.add(sha256, name, path, packed, stamp)
            return True
        return False

    def settle(self) -> None:
        """Move what was taken to its path, once nothing more is taken from the packs there. Raises OSError if
        that fails.
        """
        for waiting, path in self._waiting:
            waiting.replace(path)
        self._waiting.clear()

    def give_up(self) -> None:
        """Delete the links and copies that were taken."""
        for waiting, _ in self._waiting:
            waiting.unlink(missing_ok=True)
        self._waiting.clear()

    def has_pack(self, sha256: str) -> bool:
        """Whether a video of these bytes was packed, under whatever name."""
        return sha256 in self._packs

    def add(self, sha256: str, name: str, path: Path, packed: PackInfo, stamp: Stamp) -> None:
        """Record what a pack was made from."""
        self._keep(name, sha256, stamp, packed.content.hex(), path.relative_to(self._folder).as_posix())

    def knows(self, name: str, packed: PackInfo) -> bool:
        """Whether it is recorded what a pack was made from."""
        known = self._sources.get(name)
        return known is not None and known.content == packed.content.hex()

    def lies(self, name: str, sha256: str) -> bool:
        """Whether a video still has these bytes; if so, it is its pack that is missing or damaged."""
        known = self._sources.get(name)
        return known is not None and known.sha256 == sha256

    def save(self) -> None:
        """Write what is new. If that fails, only time is lost."""
        if self._changed:
            records = {name: asdict(source) for name, source in self._sources.items()}
            with suppress(OSError):
                write_durably(self._folder / _FILE, json.dumps(records).encode())

    def _keep(self, name: str, sha256: str, stamp: Stamp, content: str, pack: str) -> None:
        self._sources[name] = _Source(sha256, stamp.nbytes, stamp.mtime_ns, content, pack)
        self._changed = True


def bytes_sha256(video: Path) -> str:
    """The sha256 of a file's bytes; of a folder of frames, of theirs in order, whatever their names. Raises
    OSError or UnreadableError.
    """
    if not video.is_dir():
        with video.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256(b"frames")
    for path in frame_files(video):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read(folder: Path) -> dict[str, _Source]:
    """Read the records; none if they cannot be trusted."""
    try:
        records = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return {name: _Source(**source) for name, source in records.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
