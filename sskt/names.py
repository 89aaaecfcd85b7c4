"""Names as text that any terminal and any UTF-8 file can hold.

A file's name is bytes on most systems. Python keeps those that are not UTF-8 as lone surrogates, which no
encoder takes.
"""

from __future__ import annotations

import shlex

_LAST_BYTE, _FIRST_BYTE = "\udcff", "\udc80"  # how Python's "surrogateescape" keeps the bytes 0x80 to 0xff


def shown(text: str, *, keep: str = "") -> str:
    r"""`text` on one line: characters that cannot be printed, but for those in `keep`, become \xNN or \uNNNN;
    all others stay as they are.
    """
    return "".join(_escaped(c) if _is_strange(c) and c not in keep else c for c in text)


def quoted(text: str) -> str:
    """`text` as one word of a command line; in Bash's and Zsh's own form where it could not be printed."""
    if shown(text) == text:
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{shown(escaped)}'"


def _is_strange(character: str) -> bool:
    """Control characters, separators of lines and lone surrogates."""
    return (
        character < " "
        or "\x7f" <= character <= "\x9f"
        or character in "\u2028\u2029"
        or "\ud800" <= character <= "\udfff"
    )


def _escaped(character: str) -> str:
    if _FIRST_BYTE <= character <= _LAST_BYTE:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
