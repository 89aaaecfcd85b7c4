"""hf-dataset:FOLDER, images and labels as Hugging Face's `datasets` saves them (save_to_disk), or in Parquet.

They are read by pyarrow; `datasets` itself is not needed.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.data.datasets.checked_files import facts_file
from pipeline.data.datasets.image_files import ImageSpec
from pipeline.data.datasets.own.pack_files import files_at
from pipeline.data.datasets.own.packed import PackedFamily, PackedRows
from pipeline.data.datasets.remote_pack import Pack
from sskt.errors import TargetError, shown
from sskt.extras import library


class HfDataset(PackedFamily):
    """A user's folders of Arrow or Parquet files."""

    name, what = "hf-dataset", "folder of Arrow or Parquet files"
    how_to_prepare = "name a folder that save_to_disk of datasets has written, or a folder of Parquet files"

    def files(self, root: Path, folder: Path | None = None) -> list[Pack]:  # noqa: ARG002
        """See `PackedFamily.files`."""
        return [*_files(root)]

    def has_several_labels(self, spec: ImageSpec) -> bool:
        """See `Family.has_several_labels`."""
        files = _files(spec.root)
        if not files:
            return False
        library("pyarrow", extra="parquet", needed_by=shown(str(spec.root)))
        from pipeline.data.datasets.own import read_tables

        return read_tables.read_columns(files[0]).several

    def rows(self, root: Path, files: list[Pack], below: list[str], index_dir: Path, slug: str) -> PackedRows:
        """See `PackedFamily.rows`."""
        library("pyarrow", extra="parquet", needed_by=shown(str(root)))
        from pipeline.data.datasets.own import read_tables

        packs = local = [file for file in files if isinstance(file, Path)]
        if local[0].suffix == ".parquet":
            packs = read_tables.copy_parquet(local, facts_file(index_dir, slug, root).with_suffix(""))
        columns, tables = read_tables.read_all(local, packs)
        names = [
            f"{file}/row {row}"
            for file, table in zip(below, tables, strict=True)
            for row in range(len(table.labels))
        ]
        return PackedRows(
            files=files,
            packs=packs,
            n_of_each=[len(table.labels) for table in tables],
            names=names,
            keys=names,
            begins=read_tables.joined([table.begins for table in tables]),
            lengths=read_tables.joined([table.lengths for table in tables]),
            labels=[labels for table in tables for labels in table.labels],
            several=columns.several,
            classes=columns.classes,
        )


def _files(root: Path) -> list[Path]:
    """The Arrow files of a saved data set, in their order; else the Parquet files at `root`.

    Raises TargetError for a saved data set that lacks a file, or whose record cannot be read.
    """
    record = root / "dataset_dict.json"
    folders = [root] if (root / "state.json").is_file() else []
    try:
        if record.is_file():
            folders = [root / name for name in json.loads(record.read_text(encoding="utf-8"))["splits"]]
        if not folders:
            return [file for file in files_at(root, (".parquet",)) if isinstance(file, Path)]
        found = []
        for folder in folders:
            record = folder / "state.json"
            state = json.loads(record.read_text(encoding="utf-8"))
            found += [folder / each["filename"] for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError(
            f"{shown(str(record))}: cannot be read ({error}); copy the data set again, whole"
        ) from None
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise TargetError(
            f"{shown(str(root))}: {len(missing):,} of its {len(found):,} files are missing, the first is "
            f"{shown(str(missing[0].relative_to(root)))}; copy the data set again, whole"
        )
    return found
