"""How our runs of a published row differ from the paper and its released code: for each difference a word for
the table and a footnote, derived from the settings of the runs.

"The released code" is that of the authors' page. It has loaders for STL10 and clips only; where neither it
nor the paper specifies something, the footnote says that the choice is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.data import Augmentation, DatasetSpec, parse_target
from pipeline.studies.reproduce.published import Published
from pipeline.train import TrainConfig
from sskt.normalise import KINETICS_MEAN
from sskt.sources import REFERENCE
from sskt.students import ResNet3D

_RELEASED_EPOCHS = {"stl10": 200, "ucf101": 200, "hmdb51": 200}  # of the authors' command, and 3D default
_RELEASED_MILESTONES, _RELEASED_GAMMA = (60, 120, 160, 200), 0.2


@dataclass(frozen=True, slots=True)
class Mark:
    """One difference: the word shown in the row, and the footnote that explains it."""

    word: str
    note: str


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings of a row's runs, as far as known without data and weights."""

    row: Published
    config: TrainConfig
    augmentation: Augmentation
    metric: str  # the figure compared with the paper's

    @property
    def spec(self) -> DatasetSpec:
        """The row's target."""
        return parse_target(self.row.target)

    @property
    def is_video(self) -> bool:
        """Whether the student reads clips."""
        return self.spec.holds_videos


def departures(setup: Setup) -> list[Mark]:
    """Every difference caused by the settings, grouped by word in a fixed order."""
    return [Mark(word, note) for word, notes in _NOTES.items() for note in notes(setup)]


def cited(row: Published) -> Mark:
    """The mark of a row that the table cites from another paper."""
    return Mark("cited", f"a figure of {row.authors}, as the table cites it; never run")


def labels(marks: Iterable[Mark]) -> dict[Mark, str]:
    """The label of each mark on a page: its word, numbered if several footnotes share that word."""
    distinct = list(dict.fromkeys(marks))
    by_word: dict[str, list[Mark]] = {}
    for mark in distinct:
        by_word.setdefault(mark.word, []).append(mark)
    return {
        mark: mark.word if len(same_word) == 1 else f"{mark.word}-{number}"
        for same_word in by_word.values()
        for number, mark in enumerate(same_word, start=1)
    }


def _protocol(setup: Setup) -> Iterator[str]:
    if setup.is_video and setup.metric == "test_top1":
        clips = setup.augmentation.evaluation_plan(setup.spec).to_dict()["n_clips"]
        yield (
            f"a video's score is the mean of {clips} evenly spaced clips; the released test takes all "
            f"consecutive clips of 16 frames"
        )
    if not setup.is_video:
        yield (
            "the last epoch's score; the released code logs every epoch's on the test split, and the paper "
            "does not say which it prints"
        )


def _metric(setup: Setup) -> Iterator[str]:
    if setup.spec.is_multilabel:
        yield (
            "images that show nothing are left out of the average precision per image; the released code "
            "counts each of them as 0"
        )


def _labels(setup: Setup) -> Iterator[str]:
    if setup.spec.is_multilabel:
        yield (
            "a class whose objects are all marked difficult is left out for that image, in training and in "
            "testing (VOC's own rule); the released code counts it as absent"
        )


def _mean(setup: Setup) -> Iterator[str]:
    if setup.is_video and ResNet3D.mean == KINETICS_MEAN:
        yield (
            "Kinetics' mean is subtracted from clips; the released code's default, which the authors' "
            "command takes, is ActivityNet's"
        )


def _input(setup: Setup) -> Iterator[str]:
    if setup.is_video and setup.row.sources and setup.augmentation.source_frames != REFERENCE:
        yield (
            "sources see a clip's centre frame resized and normalised as they were trained; the released "
            "code shows them the student's own pixels, of 112 px and with its mean subtracted"
        )


def _augmentation(setup: Setup) -> Iterator[str]:
    if not setup.is_video and setup.row.target != "stl10":
        yield (
            f"training views by {setup.augmentation.kind or setup.spec.plan_kind}, which is ours: the "
            f"released code has STL10's loader alone, and the paper does not say"
        )


def _epochs(setup: Setup) -> Iterator[str]:
    epochs, released = setup.config.epochs, _RELEASED_EPOCHS.get(setup.row.target)
    if released is None:
        yield f"{epochs:,} epochs are ours: the paper prints milestones and no number of epochs"
    elif epochs != released:
        yield f"{epochs:,} epochs; the released code takes {released}"


def _schedule(setup: Setup) -> Iterator[str]:
    config = setup.config
    if config.schedule == "plateau" and setup.row.sources:
        yield (
            "the rate drops when the primary loss of the test clips stands still; in the released code, when "
            "primary and auxiliary losses together do"
        )
    if config.schedule == "multistep" and config.gamma != _RELEASED_GAMMA:
        yield (
            f"the rate is multiplied by {config.gamma:g} at each milestone, which is ours: the paper "
            f"prints no factor, and the released code's {_RELEASED_GAMMA:g} goes with the milestones "
            f"{', '.join(map(str, _RELEASED_MILESTONES))}"
        )
    if setup.row.method == "dml":
        yield (
            "rates and epochs are those of the target's other rows; the paper trained DML in the same way as "
            "Zhang et al. (2018)"
        )
    if setup.row.primary_loss == "focal" and config.schedule != "cosine":
        yield (
            "the milestones of the target's other rows; the authors' page leaves open whether rows with "
            "focal loss had a cosine schedule"
        )


def _freezing(setup: Setup) -> Iterator[str]:
    if setup.config.freeze_until is not None:
        yield (
            f"all before {setup.config.freeze_until} is frozen with its batch norms in eval mode, and all "
            f"heads learn; the released command (ft_begin_index 4) leaves those batch norms in train mode "
            f"and gives every auxiliary weight a rate of 0"
        )


def _shortcut(setup: Setup) -> Iterator[str]:
    if setup.is_video and setup.config.freeze_until is None:
        yield "option-A shortcuts pass gradients on; in the released 3D code they carry none"


def _loss(setup: Setup) -> Iterator[str]:
    row, config = setup.row, setup.config
    if row.method == "kd":
        yield (
            f"T = {config.temperature:g} and alpha = {config.alpha:g} are ours: the paper says "
            f"that details of KD are those of Hinton et al. (2015)"
        )
    if row.method == "sskt" and config.aux_loss == "focal" and config.temperature != 1:
        yield (
            f"the auxiliary focal loss is softened by T = {config.temperature:g} and scaled by T^2; the "
            f"released one, which is in the 3D code alone, has no temperature"
        )
    if row.method == "sskt" and setup.is_video and config.aux_loss == "kd":
        yield "KD is that of the released image code; the released 3D code has CE and focal loss alone"
    if row.method in ("dml", "kd") and config.primary_loss == "bce":
        yield (
            "of several labels per image, networks agree class by class (two Bernoulli distributions each); "
            "the paper does not say how its networks did"
        )


def _sources(setup: Setup) -> Iterator[str]:
    if setup.row.method == "sskt" and setup.config.teacher_bn == "frozen":
        yield (
            "sources look in eval mode, frozen as the paper has them; the released code leaves them in train "
            "mode (batch statistics)"
        )


def _steps(setup: Setup) -> Iterator[str]:
    if setup.row.method == "maxl":
        yield (
            "student and label generator learn in the same step, the student with momentum; in the authors' "
            "code they learn in turns of an epoch by plain SGD"
        )


_NOTES: Mapping[str, Callable[[Setup], Iterator[str]]] = {
    "protocol": _protocol,
    "metric": _metric,
    "labels": _labels,
    "mean": _mean,
    "input": _input,
    "augmentation": _augmentation,
    "epochs": _epochs,
    "schedule": _schedule,
    "freezing": _freezing,
    "shortcut": _shortcut,
    "loss": _loss,
    "sources": _sources,
    "steps": _steps,
}


def footnotes(marks: Sequence[Mark]) -> list[str]:
    """The labels of a page with their notes, one line each."""
    return [f"{label}: {mark.note}" for mark, label in labels(marks).items()]
