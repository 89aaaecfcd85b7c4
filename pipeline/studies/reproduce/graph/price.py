"""What the rows of table G would cost: forwards, bytes and hours on this machine, without running any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from pipeline.data import DEFAULT_CLIP, parse_target
from pipeline.runtime import autocast, coerce, mute_remarks, student_precision
from pipeline.studies.reproduce.campaign import Campaign
from pipeline.studies.reproduce.graph.needs import is_learned, is_taught, pretext_epochs, teachers_scores
from pipeline.studies.reproduce.graph.rows import (
    CLIPS,
    GraphAttempt,
    graph_attempts,
    network_of_task,
    teacher_settings,
)
from pipeline.studies.reproduce.graph.run import reproduce_graph
from sskt.students import BACKBONES, PRETEXTS, build_backbone

TEST_SAMPLES = {"ucf101": 3_783, "hmdb51": 1_530, "ccv": 4_658}  # of the official test splits
_TRAINING = 3  # forwards that a step costs, with its backward pass
# of what a network sees of a clip, how much more or less its pretext task shows it per video
_PRETEXT_SHARE = {"sorting": 1.0, "egomotion": 1.0, "tracking": 2.0, "prediction": 1.25}
_TRAINED_ON = 0.9  # of the videos: a tenth is held out for a task's figures
_MEASURED_S = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of work for one target."""

    target: str
    what: str
    runs: int  # that are left
    network: str
    forwards: float  # of a clip, or of a student's frame; a training step counts as three
    nbytes: int = 0

    def to_dict(self, seconds: Mapping[str, float]) -> dict[str, Any]:
        """A table row; `seconds` per forward by network."""
        return {
            "target": self.target,
            "what": self.what,
            "runs_left": self.runs,
            "forwards": round(self.forwards),
            "bytes": self.nbytes or None,
            "hours": self.forwards * seconds[self.network] / 3600,
        }


def price_graph(
    campaign: Campaign, *, rows: str | Sequence[str] = (), targets: str | Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What is left to do for the chosen rows of table G, by the targets' official sizes: for each target and
    kind of work the runs, forwards, bytes of stores and hours, and a last row for all.

    Hours are those of the networks' forwards here, measured for a second each: without drawing pictures, and
    without scores while students train. Stores count as a whole, be some of their rows there or not. Raises
    what `reproduce` raises for such rows.
    """
    rows, targets = coerce.texts(rows, "rows"), coerce.texts(targets, "targets")
    with mute_remarks():  # which showing the rows has made
        results = reproduce_graph(campaign, rows=rows, targets=targets, dry_run=True)
    finished = {result.row: len(result.values) for result in results}
    chosen = [a for a in graph_attempts(campaign, rows, targets) if a.row in finished]
    parts: list[Part] = []
    for target in dict.fromkeys(attempt.row.target for attempt in chosen):
        mine = [attempt for attempt in chosen if attempt.row.target == target]
        if any(attempt.needs_teachers for attempt in mine):
            parts += _of_teachers(target, mine, campaign)
        left = [(a.epochs, campaign.seeds - finished[a.row]) for a in mine if a.has_student]
        n, runs = campaign.n_samples(target, official_sizes=True), sum(runs for _, runs in left)
        steps = sum(epochs * runs * n for epochs, runs in left)
        network = "alexnet-small" if campaign.graph.small else "alexnet"
        forwards = _TRAINING * steps + runs * CLIPS * TEST_SAMPLES[target]
        parts.append(Part(target, "students", runs, network, forwards))
    if not parts:  # rows that are never run
        return []
    seconds = {network: _seconds(network, campaign) for network in {part.network for part in parts}}
    priced = [part.to_dict(seconds) for part in parts]
    total = {"target": "all", "what": "all", "runs_left": sum(part.runs for part in parts)}
    total |= {
        "forwards": sum(row["forwards"] for row in priced),
        "bytes": sum(part.nbytes for part in parts),
        "hours": sum(row["hours"] for row in priced),
    }
    return [*priced, total]


def _of_teachers(target: str, mine: Sequence[GraphAttempt], campaign: Campaign) -> Iterator[Part]:
    """Pretext tasks, fine-tuning, stores and scores of a target's four teachers."""
    n = campaign.n_samples(target, official_sizes=True)
    outputs = dict.fromkeys(output for attempt in mine for output in attempt.outputs)
    n_classes = parse_target(target).n_classes or 0
    for task in PRETEXTS:
        network = network_of_task(task, campaign)
        runs = int(not is_learned(task, target, campaign))
        videos = max(1, round(_TRAINED_ON * n))
        seen = _PRETEXT_SHARE[task] * videos * pretext_epochs(task, target, campaign)
        yield Part(target, f"pretext {task}", runs, network, runs * _TRAINING * seen)
        runs = int(not is_taught(task, target, campaign))
        epochs = teacher_settings(task, campaign)["epochs"]
        yield Part(target, f"teacher {task}", runs, network, runs * _TRAINING * epochs * n)
        if outputs:
            numbers = sum(
                n_classes if output == "logits" else _channels(network) * mine[0].grid ** 2
                for output in outputs
            )
            nbytes = 2 * numbers * n * campaign.views
            yield Part(target, f"stores of {task}", 0, network, n * campaign.views, nbytes)
        alone = any(not attempt.has_student for attempt in mine)
        if alone and (not all_taught(target, campaign) or teachers_scores(target, campaign) is None):
            yield Part(target, f"scores of {task}", 0, network, CLIPS * (n + TEST_SAMPLES[target]))


def all_taught(target: str, campaign: Campaign) -> bool:
    """Whether all teachers of a target are there."""
    return all(is_taught(task, target, campaign) for task in PRETEXTS)


def _channels(network: str) -> int:
    with torch.device("meta"):
        backbone = BACKBONES[network]()
    assert backbone.conv4 is not None  # noqa: S101 - as every network of the table
    return backbone.block_channels[backbone.conv4]


def _seconds(network: str, campaign: Campaign) -> float:
    """Seconds per sample of a forward in the students' precision, measured here."""
    device, side = campaign.execution.device, campaign.graph.side_px
    backbone = build_backbone(network).eval().to(device)
    n = 32 if device.type == "cuda" else 1
    shape = (n, 3, DEFAULT_CLIP[0], side, side) if backbone.reads_clips else (n, 3, side, side)
    pixels = torch.zeros(shape, device=device)
    precision = student_precision(campaign.amp, device)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            backbone(pixels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    forward()  # the first call is slower
    started, times = perf_counter(), 0
    while times == 0 or perf_counter() - started < _MEASURED_S:
        forward()
        times += 1
    return (perf_counter() - started) / (times * n)
