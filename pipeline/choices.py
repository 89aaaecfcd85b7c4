"""What a user chooses and what is chosen for them: places, the augmentation plan, device and precision."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import torch

from cache.storage import Location
from pipeline import given
from pipeline.execution import Execution, processes_here
from pipeline.plan import Centre, CentreClip, CornerClip, PadCropFlip, Plan, RandomResizedCropFlip
from pipeline.targets.spec import TargetSpec
from sskt.download import known_digest_of
from sskt.errors import RunError, SourceError
from sskt.normalise import ACTIVITYNET_MEAN, KINETICS_MEAN, WHOLE_LEVELS
from sskt.sources.clip_frames import CENTER_FRAME, CLIP, REFERENCE, ClipFrames
from sskt.sources.contract import Contract, shown
from sskt.sources.input_map import InputMap, scaled_side
from sskt.sources.registry import parse_source
from sskt.sources.run import WEIGHTS
from sskt.sources.source import SourceSpec

DEFAULT_VIEWS = 10
DEFAULT_CLIP = (16, 1)  # frames and stride: the paper's
TRAINING_CLIPS = 3  # of every test video that are looked at while a student trains: as many as released
_PICTURE_PLANS = ("pad-crop-flip", "random-resized-crop-flip", "centre")
_CLIP_PLANS = ("corner-clip", "centre-clip")
PLANS = (*_PICTURE_PLANS, *_CLIP_PLANS)
RELEASED, EARLIER = "released", "earlier"
SOURCE_INPUTS = (RELEASED, EARLIER)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie: data sets and weights, stores and indexes, files that stand in for official weights,
    and what is said of sources that their files do not say.
    """

    data_dir: Path = Path("data")
    cache_dir: Location = Path("stores")  # or an object store's URL
    weights: Mapping[str, Path] = field(default_factory=dict)  # source name -> local file
    contracts: Mapping[str, Contract] = field(default_factory=dict)  # source name -> what the user says of it
    moved: Mapping[str, Path] = field(default_factory=dict)  # program: or run: -> where a run now finds it

    def __post_init__(self) -> None:
        """Paths may be given as text. Raises RunError for what is none."""
        object.__setattr__(self, "data_dir", given.path(self.data_dir, "data_dir"))
        object.__setattr__(self, "cache_dir", given.place(self.cache_dir, "cache_dir"))
        if not isinstance(self.weights, Mapping):
            raise RunError(
                f"weights are {self.weights!r}, expected paths by source, such as {{'imagenet': PATH}}"
            )
        files = {name: given.path(path, f"weights[{name!r}]") for name, path in self.weights.items()}
        object.__setattr__(self, "weights", files)

    @property
    def weights_dir(self) -> Path:
        """Where official weights are downloaded to."""
        return self.data_dir / "weights"

    def weights_sha256(self, source: str) -> str | None:
        """The sha256 of the weights that `source` would have here; None if they are not on this machine.

        Raises SourceError for an unknown source, or for local weights that cannot be read.
        """
        spec = parse_source(source)
        path = self.weights.get(source)
        if path is None:
            if spec.task in ("program", "run"):
                path = Path(self.lying(source).partition(":")[2]).expanduser()
                path = path / WEIGHTS if spec.task == "run" else path
            else:
                path = self.weights_dir / (spec.url or source).rpartition("/")[2]
            if not path.is_file():
                return None
        try:
            return known_digest_of(path)
        except OSError as error:
            raise SourceError(
                f"{path}: cannot be read ({error.strerror}); check --weights {source}=PATH"
            ) from error

    def lying(self, source: str) -> str:
        """A source by the name that opens it here: a program or a run by where it lies now."""
        path = self.moved.get(source)
        return source if path is None else f"{source.partition(':')[0]}:{path}"

    def told(self, source: str) -> Contract | None:
        """What the user says of a source; programs and runs may be named without their folder."""
        own = parse_source(source).name
        matching = [told for name, told in self.contracts.items() if parse_source(name).name == own]
        return self.contracts.get(source, matching[0] if matching else None)

    def of(self, sources: Collection[str]) -> Places:
        """Without the weights and contracts of other sources, which a run would reject as typos."""
        return replace(
            self,
            weights={name: path for name, path in self.weights.items() if name in sources},
            contracts={name: told for name in sources if (told := self.told(name)) is not None},
            moved={name: path for name, path in self.moved.items() if name in sources},
        )

    @property
    def index_dir(self) -> Path:
        """Where target indexes are kept: beside the stores, since data may lie on a read-only disk."""
        return self.cache_dir / "indexes" if isinstance(self.cache_dir, Path) else self.data_dir / "indexes"

    @property
    def kernels_file(self) -> Path:
        """Where it is kept which kernels were tested."""
        return self.index_dir.parent / "kernels.json"


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The plan that a user asks for; what is None is the target's own default."""

    seed: int = 0
    kind: str | None = None  # one of PLANS
    side_px: int | None = None  # what the student sees
    source_side_px: int | None = None  # what the sources see
    n_frames: int | None = None  # of a clip
    stride: int | None = None  # between a clip's frames
    source_frames: str | None = None  # what sources for pictures see of a clip; see sskt.sources.clip_frames
    source_input: str = RELEASED  # or EARLIER: how stores were made before; see `input_map`

    def __post_init__(self) -> None:
        """Raises RunError for numbers that are not whole, or a seed that the plan has no room for."""
        object.__setattr__(self, "seed", given.whole(self.seed, "seed", below=given.PLAN_SEEDS))
        for name in ("side_px", "source_side_px", "n_frames", "stride"):
            object.__setattr__(self, name, given.whole_or_none(getattr(self, name), name, low=0))

    def training_plan(self, spec: TargetSpec) -> Plan:
        """The plan of a training view. Raises RunError for an unknown kind or size."""
        side = self._side(spec)
        kind = self.kind or spec.plan_kind
        possible = _CLIP_PLANS if spec.videos else _PICTURE_PLANS
        if kind not in possible:
            raise RunError(f"--plan is {kind!r}, for {spec.name} expected one of {', '.join(possible)}")
        if kind == "corner-clip":
            n_frames, stride = self._clip(spec)
            return CornerClip(side, seed=self.seed, n_frames=n_frames, stride=stride, flip=spec.flip)
        if kind == "pad-crop-flip":
            return PadCropFlip(side, seed=self.seed, pad=spec.pad, flip=spec.flip)
        if kind == "random-resized-crop-flip":
            return RandomResizedCropFlip(side, seed=self.seed, flip=spec.flip)
        return self.evaluation_plan(spec, n_clips=1)

    def evaluation_plan(self, spec: TargetSpec, *, n_clips: int = TRAINING_CLIPS) -> Centre | CentreClip:
        """The centre view: the whole picture of the small-picture targets, 224 of 256 of the others; of
        videos, `n_clips` views.
        """
        side = self._side(spec)
        if spec.videos:
            n_frames, stride = self._clip(spec)
            return CentreClip(side, n_frames, stride, n_clips)
        return Centre(side, short_px=round(side * spec.short_px / spec.side_px))

    def input_map(self, spec: TargetSpec, source: SourceSpec) -> InputMap:
        """f_s: the student's own pixels, upsampled by the target's factor (7/3 for small pictures), but for
        sources that are students of ours.

        Of clips, a source for pictures sees what `source_frames` says; "reference" is the released code's
        way: the centre frame as the student sees it, with ActivityNet's mean taken off and nothing scaled.
        Sources that read clips see the student's clips.

        `source_input` EARLIER, for stores that were made before: 32 px become 74 by 74/32 and not by 7/3
        (a difference of 0.045 on average, normalised), and Kinetics' mean is taken off where the released
        code takes ActivityNet's. Raises RunError where target and source do not go together.
        """
        if self.source_input not in SOURCE_INPUTS:
            raise RunError(
                f"--source-input is {self.source_input!r}, expected one of {', '.join(SOURCE_INPUTS)}"
            )
        earlier = self.source_input == EARLIER
        if not spec.videos:
            if source.reads_clips:
                raise RunError(f"{source.name} reads clips, and {spec.name} holds pictures")
            scale = Fraction(1) if source.task == "run" else spec.source_scale
            side = scaled_side(self._side(spec), scale)
            is_rounded = (
                not (self.source_side_px or source.contract.size) and side != self._side(spec) * scale
            )
            by = str(scale) if is_rounded and not earlier else None
            return replace(self._wanted(source, side, None), scale=by)
        n_frames, _ = self._clip(spec)
        if source.reads_clips:
            of_3d_resnets = earlier and source.task == "kinetics" and source.mean == ACTIVITYNET_MEAN
            mean = KINETICS_MEAN if of_3d_resnets else source.mean
            side = source.contract.size or self._side(spec)
            wanted = self._wanted(source, side, ClipFrames(CLIP, n_frames))
            return replace(wanted, side_px=side, mean=mean)
        name = self.source_frames or CENTER_FRAME
        frames = ClipFrames.parse(name, n_frames)
        if name == REFERENCE:
            if source.task == "program" and source.contract.declares_pixels:
                raise RunError(
                    f"--source-frames {REFERENCE} takes the released code's mean off and scales nothing, and "
                    f"{source.name} declares mean {shown(source.mean)}, std {shown(source.std)}; choose "
                    f"another --source-frames"
                )
            mean = KINETICS_MEAN if earlier else ACTIVITYNET_MEAN
            return InputMap(self._side(spec), mean, WHOLE_LEVELS, frames=frames)
        return self._wanted(source, scaled_side(self._side(spec), spec.source_scale), frames)

    def _wanted(self, source: SourceSpec, side_px: int, frames: ClipFrames | None) -> InputMap:
        """What a source's contract wants, at the side that is asked for, that it declares, or `side_px`."""
        contract = source.contract
        return InputMap(
            self.source_side_px or contract.size or side_px,
            source.mean,
            source.std,
            interpolation=contract.interpolation or "bilinear",
            frames=frames,
            channels=contract.channels or "rgb",
        )

    def _clip(self, spec: TargetSpec) -> tuple[int, int]:
        """Frames and stride. Raises RunError unless both are at least 1."""
        n_frames = DEFAULT_CLIP[0] if self.n_frames is None else self.n_frames
        stride = DEFAULT_CLIP[1] if self.stride is None else self.stride
        if min(n_frames, stride) < 1:
            raise RunError(
                f"{spec.name}: clips of {n_frames} frames with stride {stride}, expected 1 or more"
            )
        return n_frames, stride

    def _side(self, spec: TargetSpec) -> int:
        side = spec.side_px if self.side_px is None else self.side_px
        if side < 1:
            raise RunError(f"--size is {side}, expected at least 1 pixel")
        return side


def choose_execution(
    *,
    device: str = "auto",
    amp: str = "auto",
    renderer: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    compiled: bool | None = None,
) -> Execution:
    """The device and how frozen networks run; `auto` takes CUDA (torchrun's local rank's) and the fastest
    precision that is exact enough. `threads` decode (left out: one a core, shared by torchrun's processes
    here); `batch_size` is the rows of one forward. A CUDA device becomes torch's current one.
    """
    threads = given.whole_or_none(threads, "threads")
    batch_size = given.whole_or_none(batch_size, "batch_size")
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # for --deterministic; torch reads it once, at its first use of cuBLAS
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    compute = None if amp == "auto" else amp
    threads = threads or max(1, (os.cpu_count() or 1) // processes_here())
    return Execution(chosen, compute, renderer, threads, rows=batch_size, compiled=compiled)


def _device(name: str) -> torch.device:
    """Raises RunError for what is no device, or none that is here."""
    local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name == "auto":
        name = local if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(local if name == "cuda" else name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise RunError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RunError(
            f"--device is {name}, and PyTorch sees {torch.cuda.device_count()} CUDA device(s) here; "
            f"use --device cpu"
        )
    return chosen


def student_precision(amp: str, device: torch.device) -> str:
    """`amp`, or for auto what a student trains fastest in: bf16 on devices that compute in it, else fp16 on
    CUDA and fp32 on a CPU. Raises RunError for fp16 on a CPU.
    """
    on_cuda = device.type == "cuda"
    if amp == "fp16" and not on_cuda:
        raise RunError(
            "--amp fp16 trains on CUDA alone, a CPU is slower in it than in fp32; use fp32 or bf16"
        )
    if amp != "auto":
        return amp
    if on_cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def channels_last(device: torch.device) -> bool:
    """Whether a student trains faster with its channels last: 1.2 x on a CPU (ResNet20, 32 px)."""
    return device.type in ("cuda", "cpu")
