"""Write a finished run's student to a file that other programs read, checked against the run on real
images.
"""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache import CacheError, Location, local_path, write_durably
from pipeline.data import Dataset, Plan, open_dataset, open_renderer
from pipeline.runtime import Execution, Paths, choose_execution, coerce
from pipeline.train.evaluate import Evaluator
from pipeline.train.finished.description import about, contract_of
from pipeline.train.finished.formats import FORMATS, Format
from pipeline.train.finished.student import FinishedRun, open_finished
from pipeline.train.run_folder import student_file
from pipeline.train.splits import scoring_split
from pipeline.train.whereabouts import whereabouts_of
from sskt.errors import RunError, SettingError, SsktError, shown
from sskt.students import PixelStudent, frames_seen

log = logging.getLogger(__name__)

IMAGES = 32  # that a file is checked on
_TOLERANCE = 1e-4  # of probabilities, and of logits as a share of the largest


def export(
    run: Location | str,
    *,
    format: str,  # noqa: A002 - the option's name
    out: Location | str | None = None,
    paths: Paths | None = None,
    target: str | None = None,
    which: str = "last",
    backbone: nn.Module | None = None,
) -> dict[str, Any]:
    """Write a run's student, "last" or "best", to `out` (default: in the run's folder) in one of FORMATS,
    with the normalisation inside, and class names and input contract in its metadata.

    The file is read back and its answers are compared with the run's, in fp32, for 32 images of the test
    split, which is looked for where the run found it, in `paths`, or where `target` says. Returns what was
    written and the largest differences. Raises RunError, and writes nothing, if they are too large, or a
    package is missing.
    """
    if format not in FORMATS:
        raise SettingError("format", f"is {format!r}, expected one of {', '.join(FORMATS)}")
    FORMATS[format].require(format)
    finished, execution = open_finished(run, clips=1), choose_execution(device="cpu")
    out = _file(finished, format, which, out)
    where = whereabouts_of(finished.folder, finished.config, paths=paths, target=target)
    split = scoring_split(finished.config, where.target, where.paths)
    dataset = _some(open_dataset(where.target, split, paths=where.paths))
    backbone = coerce.backbone(backbone)
    student = finished.student(which, backbone, execution, where.paths)
    evaluator, amp = Evaluator(dataset, finished.plan, execution), finished.config.amp
    reference = evaluator.predict(student, "fp32")[0]
    rounded = _compared(finished, evaluator.predict(student, amp)[0], reference) if amp != "fp32" else None
    pixels = frames_seen(student.backbone, _pixels(dataset, finished.plan, execution)).float() / 255
    network = PixelStudent(finished.bare_student(which, backbone)).requires_grad_(False)
    network.to(memory_format=torch.contiguous_format)  # a backbone of the caller's is still channels last
    figures = _write(
        finished, FORMATS[format], out, network.eval(), pixels, reference, about(finished, which)
    )
    if rounded is not None:
        log.warning(
            f"{finished.folder}: the run is scored in {amp}, and the file computes in fp32: for these images "
            f"that changes the top class of {len(dataset) - rounded['same_class']} and probabilities by at "
            f"most {rounded['max_difference']:.2g}"
        )
    shape = " x ".join(map(str, pixels.shape[1:]))
    return {"file": str(out), "format": format, "input": f"float32 N x {shape}", **figures}


def _file(finished: FinishedRun, format: str, which: str, out: Location | str | None) -> Location:  # noqa: A002
    """Where to write. Raises RunError for a name of another format, or the run's own files."""
    if out is None:
        return finished.folder / f"{'exported' if which == 'last' else 'exported-best'}.{format}"
    out = coerce.place(out, "out")
    if out.suffix != f".{format}":
        raise SettingError("out", f"is {out}, expected a name that ends in .{format}")
    own = [student_file(finished.folder, name).resolve() for name in ("last", "best")]
    if out.resolve() in own:
        raise SettingError("out", f"is {out}, the run's own student, which it needs; choose another name")
    return out


def _some(dataset: Dataset) -> Dataset:
    """Some samples, evenly spaced, so that they are of many classes."""
    return dataset.take(np.unique(np.linspace(0, len(dataset) - 1, IMAGES).round().astype(np.int64)))


def _pixels(dataset: Dataset, plan: Plan, execution: Execution) -> Tensor:
    renderer = open_renderer(dataset, plan, execution, batch_size=len(dataset))
    with closing(renderer), closing(renderer.render(0, [np.arange(len(dataset))])) as drawn:
        return next(drawn)


def _write(
    finished: FinishedRun,
    kind: Format,
    out: Location,
    network: PixelStudent,
    x: Tensor,
    reference: Tensor,
    notes: dict[str, str],
) -> dict[str, Any]:
    """Write the file if its answers to pixels `x` are the `reference`, (n, C) logits; returns how they
    differ.
    """
    example, contract = torch.cat([x, x])[:2], contract_of(finished)  # for one image, a graph may be of one
    try:
        if folder := local_path(out.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as beside:
            partial = Path(beside) / out.name
            kind.write(partial, network, example, contract, notes)
            with torch.inference_mode():  # in batches of different sizes
                parts = [kind.answer(partial, network, part) for part in (x[:1], x[1:]) if len(part)]
            figures = _compared(finished, torch.cat(parts), reference)
            _require_alike(finished, figures, out)
            write_durably(out, partial.read_bytes())
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror or error}); choose another --out"
        ) from error
    except (CacheError, SsktError):
        raise
    except Exception as error:
        reason = shown((str(error).strip() or type(error).__name__).splitlines()[0])
        raise RunError(
            f"{finished.folder}: its student {finished.config.model} cannot be exported as {out.suffix} "
            f"({reason}); try another --format"
        ) from error
    return figures


def _compared(finished: FinishedRun, answers: Tensor, reference: Tensor) -> dict[str, Any]:
    """The number of images, how many get the same class, and the largest differences of (n, C) logits."""
    shares = [z.sigmoid() if finished.several else z.softmax(dim=1) for z in (answers.float(), reference)]
    return {
        "images": len(reference),
        "same_class": int((answers.argmax(dim=1) == reference.argmax(dim=1)).sum()),
        "max_difference": float((shares[0] - shares[1]).abs().max()),
        "max_logit_difference": float((answers - reference).abs().max()),
        "max_logit": float(reference.abs().max()),
    }


def _require_alike(finished: FinishedRun, figures: dict[str, Any], out: Location) -> None:
    """Raise RunError if a file does not answer as the run does; values that are not numbers are not alike."""
    off, logit_off = figures["max_difference"], figures["max_logit_difference"]
    allowed = _TOLERANCE * max(1.0, figures["max_logit"])
    if off <= _TOLERANCE and logit_off <= allowed:
        return
    raise RunError(
        f"{out}: its answers are not those of {finished.folder}: probabilities differ by up to {off:.2g}, "
        f"expected at most {_TOLERANCE:g}, and logits by {logit_off:.2g}, expected at most {allowed:.2g}; "
        f"nothing is written, try another --format"
    )
