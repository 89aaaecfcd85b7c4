"""The cache that the Hugging Face hub's own tools fill. It is read, and nothing is ever downloaded here."""

from __future__ import annotations

import re
from pathlib import Path

from sskt.extras import is_installed, library

_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


def is_repo(text: str) -> bool:
    """Whether `text` could be the name of a repository: NAME or OWNER/NAME."""
    return _REPO.fullmatch(text) is not None and ".." not in text and "--" not in text


def cached_file(repo: str, file: str) -> Path | None:
    """A file of the latest cached revision of a repository; None if it is not in the cache, or there is no
    `huggingface_hub` to read that.
    """
    if not is_repo(repo) or not is_installed("huggingface_hub"):
        return None
    hub = library("huggingface_hub", extra="hf", needed_by="the hub's cache")
    found = hub.try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None


def download_advice(repo: str, file: str = "") -> str:
    """The command that fills the cache, for a message."""
    return f"run `hf download {repo}{f' {file}' if file else ''}` where there is a network"
