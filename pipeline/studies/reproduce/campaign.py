"""Settings shared by all runs of a table, and the remarks they add to each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data import DEFAULT_VIEWS, open_dataset
from pipeline.runtime import Execution, Paths, coerce, mute_remarks, student_precision
from pipeline.studies.reproduce.marks import Mark
from pipeline.studies.reproduce.published import Published, published_rows
from pipeline.studies.reproduce.rows import (
    TRAINING_SAMPLES,
    Attempt,
    Shrink,
    initial_weights,
    published_sources,
)
from sskt.errors import RunError
from sskt.sources import asked_of, published_digest, sentence, weights_file


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """What table G has of its own."""

    pretext_epochs: int | None = None  # None: the tasks' own, by the campaign's scale
    side_px: int = 224  # of what students and teachers see
    small: bool = False  # networks with an eighth of the channels, to try it out

    def __post_init__(self) -> None:
        """Raises RunError for anything but whole numbers."""
        epochs = coerce.whole_or_none(self.pretext_epochs, "pretext_epochs", low=1)
        object.__setattr__(self, "pretext_epochs", epochs)
        object.__setattr__(self, "side_px", coerce.whole(self.side_px, "side_px", low=1))


@dataclass(frozen=True, slots=True)
class Campaign:
    """Settings that all runs of a table share."""

    out: Path
    paths: Paths
    execution: Execution
    seeds: int = 3
    shrink: Shrink = field(default_factory=Shrink)
    views: int = DEFAULT_VIEWS
    amp: str = "auto"  # for the students
    graph: GraphSettings = field(default_factory=GraphSettings)  # for table G

    def __post_init__(self) -> None:
        """Raises RunError for anything but a path or a whole number."""
        object.__setattr__(self, "out", coerce.path(self.out, "out"))
        for name in ("seeds", "views"):
            object.__setattr__(self, name, coerce.whole(getattr(self, name), name, low=1))

    def folder(self, name: str, seed: int) -> Path:
        """The folder of one run."""
        return self.out / f"{name}-seed{seed}"

    def n_samples(self, target: str, *, official_sizes: bool) -> int:
        """Training samples of a target, by its official size or by the data at hand."""
        limit = self.shrink.limit
        if official_sizes:
            return min(TRAINING_SAMPLES[target], limit or TRAINING_SAMPLES[target])
        with mute_remarks():
            return len(open_dataset(target, "train", paths=self.paths, limit=limit))


def initial_weights_file(row: Published, paths: Paths) -> Path | None:
    """The file of weights that a fine-tuned student starts from, local or published, or None."""
    for name in initial_weights(row):
        return weights_file(name, paths.weights.get(name), paths.weights_dir)
    return None


def require_distinct(chosen: Sequence[Attempt]) -> None:
    """Raise RunError if a stand-in is already a source of the same row: a run cannot have it twice."""
    for attempt in chosen:
        if len(set(attempt.sources)) < len(attempt.sources):
            raise RunError(
                f"--stand-in makes {attempt.sources[0]} both sources of {attempt.row.name}; name another for "
                f"one of them, or choose other --rows"
            )


def require_known(paths: Paths, stand_ins: Mapping[str, str]) -> None:
    """Raise RunError for weights or contracts that no published row would read: a misspelt name."""
    known = [*published_sources(), *(each for name in stand_ins.values() for each in asked_of(name))]
    known += [name for row in published_rows() for name in initial_weights(row)]
    for option, named in (("--weights", paths.weights), ("--contract", paths.contracts)):
        if unknown := sorted(set(named) - set(known)):
            raise RunError(
                f"{option} names {unknown[0]}, the published rows have {', '.join(dict.fromkeys(known))}; "
                f"correct the name"
            )


def campaign_marks(attempt: Attempt, campaign: Campaign) -> list[Mark]:
    """Marks for how the campaign runs a row: local weights that are not the published file, declared
    contracts, views, precision.
    """
    weights = campaign.paths.weights
    marks = [
        Mark("weights", f"weights of {name} are {weights[name].name}")
        for name in (*attempt.networks, *initial_weights(attempt.row))
        if name in weights and not published_digest(name, weights[name])
    ]
    contracts = {name: campaign.paths.contract_of(name) for name in attempt.networks}
    marks += [Mark("contract", f"{name} declared as {sentence(c)}") for name, c in contracts.items() if c]
    marks.append(
        Mark("views", f"{campaign.views} views in turn; the released code draws a new one in every epoch")
    )
    precision = student_precision(campaign.amp, campaign.execution.device)
    return [*marks, Mark("precision", f"students compute in {precision}")] if precision != "fp32" else marks
