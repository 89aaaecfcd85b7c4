"""Tasks and the shares of ranks: everything once, evenly, early tasks early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.unit import Unit
from pipeline.precompute.sharding import share_of, split_tasks
from pipeline.runtime.distributed import World
from sskt.errors import RunError

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
