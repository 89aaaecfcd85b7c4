"""Several processes on one store: sweeping, growing; and the same store behind a URL."""

import errno
import io
import itertools
import json
import os
import pkgutil
import shutil
import signal
import uuid
from pathlib import Path

import numpy as np
import pytest
from cache_samples import (
    ALL_UNITS,
    IDENTITY,
    entry_file,
    fill,
    filled_store,
    flip_byte,
    logits_of,
    new_store,
    payload_file,
)
from fsspec.implementations.memory import MemoryFileSystem
from processes import Process
from upath import UPath

from cache import layout, storage
from cache.cleanup import leftovers, remove_store, sweep_all
from cache.errors import CacheError, FolderClosed, StoreDamaged, StoreIncomplete, StoreMismatch
from cache.manifest import Manifest
from cache.repair import repair_metadata
from cache.storage import bytes_below, location, names_in, write_durably
from cache.store import Store, Unit, find_stores

TESTS = Path(__file__).parent


def other_process(code, *, wait=True):
    """Another Python process; with `wait` its output, else the process after its first line."""
    process = Process("-c", code)
    if wait:
        out, _ = process.communicate()
        assert process.returncode == 0
        return out.decode().split()
    assert process.stdout.readline() == b"ready\n"
    return process


def test_reading_a_store_makes_no_file(tmp_path):
    store, _ = filled_store(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    again = Store.open(store.path)
    again.view(1), again.pending(2), again.verify()
    assert sorted(tmp_path.rglob("*")) == before


def test_processes_that_grow_a_store_at_once_end_at_the_largest(tmp_path):
    store, logits = filled_store(tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom cache.store import Store\n"
        f"store = Store.open(Path({str(store.path)!r}))\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nstore.grow({views})\n"
    )
    growing = [other_process(code.format(views=views), wait=False) for views in (5, 9, 3, 7)]
    for process in growing:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in growing:
        process.communicate()
        assert process.returncode == 0
    grown = Store.open(store.path)
    assert grown.n_views == 9
    assert len(grown.pending(9)) == 7 * 3
    np.testing.assert_array_equal(grown.view(1), logits[1])


WRITING = """
import sys
from pathlib import Path
from cache.storage import local as files
class Stuck(bytes):
    pass
def stop(descriptor):
    print("ready", flush=True)
    sys.stdin.read()
files.os.fsync = stop
files.LocalStorage().write(Path({path!r}), b"half a unit")
"""


def test_sweeping_takes_what_the_dead_left_and_leaves_what_is_being_written(tmp_path):
    store, _ = filled_store(tmp_path)
    file = store.path / "logits" / "c.9.9.0"
    writer = other_process(WRITING.format(path=str(file)), wait=False)
    (being_written,) = store.path.rglob("*.tmp-*")
    assert store.sweep() == 0
    assert leftovers(tmp_path) == []
    assert being_written.exists()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    half_made = tmp_path / "s.zarr.tmp-0123456789abcdef"
    (half_made / "logits").mkdir(parents=True)
    os.utime(being_written, (4e9, 4e9))  # a clock that went back would see a file from the future
    assert leftovers(tmp_path) == [half_made, being_written]
    assert store.sweep() == 1
    assert list(tmp_path.rglob("*.tmp-*")) == [half_made], "another machine may be making it"
    assert store.verify() == []
    assert sweep_all(tmp_path) == 1, "when asked, by sskt cache prune"
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.fixture
def locks_of_one_machine_only(monkeypatch):
    """A file system that does not show one machine's locks to another (NFS for folders, some mounts for all):
    here nobody's are seen.
    """
    from cache.storage import local as files

    monkeypatch.setattr(files, "_lock", lambda _descriptor, *, wait: True)


def test_a_store_under_construction_survives_the_start_of_another_machine(
    tmp_path, monkeypatch, locks_of_one_machine_only
):
    sync_tree = layout.sync_tree

    def built_late(path):
        """Another machine makes the same store, and begins its work, before this one is in place."""
        monkeypatch.setattr(layout, "sync_tree", sync_tree)
        assert new_store(tmp_path).sweep() == 0
        sync_tree(path)

    monkeypatch.setattr(layout, "sync_tree", built_late)
    store = new_store(tmp_path)
    logits = logits_of(store)
    fill(store, logits)
    np.testing.assert_array_equal(store.view(0), logits[0])
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_file_that_another_machine_sweeps_while_it_is_written_is_made_again(
    tmp_path, monkeypatch, locks_of_one_machine_only
):
    from cache.storage import local as files

    store = new_store(tmp_path)
    other, fsync, swept = Store.open(store.path), os.fsync, []

    def late(descriptor):
        fsync(descriptor)
        if not swept:
            swept.append(other.sweep())

    monkeypatch.setattr(files.os, "fsync", late)
    logits = logits_of(store)
    assert store.write_unit(Unit(0, 0), logits[0, :4])
    fill(store, logits)
    assert swept == [1]
    np.testing.assert_array_equal(store.view(0), logits[0])


def test_sweeping_all_finds_the_stores_below(tmp_path):
    store, _ = filled_store(tmp_path / "target" / "train")
    (store.path / "units" / "c.0.0.tmp-ffff").write_bytes(b"")
    assert sweep_all(tmp_path) == 1
    assert leftovers(tmp_path) == []


def test_a_file_that_is_swept_before_it_is_held_is_made_again(tmp_path, monkeypatch):
    from cache.storage import local as files

    lock, swept = files._lock, []

    def late(descriptor, *, wait):
        if wait and not swept:
            swept.extend(tmp_path.glob("*.tmp-*"))
            swept[0].unlink()
        return lock(descriptor, wait=wait)

    monkeypatch.setattr(files, "_lock", late)
    write_durably(tmp_path / "file", b"whole")
    assert len(swept) == 1
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"whole")]


def in_a_folder(tmp_path):
    return tmp_path


def in_memory():
    """A folder of its own in fsspec's memory file system, which stands for an object store."""
    return location(f"memory://{uuid.uuid4().hex}/stores")


def test_a_store_behind_a_url_lives_the_same_life():
    place = in_memory()
    assert isinstance(place, UPath)
    store = new_store(place)
    logits = logits_of(store)
    for unit in ALL_UNITS[:2]:
        store.write_unit(unit, logits[unit.view, store.rows_of(unit.block)])
    with pytest.raises(StoreIncomplete, match="view 0 lacks 1 of 3"):
        store.view(0)
    assert Store.open(store.path).pending(2) == ALL_UNITS[2:]
    fill(store, logits)
    store.grow(4)
    assert find_stores(place) == [store.path]
    again = Store.open(find_stores(place)[0])
    assert (again.n_views, again.pending(2), len(again.pending(4))) == (4, [], 6)
    for view in range(2):
        np.testing.assert_array_equal(again.view(view), logits[view])
    np.testing.assert_array_equal(again.ids, store.ids)
    assert again.verify() == []
    again.trim(1)
    assert (again.n_views, again.complete) == (1, True)
    remove_store(store.path)
    assert find_stores(place) == []


def test_files_behind_a_url_are_the_local_ones(tmp_path):
    store, logits = filled_store(tmp_path)
    remote = new_store(in_memory())
    fill(remote, logits)
    there = {
        str(f.path).partition(".zarr/")[2]: f.read_bytes() for f in remote.path.rglob("*") if f.is_file()
    }
    here = {str(f.relative_to(store.path)): f.read_bytes() for f in store.path.rglob("*") if f.is_file()}
    assert there == here


def other_comes_first(monkeypatch, nth, other):
    """Let another process act before the nth put of a group's own files."""
    calls = itertools.count(1)

    def hooked(act):
        def call(path, *parts):
            if path.parent.suffix == ".zarr" and next(calls) == nth:
                other()
            return act(path, *parts)

        return call

    for name in ("create_durably", "write_durably"):
        monkeypatch.setattr(layout, name, hooked(getattr(layout, name)))


@pytest.mark.parametrize(("nth", "first"), [(1, "11:59"), (2, "12:00")])
def test_of_processes_that_make_one_store_at_once_behind_a_url_one_does(monkeypatch, nth, first):
    """Both used to write zarr.json, and then backup.json until it was a copy of what was there."""
    place = in_memory()
    sample = new_store(place)
    path, sizes = place / "both.zarr", sample._layout
    tables = {name: getattr(sample, name) for name in layout.TABLES}
    made = []

    def make(created):
        if layout.create_group(path, Manifest(IDENTITY, {"created": created}), sizes, tables):
            made.append(created)

    other_comes_first(monkeypatch, nth, lambda: make("11:59"))
    make("12:00")
    monkeypatch.undo()
    assert made == [first]
    assert Store.open(path).manifest.made_by["created"] == first
    assert Store.open(path).verify() == []


def test_a_process_that_comes_late_behind_a_url_leaves_the_store_and_its_units(monkeypatch):
    place = in_memory()
    original = layout.create_group

    def late(path, manifest, *rest):
        monkeypatch.undo()
        first = new_store(place)
        fill(first, logits_of(first))
        return original(path, Manifest(manifest.identity, {"created": "later"}), *rest)

    monkeypatch.setattr(layout, "create_group", late)
    store = new_store(place)
    assert "created" not in store.manifest.made_by
    assert (store.complete, store.verify()) == (True, [])


@pytest.mark.parametrize("place", [in_a_folder, lambda _: in_memory()], ids=["folder", "object store"])
@pytest.mark.parametrize("change", [lambda store: store.grow(4), lambda store: store.trim(1)])
@pytest.mark.parametrize("file", ["logits", "units", "ids"])
def test_a_store_opens_while_another_process_changes_its_views(tmp_path, monkeypatch, place, change, file):
    store = new_store(place(tmp_path))
    original, changed = storage.read_file, []

    def read_file(path):
        if path.parent.name == file and not changed:
            changed.append(file)
            change(Store.open(store.path))
        return original(path)

    monkeypatch.setattr(storage, "read_file", read_file)
    assert Store.open(store.path).n_views in (1, 2, 4)
    assert changed


def test_damage_behind_a_url_is_named():
    store = new_store(in_memory())
    fill(store, logits_of(store))
    payload = payload_file(store, 1, 0)
    payload.write_bytes(payload.read_bytes()[:-1])
    with pytest.raises(StoreDamaged, match=r"memory://.*unit \(view 1, block 0\) is damaged: the file holds"):
        store.view(1)
    assert [p.unit for p in store.verify()] == [Unit(1, 0)]


def test_another_identity_behind_a_url_is_refused():
    place = in_memory()
    new_store(place)
    with pytest.raises(StoreMismatch, match=r"plan\.seed is 7 in the store and 8 in this run"):
        new_store(place, identity={"plan": {"seed": 8}})


class EndpointConnectionError(Exception):
    """What a client library raises: no OSError."""


def unreachable(*_args, **_options):
    raise EndpointConnectionError('Could not connect to the endpoint URL: "https://bucket/x"')


ON_A_NETWORK = {
    "open": lambda store: Store.open(store.path),
    "create": lambda store: new_store(store.path.parent, views=1),
    "find": lambda store: find_stores(store.path.parent),
    "view": lambda store: store.view(0),
    "table": lambda store: store.contents,
    "verify": lambda store: store.verify(),
    "pending": lambda store: store.pending(2),
    "finished": lambda store: store.finished(Unit(0, 0)),
    "write": lambda store: store.write_unit(Unit(1, 2), logits_of(store)[1, 8:]),
    "discard": lambda store: store.discard(Unit(0, 0)),
    "grow": lambda store: store.grow(3),
    "trim": lambda store: store.trim(1),
    "bytes": lambda store: store.nbytes,
    "restore": lambda store: repair_metadata(store.path),
    "remove": lambda store: remove_store(store.path),
}


@pytest.mark.parametrize("act", ON_A_NETWORK)
def test_an_object_store_out_of_reach_is_one_sentence_and_no_damage(monkeypatch, act):
    place = in_memory()
    logits = logits_of(new_store(place))
    fill(new_store(place), logits)
    store = Store.open(place / "s.zarr")
    for method in ("cat_file", "pipe_file", "info", "ls", "find", "rm", "_open"):
        monkeypatch.setattr(MemoryFileSystem, method, unreachable)
    with pytest.raises(CacheError, match=r"cannot be reached \(EndpointConnectionError: Could not") as caught:
        ON_A_NETWORK[act](store)
    assert not isinstance(caught.value, StoreDamaged)
    monkeypatch.undo()
    again = Store.open(store.path)
    assert (again.verify(), again.complete, again.n_views) == ([], True, 2)


@pytest.mark.parametrize("method", ["cat_file", "pipe_file"])
def test_a_transfer_that_fails_is_one_sentence(monkeypatch, method):
    store = new_store(in_memory())
    rows = logits_of(store)[0, :4]
    store.write_unit(Unit(0, 0), rows)
    monkeypatch.setattr(MemoryFileSystem, method, unreachable)
    for act in (lambda: store.write_unit(Unit(0, 0), rows), lambda: store.grow(5)):
        with pytest.raises(CacheError, match="cannot be reached"):
            act()
    monkeypatch.undo()
    assert len(store.pending(2)) == 5


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, code):
    store = new_store(tmp_path)

    def no_lock(*_args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("cache.storage.local.fcntl.flock", no_lock)
    with pytest.raises(CacheError, match=rf"s\.zarr\.lock: cannot be locked \({os.strerror(code)}\)"):
        store.grow(3)
    (store.path / "units" / "c.0.0.tmp-ffff").write_bytes(b"")
    assert store.sweep() == 0, "nobody can say whether it is still being written"


def test_a_url_that_no_package_opens_is_told():
    with pytest.raises(CacheError, match=r"nosuch://bucket/x: this kind of URL cannot be opened .* install"):
        location("nosuch://bucket/x")
    assert location("file:///some/folder") == Path("/some/folder")


@pytest.mark.parametrize("name", ["zarr.json", "logits/zarr.json", "units/zarr.json", "ids/zarr.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_metadata_comes_back_from_its_copy(tmp_path, name, damage):
    store, logits = filled_store(tmp_path)
    store.grow(4)
    file = store.path / name
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else whole[: len(whole) // 2])
    if damage != "gone" or name != "zarr.json":
        with pytest.raises(StoreDamaged):
            Store.open(store.path)
    assert repair_metadata(store.path) == [name]
    again = Store.open(store.path)
    assert again.verify() == []
    np.testing.assert_array_equal(again.view(1), logits[1])
    again.grow(4)
    assert (Store.open(store.path).n_views, len(again.pending(4))) == (4, 6)


def test_a_damaged_copy_of_the_metadata_is_told(tmp_path):
    store, _ = filled_store(tmp_path)
    (store.path / "zarr.json").write_bytes(b"{")
    flip_byte(store.path / "backup.json", 40)
    with pytest.raises(StoreDamaged, match=r"backup\.json: the copy of the store's metadata is damaged too"):
        repair_metadata(store.path)


def killed_at(monkeypatch, where, nth):
    """Let the nth call of something be a kill."""
    owner, _, name = where.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    original, calls = getattr(owner, name), itertools.count(1)

    def call(*args, **options):
        if next(calls) == nth:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(owner, name, call)


def killed_trim(monkeypatch, store, views, where, nth):
    killed_at(monkeypatch, where, nth)
    with pytest.raises(KeyboardInterrupt):
        store.trim(views)
    monkeypatch.undo()


METADATA = ("zarr.json", "logits/zarr.json", "units/zarr.json")
SETS = [names for n in (1, 2, 3) for names in itertools.combinations(METADATA, n)]


@pytest.mark.parametrize(
    "life",
    ["grown", "grown, not filled", "trimmed", "trimmed and grown", "killed at a unit", "killed at the sizes"],
)
def test_every_finished_unit_of_a_grown_or_trimmed_store_comes_back(tmp_path, monkeypatch, life):
    """Whichever of its three files of metadata are lost."""
    store, logits = filled_store(tmp_path, views=2 if "grown" in life else 3)
    if life == "killed at a unit":
        killed_trim(monkeypatch, store, 1, "cache.unit.UnitFiles.delete", 3)
    elif life == "killed at the sizes":
        killed_trim(monkeypatch, store, 1, "cache.layout.set_views", 2)
    elif "trimmed" in life:
        store.trim(1)
    if "grown" in life:
        store.grow(4)
    if life == "grown":
        store.write_unit(Unit(3, 1), logits[0, 4:8])
    views, finished = Store.open(store.path).n_views, set(store.finished_units())
    for n, damaged in enumerate(SETS):
        hurt = shutil.copytree(store.path, tmp_path / f"{n}.zarr")
        for name in damaged:
            (hurt / name).write_text("{}")
        assert set(repair_metadata(hurt)) >= set(damaged), damaged
        again = Store.open(hurt)
        assert again.verify() == [], damaged
        assert set(again.finished_units()) >= finished, damaged
        known = not {"logits/zarr.json", "units/zarr.json"} <= set(damaged)
        assert again.n_views == views or not known or life == "killed at the sizes", damaged
        np.testing.assert_array_equal(again.view(0), logits[0])
        again.grow(4)
        assert Store.open(hurt).n_views == 4, damaged


def test_nothing_is_restored_where_nothing_is_wrong(tmp_path, monkeypatch):
    store, _ = filled_store(tmp_path, views=3)
    killed_trim(monkeypatch, store, 1, "cache.layout.set_views", 2)
    assert repair_metadata(store.path) == []
    assert Store.open(store.path).n_views == 1


def edit_attributes(store, change):
    data = json.loads((store.path / "zarr.json").read_text())
    change(data["attributes"])
    (store.path / "zarr.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change", [lambda a: a.update(n_classes=500), lambda a: a["tables_sha256"].update(ids="0" * 64)]
)
def test_edited_attributes_are_named_and_restored(tmp_path, change):
    store = new_store(tmp_path, classes=50, top_k=6)
    edit_attributes(store, change)
    with pytest.raises(StoreDamaged, match=r"its attributes were edited .* --repair` restores it"):
        Store.open(store.path)
    assert repair_metadata(store.path) == ["zarr.json"]
    again = Store.open(store.path)
    assert (again.n_classes, again.verify()) == (50, [])


def without_sum(store):
    """The store as it would have been made before its attributes had a sum."""
    edit_attributes(store, lambda a: a.pop("attributes_sha256"))
    (store.path / "backup.json").unlink()
    assert repair_metadata(store.path) == ["backup.json"]
    return store


def test_attributes_of_an_old_store_are_held_against_the_copy(tmp_path):
    store = without_sum(new_store(tmp_path, classes=50, top_k=6))
    assert Store.open(store.path).verify() == []
    edit_attributes(store, lambda a: a.update(n_classes=500))
    ((unit, what),) = Store.open(store.path).verify()
    assert unit is None
    assert "s.zarr/zarr.json: was edited or damaged, it differs from its copy" in what
    assert repair_metadata(store.path) == ["zarr.json"]
    assert Store.open(store.path).n_classes == 50


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_lost_copy_of_the_metadata_is_named_and_written_again(tmp_path, damage):
    store, _ = filled_store(tmp_path)
    copy = store.path / "backup.json"
    whole = copy.read_bytes()
    if damage == "flipped":
        flip_byte(copy, 40)
    else:
        copy.write_bytes(whole[:100]) if damage == "cut" else copy.unlink()
    (problem,) = Store.open(store.path).verify()
    assert "s.zarr/backup.json: the copy of the metadata cannot be used" in problem.what
    assert repair_metadata(store.path) == ["backup.json"]
    assert copy.read_bytes() == whole
    assert store.verify() == []


def test_metadata_that_opens_but_is_not_what_was_made_is_named(tmp_path):
    store, _ = filled_store(tmp_path)
    file = store.path / "logits" / "zarr.json"
    file.write_text(file.read_text().replace('"NaN"', "0.0"))
    (problem,) = Store.open(store.path).verify()
    assert "logits/zarr.json: was edited or damaged" in problem.what
    assert repair_metadata(store.path) == ["logits/zarr.json"]
    assert store.verify() == []


def test_trimming_gives_the_space_back_and_keeps_the_first_views(tmp_path):
    store, logits = filled_store(tmp_path, n=400, classes=100, block_rows=150)
    before = store.nbytes
    store.trim(1)
    assert store.n_views == Store.open(store.path).n_views == 1
    assert store.nbytes < 0.75 * before
    np.testing.assert_array_equal(store.view(0), logits[0])
    assert not list(store.path.glob("*/c.1.*"))
    with pytest.raises(CacheError, match="has 1 views and cannot be cut to 2"):
        store.trim(2)
    store.grow(2)
    assert store.pending(2) == ALL_UNITS[3:]
    assert store.verify() == []


@pytest.mark.parametrize("place", [in_a_folder, lambda _: in_memory()], ids=["folder", "object store"])
def test_a_trim_that_is_killed_anywhere_leaves_a_sound_store_and_can_be_finished(
    tmp_path, monkeypatch, place
):
    steps = [("cache.unit.UnitFiles.delete", n) for n in range(1, 7)]
    for at, (where, nth) in enumerate([*steps, ("cache.layout.set_views", 1), ("cache.layout.set_views", 2)]):
        store = new_store(place(tmp_path / str(at)), views=3)
        logits = logits_of(store)
        fill(store, logits)
        killed_trim(monkeypatch, store, 1, where, nth)
        again = Store.open(store.path)
        assert again.verify() == []
        done = again.finished_units()
        assert done == [Unit(view, block) for view in range(3) for block in range(3)][: len(done)]
        assert len(done) == max(3, 10 - nth) if "delete" in where else 3
        again.trim(1)
        assert (Store.open(store.path).n_views, Store.open(store.path).verify()) == (1, [])
        assert not list(store.path.glob("*/c.[12].*"))
        np.testing.assert_array_equal(again.view(0), logits[0])


def test_a_trim_takes_what_an_older_one_left_and_says_the_bytes_that_are_there(tmp_path):
    store, logits = filled_store(tmp_path, views=4)
    for name in ("units", "logits"):  # sizes came first once, and the kill before the files
        layout.set_views(store.path, name, 2)
    store = Store.open(store.path)
    for file in (payload_file(store, 1, 1), entry_file(store, 1, 1), entry_file(store, 3, 0)):
        file.unlink()
    there = [f for view in (1, 2, 3) for f in store.path.glob(f"*/c.{view}.*")]
    told = store.beyond(1)
    assert sum(told.values()) == sum(f.stat().st_size for f in there) > 0
    assert [*told] == [Unit(3, b) for b in (2, 1, 0)] + [Unit(2, b) for b in (2, 1, 0)] + [
        Unit(1, 2),
        Unit(1, 0),
    ]
    before = store.nbytes
    store.trim(1)
    assert abs(before - store.nbytes - sum(told.values())) < 10, "but for a digit in the metadata"
    assert store.beyond(1) == {}
    np.testing.assert_array_equal(Store.open(store.path).view(0), logits[0])


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_trim_that_may_not_delete_is_told_and_loses_nothing(tmp_path, monkeypatch, code):
    store, logits = filled_store(tmp_path)

    def refused(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(CacheError, match=rf"s\.zarr: cannot be cut to 1 views \({os.strerror(code)}\); make"):
        store.trim(1)
    monkeypatch.undo()
    np.testing.assert_array_equal(Store.open(store.path).view(1), logits[1])


def test_only_a_store_is_ever_removed(tmp_path):
    store, _ = filled_store(tmp_path)
    store.grow(3)  # with a lock file
    (tmp_path / "precious").mkdir()
    for path in (tmp_path / "precious", tmp_path):
        with pytest.raises(StoreDamaged, match="is not a store, nothing was removed"):
            remove_store(path)
    remove_store(store.path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_removal_that_is_killed_leaves_no_store_and_is_swept(tmp_path, monkeypatch):
    store, _ = filled_store(tmp_path)
    monkeypatch.setattr("cache.storage.local.shutil.rmtree", unreachable)
    with pytest.raises(EndpointConnectionError):
        remove_store(store.path)
    monkeypatch.undo()
    assert not store.path.exists()
    assert find_stores(tmp_path) == []
    (left,) = leftovers(tmp_path)
    assert left.name.startswith("s.zarr.tmp-")
    assert len(new_store(tmp_path).pending(2)) == 6
    assert sweep_all(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_removal_behind_a_url_that_is_killed_anywhere_leaves_a_store_that_can_be_removed(monkeypatch):
    for nth in itertools.count(1):
        place = in_memory()
        store = new_store(place)
        logits = logits_of(store)
        fill(store, logits)
        killed_at(monkeypatch, "fsspec.implementations.memory.MemoryFileSystem.rm_file", nth)
        try:
            remove_store(store.path)
            break
        except KeyboardInterrupt:
            monkeypatch.undo()
        assert find_stores(place) == [store.path]
        if nth <= 12:  # entries, then rows: what is left is a store that lacks units
            again = new_store(place)
            assert (len(again.pending(2)), again.verify()) == (min(nth - 1, 6), [])
            assert fill(again, logits).verify() == []
            np.testing.assert_array_equal(again.view(1), logits[1])
        remove_store(store.path)
        assert names_in(store.path) == find_stores(place) == []
    assert nth == 12 + 6 + 4 + 2 + 1, "chunks of units, metadata and chunks of arrays, of the group, no kill"
    assert names_in(store.path) == find_stores(place) == []


def test_units_of_no_store_behind_a_url_are_neither_adopted_nor_deleted_on_the_way():
    """What a removal of older versions left; another process may be making its store there meanwhile."""
    place = in_memory()
    store = new_store(place)
    fill(store, logits_of(store))
    for name in ("zarr.json", "backup.json", "logits/c.0.0.0"):
        (store.path / name).unlink()
    before = place.fs.find(place.path)
    with pytest.raises(CacheError, match=r"holds units, but neither zarr\.json nor backup\.json, .* prune"):
        new_store(place)
    assert place.fs.find(place.path) == before
    remove_store(store.path)
    assert names_in(store.path) == []
    assert new_store(place).pending(2) == ALL_UNITS


def test_a_store_is_made_where_parts_of_a_removed_one_lie(tmp_path):
    store = new_store(tmp_path)
    logits = logits_of(store)
    fill(store, logits)
    for name in ("zarr.json", "backup.json", "logits/c.0.0.0"):
        (store.path / name).unlink()
    again = new_store(tmp_path)
    assert again.pending(2) == ALL_UNITS
    assert fill(again, -logits).verify() == []
    np.testing.assert_array_equal(Store.open(store.path).view(1), -logits[1])


@pytest.mark.parametrize("place", [in_a_folder, lambda _: in_memory()], ids=["folder", "object store"])
def test_a_store_that_has_lost_its_metadata_is_not_made_anew(tmp_path, place):
    place = place(tmp_path)
    store = new_store(place)
    fill(store, logits_of(store))
    (store.path / "zarr.json").unlink()
    with pytest.raises(StoreDamaged, match=r"has lost its zarr\.json; .*--repair` restores it, .* prune"):
        new_store(place)
    assert find_stores(place) == [store.path], "or a run would take it for absent, and go live"
    with pytest.raises(StoreDamaged, match=r"it has no zarr\.json; .*--repair` restores it"):
        Store.open(store.path)
    assert repair_metadata(store.path) == ["zarr.json"]
    assert Store.open(store.path).complete
    (store.path / "zarr.json").unlink()
    remove_store(store.path)
    assert new_store(place).pending(2) == ALL_UNITS


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "s.zarr" / "logits").mkdir(parents=True)
    (tmp_path / "s.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"holds mine\.txt, which is no part of a store"):
        new_store(tmp_path)
    assert (tmp_path / "s.zarr" / "mine.txt").read_text() == "mine"


def topk_rows(rng, n, classes, k):
    """Sound top-k rows: values, class indices, four numbers."""
    rows = np.empty((n, 2 * k + 4), np.uint16)
    rows[:, :k] = -np.sort(-rng.normal(0, 9, (n, k)).astype(np.float16)).view(np.uint16)
    rows[:, k : 2 * k] = np.argsort(rng.random((n, classes)))[:, :k]
    rows[:, 2 * k :] = -rng.random((n, 4)).astype(np.float16).view(np.uint16)
    return rows


def test_a_top_k_store_keeps_its_rows_and_any_zarr_reader_reads_them(tmp_path):
    import tensorstore
    import zarr

    store = new_store(tmp_path, classes=50, top_k=6)
    assert (store.top_k, store.n_classes, store.form.width) == (6, 50, 16)
    rng = np.random.default_rng(3)
    rows = {
        u: topk_rows(rng, store.rows_of(u.block).stop - store.rows_of(u.block).start, 50, 6)
        for u in ALL_UNITS
    }
    for unit, block in rows.items():
        store.write_unit(unit, block)
    again = Store.open(store.path)
    want = np.concatenate([rows[Unit(1, block)] for block in range(3)])
    np.testing.assert_array_equal(again.view(1), want)
    assert again.view(1).dtype == np.uint16
    assert again.verify() == []
    np.testing.assert_array_equal(zarr.open_group(store.path, mode="r")["topk"][1], want)
    spec = {"driver": "zarr3", "kvstore": f"file://{store.path}/topk/"}
    np.testing.assert_array_equal(tensorstore.open(spec).result()[1].read().result(), want)


def test_unsound_top_k_rows_are_refused(tmp_path):
    store = new_store(tmp_path, classes=50, top_k=6)
    good = topk_rows(np.random.default_rng(0), 4, 50, 6)
    for column, value in ((0, np.float16(np.inf).view(np.uint16)), (13, 0x7E00), (7, 50)):
        bad = good.copy()
        bad[2, column] = value
        with pytest.raises(CacheError, match="was given 1 of 4 rows with NaN"):
            store.write_unit(Unit(0, 0), bad)
    with pytest.raises(CacheError, match=r"was given \(4, 16\) float16, expected \(4, 16\) uint16"):
        store.write_unit(Unit(0, 0), good.view(np.float16))
    for k in (0, 50, 51):
        with pytest.raises(CacheError, match=f"top {k} of 50 classes cannot be made"):
            new_store(tmp_path / "other", classes=50, top_k=k)


def close(monkeypatch, *folders):
    """Let the system refuse this user to look into some folders, as it never does to root."""

    def refusing(act, inside):
        def call(path=".", *args, **options):
            for folder in folders if isinstance(path, str | Path) else ():
                if folder in Path(path).parents or (inside and folder == Path(path)):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return act(path, *args, **options)

        return call

    for name in ("stat", "listdir", "scandir", "open"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), inside=name != "stat"))
    monkeypatch.setattr(io, "open", refusing(io.open, inside=True))  # pathlib's


def test_a_search_passes_over_folders_that_it_cannot_look_into(tmp_path, monkeypatch):
    store = new_store(tmp_path / "b")
    theirs = new_store(tmp_path / "b" / "theirs")
    (tmp_path / "lost+found").mkdir()
    left = store.path / "units" / "c.0.0.tmp-ffff"
    left.write_bytes(b"")
    close(monkeypatch, tmp_path / "lost+found", theirs.path)
    assert find_stores(tmp_path) == [store.path]
    assert leftovers(tmp_path) == [left]
    assert sweep_all(tmp_path) == 1


LOOKING = {
    "find": lambda path: find_stores(path.parent),
    "find it": find_stores,
    "leftovers": lambda path: leftovers(path.parent),
    "sweep all": lambda path: sweep_all(path.parent),
    "open": Store.open,
    "create": lambda path: new_store(path.parent),
    "restore": repair_metadata,
    "remove": remove_store,
    "bytes": bytes_below,
}


@pytest.mark.parametrize("act", LOOKING)
def test_a_folder_that_cannot_be_looked_into_is_one_sentence(tmp_path, monkeypatch, act):
    path = new_store(tmp_path / "private").path
    close(monkeypatch, path.parent)
    with pytest.raises(
        FolderClosed, match=r"private.*: cannot be looked into \(Permission denied\); make it"
    ):
        LOOKING[act](path)
    monkeypatch.undo()
    assert Store.open(path).verify() == []


def test_a_store_that_several_links_lead_to_is_found_once(tmp_path):
    store = new_store(tmp_path / "stores")
    for link, target in (
        ("stores/again", "."),
        ("stores/up", ".."),
        ("stores/t.zarr", "s.zarr"),
        ("z", "stores"),
    ):
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    assert find_stores(tmp_path / "stores") == [store.path]
    assert find_stores(tmp_path) == [store.path]
    assert find_stores(tmp_path / "z") == [tmp_path / "z" / "s.zarr"]
