"""Frozen source networks: naming, opening, checking and running them."""

from sskt.sources.answers import remarks_on, require_known_kind
from sskt.sources.batch_size import fastest_batch_size
from sskt.sources.batch_stats import BatchStatisticsSource
from sskt.sources.class_order import columns_of, known_orders
from sskt.sources.clip_frames import CENTER_FRAME, CLIP, REFERENCE, ClipFrames
from sskt.sources.contract import CONVERTED, LOGITS, Contract, assumed, sentence, shown
from sskt.sources.declared import METADATA, OPTION, parse_told, save_source, to_told
from sskt.sources.embeddings import remarks_on_embedding, require_embedding
from sskt.sources.forward import (
    DTYPES,
    Forward,
    default_batch_size,
    default_compute,
    exact_kernels,
    one_thread_each,
)
from sskt.sources.frozen import FrozenSource, NonFiniteLogitsError
from sskt.sources.input_map import InputMap, scaled_side
from sskt.sources.open_output import open_output, open_outputs
from sskt.sources.plain import DisagreementError
from sskt.sources.prompts import prompts_sha256
from sskt.sources.registry import (
    asked_of,
    kind_of,
    kinds,
    named_sources,
    open_network,
    open_source,
    parse_source,
    published_digest,
    reopen_source,
    source_slug,
    split_names,
    weights_file,
)
from sskt.sources.source import (
    DEFAULT_GRID,
    LOGITS_OUTPUT,
    MAP,
    OUTPUT_FORMS,
    POOLED,
    Source,
    SourceSpec,
    as_output,
    at_output,
    map_shape,
    network_of,
    output_kind,
    output_of,
    row_shape,
    with_usual_output,
)

__all__ = [
    "CENTER_FRAME",
    "CLIP",
    "CONVERTED",
    "DEFAULT_GRID",
    "DTYPES",
    "LOGITS",
    "LOGITS_OUTPUT",
    "MAP",
    "METADATA",
    "OPTION",
    "OUTPUT_FORMS",
    "POOLED",
    "REFERENCE",
    "BatchStatisticsSource",
    "ClipFrames",
    "Contract",
    "DisagreementError",
    "Forward",
    "FrozenSource",
    "InputMap",
    "NonFiniteLogitsError",
    "Source",
    "SourceSpec",
    "as_output",
    "asked_of",
    "assumed",
    "at_output",
    "columns_of",
    "default_batch_size",
    "default_compute",
    "exact_kernels",
    "fastest_batch_size",
    "kind_of",
    "kinds",
    "known_orders",
    "map_shape",
    "named_sources",
    "network_of",
    "one_thread_each",
    "open_network",
    "open_output",
    "open_outputs",
    "open_source",
    "output_kind",
    "output_of",
    "parse_source",
    "parse_told",
    "prompts_sha256",
    "published_digest",
    "remarks_on",
    "remarks_on_embedding",
    "reopen_source",
    "require_embedding",
    "require_known_kind",
    "row_shape",
    "save_source",
    "scaled_side",
    "sentence",
    "shown",
    "source_slug",
    "split_names",
    "to_told",
    "weights_file",
    "with_usual_output",
]
