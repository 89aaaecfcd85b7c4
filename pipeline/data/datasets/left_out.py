"""Files that are not used, as lists for the user, and the decision to go on without them.

Beside a folder's kept index: `*-ignored.txt`, `*-unusable.txt` and such, one path a line, a tab and why; and
`*-left-out.json`, the unusable ones that `sskt prepare --allow-missing` has accepted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from cache import write_durably
from sskt.errors import TargetError
from sskt.names import shown


class UnusableFiles(TargetError):  # noqa: N818
    """Some files of a folder cannot be used; the user may go on without them."""

    def __init__(self, message: str, kept: Path, reasons: dict[str, str]) -> None:
        super().__init__(message)
        self._kept, self._reasons = kept, reasons

    def leave_out(self) -> None:
        """Record that the target is used without these files from now on. Raises TargetError if it cannot be
        recorded.
        """
        path = _record(self._kept)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, (json.dumps(self._reasons, indent=2) + "\n").encode("ascii"))
        except OSError as error:
            raise TargetError(
                f"{path}: cannot be written ({error.strerror or error}); make room, or choose another "
                f"--cache-dir"
            ) from error


def accepted(kept: Path) -> set[str]:
    """Paths that the user goes on without. Raises TargetError for a damaged record."""
    path = _record(kept)
    try:
        return set(json.loads(path.read_text(encoding="ascii")))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (OSError, ValueError, TypeError) as error:
        raise TargetError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); remove it, and run sskt prepare with "
            f"--allow-missing again"
        ) from None


def write_list(kept: Path, what: str, lines: Iterable[tuple[str, ...]]) -> Path | None:
    """Write lines beside the kept index: a path, its name raw but for line breaks, and what to say.

    Returns where. None if that cannot be written, or there is nothing to say: then an older list goes.
    """
    path = kept.with_name(f"{kept.stem}-{what}.txt")
    text = "".join("\t".join((on_one_line(name), *map(shown, said))) + "\n" for name, *said in lines)
    try:
        if not text:
            path.unlink(missing_ok=True)
            return None
        content = os.fsencode(text)
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, content)
    except OSError:
        return None
    return path


def on_one_line(name: str) -> str:
    """A name as it is but for line breaks and tabs, which separate lines and fields."""
    return name.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _record(kept: Path) -> Path:
    return kept.with_name(f"{kept.stem}-left-out.json")
