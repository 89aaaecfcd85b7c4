"""Read the members of a tar shard: where each image lies in it, and what its label is.

A sample is the files of one folder whose names agree up to the first dot, its key: KEY.jpg (or another image)
and KEY.cls, a class, or KEY.json, an object with `label` or `labels`. Nothing is unpacked.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO

from pipeline.data.datasets.decode import SUFFIXES
from pipeline.data.datasets.own.shard import SAMPLE_ID, Sample, Shard
from pipeline.data.datasets.remote_pack import Pack
from sskt.errors import TargetError, shown

BLOCK = 512
_COMPRESSED = (  # signatures
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
)
_LABELS = ("cls", "json")
_LONGEST_LABEL = 1 << 20  # bytes of a .cls or .json


def read_shard(path: Pack) -> Shard:
    """Read a shard's members and labels, but no image. Raises TargetError, with the byte, for a shard that is
    compressed, cut off or damaged, and for two images of one key.
    """
    shard = Shard()
    try:
        with path.open("rb") as opened:
            _require_plain(path, opened.read(BLOCK))
            members: dict[str, Sample] = {}
            said: dict[str, dict[str, tuple[int, bytes]]] = {}  # by key and suffix: first byte, and content
            for member in _members(path, opened):
                folder, base = posixpath.split(posixpath.normpath(member.name))
                stem, _, suffix = base.partition(".")
                key, suffix = posixpath.join(folder, stem), suffix.lower()
                if not member.isfile() or member.issparse() or base.startswith("."):
                    shard.ignored["hidden" if base.startswith(".") else "links"] += not member.isdir()
                elif f".{suffix}" in SUFFIXES:
                    _add_image(path, key, member, members)
                elif suffix in _LABELS and member.size <= _LONGEST_LABEL:
                    opened.seek(member.offset_data)
                    said.setdefault(key, {})[suffix] = member.offset_data, opened.read(member.size)
                else:
                    shard.ignored[f".{suffix}" if suffix else "without extension"] += 1
    except OSError as error:
        raise TargetError(
            f"{shown(str(path))}: cannot be read ({error.strerror or error}); allow reading it"
        ) from None
    for key, contents in said.items():
        if key not in members:
            shard.ignored["labels without an image"] += 1
            continue
        suffix = next(suffix for suffix in _LABELS if suffix in contents)
        begin, content = contents[suffix]
        if not _set_labels(path, members[key], suffix, begin, content):
            shard.ignored[".json without label"] += 1
    shard.samples = list(members.values())
    return shard


def _members(path: Pack, opened: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of a shard. The tarfile module ends without a word at a header that it cannot read, and at
    the end of a file that was cut off between members; both are refused here.
    """
    size = opened.seek(0, 2)  # to its end
    opened.seek(0)
    try:
        with tarfile.TarFile(fileobj=opened, mode="r") as tar:
            for member in tar:
                end = member.offset_data + member.size
                if member.isfile() and end > size:
                    raise _torn(path, f"ends within {member.name}, at byte {size:,} of {end:,}")
                yield member
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
        raise _torn(path, f"is no sound tar archive at byte {opened.tell():,} ({error})") from None
    opened.seek(end)
    first = opened.read(BLOCK)
    if len(first) < BLOCK:
        raise _torn(path, f"ends at byte {size:,} without the mark of an archive's end")
    while block := first or opened.read(1 << 20):
        if block.strip(b"\0"):
            at = opened.tell() - len(block)
            raise _torn(path, f"holds bytes at {at:,} that are neither a file nor the archive's end")
        first = b""


def _require_plain(path: Pack, begin: bytes) -> None:
    for signature, kind in _COMPRESSED:
        if begin.startswith(signature):
            raise TargetError(
                f"{shown(str(path))}: is compressed ({kind}), and images are read where they lie, in a plain "
                f"tar; decompress it (images hardly get larger)"
            )


def _add_image(path: Pack, key: str, member: tarfile.TarInfo, members: dict[str, Sample]) -> None:
    if key in members:
        raise TargetError(
            f"{shown(str(path))}: the key {shown(key)} has two images, {shown(members[key].name)} and "
            f"{shown(member.name)} (byte {member.offset_data:,}); write the shard with one per key"
        )
    members[key] = Sample(posixpath.normpath(member.name), member.offset_data, member.size)


def _set_labels(path: Pack, sample: Sample, suffix: str, begin: int, content: bytes) -> bool:
    """Set what a .cls or .json says of an image; returns whether it says anything."""
    where = f"{shown(str(path))}: the .{suffix} of {shown(sample.name)} (byte {begin:,})"
    try:
        text = content.decode("utf-8-sig")
        said = {"label": text} if suffix == "cls" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{where} cannot be read ({error}); correct it") from None
    own = said.get(SAMPLE_ID) if isinstance(said, dict) else None
    sample.id = own if isinstance(own, int) else None
    if not isinstance(said, dict) or not {"label", "labels"} & set(said):
        return sample.id is not None
    sample.several = "labels" in said
    values = said["labels"] if sample.several else [said["label"]]
    if not isinstance(values, list) or any(
        isinstance(v, bool) or not isinstance(v, str | int) for v in values
    ):
        raise TargetError(f"{where} has the labels {values!r}, expected text or whole numbers; correct it")
    sample.labels = tuple(dict.fromkeys(text for value in values if (text := str(value).strip())))
    return True


def _torn(path: Pack, what: str) -> TargetError:
    return TargetError(f"{shown(str(path))}: {shown(what)}; copy or download it again")
