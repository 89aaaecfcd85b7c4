"""A store: one output of one source, float16 logits or a representation, for every view of every sample, in
units that are complete or absent.

Written unit by unit, read a whole view at a time, in a local folder or an object store. Opening and creating
use Zarr; rows are read and written as plain files (cache/unit.py), without Zarr's event loop.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

import cache.layout as layouts
from cache.cleanup import clear_remains
from cache.errors import CacheError, FolderClosed, StoreMismatch
from cache.layout import BACKUP, Layout, default_block_rows
from cache.locks import size_lock
from cache.manifest import require_match
from cache.reader import MappedView, Problem, StoreReader
from cache.row_format import LOGITS, RowFormat
from cache.storage import TEMPORARY, Location, is_file, local_path, subfolders
from cache.storage.local import sweep
from cache.unit import Unit, require_sound_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cache.manifest import Manifest
    from cache.row_format import Rows

__all__ = ["MappedView", "Problem", "Store", "Unit", "default_block_rows", "find_stores"]


class Store(StoreReader):
    """An open store, from `create` or `open`; its sizes are as of then, or of the object's last `grow`."""

    @classmethod
    def create(
        cls,
        path: Location,
        manifest: Manifest,
        *,
        ids: NDArray[np.int64],
        contents: NDArray[np.uint8],
        n_classes: int,
        views: int,
        top_k: int | None = None,
        kind: str = LOGITS,
        block_rows: int | None = None,
        probe_ids: NDArray[np.int64] | None = None,
        probe: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Make an empty store at `path`, or open an existing one or one that another process makes first.

        ids: (N,) int64, unique. contents: (N, 16) uint8, identifies each sample's content.
        top_k: keep this many classes per row (see `cache.row_format.RowFormat`); None keeps all.
        kind: LOGITS, or REPRESENTATIONS for rows of `n_classes` numbers that are no classes.
        probe_ids: (P,) int64 and probe: (P, 3, H, W) uint8, or (P, 3, F, H, W), a few samples of view
            0 as rendered.
        Raises StoreMismatch if the existing store has another identity or other ids, CacheError if the
        arguments are inconsistent or the folder cannot be written.
        """
        tables: dict[str, NDArray[Any]] = {
            "ids": ids,
            "contents": contents,
            "probe_ids": np.empty(0, np.int64) if probe_ids is None else probe_ids,
            "probe": np.empty((0, 3, 1, 1), np.uint8) if probe is None else probe,
        }
        layouts.require_fitting(path, tables)
        form = RowFormat(n_classes, top_k, kind)
        layout = Layout(views, len(ids), form, block_rows or default_block_rows(len(ids)))
        if views < 1 or layout.block_rows < 1:
            raise CacheError(f"{path}: {layout} is no size for a store; each number must be at least 1")
        if not is_file(path / "zarr.json"):
            clear_remains(path)
            if sums := layouts.create_group(path, manifest, layout, tables):
                return cls(path, manifest, layout, sums)
        store = cls.open(path)
        require_match(path, store.manifest.identity, manifest.identity)
        if store.form != form or not np.array_equal(store.ids, ids):
            raise StoreMismatch(
                f"{path}: holds {store.n_samples} samples of {store.form.n_classes} classes, this run has "
                f"{len(ids)} of {n_classes}, or other sample ids; precompute into another cache folder"
            )
        store.grow(views)
        return store

    def write_unit(self, unit: Unit, rows: Rows) -> bool:
        """Finish a unit: write its file, then its entry. rows: the whole block, finite, in the store's
        format. The first writer of the file wins: if there is one, its rows stay, whatever they are, and the
        result is False. (Processors differ in the last bits, and two may compute the same unit.)

        A file that was lost or damaged is written again. Raises CacheError for a full or read-only disk,
        which leaves all finished units intact.
        """
        if not (0 <= unit.view < self.n_views and 0 <= unit.block < self.n_blocks):
            raise CacheError(
                f"{self.path}: has no {unit}, only {self.n_views} views of {self.n_blocks} blocks; grow it"
            )
        require_sound_rows(rows, self._n_rows(unit), self.form, f"{self.path}: {unit}")
        rows = cast("Rows", np.ascontiguousarray(rows))
        try:
            self._entries[unit], created = self._files.write(unit, rows)
        except OSError as error:
            raise CacheError(
                f"{self.path}: {unit} cannot be written ({error.strerror or error}); make room or make the "
                f"folder writable and run the same command again, finished units are kept"
            ) from error
        return created

    def sweep(self) -> int:
        """Remove files that dead writers left unfinished in this store; returns their number. Leaves alone
        what is being written, and half-made stores beside this one: those are held by locks on folders, which
        a network file system does not show to other machines (`sskt cache prune` removes them).
        """
        folder = local_path(self.path)
        return sum(map(sweep, (folder, folder / self.form.array, folder / "units"))) if folder else 0

    def grow(self, views: int) -> None:
        """Make room for `views` views in total, if there are fewer; finished units are untouched."""
        if views <= self.n_views:
            return
        with size_lock(self.path):
            self._layout = layouts.read_group(self.path)[1]  # another process may have grown it meanwhile
            while views > self.n_views:  # an object store has no locks, so that another may make it smaller
                self._set_views((self.form.array, "units"), views)

    def beyond(self, views: int) -> dict[Unit, int]:
        """The bytes of every unit, finished or not, that `trim(views)` would delete."""
        return self._files.beyond(views)

    def trim(self, views: int) -> None:
        """Keep only the first `views` views and free the space of the others.

        Units are deleted first, which makes room on a full disk; a kill leaves a store without its last ones.
        """
        if not 1 <= views <= self.n_views:
            raise CacheError(f"{self.path}: has {self.n_views} views and cannot be cut to {views}")
        with size_lock(self.path):
            try:
                for unit in self.beyond(views):
                    self._files.delete(unit)
            except OSError as error:
                raise CacheError(
                    f"{self.path}: cannot be cut to {views} views ({error.strerror or error}); "
                    f"make the folder writable and run the same command again"
                ) from error
            self._set_views(("units", self.form.array), views)
            self._entries = {unit: entry for unit, entry in self._entries.items() if unit.view < views}

    def discard(self, unit: Unit) -> None:
        """Delete a unit, so that it is unfinished again."""
        self._files.discard(unit)
        self._entries.pop(unit, None)

    def _set_views(self, names: tuple[str, str], views: int) -> None:
        """Set the number of views of both arrays, in the order given."""
        try:
            for name in names:
                layouts.set_views(self.path, name, views)
        except OSError as error:
            raise CacheError(
                f"{self.path}: cannot be set to {views} views ({error.strerror or error}); "
                f"make room or make the folder writable and run the same command again"
            ) from error
        self._layout = layouts.read_group(self.path)[1]


def find_stores(root: Location) -> list[Location]:
    """Every store folder below `root`, sorted; does not descend into stores or unfinished folders.

    A store that has lost its zarr.json is listed but cannot be opened. A folder with several links is visited
    once. Folders that cannot be listed are skipped; raises FolderClosed if `root` is one.
    """
    return _find_stores(root, set())


def _find_stores(root: Location, visited: set[Location]) -> list[Location]:
    real = root.resolve()
    if TEMPORARY in root.name or real in visited:
        return []
    visited.add(real)
    if root.suffix == ".zarr":
        return [root] if any(is_file(root / name) for name in ("zarr.json", BACKUP)) else []
    found = []
    for place in subfolders(root):
        with suppress(FolderClosed):
            found += _find_stores(place, visited)
    return found
