"""Read tables of images and labels: Arrow files as `datasets` saves them, in which every image lies as its
file was, and Parquet, of which an Arrow copy is made, since its rows cannot be read singly. Needs pyarrow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.datasets.own.table_columns import Columns, columns_of
from pipeline.runtime import Progress
from sskt.errors import TargetError, shown

_ROWS = 100  # of a batch that is copied


@dataclass(slots=True, eq=False)
class Table:
    """What a table holds: where each image lies in `file`, its first byte and length, int64 (N,), and its
    labels, as `Columns.labels_of` reads them.
    """

    columns: Columns
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: list[tuple[str, ...]] = field(default_factory=list)


def read_columns(file: Path) -> Columns:
    """The columns of an Arrow or Parquet file. Raises TargetError for one that is damaged or holds others."""
    try:
        if file.suffix == ".parquet":
            return _columns(file, pq.read_schema(file))
        with pa.memory_map(str(file)) as opened, pa.ipc.open_stream(opened) as reader:
            return _columns(file, reader.schema)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def read_table(file: Path, named: Path) -> Table:
    """Read where the images of an Arrow file lie, and the labels; `named` is the file in messages.

    Raises TargetError for a file that is damaged, or whose images are compressed, missing or elsewhere.
    """
    begins, lengths, labels, n = list[Any](), list[Any](), list[tuple[str, ...]](), 0
    try:
        with pa.memory_map(str(file)) as opened:
            whole = opened.read_buffer(file.stat().st_size)
            opened.seek(0)
            with pa.ipc.open_stream(opened) as reader:
                columns = _columns(named, reader.schema)
                for batch in reader:
                    begin, length = _stretches(batch.column(columns.image), whole, named, n)
                    begins.append(begin)
                    lengths.append(length)
                    values = batch.column(columns.label).to_pylist()
                    labels += [columns.labels_of(value, named, n + row) for row, value in enumerate(values)]
                    n += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(named, error) from None
    return Table(columns, joined(begins), joined(lengths), labels)


def read_all(files: Sequence[Path], packs: Sequence[Path]) -> tuple[Columns, list[Table]]:
    """Read the Arrow files `packs`, which messages call `files`, and the columns that all of them have.

    Raises TargetError for a file with other columns than the first, and what `read_table` raises.
    """
    tables = [read_table(pack, file) for pack, file in zip(packs, files, strict=True)]
    first = tables[0].columns
    for file, columns in zip(files, (table.columns for table in tables), strict=True):
        if columns != first:
            raise _wrong(
                file,
                f"its columns are {columns.image} and {columns.label} with {len(columns.classes or ())} "
                f"declared classes, and those of {files[0].name} {first.image} and {first.label} with "
                f"{len(first.classes or ())}, or of other names; write all files alike",
            )
    return first, tables


def joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Numbers of several files as one array."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def copy_parquet(files: Sequence[Path], folder: Path) -> list[Path]:
    """Arrow copies in `folder` of the images and labels of Parquet files, made where they are not there yet;
    those of other files are removed. Raises TargetError for a file that is damaged, or lack of room.
    """
    stats = [file.stat() for file in files]
    copies = [
        folder / f"{number:05}-{stat.st_size:x}-{stat.st_mtime_ns:x}.arrow"
        for number, stat in enumerate(stats)
    ]
    new = [(file, copy) for file, copy in zip(files, copies, strict=True) if not copy.is_file()]
    with Progress("copying out of Parquet", total=len(new)) as progress:
        for file, copy in new:
            _copy(file, copy)
            progress.advance(1)
            for old in folder.glob(f"{copy.name[:6]}*.arrow"):
                if old != copy:
                    old.unlink(missing_ok=True)
    return copies


def _copy(file: Path, copy: Path) -> None:
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=copy.parent, prefix=".copy-") as folder,
            pq.ParquetFile(file) as table,
        ):
            columns = _columns(file, table.schema_arrow)
            names = [columns.image, columns.label]
            schema = pa.schema(
                [table.schema_arrow.field(name) for name in names], table.schema_arrow.metadata
            )
            unfinished = Path(folder) / copy.name
            with pa.ipc.new_stream(str(unfinished), schema) as writer:
                for batch in table.iter_batches(batch_size=_ROWS, columns=names):
                    writer.write_batch(batch.select(names))
            unfinished.replace(copy)
    except pa.ArrowException as error:
        raise _damaged(file, error) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise TargetError(
            f"{shown(str(file))}: cannot be copied to {shown(str(copy.parent))} ({reason}); make room, or "
            f"choose another --cache-dir"
        ) from None


def _columns(file: Path, schema: Any) -> Columns:
    lists = [each.name for each in schema if pa.types.is_list(each.type) or pa.types.is_large_list(each.type)]
    return columns_of(file, schema.names, lists, schema.metadata or {})


def _stretches(
    images: Any, whole: Any, file: Path, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the images of a batch lie in its file; `first` is the number of its first row."""
    if pa.types.is_struct(images.type):
        if "bytes" not in [images.type.field(i).name for i in range(images.type.num_fields)]:
            raise _wrong(
                file, f"its images are {images.type}, expected the bytes of files; save it as datasets' Image"
            )
        images = images.field("bytes")
    binary, large = pa.types.is_binary(images.type), pa.types.is_large_binary(images.type)
    if not (binary or large):
        raise _wrong(
            file, f"its images are {images.type}, expected the bytes of files; save it as datasets' Image"
        )
    if images.null_count:
        row = first + int(np.flatnonzero(images.is_null().to_numpy(zero_copy_only=False))[0])
        raise _wrong(
            file,
            f"{images.null_count:,} rows, the first is row {row:,}, hold no image, or only the path of one; "
            f"save it by save_to_disk of datasets, which puts the images in",
        )
    if not len(images):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    _, ends, content = images.buffers()
    edges = np.frombuffer(ends, dtype="<i8" if large else "<i4")[
        images.offset : images.offset + len(images) + 1
    ]
    begins = edges.astype(np.int64) + (content.address - whole.address)
    if begins[0] < 0 or begins[-1] > whole.size:
        raise _wrong(file, "is compressed, and images are read from where they lie; save it again without")
    return begins[:-1], np.diff(begins)


def _damaged(file: Path, error: Exception) -> TargetError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return _wrong(file, f"cannot be read ({reason}); copy or download it again")


def _wrong(file: Path, what: str) -> TargetError:
    return TargetError(f"{shown(str(file))}: {shown(what)}")
