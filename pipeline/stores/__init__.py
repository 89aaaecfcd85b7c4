"""Which store belongs to which job or run: the joint between the two stages."""

from pipeline.stores.alike import (
    holds,
    holds_maps,
    sound_stores,
    split_folder,
    store_folder,
    stored_output,
    stores_elsewhere,
)
from pipeline.stores.class_check import knowledge_of, log_knowledge, spread_positions
from pipeline.stores.contracts import classes_of, contract_in_force, open_named, spec_on_store
from pipeline.stores.fill import SourceStore, open_source_stores
from pipeline.stores.fingerprint import PROBE_SAMPLES, check_probe, identity, probe_pixels, source_plan
from pipeline.stores.job import Job
from pipeline.stores.match import Candidate, Destination, destination, matching_store
from pipeline.stores.recorded_weights import with_recorded_weights
from pipeline.stores.reopen import Origin, open_dataset_of, open_origin
from pipeline.stores.sources import choose_forward, open_frozen, recorded_forward, step_batch_size
from pipeline.stores.trial import trial_positions, try_source

__all__ = [
    "PROBE_SAMPLES",
    "Candidate",
    "Destination",
    "Job",
    "Origin",
    "SourceStore",
    "check_probe",
    "choose_forward",
    "classes_of",
    "contract_in_force",
    "destination",
    "holds",
    "holds_maps",
    "identity",
    "knowledge_of",
    "log_knowledge",
    "matching_store",
    "open_dataset_of",
    "open_frozen",
    "open_named",
    "open_origin",
    "open_source_stores",
    "probe_pixels",
    "recorded_forward",
    "sound_stores",
    "source_plan",
    "spec_on_store",
    "split_folder",
    "spread_positions",
    "step_batch_size",
    "store_folder",
    "stored_output",
    "stores_elsewhere",
    "trial_positions",
    "try_source",
    "with_recorded_weights",
]
