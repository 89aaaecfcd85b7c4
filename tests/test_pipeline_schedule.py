"""Shares of ranks: everything once, evenly, early tasks early, thieves far from the owner."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.unit import Unit
from pipeline.precompute.sharding import share_of, split_tasks, task_order
from pipeline.runtime.distributed import World
from sskt.errors import RunError

_SPEC = importlib.util.spec_from_file_location(
    "scheduling", Path(__file__).parents[1] / "benchmarks" / "scheduling.py"
)
scheduling = importlib.util.module_from_spec(_SPEC)
sys.modules["scheduling"] = scheduling  # its dataclasses look themselves up
_SPEC.loader.exec_module(scheduling)

COUNTS = st.integers(0, 60)
RANKS = st.integers(1, 9)


@given(COUNTS, RANKS)
def test_shares_are_disjoint_complete_even_and_in_order(n, n_ranks):
    shares = [share_of(range(n), World(rank, n_ranks)) for rank in range(n_ranks)]
    assert sorted(task for share in shares for task in share) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(share == sorted(share) for share in shares)
    for done in range(min(map(len, shares))):  # after each round the first tasks of all are done
        assert sorted(share[done] for share in shares) == list(range(done * n_ranks, (done + 1) * n_ranks))


@given(COUNTS, RANKS)
def test_a_thief_takes_everything_once_its_own_first_and_others_from_their_end(n, n_ranks):
    for rank in range(n_ranks):
        share = World(rank, n_ranks)
        order = task_order(range(n), share, steal=True)
        mine = share_of(range(n), share)
        assert order[: len(mine)] == mine == task_order(range(n), share, steal=False)
        assert sorted(order) == list(range(n))
        after = share_of(range(n), World((rank + 1) % n_ranks, n_ranks)) if n_ranks > 1 else []
        assert order[len(mine) : len(mine) + len(after)] == after[::-1]


def test_the_share_comes_from_torchruns_variables(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert World.from_environment() == World(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert World.from_environment() == World(2, 8)
    for rank, size in (("8", "8"), ("-1", "8"), ("two", "8"), ("0", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(RunError, match=f"RANK is '{rank}' and WORLD_SIZE is '{size}'"):
            World.from_environment()


@given(
    views=st.integers(1, 6),
    n_blocks=st.integers(1, 20),
    n_workers=st.integers(1, 12),
    mtbf_s=st.sampled_from([None, 200.0, 1000.0]),
    locks=st.booleans(),
    seed=st.integers(0, 1000),
    all_die_at=st.sampled_from([None, 70.0, 500.0]),
    stay_dead=st.booleans(),
)
def test_a_cluster_that_fails_finishes_every_unit_once(
    views, n_blocks, n_workers, mtbf_s, locks, seed, all_die_at, stay_dead
):
    """The simulation asserts on its way: one claim a unit, a unit counts once, a death costs one unit."""
    job = scheduling.simulate(
        views,
        n_blocks,
        100,
        n_workers,
        rate=2.0,
        mtbf_s=mtbf_s,
        locks=locks,
        seed=seed,
        all_die_at=all_die_at,
        restart_s=None
        if stay_dead and locks
        else 30.0,  # without locks, nobody takes a lost rank's share over
    )
    assert job.seconds >= job.ideal
    if mtbf_s is None and all_die_at is None:
        assert job.lost == job.deaths == 0
        if locks:  # start-up, and at the end one unit of the slowest worker
            assert job.seconds <= job.ideal + 60 + 100 / (2.0 * 0.9 / 1.1) + 1 + 1e-6


def test_locks_let_the_living_do_a_dead_ranks_share_at_once():
    common = {"rate": 10.0, "mtbf_s": 2000.0, "seed": 3}
    shared_work = scheduling.simulate(5, 40, 100, 8, locks=True, restart_s=None, **common)
    alone = scheduling.simulate(5, 40, 100, 8, locks=False, restart_s=3600.0, **common)
    assert alone.deaths > 0
    assert shared_work.seconds < alone.seconds


@given(views=st.integers(1, 20), n_blocks=st.integers(1, 9), decodes=st.booleans())
def test_tasks_hold_every_unit_once_and_early_views_come_first(views, n_blocks, decodes):
    tasks = split_tasks(views, n_blocks, decodes=decodes)
    assert sorted(unit for task in tasks for unit in task) == [
        Unit(view, block) for view in range(views) for block in range(n_blocks)
    ]
    for task in tasks:  # what shares a decode is of one block, and at most four views
        assert len({unit.block for unit in task}) == 1
        assert [unit.view for unit in task] == list(range(task[0].view, task[0].view + len(task)))
        assert len(task) == (min(4, views - task[0].view) if decodes else 1)
    assert [task[0] for task in tasks] == sorted(task[0] for task in tasks)


@pytest.mark.parametrize("n_workers", [1, 8])
def test_hours_of_a_cluster_that_never_fails_are_those_of_the_formula(n_workers):
    job = scheduling.simulate(10, 320, 4096, n_workers, rate=48.0, mtbf_s=None, locks=True)
    assert job.ideal == pytest.approx(10 * 320 * 4096 / (48 * n_workers))
    assert job.ideal <= job.seconds - 60 <= job.ideal * 1.001 + (n_workers > 1) * 4096 / (48 * 0.8)
