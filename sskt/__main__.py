"""The program: `sskt`, or `python -m sskt` and `torchrun -m sskt` where a launcher wants a module.

Its other rooms have common names. A folder that the user works in may hold a cli.py or pipeline.py, and `-m`
or PYTHONPATH put that folder first; so these names are looked up beside this package before anything else.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_ROOMS = ("cli", "pipeline", "cache")


class _OwnRooms:
    """Finds the rooms of this installation, wherever the search path leads."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        """The room of that name; None for every other module."""
        return PathFinder.find_spec(name, [str(Path(__file__).parents[1])]) if name in _ROOMS else None


def main() -> None:
    """Run the command line."""
    sys.meta_path.insert(0, _OwnRooms())
    importlib.import_module("cli").main(prog_name="sskt")


if __name__ == "__main__":
    main()
