"""Where a program's contract is declared: by the user, inside its .pt2, or in a JSON file beside it.

What the user says comes before the file itself, and that before the JSON file. Reading runs no code: inside
is one JSON text of the archive, and the program is not loaded for it.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from sskt.errors import SourceError
from sskt.sources.contract import NOTHING, Contract, assumed, sentence
from sskt.sources.preprocessor import is_foreign, read_foreign

INSIDE = "sskt_contract.json"  # among the extra files of the archive
OPTION = "--contract"
_EXTRA = "extra/"
_ADDED = ("returns", "classes", "crop")  # of ours, read in a file of another tool that lacks them


@dataclass(frozen=True, slots=True)
class Declared:
    """A contract, who declared it, and remarks about it."""

    contract: Contract
    told: Contract = NOTHING  # the user's part of it
    said: tuple[str, ...] = ()  # who declares what: "the file itself: mean 0.5, std 0.5"
    remarks: tuple[str, ...] = ()  # contradictions, and what cannot be honoured: sentences
    assumes_rest: bool = False  # whether what is not declared is a guess, as of a program, and said to be one

    def sentence(self, name: str) -> str:
        """One line: what is declared of source `name`, and what is assumed."""
        rest = assumed(self.contract) if self.assumes_rest else ""
        if not self.said:
            return (
                f"{name} declares nothing; assumed: {rest}. Where that is wrong, declare it: {OPTION} "
                f"{name}=mean=0.5,std=0.5,returns=logits and the like, or save the program with save_source"
            )
        return f"{name} declares {'; '.join(self.said)}" + (f"; assumed: {rest}" if rest else "")


def declared_of(path: Path, told: Contract | None = None) -> Declared:
    """Collect what is declared of the program at `path`; `told` is what the user says.

    Raises SourceError for a declaration that cannot be read or meant.
    """
    beside = path.with_suffix(".json")
    found = [(OPTION, told or NOTHING), ("the file itself", read_inside(path))]
    remarks: list[str] = []
    if beside.is_file():
        contract, remarks = read_beside(beside)
        found.append((beside.name, contract))
    total, said = NOTHING, []
    for who, contract in found:
        for what, counts, other in total.differs_from(contract):
            remarks.append(f"{path.name}: {who} says {what} {other}, which {what} {counts} overrides")
        if contract != NOTHING:
            said.append(f"{sentence(contract)} ({who})")
        total = total.over(contract)
    if total.crop is not None:
        remarks.append(
            f"{path.name}: its own crop ({total.crop}) is not made; it sees the crop that the student sees"
        )
    return Declared(total, told or NOTHING, tuple(said), tuple(remarks), assumes_rest=True)


def read_inside(path: Path) -> Contract:
    """The contract in a program's archive; an empty one if there is none, or no archive."""
    try:
        with PT2ArchiveReader(str(path)) as archive:
            if f"{_EXTRA}{INSIDE}" not in archive.get_file_names():
                return Contract()
            text = archive.read_string(f"{_EXTRA}{INSIDE}")
    except (RuntimeError, OSError, ValueError):
        return Contract()  # what is wrong with the file is said where it is opened
    return _parsed(text, f"{path}: its contract ({INSIDE})")


def read_beside(path: Path) -> tuple[Contract, list[str]]:
    """The contract in a JSON file, in our own fields or in timm's or Hugging Face's, and remarks about it."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path}: lies beside the program and cannot be read as JSON ({error}); correct or move it"
        ) from error
    known = {field.name for field in fields(Contract)}
    if not isinstance(found, dict):
        return Contract(), [f"{path.name}: is no JSON object, so it says nothing of its program"]
    if is_foreign(found):
        try:
            contract, remarks = read_foreign(found)
            own = {name: found[name] for name in _ADDED if name in found}
            contract = Contract.from_dict(own).over(contract)
        except (SourceError, TypeError, ValueError) as error:
            raise SourceError(f"{path}: {error}; correct or move it") from error
        return contract, [f"{path.name}: {text}" for text in remarks]
    misspelt = [name for name in found if difflib.get_close_matches(name, known, n=1)]
    if not known & found.keys() and not misspelt:
        return Contract(), [f"{path.name}: has no field of a contract, so it says nothing of its program"]
    return _parsed(text, str(path)), []


def parse_told(text: str) -> Contract:
    """Parse what a user writes after NAME=: KEY=VALUE,KEY=VALUE, e.g. mean=0.5,std=0.5,returns=probabilities.

    `classes` is one of the known orders, or a text file with a name a line. Raises SourceError for anything
    else.
    """
    pairs: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise SourceError(
                f"{OPTION}: {part!r} is not KEY=VALUE, e.g. mean=0.485/0.456/0.406,returns=probabilities"
            )
        pairs[key.strip()] = value.strip()
    named = Path(pairs.get("classes", "")).expanduser()
    if "classes" in pairs and named.is_file():
        pairs["classes"] = _lines(named)
    try:
        return Contract.from_dict(pairs)
    except SourceError as error:
        hint = ", or a text file with one name per line" if str(error).startswith("classes is") else ""
        raise SourceError(f"{OPTION}: {error}{hint}") from error


def to_told(contract: Contract) -> str:
    """Write a contract as the text that `parse_told` reads, without a list of names."""
    pairs = [
        f"{name}={'/'.join(map(repr, value)) if isinstance(value, list) else value}"
        for name, value in contract.to_dict().items()
        if not (name == "classes" and isinstance(value, list))
    ]
    return ",".join(pairs)


def save_source(
    path: Path | str,
    network: nn.Module | ExportedProgram,
    *,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    returns: str,
    size: int | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    channels: str = "rgb",
    interpolation: str | None = None,
    classes: Sequence[str] | str | None = None,
    crop: str | None = None,
) -> None:
    """Save a teacher as `path` (.pt2), with what it wants and says inside; see `Contract` for the fields.

    A module is exported for any number of images of `size` x `size` px; it must be in eval mode and take
    float32 (N, 3, size, size) to (N, K). A program that was exported already is saved as it is. `classes`
    are names in the order of the outputs, or one of `sskt.sources.contract.ORDERS`. Raises SourceError for a
    contract that cannot be meant, or a module in train mode.
    """
    path = Path(path)
    given = {
        "mean": mean if isinstance(mean, int | float) else list(mean),
        "std": std if isinstance(std, int | float) else list(std),
        "range": list(value_range),
        "channels": channels,
        "interpolation": interpolation,
        "size": size,
        "crop": crop,
        "classes": classes,
        "returns": returns,
    }
    contract = Contract.from_dict(given)
    if path.suffix != ".pt2":
        raise SourceError(f"{path}: a program's name ends in .pt2, which is how torch.export knows it")
    program = network if isinstance(network, ExportedProgram) else _exported(network, size)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}.pt2")
    try:
        torch.export.save(program, partial, extra_files={INSIDE: json.dumps(contract.to_dict())})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _exported(network: nn.Module, size: int | None) -> ExportedProgram:
    if any(module.training for module in network.modules()):
        raise SourceError("the network is in train mode; call network.eval() before save_source")
    if size is None:
        raise SourceError("size is not given; say for images of how many pixels the network is exported")
    batch = torch.export.Dim("batch")
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    example = torch.zeros(2, 3, size, size, device=device)
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},))


def _parsed(text: str, where: str) -> Contract:
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise SourceError("is no JSON object")
        return Contract.from_dict(found)
    except (SourceError, ValueError) as error:
        raise SourceError(f"{where}: {error}; correct it, or save the program again") from error


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as a list of class names ({error})") from error
