"""Find the local weights that a store was made from, so that the user need not pass them again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cache import Store
from pipeline.runtime import Paths
from sskt.download import known_digest_of
from sskt.sources import kind_of, network_of, parse_source

log = logging.getLogger(__name__)


def with_recorded_weights(source: str, paths: Paths, stores: Iterable[Store]) -> Paths:
    """`paths`, completed by the weights file that `stores` record for a source, if none is given or
    downloaded. The file must still have the recorded sha256, and all stores whose file does must agree on it.
    The file is logged.
    """
    network = network_of(parse_source(source).name)
    if kind_of(source).is_path or paths.weights_of(source) or paths.weights_sha256(source):
        return paths
    files: dict[str, tuple[Path, Store]] = {}  # by sha256
    for store in stores:
        recorded = store.manifest.identity["source"]
        path = Path(store.manifest.made_by.get("asked", {}).get("weights") or "")
        if network_of(recorded["name"]) == network and path.is_file():
            sha256 = str(recorded["weights_sha256"])
            if _has_digest(path, sha256):
                files[sha256] = (path, store)
    if len(files) != 1:
        return paths
    ((path, store),) = files.values()
    log.info(f"{source}: its weights are {path}, from which {store.path} was made")
    return replace(paths, weights={**paths.weights, network_of(source): path})


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        return known_digest_of(path) == sha256
    except OSError:
        return False
