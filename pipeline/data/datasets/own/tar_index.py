"""What tar shards hold, read once and kept: a shard is read again if its length or time differs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.datasets.checked_files import DAMAGE, write_arrays
from pipeline.data.datasets.own.read_tar import read_shard
from pipeline.data.datasets.own.shard import Sample, Shard
from pipeline.data.datasets.remote_pack import Pack, stamp_of
from pipeline.runtime import Progress

_FORMAT = 1
_Key = tuple[str, int, int]  # path, length, time of change


def read_shards(files: Sequence[Pack], index_file: Path, notes: list[str]) -> list[Shard]:
    """What each shard holds, from `index_file` where that knows it, which then keeps all of them.

    notes: receives what the user should know. Raises what `read_shard` raises.
    """
    kept = _read(index_file)
    if kept is None and index_file.exists():
        notes.append(f"{index_file}: the kept index was damaged or of another version, and was built again")
    kept = kept or {}
    keys = [_key(file) for file in files]
    new = [key for key in keys if key not in kept]
    shards = dict(kept)
    with Progress("reading shards", total=len(new)) as progress:
        for file, key in zip(files, keys, strict=True):
            if key not in shards:
                shards[key] = read_shard(file)
                progress.advance(1)
    if new or len(kept) != len(keys):
        try:
            _write(index_file, {key: shards[key] for key in keys})
        except OSError as error:
            reason = error.strerror or str(error)
            notes.append(
                f"{index_file.parent}: the index cannot be kept there ({reason}), so each run reads all "
                f"shards again; allow writing there"
            )
    return [shards[key] for key in keys]


def _key(file: Pack) -> _Key:
    return str(file), *stamp_of(file)


def _write(file: Path, shards: dict[_Key, Shard]) -> None:
    samples = [sample for shard in shards.values() for sample in shard.samples]
    about = [{"file": key, "n": len(each.samples), "ignored": each.ignored} for key, each in shards.items()]
    write_arrays(
        file,
        format=_FORMAT,
        names=np.array([os.fsencode(sample.name) for sample in samples], dtype=np.bytes_),
        stretches=np.array([(sample.begin, sample.length) for sample in samples], dtype="<i8"),
        labels=np.array([json.dumps(sample.labels).encode() for sample in samples], dtype=np.bytes_),
        ids=np.array([-1 if sample.id is None else sample.id for sample in samples], dtype="<i8"),
        several=np.array([-1 if s.several is None else s.several for s in samples], dtype="i1"),
        shards=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
    )


def _read(file: Path) -> dict[_Key, Shard] | None:
    """The kept shards; None if there are none, or none that can be trusted."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as data:
            if int(data["format"]) != _FORMAT:
                return None
            about = json.loads(data["shards"].tobytes())
            n = len(data["names"])
            ids = data["ids"] if "ids" in data else np.full(n, -1)  # those of earlier versions have none
            stretches = data["stretches"].reshape(-1, 2)
            columns = (data["names"], stretches, data["labels"], data["several"], ids)
        samples = [
            Sample(
                os.fsdecode(name),
                begin,
                n,
                tuple(json.loads(labels)),
                None if many < 0 else bool(many),
                None if own < 0 else own,
            )
            for name, (begin, n), labels, many, own in zip(*(c.tolist() for c in columns), strict=True)
        ]
        shards, begin = {}, 0
        for each in about:
            path, size, mtime_ns = each["file"]
            shards[path, size, mtime_ns] = Shard(samples[begin : begin + each["n"]], Counter(each["ignored"]))
            begin += each["n"]
    except (*DAMAGE, TypeError):
        return None
    return shards if begin == len(samples) else None
