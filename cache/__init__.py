"""Zarr stores of frozen source networks' outputs: written once, verified, read a whole view at a time.

Knows nothing of networks or images: rows of float16 numbers go in and come out by sample id. The layout is
public, see docs/store-format.md.
"""

from cache.errors import ABSENT, CacheError, Difference, StoreDamaged, StoreIncomplete, StoreMismatch
from cache.layout import TABLES, default_block_rows, table_sha256, write_table
from cache.manifest import Manifest, differences, digest, flatten, require_match
from cache.repair import repair_metadata
from cache.row_format import LOGITS, REPRESENTATIONS
from cache.storage import (
    TEMPORARY,
    Location,
    delete_file,
    is_file,
    local_path,
    location,
    names_in,
    read_file,
    read_files,
    require_bucket,
    sizes_in,
    subfolders,
    write_durably,
)
from cache.store import MappedView, Problem, Store, find_stores
from cache.unit import Unit

__all__ = [
    "ABSENT",
    "LOGITS",
    "REPRESENTATIONS",
    "TABLES",
    "TEMPORARY",
    "CacheError",
    "Difference",
    "Location",
    "Manifest",
    "MappedView",
    "Problem",
    "Store",
    "StoreDamaged",
    "StoreIncomplete",
    "StoreMismatch",
    "Unit",
    "default_block_rows",
    "delete_file",
    "differences",
    "digest",
    "find_stores",
    "flatten",
    "is_file",
    "local_path",
    "location",
    "names_in",
    "read_file",
    "read_files",
    "repair_metadata",
    "require_bucket",
    "require_match",
    "sizes_in",
    "subfolders",
    "table_sha256",
    "write_durably",
    "write_table",
]
