"""Shares of ranks: everything once, evenly, early tasks early, thieves far from the owner."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schedule import Share, in_turn, own
from sskt.errors import RunError

COUNTS = st.integers(0, 60)
RANKS = st.integers(1, 9)


@given(COUNTS, RANKS)
def test_shares_are_disjoint_complete_even_and_in_order(n, n_ranks):
    shares = [own(range(n), Share(rank, n_ranks)) for rank in range(n_ranks)]
    assert sorted(task for share in shares for task in share) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(share == sorted(share) for share in shares)
    for done in range(min(map(len, shares))):  # after each round the first tasks of all are done
        assert sorted(share[done] for share in shares) == list(range(done * n_ranks, (done + 1) * n_ranks))


@given(COUNTS, RANKS)
def test_a_thief_takes_everything_once_its_own_first_and_others_from_their_end(n, n_ranks):
    for rank in range(n_ranks):
        share = Share(rank, n_ranks)
        order = in_turn(range(n), share, steal=True)
        mine = own(range(n), share)
        assert order[: len(mine)] == mine == in_turn(range(n), share, steal=False)
        assert sorted(order) == list(range(n))
        after = own(range(n), Share((rank + 1) % n_ranks, n_ranks)) if n_ranks > 1 else []
        assert order[len(mine) : len(mine) + len(after)] == after[::-1]


def test_the_share_comes_from_torchruns_variables(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Share.from_environment() == Share(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert Share.from_environment() == Share(2, 8)
    for rank, size in (("8", "8"), ("-1", "8"), ("two", "8"), ("0", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(RunError, match=f"RANK is '{rank}' and WORLD_SIZE is '{size}'"):
            Share.from_environment()
