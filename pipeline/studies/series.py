"""A run by its folder: made, gone on with, or left alone, so that a series of runs can be started again."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.manifest import flatten
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import parse_target
from pipeline.precompute.run import run_precompute
from pipeline.runtime.distributed import Ranks, Share, joined
from pipeline.runtime.execution import Execution
from pipeline.runtime.paths import Places
from pipeline.runtime.remarks import unsaid
from pipeline.train.config import TrainConfig
from pipeline.train.data import Asked, Supervision
from pipeline.train.resolve import Tuning, plan_config, settings_of
from pipeline.train.run import model_name, resume_train, run_train
from pipeline.train.run_folder import read_config, read_summary
from pipeline.train.splits import open_splits
from sskt.errors import RunError
from sskt.methods import TAUGHT
from sskt.students import Backbone


def train_once(target: str, out: Path, **asked: Any) -> dict[str, Any]:
    """The summary of the run in `out`: of `run_train(target, out=out, **asked)` if there is none yet, of
    `resume_train` if it was stopped, else as it is.

    The checkpoint of a finished run is removed: a series of runs would fill a disk with what nobody goes on
    from. Raises RunError if the run in `out` is another than the one asked for, and what those two raise.
    """
    with joined(asked["execution"].device) as ranks:
        if not ranks.agreed((out / "config.json").is_file()):
            summary = run_train(target, out=out, **asked)
        else:
            _require_asked(target, out, asked)
            finished = read_summary(out)
            how = {name: asked[name] for name in ("execution", "places")}
            summary = finished or resume_train(out, **how)
        if ranks.first:
            (out / "last.pt").unlink(missing_ok=True)
        ranks.agreed(value=True)  # nobody reads what the first has not written yet
    return summary


def precompute_once(target: str, sources: Sequence[str], **asked: Any) -> None:
    """`run_precompute`, until the units of every rank are there."""
    with joined(asked["execution"].device) as ranks:
        run_precompute([target], sources, **asked)
        ranks.agreed(value=True)


def is_as_asked(target: str, out: Path, **asked: Any) -> bool:
    """Whether the run in `out` is the one that `train_once` would make; its data are not looked at."""
    return _first_difference(out, _expected(target, **asked)) is None


def _expected(
    target: str,
    *,
    supervision: Supervision,
    places: Places,
    execution: Execution,
    augmentation: Augmentation | None = None,
    tuning: Tuning | None = None,
    overrides: Mapping[str, Any] | None = None,
    model: str | Backbone | None = None,
    limit: int | None = None,
    seed: int = 0,
    eval_every: int = 1,
    **_how: Any,
) -> dict[str, Any]:
    """What `run_train` would write into config.json, as far as that is known without data and networks.

    What the caller leaves to `run_train` (sources, labels, views) is not in it, nor are sources' weights that
    are not on this machine.
    """
    tuning = tuning or Tuning()
    settings = settings_of(target, supervision, tuning, overrides or {})
    ranks = Ranks(world=Share.from_environment().n_ranks)
    asked = Asked(
        target, supervision, augmentation or Augmentation(), places, execution, limit, ranks, settings
    )
    name = model_name(target, model)
    expected = plan_config(asked, tuning, model=name, seed=seed, eval_every=eval_every)
    if tuning.val_share is None and parse_target(target).n_classes is not None:
        expected |= {"val_share": 0.0, "chosen_on": "test"}
    if supervision.sources:
        expected["sources"] = supervision.sources
    if supervision.method in TAUGHT and supervision.labels != "auto":
        expected["labels"] = supervision.labels
    if supervision.views is not None:
        expected["views"] = supervision.views
    told = {name: contract for name in supervision.sources if (contract := places.told(name)) is not None}
    if told:
        expected["contracts"] = {name: contract.to_dict() for name, contract in told.items()}
    found = {name: places.weights_sha256(name) for name in supervision.sources}
    if here := {name: sha256 for name, sha256 in found.items() if sha256}:
        expected["source_weights"] = here
    return expected


def _require_asked(target: str, out: Path, asked: Mapping[str, Any]) -> None:
    """Raise RunError, naming the first setting in which the run in `out` is another."""
    with unsaid():
        splits = open_splits(
            target,
            places=asked["places"],
            limit=asked.get("limit"),
            val_share=(asked.get("tuning") or Tuning()).val_share,
        )
    expected = _expected(target, **asked) | {
        "classes": splits.train.classes,
        "contents": splits.contents(),
        "val_share": splits.val_share,
        "chosen_on": splits.chosen_on,
    }
    if different := _first_difference(out, expected):
        name, there, wanted = different
        raise RunError(
            f"{out}: was begun with {name} {there}, this series asks for {wanted}; choose another --out"
        )


def _first_difference(out: Path, expected: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first setting of the run in `out` that is not as expected, and both values."""
    found = dict(flatten(TrainConfig.from_dict(read_config(out), str(out / "config.json")).to_dict()))
    wanted = dict(flatten(json.loads(json.dumps(expected))))  # tuples as JSON has them
    for name, value in wanted.items():
        if found.get(name) != value:
            return name, _short(found.get(name)), _short(value)
    return None


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 100, placeholder="...")
