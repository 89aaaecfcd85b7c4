"""How our runs of table G differ from its paper, or fill in what it leaves open: words and footnotes."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data import Dataset
from pipeline.runtime import student_precision
from pipeline.studies.reproduce.campaign import GraphSettings
from pipeline.studies.reproduce.graph.needs import pretext_epochs, pretext_folder, teacher_folders
from pipeline.studies.reproduce.graph.rows import CLIPS, LAYER, PRETRAINED, GraphAttempt
from pipeline.studies.reproduce.marks import Mark
from pipeline.studies.reproduce.rows import TRAINING_SAMPLES
from pipeline.train import read_summary
from sskt.recipes import recipe_for
from sskt.sources import published_digest
from sskt.students import PRETEXTS

# what the tasks' own papers learned from
_ORIGINAL_DATA = (
    "UCF101, HMDB51 and ACT (sorting), KITTI and SF (egomotion), 100,000 YouTube videos (tracking), KITTI "
    "(prediction)"
)


def marks_of(attempt: GraphAttempt) -> list[Mark]:
    """Every difference that is known without data and teachers, in a fixed order."""
    return [Mark(word, note) for note_of in _NOTES for word, note in note_of(attempt)]


def teacher_marks(attempt: GraphAttempt) -> list[Mark]:
    """What is known of the teachers that are there: how long they learned, and how good they are alone."""
    if not attempt.needs_teachers:
        return []
    target, campaign = attempt.row.target, attempt.campaign
    pretexts = {task: read_summary(pretext_folder(task, target, campaign)) for task in PRETEXTS}
    steps = [f"{task} {s['iterations']:,}" for task, s in pretexts.items() if s and "iterations" in s]
    taught = {task: read_summary(folder) for task, folder in teacher_folders(target, campaign).items()}
    alone = [f"{task} {s[s['metric']]:.1f} %" for task, s in taught.items() if s]
    found = [Mark("iterations", f"of the pretext tasks on {target}: {', '.join(steps)}")] if steps else []
    if alone:
        metric = "mAP (VOC's area)" if attempt.is_multilabel else "top-1"
        found.append(
            Mark("alone", f"{metric} of the teachers of {target}, 3 clips a video: {', '.join(alone)}")
        )
    return found


def data_marks(attempt: GraphAttempt, dataset: Dataset) -> list[Mark]:
    """What is not as in the paper of a target's training videos as they are here."""
    marks, campaign, n = [], attempt.campaign, len(dataset)
    official = TRAINING_SAMPLES[attempt.row.target]
    if campaign.shrink.limit is None and n != official:
        marks.append(
            Mark("data", f"{n:,} training videos of {dataset.target}, not the official {official:,}")
        )
    short = int(dataset.sizes[:, 1:].min())
    if short < campaign.graph.side_px:
        marks.append(
            Mark(
                "packing",
                f"frames of {dataset.target} have a short side of {short} px, as packed, and crops are "
                f"enlarged to {campaign.graph.side_px}; sskt prepare --short-side 256 keeps more",
            )
        )
    return marks


def _shrunk(attempt: GraphAttempt) -> Iterator[tuple[str, str]]:
    campaign = attempt.campaign
    for mark in campaign.shrink.marks():
        yield mark.word, mark.note
    usual = GraphSettings()
    if campaign.graph.side_px != usual.side_px:
        yield (
            "size",
            f"networks see {campaign.graph.side_px} px; the paper prints none, ours are {usual.side_px}",
        )
    if campaign.graph.small:
        yield "small", "networks with an eighth of the channels"


def _optimizer(attempt: GraphAttempt) -> Iterator[tuple[str, str]]:
    recipe = recipe_for(attempt.row.target, "graph")
    if attempt.has_student and recipe.optimizer == "sgd":
        yield (
            "optimizer",
            (
                f"SGD with momentum {recipe.momentum:g} for the printed Adam, at the printed rate; weight "
                f"decay {recipe.weight_decay:g} is ours"
            ),
        )
    if attempt.row.method == PRETRAINED:
        yield (
            "finetuning",
            f"the rate of a pretrained student, {recipe.finetune_lr:g}, is ours: the paper prints none",
        )


def _protocol(attempt: GraphAttempt) -> Iterator[tuple[str, str]]:
    frame = "the centre frames of " if attempt.has_student else ""
    yield (
        "protocol",
        (
            f"a video's score is the mean over {frame}{CLIPS} evenly spaced clips of 16 frames; the paper "
            f"does not say"
        ),
    )
    if attempt.is_multilabel:
        yield "metric", "mean over the categories of the non-interpolated average precision"
    else:
        yield "split", "official split 1; the paper prints an average and does not say over what"


def _teachers(attempt: GraphAttempt) -> Iterator[tuple[str, str]]:
    if not attempt.needs_teachers:
        return
    campaign, target = attempt.campaign, attempt.row.target
    epochs = ", ".join(f"{task} {pretext_epochs(task, target, campaign)}" for task in PRETEXTS)
    yield (
        "pretext",
        (
            f"all pretext tasks learn from {target}'s own training videos without labels (epochs: {epochs}); "
            f"their papers' data are {_ORIGINAL_DATA}"
        ),
    )
    yield (
        "teachers",
        (
            "networks, fine-tuning and its schedule as far as the paper leaves them open are ours "
            "(docs/method.md, sections 3.3 to 3.5); one set of teachers serves all seeds of students"
        ),
    )


def _reading(attempt: GraphAttempt) -> Iterator[tuple[str, str]]:
    method, outputs = attempt.row.method, attempt.outputs
    if method == "kd uniform":
        yield "loss", "T = 2 and the teachers' share of 0.6 are ours: the paper prints neither for this row"
    elif outputs:
        yield (
            "reading",
            (
                "edges, temperatures, sketches, the kernel's width and the weights of the graphs' losses are "
                "not in the paper; ours are those of docs/method.md, sections 3.1 and 3.2"
            ),
        )
    if any(output.startswith("layer") for output in outputs):
        yield (
            "maps",
            (
                f"teachers' maps of layer {LAYER} are averaged to {attempt.grid} x {attempt.grid}, where the "
                f"paper has whole ones"
            ),
        )
    if method == "models ensemble":
        yield (
            "classifier",
            "the linear classifier is a logistic regression with C = 1 on standardised features",
        )


def _run(attempt: GraphAttempt) -> Iterator[tuple[str, str]]:
    campaign = attempt.campaign
    if attempt.has_student:
        yield "views", f"{campaign.views} views in turn; the paper does not say how images are augmented"
    name = "imagenet:alexnet"
    if attempt.row.method == PRETRAINED and name in campaign.paths.weights:
        file = campaign.paths.weights[name]
        if not published_digest(name, file):
            yield "weights", f"weights of {name} are {file.name}"
    precision = student_precision(campaign.amp, campaign.execution.device)
    if precision != "fp32":
        yield "precision", f"students and teachers train in {precision}"


_NOTES = (_shrunk, _optimizer, _protocol, _teachers, _reading, _run)
