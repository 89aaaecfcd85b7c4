"""Lists of the files that are not used, for the user, and the user's decision to go on without them.

Beside a folder's index: `*-ignored.txt`, `*-unusable.txt` and the like, one path per line, a tab and the
reason; and `*-left-out.json`, the unusable files that `sskt prepare --allow-missing` has accepted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from cache import write_durably
from sskt.errors import TargetError, shown


class UnusableFiles(TargetError):  # noqa: N818
    """Some files of a folder cannot be used; the user may go on without them."""

    def __init__(self, message: str, index_file: Path, reasons: dict[str, str]) -> None:
        super().__init__(message)
        self._index_file, self._reasons = index_file, reasons

    def leave_out(self) -> None:
        """Record that the target goes on without these files. Raises TargetError if that fails."""
        path = _record_path(self._index_file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, (json.dumps(self._reasons, indent=2) + "\n").encode("ascii"))
        except OSError as error:
            raise TargetError(
                f"{path}: cannot be written ({error.strerror or error}); make room, or choose another "
                f"--cache-dir"
            ) from error


def read_accepted(index_file: Path) -> set[str]:
    """Read the paths that the user goes on without. Raises TargetError for a damaged record."""
    path = _record_path(index_file)
    try:
        return set(json.loads(path.read_text(encoding="ascii")))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (OSError, ValueError, TypeError) as error:
        raise TargetError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); remove it, and run sskt prepare with "
            f"--allow-missing again"
        ) from None


def write_list(index_file: Path, what: str, lines: Iterable[tuple[str, ...]]) -> Path | None:
    """Write lines beside the index file: a path, on one line but otherwise raw, and what to say of it.

    Returns the list's path; None if it cannot be written, or there is nothing to say, which removes an older
    list.
    """
    path = index_file.with_name(f"{index_file.stem}-{what}.txt")
    text = "".join("\t".join((on_one_line(name), *map(shown, reasons))) + "\n" for name, *reasons in lines)
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
    """A name with line breaks and tabs escaped, which separate lines and fields."""
    return name.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _record_path(index_file: Path) -> Path:
    return index_file.with_name(f"{index_file.stem}-left-out.json")
