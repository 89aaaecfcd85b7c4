"""Where a target's packs lie; which listed videos have none, in `prepared-N.json` for the program, in
`left-out-N.txt` for the user, one per line; and in `sources.json` the sha256 of the bytes that each pack was
made from, so that a video that was touched, moved, copied or renamed is not decoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cache import TEMPORARY, write_durably
from pipeline.data.datasets.dataset import file_slug
from pipeline.data.datasets.left_out import on_one_line
from pipeline.data.datasets.video.decode import frame_files
from pipeline.data.datasets.video.pack import SUFFIX, PackInfo, Packing, Stamp, is_sound, read_pack
from pipeline.data.datasets.video.spec import VideoSpec
from pipeline.runtime import folder_words
from sskt.errors import TargetError, quoted

_LONGEST_NAME = 230  # bytes, of the 255 that a file system allows: temporary names are longer
_FILE = "sources.json"


@dataclass(frozen=True, slots=True)
class Record:
    """How the preparation of one official split ended."""

    packing: Packing
    missing: tuple[str, ...] = ()  # listed, and nowhere to be found
    damaged: dict[str, str] = field(default_factory=dict)  # name to reason

    def command_words(self, spec: VideoSpec) -> list[str]:
        """The options of `sskt prepare` that ended so for this target."""
        usual, words = Packing().settled(spec.every), []
        if self.packing.short_px != usual.short_px:
            words.append(f"--short-side {self.packing.short_px}")
        if self.packing.quality != usual.quality:
            words.append(f"--quality {self.packing.quality}")
        if self.packing.every != usual.every:
            words.append(f"--every {self.packing.every}")
        return [*words, "--allow-missing"] if self.left_out else words

    @property
    def left_out(self) -> set[str]:
        """Videos that the user goes on without."""
        return {*self.missing, *self.damaged}


def pack_path(spec: VideoSpec, data_dir: Path, index_dir: Path, name: str) -> Path:
    """The file of one video's pack; the splits of a target share their packs."""
    path = _folder(spec, data_dir, index_dir) / f"{name}{SUFFIX}"
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        return path.with_name(f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}{SUFFIX}")
    return path


def read_record(spec: VideoSpec, data_dir: Path, index_dir: Path) -> Record | None:
    """Read how the preparation of this split ended; None if it has not. Raises TargetError for a damaged
    file.
    """
    path = _file(spec, data_dir, index_dir, "prepared", "json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Record(Packing.recorded(record["packing"]), tuple(record["missing"]), dict(record["damaged"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); remove it and run "
            f"`{command_of('prepare', spec, data_dir, index_dir)}` again"
        ) from None


def write_record(spec: VideoSpec, data_dir: Path, index_dir: Path, record: Record) -> None:
    """Record how the preparation of this split ended."""
    text = json.dumps(asdict(record), indent=2) + "\n"
    write_durably(_file(spec, data_dir, index_dir, "prepared", "json"), text.encode())


def write_left_out(spec: VideoSpec, data_dir: Path, index_dir: Path, record: Record) -> Path:
    """Write the videos that cannot be used, with the reasons, as text; returns the file."""
    path = _file(spec, data_dir, index_dir, "left-out", "txt")
    reasons = dict.fromkeys(record.missing, "not there") | record.damaged
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{on_one_line(name)}\t{reasons[name]}\n" for name in sorted(reasons))
    write_durably(path, os.fsencode(text))
    return path


def command_of(verb: str, spec: VideoSpec, data_dir: Path, index_dir: Path, *words: str) -> str:
    """A command for this target with the same folders; `index_dir` lies in the --cache-dir."""
    named = (f"--target {quoted(spec.as_given)}", *words, *folder_words(data_dir, index_dir.parent))
    return f"sskt {verb} {' '.join(named)}"


def _folder(spec: VideoSpec, data_dir: Path, index_dir: Path) -> Path:
    """The folder of a target's packs. Users' folders share names too easily, so theirs has the place in its
    name.
    """
    slug = file_slug(spec.name.partition(":")[0])
    if spec.is_own_folder:
        place = hashlib.sha256(os.fsencode((data_dir / spec.root).resolve())).hexdigest()[:12]
        slug = f"{spec.slug}-{place}"
    return index_dir / slug


def _file(spec: VideoSpec, data_dir: Path, index_dir: Path, what: str, suffix: str) -> Path:
    return _folder(spec, data_dir, index_dir) / f"{what}-{spec.split}.{suffix}"


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
