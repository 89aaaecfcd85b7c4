"""`sskt cache verify`, `--recompute` and `--repair` against every fault, on a store of real digits."""

import json
import shutil

import numpy as np
import pytest
from cache_samples import crc32c, flip_byte
from click.testing import CliRunner
from programs import Tiny, save_program

from cache.errors import StoreMismatch
from cache.store import Store, Unit, find_stores
from cli import main
from pipeline.runtime.paths import Paths
from pipeline.stores.reopen import open_dataset_of
from sskt.sources.frozen import FrozenSource

UNITS = 6  # three views of two blocks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a complete store."""
    folder = tmp_path_factory.mktemp("made")
    save_program(folder / "tiny.pt2")
    patch = pytest.MonkeyPatch()
    patch.setattr("cache.layout._MAX_BLOCK_ROWS", 100)
    words = ["precompute", "--source", f"program:{folder / 'tiny.pt2'}", "--target", "digits"]
    words += ["--views", "3", "--limit", "150", "--cache-dir", str(folder / "stores")]
    result = CliRunner().invoke(main, words)
    patch.undo()
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def store(made, tmp_path):
    """A copy to hurt."""
    (path,) = find_stores(made / "stores")
    return Store.open(shutil.copytree(path, tmp_path / path.name))


def contents(store):
    """Every file but the group's own metadata, which differs in its layout after a repair."""
    return {str(f.relative_to(store.path)): f.read_bytes() for f in store.path.rglob("c.*") if f.is_file()}


def verify(store, *words):
    result = CliRunner().invoke(main, ["cache", "verify", str(store.path), "--json", *words])
    found = json.loads(result.stdout) if result.stdout else {"problems": [{"problem": result.stderr}]}
    assert result.exit_code == (0 if found.get("good") else 1), result.output
    return found


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def put_nan(path):
    """A row of NaN behind good checksums, as a bug in a writer would leave it."""
    data = bytearray(path.read_bytes())
    data[0:2] = np.float16(np.nan).tobytes()
    sound = bytes(data[:-4])
    path.write_bytes(sound + crc32c(sound).to_bytes(4, "little"))
    entry = ((1 << 32) | crc32c(sound)).to_bytes(8, "little")
    units = path.parent.parent / "units" / path.name.removesuffix(".0")
    units.write_bytes(entry + crc32c(entry).to_bytes(4, "little"))


def swap(path):
    other = path.with_name("c.0.0.0")
    path.write_bytes(other.read_bytes())


FAULTS = {
    "a flipped byte in a unit": ("logits/c.1.1.0", lambda p: flip_byte(p, 11), "checksum"),
    "a truncated unit": ("logits/c.1.1.0", cut, "bytes, expected"),
    "a deleted unit": ("logits/c.1.1.0", lambda p: p.unlink(), "the file is missing"),
    "another unit's file": ("logits/c.1.1.0", swap, "its entry states"),
    "a flipped byte in units": ("units/c.1.1", lambda p: flip_byte(p, 3), "its entry is damaged"),
    "a truncated entry": ("units/c.1.1", cut, "its entry is damaged"),
    "NaN behind a good checksum": ("logits/c.1.1.0", put_nan, "NaN or inf"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_unit_is_named_and_repaired_and_nothing_else_is_touched(made, store, fault):
    name, damage, said = FAULTS[fault]
    before = contents(store)
    times = {f: f.stat().st_mtime_ns for f in store.path.rglob("c.*")}
    damage(store.path / name)
    (problem,) = verify(store)["problems"]
    assert problem["unit"] == "unit (view 1, block 1)"
    assert said in problem["problem"]
    assert f"`sskt cache verify {store.path} --repair`" in problem["problem"]
    found = verify(store, "--repair")
    assert found["repaired"] == ["unit (view 1, block 1)"]
    assert found["problems"] == []
    assert contents(store) == before
    touched = {f.name for f, t in times.items() if f.stat().st_mtime_ns != t}
    assert touched <= {"c.1.1.0", "c.1.1"}
    assert verify(store)["problems"] == []


def edit_manifest(path):
    data = json.loads(path.read_text())
    data["attributes"]["sskt"]["identity"]["plan"]["seed"] = 8
    path.write_text(json.dumps(data))


def edit_sum(path):
    data = json.loads(path.read_text())
    data["attributes"]["tables_sha256"]["ids"] = "0" * 64
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("zarr.json", edit_sum, "its attributes were edited"),
        ("zarr.json", edit_manifest, "its manifest was edited"),
        ("zarr.json", cut, "not a readable store"),
        ("logits/zarr.json", lambda p: p.write_text("{}"), "not a readable store"),
        ("units/zarr.json", lambda p: p.unlink(), "not a readable store"),
    ],
)
def test_damaged_metadata_is_named_and_put_back(made, store, name, damage, said):
    before = contents(store)
    damage(store.path / name)
    result = CliRunner().invoke(main, ["cache", "verify", str(store.path)])
    assert result.exit_code == 1
    assert said in result.stderr
    assert f"`sskt cache verify {store.path} --repair`" in result.stderr
    found = verify(store, "--repair")
    assert (found["repaired"], found["problems"]) == ([name], [])
    assert contents(store) == before
    assert verify(store, "--recompute", "40")["agreement"]["identical"] == 1


def test_a_trimmed_store_without_metadata_and_one_without_its_copy_come_back(made, store):
    assert (
        CliRunner().invoke(main, ["cache", "prune", str(store.path), "--views", "1", "--yes"]).exit_code == 0
    )
    before = contents(store)
    (store.path / "units" / "zarr.json").write_text("{}")
    assert verify(store, "--repair")["repaired"] == ["units/zarr.json"]
    (store.path / "backup.json").unlink()
    (problem,) = verify(store)["problems"]
    assert "backup.json: the copy of the metadata cannot be used" in problem["problem"]
    found = verify(store, "--repair", "--recompute", "40")
    assert (found["repaired"], found["good"]) == (["backup.json"], True)
    assert contents(store) == before
    assert Store.open(store.path).n_views == 1


@pytest.mark.parametrize("table", ["ids", "contents", "probe_ids", "probe"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_table_is_named_and_rebuilt_from_the_pictures(made, store, table, gone):
    before = contents(store)
    (chunk,) = (store.path / table).glob("c.*")
    chunk.unlink() if gone else flip_byte(chunk, 9)
    (problem,) = verify(store)["problems"]
    assert problem["unit"] is None
    assert f"{store.path.name}/{table}" in problem["problem"]
    found = verify(store, "--repair")
    assert (found["repaired"], found["problems"]) == ([table], [])
    assert contents(store) == before


def test_everything_broken_at_once_is_repaired(made, store):
    before = contents(store)
    edit_manifest(store.path / "zarr.json")
    (store.path / "contents" / "c.0.0").unlink()
    for name in ("logits/c.0.0.0", "logits/c.2.1.0", "units/c.1.0"):
        flip_byte(store.path / name, 5)
    found = verify(store, "--repair", "--recompute", "100")
    assert found["good"]
    assert len(found["repaired"]) == 5
    assert contents(store) == before


def test_units_that_are_not_finished_are_no_damage_and_stay_so(made, store):
    store.discard(Unit(2, 0))
    flip_byte(store.path / "logits" / "c.0.1.0", 5)
    found = verify(store, "--repair")
    assert found["repaired"] == ["unit (view 0, block 1)"]
    assert "1 unit(s) are not finished yet" in found["verdict"]
    assert store.pending(3) == [Unit(2, 0)]


def test_rows_of_many_units_are_asked_about_in_full_forwards(made, store, monkeypatch):
    group, forwards = FrozenSource._group, []
    monkeypatch.setattr(FrozenSource, "_group", lambda f, pixels: (forwards.append(1), group(f, pixels))[1])
    found = verify(store, "--recompute", "64")
    assert found["agreement"]["identical"] == 1
    assert sum(forwards) == 64 // 16
    forwards.clear()
    assert verify(store, "--recompute", "100")["agreement"]["rows"] == 100
    assert sum(forwards) == 7


def test_recomputed_rows_agree_and_wrong_ones_fail(made, store):
    found = verify(store, "--recompute", "64")
    agreement = found["agreement"]
    assert agreement["rows"] == 64
    assert agreement["identical"] == 1
    assert agreement["max_error"] == 0
    assert "64 rows are what the source says" in found["verdict"]
    rows = np.roll(store.unit(Unit(1, 0)), 1, axis=0)  # a store whose rows moved by one picture
    store.discard(Unit(1, 0))
    store.write_unit(Unit(1, 0), rows)
    assert verify(store)["problems"] == []
    found = verify(store, "--recompute", "10000")
    assert found["agreement"]["rows"] == 450
    assert found["agreement"]["same_top"] < 0.99
    assert found["agreement"]["worst"].startswith("view 1")
    assert "its rows are not what the source says" in found["verdict"]


def test_another_source_is_refused_before_anything_is_given_up(made, store, tmp_path):
    flip_byte(store.path / "logits" / "c.0.1.0", 5)
    hurt = contents(store)
    (tmp_path / "other").mkdir()
    other = save_program(tmp_path / "other" / "tiny.pt2", Tiny(seed=3))
    result = CliRunner().invoke(
        main, ["cache", "verify", str(store.path), "--repair", "--weights", str(other)]
    )
    assert result.exit_code == 1
    assert "source.weights_sha256 is" in result.stderr
    assert contents(store) == hurt
    shutil.copyfile(made / "tiny.pt2", other)
    assert verify(store, "--repair", "--weights", str(other))["good"]


def test_a_target_that_has_other_pictures_is_refused(store):
    store.manifest.identity["target"]["contents_sha256"] = "0" * 64
    with pytest.raises(StoreMismatch, match="the images of digits have changed"):
        open_dataset_of(store, Paths(), target=None)


def test_prune_shows_asks_and_removes(made, store, tmp_path):
    left = store.path / "units" / "c.0.0.tmp-0123456789abcdef"
    left.write_bytes(b"")
    run = CliRunner().invoke
    words = ["cache", "prune", "--cache-dir", str(tmp_path)]
    assert str(left) in run(main, [*words, "--dry-run"]).output
    assert left.exists()
    assert run(main, words).exit_code == 0
    assert not left.exists()
    assert run(main, ["cache", "prune", str(store.path), "--views", "1"], input="n\n").exit_code == 1
    assert Store.open(store.path).n_views == 3
    assert run(main, ["cache", "prune", str(store.path), "--views", "1", "--yes"]).exit_code == 0
    assert Store.open(store.path).n_views == 1
    assert run(main, ["cache", "prune", str(store.path), "--yes"]).exit_code == 0
    assert not store.path.exists()
    damaged = shutil.copytree(find_stores(made / "stores")[0], store.path)
    (damaged / "zarr.json").write_text("{}")
    assert run(main, ["cache", "prune", str(damaged), "--yes"]).exit_code == 0
    assert not damaged.exists()
    result = run(main, ["cache", "prune", str(tmp_path), "--yes"])
    assert result.exit_code == 1
    assert tmp_path.exists()


def test_prune_removes_a_store_that_is_named_twice_once(store, tmp_path):
    link = tmp_path / "link.zarr"
    link.symlink_to(store.path.name)
    named = [str(store.path), f"{store.path}/", str(link)]
    result = CliRunner().invoke(main, ["cache", "prune", str(link), *named, "--dry-run", "--json"])
    assert [row["what"] for row in json.loads(result.stdout)] == ["store"]
    result = CliRunner().invoke(main, ["cache", "prune", *named[:2], "--yes"])
    assert (result.exit_code, store.path.exists()) == (0, False), result.output


def test_prune_says_the_bytes_of_the_views_that_are_there_and_finishes_what_was_killed(store):
    for unit in (Unit(1, 1), Unit(2, 0), Unit(2, 1)):
        store.discard(unit)
    there = [file.stat().st_size for file in store.path.glob("*/c.1.*")]
    assert len(there) == 2, "rows and entry of one unit"
    words = ["cache", "prune", str(store.path), "--views", "1", "--json"]
    for more in ("--dry-run", "--yes"):
        (row,) = json.loads(CliRunner().invoke(main, [*words, more]).stdout)
        assert (row["what"], row["bytes"]) == ("2 views", sum(there))
    assert json.loads(CliRunner().invoke(main, [*words, "--yes"]).stdout) == []
    (store.path / "logits" / "c.2.0.0").write_bytes(b"left by a kill of older versions")
    (row,) = json.loads(CliRunner().invoke(main, [*words, "--yes"]).stdout)
    assert (row["what"], row["bytes"]) == ("2 views", 32)
    assert not list(store.path.glob("*/c.2.*"))
    assert Store.open(store.path).verify() == []


def test_ls_shows_a_store_that_has_lost_its_metadata_under_problem(store, tmp_path):
    (store.path / "zarr.json").unlink()
    (row,) = json.loads(
        CliRunner().invoke(main, ["cache", "ls", "--json", "--cache-dir", str(tmp_path)]).stdout
    )
    assert row["path"] == str(store.path)
    assert "is not a store, it has no zarr.json; `sskt cache verify" in row["problem"]


@pytest.mark.parametrize("words", [["ls"], ["prune"]])
def test_a_cache_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch, words):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", refused)
    result = CliRunner().invoke(main, ["cache", *words, "--cache-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}: cannot be looked into (Permission denied); make it")
    assert result.stderr.count("\n") == 1


def test_a_store_is_checked_against_what_was_moved_and_renamed(made, store, tmp_path):
    moved = tmp_path / "renamed.pt2"
    shutil.copyfile(made / "tiny.pt2", moved)
    found = verify(store, "--recompute", "20", "--weights", str(moved))
    assert (found["good"], found["agreement"]["max_error"]) == (True, 0)
