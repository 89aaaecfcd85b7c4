"""Collect a program's contract: declared by the user, inside its .pt2, or in a JSON file beside it.

The user's declaration takes precedence over the program's, and that over the JSON file. Reading runs no code:
the program's declaration is one JSON text in the archive, and the program is not loaded for it.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
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
NOTES = "sskt_notes.json"
METADATA = "sskt_contract"  # the key of a contract, as JSON, in the metadata of files that are no .pt2
OPTION = "--contract"
_EXTRA = "extra/"
_LISTS = ("classes", "prompts")  # fields that may be read from a file, one line each
_ADDED = ("returns", "classes", "crop")  # our fields that are also read in another tool's file


@dataclass(frozen=True, slots=True)
class Declared:
    """A contract, who declared it, and remarks about it."""

    contract: Contract
    told: Contract = NOTHING  # the user's part of it
    statements: tuple[str, ...] = ()  # who declares what: "mean 0.5, std 0.5 (the file itself)"
    remarks: tuple[str, ...] = ()  # sentences about contradictions, and what cannot be honoured
    assumes_rest: bool = False  # whether undeclared fields are guesses, as for a program, and reported

    def sentence(self, name: str) -> str:
        """State in one line what is declared about source `name`, and what is assumed."""
        rest = assumed(self.contract) if self.assumes_rest else ""
        if not self.statements:
            return (
                f"{name} declares nothing; assumed: {rest}. Where that is wrong, declare it: {OPTION} "
                f"{name}=mean=0.5,std=0.5,returns=logits and the like, or in a JSON file beside it"
            )
        return f"{name} declares {'; '.join(self.statements)}" + (f"; assumed: {rest}" if rest else "")


def declared_of(path: Path, told: Contract | None = None, *, inside: Contract | None = None) -> Declared:
    """Collect what is declared about the program at `path`; `told` is the user's declaration, `inside` that
    of a file that is no .pt2.

    Raises SourceError for a declaration that is unreadable or invalid.
    """
    json_file = path.with_suffix(".json")
    declarations = [("the file itself", read_inside(path) if inside is None else inside)]
    remarks: list[str] = []
    if json_file.is_file():
        contract, remarks = read_beside(json_file)
        declarations.append((json_file.name, contract))
    return combine(path.name, told or NOTHING, declarations, remarks)


def combine(
    name: str, told: Contract, declarations: Sequence[tuple[str, Contract]], remarks: Sequence[str] = ()
) -> Declared:
    """What the user and others declare, the first of them first: `declarations` are (who, what)."""
    total, statements, found = NOTHING, [], list(remarks)
    for who, contract in ((OPTION, told), *declarations):
        for what, used, overridden in total.differs_from(contract):
            found.append(f"{name}: {who} says {what} {overridden}, which {what} {used} overrides")
        if contract != NOTHING:
            statements.append(f"{sentence(contract)} ({who})")
        total = total.over(contract)
    if total.crop is not None:
        found.append(
            f"{name}: its own crop ({total.crop}) is not made; it sees the crop that the student sees"
        )
    return Declared(total, told, tuple(statements), tuple(found), assumes_rest=True)


def read_inside(path: Path) -> Contract:
    """The contract in a program's archive; an empty one if it has none, or is not an archive."""
    try:
        with PT2ArchiveReader(str(path)) as archive:
            if f"{_EXTRA}{INSIDE}" not in archive.get_file_names():
                return Contract()
            text = archive.read_string(f"{_EXTRA}{INSIDE}")
    except (RuntimeError, OSError, ValueError):
        return Contract()  # opening the file will report what is wrong with it
    return parse_json(text, f"{path}: its contract ({INSIDE})")


def read_beside(path: Path) -> tuple[Contract, list[str]]:
    """Read the contract in a JSON file, in our own fields or in timm's or Hugging Face's; returns it with
    remarks about it. Raises SourceError for a file that is unreadable or invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path}: lies beside the program and cannot be read as JSON ({error}); correct or move it"
        ) from error
    known = {field.name for field in fields(Contract)}
    if not isinstance(content, dict):
        return Contract(), [f"{path.name}: is no JSON object, so it says nothing of its program"]
    if is_foreign(content):
        try:
            contract, remarks = read_foreign(content)
            added = {name: content[name] for name in _ADDED if name in content}
            contract = Contract.from_dict(added).over(contract)
        except (SourceError, TypeError, ValueError) as error:
            raise SourceError(f"{path}: {error}; correct or move it") from error
        return contract, [f"{path.name}: {text}" for text in remarks]
    misspelt = [name for name in content if difflib.get_close_matches(name, known, n=1)]
    if not known & content.keys() and not misspelt:
        return Contract(), [f"{path.name}: has no field of a contract, so it says nothing of its program"]
    return parse_json(text, str(path)), []


def parse_told(text: str) -> Contract:
    """Parse what a user writes after NAME=: KEY=VALUE,KEY=VALUE, e.g. mean=0.5,std=0.5,returns=probabilities.

    `classes` is one of the known orders, or a text file with one name per line; `prompts` is one text, or a
    file with one per line. Raises SourceError for anything else.
    """
    pairs: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise SourceError(
                f"{OPTION}: {part!r} is not KEY=VALUE, e.g. mean=0.485/0.456/0.406,returns=probabilities"
            )
        pairs[key.strip()] = value.strip()
    for key in _LISTS:
        file = Path(pairs.get(key, "")).expanduser()
        if key in pairs and file.is_file():
            pairs[key] = _read_lines(file, key)
    try:
        return Contract.from_dict(pairs)
    except SourceError as error:
        hint = ", or a text file with one name per line" if str(error).startswith("classes is") else ""
        raise SourceError(f"{OPTION}: {error}{hint}") from error


def to_told(contract: Contract) -> str:
    """Write a contract as text that `parse_told` reads, leaving out lists of class names and of prompts."""
    pairs = [
        f"{name}={'/'.join(map(repr, value)) if isinstance(value, list) else value}"
        for name, value in contract.to_dict().items()
        if not (name in _LISTS and isinstance(value, list))
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
    notes: Mapping[str, str] | None = None,
) -> None:
    """Save a teacher as `path` (.pt2) with its contract inside; see `Contract` for the fields.

    A module is exported for any number of images of `size` x `size` px; it must be in eval mode and map
    float32 (N, 3, size, size) to (N, K). A program that is already exported is saved unchanged. `classes` are
    names in the order of the outputs, or one of `sskt.sources.contract.ORDERS`. `notes` are kept
    beside the contract, for other programs. Raises SourceError for an invalid contract, or a module in train
    mode.
    """
    path = Path(path)
    fields_given = {
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
    contract = Contract.from_dict(fields_given)
    if path.suffix != ".pt2":
        raise SourceError(f"{path}: a program's name ends in .pt2, which is how torch.export knows it")
    program = network if isinstance(network, ExportedProgram) else _export(network, size)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}.pt2")
    try:
        extra = {INSIDE: json.dumps(contract.to_dict())}
        if notes:
            extra[NOTES] = json.dumps(dict(notes))
        torch.export.save(program, partial, extra_files=extra)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _export(network: nn.Module, size: int | None) -> ExportedProgram:
    if any(module.training for module in network.modules()):
        raise SourceError("the network is in train mode; call network.eval() before save_source")
    if size is None:
        raise SourceError("size is not given; say for images of how many pixels the network is exported")
    batch = torch.export.Dim("batch")
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    example = torch.zeros(2, 3, size, size, device=device)
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},))


def parse_json(text: str, where: str) -> Contract:
    """The contract in a JSON text, found at `where`. Raises SourceError for any other text."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise SourceError("is no JSON object")
        return Contract.from_dict(content)
    except (SourceError, ValueError) as error:
        raise SourceError(f"{where}: {error}; correct it, or save the program again") from error


def _read_lines(path: Path, what: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as a list of {what} ({error})") from error
