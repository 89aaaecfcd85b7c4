"""Commands in messages name the folders too, so that they can be run as they stand."""

from __future__ import annotations

from cache.storage import Location
from sskt.names import quoted

_DATA_DIR, _CACHE_DIR = "data", "stores"  # where a command looks that is told nothing


def folder_words(data_dir: Location, cache_dir: Location) -> list[str]:
    """--data-dir and --cache-dir, where they are not the defaults."""
    places = (("--data-dir", data_dir, _DATA_DIR), ("--cache-dir", cache_dir, _CACHE_DIR))
    return [f"{option} {quoted(str(place))}" for option, place, usual in places if str(place) != usual]
