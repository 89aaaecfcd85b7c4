import threading

import numpy as np
import pytest
import tensorstore
import zarr
from cache_samples import (
    ALL_UNITS,
    IDENTITY,
    crc32c,
    entry_file,
    fill,
    filled_store,
    logits_of,
    new_store,
    payload_file,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import layout
from cache.errors import CacheError, StoreIncomplete, StoreMismatch
from cache.store import Store, Unit, default_block_rows, find_stores


def read_with_tensorstore(path):
    return tensorstore.open({"driver": "zarr3", "kvstore": f"file://{path}/"}).result().read().result()


def test_a_view_is_what_was_written_and_what_zarr_and_tensorstore_read(tmp_path):
    store, logits = filled_store(tmp_path)
    by_zarr = zarr.open_group(str(store.path), mode="r")
    for view in range(2):
        np.testing.assert_array_equal(store.view(view), logits[view])
        np.testing.assert_array_equal(by_zarr["logits"][view], logits[view])
        assert store.view(view).dtype == np.float16
    np.testing.assert_array_equal(read_with_tensorstore(store.path / "logits"), logits)
    for name in ("ids", "contents", "probe_ids", "probe"):
        np.testing.assert_array_equal(read_with_tensorstore(store.path / name), getattr(store, name))
    np.testing.assert_array_equal(read_with_tensorstore(store.path / "units"), by_zarr["units"][:])


def test_the_files_are_the_documented_bytes(tmp_path):
    store, logits = filled_store(
        tmp_path
    )  # 10 rows in blocks of 4: the last block has 2 rows and 2 of padding
    padding = np.full((2, 3), np.nan, dtype="<f2")
    for unit in ALL_UNITS:
        rows = logits[unit.view, store.rows_of(unit.block)]
        payload = np.concatenate([rows, padding[: 4 - len(rows)]]).astype("<f2").tobytes()
        crc = crc32c(payload)
        entry = ((1 << 32) | crc).to_bytes(8, "little")
        assert payload_file(store, unit.view, unit.block).read_bytes() == payload + crc.to_bytes(4, "little")
        assert entry_file(store, unit.view, unit.block).read_bytes() == entry + crc32c(entry).to_bytes(
            4, "little"
        )


def test_units_written_by_another_zarr_writer_read_back(tmp_path):
    store, logits = new_store(tmp_path), None
    logits = logits_of(store)
    group = zarr.open_group(str(store.path), mode="r+")
    group["logits"][:] = logits
    for unit in ALL_UNITS:
        crc = int.from_bytes(payload_file(store, unit.view, unit.block).read_bytes()[-4:], "little")
        group["units"][unit.view, unit.block] = (1 << 32) | crc
    assert store.complete
    np.testing.assert_array_equal(store.view(1), logits[1])
    assert store.verify() == []


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), n=st.integers(1, 11), block=st.integers(1, 12), classes=st.integers(1, 3))
def test_any_order_and_any_subset_of_units_reads_back_exactly(tmp_path_factory, data, n, block, classes):
    store = new_store(tmp_path_factory.mktemp("p"), n=n, classes=classes, block_rows=block, views=2)
    logits = logits_of(store, seed=n)
    units = data.draw(st.permutations(store.pending(2)))
    written = units[: data.draw(st.integers(0, len(units)))]
    for unit in written:
        store.write_unit(unit, logits[unit.view, store.rows_of(unit.block)])
    reopened = Store.open(store.path)
    assert set(reopened.pending(2)) == set(units) - set(written)
    for view in range(2):
        if any(unit.view == view for unit in set(units) - set(written)):
            with pytest.raises(StoreIncomplete):
                reopened.view(view)
        else:
            np.testing.assert_array_equal(reopened.view(view), logits[view])
    assert reopened.verify() == []


def test_sizes_ids_contents_and_probe_are_kept(tmp_path):
    store = new_store(tmp_path)
    again = Store.open(store.path)
    sizes = (again.n_views, again.n_samples, again.n_classes, again.block_rows, again.n_blocks)
    assert sizes == (2, 10, 3, 4, 3)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(again.ids, rng.permutation(30)[:10])
    np.testing.assert_array_equal(again.contents, rng.integers(0, 256, (10, 16), dtype=np.uint8))
    np.testing.assert_array_equal(again.probe, rng.integers(0, 256, (2, 3, 5, 4), dtype=np.uint8))
    np.testing.assert_array_equal(again.probe_ids, again.ids[:2])
    assert again.manifest.identity == IDENTITY
    assert [again.rows_of(block) for block in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert again.nbytes == sum(f.stat().st_size for f in store.path.rglob("*") if f.is_file())


def test_a_store_without_probe_has_an_empty_one(tmp_path):
    with_probe = new_store(tmp_path)
    args = {"ids": with_probe.ids, "contents": with_probe.contents, "n_classes": 3, "views": 1}
    store = Store.create(tmp_path / "deeper" / "t.zarr", with_probe.manifest, **args)
    assert store.probe_ids.shape == (0,)
    assert store.probe.shape[0] == 0
    assert store.verify() == []


@pytest.mark.parametrize("n", [1, 4096, 4097, 12500, 50000, 1_281_167])
def test_default_blocks_are_bounded_and_the_last_is_nearly_full(n):
    rows = default_block_rows(n)
    n_blocks = -(-n // rows)
    assert rows <= 4096
    assert n_blocks == -(-n // 4096)  # no more files than need be
    assert n - (n_blocks - 1) * rows > rows - n_blocks  # at most one row short per block


def test_rows_are_found_by_sample_id_in_the_order_asked(tmp_path):
    store = new_store(tmp_path)
    asked = store.ids[[7, 0, 3, 3]]
    np.testing.assert_array_equal(store.positions_of(asked), [7, 0, 3, 3])
    np.testing.assert_array_equal(store.positions_of([]), [])
    for absent in (int(store.ids.max()) + 1, -1, next(i for i in range(30) if i not in store.ids)):
        with pytest.raises(StoreMismatch, match=rf"no row for sample id {absent} \(1 of 3 ids are absent\)"):
            store.positions_of([store.ids[0], absent, store.ids[1]])


def test_an_incomplete_view_is_refused_with_the_count_and_the_remedy(tmp_path):
    store = new_store(tmp_path)
    logits = logits_of(store)
    assert store.pending(2) == ALL_UNITS
    assert not store.complete
    store.write_unit(Unit(1, 2), logits[1, 8:])
    with pytest.raises(StoreIncomplete, match=r"view 1 lacks 2 of 3 units; run the same precompute again"):
        store.view(1)
    with pytest.raises(StoreIncomplete, match="view 0 lacks 3 of 3"):
        store.view(0)
    for view in (-1, 2):
        with pytest.raises(StoreIncomplete, match=f"has no view {view}, its 2 views count from 0"):
            store.view(view)
    assert fill(store, logits).complete


def test_growing_keeps_what_is_finished_and_asks_only_for_the_rest(tmp_path):
    store, logits = filled_store(tmp_path)
    before = {f: f.read_bytes() for f in store.path.rglob("c.*")}
    onlooker = Store.open(store.path)
    store.grow(2)
    store.grow(1)
    assert store.n_views == 2
    store.grow(4)
    assert store.pending(4) == [Unit(view, block) for view in (2, 3) for block in range(3)]
    assert store.pending(2) == []
    assert {f: f.read_bytes() for f in before} == before
    np.testing.assert_array_equal(store.view(1), logits[1])
    onlooker.grow(3)  # knows of two views only, and must not take the fourth away
    assert onlooker.n_views == Store.open(store.path).n_views == 4
    more = np.concatenate([logits, logits[::-1]])
    fill(store, more)
    np.testing.assert_array_equal(read_with_tensorstore(store.path / "logits"), more)


def test_a_kill_between_the_two_steps_of_growing_leaves_a_store_that_opens(tmp_path, monkeypatch):
    store, logits = filled_store(tmp_path)
    calls = []

    def once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    original = layout.set_views
    monkeypatch.setattr(layout, "set_views", once)
    with pytest.raises(KeyboardInterrupt):
        store.grow(5)
    monkeypatch.undo()
    again = Store.open(store.path)
    assert again.n_views == 2
    assert again.complete
    again.grow(3)
    assert Store.open(store.path).n_views == 3
    np.testing.assert_array_equal(again.view(0), logits[0])


def test_creating_where_a_store_is_opens_it_with_its_units_and_grows_it(tmp_path):
    _, logits = filled_store(tmp_path)
    again = new_store(tmp_path, views=3)
    assert (again.n_views, len(again.pending(3))) == (3, 3)
    np.testing.assert_array_equal(again.view(0), logits[0])
    with pytest.raises(StoreMismatch, match=r"plan.seed is 7 in the store and absent in this run"):
        new_store(tmp_path, identity={**IDENTITY, "plan": {"kind": "pad-crop-flip"}})
    with pytest.raises(StoreMismatch, match="or other sample ids"):
        new_store(tmp_path, seed=5)
    with pytest.raises(StoreMismatch, match="10 samples of 3 classes, this run has 10 of 4"):
        new_store(tmp_path, classes=4)


def test_the_loser_of_two_creators_opens_the_winners_store(tmp_path, monkeypatch):
    original = layout.sync_tree

    def winner_comes_first(temporary):
        monkeypatch.setattr(layout, "sync_tree", original)
        store = new_store(tmp_path)
        store.write_unit(Unit(0, 0), logits_of(store)[0, :4])
        original(temporary)

    monkeypatch.setattr(layout, "sync_tree", winner_comes_first)
    loser = new_store(tmp_path)
    assert len(loser.pending(2)) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_many_creators_at_once_share_one_store(tmp_path):
    barrier, made = threading.Barrier(4), []

    def create():
        barrier.wait()
        made.append(new_store(tmp_path))

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    for store, unit in zip(made, ALL_UNITS, strict=False):
        store.write_unit(unit, logits_of(store)[unit.view, store.rows_of(unit.block)])
    assert made[0].pending(2) == ALL_UNITS[4:]
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": np.array([1, 2, 1])}, "3 sample ids, expected at least one and none twice"),
        ({"ids": np.empty(0, np.int64), "contents": np.empty((0, 16), np.uint8)}, "0 sample ids"),
        ({"ids": np.array([1, 2, 3], np.int32)}, r"ids is \(3,\) int32, expected \(3,\) int64"),
        ({"contents": np.zeros((3, 15), np.uint8)}, r"contents is \(3, 15\) uint8, expected \(3, 16\) uint8"),
        ({"probe_ids": np.array([1])}, r"probe is \(0, 3, 1, 1\) uint8, expected \(1, 3, 1, 1\)"),
        ({"views": 0}, "n_views=0.*at least 1"),
        ({"n_classes": 0}, "n_classes=0.*at least 1"),
        ({"block_rows": -2}, "block_rows=-2.*at least 1"),
    ],
)
def test_what_makes_no_store_is_refused_before_anything_is_written(tmp_path, change, said):
    store = new_store(tmp_path / "other")
    args = {"ids": np.array([5, 6, 7]), "contents": np.zeros((3, 16), np.uint8), "n_classes": 2, "views": 1}
    with pytest.raises(CacheError, match=said):
        Store.create(tmp_path / "x.zarr", store.manifest, **{**args, **change})
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_stores_are_found_at_any_depth_and_nothing_else(tmp_path):
    first, second = tmp_path / "cifar10" / "train" / "imagenet", tmp_path / "digits" / "train" / "p"
    stores = [new_store(folder) for folder in (first, second)]
    (first / "b.zarr.tmp-12-abc" / "in.zarr").mkdir(parents=True)
    (first / "b.zarr.tmp-12-abc" / "in.zarr" / "zarr.json").write_text("{}")
    (second / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("")
    assert find_stores(tmp_path) == sorted(store.path for store in stores)
    assert find_stores(tmp_path / "nowhere") == []


def test_ids_that_count_up_take_next_to_nothing_and_older_stores_keep_theirs(tmp_path, monkeypatch):
    n = 20_000
    with_probe = new_store(tmp_path)
    args = {
        "ids": np.arange(n),
        "contents": np.random.default_rng(0).integers(0, 256, (n, 16), np.uint8),
        "n_classes": 2,
        "views": 1,
    }
    store = Store.create(tmp_path / "new.zarr", with_probe.manifest, **args)
    assert (store.path / "ids" / "c.0").stat().st_size < n / 10
    np.testing.assert_array_equal(read_with_tensorstore(store.path / "ids"), args["ids"])
    monkeypatch.setattr(layout, "_COMPRESSORS", {})  # as stores were made before
    old = Store.create(tmp_path / "old.zarr", with_probe.manifest, **args)
    monkeypatch.undo()
    whole = (old.path / "ids" / "c.0").read_bytes()
    assert len(whole) == 8 * n + 4
    np.testing.assert_array_equal(Store.open(old.path).ids, args["ids"])
    (old.path / "ids" / "c.0").unlink()
    layout.write_table(old.path, "ids", args["ids"])
    assert (old.path / "ids" / "c.0").read_bytes() == whole
    assert old.verify() == []


def test_a_table_of_zeros_is_put_back_by_removing_what_lies_there(tmp_path):
    sample = new_store(tmp_path)
    zeros = np.zeros((3, 16), np.uint8)
    store = Store.create(
        tmp_path / "z.zarr", sample.manifest, ids=np.arange(3), contents=zeros, n_classes=2, views=1
    )
    (store.path / "contents" / "c.0.0").write_bytes(b"rubbish")
    assert len(store.verify()) == 1
    layout.write_table(store.path, "contents", zeros)
    assert store.verify() == []
