"""`--engine ray`: the bytes of the local engine; and its driver, over a stand-in for Ray in this process."""

import importlib.util
import logging
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_images import make_folders
from PIL import Image
from processes import run_python
from programs import Tiny, save_program

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.precompute import engine_ray, fill, ray_cluster
from pipeline.precompute.worker import Worker
from sskt.errors import MissingExtraError, RunError, SettingError, SourceError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return f"program:{save_program(tmp_path_factory.mktemp('source') / 'tiny.pt2')}"


def precompute(stores, source, *, target="digits", views=6, limit=60, **more):
    execution = choose_execution(device="cpu", amp="fp32", renderer="torch", threads=1)
    paths = Paths(stores.parent / "data", stores)
    return api.precompute(
        [target], [source], views=views, limit=limit, paths=paths, execution=execution, **more
    )


def files_of(folder):
    """Every chunk of the only store, by name."""
    (path,) = find_stores(folder)
    assert Store.open(path).complete
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("c*") if file.is_file()}


def test_a_cluster_on_this_machine_makes_the_bytes_of_this_process(tmp_path, source):
    words = ["-m", "cli", "precompute", "--target", "digits", "--source", source, "--views", "4"]
    words += ["--limit", "60", "--device", "cpu", "--cache-dir", "ray", "--engine", "ray", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
    environment["RAY_prestart_worker_first_driver"] = "0"  # one is needed, not one for each core
    done = run_python(*words, cwd=tmp_path, env=environment)
    if "timed out during startup" in done.stderr:
        pytest.skip("Ray gives its own processes 30 s to start, and this machine is too busy for that")
    assert done.returncode == 0, done.stderr
    assert "tiny.pt2" in done.stdout
    precompute(tmp_path / "local", source, views=4)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")


class StandIn:
    """What the engine uses of Ray, with every task run here, in a worker of its own if `fresh`."""

    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        def __init__(self, cause):
            super().__init__("a page of trace")
            self.cause = cause

    def __init__(self, *, fresh=True):
        self.exceptions = self
        self.fresh, self.before = fresh, {}  # what happens before the n-th task
        self.calls, self.cancelled, self.how = [], [], {}

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 4.0}

    def nodes(self):
        node = {"NodeManagerAddress": "10.0.0.7", "Resources": {"CPU": 4.0}, "Alive": True}
        return [node | {"NodeID": "a"}]

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "a")

    def put(self, value):
        return value

    def remote(self, **how):
        self.how = how
        return lambda function: SimpleNamespace(remote=lambda *words: self._submit(function, words))

    def _submit(self, function, words):
        self.calls.append((function.__name__, words))
        return len(self.calls) - 1

    def wait(self, refs, *, num_returns=1, timeout=None):
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref):
        self.before.get(ref, lambda: None)()
        if self.fresh:
            engine_ray._opened = None
        function, words = self.calls[ref]
        try:
            return getattr(engine_ray, function)(*words)
        except Exception as error:
            raise self.RayTaskError(error) from error

    def cancel(self, ref):
        self.cancelled.append(ref)


@pytest.fixture
def ray(monkeypatch, tmp_path):
    monkeypatch.setattr(engine_ray, "_opened", None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # a worker's are its own
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    stand_in = StandIn()
    monkeypatch.setattr(ray_cluster, "library", lambda *_, **__: stand_in)
    return stand_in


def groups(ray):
    return [words[3] for name, words in ray.calls if name == "_do"]


def test_a_rerun_does_what_is_left_and_remarks_are_passed_on_once(tmp_path, source, ray, monkeypatch):
    precompute(tmp_path / "stores", source, views=2)
    said: list[str] = []
    log = SimpleNamespace(log=lambda _level, text: said.append(text), info=said.append)
    monkeypatch.setattr(engine_ray, "log", log)
    monkeypatch.setattr(fill, "log", log)
    (report,) = precompute(tmp_path / "stores", source, engine="ray", workers=2)
    assert (report.rows_done, report.views) == (4 * 60, 6)
    assert report.write_s > 0
    assert sorted(unit.view for group in groups(ray) for task in group for unit in task) == [2, 3, 4, 5]
    assert ["declares nothing" in remark for remark in said] == [True]
    assert ray.how == {"num_cpus": 2, "max_retries": 20, "max_calls": 0, "scheduling_strategy": "SPREAD"}
    assert os.environ["LOCAL_WORLD_SIZE"] == "2", "two workers share the node's memory"
    assert "LOCAL_RANK" not in os.environ
    precompute(tmp_path / "local", source)
    assert files_of(tmp_path / "stores") == files_of(tmp_path / "local")
    (report,) = precompute(tmp_path / "stores", source, engine="ray")
    assert report.rows_done == 0
    assert said[-1] == "digits/train: all 6 view(s) of 1 source(s) are already there"


@pytest.mark.parametrize(("has", "n_imports"), [({"CPU": 8.0}, 2), ({"CPU": 8.0, "GPU": 1.0}, 0)])
def test_a_process_on_every_node_without_gpus_imports_before_the_driver_does(
    ray, monkeypatch, has, n_imports
):
    nodes = [{"Alive": alive, "NodeID": str(i)} for i, alive in enumerate((True, False, True))]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    with ray_cluster.connected_early("pipeline.api"):
        assert ray.calls == [("_import", ("pipeline.api",))] * n_imports


def test_small_tasks_are_grouped_once_their_seconds_are_known(tmp_path, source, ray, monkeypatch):
    ray.fresh = False
    now, do = [0.0], Worker.do

    def five_seconds_a_task(worker, tasks):
        now[0] += 5 * len(tasks)
        do(worker, tasks)

    monkeypatch.setattr(Worker, "do", five_seconds_a_task)
    monkeypatch.setattr(engine_ray, "perf_counter", lambda: now[0])
    precompute(tmp_path / "stores", source, views=40, limit=20, engine="ray", workers=2)
    sizes = [len(group) for group in groups(ray)]
    assert sizes[:2] == [1, 1]
    assert max(sizes) == 6, "of 5 s each: 30 s"
    assert sizes[-1] == 1, "the last ones are shared out"
    assert sum(sizes) == 40


def test_a_node_with_other_images_is_refused_before_it_makes_a_store(tmp_path, source, ray):
    make_folders(tmp_path / "own")
    image = next((tmp_path / "own" / "train").rglob("*.png"))

    def change():
        Image.fromarray(np.full((30, 30, 3), 90, np.uint8)).save(image)

    ray.before = {2: change}  # after the first look, and one task
    with pytest.raises(RunError) as caught:
        precompute(tmp_path / "s", source, target="imagefolder:own", limit=None, engine="ray", workers=1)
    (store,) = find_stores(tmp_path / "s")
    assert str(caught.value).startswith(
        f"node 10.0.0.7: imagefolder:own/train is not what the first node has, which fills {store} "
        f"(target.contents_sha256 is "
    ), caught.value
    assert str(caught.value).endswith("give every node the same images, labels and weights")


def test_an_error_is_the_workers_own_and_what_is_in_flight_is_cancelled(tmp_path, ray):
    class Bad(Tiny):
        def forward(self, x):
            some = x[..., ::2].mean((1, 2, 3)) < x[..., 1::2].mean((1, 2, 3))  # all would be refused before
            return super().forward(x).where(some[:, None], torch.nan)

    bad = f"program:{save_program(tmp_path / 'bad.pt2', Bad())}"
    with pytest.raises(SourceError, match=r"bad\.pt2 gave NaN.*nothing of this unit was kept"):
        precompute(tmp_path / "stores", bad, engine="ray", workers=3)
    assert ray.cancelled == [1, 2, 3]


def test_ctrl_c_cancels_what_is_in_flight_and_a_task_that_ray_gives_up_is_one_sentence(tmp_path, source, ray):
    def stop():
        raise KeyboardInterrupt

    ray.before = {1: stop}
    with pytest.raises(KeyboardInterrupt):
        precompute(tmp_path / "stores", source, engine="ray", workers=2)
    assert ray.cancelled == [1, 2]

    def lost():
        raise ray.RayError("the worker died\nand a page more")

    ray.before = {len(ray.calls): lost}
    with pytest.raises(RunError, match=r"^Ray gave up a task, .* \(the worker died\); finished units are"):
        precompute(tmp_path / "stores", source, engine="ray", workers=2)


def test_a_folder_that_a_node_lacks_is_named(tmp_path, source, ray, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    ray.before = {0: (tmp_path / "gone").rmdir}
    with pytest.raises(RunError, match=r"node 10\.0\.0\.7 has no folder .*gone, where the command was"):
        precompute(tmp_path / "stores", source, engine="ray")


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path, source, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=rf"^the Ray cluster at {address} cannot be reached .*; check RAY_"):
        precompute(tmp_path / "stores", source, engine="ray")


def test_ray_is_imported_when_it_is_asked_for_and_its_extra_is_named(tmp_path, source, monkeypatch):
    done = run_python(
        "-c", "import sys, cli, pipeline.api, pipeline.commands.precompute; print('ray' in sys.modules)"
    )
    assert done.stdout == "False\n"
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(MissingExtraError, match=r"^--engine ray needs ray, .*pip install 'sskt\[ray\]'"):
        precompute(tmp_path / "stores", source, engine="ray")
    assert "ray" not in sys.modules or found("ray")
    with pytest.raises(SettingError, match=r"^engine is 'dask', expected local or ray"):
        precompute(tmp_path / "stores", source, engine="dask")
    with pytest.raises(SettingError, match=r"^workers is 2, and engine is local"):
        precompute(tmp_path / "stores", source, workers=2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match=r"^WORLD_SIZE is 2, and Ray shares the work by itself; unset RANK"):
        precompute(tmp_path / "stores", source, engine="ray")
    assert not (tmp_path / "stores").exists()
