"""Errors that a user can act on: one sentence with the culprit, what was found, what was expected, and the
remedy; and names as text that any terminal and any UTF-8 file can hold.

A file name is bytes on most systems. Python represents bytes that are not UTF-8 as lone surrogates, which no
encoder accepts.
"""

from __future__ import annotations

import shlex

_LAST_BYTE, _FIRST_BYTE = "\udcff", "\udc80"  # "surrogateescape" of the bytes 0x80 and 0xff


class SsktError(Exception):
    """Base class of all errors that the method and the pipeline raise on purpose; the CLI prints its text."""


class SourceError(SsktError):
    """A source network or its weights cannot be used as requested."""


class MissingExtraError(SsktError):
    """An optional package is needed and not installed; the message names the extra that installs it."""


class DownloadError(SsktError):
    """A file could not be downloaded, or is not the published one."""


class TargetError(SsktError):
    """A target dataset is missing, incomplete or damaged."""


class UnreadableError(Exception):
    """Why bytes are not a usable image or video; its text is a clause for the caller's sentence."""


class RunError(SsktError):
    """A training or evaluation run cannot be done as requested."""


class SettingError(RunError):
    """A parameter has a value that no run can have. The text starts with the parameter's name, in whose place
    the command line prints the option.
    """

    def __init__(self, parameter: str, sentence: str) -> None:
        """`sentence` continues after the name, e.g. "is 2, expected at most 1"."""
        super().__init__(f"{parameter} {sentence}")
        self.parameter, self.sentence = parameter, sentence


class TooFewLabelsError(RunError):
    """A probe cannot be fitted: too few samples have a label. `what` is the sentence without its remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what


def shown(text: str, *, keep: str = "") -> str:
    r"""`text` on one line: unprintable characters, except those in `keep`, become \xNN or \uNNNN."""
    return "".join(_escaped(c) if _is_strange(c) and c not in keep else c for c in text)


def few(names: list[str] | tuple[str, ...], most: int = 5) -> str:
    """The first of many names, for a sentence, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def quoted(text: str) -> str:
    """Quote `text` as one word of a command line, in the $'...' form of Bash and Zsh if it is unprintable."""
    if shown(text) == text:
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{shown(escaped)}'"


def _is_strange(character: str) -> bool:
    """Whether it is a control character, a line separator or a lone surrogate."""
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
