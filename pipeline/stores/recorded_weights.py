"""Local weights that a store was made from: while they lie where they lay, they need not be given again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cache import Store
from pipeline.runtime import Paths
from sskt.download import known_digest_of
from sskt.sources import kind_of, parse_source

log = logging.getLogger(__name__)


def with_recorded_weights(source: str, paths: Paths, stores: Iterable[Store]) -> Paths:
    """`places`, with the file of a source's weights that `stores` record, where none is given and none was
    downloaded: if it is there, with the same sha256, and all that are there are one. It is said.
    """
    spec = parse_source(source)
    if kind_of(source).is_path or source in paths.weights or paths.weights_sha256(source):
        return paths
    found: dict[str, tuple[Path, Store]] = {}
    for store in stores:
        recorded = store.manifest.identity["source"]
        path = Path(store.manifest.made_by.get("asked", {}).get("weights") or "")
        if recorded["name"] == spec.name and path.is_file():
            sha256 = str(recorded["weights_sha256"])
            if _is(path, sha256):
                found[sha256] = (path, store)
    if len(found) != 1:
        return paths
    ((path, store),) = found.values()
    log.info(f"{source}: its weights are {path}, from which {store.path} was made")
    return replace(paths, weights={**paths.weights, source: path})


def _is(path: Path, sha256: str) -> bool:
    try:
        return known_digest_of(path) == sha256
    except OSError:
        return False
