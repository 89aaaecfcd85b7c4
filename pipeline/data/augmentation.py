"""The augmentation that a user chooses: the plan of a view, and the input that sources get from it (f_s)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction

from pipeline.data.datasets import DatasetSpec
from pipeline.data.plan import (
    POLICIES,
    PRETEXT_PLANS,
    RANDAUGMENT,
    Augmented,
    Centre,
    CentreClip,
    CornerClip,
    Operations,
    PadCropFlip,
    Plan,
    PretextPlan,
    RandomResizedCropFlip,
)
from pipeline.runtime import coerce
from sskt.errors import RunError, SettingError
from sskt.normalise import ACTIVITYNET_MEAN, KINETICS_MEAN, WHOLE_LEVELS
from sskt.sources import (
    CENTER_FRAME,
    CLIP,
    LOGITS_OUTPUT,
    REFERENCE,
    ClipFrames,
    InputMap,
    SourceSpec,
    kind_of,
    scaled_side,
    shown,
)

DEFAULT_VIEWS = 10
DEFAULT_CLIP = (16, 1)  # frames and stride: the paper's
TRAINING_CLIPS = 3  # per test video, evaluated while a student trains: as many as released
_IMAGE_PLANS = ("pad-crop-flip", "random-resized-crop-flip", "centre")
_CLIP_PLANS = ("corner-clip", "centre-clip")
PLANS = (*_IMAGE_PLANS, *_CLIP_PLANS)
RELEASED, EARLIER = "released", "earlier"
SOURCE_INPUTS = (RELEASED, EARLIER)
_OPERATIONS = ("augment", "color_jitter", "random_erasing")  # a record holds them only if they are set


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The plan that a user chooses; None means the target's default."""

    seed: int = 0
    kind: str | None = None  # one of PLANS
    side_px: int | None = None  # what the student sees
    source_side_px: int | None = None  # what the sources see
    n_frames: int | None = None  # per clip
    stride: int | None = None  # between a clip's frames
    source_frames: str | None = None  # what image sources see of a clip; see sskt.sources.clip_frames
    source_input: str = RELEASED  # or EARLIER, as in older stores; see `input_map`
    augment: str | None = None  # randaugment, randaugment:N:M or trivialaugment
    # strengths of brightness, contrast, saturation and hue; without hue, or one for all but hue
    color_jitter: tuple[float, ...] | None = None
    random_erasing: float | None = None  # probability

    def __post_init__(self) -> None:
        """Raises RunError for numbers that are not whole, a seed too large for the plan, or an operation that
        there is not.
        """
        object.__setattr__(self, "seed", coerce.whole(self.seed, "seed", below=coerce.PLAN_SEEDS))
        for name in ("side_px", "source_side_px", "n_frames", "stride"):
            object.__setattr__(self, name, coerce.whole_or_none(getattr(self, name), name, low=0))
        jitter = None if self.color_jitter is None else _strengths(self.color_jitter)
        erasing = coerce.number_or_none(self.random_erasing, "random_erasing")
        object.__setattr__(self, "color_jitter", jitter if jitter is None or any(jitter) else None)
        object.__setattr__(self, "random_erasing", erasing or None)
        self.operations  # noqa: B018 - which refuses parameters out of range

    @property
    def operations(self) -> Operations:
        """What is done to the cropped and flipped pixels. Raises SettingError for what is out of range."""
        policy = Operations() if self.augment is None else _policy(coerce.text(self.augment, "augment"))
        jitter = self.color_jitter or (0.0,)
        if len(jitter) == 1:
            jitter = (*jitter * 3, 0.0)
        brightness, contrast, saturation, hue = (*jitter, 0.0)[:4]
        return replace(
            policy,
            color_jitter=(brightness, contrast, saturation, hue),
            random_erasing=self.random_erasing or 0.0,
        )

    def to_dict(self) -> dict[str, object]:
        """Plain data for a run's record; later fields appear only if they are set."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in fields.items() if k not in _OPERATIONS or v is not None}

    def training_plan(self, spec: DatasetSpec) -> Plan:
        """The plan of a training view. Raises RunError for an unknown kind or size."""
        plan = self._geometry(spec)
        return Augmented(plan, self.operations, self.seed) if self.operations else plan

    def _geometry(self, spec: DatasetSpec) -> Plan:
        """The plan of windows, flips and frames."""
        side = self._side(spec)
        kind = self.kind or spec.plan_kind
        possible = _CLIP_PLANS if spec.holds_videos else _IMAGE_PLANS
        if kind not in possible:
            raise SettingError("kind", f"is {kind!r}, for {spec.name} expected one of {', '.join(possible)}")
        if kind == "corner-clip":
            n_frames, stride = self._clip(spec)
            return CornerClip(side, seed=self.seed, n_frames=n_frames, stride=stride, flip=spec.flip)
        if kind == "pad-crop-flip":
            return PadCropFlip(side, seed=self.seed, pad=spec.pad, flip=spec.flip)
        if kind == "random-resized-crop-flip":
            return RandomResizedCropFlip(side, seed=self.seed, flip=spec.flip)
        return self.evaluation_plan(spec, n_clips=1)

    def pretext_plan(self, spec: DatasetSpec, task: str) -> PretextPlan:
        """The plan of a pretext task, which chooses frames itself. Raises RunError for a target of images,
        or a choice that the task makes.
        """
        if not spec.holds_videos:
            raise RunError(
                f"the pretext task {task} learns from videos, and {spec.name} holds images; name ucf101, "
                f"hmdb51 or videofolder:PATH"
            )
        for name in ("kind", "n_frames", "stride"):
            if (value := getattr(self, name)) is not None:
                raise SettingError(name, f"is {value}, and the pretext task {task} chooses it; leave it out")
        for name in _OPERATIONS:
            if (value := getattr(self, name)) is not None:
                raise SettingError(
                    name, f"is {value}, and the pretext task {task} shows frames as they are; leave it out"
                )
        return PRETEXT_PLANS[task](self._side(spec), self.seed, spec.flip)

    def evaluation_plan(self, spec: DatasetSpec, *, n_clips: int = TRAINING_CLIPS) -> Centre | CentreClip:
        """The centre view: the whole image for targets of small images, 224 of 256 px for the others;
        `n_clips` views for videos.
        """
        side = self._side(spec)
        if spec.holds_videos:
            n_frames, stride = self._clip(spec)
            return CentreClip(side, n_frames, stride, n_clips)
        return Centre(side, short_px=round(side * spec.short_px / spec.side_px))

    def input_map(self, spec: DatasetSpec, source: SourceSpec) -> InputMap:
        """f_s: the student's own pixels, upsampled by the target's factor (7/3 for small images) unless the
        source is a student of ours (for clips: one that was trained on their frames).

        For clips, an image source sees the frames that `source_frames` selects; "reference" does as the
        released code: the centre frame as the student sees it, minus ActivityNet's mean, without scaling.
        Sources that read clips see the student's clips.

        `source_input` EARLIER reproduces older stores: 32 px become 74 by 74/32 instead of 7/3 (a difference
        of 0.045 on average, normalised), and Kinetics' mean is subtracted where the released code subtracts
        ActivityNet's. Raises RunError if source and target do not fit.
        """
        if self.source_input not in SOURCE_INPUTS:
            raise SettingError(
                "source_input", f"is {self.source_input!r}, expected one of {', '.join(SOURCE_INPUTS)}"
            )
        earlier = self.source_input == EARLIER
        if not spec.holds_videos:
            if source.reads_clips:
                raise RunError(f"{source.name} reads clips, and {spec.name} holds images")
            scale = Fraction(1) if kind_of(source.task).sees_target_size else spec.source_scale
            side = scaled_side(self._side(spec), scale)
            is_rounded = (
                not (self.source_side_px or source.contract.size) and side != self._side(spec) * scale
            )
            by = str(scale) if is_rounded and not earlier else None
            return replace(self._contract_map(source, side, None), scale=by)
        n_frames, _ = self._clip(spec)
        if source.reads_clips:
            mean = (source.earlier_mean if earlier else None) or source.mean
            side = source.contract.size or self._side(spec)
            clip_map = self._contract_map(source, side, ClipFrames(CLIP, n_frames))
            return replace(clip_map, side_px=side, mean=mean)
        name = self.source_frames or CENTER_FRAME
        frames = ClipFrames.parse(name, n_frames)
        if source.output != LOGITS_OUTPUT and frames.averages_probabilities:
            raise RunError(
                f"--source-frames {name} averages log-probabilities, and {source.name} has none; take "
                f"frames:{frames.k}"
            )
        if name == REFERENCE:
            if kind_of(source.task).is_foreign and source.contract.declares_pixels:
                raise RunError(
                    f"--source-frames {REFERENCE} takes the released code's mean off and scales nothing, and "
                    f"{source.name} declares mean {shown(source.mean)}, std {shown(source.std)}; choose "
                    f"another --source-frames"
                )
            mean = KINETICS_MEAN if earlier else ACTIVITYNET_MEAN
            return InputMap(self._side(spec), mean, WHOLE_LEVELS, frames=frames)
        scale = Fraction(1) if source.sees_student_frames else spec.source_scale
        return self._contract_map(source, scaled_side(self._side(spec), scale), frames)

    def _contract_map(self, source: SourceSpec, side_px: int, frames: ClipFrames | None) -> InputMap:
        """The input map of a source's contract, at the user's side, else the declared one, else `side_px`."""
        contract = source.contract
        return InputMap(
            self.source_side_px or contract.size or side_px,
            source.mean,
            source.std,
            interpolation=contract.interpolation or "bilinear",
            frames=frames,
            channels=contract.channels or "rgb",
        )

    def _clip(self, spec: DatasetSpec) -> tuple[int, int]:
        """Frames and stride. Raises RunError unless both are at least 1."""
        n_frames = DEFAULT_CLIP[0] if self.n_frames is None else self.n_frames
        stride = DEFAULT_CLIP[1] if self.stride is None else self.stride
        if min(n_frames, stride) < 1:
            raise RunError(
                f"{spec.name}: clips of {n_frames} frames with stride {stride}, expected 1 or more"
            )
        return n_frames, stride

    def _side(self, spec: DatasetSpec) -> int:
        side = spec.side_px if self.side_px is None else self.side_px
        if side < 1:
            raise SettingError("side_px", f"is {side}, expected at least 1 pixel")
        return side


def _policy(text: str) -> Operations:
    """Operations from NAME or randaugment:N:M. Raises SettingError for anything else."""
    name, *numbers = text.split(":")
    if not numbers:
        return Operations(name)
    if name != RANDAUGMENT or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise SettingError(
            "augment",
            f"is {text!r}, expected {' or '.join(POLICIES)}, or {RANDAUGMENT}:N:M of N operations at "
            f"magnitude M, such as {RANDAUGMENT}:2:9",
        )
    return Operations(name, int(numbers[0]), int(numbers[1]))


def _strengths(jitter: object) -> tuple[float, ...]:
    """One, three or four numbers, or the same as text. Raises SettingError for anything else."""
    found = jitter
    if isinstance(jitter, str):
        try:
            found = list(map(float, jitter.split(",")))
        except ValueError:
            found = []
    values = tuple(map(float, coerce.numbers(found, "color_jitter")))
    if len(values) not in (1, 3, 4):
        raise SettingError(
            "color_jitter",
            f"is {jitter!r}, expected brightness,contrast,saturation,hue such as 0.4,0.4,0.4,0.1, the first "
            f"three, or one number for these three",
        )
    return values
