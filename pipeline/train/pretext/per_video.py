"""What is computed once for every video of a target and kept beside the packs, so that no other run, split or
limit computes it again.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import Dataset
from pipeline.runtime import Progress, write_result

log = logging.getLogger(__name__)

_SAVE_EVERY_S = 60.0
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PerVideo:
    """A quantity of videos. Its file is named for it, and holds one array for each content of a video."""

    name: str  # with a version, which changes with the computation
    title: str  # of the progress bar
    compute: Callable[[Dataset, int], Array]  # for one row of a dataset; safe to use from several threads

    def of(self, dataset: Dataset, folder: Path, threads: int) -> list[Array]:
        """One array for each video of `dataset`; those that `folder` lacks are computed, and saved now and
        then, so that stopping costs at most a minute.
        """
        file = folder / f"{self.name}.npz"
        keys = [row.tobytes().hex() for row in dataset.contents]
        known = self._read(file)
        rows = {key: row for row, key in enumerate(keys) if key not in known}
        if rows:
            self._fill(known, dataset, rows, file, threads)
        return [known[key] for key in keys]

    def _fill(
        self, known: dict[str, Array], dataset: Dataset, rows: dict[str, int], file: Path, threads: int
    ) -> None:
        saved = monotonic()
        bar = Progress(f"{self.title} of {dataset.target}", total=len(rows))
        with bar, ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda row: self.compute(dataset, row), rows.values())
            try:
                for key, array in zip(rows, found, strict=True):
                    known[key] = array
                    bar.advance(1)
                    if monotonic() - saved > _SAVE_EVERY_S:
                        self._write(file, known)
                        saved = monotonic()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._write(file, known)

    def _read(self, file: Path) -> dict[str, Array]:
        if not file.is_file():
            return {}
        try:
            with np.load(file, allow_pickle=False) as found:
                return dict(found)
        except Exception as error:  # noqa: BLE001 - NumPy raises what zip files, headers and pickles raise
            log.warning(f"{file}: cannot be read ({str(error).splitlines()[0]}), it is computed again")
            return {}

    def _write(self, file: Path, known: dict[str, Array]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **known)
        write_result(file, buffer.getvalue(), "make room, or choose another --cache-dir")
