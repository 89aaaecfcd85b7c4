"""Open an ONNX file in ONNX Runtime, as a module from images to rows.

A forward runs in the calling thread alone (`sskt.sources.frozen` runs several side by side). On CUDA the
provider for it computes, if the installed ONNX Runtime has that, else the CPU.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sskt.errors import SourceError
from sskt.extras import library
from sskt.sources.exported_program import Program
from sskt.sources.onnx_file import data_files

_FLOATS: dict[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_LOGITS = "logits"
_CUDA = "CUDAExecutionProvider"
_MAX_LISTED = 6


def read_network(path: Path) -> Program:
    """Open an ONNX file. Raises SourceError if it is missing or damaged, or does not map one batch of RGB
    images to one row of numbers each; MissingExtraError without ONNX Runtime.
    """
    if path.is_dir():
        raise SourceError(f"{path}: is a folder; give the .onnx file itself")
    if not path.is_file():
        raise SourceError(f"{path}: no such ONNX file; give one that torch.onnx.export wrote")
    runtime = library("onnxruntime", extra="onnx", needed_by=f"onnx:{path.name}")
    data_files(path)  # names those that are missing
    session = _open(runtime, path, "CPUExecutionProvider")
    image = _image_input(session, path)
    output, notes = _rows_output(session, path)
    batch, _, height, width = image.shape
    side_range = None
    if isinstance(height, int) or isinstance(width, int):
        if height != width:
            raise SourceError(
                f"{path}: takes images of {height}x{width}, expected square ones; export it for a square size"
            )
        side_range = (height, height)
    batches: tuple[int, int | None] = (batch, batch) if isinstance(batch, int) else (1, None)
    n_tried = batches[0] if batches[1] is not None else 1
    module = _Session(runtime, path, session, image.name, output.name, _FLOATS[image.type])
    n_numbers = output.shape[1] if isinstance(output.shape[1], int) else 0
    if not n_numbers:  # a dimension without a value: what it is is seen when it runs
        side = side_range[0] if side_range else 224
        n_numbers = int(module(torch.zeros(n_tried, 3, side, side)).shape[1])
    return Program(module, n_numbers, side_range, reads_clips=False, batch_range=batches, notes=notes)


class _Session(nn.Module):
    """A session as a module; one session a device, made when the first images lie there."""

    def __init__(
        self, runtime: Any, path: Path, session: Any, image: str, output: str, dtype: type[np.floating[Any]]
    ) -> None:
        super().__init__()
        self._runtime, self._path, self._lock = runtime, path, Lock()
        self._sessions = {"cpu": session}
        self._image, self._output, self._dtype = image, output, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Float32 (N, 3, H, W) to (N, K)."""
        pixels = x.detach().float().cpu().contiguous().numpy().astype(self._dtype, copy=False)
        (rows,) = self._on(x.device.type).run([self._output], {self._image: pixels})
        z = torch.from_numpy(np.asarray(rows, dtype=np.float32)).to(x.device)
        return z.flatten(start_dim=1)

    def _on(self, device: str) -> Any:
        if device not in self._sessions:
            with self._lock:
                if device not in self._sessions:
                    has_cuda = device == "cuda" and _CUDA in self._runtime.get_available_providers()
                    self._sessions[device] = (
                        _open(self._runtime, self._path, _CUDA) if has_cuda else self._sessions["cpu"]
                    )
        return self._sessions[device]


def _open(runtime: Any, path: Path, provider: str) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised as well
    failures = runtime.capi.onnxruntime_pybind11_state
    try:
        return runtime.InferenceSession(str(path), sess_options=options, providers=[provider])
    except failures.InvalidProtobuf as error:
        raise SourceError(f"{path}: is not a whole ONNX file; export it again") from error
    except (
        failures.Fail,
        failures.InvalidGraph,
        failures.InvalidArgument,
        failures.NotImplemented,
        failures.NoSuchFile,
        failures.RuntimeException,
        RuntimeError,
        ValueError,
    ) as error:
        raise SourceError(
            f"{path}: ONNX Runtime {runtime.__version__} cannot run it ({str(error).splitlines()[0][:200]}); "
            f"export it again for this version"
        ) from error


def _image_input(session: Any, path: Path) -> Any:
    """Its only input, if that is a batch of images."""
    inputs = session.get_inputs()
    image = inputs[0] if len(inputs) == 1 else None
    is_batch = image is not None and len(image.shape) == 4 and image.type in _FLOATS
    if image is None or not is_batch or (isinstance(image.shape[1], int) and image.shape[1] != 3):
        listed = ", ".join(_shown(each) for each in inputs[:_MAX_LISTED])
        remedy = "export the network for images alone"
        if image is not None and len(image.shape) == 4 and image.shape[-1] == 3:
            remedy = "export a network whose forward moves the channels to where it wants them"
        elif image is not None and image.type not in _FLOATS:
            remedy = "export a network whose forward undoes the normalisation and rounds"
        raise SourceError(
            f"{path}: takes {len(inputs)} input(s), {listed}, expected one float (N, 3, H, W); {remedy}"
        )
    return image


def _rows_output(session: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """The output that is one row an image: the only one, the one called logits, or the only (N, K), and which
    was chosen.
    """
    outputs = session.get_outputs()
    rows = [each for each in outputs if each.type in _FLOATS and _is_rows(each.shape)]
    named = [each for each in rows if _LOGITS in each.name.lower()]
    chosen = named or rows
    if len(chosen) != 1:
        listed = ", ".join(_shown(each) for each in outputs[:_MAX_LISTED])
        raise SourceError(
            f"{path}: returns {listed}, expected one (N, K) output of logits or of an embedding, or one "
            f"called logits; export the network with that output alone"
        )
    if len(outputs) == 1:
        return chosen[0], ()
    return chosen[0], (f"{path}: its output {chosen[0].name} is taken, of {len(outputs)} outputs",)


def _is_rows(shape: list[Any]) -> bool:
    """Whether it is (N, K), or (N, K, 1, 1)."""
    return len(shape) == 2 or (len(shape) == 4 and shape[2:] == [1, 1])


def _shown(value: Any) -> str:
    return f"{value.name} {value.type} ({', '.join(map(str, value.shape))})"
