"""What every method has in common: from a batch's pixels, labels and source logits to the losses of one step.

A method is one module, so that it can be compiled, or run on several devices, as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sskt.errors import RunError, SettingError
from sskt.normalise import normalise
from sskt.students import Backbone, Student, frames_seen, input_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """What every method's config is."""


class Mixture(NamedTuple):
    """Of each row n of a batch: `share` of itself, and the rest of row `partner[n]`."""

    partner: Tensor  # int64 (N,)
    share: Tensor  # float32 scalar, in [0, 1]


class Losses(NamedTuple):
    """Means over the batch; only `total` carries a gradient."""

    total: Tensor  # float32 scalar
    primary: Tensor  # float32 scalar
    auxiliary: Tensor  # float32 (M,), in the order of the method's auxiliary_names, not weighted
    correct: Tensor  # int64 scalar: rows whose largest primary logit is a label of theirs (mixed: of row n)
    recorded: Tensor  # float32 (R,), in the order of the method's recorded_names


@dataclass(frozen=True, slots=True)
class Parts:
    """What a method builds its networks from. New weights come from torch's global generator, in the order in
    which they are asked for.
    """

    backbone: Backbone
    another: Callable[[], Backbone]  # makes a second backbone like the first
    n_classes: int
    source_classes: Mapping[str, int]  # by name, of those that give no maps; none without sources
    channels_last: bool
    init: str = "torch"  # of the heads: one of sskt.students.initialise.INITS
    dropout: float = 0.0  # before the primary head
    freeze_until: str | None = None  # the part of a student's backbone that stays as it is ends before this
    probe: str | None = None  # the source that was fitted to the target's labels, if one was
    source_maps: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)  # (C, g, g) by name

    def student(
        self,
        backbone: Backbone,
        heads: Mapping[str, int],
        *,
        transfer_module: bool = False,
        aux_head: str = "linear",
    ) -> Student:
        """A student of the target's classes, with an auxiliary head of so many numbers for each name."""
        made = Student(
            backbone,
            self.n_classes,
            heads,
            transfer_module,
            init=self.init,
            dropout=self.dropout,
            aux_head=aux_head,
        )
        if self.freeze_until is not None:
            made.freeze_until(self.freeze_until)
        return made


class Method(nn.Module):
    """A student and how it learns. A method is one file: a subclass that says what one step minimises
    (`forward`) and how it is built, with a config of its own, and a line in `sskt.methods`.
    """

    Config: ClassVar[type[MethodConfig]]
    needs: ClassVar[tuple[str, ...]] = ()  # outputs of sources that it can learn from, e.g. "logits", "map"
    shares_classes: ClassVar[bool] = False  # whether its sources know the target's own classes
    several_labels: ClassVar[bool] = True  # what it can do with: several labels per image,
    several_processes: ClassVar[bool] = True
    mixes: ClassVar[bool] = True  # MixUp and CutMix
    of_heads: ClassVar[
        tuple[str, ...]
    ] = ()  # settings that only source heads read, which a probe has none of
    reads_unlabelled: ClassVar[bool] = False  # samples without a label of their own
    fp16: ClassVar[bool] = True
    adam: ClassVar[bool] = True  # as its optimiser
    compiles: ClassVar[bool] = True
    every_number: ClassVar[bool] = False  # whether it needs a source's whole row, and not only its top k
    exports: ClassVar[str] = "last"  # what a run keeps of it: its student, or of a pretext task the "encoder"

    @classmethod
    def build(cls, config: Any, parts: Parts) -> Method:
        """The method with `config`, one of `cls.Config`. Raises RunError for settings that do not go
        together.
        """
        raise NotImplementedError

    @classmethod
    def reduction(cls, primary_loss: str) -> str:  # noqa: ARG003
        """The `kd_reduction` that is meant where the user names none."""
        return "mean"

    @classmethod
    def inner_gradients(cls, config: Any) -> str | None:  # noqa: ARG003
        """The setting because of which gradients are taken within a step, which cannot be compiled then."""
        return None

    def __init__(self, student: Student, config: Any, *, channels_last: bool) -> None:
        super().__init__()
        self.student = student  # the one that is scored and kept
        self.config = config
        self.auxiliary_names: tuple[str, ...] = student.source_names
        self.recorded_names: tuple[str, ...] = ()
        self.rate = 0.0  # the learning rate in force, for methods that look ahead
        self.progress = 0.0  # fraction of the epochs that are over, for methods that change with it
        self.labelled_share = 1.0  # of the samples of a step; see `LabelConfig.primary`
        # the gradient scaler's, for methods that take gradients within their step
        self.scaled: Callable[[Tensor], Tensor] = _as_it_is
        self._layout = torch.contiguous_format
        if channels_last:
            self._layout = input_layout(student, reads_clips=student.backbone.reads_clips)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],
        mixed: Mixture | None = None,
        mixed_sources: Mixture | None = None,
    ) -> Losses:
        """Losses of one batch: pixels uint8 (N, 3, H, W) or (N, 3, D, H, W), labels int64 (N,) or multi-hot
        (N, C), each source's logits (N, K), or maps (N, C, g, g).

        `mixed` says that the pixels are mixtures: the primary loss is that of both labels, by their share.
        `mixed_sources` says it of the source logits, which then are those of the unmixed pictures; where the
        sources have seen the mixtures themselves it is None.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser moves; a group may have settings of its own."""
        return [{"params": [weight for weight in self.parameters() if weight.requires_grad]}]

    def _seen(self, pixels: Tensor) -> Tensor:
        """Pixels as the student wants them: of clips the centre frame, if it reads images."""
        backbone = self.student.backbone
        seen = frames_seen(backbone, pixels)
        return normalise(seen, backbone.mean, backbone.std).contiguous(memory_format=self._layout)


def require_teachers(method: str, teachers: Mapping[str, int], n_classes: int) -> None:
    """Raise RunError unless a method's teachers, given by their number of classes, have the target's."""
    for name, n in teachers.items():
        if n != n_classes:
            raise RunError(
                f"--method {method}: {name} knows {n} classes and the target has {n_classes}; "
                f"name a teacher of the same task, such as probe, or run:FOLDER, a run of ours"
            )
    if not teachers:
        raise RunError(
            f"--method {method} needs a teacher of the same task; add --source probe or --source run:FOLDER"
        )


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise SettingError unless a setting is one of some words."""
    if value not in choices:
        raise SettingError(name, f"is {value!r}, expected one of {', '.join(choices)}")


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise SettingError unless a setting is a number from `low` to `high`."""
    if low <= value <= high and value < math.inf:
        return
    most = "" if high == math.inf else f" and at most {high:g}"
    least = "more than 0" if low == math.ulp(0) else f"at least {low:g}"
    raise SettingError(name, f"is {value}, expected {least}{most}")


def of_both(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, truth: Tensor, mixture: Mixture | None
) -> Tensor:
    """The loss against a row's own truth and its partner's, by their share of the mixture."""
    if mixture is None:
        return loss(logits, truth)
    return mixture.share * loss(logits, truth) + (1 - mixture.share) * loss(logits, truth[mixture.partner])


def stacked(values: list[Tensor], like: Tensor) -> Tensor:
    """Scalars as one detached vector, also where there are none."""
    return torch.stack(values).detach() if values else like.new_zeros(0)


def n_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """See `Losses.correct`."""
    said = logits.detach().argmax(dim=1)
    return (said == labels if labels.ndim == 1 else labels.gather(1, said[:, None]) == 1).sum()


def _as_it_is(loss: Tensor) -> Tensor:
    """No scaling, as in every precision but float16."""
    return loss
