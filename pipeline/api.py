"""Names in, results out: what the command line and a Python user call for either stage."""

from pipeline.data.augmentation import Augmentation
from pipeline.data.prepare import open_index, run_prepare
from pipeline.precompute.run import run_estimate, run_precompute
from pipeline.runtime.execution import choose_execution
from pipeline.runtime.paths import Places
from pipeline.train.data import Supervision
from pipeline.train.own_loop import TaughtBatch, TaughtData, open_taught_data
from pipeline.train.resolve import Tuning
from pipeline.train.run import resume_train, run_evaluate, run_train
from pipeline.train.whereabouts import places_of
from sskt.sources.contract import Contract
from sskt.sources.declared import save_source

__all__ = [
    "Augmentation",
    "Contract",
    "Places",
    "Supervision",
    "TaughtBatch",
    "TaughtData",
    "Tuning",
    "choose_execution",
    "open_index",
    "open_taught_data",
    "places_of",
    "resume_train",
    "run_estimate",
    "run_evaluate",
    "run_precompute",
    "run_prepare",
    "run_train",
    "save_source",
]
