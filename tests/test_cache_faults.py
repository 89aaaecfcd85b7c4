"""Damage, full disks and kills: detected, named, and nothing good lost."""

import errno
import json
import os
import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from cache_samples import (
    ALL_UNITS,
    crc32c,
    entry_file,
    fill,
    filled_store,
    flip_byte,
    logits_of,
    new_store,
    payload_file,
)
from listening import Remarks
from processes import Process, wait_for_less

from cache import layout
from cache import unit as unit_module
from cache.errors import CacheError, StoreDamaged, StoreIncomplete
from cache.storage import local as files
from cache.store import Store, Unit


def redo(store, logits, unit):
    """Do what the message says: delete the entry, precompute again."""
    entry_file(store, unit.view, unit.block).unlink()
    assert store.pending(store.n_views) == [unit]
    fill(store, logits)
    for view in range(store.n_views):
        np.testing.assert_array_equal(store.view(view), logits[view])
    assert store.verify() == []


@pytest.mark.parametrize("at", [0, 13, -5, -4, -1])
@pytest.mark.parametrize("block", [1, 2])
def test_a_flipped_byte_is_named_and_the_named_remedy_works(tmp_path, at, block):
    store, logits = filled_store(tmp_path)
    unit = Unit(1, block)
    flip_byte(payload_file(store, 1, block), at)
    with pytest.raises(StoreDamaged) as caught:
        store.view(1)
    for part in (f"c.1.{block}.0", str(unit), "checksum", f"delete {entry_file(store, 1, block)}"):
        assert part in str(caught.value)
    assert [(p.unit, p.what) for p in store.verify()] == [(unit, str(caught.value))]
    np.testing.assert_array_equal(store.view(0), logits[0])
    redo(store, logits, unit)


def test_a_truncated_a_longer_and_a_deleted_unit_are_named(tmp_path):
    store, logits = filled_store(tmp_path)
    payload = payload_file(store, 0, 2)
    whole = payload.read_bytes()
    for data in (whole[:-1], whole[:3], b"", whole + b"\0"):
        payload.write_bytes(data)
        with pytest.raises(StoreDamaged, match=f"the file holds {len(data)} bytes, expected {len(whole)}"):
            store.view(0)
        assert [p.unit for p in store.verify()] == [Unit(0, 2)]
    payload.unlink()
    with pytest.raises(StoreDamaged, match=r"unit \(view 0, block 2\) is damaged: the file is missing"):
        store.view(0)
    assert [p.unit for p in store.verify()] == [Unit(0, 2)]
    redo(store, logits, Unit(0, 2))


def test_a_sound_file_of_another_unit_is_not_taken_for_this_one(tmp_path):
    store, _ = filled_store(tmp_path)
    payload_file(store, 0, 0).write_bytes(payload_file(store, 1, 0).read_bytes())
    with pytest.raises(StoreDamaged, match="its entry states"):
        store.view(0)
    assert [p.unit for p in store.verify()] == [Unit(0, 0)]


@pytest.mark.parametrize("at", [0, 4, 5, 7, 8, 11])
def test_a_flipped_byte_in_units_is_named_by_every_reader(tmp_path, at):
    store, logits = filled_store(tmp_path)
    flip_byte(entry_file(store, 1, 0), at)
    again = Store.open(store.path)  # `store` knows what it wrote: an object reads each entry once
    for read in (lambda: again.view(1), lambda: again.pending(2), lambda: again.complete):
        with pytest.raises(StoreDamaged, match=r"unit \(view 1, block 0\) is damaged: its entry is damaged"):
            read()
    assert [p.unit for p in store.verify()] == [Unit(1, 0)]
    np.testing.assert_array_equal(store.view(0), logits[0])
    redo(store, logits, Unit(1, 0))


def test_an_entry_with_a_good_sum_but_an_unknown_form_is_damage(tmp_path):
    store, _ = filled_store(tmp_path)
    entry = (2 << 32).to_bytes(8, "little")
    entry_file(store, 0, 0).write_bytes(entry + crc32c(entry).to_bytes(4, "little"))
    with pytest.raises(StoreDamaged, match="its entry holds 0x200000000"):
        Store.open(store.path).view(0)


def test_every_problem_is_reported_in_one_go(tmp_path):
    store, _ = filled_store(tmp_path)
    flip_byte(payload_file(store, 0, 0), 2)
    payload_file(store, 0, 1).unlink()
    entry_file(store, 1, 0).write_bytes(b"")
    flip_byte(store.path / "ids" / "c.0", 3)
    (store.path / "contents" / "c.0.0").unlink()
    problems = store.verify()
    assert [p.unit for p in problems] == [None, None, Unit(0, 0), Unit(0, 1), Unit(1, 0)]
    assert [name in p.what for name, p in zip(("s.zarr/ids", "s.zarr/contents"), problems, strict=False)] == [
        True,
        True,
    ]


def test_rows_that_are_not_finite_are_found_behind_a_good_checksum(tmp_path):
    store, logits = filled_store(tmp_path)
    rows = logits[0, :4].copy()
    rows[2, 1] = np.inf
    data = rows.tobytes()
    payload_file(store, 0, 0).write_bytes(data + crc32c(data).to_bytes(4, "little"))
    entry = ((1 << 32) | crc32c(data)).to_bytes(8, "little")
    entry_file(store, 0, 0).write_bytes(entry + crc32c(entry).to_bytes(4, "little"))
    assert [(p.unit, "1 of its 4 rows hold NaN or inf" in p.what) for p in store.verify()] == [
        (Unit(0, 0), True)
    ]


@pytest.mark.parametrize("name", ["ids", "contents", "probe_ids", "probe"])
def test_a_lost_or_edited_table_is_named(tmp_path, name):
    path = new_store(tmp_path).path
    (chunk,) = (path / name).glob("c*")
    whole = chunk.read_bytes()
    flip_byte(chunk, 1)
    with pytest.raises(StoreDamaged, match=f"s.zarr/{name}: cannot be read"):
        getattr(Store.open(path), name)
    chunk.write_bytes(whole)
    chunk.unlink()
    with pytest.raises(StoreDamaged, match=f"s.zarr/{name}: was edited or damaged"):
        getattr(Store.open(path), name)


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("", lambda d: d["attributes"]["sskt"]["identity"]["plan"].update(seed=8), "its manifest was edited"),
        ("", lambda d: d["attributes"]["sskt"].update(format_version=9), "format version 9, expected 1"),
        ("", lambda d: d["attributes"]["sskt"].pop("sha256"), "its manifest lacks sha256"),
        ("", lambda d: d["attributes"].pop("sskt"), "has no attribute 'sskt'"),
        ("", lambda d: d.update(attributes={}), "has no attribute 'sskt'"),
        ("", lambda d: d.update(zarr_format=2), "not a readable store"),
        ("logits", lambda d: d["shape"].__setitem__(1, 11), "expected"),
        ("logits", lambda d: d.update(data_type="uint16", fill_value=0), "logits's type is uint16"),
        ("logits", lambda d: d.update(codecs=d["codecs"][:1]), "logits's codecs is"),
        ("units", lambda d: d["shape"].__setitem__(1, 4), r"units's shape is \(2, 4\), expected \(2, 3\)"),
        ("units", lambda d: d["chunk_key_encoding"]["configuration"].update(separator="/"), "chunk keys"),
        ("ids", lambda d: d.update(node_type="group"), "not a readable store"),
    ],
)
def test_edited_metadata_is_named_at_opening_and_by_verify(tmp_path, file, change, said):
    store, _ = filled_store(tmp_path)
    edit_json(store.path / file / "zarr.json", change)
    with pytest.raises(StoreDamaged, match=said) as caught:
        Store.open(store.path)
    assert str(caught.value).startswith(str(store.path))
    assert "\n" not in str(caught.value)
    assert store.verify() == [(None, str(caught.value))]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b'{"zarr_format": 3}'])
@pytest.mark.parametrize("file", ["zarr.json", "logits/zarr.json"])
def test_unreadable_metadata_is_one_sentence(tmp_path, data, file):
    store = new_store(tmp_path)
    (store.path / file).write_bytes(data)
    with pytest.raises(StoreDamaged) as caught:
        Store.open(store.path)
    assert "\n" not in str(caught.value)


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "file.zarr").write_text("")
    for name in ("file.zarr", "nothing.zarr", ""):
        with pytest.raises(StoreDamaged, match=r"is not a store, it has no zarr\.json; precompute"):
            Store.open(tmp_path / name)


def test_payload_is_on_the_disk_before_its_entry_is_begun(tmp_path, monkeypatch):
    store, steps = new_store(tmp_path), []
    fsync, link = os.fsync, os.link

    def spy_fsync(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(("fsync", name.parent.name if name.is_file() else name.name))
        fsync(descriptor)

    def spy_link(path, target):
        steps.append(("link", str(target.relative_to(store.path))))
        link(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "link", spy_link)
    store.write_unit(Unit(0, 1), logits_of(store)[0, 4:8])
    assert steps == [
        ("fsync", "logits"), ("link", "logits/c.0.1.0"), ("fsync", "logits"),
        ("fsync", "units"), ("link", "units/c.0.1"), ("fsync", "units"),
    ]  # fmt: skip


def test_a_unit_without_entry_is_pending_and_the_next_writer_finishes_it_with_its_rows(tmp_path, monkeypatch):
    """Its writer may be dead, or about to write the entry: no other entry than that of its rows is right."""
    store = new_store(tmp_path)
    logits, other = logits_of(store), logits_of(store, seed=2)
    original = unit_module.create_durably

    def payload_only(path, *parts):
        if path.parent.name == "units":
            raise KeyboardInterrupt
        return original(path, *parts)

    monkeypatch.setattr(unit_module, "create_durably", payload_only)
    with pytest.raises(KeyboardInterrupt):
        store.write_unit(Unit(0, 0), logits[0, :4])
    monkeypatch.undo()
    assert payload_file(store, 0, 0).exists()
    assert store.pending(2) == ALL_UNITS
    with pytest.raises(StoreIncomplete, match="view 0 lacks 3 of 3"):
        store.view(0)
    assert not store.write_unit(Unit(0, 0), other[0, :4])
    fill(store, other)
    np.testing.assert_array_equal(store.view(0), np.concatenate([logits[0, :4], other[0, 4:]]))


def cut(file):
    file.write_bytes(file.read_bytes()[:-3])


def with_nan(file):
    rows = bytearray(file.read_bytes()[:-4])
    rows[:2] = b"\x00\x7e"
    file.write_bytes(rows + crc32c(rows).to_bytes(4, "little"))


@pytest.mark.parametrize("damage", [cut, with_nan, lambda file: flip_byte(file, 3)])
def test_damaged_rows_without_an_entry_are_not_adopted(tmp_path, damage):
    store, logits = filled_store(tmp_path)
    entry_file(store, 0, 1).unlink()
    damage(payload_file(store, 0, 1))
    assert store.pending(2) == [Unit(0, 1)]
    assert store.write_unit(Unit(0, 1), -logits[0, 4:8])
    np.testing.assert_array_equal(store.view(0)[4:8], -logits[0, 4:8])
    assert store.verify() == []


def test_a_repair_that_is_killed_leaves_no_rows_to_adopt(tmp_path, monkeypatch):
    """The sound file of another unit, in this one's place, must not become this one's by a killed repair."""
    store, logits = filled_store(tmp_path)
    payload_file(store, 0, 0).write_bytes(payload_file(store, 1, 0).read_bytes())
    steps, delete = [], unit_module.delete_file

    def killed(file):
        if steps:
            raise KeyboardInterrupt
        steps.append(file.name)
        delete(file)

    monkeypatch.setattr(unit_module, "delete_file", killed)
    with pytest.raises(KeyboardInterrupt):
        store.discard(Unit(0, 0))
    monkeypatch.undo()
    assert steps == ["c.0.0.0"]
    store.discard(Unit(0, 0))
    np.testing.assert_array_equal(fill(store, logits).view(0), logits[0])


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_is_told_once_and_works(tmp_path, monkeypatch, code):
    def refused(*_names):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    remarks = Remarks()
    store, logits = filled_store(tmp_path)
    (said,) = remarks
    assert "s.zarr: this storage cannot create a file only where there is none (hard links" in said
    assert not store.write_unit(Unit(0, 0), -logits[0, :4])
    np.testing.assert_array_equal(store.view(0), logits[0])
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_link_whose_answer_was_lost_is_this_process_s(tmp_path, monkeypatch):
    """An NFS server that has made a link is asked again, and says that it is there."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    store = new_store(tmp_path)
    monkeypatch.setattr(os, "link", twice)
    assert store.write_unit(Unit(0, 0), logits_of(store)[0, :4])


def test_a_finished_unit_is_never_overwritten_but_written_anew_where_it_is_damaged(tmp_path):
    """A second writer of other bytes (other last bits) goes on with what is there: to end it, or
    to have a sound unit deleted, would be worse.
    """
    store, logits = filled_store(tmp_path)
    payload = payload_file(store, 0, 0)
    before = payload.stat().st_mtime_ns, payload.stat().st_ino
    for rows in (logits[0, :4], -logits[0, :4]):
        assert not store.write_unit(Unit(0, 0), rows)
        assert (payload.stat().st_mtime_ns, payload.stat().st_ino) == before
    np.testing.assert_array_equal(store.view(0), logits[0])
    payload.unlink()
    assert store.write_unit(Unit(0, 0), logits[0, :4])
    np.testing.assert_array_equal(store.view(0), logits[0])
    flip_byte(payload, 1)
    assert store.write_unit(Unit(0, 0), -logits[0, :4])
    np.testing.assert_array_equal(store.view(0)[:4], -logits[0, :4])
    assert store.verify() == []


@pytest.mark.parametrize(
    ("unit", "rows", "said"),
    [
        (Unit(0, 0), np.zeros((3, 3), np.float16), r"was given \(3, 3\) float16, expected \(4, 3\) float16"),
        (Unit(0, 2), np.zeros((4, 3), np.float16), r"was given \(4, 3\) float16, expected \(2, 3\) float16"),
        (Unit(0, 0), np.zeros((4, 3), np.float32), r"was given \(4, 3\) float32"),
        (Unit(0, 0), np.full((4, 3), np.nan, np.float16), "was given 4 of 4 rows with NaN or inf"),
        (Unit(0, 0), np.array([[1, 2, -np.inf]] + 3 * [[65504, -65504, 0]], np.float16), "given 1 of 4 rows"),
        (
            Unit(2, 0),
            np.zeros((4, 3), np.float16),
            r"has no unit \(view 2, block 0\), only 2 views of 3 blocks",
        ),
        (Unit(0, 3), np.zeros((4, 3), np.float16), "has no unit"),
        (Unit(-1, 0), np.zeros((4, 3), np.float16), "has no unit"),
    ],
)
def test_wrong_rows_are_refused_and_leave_no_file(tmp_path, unit, rows, said):
    store = new_store(tmp_path)
    with pytest.raises(CacheError, match=said):
        store.write_unit(unit, rows)
    assert not list(store.path.glob("logits/c.*")) + list(store.path.glob("units/c.*"))


def test_rows_in_any_memory_order_are_stored_by_value(tmp_path):
    store = new_store(tmp_path)
    logits = logits_of(store)
    fill(store, np.asfortranarray(logits))
    np.testing.assert_array_equal(store.view(1), logits[1])


def test_a_file_that_the_kernel_cuts_short_loses_nothing(tmp_path):
    """A real short write: the limit on file size makes write(2) fail half-way, as a full disk does."""
    store = new_store(tmp_path, n=4096, classes=64, block_rows=2048, views=1)
    logits = logits_of(store)
    store.write_unit(Unit(0, 0), logits[0, :2048])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            CacheError, match=r"s.zarr: unit \(view 0, block 1\) cannot be written \(File too large\)"
        ):
            store.write_unit(Unit(0, 1), logits[0, 2048:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(store.path.rglob("*.tmp-*"))
    assert store.pending(1) == [Unit(0, 1)]
    np.testing.assert_array_equal(fill(store, logits).view(0), logits[0])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_failing_disk_at_any_flush_is_told_and_finished_units_stay(tmp_path, monkeypatch, code, nth):
    store = new_store(tmp_path)
    logits = logits_of(store)
    store.write_unit(Unit(0, 0), logits[0, :4])
    calls, fsync = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == nth:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(
        CacheError, match=rf"s.zarr: unit \(view 0, block 1\) cannot be written \({os.strerror(code)}\)"
    ):
        store.write_unit(Unit(0, 1), logits[0, 4:8])
    monkeypatch.undo()
    assert not list(store.path.rglob("*.tmp-*"))
    assert set(store.pending(2)) >= set(ALL_UNITS[2:])
    assert store.verify() == []
    np.testing.assert_array_equal(fill(store, logits).view(0), logits[0])


def test_growing_on_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    store, logits = filled_store(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CacheError, match=r"cannot be set to 5 views \(No space left on device\)"):
        store.grow(5)
    monkeypatch.undo()
    assert store.n_views == Store.open(store.path).n_views == 2
    np.testing.assert_array_equal(store.view(1), logits[1])


def test_a_folder_that_cannot_be_made_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"s.zarr: the store cannot be created \(File exists\)"):
        new_store(tmp_path / "file")

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "sync_tree", full)
    with pytest.raises(CacheError, match="No space left on device"):
        new_store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


WRITER = """
from pathlib import Path
from cache_samples import logits_of
from cache.store import Store
store = Store.open(Path({store!r}))
logits = logits_of(store)
print("ready", flush=True)
for unit in store.pending(store.n_views):
    store.write_unit(unit, logits[unit.view, store.rows_of(unit.block)])
"""


def test_kill_9_at_random_moments_costs_at_most_the_unit_in_hand(tmp_path):
    store = new_store(tmp_path, n=160, classes=500, block_rows=2, views=2)
    logits = logits_of(store)
    code = WRITER.format(store=str(store.path))
    rng = random.Random(11)
    left = [len(store.pending(2))]
    for _ in range(4):
        writer = Process("-c", code)
        assert writer.stdout.readline() == b"ready\n"
        wait_for_less(store, left[-1], writer)
        time.sleep(rng.uniform(0.0, 0.04))
        writer.kill()
        writer.communicate()
        left.append(len(store.pending(2)))
        assert store.verify() == []
        assert left[-1] <= left[-2]
        begun = {p.name for p in store.path.glob("logits/c.?.*.0")}
        finished = {f"{p.name}.0" for p in store.path.glob("units/c.*") if ".tmp-" not in p.name}
        assert len(begun - finished) <= 1  # at most the unit in hand lies there without its entry
    assert left[-1] < left[0]
    whole = fill(new_store(tmp_path / "whole", n=160, classes=500, block_rows=2, views=2), logits)
    fill(store, logits)
    for view in range(2):
        np.testing.assert_array_equal(store.view(view), logits[view])
    for file in whole.path.rglob("*"):
        if file.is_file():
            assert (store.path / file.relative_to(whole.path)).read_bytes() == file.read_bytes()
