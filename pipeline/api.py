"""Names in, results out: what the command line and a Python user call."""

from pipeline.data import Augmentation, open_dataset
from pipeline.data.prepare import prepare
from pipeline.precompute.run import estimate, precompute
from pipeline.precompute.verify import verify
from pipeline.runtime import Paths, choose_execution
from pipeline.studies.ensemble import ensemble
from pipeline.studies.explain import explain
from pipeline.studies.probe.run import probe
from pipeline.studies.report.compare import compare
from pipeline.studies.report.run import report
from pipeline.studies.report.runs import list_runs
from pipeline.studies.reproduce.campaign import Campaign, GraphSettings
from pipeline.studies.reproduce.graph.price import price_graph
from pipeline.studies.reproduce.rows import Shrink
from pipeline.studies.reproduce.run import reproduce
from pipeline.studies.series import pretext_or_resume
from pipeline.studies.sweep import sweep
from pipeline.studies.sweep_grid import Grid
from pipeline.train import (
    OwnLoopData,
    Predictions,
    TrainingBatch,
    evaluate,
    export,
    open_training_data,
    paths_of,
    predict,
    pretext,
    resolved_settings,
    resume,
    train,
)
from sskt.sources import Contract, save_source

__all__ = [
    "Augmentation",
    "Campaign",
    "Contract",
    "GraphSettings",
    "Grid",
    "OwnLoopData",
    "Paths",
    "Predictions",
    "Shrink",
    "TrainingBatch",
    "choose_execution",
    "compare",
    "ensemble",
    "estimate",
    "evaluate",
    "explain",
    "export",
    "list_runs",
    "open_dataset",
    "open_training_data",
    "paths_of",
    "precompute",
    "predict",
    "prepare",
    "pretext",
    "pretext_or_resume",
    "price_graph",
    "probe",
    "report",
    "reproduce",
    "resolved_settings",
    "resume",
    "save_source",
    "sweep",
    "train",
    "verify",
]
