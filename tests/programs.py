"""Tiny networks for tests: sources, saved with torch.export, and a student.

torch takes half a second to export even these, and nearly as long to open them again: each is exported once
per process, and each file opened once (`open_once`), wherever neither is what is tested.
"""

import copy
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from sskt.sources.exported_archive import open_archive
from sskt.students import WrappedBackbone

_exported: dict[tuple[object, ...], bytes] = {}
_opened: dict[str, ExportedProgram] = {}


class Tiny(nn.Module):
    """Average colour to seven logits; `bad` makes them NaN for bright pictures."""

    def __init__(self, seed: int = 0, bad: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 7)
        self.bad = bad
        with torch.no_grad():
            weights = torch.Generator().manual_seed(seed)
            self.linear.weight.copy_(torch.randn(7, 12, generator=weights))
            self.linear.bias.copy_(torch.rand(7, generator=weights) / 2 - 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        logits = self.linear(pooled)
        return torch.where(pooled.mean(dim=1, keepdim=True) > 2.0, torch.nan, logits) if self.bad else logits


class Pair(Tiny):
    """Two outputs, neither of which is called logits."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits * 2


def small_student() -> WrappedBackbone:
    """The same weights each time, for what holds of any network: the named ones take longer to train, to
    compile and to write.
    """
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3)
    return WrappedBackbone(nn.Sequential(*layers), side_px=16, blocks=("0", "3"), transfer_width=16)


def save_program(path: Path, network: nn.Module | None = None, *, fixed_batch: bool = False) -> Path:
    """Export a network for pictures of 8 to 512 px; by default `Tiny`."""
    network = (network or Tiny()).eval()
    if type(network) not in (Tiny, Pair):
        return _export(path, network, fixed_batch)
    weights = tuple(value.numpy().tobytes() for value in network.state_dict().values())
    key = (type(network), network.bad, fixed_batch, *weights)
    if key in _exported:
        path.write_bytes(_exported[key])
    else:
        _exported[key] = _export(path, network, fixed_batch).read_bytes()
    return path


def _export(path: Path, network: nn.Module, fixed_batch: bool) -> Path:
    size = torch.export.Dim("size", min=8, max=512)
    batch = None if fixed_batch else torch.export.Dim("batch", min=1, max=4096)
    shapes = ({0: batch, 2: size, 3: size},) if batch else ({2: size, 3: size},)
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def open_once(path: Path) -> ExportedProgram:
    """`open_archive`, which reads a file of the same bytes as one before no second time."""
    key = sha256(path.read_bytes()).hexdigest()
    if key not in _opened:
        _opened[key] = open_archive(path)
    program = copy.copy(_opened[key])
    program._state_dict = copy.deepcopy(program._state_dict)
    program._constants = copy.deepcopy(program._constants)
    return program
