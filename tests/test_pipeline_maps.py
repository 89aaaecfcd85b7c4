"""Maps through both stages: one forward fills logits, a vector and maps, each store as if filled alone."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from processes import run_python
from safetensors.torch import load_file

from cache.cleanup import remove_store
from cache.store import Store, Unit, find_stores
from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset, open_training_data
from pipeline.data.datasets import parse_target
from pipeline.data.render import open_renderer
from pipeline.precompute.verify import verify
from sskt.errors import RunError, SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.sources.frozen import FrozenSource
from sskt.sources.output_rows import OutputRows
from sskt.students.student import build_student

N, VIEWS, GRID = 40, 2, 4
OUTPUTS = ("logits", "pooled", "layer2:4")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A run, and two views of three of its outputs, filled by one command."""
    folder = tmp_path_factory.mktemp("maps")
    common = {
        "paths": Paths(folder / "data", folder / "stores"),
        "execution": choose_execution(device="cpu", amp="fp32", renderer="torch", threads=1),
        "limit": N,
    }
    how = {"model": "resnet20", "epochs": 1, "batch_size": 20, "method": "scratch", "amp": "fp32"}
    api.train("digits", out=folder / "run", **how, **common)
    run = f"run:{folder / 'run'}"
    api.precompute(["digits"], [run], views=VIEWS, output=OUTPUTS, **common)
    return folder, common, run


def stores_in(folder):
    return {
        s.manifest.identity["source"].get("output", "logits"): s for s in map(Store.open, find_stores(folder))
    }


def files_of(store):
    parts = [
        p
        for name in (store.form.array, "units", "ids", "contents", "probe")
        for p in (store.path / name).iterdir()
    ]
    return {str(p.relative_to(store.path)): p.read_bytes() for p in parts}


def with_stores(common, folder):
    return {**common, "paths": Paths(common["paths"].data_dir, folder)}


def pixels_of(common, view):
    dataset = open_dataset("digits", "train", paths=common["paths"], limit=N)
    plan = Augmentation().training_plan(parse_target("digits"))
    with closing(open_renderer(dataset, plan, common["execution"], batch_size=N)) as renderer:
        return torch.cat(list(renderer.render(view, [np.arange(N)])))


def test_one_pass_stores_what_the_network_gives_at_each_of_its_outputs(project):
    folder, common, _ = project
    stores = stores_in(folder / "stores")
    student = build_student("resnet20", 10, {}, transfer_module=False).eval()
    student.load_state_dict(load_file(folder / "run" / "student.safetensors"))
    for view in range(VIEWS):
        with torch.no_grad():
            features = student.backbone(normalise(pixels_of(common, view), IMAGENET_MEAN, IMAGENET_STD))
            logits = student.head(features.pooled).numpy()
        maps = features.blocks[1].numpy()
        cell = maps.shape[2] // GRID
        means = maps.reshape(N, 32, GRID, cell, GRID, cell).mean(axis=(3, 5))
        wanted = {"logits": logits, "pooled": features.pooled.numpy(), "layer2:4": means.reshape(N, -1)}
        for output, rows in wanted.items():
            np.testing.assert_allclose(stores[output].view(view), rows, rtol=2e-3, atol=2e-3)
    maps = stores["layer2:4"]
    assert (maps.form.array, maps.form.kind, maps.n_classes) == ("representations", "representations", 512)
    assert maps.manifest.identity["source"]["map"] == {"channels": 32, "grid": 4, "pool": "adaptive-average"}
    assert len({store.path.parent for store in stores.values()}) == 1, "siblings lie side by side"


def test_filled_together_or_alone_a_store_has_the_same_name_and_bytes_for_fewer_forwards(
    project, tmp_path, monkeypatch
):
    folder, common, run = project
    together, forwards = stores_in(folder / "stores"), []
    submit = FrozenSource.submit
    monkeypatch.setattr(
        FrozenSource, "submit", lambda self, x, **how: forwards.append(len(x)) or submit(self, x, **how)
    )
    api.precompute(["digits"], [run], views=VIEWS, output=OUTPUTS, **with_stores(common, tmp_path / "again"))
    assert sum(forwards) == VIEWS * N
    for output in OUTPUTS:
        api.precompute(
            ["digits"], [run], views=VIEWS, output=output, **with_stores(common, tmp_path / "alone")
        )
    assert sum(forwards) == 4 * VIEWS * N
    for output, store in stores_in(tmp_path / "alone").items():
        assert store.path.name == together[output].path.name
        assert files_of(store) == files_of(together[output])


def test_only_what_a_store_lacks_is_computed_again(project, tmp_path, monkeypatch):
    folder, common, run = project
    how = {**with_stores(common, tmp_path), "output": OUTPUTS}
    api.precompute(["digits"], [run], views=VIEWS, **how)
    stores, whole = stores_in(tmp_path), stores_in(folder / "stores")
    stores["layer2:4"].discard(Unit(0, 0))
    stores["logits"].discard(Unit(0, 0))
    stores["logits"].discard(Unit(1, 0))
    rows = []
    submit = FrozenSource.submit
    monkeypatch.setattr(
        FrozenSource, "submit", lambda self, x, **how: rows.append(len(x)) or submit(self, x, **how)
    )
    reports = {
        report.source: report.rows_done for report in api.precompute(["digits"], [run], views=VIEWS, **how)
    }
    assert reports == {"run:run": 2 * N, "run:run@pooled": 0, "run:run@layer2:4": N}
    assert sum(rows) == 2 * N
    for output, store in stores_in(tmp_path).items():
        assert files_of(store) == files_of(whole[output])


def test_compiled_code_computes_together_again_what_it_computed_together(project, tmp_path, monkeypatch):
    _, common, run = project
    monkeypatch.setattr(
        "sskt.sources.frozen.compile_network", lambda network, _device: network
    )  # it takes half a minute
    how = {**with_stores(common, tmp_path), "execution": replace(common["execution"], compiled=True)}
    api.precompute(["digits"], [run], views=1, output=OUTPUTS, **how)
    stores = stores_in(tmp_path)
    assert [store.manifest.made_by["outputs"] for store in stores.values()] == [list(OUTPUTS)] * 3
    before, asked = files_of(stores["logits"]), set()
    forward = OutputRows.forward
    monkeypatch.setattr(OutputRows, "forward", lambda self, x: asked.add(self.outputs) or forward(self, x))
    stores["logits"].discard(Unit(0, 0))
    api.precompute(["digits"], [run], views=1, **how)
    assert asked == {OUTPUTS}
    assert files_of(Store.open(stores["logits"].path)) == before
    api.precompute(["digits"], [run], views=1, output=("logits", "layer1:8"), **how)
    assert asked == {OUTPUTS, ("layer1:8",)}, "a new output is not mixed into what is recorded"
    remove_store(stores["pooled"].path)  # as if a process had been killed before it had created all of them
    stores["logits"].discard(Unit(0, 0))
    api.precompute(["digits"], [run], views=1, output=OUTPUTS, **how)
    assert asked == {OUTPUTS, ("layer1:8",)}
    assert stores_in(tmp_path)["pooled"].manifest.made_by["outputs"] == list(OUTPUTS)
    (stores["layer2:4"].path / "representations" / "c.0.0.0").write_bytes(b"")
    report = verify(
        stores["layer2:4"].path, n_rows=5, repair=True, paths=how["paths"], execution=how["execution"]
    )
    assert report.agreement.identical == 1.0
    assert asked == {OUTPUTS, ("layer1:8",)}


def test_a_flipped_byte_of_a_map_is_found_and_computed_again(project, tmp_path):
    folder, common, run = project
    how = with_stores(common, tmp_path)
    api.precompute(["digits"], [run], views=VIEWS, output=OUTPUTS, **how)
    store = stores_in(tmp_path)["layer2:4"]
    chunk = store.path / "representations" / "c.1.0.0"
    data = bytearray(chunk.read_bytes())
    data[77] ^= 4
    chunk.write_bytes(data)
    checked = {"paths": how["paths"], "execution": common["execution"]}
    assert "(view 1, block 0)" in verify(store.path, **checked).problems[0]["unit"]
    report = verify(store.path, n_rows=20, repair=True, **checked)
    assert report.good
    assert (report.agreement.same_top, report.agreement.identical) == (None, 1.0)
    assert files_of(Store.open(store.path)) == files_of(stores_in(folder / "stores")["layer2:4"])


def test_cached_live_and_write_through_give_the_same_bits_and_ask_a_network_once_a_batch(
    project, tmp_path, monkeypatch
):
    folder, common, run = project
    names = [run, f"{run}@layer2:4"]
    forwards = []
    submit = FrozenSource.submit
    monkeypatch.setattr(
        FrozenSource, "submit", lambda self, x, **how: forwards.append(len(x)) or submit(self, x, **how)
    )
    ways = {"cached": common, "live": common, "write-through": with_stores(common, tmp_path)}
    data = {
        labels: open_training_data("digits", sources=names, labels=labels, views=VIEWS, batch_size=20, **how)
        for labels, how in ways.items()
    }
    for epoch in range(2 * VIEWS):
        for cached, live, written in zip(*(each.epoch(epoch) for each in data.values()), strict=True):
            assert cached.logits[names[1]].shape == (len(cached.ids), 32, GRID, GRID)
            assert cached.logits[names[0]].shape == (len(cached.ids), 10)
            for name in names:
                assert torch.equal(cached.logits[name], live.logits[name])
                assert torch.equal(cached.logits[name], written.logits[name])
    assert sum(forwards) == (2 * VIEWS + VIEWS) * N, "live every epoch, write-through each view once"
    written, whole = stores_in(tmp_path), stores_in(folder / "stores")
    assert set(written) == {"logits", "layer2:4"}
    for output, store in written.items():
        assert files_of(store) == files_of(whole[output])


def test_nobody_gets_maps_who_does_not_name_them(project):
    folder, common, run = project
    assert open_training_data("digits", sources=[run], **common).source_classes == {run: 10}
    listed = CliRunner().invoke(main, ["cache", "ls", "--json", "--cache-dir", str(folder / "stores")])
    rows = {row["output"]: row for row in json.loads(listed.stdout)}
    assert (rows["layer2:4"]["classes"], rows["layer2:4"]["numbers"], rows["logits"]["classes"]) == (
        None,
        512,
        10,
    )


@pytest.mark.parametrize("other", ["layer2:2", "layer1:4"])
def test_a_store_of_another_layer_or_grid_does_not_serve(project, other):
    _, common, run = project
    said = rf"no store of run:.*@{other} \(layer2:4 and logits and pooled of it are stored\).* run `sskt pre"
    with pytest.raises(RunError, match=said):
        open_training_data("digits", sources=[f"{run}@{other}"], labels="cached", **common)


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("{}@layer2:4", {}, "--method sskt learns from logits, pooled and embedding, and run:.* is maps"),
        (
            "{}@layer2:4",
            {"method": "kd"},
            "--method kd learns from logits, and run:.* is maps of a layer; name",
        ),
        (
            "{}@layer2:4",
            {"mixup": 0.2},
            "--mixup mixes images, and run:.* of a mixture is no mixture of maps",
        ),
        ("{}@layer2:4", {"cutmix": 1.0}, "--cutmix mixes images"),
        ("probe:{}@layer2:4", {}, "run:.*@layer2:4 is maps, and a probe reads logits or an embedding; name"),
    ],
)
def test_maps_that_a_run_cannot_learn_from_are_refused(project, source, settings, said):
    folder, common, run = project
    how = {"model": "resnet20", "epochs": 1, "labels": "cached", **settings, **common}
    with pytest.raises(RunError, match=said):
        api.train("digits", out=folder / "refused", sources=[source.format(run)], **how)


def test_what_a_network_does_not_have_is_refused_before_anything_is_stored(project, tmp_path):
    _, common, run = project
    how = with_stores(common, tmp_path)
    for output, said in (
        ("layer4", "run:run has no layer4, expected one of layer1 to layer3"),
        ("layer3:30", "layer3 gives maps of .* a grid of 30x30 is finer; ask for layer3:4"),
    ):
        with pytest.raises(SourceError, match=said):
            api.precompute(["digits"], [run], views=1, output=("logits", output), **how)
    for settings, said in (
        ({"output": "conv4"}, "--output is 'conv4', expected logits, pooled, embedding, layerN"),
        (
            {"output": ("logits", "layer2"), "top_k": 3},
            "keeps the largest logits, and run:run@layer2:6 has none",
        ),
    ):
        with pytest.raises(RunError, match=said):
            api.precompute(["digits"], [run], views=1, **settings, **how)
    assert find_stores(tmp_path) == []


def test_kills_at_random_writes_leave_stores_that_end_as_if_there_had_been_none(project, tmp_path):
    folder, common, run = project
    done = run_python(ROOT / "tests" / "killed_fill.py", run, common["paths"].data_dir, tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lost = json.loads(done.stdout)
    assert len(lost) == 2
    assert all(0 <= units <= 1 for kill in lost for units in kill.values()), lost
    assert {n for kill in lost for n in kill.values()} == {0, 1}, "kills fell between the stores' writes"
    whole, hurt = stores_in(folder / "stores"), stores_in(tmp_path / "hurt")
    assert set(hurt) == set(whole) == set(OUTPUTS)
    for output, store in hurt.items():
        assert store.verify() == []
        assert files_of(store) == files_of(whole[output])
