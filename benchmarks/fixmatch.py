"""The alternative to a teacher: FixMatch (Sohn et al., 2020), a ResNet20 on CIFAR-10 that has few labels and
makes its own for the other training images.

    python benchmarks/fixmatch.py --data-dir data --labels-per-class 100
    python benchmarks/fixmatch.py --data-dir data --labels-per-class 100 --method supervised

Student, optimiser, rate, schedule and weight decay are those of the project's fast recipe for CIFAR-10 (a
trapezoid of the rate over all steps, Nesterov, no decay on norms), not the paper's cosine, so that trainings
of as many steps compare.
A fixmatch step takes 32 labelled images and 96 of the pool, which is every other training image. The student
itself labels weak views of the 96; where it is at least 0.95 sure, it has to say the same of strong views.
"supervised" has the same labels and steps, and weak views of 128 labelled images in each step.

What a step costs beyond plain training on 128 images: a forward pass of the 96 weak views without gradients,
a quarter more arithmetic if a backward pass is two forward passes, and RandAugment, image by image. Measured:
1.3 x, 500 against 390 ms in fp32 and 670 against 510 ms in bf16 (CPU time, one thread of a Xeon with
AVX512-BF16 and without AMX), of which strong views are 28 ms.

One line of JSON per seed: test_top1 (last weights) and test_top1_ema (their moving average), in percent;
confident_share, the percentage of the pool that the last weights are sure of, and confident_top1, the
percentage of these that they name correctly, on images as they are (the pool's labels are read for this
figure alone); seconds, of the training without evaluation.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms import v2

from pipeline.api import Paths, open_dataset
from pipeline.data.datasets import subset
from pipeline.runtime import autocast, reuse_freed_memory, student_precision
from sskt.normalise import normalise
from sskt.optimiser import build_optimizer
from sskt.recipes import recipe_for
from sskt.schedules import trapezoid
from sskt.students import build_backbone
from sskt.students.student import Student

PAD_PX, CUTOUT_PX, GREY = 4, 16, 127
EMA_DECAY = 0.999
EVAL_BATCH = 500  # images
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Settings:
    """A training: `steps` of the optimiser on batches of images; `amp` is fp32 or bf16."""

    method: str  # fixmatch or supervised
    steps: int
    lr: float  # the peak of the trapezoid
    labelled_batch: int  # images of a step; supervised takes labelled images for both
    unlabelled_batch: int
    threshold: float  # probability from which an answer is a label
    unlabelled_weight: float
    amp: str


def main() -> None:
    args = _arguments()
    amp = student_precision(args.amp, CPU)
    fields = {name: getattr(args, name) for name in Settings.__slots__ if name != "amp"}
    settings = Settings(**fields, amp=amp)
    reuse_freed_memory()
    paths = Paths(data_dir=args.data_dir)
    training = open_dataset("cifar10", "train", paths=paths)
    test = open_dataset("cifar10", "test", paths=paths)
    n_labelled = args.labels_per_class * len(training.classes)
    if not 0 < n_labelled < len(training):
        raise SystemExit(f"--labels-per-class is {args.labels_per_class}: no labels, or no image without one")
    labelled = subset.stratify(training.labels, subset.draws(training.ids), n_labelled)
    pool = np.setdiff1d(np.arange(len(training)), labelled)
    images = torch.from_numpy(training.images(np.arange(len(training))))
    test_images = torch.from_numpy(test.images(np.arange(len(test))))
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        torch.manual_seed(seed)
        started = perf_counter()
        student, average = train(images, labelled, training.labels[labelled], settings)
        seconds = perf_counter() - started
        answers = probabilities(student, images[pool], amp).max(dim=1)
        confident = answers.values >= settings.threshold
        right = answers.indices == torch.from_numpy(training.labels[pool])
        line = {
            "seed": seed,
            "labels": len(labelled),
            **asdict(settings),
            "test_top1": top1(student, test_images, test.labels, amp),
            "test_top1_ema": top1(average, test_images, test.labels, amp),
            "confident_share": _percent(confident),
            "confident_top1": _percent(right[confident]) if confident.any() else None,
            "seconds": round(seconds, 1),
        }
        print(json.dumps(line), flush=True)


def train(
    images: Tensor, labelled: NDArray[np.int64], truth: NDArray[np.int64], settings: Settings
) -> tuple[Student, Student]:
    """A student from fresh weights, after its last step, and the moving average of its weights.

    images: uint8 (N, H, W, 3), of which the positions `labelled` (n,) have the labels `truth` (n,) and all
    others none.
    """
    recipe = recipe_for("cifar10", name="fast")
    student = Student(build_backbone("resnet20"), 10, {}, transfer_module=False)
    student.to(memory_format=torch.channels_last)
    student.train()
    average = copy.deepcopy(student)
    optimiser = build_optimizer(
        "sgd",
        [{"params": list(student.parameters())}],
        lr=settings.lr,
        momentum=recipe.momentum,
        dampening=0.0,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        decay_norms=recipe.decay_norms,
        fused=True,
    )
    schedule = LambdaLR(optimiser, trapezoid(settings.steps, recipe.warm_up, recipe.cool_down))
    with_label, labels = images[labelled], torch.from_numpy(truth)
    without_label = images[np.setdiff1d(np.arange(len(images)), labelled)]
    both = settings.labelled_batch + settings.unlabelled_batch
    labelled_batches = batches(
        len(labels), both if settings.method == "supervised" else settings.labelled_batch
    )
    unlabelled_batches = batches(len(without_label), settings.unlabelled_batch)
    for step in range(settings.steps):
        rows = next(labelled_batches)
        pixels = weak(with_label[rows])
        if settings.method == "supervised":
            loss = F.cross_entropy(logits_of(student, pixels, settings.amp), labels[rows])
        else:
            unlabelled = without_label[next(unlabelled_batches)]
            loss = fixmatch_loss(student, pixels, labels[rows], unlabelled, settings)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        update_average(average, student, step)
    return student, average


def fixmatch_loss(
    student: Student, labelled: Tensor, labels: Tensor, unlabelled: Tensor, settings: Settings
) -> Tensor:
    """L_labelled + weight * L_unlabelled, the latter a mean over all unlabelled images, 0 for unsure ones.

    labelled: weak views, uint8 (l, 3, H, W). unlabelled: images as they are, uint8 (u, H, W, 3).
    """
    with torch.no_grad():  # in train mode still, so that the batch norms' averages see weak views as well
        answers = logits_of(student, weak(unlabelled), settings.amp).softmax(dim=1).max(dim=1)
    sure = (answers.values >= settings.threshold).float()
    pixels = torch.cat([labelled, strong(weak(unlabelled))])
    logits = logits_of(student, pixels, settings.amp)
    by_image = F.cross_entropy(logits[len(labelled) :], answers.indices, reduction="none")
    on_labelled = F.cross_entropy(logits[: len(labelled)], labels)
    return on_labelled + settings.unlabelled_weight * (by_image * sure).mean()


def logits_of(student: Student, pixels: Tensor, amp: str) -> Tensor:
    """From uint8 (n, 3, H, W) to float32 (n, classes)."""
    inputs = normalise(pixels, student.backbone.mean, student.backbone.std)
    with autocast(CPU, amp):
        return student.predict(inputs.contiguous(memory_format=torch.channels_last)).float()


def batches(n: int, size: int) -> Iterator[Tensor]:
    """Without end, `size` of the rows 0 to n - 1: every row once, in a new order, before any comes again."""
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < size:
            queue = torch.cat([queue, torch.randperm(n)])
        yield queue[:size]
        queue = queue[size:]


def weak(images: Tensor) -> Tensor:
    """Shifted by up to 4 px, black where there is no image, and mirrored or not: from uint8 (n, H, W, 3) to
    uint8 (n, 3, H, W).
    """
    n, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, PAD_PX, PAD_PX, PAD_PX, PAD_PX))
    top, left = torch.randint(2 * PAD_PX + 1, (2, n, 1))
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns) + left
    rows = torch.arange(height) + top
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


randaugment = v2.RandAugment(num_ops=2)


def strong(images: Tensor) -> Tensor:
    """RandAugment of each image, then a grey square of 16 px around any pixel, cut off at the image's edge:
    uint8 (n, 3, H, W), as are `images`.
    """
    n, _, height, width = images.shape
    changed = torch.stack([randaugment(image) for image in images])
    top = torch.randint(height, (n, 1)) - CUTOUT_PX // 2
    left = torch.randint(width, (n, 1)) - CUTOUT_PX // 2
    in_rows = (torch.arange(height) >= top) & (torch.arange(height) < top + CUTOUT_PX)
    in_columns = (torch.arange(width) >= left) & (torch.arange(width) < left + CUTOUT_PX)
    return changed.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], GREY)


@torch.no_grad()
def update_average(average: Student, student: Student, step: int) -> None:
    """Move weights and batch norms' statistics towards the student's, after step 0, 1, ...

    The decay grows to 0.999, as TensorFlow's does when told the step: with 0.999 from the start the average
    of 1955 steps would be 15 % fresh weights.
    """
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    now = student.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(now[name], 1 - decay)


def probabilities(student: Student, images: Tensor, amp: str) -> Tensor:
    """From uint8 (n, H, W, 3) to float32 (n, classes); leaves the student in eval mode."""
    student.eval()
    with torch.inference_mode():
        chunks = (images[at : at + EVAL_BATCH] for at in range(0, len(images), EVAL_BATCH))
        logits = [logits_of(student, chunk.permute(0, 3, 1, 2), amp) for chunk in chunks]
    return torch.cat(logits).softmax(dim=1)


def top1(student: Student, images: Tensor, labels: NDArray[np.int64], amp: str) -> float:
    """The percentage of correct answers."""
    return _percent(probabilities(student, images, amp).argmax(dim=1) == torch.from_numpy(labels))


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.double().mean()), 2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="holds cifar-10-batches-bin")
    parser.add_argument("--method", choices=("fixmatch", "supervised"), default="fixmatch")
    parser.add_argument("--labels-per-class", type=int, default=100, help="drawn alike for all seeds")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1955)
    parser.add_argument("--lr", type=float, default=0.2, help="the peak of the trapezoid")
    parser.add_argument("--labelled-batch", type=int, default=32, help="labelled images of a step")
    parser.add_argument("--unlabelled-batch", type=int, default=96, help="unlabelled images of a step")
    parser.add_argument("--threshold", type=float, default=0.95, help="probability that makes a label")
    parser.add_argument("--unlabelled-weight", type=float, default=1.0, help="of the pool's loss")
    parser.add_argument("--amp", choices=("auto", "fp32", "bf16"), default="auto", help="of the student")
    return parser.parse_args()


if __name__ == "__main__":
    main()
