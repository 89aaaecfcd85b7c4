"""Whether a run that was started has the settings that are asked for now, so that the same command, started
again, continues it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cache import Location, flatten
from pipeline.data import parse_target
from pipeline.runtime import Execution, Paths, World, mute_remarks
from pipeline.train.config import SETTLED_BY_DATA, TrainConfig, weights_name
from pipeline.train.data import open_data, pools_of, splits_of
from pipeline.train.run_folder import read_config, read_probe, read_summary
from sskt.errors import RunError
from sskt.methods import method_named
from sskt.sources import asked_of, kind_of

_OF_VERSION = ("ema_matched",)  # nobody chooses these; a run keeps those of the version that began it


def has_settings(out: Location, planned: TrainConfig, *, paths: Paths) -> bool:
    """Whether the run in `out` has the settings of `planned`; its data are not compared."""
    return _first_difference(_recorded(out), _expected(planned, paths)) is None


def require_settings(
    out: Location,
    planned: TrainConfig,
    *,
    paths: Paths,
    execution: Execution,
    world: World,
    of_preset: bool = False,
) -> None:
    """Raise RunError, naming the first setting or split in which the run in `out` is not `planned`, the
    config of a run before its data and sources are opened, or if it has finished with a probe that was fitted
    on other stores. `of_preset`: nobody asked for the probe among its sources, so heads may teach instead.
    """
    with mute_remarks():
        splits = splits_of(planned, paths)
    expected = _expected(planned, paths) | {
        "classes": splits.train.classes,
        "contents": splits.contents(),
        "val_share": splits.val_share,
        "chosen_on": splits.chosen_on,
    }
    recorded = _recorded(out)
    if of_preset:
        recorded, expected = ({**each, "sources": _networks(each)} for each in (recorded, expected))
    if not expected.get("sources"):  # whatever was stored when it was started
        expected.pop("sources", None)
    if different := _first_difference(recorded, expected):
        name, actual, wanted = different
        raise RunError(
            f"{out}: was started with {name} {actual}, this command has {wanted}; choose another --out, or "
            f"continue the run as it is with --resume {out}"
        )
    if read_summary(out) is not None and (probe := read_probe(out)) is not None:
        with mute_remarks():  # what is opened is compared with what the probe was fitted on
            open_data(planned, paths=paths, execution=execution, world=world, probe=probe)


def _recorded(out: Location) -> dict[str, Any]:
    return TrainConfig.from_dict(read_config(out), str(out / "config.json")).to_dict()


def _networks(config: dict[str, Any]) -> list[str]:
    """The sources of a config; in place of a probe, those that it is fitted on."""
    return sorted({each for name in config.get("sources", ()) for each in asked_of(name)})


def _expected(planned: TrainConfig, paths: Paths) -> dict[str, Any]:
    """What `train` would write into config.json, as far as known without data and networks.

    Leaves out what the caller lets `train` choose (sources, labels, views), and digests of source weights
    that are not on this machine.
    """
    # `train` records probes last
    sources = tuple(sorted(planned.sources, key=lambda name: kind_of(name).is_fitted))
    left_out = [*SETTLED_BY_DATA, *_OF_VERSION]
    sized = planned.sized(1).to_dict()
    left_out += [name for name, value in planned.to_dict().items() if sized[name] != value]
    expected = {name: value for name, value in planned.to_dict().items() if name not in left_out}
    if planned.val_share is None and not parse_target(planned.target).is_own_folder:
        expected |= {"val_share": 0.0, "chosen_on": "test"}
    if all(map(asked_of, sources)) and sources:  # else a probe of whatever is stored
        expected["sources"] = sources
    if method_named(planned.method).needs and planned.labels != "auto":
        expected["labels"] = planned.labels
    for name in ("views", "labelled_share"):
        if (said := getattr(planned, name)) is not None:
            expected[name] = said
    with mute_remarks():
        expected["unlabelled"] = pools_of(planned, paths)
    expected["labelled_list"] = planned.labelled_list and weights_name(Path(planned.labelled_list))
    contracts = {name: paths.contract_of(name) for name in sources}
    if declared := {name: contract.to_dict() for name, contract in contracts.items() if contract is not None}:
        expected["contracts"] = declared
    digests = {name: paths.weights_sha256(name) for name in sources}
    if local := {name: sha256 for name, sha256 in digests.items() if sha256}:
        expected["source_weights"] = local
    return expected


def _first_difference(recorded: dict[str, Any], expected: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first setting of a recorded run that differs from `expected`, and both values."""
    actual = dict(flatten(recorded))
    wanted = dict(flatten(json.loads(json.dumps(expected))))  # tuples as JSON has them
    for name, value in wanted.items():
        if actual.get(name) != value:
            return name, _short(actual.get(name)), _short(value)
    return None


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
