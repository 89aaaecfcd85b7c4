"""Packages that only some sources and students need: imported when one is used, never by `import sskt`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from sskt.errors import MissingExtraError


def library(package: str, *, extra: str, needed_by: str, module: str | None = None) -> Any:
    """The optional `package`, or its submodule `module`, imported.

    `needed_by` is what needs it, for the message; `extra` is the name under which pip installs it. Raises
    MissingExtraError if it is not installed, or cannot be imported.
    """
    remedy = f"run pip install 'sskt[{extra}]'"
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"{needed_by} needs {package}, which is not installed; {remedy}")
    try:
        return importlib.import_module(module or package)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise MissingExtraError(
            f"{needed_by} needs {package}, which cannot be imported ({reason}); {remedy}"
        ) from error


def is_installed(package: str) -> bool:
    """Whether an optional package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None
