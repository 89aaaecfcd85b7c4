"""hf-dataset:FOLDER, images and labels as Hugging Face's `datasets` saves them (save_to_disk), or in Parquet.

They are read by pyarrow; `datasets` itself is not needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.datasets.bit_depth import FULL
from pipeline.data.datasets.checked_files import facts_file
from pipeline.data.datasets.encoded_images import PackedImages
from pipeline.data.datasets.image_files import ImageListing, ImageSpec, list_packed
from pipeline.data.datasets.own.annotations import Annotations
from pipeline.data.datasets.own.family import OwnImages
from pipeline.data.datasets.own.pack_files import files_at, split_of_each
from pipeline.data.datasets.registry import target_slug
from sskt.errors import TargetError, shown

if TYPE_CHECKING:
    from pipeline.data.datasets.own.table_columns import Columns


class HfDataset(OwnImages):
    """A user's folders of Arrow or Parquet files."""

    name, what = "hf-dataset", "folder of Arrow or Parquet files"
    how_to_prepare = "name a folder that save_to_disk of datasets has written, or a folder of Parquet files"

    def lies_there(self, spec: ImageSpec, data_dir: Path) -> bool:
        """See `Family.lies_there`."""
        return bool(_files(data_dir / spec.root))

    def has_several_labels(self, spec: ImageSpec) -> bool:
        """See `Family.has_several_labels`."""
        files = _files(spec.root)
        if not files:
            return False
        _require_pyarrow(spec)
        from pipeline.data.datasets.own.read_tables import read_columns

        return read_columns(files[0]).several

    def splits(self, spec: ImageSpec, data_dir: Path) -> Collection[str]:
        """See `OwnImages.splits`."""
        root = data_dir / spec.root
        return split_of_each(_files(root), root) or ()

    def annotated(self, spec: ImageSpec, root: Path, index_dir: Path) -> tuple[Annotations, ImageListing]:
        """See `OwnImages.annotated`."""
        _require_pyarrow(spec)
        from pipeline.data.datasets.own.read_tables import copy_parquet, read_table

        files, slug = _files(root), target_slug(spec.name)
        packs = files
        if files[0].suffix == ".parquet":
            packs = copy_parquet(files, facts_file(index_dir, slug, root).with_suffix(""))
        tables = [read_table(pack, file) for pack, file in zip(packs, files, strict=True)]
        columns = _same(files, [table.columns for table in tables])
        of = np.repeat(np.arange(len(files)), [len(table.labels) for table in tables])
        if not len(of):
            raise TargetError(
                f"{shown(str(root))}: its {len(files):,} files hold no row; {spec.how_to_prepare}"
            )
        names = [
            f"{file.relative_to(root) if file != root else file.name}/row {row}"
            for file, table in zip(files, tables, strict=True)
            for row in range(len(table.labels))
        ]
        images = PackedImages(
            paths=np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
            transcode=np.zeros(len(names), dtype=bool),
            depths=np.full(len(names), FULL, dtype=np.uint8),
            root=root,
            packs=tuple(packs),
            pack=of,
            begins=np.concatenate([table.begins for table in tables]),
            lengths=np.concatenate([table.lengths for table in tables]),
        )
        mtimes_ns = np.array([file.stat().st_mtime_ns for file in files], dtype=np.int64)
        listing = list_packed(root, images, mtimes_ns[of], slug=slug, index_dir=index_dir)
        splits = split_of_each(files, root)
        said = Annotations(
            str(root),
            names,
            names,
            None if splits is None else [splits[number] for number in of],
            [labels for table in tables for labels in table.labels],
            columns.several,
            columns.classes,
        )
        return said, listing


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
            return files_at(root, (".parquet",))
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


def _same(files: list[Path], columns: list[Columns]) -> Columns:
    """The columns that all files have. Raises TargetError if one has others."""
    for file, each in zip(files, columns, strict=True):
        if each != columns[0]:
            raise TargetError(
                f"{shown(str(file))}: its columns are {each.image} and {each.label} with "
                f"{len(each.classes or ())} declared classes, and those of {shown(files[0].name)} "
                f"{columns[0].image} and {columns[0].label} with {len(columns[0].classes or ())}, or of "
                f"other names; write all files alike"
            )
    return columns[0]


def _require_pyarrow(spec: ImageSpec) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise TargetError(
            f"{shown(spec.as_given)}: Arrow and Parquet files are read by pyarrow, which is not installed; "
            f"pip install 'sskt[parquet]'"
        )
