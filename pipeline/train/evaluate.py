"""Score a student on the evaluation views of a split: top-1, top-5 and loss of its primary head, or average
precision where images have several labels.

An image has one view. A video has several clips, evenly spaced or all of them, as in the released test script
(`EveryClip`), and its answer is the mean of their probabilities. Departs from the released code, whose
validation during training scores clips instead of videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data import (
    CentreClip,
    ClipPlan,
    Dataset,
    EveryClip,
    PickedFrames,
    Plan,
    centre_frame,
    in_batches,
    open_renderer,
)
from pipeline.runtime import Execution, InUse, World, autocast, memory_for_images, to_device
from sskt.errors import RunError, SettingError
from sskt.losses import multilabel_bce
from sskt.metrics import (
    class_precisions,
    confusion_matrix,
    multilabel_figures,
    per_class_accuracy,
    topk_correct,
)
from sskt.normalise import normalise
from sskt.sanity import LARGEST_LOGIT, has_settled, insane_rows, worst_value
from sskt.sources import exact_kernels
from sskt.students import Student, frames_seen

_BATCH = 250
_CUDA_BATCH = 2000  # of small images, whose forwards take less time than their launches
_SMALL_PX = 64  # side of an image up to which a batch has so many; larger ones are fewer in proportion
_MOST_ON_DEVICE = 1 << 26  # numbers that are kept there before they are copied to the host
_CLIPS = 16  # per batch
ALL_CLIPS = "all"
_OF_DEVICE = 8  # pixels may take an eighth of a CUDA device's free memory


class InsaneLogitsError(RunError):
    """A student's logits are not finite, or implausibly large; `ids` are the samples concerned."""

    def __init__(self, message: str, ids: list[int]) -> None:
        super().__init__(message)
        self.ids = ids


class Evaluator:
    """Scores students on one split. Pixels are rendered once, and kept if memory allows."""

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        execution: Execution,
        world: World | None = None,
        *,
        keeps: bool = True,
    ) -> None:
        """The ranks of `world` share the samples (default: this process sees all). Without `keeps`, pixels
        are rendered again for every student.
        """
        self._dataset, self._plan, self._execution = dataset, plan, execution
        self._world = world or World()
        mine = self._world.part(len(dataset))
        counts = _n_views_of(dataset, plan)
        self._positions, self._counts = np.arange(len(dataset))[mine], counts[mine]
        self._n_clips = int(counts.sum())  # over all ranks
        n_frames, self._batch = 1, _batch_size(plan.side_px, execution.device)
        if isinstance(plan, CentreClip | EveryClip):  # one picked frame is no larger than an image
            n_frames, self._batch = plan.n_frames, _CLIPS
        nbytes = 3 * plan.side_px**2 * n_frames * int(self._counts.sum())
        self._keeps = keeps and nbytes <= _room(execution.device)
        self._kept: dict[int, list[torch.Tensor]] = {}  # by view
        self.largest = 0.0  # absolute logit of the last evaluation

    def accuracy(self, student: Student, amp: str) -> dict[str, float]:
        """test_top1 and test_top5 in percent (top-5 only with more than five classes), and test_loss, the
        mean cross-entropy over views; for videos also test_clip_top1 and test_clip_top5, per clip. With
        several labels per sample, `multilabel_figures` and the mean binary cross-entropy. Over all ranks.
        """
        return self._figures(self.predict(student, amp))

    def report(self, student: Student, amp: str) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
        """`accuracy`, with each class's top-1 or average precision in percent (None for a class without
        samples) as `classes`; and the confusion matrix, true classes as rows, if images have one label each.
        For one process.
        """
        dataset = self._dataset
        logits = self.predict(student, amp)
        truth, n_classes = torch.from_numpy(dataset.labels), len(dataset.classes)
        answers = self._answers(logits)
        confusion = None
        if dataset.multi_hot is None:
            by_class = per_class_accuracy(answers, truth, n_classes=n_classes).tolist()
            confusion = confusion_matrix(answers, truth, n_classes=n_classes).numpy()
        else:
            by_class = class_precisions(answers.numpy(), dataset.multi_hot)
        figures = {
            "target": dataset.target,
            "split": dataset.split,
            "n_samples": len(dataset),
            **self._looked_at(),
            **self._figures(logits),
            "classes": {
                name: None if math.isnan(value) else 100 * value
                for name, value in zip(dataset.classes, by_class, strict=True)
            },
        }
        return figures, confusion

    def predict(self, student: Student, amp: str) -> Sequence[torch.Tensor]:
        """Primary logits per view, of those of this rank's samples that have the view, in index order:
        float32 (n, classes) on the CPU.

        Raises InsaneLogitsError for values that are not finite or implausibly large.
        """
        views = self._views(student, amp, student.predict, len(self._dataset.classes))
        return self._all_sane(student, views)

    def predict_with_features(self, student: Student, amp: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The probabilities of this rank's samples, float32 (n, classes), and what the student's head reads,
        float32 (n, n_features), each the mean over a sample's views. With several labels per image,
        classes are independent. Raises what `predict` raises.
        """
        n_classes = len(self._dataset.classes)

        def both(x: torch.Tensor) -> torch.Tensor:
            pooled = student.backbone(x).pooled
            return torch.cat([student.head(pooled), pooled], dim=1)

        views = list(self._views(student, amp, both, n_classes + student.head.in_features))
        logits = self._all_sane(student, [rows[:, :n_classes] for rows in views])
        return self._probabilities(logits), self._mean([rows[:, n_classes:] for rows in views])

    def classify(self, student: Student, amp: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores by which `accuracy` ranks the classes of each of this rank's samples, and their
        probabilities, the mean over a sample's views: float32 (n, classes) each. With several labels
        per image, classes are independent. Raises what `predict` raises.
        """
        logits = self.predict(student, amp)
        return self._answers(logits), self._probabilities(logits)

    def _views(
        self, student: Student, amp: str, answer: Callable[[torch.Tensor], torch.Tensor], n_numbers: int
    ) -> Iterator[torch.Tensor]:
        """`answer` to each view's normalised pixels, in eval mode: float32 (n, n_numbers) on the CPU."""
        student.eval()
        device, backbone = self._execution.device, student.backbone
        for view in range(self._counts.max(initial=1)):
            answers, in_use = [torch.empty(0, n_numbers)], InUse(device)
            latest: list[torch.Tensor] = []
            for pixels in self._pixels(view):
                with torch.inference_mode(), autocast(device, amp), exact_kernels(device):
                    seen = frames_seen(backbone, pixels)
                    z = answer(normalise(seen, backbone.mean, backbone.std))
                latest.append(z.float())
                in_use.hold(pixels)
                # on CUDA a copy to the host waits for the device, so there are few
                if device.type == "cpu" or sum(rows.numel() for rows in latest) > _MOST_ON_DEVICE:
                    answers.append(torch.cat(latest).cpu())
                    latest = []
            in_use.release()
            if latest:
                answers.append(torch.cat(latest).cpu())
            yield torch.cat(answers)

    def _all_sane(self, student: Student, views: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The (n, classes) logits of each view as they are. Raises InsaneLogitsError as `predict` does."""
        largest = LARGEST_LOGIT if has_settled(student) else torch.finfo(torch.float32).max
        self.largest = 0.0
        return [self._sane(logits, view, largest) for view, logits in enumerate(views)]

    def _sane(self, logits: torch.Tensor, view: int, largest: float) -> torch.Tensor:
        """Return a view's logits (n, classes). Raises InsaneLogitsError if one is larger than `largest`."""
        self.largest = max(self.largest, float(logits.abs().max()) if len(logits) else 0.0)
        if rows := insane_rows(logits, largest):
            ids = self._dataset.ids[self._positions[self._counts > view][rows]].tolist()
            raise InsaneLogitsError(
                f"the student's logits for {len(rows)} of {len(logits)} samples of "
                f"{self._dataset.target}/{self._dataset.split} make no sense, "
                f"{worst_value(logits[rows[0]]):.4g} for sample {ids[0]}, expected within {largest:g}",
                ids,
            )
        return logits

    def _figures(self, logits: Sequence[torch.Tensor]) -> dict[str, float]:
        """See `accuracy`; `logits` are those of `predict`."""
        if self._dataset.multi_hot is not None:
            return self._multilabel_figures(logits, self._dataset.multi_hot)
        truth = torch.from_numpy(self._dataset.labels[self._positions])
        of_views = torch.cat([truth[self._having(view)] for view in range(len(logits))])
        flat = torch.cat([*logits])
        ks = (1, 5) if len(self._dataset.classes) > 5 else (1,)
        sums = [float(torch.nn.functional.cross_entropy(flat, of_views, reduction="sum"))]
        answers = self._answers(logits)
        sums += [topk_correct(answers, truth, k=k) for k in ks]
        sums += [topk_correct(flat, of_views, k=k) for k in ks]
        summed = self._world.all_reduce(
            torch.tensor(sums, dtype=torch.float64, device=self._execution.device)
        ).tolist()
        n = len(self._dataset)
        loss, by_sample, by_view = summed[0], summed[1 : 1 + len(ks)], summed[1 + len(ks) :]
        figures = {f"test_top{k}": 100 * right / n for k, right in zip(ks, by_sample, strict=True)}
        if isinstance(self._plan, ClipPlan):
            clips = zip(ks, by_view, strict=True)
            figures |= {f"test_clip_top{k}": 100 * right / self._n_clips for k, right in clips}
        return {**figures, "test_loss": loss / self._n_clips}

    def _multilabel_figures(
        self, logits: Sequence[torch.Tensor], multi_hot: NDArray[np.int8]
    ) -> dict[str, float]:
        truth = torch.from_numpy(multi_hot[self._positions])
        of_views = torch.cat([truth[self._having(view)] for view in range(len(logits))])
        gathered = self._world.all_gather((self._answers(logits), torch.cat([*logits]), of_views))
        answers, flat, of_flat = (torch.cat(parts) for parts in zip(*gathered, strict=True))
        return {
            **multilabel_figures(answers.numpy(), multi_hot),
            "test_loss": float(multilabel_bce(flat, of_flat)),
        }

    def _answers(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """One answer per sample, (n, classes): for several views, the log of the sum of their probabilities,
        which ranks classes as the mean does, but also those whose probabilities underflow. With several
        labels per sample, the mean of each class's own probability, in float64, which tells sure ones apart.
        """
        if len(logits) == 1:
            return logits[0]
        if self._dataset.multi_hot is not None:
            total = logits[0].double().sigmoid()
            for view, z in enumerate(logits[1:], start=1):
                total[self._having(view)] += z.double().sigmoid()
            return total / torch.from_numpy(self._counts)[:, None]
        answers = logits[0].log_softmax(dim=1)
        for view, z in enumerate(logits[1:], start=1):
            having = self._having(view)
            answers[having] = torch.logaddexp(answers[having], z.log_softmax(dim=1))
        return answers

    def _probabilities(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean over a sample's views of its probabilities, float32 (n, classes)."""
        several = self._dataset.multi_hot is not None
        return self._mean([z.sigmoid() if several else z.softmax(dim=1) for z in logits])

    def _mean(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean over a sample's views, each of which has a row for every sample that has the view."""
        total = views[0].clone()
        for view, rows in enumerate(views[1:], start=1):
            total[self._having(view)] += rows
        return total / torch.from_numpy(self._counts)[:, None]

    def _having(self, view: int) -> torch.Tensor:
        """Which of this rank's samples have a view: bool (n,)."""
        return torch.from_numpy(self._counts > view)

    def _looked_at(self) -> dict[str, int]:
        """The number of clips per video, or in total if videos have different numbers."""
        if isinstance(_of_clips(self._plan), EveryClip):
            return {"n_clips_of_all_videos": self._n_clips}
        n_clips = int(self._counts.max(initial=1))
        return {"n_clips": n_clips} if n_clips > 1 else {}

    def _pixels(self, view: int) -> Iterator[torch.Tensor]:
        if view in self._kept:
            yield from self._kept[view]
            return
        drawn: list[torch.Tensor] = []
        renderer = open_renderer(self._dataset, self._plan, self._execution, batch_size=self._batch)
        with closing(renderer):
            positions = self._positions[self._counts > view]
            for drawn_pixels in renderer.render(view, in_batches(positions, self._batch)):
                pixels = to_device(drawn_pixels, self._execution.device)
                if self._keeps:
                    drawn.append(pixels)
                yield pixels
        if self._keeps:
            self._kept[view] = drawn


def _batch_size(side_px: int, device: torch.device) -> int:
    """Images per batch; on CUDA more of small ones."""
    if device.type == "cpu":
        return _BATCH
    return max(_BATCH, min(_CUDA_BATCH, _CUDA_BATCH * _SMALL_PX**2 // side_px**2))


def _room(device: torch.device) -> int:
    """Bytes that kept pixels may take on the device that renders them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // _OF_DEVICE
    return memory_for_images() // 4


def of_clips(
    plan: CentreClip, clips: int | str, student_frames: str | None = None
) -> CentreClip | EveryClip | PickedFrames:
    """The evaluation views for `clips` clips per video, a number or ALL_CLIPS; `student_frames` is the
    config's. Raises SettingError for anything else.
    """
    views: CentreClip | EveryClip
    if clips == ALL_CLIPS:
        views = EveryClip(plan.side_px, plan.n_frames, plan.stride)
    elif not isinstance(clips, int) or clips < 1:
        raise SettingError("clips", f"is {clips!r}, expected a whole number of at least 1, or {ALL_CLIPS}")
    else:
        views = replace(plan, n_clips=clips)
    return views if student_frames is None else centre_frame(views)


def _of_clips(plan: Plan) -> Plan:
    """The plan of the clips that frames are picked from, or `plan` itself."""
    return plan.plan if isinstance(plan, PickedFrames) else plan


def _n_views_of(dataset: Dataset, plan: Plan) -> NDArray[np.int64]:
    """How many views each sample has: int64 (N,)."""
    plan = _of_clips(plan)
    if isinstance(plan, EveryClip):
        return plan.n_clips_of(dataset.sizes)
    n_views = plan.n_clips if isinstance(plan, CentreClip) else 1
    return np.full(len(dataset), n_views, dtype=np.int64)
