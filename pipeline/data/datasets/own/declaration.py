"""The file beside the shards of a target that was packed: what all of them have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sskt.errors import TargetError, shown

_DECLARATION = "sskt-pack.json"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What all shards of a packed target have in common: class names in label order, and whether an image
    may have several.
    """

    classes: tuple[str, ...]
    several: bool

    def parts(self) -> tuple[str, bytes]:
        """The name and the bytes of its file."""
        content = {"classes": self.classes, "several_labels": self.several}
        return _DECLARATION, (json.dumps(content, indent=1) + "\n").encode()


def read_declaration(root: Path) -> Declaration | None:
    """What the folder at `root` declares; None if nothing does. Raises TargetError if it cannot be read."""
    file = root / _DECLARATION
    try:
        content = json.loads(file.read_bytes())
        return Declaration(tuple(content["classes"]), bool(content["several_labels"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{shown(str(file))}: cannot be read ({error}); pack the target again") from None
