"""A real S3 client on a real server: who comes first wins, nothing is stale, faults are one sentence."""

import asyncio
import itertools
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cache_samples import ALL_UNITS, fill, logits_of, new_store
from listening import Remarks

from cache import layout
from cache import unit as unit_module
from cache.cleanup import remove_store
from cache.errors import CacheError, StoreDamaged
from cache.storage import create_durably, is_file, location, read_file, remote, write_durably
from cache.store import Store, Unit, find_stores

pytest.importorskip("s3fs")


def new_server():
    from s3_server import S3Server  # a second of imports that other files need not wait for

    return S3Server()


@pytest.fixture(scope="module")
def server():
    server = new_server()
    yield server
    server.stop()


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """A place in a bucket of its own."""
    for name, value in {
        "ENDPOINT_URL": server.url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "MAX_ATTEMPTS": "2",
        "DEFAULT_REGION": "us-east-1", "EC2_METADATA_DISABLED": "true", "CONFIG_FILE": str(tmp_path / "none"),
        "SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(remote, "_buckets", set())
    pause = asyncio.sleep  # before a client tries again: seconds in all
    monkeypatch.setattr(asyncio, "sleep", lambda delay, *result: pause(min(delay, 0.01), *result))
    place = another_process(f"s3://b{uuid.uuid4().hex}/stores")
    place.fs.mkdir(place.drive)
    yield place
    server.fault, server.wait_s = None, 0.0


def another_process(place):
    """A place as a process sees it that has just started."""
    if not isinstance(location(str(place)), Path):
        type(location(str(place)).fs).clear_instance_cache()
    return location(str(place))


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request, tmp_path):
    if request.param == "folder":
        return tmp_path
    return (
        request.getfixturevalue("s3") if request.param == "s3" else location(f"memory://{uuid.uuid4().hex}")
    )


ORDERS = sorted(set(itertools.permutations("AABB")))


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_two_writers_of_other_bytes_leave_the_rows_of_the_first_in_every_order(place, monkeypatch, order):
    """Each creates a file of rows and then an entry. Both used to write them, and two of the orders left the
    rows of one with the entry of the other.
    """
    new_store(place)
    stores = {name: Store.open(another_process(place) / "s.zarr") for name in "AB"}
    rows = {name: logits_of(stores[name], seed)[0, 4:8] for seed, name in enumerate("AB")}
    turn, left, create = threading.Condition(), list(order), unit_module.create_durably

    def in_turn(path, *parts):
        with turn:
            assert turn.wait_for(lambda: left[0] == threading.current_thread().name, timeout=60)
            done = create(path, *parts)
            del left[0]
            turn.notify_all()
            return done

    def write(name):
        threading.current_thread().name = name
        return stores[name].write_unit(Unit(0, 1), rows[name])

    monkeypatch.setattr(unit_module, "create_durably", in_turn)
    with ThreadPoolExecutor(2) as pool:
        was_first = dict(zip("AB", pool.map(write, "AB"), strict=True))
    assert was_first == {name: name == order[0] for name in "AB"}
    for store in (*stores.values(), Store.open(place / "s.zarr")):
        assert store.verify() == []
        np.testing.assert_array_equal(store.unit(Unit(0, 1)), rows[order[0]])


def test_what_another_process_writes_and_removes_is_seen(s3):
    store = new_store(s3)
    logits = logits_of(store)
    assert (store.pending(2), find_stores(s3)) == (ALL_UNITS, [store.path])
    other = Store.open(another_process(s3) / "s.zarr")
    fill(other, logits)
    assert store.complete
    np.testing.assert_array_equal(store.view(1), logits[1])
    other.discard(Unit(1, 0))
    assert other.write_unit(Unit(1, 0), -logits[1, :4])
    np.testing.assert_array_equal(store.view(1)[:4], -logits[1, :4])  # although its entry was known
    other.discard(Unit(1, 0))
    assert store.pending(2) == [Unit(1, 0)]
    remove_store(other.path)
    assert find_stores(s3) == []


def test_requests_of_a_life_are_few_and_at_once(s3, server):
    """157 for 16 units once: most of them looks at what was not there, one after the other."""
    server.requests.clear()
    store = new_store(s3, n=32)
    logits = logits_of(store)
    assert fill(store, logits).complete
    assert server.requests["PUT"] == 32 + 13  # units, a store's files and the question for If-None-Match
    assert server.requests.total() <= 51
    reader = Store.open(another_process(s3) / "s.zarr")
    server.requests.clear()
    assert reader.whole_views == 2
    assert server.requests == {"LIST": 1, "GET": 16}
    server.paths.clear()
    np.testing.assert_array_equal(reader.rows(1, np.array([9, 30])), logits[1, [9, 30]])
    assert sorted(path.rpartition("/")[2] for path in server.paths) == ["c.1.2.0", "c.1.7.0"]
    server.wait_s, server.most_at_once = 0.05, 0
    np.testing.assert_array_equal(reader.view(0), logits[0])
    assert 4 <= server.most_at_once <= 8
    server.wait_s = 0.0
    assert reader.verify() == []
    server.requests.clear()
    assert reader.complete
    assert server.requests == {"LIST": 1}, "no entry is read twice"


def first_only(fault, kind):
    """A fault of the first request of a kind."""
    seen = []

    def act(method, path):
        if method == kind and "/logits/c." in path and not seen:
            seen.append(path)
            return fault
        return None

    return act


@pytest.mark.parametrize("fault", ["lose the answer", "slow down", "refuse"])
@pytest.mark.parametrize("kind", ["PUT", "GET"])
def test_a_request_that_fails_once_is_repeated(s3, server, kind, fault):
    store = new_store(s3)
    logits = logits_of(store)
    server.fault = first_only(fault, kind)
    fill(store, logits)
    np.testing.assert_array_equal(Store.open(store.path).view(0), logits[0])
    assert store.verify() == []


def test_a_server_that_ignores_the_condition_is_told_at_creation(s3, server):
    server.fault = lambda *_request: "ignore the condition"
    remarks = Remarks()
    store = new_store(s3)
    (said,) = remarks
    assert (
        "puts with If-None-Match), so two processes that write one unit at the same moment may damage" in said
    )
    assert fill(store, logits_of(store)).verify() == []


def test_a_server_that_says_only_that_a_condition_failed_is_understood(s3, server):
    server.fault = lambda kind, _path: "precondition" if kind == "PUT" else None
    assert not create_durably(s3 / "file", b"content")


def test_a_server_that_cannot_do_conditions_is_written_to_without(s3, server):
    new = s3 / "file"
    server.fault = lambda *_request: "not implemented"
    assert create_durably(new, b"content")
    assert not create_durably(new, b"other")
    assert read_file(new) == b"content"


def test_a_network_that_goes_away_in_the_middle_is_one_sentence_and_costs_nothing(s3, server, monkeypatch):
    gone = new_server()  # another door to the same buckets
    monkeypatch.setenv("AWS_ENDPOINT_URL", gone.url)
    store = new_store(another_process(s3))
    logits = logits_of(store)
    for unit in ALL_UNITS[:2]:
        store.write_unit(unit, logits[unit.view, store.rows_of(unit.block)])
    gone.stop()
    for act in (
        lambda: fill(store, logits),
        lambda: Store.open(store.path),
        lambda: find_stores(store.path.parent),
    ):
        with pytest.raises(
            CacheError, match=r"s3://.* cannot be reached .*finished units are kept$"
        ) as caught:
            act()
        assert not isinstance(caught.value, StoreDamaged)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    again = Store.open(another_process(s3) / "s.zarr")
    assert again.pending(2) == ALL_UNITS[2:]
    assert fill(again, logits).verify() == []


def test_a_missing_bucket_and_missing_credentials_are_one_sentence(s3, monkeypatch):
    for look in (find_stores, lambda place: Store.open(place / "s.zarr"), new_store):
        with pytest.raises(CacheError, match=r"^s3://nobody: there is no such bucket; make it, or correct"):
            look(location("s3://nobody/stores"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        CacheError, match=r"cannot be reached \(NoCredentialsError: Unable to locate credentials"
    ):
        find_stores(another_process(s3))


def test_a_file_is_looked_for_by_one_small_request(s3, server):
    files = {"large": bytes(1_000_000), "empty": b""}
    for name, content in files.items():
        write_durably(s3 / name, content)
    server.requests.clear()
    server.sent = 0
    assert [is_file(s3 / name) for name in (*files, "absent")] == [True, True, False]
    assert server.requests["GET"] == 3
    assert server.requests["LIST"] == 0
    assert server.sent < 3_000


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_two_processes_that_grow_a_store_without_locks_leave_a_sound_one(monkeypatch, order):
    """Each sets the length of two arrays; the last writer of each may have wanted less than the other."""
    place = location(f"memory://{uuid.uuid4().hex}")
    store = new_store(place)
    fill(store, logits_of(store))
    turn, left, both, set_views = threading.Condition(), list(order), threading.Barrier(2), layout.set_views

    def in_turn(*args):
        name = threading.current_thread().name
        if left.count(name) == 2:
            both.wait(timeout=60)  # each has read the old size
        with turn:
            assert turn.wait_for(lambda: name not in left or left[0] == name, timeout=60)
            set_views(*args)
            assert Store.open(place / "s.zarr").n_views in (2, 4, 7)
            if name in left:
                left.remove(name)
            turn.notify_all()

    with monkeypatch.context() as patch:
        patch.setattr(layout, "set_views", in_turn)
        stores = {"A": Store.open(place / "s.zarr"), "B": Store.open(place / "s.zarr")}
        threads = [
            threading.Thread(target=stores[name].grow, args=(views,), name=name)
            for name, views in (("A", 4), ("B", 7))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert stores["A"].n_views >= 4
    assert stores["B"].n_views == 7
    stores["B"].write_unit(Unit(6, 0), logits_of(stores["B"])[6, : stores["B"].block_rows])
    again = Store.open(place / "s.zarr")
    again.grow(7)  # the same command again
    assert Store.open(place / "s.zarr").n_views == 7
    assert again.finished_units() == [*ALL_UNITS, Unit(6, 0)]
