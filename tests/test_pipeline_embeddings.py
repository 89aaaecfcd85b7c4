"""Embeddings through both stages: stored beside logits, learnt by heads and probes, cached as live."""

from contextlib import closing

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from programs import save_program
from torch import nn

from cache.store import Store, Unit, find_stores
from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset, open_training_data
from pipeline.data.datasets import parse_target
from pipeline.data.loader import Loader
from pipeline.data.render import open_renderer
from pipeline.precompute.verify import verify
from pipeline.train.run_folder import read_config, read_metrics, read_probe
from sskt.errors import RunError
from sskt.sources.input_map import InputMap
from sskt.sources.registry import open_source
from sskt.students.student import Student

pytestmark = pytest.mark.usefixtures("narrow")

N, D = 60, 24


class Vector(nn.Module):
    """Forty-eight mean colours to a vector that is 0 where it would be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, D, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(D, 48, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        return self.linear(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)).relu()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two views of logits and of an embedding of small programs, and of a run's pooled features."""
    folder = tmp_path_factory.mktemp("embeddings")
    common = {
        "paths": Paths(folder / "data", folder / "stores"),
        "execution": choose_execution(device="cpu", amp="fp32", renderer="torch", threads=1),
        "limit": N,
    }
    logits = f"program:{save_program(folder / 'logits.pt2')}"
    vector = f"program:{save_program(folder / 'vector.pt2', Vector())}@embedding"
    how = {"model": "resnet20", "epochs": 1, "batch_size": 30, "method": "scratch", "amp": "fp32"}
    api.train("digits", out=folder / "run", **how, **common)
    run = f"run:{folder / 'run'}@pooled"
    api.precompute(["digits"], [logits, vector, run], views=2, **common)
    return folder, common, logits, vector, run


def store_of(folder, name):
    stores = map(Store.open, find_stores(folder / "stores"))
    (found,) = (s for s in stores if s.manifest.identity["source"]["name"] == name)
    return found


def pixels_of(common, view):
    dataset = open_dataset("digits", "train", paths=common["paths"], limit=N)
    plan = Augmentation().training_plan(parse_target("digits"))
    with closing(open_renderer(dataset, plan, common["execution"], batch_size=N)) as renderer:
        return torch.cat(list(renderer.render(view, [np.arange(N)])))


def test_a_store_of_embeddings_holds_what_the_network_says_of_every_view(project):
    folder, common, *_ = project
    store = store_of(folder, "program:vector.pt2@embedding")
    assert store.manifest.identity["source"]["output"] == "embedding"
    assert (store.form.array, store.n_classes, store.path.parent.name) == (
        "representations",
        D,
        "program-vector",
    )
    f_s = InputMap.from_dict(store.manifest.identity["input"])
    for view in range(2):
        with torch.no_grad():
            wanted = Vector()(f_s(pixels_of(common, view)))
        np.testing.assert_allclose(store.view(view), wanted.numpy(), rtol=2e-3, atol=1e-4)
    assert "output" not in store_of(folder, "program:logits.pt2").manifest.identity["source"]


@pytest.mark.parametrize("which", ["vector", "run"])
def test_cached_and_live_embeddings_are_the_same_bits(project, which):
    _, common, _, vector, run = project
    name = vector if which == "vector" else run
    both = [
        open_training_data("digits", sources=[name], labels=labels, views=2, batch_size=30, **common)
        for labels in ("cached", "live")
    ]
    for epoch in range(2):
        for cached, live in zip(*(data.epoch(epoch) for data in both), strict=True):
            assert torch.equal(cached.ids, live.ids)
            assert torch.equal(cached.logits[name], live.logits[name])
            assert cached.logits[name].shape[1] == (D if which == "vector" else 64)


def test_a_runs_pooled_features_give_its_logits_through_its_head(project):
    folder, common, *_ = project
    store = store_of(folder, "run:run@pooled")
    source = open_source(f"run:{folder / 'run'}", weights_dir=folder)
    f_s = InputMap.from_dict(store.manifest.identity["input"])
    with torch.no_grad():
        wanted = source.module(f_s(pixels_of(common, 1)))
        found = source.module.student.head(torch.from_numpy(store.view(1)).float())
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=5e-3)


def test_damaged_rows_and_metadata_of_embeddings_are_computed_again(project, tmp_path):
    _, common, _, vector, _ = project
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    how = {**common, "paths": paths}
    api.precompute(["digits"], [vector], views=2, **how)
    store = store_of(tmp_path, "program:vector.pt2@embedding")
    before = store.view(1)
    rows = store.path / "representations" / "c.1.0.0"
    rows.write_bytes(rows.read_bytes()[:-10])
    (store.path / "representations" / "zarr.json").unlink()
    report = verify(store.path, n_rows=20, repair=True, paths=paths, execution=common["execution"])
    assert report.good
    assert (report.agreement.same_top, report.agreement.identical) == (None, 1.0)
    assert np.array_equal(Store.open(store.path).view(1), before)
    Store.open(store.path).trim(1)
    Store.open(store.path).discard(Unit(0, 0))
    api.precompute(["digits"], [vector], views=2, **how)
    assert np.array_equal(Store.open(store.path).view(1), before)


def train(project, out, **settings):
    folder, common, *_ = project
    how = {"model": "resnet20", "epochs": 1, "batch_size": N, "amp": "fp32", "labels": "cached", **settings}
    return api.train("digits", out=folder / out, **how, **common)


def test_the_first_step_learns_the_layer_normalised_rows_of_both_outputs(project, monkeypatch):
    folder, _, logits, vector, _ = project
    said = {}
    forward = Student.forward

    def listening(self, x):
        answers = forward(self, x)
        said.update({name: z.detach().double().numpy() for name, z in answers[1].items()})
        return answers

    monkeypatch.setattr(Student, "forward", listening)
    order = []
    batches = Loader.epoch

    def recording(self, *epoch, **more):
        for batch in batches(self, *epoch, **more):
            order.append(batch.positions)
            yield batch

    monkeypatch.setattr(Loader, "epoch", recording)
    train(project, "vectors", sources=[logits, vector], aux_loss="smooth-l1", aux_head="mlp")
    (metrics,) = read_metrics(folder / "vectors")
    for name, recorded in ((logits, "program:logits.pt2"), (vector, "program:vector.pt2@embedding")):
        z, v = said[name], store_of(folder, recorded).view(0)[order[0]].astype(np.float64)
        v = (v - v.mean(axis=1, keepdims=True)) / v.std(axis=1, keepdims=True)
        d = np.abs(z - v)
        wanted = np.where(d < 1, d**2 / 2, d - 0.5).mean()
        assert metrics[f"aux_loss/{name}"] == pytest.approx(wanted, rel=1e-3)
    config = read_config(folder / "vectors")
    assert (config["sources"], config["alpha"]) == ([logits, vector], 1.0)


def test_a_probe_reads_the_embedding_where_one_is_stored_and_its_name_says_so(project):
    folder, common, _, vector, _ = project
    train(project, "probe", sources=["probe"])
    (name,) = read_config(folder / "probe")["sources"]
    assert name == "probe:program:logits.pt2+program:vector.pt2@embedding"
    probe = read_probe(folder / "probe")
    assert probe.fitted.weight.shape[1] == 7 + D
    named = f"probe:{vector}"
    assert open_training_data("digits", sources=[named], **common).source_classes == {named: 10}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aux_loss": "ce"}, "--aux-loss ce compares classes, and .*@embedding is an embedding; use"),
        (
            {"method": "kd"},
            r"--method kd learns from logits, and .*@embedding is an embedding; name .*probe:",
        ),
        ({"aux_loss": "cosine", "temperature": 2.0}, "--temperature 2.0 softens classes"),
    ],
)
def test_what_cannot_learn_from_an_embedding_says_so(project, settings, said):
    with pytest.raises(RunError, match=said):
        train(project, "refused", sources=[project[3]], **settings)


def test_without_a_name_a_student_learns_from_logits_alone(project):
    _, common, *_ = project
    assert open_training_data("digits", **common).source_classes == {"program:logits.pt2": 7}


def test_the_command_line_stores_and_lists_an_output(project, tmp_path):
    folder, *_ = project
    words = ["--target", "digits", "--limit", str(N), "--views", "1", "--device", "cpu", "--amp", "fp32"]
    words += ["--cache-dir", str(tmp_path), "--source", f"program:{folder / 'vector.pt2'}"]
    made = CliRunner().invoke(main, ["precompute", "--output", "embedding", *words], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    listed = CliRunner().invoke(main, ["cache", "ls", "--json", "--cache-dir", str(tmp_path)])
    assert '"output": "embedding"' in listed.stdout
    refused = CliRunner().invoke(main, ["precompute", "--output", "embedding", "--top-k", "3", *words])
    assert refused.exit_code == 1
    assert "keeps the largest logits" in refused.output
