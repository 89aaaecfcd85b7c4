"""The files that a student is exported to, and what each of them answers when it is read back.

Normalisation is inside: the input is float32 (N, 3, side, side), or (N, 3, D, side, side), RGB from 0 to 1,
the output is (N, C) logits, for any N. A .safetensors file holds the weights alone, and its metadata say how
the input is normalised.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sskt.errors import SettingError
from sskt.sources import METADATA, Contract, save_source
from sskt.sources.exported_program import read_program
from sskt.students import PixelStudent

_ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")
_INPUT, _OUTPUT = "images", "logits"  # of an ONNX file


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file. `write(path, network, example, contract, about)` writes one; `answer(path, network,
    x)` gives the file's logits for pixels `x`, and may overwrite the weights of `network`.
    """

    needs: tuple[str, ...]  # packages that the core installation does not bring
    write: Callable[[Path, PixelStudent, Tensor, Contract, Mapping[str, str]], None]
    answer: Callable[[Path, PixelStudent, Tensor], Tensor]

    def require(self, name: str) -> None:
        """Raise SettingError, saying what to install, if a package is missing."""
        if missing := [need for need in self.needs if importlib.util.find_spec(need) is None]:
            raise SettingError(
                "format",
                f"{name} needs {', '.join(self.needs)}, and {missing[0]} is not installed; run pip install "
                f"'sskt[{name}]'",
            )


def _write_pt2(
    path: Path, network: PixelStudent, example: Tensor, contract: Contract, about: Mapping[str, str]
) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    save_source(
        path,
        program,
        mean=0.0,
        std=1.0,
        returns="logits",
        size=contract.size,
        interpolation=contract.interpolation,
        classes=contract.classes,
        crop=contract.crop,
        notes=about,
    )


def _answer_pt2(path: Path, _network: PixelStudent, x: Tensor) -> Tensor:
    answer: Tensor = read_program(path).module(x)
    return answer


def _write_onnx(
    path: Path, network: PixelStudent, example: Tensor, contract: Contract, about: Mapping[str, str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own operators
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None  # noqa: S101 - as always with dynamo
    program.model.metadata_props.update(_metadata(contract, about))
    program.save(path)


def _answer_onnx(path: Path, _network: PixelStudent, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([_OUTPUT], {_INPUT: x.numpy()})[0])


def _write_safetensors(
    path: Path, network: PixelStudent, _example: Tensor, contract: Contract, about: Mapping[str, str]
) -> None:
    backbone = network.student.backbone
    contract = replace(contract, mean=backbone.mean, std=backbone.std)
    tensors = {name: value.contiguous() for name, value in network.student.state_dict().items()}
    save_file(tensors, path, metadata=_metadata(contract, about))


def _answer_safetensors(path: Path, network: PixelStudent, x: Tensor) -> Tensor:
    network.student.load_state_dict(load_file(path))
    answer: Tensor = network(x)
    return answer


def _metadata(contract: Contract, about: Mapping[str, str]) -> dict[str, str]:
    classes = json.dumps(list(contract.classes or ()))
    return {METADATA: json.dumps(contract.to_dict()), "classes": classes, **about}


FORMATS = {
    "onnx": Format(_ONNX_NEEDS, _write_onnx, _answer_onnx),
    "pt2": Format((), _write_pt2, _answer_pt2),
    "safetensors": Format((), _write_safetensors, _answer_safetensors),
}
