"""Where a target's packs lie, and which listed videos have none: in `prepared-N.json` for the program, in
`left-out-N.txt` for the user, one per line.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cache import write_durably
from pipeline.data.datasets.dataset import file_slug
from pipeline.data.datasets.left_out import on_one_line
from pipeline.data.datasets.video.pack import SUFFIX, Packing
from pipeline.data.datasets.video.spec import VideoSpec
from pipeline.runtime import folder_words
from sskt.errors import TargetError, quoted

_LONGEST_NAME = 230  # bytes, of the 255 that a file system allows: temporary names are longer


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
