"""From dataset names to batches: datasets, the augmentation plan, renderers, the loader."""

from pipeline.data.augmentation import DEFAULT_CLIP, DEFAULT_VIEWS, EARLIER, RELEASED, Augmentation
from pipeline.data.datasets import decode, has_val, load_dataset, prepared, subset
from pipeline.data.datasets.dataset import ArrayImages, Dataset
from pipeline.data.datasets.joined import Parts, join
from pipeline.data.datasets.registry import (
    TARGETS,
    UNLABELLED,
    DatasetSpec,
    family_of,
    parse_target,
    path_families,
    path_family,
    target_slug,
)
from pipeline.data.datasets.remarks import same_bytes
from pipeline.data.datasets.video.pack import Packing
from pipeline.data.labelled_list import listed_in
from pipeline.data.loader import Batch, Loader, Sampler, sampler_for
from pipeline.data.mixup import Mixing
from pipeline.data.plan import (
    Centre,
    CentreClip,
    CornerClip,
    EveryClip,
    PickedFrames,
    Plan,
    plan_from,
)
from pipeline.data.pools import NO_POOL, Pool, as_target, open_pools, pool_names
from pipeline.data.prepare import open_dataset
from pipeline.data.render import Positions, Renderer, in_batches, open_renderer

__all__ = [
    "DEFAULT_CLIP",
    "DEFAULT_VIEWS",
    "EARLIER",
    "NO_POOL",
    "RELEASED",
    "TARGETS",
    "UNLABELLED",
    "ArrayImages",
    "Augmentation",
    "Batch",
    "Centre",
    "CentreClip",
    "CornerClip",
    "Dataset",
    "DatasetSpec",
    "EveryClip",
    "Loader",
    "Mixing",
    "Packing",
    "Parts",
    "PickedFrames",
    "Plan",
    "Pool",
    "Positions",
    "Renderer",
    "Sampler",
    "as_target",
    "decode",
    "family_of",
    "has_val",
    "in_batches",
    "join",
    "listed_in",
    "load_dataset",
    "open_dataset",
    "open_pools",
    "open_renderer",
    "parse_target",
    "path_families",
    "path_family",
    "plan_from",
    "pool_names",
    "prepared",
    "same_bytes",
    "sampler_for",
    "subset",
    "target_slug",
]
