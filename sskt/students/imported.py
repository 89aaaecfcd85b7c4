"""The function that a name package.module:function stands for, and the sha256 of its source, by which a run
tells whether it has changed.

The module is imported as any program would, from the folder of the command or from where Python looks for
packages.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sskt.errors import RunError


def import_function(model: str) -> Callable[[], Any]:
    """The function that makes a student. Raises RunError if it cannot be imported."""
    function = getattr(_module_of(model), name := model.partition(":")[2], None)
    if not callable(function):
        module = _module_of(model)
        where = getattr(module, "__file__", None) or "which has no file"
        raise RunError(
            f"--model {model}: {module.__name__} ({where}) has no function {name!r}; check the name"
        )
    found: Callable[[], Any] = function
    return found


def source_sha256(model: str) -> str:
    """The sha256 of the source of a function's module, and of the one that defines it, if that is another.
    Raises RunError as `import_function`, and if there is no file.
    """
    named, function = _module_of(model), import_function(model)
    defining = sys.modules.get(getattr(function, "__module__", None) or "", named)
    digest = hashlib.sha256()
    for module in dict.fromkeys((named, defining)):
        file = getattr(module, "__file__", None)
        if file is None:
            raise RunError(
                f"--model {model}: {module.__name__} has no source file, by which a run would notice that it "
                f"has changed; move the function to a file of its own"
            )
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


@contextmanager
def importing_from_here() -> Iterator[None]:
    """Let Python look for packages in the current folder too, last, so that nothing there hides ours."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def in_short(error: Exception) -> str:
    """An error of foreign code on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _module_of(model: str) -> ModuleType:
    name = model.partition(":")[0]
    try:
        with importing_from_here():
            return importlib.import_module(name)
    except Exception as error:
        raise RunError(
            f"--model {model}: cannot import {name} ({in_short(error)}); run from the folder that holds it, "
            f"or add that folder to PYTHONPATH"
        ) from error
