"""Stage one as users run it: several processes, signals, object stores, shared decodes, compiled sources."""

import json
import os
import random
import re
import shutil
import signal
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import shared
from listening import Remarks
from processes import PATIENCE_S, Process, run_python
from programs import Tiny, save_program

import pipeline.precompute.estimate as estimating
import pipeline.precompute.fill as filling
import pipeline.precompute.worker as work
import pipeline.runtime.memory as memory
import pipeline.stores.fill as fill
from cache.cleanup import leftovers
from cache.errors import CacheError, StoreMismatch
from cache.storage import location
from cache.store import Store, Unit, find_stores
from cli import main
from pipeline import api
from pipeline.commands.options import build_execution
from pipeline.data.augmentation import Augmentation
from pipeline.runtime.execution import choose_execution
from pipeline.runtime.paths import Paths
from pipeline.runtime.progress import Progress
from sskt.errors import SourceError, TargetError
from sskt.sources.forward import Forward
from sskt.sources.frozen import FrozenSource
from sskt.topk import decode

pytestmark = pytest.mark.usefixtures("narrow")

ROOT = Path(__file__).resolve().parents[1]
CLI = ["-m", "cli", "precompute", "--target", "digits", "--source"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return f"program:{save_program(tmp_path_factory.mktemp('source') / 'tiny.pt2')}"


def precompute(stores, source, *, target="digits", views=2, **more):
    """Stage one in this process; `more` goes to choose_execution and precompute."""
    how = {k: more.pop(k) for k in ("batch_size", "compiled", "renderer") if k in more}
    execution = choose_execution(**{"device": "cpu", "amp": "fp32", "renderer": "torch", "threads": 2, **how})
    settings = {"limit": 300, "augmentation": Augmentation(), **more}
    return api.precompute(
        [target],
        [source] if isinstance(source, str) else source,
        views=views,
        paths=Paths(stores.parent / "data", stores),
        execution=execution,
        **settings,
    )


def only_store(folder):
    (path,) = find_stores(folder)
    return Store.open(path)


def files_of(store):
    """Every unit, entry and table of a store, by name."""
    names = ("logits", "units", "ids", "contents", "probe_ids", "probe")
    return {f"{n}/{f.name}": f.read_bytes() for n in names for f in (store.path / n).glob("c*")}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """The files of a store of so many views that one process made without a stop."""
    folder = tmp_path_factory.mktemp("undisturbed")
    precompute(folder / "stores", source, views=33, renderer="auto")
    files = files_of(only_store(folder / "stores"))

    def of_views(n):
        parts = ((name, name.partition("/")[0] in ("logits", "units")) for name in files)
        return {name: files[name] for name, is_part in parts if not is_part or int(name.split(".")[1]) < n}

    assert len(of_views(33)) == len(files) == len(of_views(32)) + 2
    return of_views


def wait_for_a_unit(stores):
    deadline = time.monotonic() + PATIENCE_S
    while not any(any(path.glob("units/c.*")) for path in find_stores(stores)):
        assert time.monotonic() < deadline, f"nothing was written in {PATIENCE_S} s"
        time.sleep(0.005)


def environment(rank, n_ranks):
    return {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(n_ranks), "OMP_NUM_THREADS": "1"}


def run_ranks(words, n_ranks):
    return [Process(*words, cwd=ROOT, env=environment(rank, n_ranks)) for rank in range(n_ranks)]


TORCHRUN = """
import multiprocessing
import sys
import cli
import torch
from torch.distributed.launcher import LaunchConfig, elastic_launch
from pipeline.runtime.distributed import join_world

def rank():
    cli.main(sys.argv[1:], standalone_mode=False)
    with join_world(torch.device("cpu")):
        for run in range(3):
            with join_world(torch.device("cpu")) as world:
                assert world.all_gather((run, world.rank)) == [(run, 0), (run, 1)]
                assert world.broadcast(world.is_first)

# what torchrun calls; its own ranks are new Pythons, which take seconds to import what is imported here
multiprocessing.current_process()._config["daemon"] = False  # or it could not start any
one_node = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
elastic_launch(LaunchConfig(nproc_per_node=2, start_method="fork", max_restarts=0, **one_node), rank)()
"""


def test_torchruns_ranks_fill_one_store_of_which_one_reports_and_join_once_for_a_series(
    tmp_path, source, undisturbed
):
    (tmp_path / "both.py").write_text(TORCHRUN)
    words = [tmp_path / "both.py", *CLI[2:], source]
    words += ["--cache-dir", str(tmp_path / "two"), "--views", "8", "--limit", "300", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_python(*words, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["views"] == 8
    assert row["rows_done"] == 4 * 300, "its own share"
    assert files_of(only_store(tmp_path / "two")) == undisturbed(8)


def test_a_lost_ranks_share_is_done_by_the_same_command_without_a_rank(tmp_path, source):
    words = [*CLI, source, "--cache-dir", str(tmp_path / "two"), "--views", "30", "--limit", "300"]
    world = run_ranks(words, 2)
    wait_for_a_unit(tmp_path / "two")
    world[1].send_signal(signal.SIGKILL)
    outputs = [rank.communicate() for rank in world]
    assert [rank.returncode for rank in world] == [0, -signal.SIGKILL]
    assert b"tiny.pt2" in outputs[0][0]
    left = only_store(tmp_path / "two").pending(30)
    assert {unit.view % 2 for unit in left} == {1}, "each rank does its own share, and no other"
    assert f"{len(left)} units are the other ranks'; run the command again" in outputs[0][1].decode()
    (report,) = precompute(tmp_path / "two", source, views=30, renderer="auto")
    assert report.rows_done == len(left) * 300
    assert only_store(tmp_path / "two").verify() == []


def test_the_same_command_twice_at_once_is_sound(tmp_path, source, undisturbed):
    words = [*CLI, source, "--cache-dir", str(tmp_path / "two"), "--views", "9", "--limit", "300", "--json"]
    processes = [Process(*words, cwd=ROOT) for _ in range(2)]
    rows = [json.loads(process.communicate()[0])[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert 9 * 300 <= sum(row["rows_done"] for row in rows) <= 2 * 9 * 300
    assert files_of(only_store(tmp_path / "two")) == undisturbed(9)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_one_line_and_the_same_command_goes_on(
    tmp_path, source, undisturbed, number, code
):
    words = [*CLI, source, "--cache-dir", str(tmp_path / "stores"), "--views", "24", "--limit", "300"]
    process = Process(*words, cwd=ROOT)
    wait_for_a_unit(tmp_path / "stores")
    process.send_signal(number)
    said = process.communicate()[1].decode()
    assert process.returncode == code
    assert (
        said.splitlines()[-1] == "stopped; finished units are kept, and the same command continues from there"
    )
    assert "Traceback" not in said
    store = only_store(tmp_path / "stores")
    done = 24 - len(store.pending(24))
    assert 0 < done < 24
    assert not list(tmp_path.rglob("*.tmp-*"))
    (report,) = precompute(tmp_path / "stores", source, views=24, renderer="auto")
    assert report.rows_done == (24 - done) * 300
    assert files_of(store) == undisturbed(24)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_kill_9_at_random_moments_leaves_what_an_uninterrupted_run_leaves(
    tmp_path, source, undisturbed, n_ranks
):
    """A short form of benchmarks/kill_campaign.py. From 10,000 rows on the source would be compiled."""
    words = [*CLI, source, "--cache-dir", str(tmp_path / "hurt"), "--views", "33", "--limit", "300"]
    rng = random.Random(n_ranks)
    left = 33
    for _ in range(3 - n_ranks):
        world = run_ranks(words, n_ranks)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and any(rank.poll() is None for rank in world):
            if (found := find_stores(tmp_path / "hurt")) and len(Store.open(found[0]).pending(33)) < left:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        for rank in world:
            rank.kill()
            rank.communicate()
        left = len(only_store(tmp_path / "hurt").pending(33))
        assert only_store(tmp_path / "hurt").verify() == []
    (report,) = precompute(tmp_path / "hurt", source, views=33, renderer="auto")
    assert report.rows_done == left * 300
    assert files_of(only_store(tmp_path / "hurt")) == undisturbed(33)
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.mark.parametrize("limit", [300, 60], ids=["batches", "one batch"])
@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "object store"])
def test_with_slow_writes_at_most_one_unit_is_unwritten_and_on_object_stores_half_the_next(
    tmp_path, source, monkeypatch, limit, on_disk
):
    submit, write = FrozenSource.submit, Store.write_unit
    rows = {"begun": 0, "written": 0}
    unwritten: list[int] = []

    def counted(frozen, pixels):
        rows["begun"] += len(pixels)
        unwritten.append(rows["begun"] - rows["written"])
        return submit(frozen, pixels)

    def slow(store, unit, block):
        time.sleep(0.05)
        rows["written"] += len(block)
        write(store, unit, block)

    monkeypatch.setattr(work, "local_path", lambda path: path if on_disk else None)
    monkeypatch.setattr(FrozenSource, "submit", counted)
    monkeypatch.setattr(Store, "write_unit", slow)
    precompute(tmp_path / "stores", source, views=4, limit=limit)
    assert rows == {"begun": 4 * limit, "written": 4 * limit}
    if on_disk or limit == 60:  # a unit of one batch is the next one's half and more
        assert max(unwritten) == limit
    else:
        assert limit < max(unwritten) <= 1.5 * limit, "the next unit is begun meanwhile"


def test_ctrl_c_ends_a_run_only_after_the_write_that_is_under_way(tmp_path, source, monkeypatch):
    write, advance = Store.write_unit, Progress.advance
    events: list[str] = []

    def slow(store, unit, block):
        events.append("begin")
        time.sleep(0.1)
        write(store, unit, block)
        events.append("end")

    def stopped(progress, n, note="", *, bar=None):
        if events:
            raise KeyboardInterrupt
        advance(progress, n, note, bar=bar)

    monkeypatch.setattr(Store, "write_unit", slow)
    monkeypatch.setattr(Progress, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        precompute(tmp_path / "stores", source, views=3)
    assert events == ["begin", "end"]
    assert only_store(tmp_path / "stores").pending(3) == [Unit(1, 0), Unit(2, 0)]


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_where_there_is_no_terminal_long_work_leaves_a_line_a_minute_and_one_rank_speaks(
    monkeypatch, capsys, rank, shown
):
    now = [0.0]
    monkeypatch.setattr("pipeline.runtime.progress.monotonic", lambda: now[0])
    monkeypatch.setenv("RANK", rank)
    with Progress() as progress:
        bars = [progress.add("imagenet", total=5000, done=1000), progress.add("places365", total=5000)]
        for _ in range(31):  # five seconds each
            now[0] += 5
            for bar in bars:
                progress.advance(50, "epoch 1", bar=bar)
    said = capsys.readouterr()
    first = (
        "imagenet: 1,300 of 5,000 (26%), 10/s, 0:06:10 left, epoch 1; "
        "places365: 250 of 5,000 (5%), 8/s, 0:09:30 left, epoch 1"
    )
    lines = said.err.splitlines()
    assert said.out == ""
    assert len(lines) == (3 if shown else 0), "at 30, 90 and 150 s"
    assert lines[:1] == [first] * shown


def test_a_source_that_fails_does_not_cost_the_other_its_unit(tmp_path, source):
    class Bad(Tiny):
        def forward(self, x):
            some = x[..., ::2].mean((1, 2, 3)) < x[..., 1::2].mean((1, 2, 3))  # all would be refused before
            return super().forward(x).where(some[:, None], torch.nan)

    bad = f"program:{save_program(tmp_path / 'bad.pt2', Bad())}"
    with pytest.raises(
        SourceError, match=r"bad\.pt2 gave NaN.*view 0, samples .*nothing of this unit was kept"
    ):
        precompute(tmp_path / "stores", [bad, source])
    units = {path.parent.name: len(Store.open(path).pending(2)) for path in find_stores(tmp_path / "stores")}
    assert units == {"program-bad": 2, "program-tiny": 1}


def test_stores_behind_a_url_are_filled_shared_and_read(tmp_path, source, monkeypatch):
    place = location(f"memory://{uuid.uuid4().hex}")
    paths = Paths(tmp_path / "data", place)
    execution = choose_execution(device="cpu", amp="fp32", renderer="torch", threads=2)
    said = Remarks(but_for="declares nothing")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        common = {"augmentation": Augmentation(), "paths": paths, "execution": execution, "limit": 300}
        (report,) = api.precompute(["digits"], [source], views=4, **common)
        assert report.rows_done == 2 * 300
    assert said == [
        "digits/train: 2 units are the other ranks'; run the command again if one of them is lost"
    ]
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    precompute(tmp_path / "local", source, views=4)
    assert only_store(place).view(3).tobytes() == only_store(tmp_path / "local").view(3).tobytes()
    summary = api.train("digits", epochs=1, out=tmp_path / "run", **common)
    assert summary["labels"] == "cached"


@pytest.mark.parametrize("renderer", ["dali", "torch"])
def test_views_that_share_a_decode_make_the_same_store(tmp_path, source, renderer, monkeypatch):
    settings = {"target": f"imagefolder:{shared('data/scene15')}", "views": 6, "renderer": renderer}
    settings["augmentation"] = Augmentation(side_px=48, source_side_px=48)
    kept: list[int] = []
    plenty = work.memory_for_images
    monkeypatch.setattr(work, "memory_for_images", lambda: kept.append(1) or plenty())
    precompute(tmp_path / "shared", source, limit=60, **settings)
    assert len(kept) == 2, "views 0 to 3 and 4 to 5 are a decode each"
    monkeypatch.setattr(work, "memory_for_images", lambda: 0)
    precompute(tmp_path / "apart", source, limit=60, **settings)
    assert files_of(only_store(tmp_path / "shared")) == files_of(only_store(tmp_path / "apart"))


def test_more_views_and_another_source_add_to_what_is_there(tmp_path, source):
    other = f"program:{save_program(tmp_path / 'other.pt2', Tiny(seed=5))}"
    precompute(tmp_path / "stores", source, views=2)
    before = files_of(only_store(tmp_path / "stores"))
    reports = precompute(tmp_path / "stores", [source, other], views=5)
    assert [report.rows_done for report in reports] == [3 * 300, 5 * 300]
    (path,) = [p for p in find_stores(tmp_path / "stores") if p.parent.name == "program-tiny"]
    after = files_of(Store.open(path))
    assert {name: after[name] for name in before} == before


def test_a_source_of_two_names_is_computed_once(tmp_path, source):
    folder = Path(source.removeprefix("program:")).parent
    again = f"program:{folder}/../{folder.name}/tiny.pt2"
    said = Remarks(but_for="declares nothing")
    (report,) = precompute(tmp_path / "stores", [source, again])
    assert report.rows_done == 2 * 300
    assert said == [f"{again} is the same source as {source}; it is computed once"]


def test_a_wrong_name_among_targets_costs_no_work(tmp_path, source):
    for wrong in ("nosuch", f"imagefolder:{tmp_path / 'absent'}"):
        with pytest.raises(TargetError, match=r"nosuch|absent"):
            api.precompute(["digits", wrong], [source], paths=Paths(tmp_path, tmp_path / "stores"), limit=60)
        assert find_stores(tmp_path / "stores") == []


def test_what_is_finished_is_noticed_before_any_picture_or_source_is_touched(tmp_path, source, monkeypatch):
    precompute(tmp_path / "stores", source)

    def never(*_args, **_options):
        raise AssertionError("nothing is to be done")

    monkeypatch.setattr(fill, "open_frozen", never)
    monkeypatch.setattr(filling, "open_worker", never)
    said = Remarks(but_for="declares nothing")
    (report,) = precompute(tmp_path / "stores", source)
    assert report.rows_done == 0
    assert said == ["digits/train: all 2 view(s) of 1 source(s) are already there"]


def test_the_top_k_of_a_row_are_those_of_all_logits_and_train(tmp_path):
    from torch import nn

    class Wide(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 80)
            with torch.no_grad():
                self.linear.weight.copy_(torch.randn(80, 12, generator=torch.Generator().manual_seed(1)))

    wide = f"program:{save_program(tmp_path / 'wide.pt2', Wide())}"
    precompute(tmp_path / "all", wide)
    said = Remarks(but_for="declares nothing")
    precompute(tmp_path / "top", wide, top_k=10)
    dense, top = only_store(tmp_path / "all"), only_store(tmp_path / "top")
    assert (top.top_k, top.form.width, said) == (10, 24, [])
    logits = torch.from_numpy(dense.view(1))
    back = decode(torch.from_numpy(top.view(1)), 80, 3.0)
    assert torch.equal(back.topk(10, dim=1).values, logits.topk(10, dim=1).values)
    gap = (logits.double() / 3).softmax(1).topk(10, dim=1).values - (back.double() / 3).softmax(1).topk(
        10, 1
    ).values
    assert gap.abs().max() < 0.01
    common = {"augmentation": Augmentation(), "limit": 300, "labels": "cached"}
    execution = choose_execution(device="cpu", amp="fp32", renderer="torch", threads=2)
    for stores in ("all", "top"):
        paths = Paths(tmp_path / "data", tmp_path / stores)
        out = tmp_path / f"run-{stores}"
        summary = api.train("digits", epochs=1, out=out, paths=paths, execution=execution, **common)
        assert summary["labels"] == "cached"
    said.clear()
    precompute(tmp_path / "top", wide, top_k=70)
    assert said == ["program:wide.pt2: all 80 logits are kept, the top 70 would take no less"]


def test_a_large_store_keeps_the_top_64_unless_told_otherwise(tmp_path, monkeypatch):
    import pipeline.stores.match as match

    class Huge(Tiny):
        def forward(self, x):
            return super().forward(x).repeat(1, 30)

    huge = f"program:{save_program(tmp_path / 'huge.pt2', Huge())}"
    monkeypatch.setattr(match, "DENSE_BUDGET", 300 * 210 * 2 * 2 - 1)
    said = Remarks(but_for="declares nothing")
    precompute(tmp_path / "stores", huge)
    assert only_store(tmp_path / "stores").top_k == 64
    assert said[0].startswith("program:huge.pt2: all 210 logits of 2 view(s) would take")
    said.clear()
    (report,) = precompute(tmp_path / "stores", huge, views=3)
    assert (report.rows_done, only_store(tmp_path / "stores").top_k) == (300, 64), "the views there stay"
    assert f"{report.path} is there and holds the top 64; --top-k 0 keeps all" in said[0]
    precompute(tmp_path / "other", huge, top_k=0)
    assert only_store(tmp_path / "other").top_k is None
    precompute(tmp_path / "other", huge, views=4)  # grown beyond the budget, what is there decides
    assert (only_store(tmp_path / "other").top_k, only_store(tmp_path / "other").n_views) == (None, 4)


def test_a_store_of_the_top_classes_grows_without_being_named_again(tmp_path):
    class Wide(Tiny):
        def forward(self, x):
            return super().forward(x).repeat(1, 30)

    wide = f"program:{save_program(tmp_path / 'wide.pt2', Wide())}"
    stores = tmp_path / "stores"
    for k in (8, 20):
        precompute(stores, wide, top_k=k, views=1, limit=50)
    precompute(stores, wide, top_k=30, views=1, limit=40)  # of other pictures
    said = Remarks(but_for="declares nothing")
    (report,) = precompute(stores, wide, views=2, limit=50)
    assert (report.rows_done, Store.open(report.path).top_k) == (50, 20)
    assert said[0].endswith("holds the top 20; --top-k 0 keeps all")
    assert len(find_stores(stores)) == 3
    (report,) = precompute(stores, wide, top_k=0, views=1, limit=50)
    assert report.rows_done == 50
    (dense,) = precompute(stores, wide, views=1, limit=50)
    assert (dense.path, dense.rows_done) == (report.path, 0), "all logits, where they are"
    shutil.rmtree(dense.path)
    for path in find_stores(stores):
        (path / "units" / "zarr.json").write_text("{}")
    said.clear()
    (report,) = precompute(stores, wide, views=1, limit=50)
    assert Store.open(report.path).top_k is None
    assert sum(sentence.endswith("it is passed over") for sentence in said) == 3


def test_compiled_rows_are_the_plain_ones_up_to_rounding_and_a_resumed_run_stays_compiled(tmp_path, source):
    precompute(tmp_path / "plain", source, views=1)
    precompute(tmp_path / "compiled", source, views=1, compiled=True)
    a, b = only_store(tmp_path / "plain").view(0), only_store(tmp_path / "compiled").view(0)
    np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=2e-3, atol=2e-3)
    assert only_store(tmp_path / "compiled").manifest.made_by["compiled"] is True
    precompute(tmp_path / "compiled", source, views=2)  # auto: a job this small would not be compiled
    precompute(tmp_path / "again", source, views=2, compiled=True)
    assert files_of(only_store(tmp_path / "compiled")) == files_of(only_store(tmp_path / "again"))


def test_where_nothing_compiles_it_is_said_and_the_work_is_done(tmp_path, source, monkeypatch):
    import sskt.sources.frozen as frozen

    def no_compiler(_function, _device):
        def fail(*_args):
            raise RuntimeError("no C++ compiler\nat all")

        return fail

    monkeypatch.setattr(frozen, "compile_network", no_compiler)
    monkeypatch.setattr("pipeline.runtime.execution._COMPILE_FROM", 1)
    said = Remarks(but_for="declares nothing")
    precompute(tmp_path / "stores", source)
    assert only_store(tmp_path / "stores").complete
    (sentence,) = said
    assert sentence.startswith(
        "program:tiny.pt2 cannot be compiled here (no C++ compiler); install a C++ comp"
    )
    assert sentence.endswith("it runs uncompiled in fp32")
    with pytest.raises(SourceError, match="cannot be compiled here"):
        precompute(tmp_path / "other", source, compiled=True)


def test_an_estimate_counts_what_is_left_and_makes_nothing(tmp_path, source, monkeypatch):
    monkeypatch.setattr(estimating, "_PROBE_S", 0.05)
    precompute(tmp_path / "stores", source, views=2)
    before = sorted((tmp_path / "stores").rglob("*"))
    execution = choose_execution(device="cpu", amp="fp32", renderer="torch", threads=2)
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    common = {"augmentation": Augmentation(), "limit": 300, "paths": paths, "execution": execution}
    one, total = api.estimate(["digits"], [source], views=10, **common)
    assert (one["rows"], one["bytes_per_row"], one["bytes"]) == (8 * 300, 14, 10 * 300 * 14)
    assert total["rows"] == 8 * 300
    assert total["hours"] >= one["hours"] > 0
    expected = total["hours"] * 3600 / (300 / one["forward_img_s"])
    assert total["pays_after"] == pytest.approx(expected)
    assert sorted((tmp_path / "stores").rglob("*")) == before


def test_an_estimate_where_nothing_can_be_written_says_so_and_a_killed_one_leaves_what_prune_finds(
    tmp_path, monkeypatch
):
    def full(path, _data):
        path.write_bytes(b"")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(estimating, "write_durably", full)
    with pytest.raises(CacheError, match=r"stores: 99 bytes cannot be written \(No space left on device\)"):
        estimating._writing_rate(tmp_path / "stores", 99)
    assert [path.name for path in leftovers(tmp_path / "stores")] == ["write-probe.tmp-0"]


def test_memory_and_cores_are_those_of_the_container_shared_by_the_ranks_here(tmp_path, monkeypatch):
    def put(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert memory._memory_limits(tmp_path) == []
    put("proc/self/cgroup", "0::/job_7/step_0\n")
    put("sys/fs/cgroup/job_7/step_0/memory.max", "max\n")
    put("sys/fs/cgroup/job_7/memory.max", "8000000\n")
    assert memory._memory_limits(tmp_path) == [8000000]
    put("proc/self/cgroup", "5:cpu,memory:/docker/a\n4:cpuset:/docker/a\n")
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000000\n")
    assert memory._memory_limits(tmp_path) == [4000000]

    monkeypatch.setattr(memory, "_memory_limits", lambda: [8000000])
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.memory_for_images() == 500000
    assert choose_execution(device="cpu").threads == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert choose_execution(device="cpu").threads == 1
    assert build_execution("cpu", "auto", None).threads == 1
    assert choose_execution(device="cpu", threads=3).threads == 3


def test_a_source_that_does_not_run_leaves_no_store_that_holds_on_to_what_failed(tmp_path):
    fixed = f"program:{save_program(tmp_path / 'two.pt2', fixed_batch=True)}"
    with pytest.raises(SourceError, match="takes batches of 2, asked for 16; pass --batch-size 2"):
        precompute(tmp_path / "stores", fixed, batch_size=16)
    assert find_stores(tmp_path / "stores") == []
    precompute(tmp_path / "stores", fixed, batch_size=2)
    assert only_store(tmp_path / "stores").pending(2) == []


def test_a_store_made_on_a_gpu_goes_on_there_and_is_compared_anywhere(tmp_path, source, monkeypatch):
    stores = tmp_path / "stores"
    with monkeypatch.context() as gpu:
        made_by, on_gpu = fill._made_by, {"compute": "fp16", "rows": 256, "device": "cuda"}
        gpu.setattr(fill, "_made_by", lambda *about: made_by(*about) | on_gpu)
        gpu.setattr(fill, "recorded_forward", lambda *_: Forward())
        precompute(stores, source)
    store = only_store(stores)
    here = r"\.zarr: its rows were computed in fp16 on a GPU.* another --cache-dir"
    with pytest.raises(StoreMismatch, match=here):
        precompute(stores, source, views=3)
    cut = store.path / "logits" / "c.0.0.0"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-3])
    words = ["cache", "verify", str(store.path)]
    assert re.search(here, CliRunner().invoke(main, [*words, "--repair"]).stderr)
    cut.write_bytes(whole)
    rows: list[int] = []
    group = FrozenSource._group

    def counted(frozen, pixels):
        rows.append(frozen.forward.batch_size)
        return group(frozen, pixels)

    monkeypatch.setattr(FrozenSource, "_group", counted)
    assert CliRunner().invoke(main, [*words, "--recompute", "20"]).exit_code == 0
    assert set(rows) == {Forward().batch_size}
