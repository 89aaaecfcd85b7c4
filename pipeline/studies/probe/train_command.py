"""The command that trains a student with the probe of some stored sources as its teacher."""

from __future__ import annotations

from pipeline.data import DEFAULT_CLIP, DatasetSpec, parse_target
from pipeline.runtime import Paths, folder_words
from pipeline.studies.probe.figures import Figures
from sskt.errors import quoted
from sskt.sources import scaled_side


def train_command(
    target: str, chosen: Figures, *, paths: Paths, limit: int | None, labels_per_class: int | None
) -> str:
    """`sskt train` on the stores of `chosen`."""
    spec, plan = parse_target(target), chosen.plan
    settings = {
        "--plan": None if plan["kind"] == spec.plan_kind else plan["kind"],
        "--plan-seed": plan.get("seed") or None,
        "--size": None if plan["side_px"] == spec.side_px else plan["side_px"],
        "--source-size": _source_size(chosen, spec),
        "--clip-frames": _unless(plan.get("n_frames"), DEFAULT_CLIP[0]),
        "--stride": _unless(plan.get("stride"), DEFAULT_CLIP[1]),
        "--limit": limit,
        "--labels-per-class": labels_per_class,
    }
    words = [f"--target {quoted(target)}", f"--source {quoted('probe:' + '+'.join(chosen.sources))}"]
    words += [f"{option} {value}" for option, value in settings.items() if value is not None]
    return f"sskt train {' '.join([*words, *folder_words(paths.data_dir, paths.cache_dir)])}"


def _source_size(chosen: Figures, spec: DatasetSpec) -> int | None:
    """The --source-size without which the stores' own would not be found; see `Augmentation.input_map`."""
    side = scaled_side(chosen.student_px, spec.source_scale)
    is_rounded = side != chosen.student_px * spec.source_scale and not spec.holds_videos
    usual = (side, str(spec.source_scale) if is_rounded else None)
    return None if (chosen.source_px, chosen.source_scale) == usual else chosen.source_px


def _unless(value: int | None, usual: int) -> int | None:
    return None if value == usual else value
