"""Download a file over HTTP so that its final name never holds anything but a complete, checked file.

The transfer goes to a temporary file beside the destination, which is renamed only once its digest matches.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sskt.errors import DownloadError, SourceError

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0  # without a single byte; a slow transfer may take as long as it needs


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    sha256_prefix: str | None = None,
) -> Path:
    """Download `url` to `path` unless that file exists; either way, check the digests given.

    `sha256_prefix` is the start of the sha256 that torchvision puts in its file names. An existing file is
    only read, never replaced or removed. Raises DownloadError if the transfer or the disk fails or a digest
    differs; `path` is then as it was before.
    """
    digests = {"sha256": sha256 or sha256_prefix, "md5": md5}
    if path.exists():
        if problem := _digest_problem(path, digests):
            raise DownloadError(
                f"{path}: {problem}; it is not the file at {url}: move it away to have it downloaded again"
            )
        return path
    by_hand = f"try again, or download {url} by hand to {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise DownloadError(
            f"{path.parent}: cannot write there ({error.strerror}); free or choose another folder for {url}"
        ) from error
    part = Path(name)
    try:
        _transfer(url, part)
        if problem := _digest_problem(part, digests):
            raise DownloadError(f"{url}: {problem}; nothing was kept: {by_hand}")
        part.chmod(0o644)  # mkstemp makes files for the owner only
        part.replace(path)
    except requests.HTTPError as error:
        reply = error.response
        raise DownloadError(
            f"{url}: the server answered {reply.status_code} {reply.reason}; {by_hand}"
        ) from error
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {_failure(error)}; {by_hand}") from error
    except OSError as error:
        raise DownloadError(
            f"{path}: cannot be written ({error.strerror}) while downloading {url}; {by_hand}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def fetch_recorded(url: str, path: Path) -> Path:
    """`fetch` for a file whose publisher gives no checksum: write the first copy's sha256 to `<path>.sha256`
    (in the format of `sha256sum`), and compare the file with it on every later use.

    Raises SourceError naming both digests if the file is no longer the one recorded; DownloadError as
    `fetch`.
    """
    record = path.with_name(f"{path.name}.sha256")
    try:
        fields = record.read_text(encoding="utf-8", errors="replace").split() if record.exists() else []
        if record.exists() and not fields:
            raise SourceError(f"{record}: is empty, expected a sha256; remove it to record {path.name} anew")
        if not path.exists():
            return _record(fetch(url, path, sha256=fields[0] if fields else None), record)
        sha256 = digest_of(path)
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror}); make it readable") from error
    if fields and fields[0] != sha256:
        raise SourceError(
            f"{path}: sha256 is {sha256}, {record.name} recorded {fields[0]}; restore the file, "
            f"or remove both to download it again"
        )
    return path if fields else _record(path, record)


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_of_data(value: object) -> str:
    """sha256 of plain data, written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def known_digest_of(path: Path) -> str:
    """`digest_of`, cached until the file's inode, size or times change."""
    stat = path.stat()
    return _digest_of_version(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=256)
def _digest_of_version(path: Path, *_version: int) -> str:
    return digest_of(path)


def _record(path: Path, record: Path) -> Path:
    """Write the digest of `path` to `record` atomically; returns `path`."""
    if not record.exists():
        part = record.with_name(f".{record.name}.{os.getpid()}.part")
        part.write_text(f"{digest_of(path)}  {path.name}\n", encoding="utf-8")
        part.replace(record)
    return path


def _digest_problem(path: Path, digests: dict[str, str | None]) -> str | None:
    """Describe the first digest that differs; a wanted digest may be a prefix of the full one."""
    for algorithm, expected in digests.items():
        if expected is None:
            continue
        try:
            digest = digest_of(path, algorithm)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if not digest.startswith(expected.lower()):
            begins = "" if len(expected) == len(digest) else "a digest that begins with "
            return f"{algorithm} is {digest}, expected {begins}{expected}"
    return None


def _transfer(url: str, part: Path) -> None:
    """Stream `url` into `part`, with a transient progress bar on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        pooch.HTTPDownloader(
            progressbar=_Bar(progress, url.rsplit("/", 1)[-1]),
            chunk_size=_CHUNK_BYTES,
            timeout=_TIMEOUT_S,
            headers={"Accept-Encoding": "identity"},  # so that Content-Length counts the bytes of the file
        )(url, str(part), None)


class _Bar:
    """The part of tqdm's interface that pooch calls, drawn by rich."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.total = 0  # set by pooch from Content-Length, 0 if the server sends none
        self._progress = progress
        self._task = progress.add_task(name, total=None)

    def update(self, n_bytes: int) -> None:
        self._progress.update(self._task, total=self.total or None, advance=n_bytes)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop_task(self._task)


def _failure(error: requests.RequestException) -> str:
    """What went wrong, without urllib3's nested object names."""
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke before the whole file had arrived"
    if isinstance(error, requests.Timeout):
        return f"no answer within {_TIMEOUT_S:.0f} s"
    if isinstance(error, requests.ConnectionError):
        reason = str(error).rsplit(": ", 1)[-1].rstrip("'\")> ").split("(Caused by", 1)[0].strip()
        return f"cannot be reached ({reason})"
    return str(error).splitlines()[0]
