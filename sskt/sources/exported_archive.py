"""Open a .pt2 archive without running code that it carries, and without the Python classes of its outputs.

The structure of a program's outputs is recorded by class names (a Hugging Face ModelOutput, a dataclass), and
torch opens the file only if these are registered. The graph does not need them, so missing classes get
stand-ins while the file is read.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from sskt.errors import SourceError

# File names for which torch's loader would unpickle an object, and the folder of compiled code that it would
# run.
_RUNS_CODE = ("data/constants/custom_obj_", "data/constants/opaque_obj_", "data/aotinductor/")
_MODELS = "models/"
_NAMED_TUPLE = "collections.namedtuple"
_UNREADABLE = (
    RuntimeError,
    ValueError,
    LookupError,
    AssertionError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
)
_LOADING = threading.Lock()


def open_archive(path: Path) -> ExportedProgram:
    """Load the one program in a .pt2 file.

    Raises SourceError if it is damaged, carries code, or needs something that this torch lacks.
    """
    try:
        with PT2ArchiveReader(str(path)) as archive:
            names = archive.get_file_names()
            code = next((name for name in names if name.lower().startswith(_RUNS_CODE)), None)
            records = [json.loads(archive.read_bytes(name)) for name in names if name.startswith(_MODELS)]
        if code is None and "archive_format" in names:
            with _tensors_only(), _stand_ins(records):
                programs = load_pt2(str(path)).exported_programs
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: carries pickled objects beside tensors, refused because loading them could run code; "
            f"export the plain network"
        ) from error
    except _UNREADABLE as error:
        raise SourceError(f"{path}: {_failure(error)}") from error
    if code is not None:
        raise SourceError(
            f"{path}: carries {code}, refused because loading it runs code; export the plain network"
        )
    if "archive_format" not in names:
        raise SourceError(
            f"{path}: is in the format of torch before 2.8; save the program again with a newer torch"
        )
    if len(programs) != 1:
        raise SourceError(
            f"{path}: holds {len(programs)} programs, expected one; save it with torch.export.save"
        )
    return next(iter(programs.values()))


def _failure(error: Exception) -> str:
    """Explain why torch cannot read an archive, and what to do."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = first.partition(". ")[0][:120]
    if "schema version" in str(error) or "archive version" in str(error):
        return f"was saved by another version of torch ({reason}); export it again with the torch used here"
    if "not registered" in str(error) or "torch.ops" in str(error):
        return f"needs an operator that this torch does not have ({reason}); export the network without it"
    return f"is not a whole torch.export program ({reason}); save it again"


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make torch.load use weights_only, which torch's loader does not offer as an argument, and silence its
    log and torch 2.11's warning about bytes that it only reads.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    log = logging.getLogger("torch.export")
    with _LOADING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        before, level = os.environ.get(name), log.level
        os.environ[name] = "1"
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


@contextmanager
def _stand_ins(records: Iterable[Any]) -> Iterator[None]:
    """Register empty classes for recorded structures whose classes are missing, under the same names."""
    stand_ins: list[type] = []
    try:
        for name in sorted({name for record in records for name in _recorded_types(record)}):
            if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
                stand_in = type(name, (), {})
                pytree.register_pytree_node(stand_in, _never, _never, serialized_type_name=name)
                stand_ins.append(stand_in)
        yield
    finally:
        for stand_in in stand_ins:
            pytree._deregister_pytree_node(stand_in)
        pytree.treespec_loads.cache_clear()  # it may hold structures of stand-ins


def _never(*_: Any) -> Any:
    """Ignore a stand-in's contents."""
    raise NotImplementedError


def _recorded_types(record: Any) -> Iterator[str]:
    """Names of the classes in a program's recorded call signatures."""
    for entry in record["graph_module"]["module_call_graph"]:
        for which in ("in_spec", "out_spec"):
            if entry["signature"]:
                yield from _types(json.loads(entry["signature"][which])[1])


def _types(structure: dict[str, Any]) -> Iterator[str]:
    if structure["type"] is not None:
        yield structure["context"] if structure["type"] == _NAMED_TUPLE else structure["type"]
    for child in structure["children_spec"]:
        yield from _types(child)
