"""A unit: the rows of one block of samples in one view, as one chunk file, and the entry that marks it
finished.

Both files are chunks as encoded by Zarr's codecs `bytes` (little endian) and `crc32c`, but written and read
as plain files: one copy less each way, the flush that Zarr omits, and a precise message for every fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import google_crc32c
import numpy as np

from cache.errors import CacheError
from cache.storage import (
    Location,
    create_durably,
    delete_file,
    local_path,
    names_in,
    open_file,
    read_file,
    sizes_in,
    write_durably,
)
from cache.storage.local import sync_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cache.row_format import RowFormat, Rows

DONE = 1 << 32  # set in a finished unit's entry, so that a checksum of 0 differs from "no entry"
_CRC_BYTES = 4
_HASHED_BYTES = 1 << 20  # read and hashed at a time
_CHUNK = re.compile(r"c\.(\d+)\.(\d+)(?:\.0)?")  # the name of a unit's file, or of its entry


class UnitFault(Exception):  # noqa: N818 - half a sentence, completed by the store
    """A fault of one unit's files; `UnitFiles.damage` adds names and remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """One view of one block of samples; `str` names it in messages."""

    view: int
    block: int

    def __str__(self) -> str:
        return f"unit (view {self.view}, block {self.block})"


@dataclass(frozen=True, slots=True)
class UnitFiles:
    """The two files of every unit of the store at `path`, with B rows per full block."""

    path: Location
    block_rows: int
    form: RowFormat

    def payload(self, unit: Unit) -> Location:
        """The chunk of rows that is this unit: B rows and a CRC32C."""
        return self.path / self.form.array / f"c.{unit.view}.{unit.block}.0"

    def entry(self, unit: Unit) -> Location:
        """The chunk of `units` that is this unit's entry: one uint64 and a CRC32C."""
        return self.path / "units" / f"c.{unit.view}.{unit.block}"

    def crc_of(self, rows: Rows) -> int:
        """The CRC32C of the payload made from contiguous `rows`."""
        return int(google_crc32c.extend(google_crc32c.value(_flat(rows)), self._padding(len(rows))))

    def write(self, unit: Unit, rows: Rows) -> tuple[int, bool]:
        """Finish a unit with contiguous `rows`, or with those that are there: both files are created, payload
        first, each flushed to disk before the next step, and a sound payload of another writer gets its
        entry. Whatever is damaged is replaced. Returns the payload's CRC32C, and whether it holds these rows.
        """
        crc = self.crc_of(rows)
        payload = (_flat(rows).data, self._padding(len(rows)), _crc_bytes(crc))
        created = create_durably(self.payload(unit), *payload)
        there = crc if created else self._sound_crc(unit, np.empty_like(rows))
        if there is not None and self._has_entry(unit, there):
            return there, created
        delete_file(self.entry(unit))  # no reader may see an entry beside rows of another
        if not created:
            write_durably(self.payload(unit), *payload)
        write_durably(self.entry(unit), *_entry_of(crc))
        return crc, True

    def _has_entry(self, unit: Unit, crc: int) -> bool:
        """Create the entry of a payload with this CRC32C; False if there is another, or a damaged one."""
        try:
            return create_durably(self.entry(unit), *_entry_of(crc)) or self.read_entry(unit) == crc
        except UnitFault:
            return False

    def _sound_crc(self, unit: Unit, buffer: Rows) -> int | None:
        """The CRC32C of a payload that is there; None if it is damaged. `buffer` receives its rows."""
        try:
            crc = self._read_rows(unit, buffer)
        except (FileNotFoundError, UnitFault):
            return None
        return None if self.form.n_unsound(buffer) else crc

    def read_entry(self, unit: Unit) -> int | None:
        """The payload's CRC32C according to the entry, None without an entry; UnitFault if it is damaged."""
        try:
            stored = read_file(self.entry(unit))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnitFault(f"its entry cannot be read ({error.strerror or error})") from error
        value = int.from_bytes(stored[:8], "little")
        if len(stored) != 8 + _CRC_BYTES or _crc_bytes(google_crc32c.value(stored[:8])) != stored[8:]:
            raise UnitFault("its entry is damaged, the bytes and their checksum disagree")
        if value >> 32 != 1:
            raise UnitFault(f"its entry holds {value:#x}, expected {DONE:#x} plus a checksum")
        return value - DONE

    def entries(self) -> set[str]:
        """The names of the files in `units`, from one listing."""
        return set(names_in(self.path / "units"))

    def beyond(self, views: int) -> dict[Unit, int]:
        """The bytes of every unit, finished or not, that has a file and is not in the first `views` views;
        the last unit first.
        """
        found: dict[Unit, int] = {}
        for folder in (self.path / "units", self.path / self.form.array):
            for name, nbytes in sizes_in(folder).items():
                if (chunk := _CHUNK.fullmatch(name)) and int(chunk[1]) >= views:
                    unit = Unit(int(chunk[1]), int(chunk[2]))
                    found[unit] = found.get(unit, 0) + nbytes
        return dict(sorted(found.items(), reverse=True))

    def discard(self, unit: Unit) -> None:
        """Remove the payload, then the entry: a payload alone would be taken for another writer's rows."""
        delete_file(self.payload(unit))
        if folder := local_path(self.path):
            sync_folder(folder / self.form.array)
        self.delete(unit)

    def delete(self, unit: Unit) -> None:
        """Remove the entry, then the payload; a reader in between finds no unit."""
        delete_file(self.entry(unit))
        if folder := local_path(self.path):
            sync_folder(folder / "units")
        delete_file(self.payload(unit))

    def read_payload(self, unit: Unit, entry: int, out: Rows) -> None:
        """Fill `out`, contiguous (rows, K), from the chunk file; UnitFault unless `entry` is its checksum."""
        try:
            crc = self._read_rows(unit, out)
        except FileNotFoundError:
            raise UnitFault("the file is missing") from None
        except OSError as error:
            raise UnitFault(f"the file cannot be read ({error.strerror or error})") from error
        if crc != entry:
            raise UnitFault(f"its bytes have the checksum {crc:08x}, its entry states {entry:08x}")

    def _read_rows(self, unit: Unit, out: Rows) -> int:
        """Fill `out` from the chunk file; returns its CRC32C. UnitFault unless the file is whole, OSError if
        it cannot be read.
        """
        expected = self.block_rows * self.form.width * 2 + _CRC_BYTES
        with open_file(self.payload(unit)) as file:
            n_read, crc = _read_and_hash(file, _flat(out))
            rest = file.read()
        if n_read + len(rest) != expected:
            raise UnitFault(f"the file holds {n_read + len(rest)} bytes, expected {expected}")
        # one hash serves both checks: the file's own, which any Zarr reader makes, and the entry's
        crc = int(google_crc32c.extend(crc, rest[:-_CRC_BYTES]))
        if _crc_bytes(crc) != rest[-_CRC_BYTES:]:
            raise UnitFault(f"its bytes have the checksum {crc:08x}, the file's last four state another")
        return crc

    def mapped(self, unit: Unit) -> Rows:
        """The chunk file's B rows as a read-only memory map, unchecked."""
        shape = (self.block_rows, self.form.width)
        return cast("Rows", np.memmap(str(self.payload(unit)), self.form.dtype, "r", shape=shape))

    def fault(self, unit: Unit, buffer: Rows, entries: dict[Unit, int]) -> UnitFault | None:
        """The fault of a unit, or None if it is sound or unfinished; `buffer` receives its rows, `entries`
        the CRC32C that its entry states.
        """
        try:
            entry = self.read_entry(unit)
            if entry is not None:
                entries[unit] = entry
                self.read_payload(unit, entry, buffer)
                if n_bad := self.form.n_unsound(buffer):
                    raise UnitFault(f"{n_bad} of its {len(buffer)} rows hold NaN or inf")
        except UnitFault as fault:
            return fault
        return None

    def damage(self, unit: Unit, fault: UnitFault) -> str:
        """The whole sentence for a fault."""
        return (
            f"{self.payload(unit)}: {unit} is damaged: {fault}; to have just this unit computed again, run "
            f"`sskt cache verify {self.path} --repair`, or delete {self.entry(unit)} and that file and "
            f"precompute again"
        )

    def _padding(self, n_rows: int) -> bytes:
        """The bytes that pad a short block: the array's fill value, as in Zarr."""
        missing = (self.block_rows - n_rows) * self.form.width
        return np.full(missing, self.form.fill, dtype=self.form.dtype.newbyteorder("<")).tobytes()


def require_sound_rows(rows: Rows, n_rows: int, form: RowFormat, where: str) -> None:
    """Raise CacheError, starting with `where`, unless these are `n_rows` finite rows in `form`."""
    if rows.shape != (n_rows, form.width) or rows.dtype != form.dtype:
        raise CacheError(
            f"{where} was given {rows.shape} {rows.dtype}, expected {(n_rows, form.width)} {form.dtype}; "
            f"convert them first"
        )
    if n_bad := form.n_unsound(rows):
        raise CacheError(
            f"{where} was given {n_bad} of {len(rows)} rows with NaN or inf, expected finite numbers; "
            f"compute the source in a wider precision"
        )


def _read_and_hash(file: Any, out: NDArray[np.uint8]) -> tuple[int, int]:
    """Fill `out` from an open file; returns bytes read and their CRC32C, hashed while in the CPU's cache."""
    n_read, crc = 0, 0
    while n_read < len(out):
        piece = out[n_read : n_read + _HASHED_BYTES]
        n = file.readinto(piece.data)
        if not n:
            break
        crc = google_crc32c.extend(crc, piece[:n])
        n_read += n
    return n_read, crc


def _flat(rows: Rows) -> NDArray[np.uint8]:
    """A byte view of contiguous rows, without a copy."""
    return rows.reshape(-1).view(np.uint8)


def _entry_of(crc: int) -> tuple[bytes, bytes]:
    """The two parts of an entry's file."""
    entry = (DONE | crc).to_bytes(8, "little")
    return entry, _crc_bytes(google_crc32c.value(entry))


def _crc_bytes(crc: int) -> bytes:
    return int(crc).to_bytes(_CRC_BYTES, "little")
