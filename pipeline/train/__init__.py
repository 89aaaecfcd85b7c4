"""Stage two: what a run is (`config`), a student on its way (`trainer`), and the run around it (`train`)."""

from pipeline.train.backbone import default_model
from pipeline.train.config import Settings, TrainConfig, with_defaults
from pipeline.train.confusion import draw_confusion
from pipeline.train.data import splits_of
from pipeline.train.divergence import DivergedError
from pipeline.train.evaluate import ALL_CLIPS, Evaluator
from pipeline.train.example_images import example_images
from pipeline.train.finished.export import export
from pipeline.train.finished.predict import Predictions, predict
from pipeline.train.finished.student import EVALUATION_CLIPS, FinishedRun, open_finished
from pipeline.train.method import readers_of, require_learnable
from pipeline.train.own_loop import OwnLoopData, TrainingBatch, open_training_data
from pipeline.train.pretext.run import as_training, pretext, with_places
from pipeline.train.resolve import resolve
from pipeline.train.resolved import resolved_settings
from pipeline.train.run import resume, train
from pipeline.train.run_folder import (
    ENCODER,
    RunBusyError,
    read_config,
    read_metrics,
    read_probe,
    read_summary,
)
from pipeline.train.same_settings import has_settings
from pipeline.train.score_run import evaluate, open_to_score
from pipeline.train.settle import require_sound
from pipeline.train.splits import keep_labels, open_splits, scoring_split
from pipeline.train.whereabouts import labelled_list_of, paths_of, require_contents, whereabouts_of

__all__ = [
    "ALL_CLIPS",
    "ENCODER",
    "EVALUATION_CLIPS",
    "DivergedError",
    "Evaluator",
    "FinishedRun",
    "OwnLoopData",
    "Predictions",
    "RunBusyError",
    "Settings",
    "TrainConfig",
    "TrainingBatch",
    "as_training",
    "default_model",
    "draw_confusion",
    "evaluate",
    "example_images",
    "export",
    "has_settings",
    "keep_labels",
    "labelled_list_of",
    "open_finished",
    "open_splits",
    "open_to_score",
    "open_training_data",
    "paths_of",
    "predict",
    "pretext",
    "read_config",
    "read_metrics",
    "read_probe",
    "read_summary",
    "readers_of",
    "require_contents",
    "require_learnable",
    "require_sound",
    "resolve",
    "resolved_settings",
    "resume",
    "scoring_split",
    "splits_of",
    "train",
    "whereabouts_of",
    "with_defaults",
    "with_places",
]
