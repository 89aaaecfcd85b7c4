"""A unit: the logits of one block of samples in one view, as one chunk file, and its entry, which makes it count.

Both files are what Zarr's codecs `bytes` (little endian) and `crc32c` make of a chunk, written and read here as plain
files: one copy less each way, the flush that Zarr leaves out, and every fault can be named. Tests read them with Zarr
and with tensorstore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from cache.files import write_durably

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Rows = NDArray[np.float16]

DONE = 1 << 32  # set in the entry of a finished unit, so that a checksum of 0 differs from "no entry"
_TRAILER_BYTES = 4
_ENTRY_BYTES = 8 + _TRAILER_BYTES
_F16_EXPONENT = np.uint16(0x7C00)  # bit patterns from here up, the sign aside, are inf and NaN


class UnitFault(Exception):
    """What is wrong with one unit's files, as half a sentence; the store adds the names and the remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """One view of one block of samples; `str` names it in messages."""

    view: int
    block: int

    def __str__(self) -> str:
        return f"unit (view {self.view}, block {self.block})"


def n_non_finite(rows: Rows) -> int:
    """How many rows hold an inf or a NaN; by bit pattern, as numpy's own float16 test is 15 times slower."""
    magnitudes = rows.view(np.uint16) & np.uint16(0x7FFF)
    if magnitudes.max(initial=0) < _F16_EXPONENT:
        return 0
    return int((magnitudes >= _F16_EXPONENT).any(axis=1).sum())


def payload_crc(rows: Rows, padding: bytes) -> int:
    """The CRC32C of a unit's payload: its rows and what fills the last block up."""
    return int(google_crc32c.extend(google_crc32c.value(_bytes_of(rows)), padding))


def padding_of(n_rows: int, block_rows: int, n_classes: int) -> bytes:
    """What fills a block up to its size: the array's fill value, NaN, as Zarr does it."""
    return np.full((block_rows - n_rows) * n_classes, np.nan, dtype="<f2").tobytes()


def write_payload(path: Path, rows: Rows, padding: bytes, crc: int) -> None:
    """Write the chunk file of a unit: rows, padding, checksum."""
    write_durably(path, _bytes_of(rows), padding, crc.to_bytes(_TRAILER_BYTES, "little"))


def read_payload(path: Path, out: Rows, block_rows: int) -> int:
    """Fill `out` (rows, K) from a chunk file and return the payload's CRC32C; UnitFault if the file is not sound."""
    expected = block_rows * out.shape[1] * out.itemsize + _TRAILER_BYTES
    try:
        with path.open("rb") as file:
            n_read = file.readinto(_bytes_of(out))  # type: ignore[arg-type]  # an array is a writable buffer
            rest = file.read()
    except FileNotFoundError:
        raise UnitFault("its file is missing") from None
    except OSError as error:
        raise UnitFault(f"its file cannot be read ({error.strerror})") from error
    if n_read + len(rest) != expected:
        raise UnitFault(f"its file holds {n_read + len(rest)} bytes, expected {expected}")
    crc = int(google_crc32c.extend(google_crc32c.value(_bytes_of(out)), rest[:-_TRAILER_BYTES]))
    stated = int.from_bytes(rest[-_TRAILER_BYTES:], "little")
    if crc != stated:
        raise UnitFault(f"its bytes have the checksum {crc:08x}, the file's last four bytes state {stated:08x}")
    return crc


def write_entry(path: Path, crc: int) -> None:
    """Write the entry that makes a unit count."""
    value = (DONE | crc).to_bytes(8, "little")
    write_durably(path, value, int(google_crc32c.value(value)).to_bytes(_TRAILER_BYTES, "little"))


def read_entry(path: Path) -> int | None:
    """The payload's CRC32C as the entry states it, None if there is no entry; UnitFault if the entry is damaged."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnitFault(f"its entry cannot be read ({error.strerror})") from error
    value, trailer = stored[:8], stored[8:]
    if len(stored) != _ENTRY_BYTES or int(google_crc32c.value(value)).to_bytes(_TRAILER_BYTES, "little") != trailer:
        raise UnitFault("its entry is damaged")
    number = int.from_bytes(value, "little")
    if number == 0:  # a Zarr writer may store the fill value as a chunk
        return None
    if number >> 32 != 1:
        raise UnitFault(f"its entry holds {number:#x}, expected {DONE:#x} plus a checksum")
    return number - DONE


def _bytes_of(rows: Rows) -> NDArray[np.uint8]:
    """The memory of contiguous rows as flat bytes, not copied."""
    return rows.reshape(-1).view(np.uint8)
