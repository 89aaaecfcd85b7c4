"""Where a batch's source outputs come from: a store, the live sources, or both in turn. The trainer cannot
tell which (docs/method.md, promise 6).
"""

from pipeline.source_outputs.cached import all_classes
from pipeline.source_outputs.choose import LIVE_DEFAULT_SOURCES
from pipeline.source_outputs.fit_probe import MOST_ROWS, RunProbe, StoredRows, fitted_positions
from pipeline.source_outputs.open_probed import NothingStoredError, open_with_probe, probe_among
from pipeline.source_outputs.outputs import SourceOutputs
from pipeline.source_outputs.pools import open_outputs
from pipeline.source_outputs.request import DataRequest, precompute_command
from pipeline.source_outputs.same_classes import of_same_classes
from pipeline.source_outputs.stored import (
    require_no_maps,
    stored_sources,
    stored_teachers,
    stores_with_views,
)
from pipeline.source_outputs.stored_maps import stored_graph_sources

__all__ = [
    "LIVE_DEFAULT_SOURCES",
    "MOST_ROWS",
    "DataRequest",
    "NothingStoredError",
    "RunProbe",
    "SourceOutputs",
    "StoredRows",
    "all_classes",
    "fitted_positions",
    "of_same_classes",
    "open_outputs",
    "open_with_probe",
    "precompute_command",
    "probe_among",
    "require_no_maps",
    "stored_graph_sources",
    "stored_sources",
    "stored_teachers",
    "stores_with_views",
]
