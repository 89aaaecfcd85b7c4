"""Several processes train one student: each sample once, and the gradients of the whole batch."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_samples import filled_store
from processes import Process
from programs import save_program

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.data.loader import Sampler, shuffled_batches
from pipeline.runtime.distributed import World
from sskt.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
N = 90

TRAIN = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from pipeline import api
from pipeline.api import *
from pipeline.train.trainer import Trainer
from sskt.students import WrappedBackbone

folder, source, out, batch_norm = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "bn"
torch.manual_seed(0)
layers = [nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6) if batch_norm else nn.Identity(), nn.ReLU(),
          nn.Conv2d(6, 9, 3)]
class WithMore(nn.Sequential):  # with weights that play no part, as a pretrained network's own head
    def __init__(self, *layers):
        super().__init__(*layers)
        self.fc = nn.Linear(9, 5)
    def forward(self, x):
        for layer in list(self)[:-1]:
            x = layer(x)
        return x
network = WithMore(*layers) if sys.argv[4] == "more" else nn.Sequential(*layers)
seen, step = [], Trainer._take_step
def watched(self, batch):
    seen.append((self.epoch, batch.positions.tolist()))
    step(self, batch)
Trainer._take_step = watched
api.train("digits", out=out, model=WrappedBackbone(network, side_px=32),
    sources=(source,), labels="cached", views=2, limit=90,
    paths=Paths(folder / "data", folder / "stores"), epochs=3, batch_size=13, lr=0.05,
    execution=choose_execution(device="cpu", threads=1), amp="fp32")
if sys.argv[4] == "more":  # and a second run in the same processes
    api.train("digits", out=out.with_name("second"), method="scratch", limit=90,
        paths=Paths(folder / "data", folder / "stores"), epochs=1,
        execution=choose_execution(device="cpu", threads=1))
rank = os.environ.get("RANK", "0")
out.with_suffix(f".{rank}.json").write_text(json.dumps(seen))
if sys.argv[4] in ("plain", "bn"):  # the rate of each step, and an average of the weights
    trainers, epoch = [], Trainer.train_epoch
    def kept(self, *more):
        trainers.append(self)
        return epoch(self, *more)
    Trainer.train_epoch = kept
    api.train("digits", out=out.with_name(out.name + "-fast"), model=WrappedBackbone(network, side_px=32),
        method="scratch", recipe="fast", epochs=3, batch_size=13, lr=0.05, views=2, limit=90, amp="fp32",
        paths=Paths(folder / "data", folder / "stores"), execution=choose_execution(device="cpu", threads=1))
    torch.save(trainers[-1].scored.state_dict(), out.with_suffix(f".{rank}.pt"))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    paths = Paths(folder / "data", folder / "stores")
    api.precompute(["digits"], [source], views=2, paths=paths, limit=N)
    (folder / "train.py").write_text(TRAIN)
    return folder, source


def launch(project, out: Path, n_ranks: int, kind: str = "plain") -> None:
    folder, source = project
    run_ranks((folder / "train.py", folder, source, out, kind), n_ranks)


def run_ranks(words: tuple, n_ranks: int) -> list[str]:
    """Run a script in each of some ranks; returns what they print."""
    world, printed = [], []
    port, n = str(free_port()), str(n_ranks)
    for rank in map(str, range(n_ranks)):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}  # by torchrun
        told = told | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if n_ranks > 1 else {}
        world.append(Process(*words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **told}))
    for process in world:
        output, said = process.communicate()
        assert process.returncode == 0, said.decode()
        printed.append(output.decode())
    return printed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def both(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    for n_ranks in (1, 2):
        launch(project, folder / str(n_ranks), n_ranks)
    return folder


def test_two_ranks_see_every_sample_once_an_epoch(both):
    seen = [json.loads((both / f"2.{rank}.json").read_text()) for rank in range(2)]
    alone = json.loads((both / "1.0.json").read_text())
    assert len(seen[0]) == len(seen[1]) == len(alone) == 3 * 7
    for epoch in range(3):
        together = [p for rank in seen for e, positions in rank for p in positions if e == epoch]
        assert sorted(together) == list(range(N))
    for (_, first), (_, second), (_, whole) in zip(*seen, alone, strict=True):
        assert first + second == whole


@pytest.mark.parametrize("kind", ["", "-fast"])
def test_two_ranks_take_the_steps_of_one_process(both, kind):
    """No batch norm, uneven parts (13 samples a step): the weights after 21 steps are the same, and so is
    their average.
    """
    from safetensors.torch import load_file

    one, two = (load_file(both / f"{n}{kind}" / "student.safetensors") for n in (1, 2))
    assert set(one) == set(two)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(metrics(both / f"1{kind}"), metrics(both / f"2{kind}"), strict=True):
        for name in ("train_loss", "primary_loss", "train_top1", "test_top1", "test_loss"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5), name


def test_one_rank_writes_and_the_run_goes_on_with_two(project, both, tmp_path):
    assert json.loads((both / "2" / "config.json").read_text())["ranks"] == 2
    assert (both / "2" / "summary.json").is_file()
    launch(project, tmp_path / "bn", 2, "bn")  # ranks whose batch statistics differ must agree in the end
    state = torch.load(tmp_path / "bn" / "last.pt", weights_only=True)
    assert len(state["ranks"]) == 2
    assert state["ranks"][0]["sums"]["n"] == 0, "after a whole epoch nothing is half counted"
    averages = [torch.load(tmp_path / f"bn.{rank}.pt", weights_only=True) for rank in range(2)]
    assert averages[0].keys() == averages[1].keys()
    assert any(name.endswith("running_var") for name in averages[0])
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())


def test_ranks_train_a_backbone_with_idle_weights_and_then_another_run(project, tmp_path):
    launch(project, tmp_path / "more", 2, "more")
    for name in ("more", "second"):
        assert (tmp_path / name / "summary.json").is_file()


@pytest.mark.parametrize(("n", "batch_size", "world"), [(90, 13, 2), (101, 10, 3), (64, 64, 4), (7, 7, 7)])
def test_the_parts_of_a_step_make_the_whole(n, batch_size, world):
    orders = [Sampler(n, batch_size, 5, World(rank, world)) for rank in range(world)]
    whole = shuffled_batches(n, batch_size, seed=5, epoch=2)
    for step, positions in enumerate(whole):
        parts = [order.steps(2)[step] for order in orders]
        assert np.array_equal(np.concatenate(parts), positions)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert orders[0].size_of(step) == len(positions)
        weights = [World(r, world).weight(len(part), len(positions)) for r, part in enumerate(parts)]
        assert sum(weights) == pytest.approx(world)
    rows = np.concatenate([order.positions(2) for order in orders])
    assert sorted(rows) == list(range(n))


def test_a_rank_reads_only_its_rows_of_a_view(project):
    folder, _ = project
    store = Store.open(find_stores(folder / "stores")[0])
    share = Sampler(N, 13, 0, World(1, 2)).positions(0)
    assert abs(len(share) - N / 2) <= 7
    rows = store.rows(1, share)
    assert rows.shape == (len(share), 7)
    assert np.array_equal(rows, store.view(1)[share])


def test_what_processes_cannot_share_is_refused(project, tmp_path, monkeypatch):
    folder, source = project
    monkeypatch.setattr("pipeline.train.run.join_world", _Joined)
    arguments = {
        "paths": Paths(folder / "data", folder / "stores"),
        "execution": choose_execution(device="cpu", threads=1),
        "limit": N,
    }
    with pytest.raises(RunError, match=r"a step has 2 samples and 4 processes share them"):
        api.train("digits", out=tmp_path / "a", sources=(source,), batch_size=2, **arguments)
    with pytest.raises(
        RunError, match=r"--gradient-cosine weigh compares gradients of whole batches, which 4"
    ):
        api.train("digits", out=tmp_path / "c", sources=(source,), gradient_cosine="weigh", **arguments)
    with pytest.raises(RunError, match=r"--labels write-through fills a store from one process"):
        api.train("digits", out=tmp_path / "b", sources=(source,), labels="write-through", **arguments)


class _First(World):
    """The first of ranks without their processes."""

    def broadcast(self, value):
        return value


class _Joined:
    """Four ranks, without their processes."""

    def __init__(self, device: torch.device) -> None: ...

    def __enter__(self) -> World:
        return _First(0, 4)

    def __exit__(self, *_: object) -> None: ...


SHARE = """
import sys
from pathlib import Path
import numpy as np
import torch
from cache import Store, StoreDamaged, StoreIncomplete, Unit
from pipeline.runtime import join_world
from pipeline.source_outputs.shared_reading import SharedReading

store, seen, read = Store.open(Path(sys.argv[1])), set(), Store.rows
def watched(self, view, rows):
    seen.update((rows // self.block_rows).tolist())
    return read(self, view, rows)
Store.rows = watched
with join_world(torch.device("cpu")) as world:
    reading = SharedReading(world)
    for seed in range(3):
        n = 0 if (seed, world.rank) == (2, 1) else 11
        rows = np.random.default_rng([seed, world.rank]).integers(0, store.n_samples, n)
        assert np.array_equal(reading.rows(store, 0, rows), read(store, 0, rows))
    assert {block % 2 for block in seen} <= {world.rank}, seen
    if world.is_first:
        payload = store.path / "logits" / "c.0.3.0"
        payload.write_bytes(payload.read_bytes()[::-1])
    world.broadcast(value=True)
    try:
        reading.rows(store, 0, np.arange(store.n_samples))
    except StoreDamaged as damage:
        print(damage)
    world.broadcast(value=True)
    if world.is_first:
        store.discard(Unit(0, 3))
    world.broadcast(value=True)
    try:
        reading.rows(store, 0, np.arange(store.n_samples))
    except StoreIncomplete as lacking:
        print(lacking)
"""


def test_ranks_read_only_their_units_and_all_hear_what_is_wrong(tmp_path):
    store, _ = filled_store(tmp_path, n=20, classes=5, block_rows=3, views=1)
    (tmp_path / "share.py").write_text(SHARE)
    for words in run_ranks((tmp_path / "share.py", store.path), 2):
        assert "c.0.3.0: unit (view 0, block 3) is damaged" in words
        assert "unit (view 0, block 3) is not finished" in words
