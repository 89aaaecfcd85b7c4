"""A probe as a teacher: exact wherever its rows come from, recorded, and refused if its stores changed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from listening import Remarks
from programs import Tiny, save_program
from stopping import stop_after
from torch import nn

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Paths, choose_execution, open_dataset
from pipeline.data.loader import Sampler
from pipeline.runtime import World
from pipeline.source_outputs.fit_probe import RunProbe, StoredRows, inputs_of
from pipeline.train import loop as training
from pipeline.train.run_folder import read_config, read_metrics
from pipeline.train.splits import keep_labels
from sskt.errors import RunError
from sskt.methods.config import LabelConfig
from sskt.sources import Contract, split_names
from sskt.students import WrappedBackbone

N = 200


class Wide(nn.Module):
    """Sixteen random features of the picture, which tell digits apart better than its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 16)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(16, 192, generator=torch.Generator().manual_seed(1)) / 4)

    def forward(self, x):
        return self.linear(nn.functional.adaptive_avg_pool2d(x, 8).flatten(1))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two sources, and a folder with the stores of both, of three views."""
    folder = tmp_path_factory.mktemp("probe")
    sources = (
        f"program:{save_program(folder / 'wide.pt2', Wide())}",
        f"program:{save_program(folder / 'tiny.pt2', Tiny())}",
    )
    execution = choose_execution(device="cpu", threads=2)
    paths = Paths(folder / "data", folder / "stores")
    api.precompute(["digits"], list(sources), views=3, paths=paths, limit=N, execution=execution)
    return sources, {"paths": paths, "limit": N, "execution": execution}


def backbone() -> WrappedBackbone:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3)
    return WrappedBackbone(nn.Sequential(*layers), side_px=32)


def train(out, project, *sources, **more):
    settings = {"epochs": 4, "batch_size": 40, "lr": 0.05, **more}
    said = Remarks()
    api.train("digits", out=out, model=backbone(), sources=sources or ("probe",), **settings, **project[1])
    return said


def lines(run):
    """What a run recorded of its training, without seconds and megabytes."""
    names = ("train_loss", "primary_loss", "train_top1", "test_top1")
    return [tuple(line[name] for name in names) for line in read_metrics(run)]


@pytest.mark.parametrize("method", ["sskt", "kd"])
def test_own_views_cached_and_live_teach_the_same(project, tmp_path, method):
    """A live run asks every source of the probe, and the probe about their answers. Tolerance: none."""
    probe = "probe:" + "+".join(project[0])
    for labels in ("cached", "live"):
        train(tmp_path / labels, project, probe, method=method, labels=labels, views=3, probe_views="own")
    assert lines(tmp_path / "cached") == lines(tmp_path / "live")


def test_soft_labels_are_the_cross_fitted_maps_of_stored_rows(project, tmp_path):
    """Against a plain re-computation with NumPy from the stores' rows."""
    train(tmp_path / "run", project)
    probe = RunProbe.from_bytes((tmp_path / "run" / "probe.safetensors").read_bytes())
    dataset = open_dataset("digits", "train", paths=project[1]["paths"], limit=N)
    rows = []
    for name in probe.inputs.sources:
        (store,) = [
            s
            for s in map(Store.open, find_stores(project[1]["paths"].cache_dir))
            if s.manifest.identity["source"]["name"] == name
        ]
        raw = np.stack([store.view(v).view(np.float16) for v in range(3)]).astype(np.float64)
        raw -= raw.mean(axis=2, keepdims=True)
        rows.append(raw / raw.std(axis=2, keepdims=True))
    features = np.concatenate(rows, axis=2).mean(axis=0)
    folds = probe.folds_of(dataset.ids)
    assert set(folds) == {0, 1, 2, 3, 4}
    weight, bias = probe.fitted.weight.numpy(), probe.fitted.bias.numpy()
    expected = np.stack([features[i] @ weight[k] + bias[k] for i, k in enumerate(folds)])
    found = probe.logits(torch.from_numpy(features), torch.from_numpy(folds))
    assert found.dtype == torch.float16
    assert np.abs(found.double().numpy() - expected).max() < 0.02
    last = probe.logits(torch.from_numpy(features), torch.full((N,), 5))
    assert np.allclose(last, (features @ weight[:5].mean(0) + bias[:5].mean(0)), atol=0.02)


def test_the_loss_is_the_one_in_the_docstring(project, tmp_path):
    """(1 - w) of the labels' and w of the probe's, and alpha of a source's beside it."""
    source = project[0][1]
    train(tmp_path / "run", project, "probe", source, probe_weight=0.7, alpha=0.3, epochs=1)
    name = read_config(tmp_path / "run")["sources"]
    (line,) = read_metrics(tmp_path / "run")
    probe, tiny = (line[f"aux_loss/{n}"] for n in sorted(name))
    assert line["train_loss"] == pytest.approx(
        0.3 * line["primary_loss"] + 0.7 * probe + 0.3 * tiny, rel=1e-5
    )


@pytest.mark.parametrize("more", [{}, {"labels_per_class": 4, "labelled_share": 0.5, "probe_views": "own"}])
def test_a_stopped_run_continues_with_the_probe_it_started_with(project, tmp_path, monkeypatch, more):
    train(tmp_path / "whole", project, **more)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 7)  # an epoch has five steps
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", project, **more)

    def not_again(*_args, **_kwargs):
        raise AssertionError

    monkeypatch.setattr("pipeline.source_outputs.open_probed.fit_probe", not_again)
    api.resume(tmp_path / "cut", backbone=backbone(), execution=project[1]["execution"])
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for name in ("student.safetensors", "probe.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_whose_probe_had_other_stores_is_refused(project, tmp_path, monkeypatch):
    """The store of other weights lies in the place of the one that the probe was fitted on."""
    sources, common = project
    cache = tmp_path / "stores"
    shutil.copytree(common["paths"].cache_dir, cache)
    common = {**common, "paths": replace(common["paths"], cache_dir=cache)}
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 7)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", (sources, common))
    (store,) = [path for path in find_stores(cache) if "tiny" in str(path)]
    shutil.rmtree(store)
    other = tmp_path / "other"
    other.mkdir()
    source = f"program:{save_program(other / 'tiny.pt2', Tiny(seed=4))}"
    with pytest.raises(RunError, match=r"tiny.*sskt precompute"):
        api.resume(tmp_path / "cut", backbone=backbone(), execution=common["execution"])
    api.precompute(["digits"], [source], views=3, **common)
    with pytest.raises(RunError, match="was fitted on other stores than are there now"):
        api.resume(tmp_path / "cut", backbone=backbone(), execution=common["execution"])


@pytest.mark.parametrize(
    ("sources", "more", "message"),
    [
        (("probe",), {"labels_per_class": 1}, "keep more by --labels-per-class, or learn by source heads"),
        (
            ("probe:imagenet",),
            {},
            "no store of imagenet for digits .* run `sskt precompute --source imagenet ",
        ),
        (("probe", "probe:imagenet"), {}, "a run has one probe"),
        (("probe",), {"labels": "live", "views": 3}, "add --probe-views own"),
        (
            ("probe",),
            {"labels": "live", "views": 3, "probe_views": "own"},
            "asks networks, and probe names none",
        ),
        (("probe",), {"gradient_cosine": "record"}, "is for the heads of sources, and probe, the only"),
        (("probe",), {"probe_weight": 1.5}, "probe_weight is 1.5, expected at least 0 and at most 1"),
        (("probe",), {"probe_views": "both"}, "probe_views is 'both', expected one of mean, own"),
        (
            ("probe",),
            {"labelled_share": 0.5},
            "all 200 training samples of digits have a label; leave it out",
        ),
        (
            ("probe",),
            {"labels_per_class": 0},
            "labels_per_class is 0 .*expected a whole number of at least 1",
        ),
        (("probe",), {"labels_per_class": 3, "labelled_share": 1.5}, "labelled_share is 1.5"),
    ],
)
def test_what_no_run_can_have_is_refused_in_one_line(project, tmp_path, sources, more, message):
    with pytest.raises(RunError, match=message) as refusal:
        api.train(
            "digits", out=tmp_path / "run", sources=sources, model="resnet20", epochs=1, **more, **project[1]
        )
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_probe_of_named_sources_reads_theirs_alone(project, tmp_path):
    wide, tiny = project[0]
    said = train(tmp_path / "both", project, f"probe:{wide}+{tiny}", epochs=1)
    assert any("fitted on 200 labelled samples" in line for line in said)
    train(tmp_path / "one", project, f"probe:{wide}", epochs=1)
    both, one = (read_config(tmp_path / run) for run in ("both", "one"))
    assert both["sources"] == [f"probe:{wide}+{tiny}"]
    assert one["sources"] == [f"probe:{wide}"]
    assert both["source_weights"] != one["source_weights"]


def test_names_joined_by_plus_keep_a_probe_whole():
    assert split_names("probe:imagenet+places365") == ("probe:imagenet+places365",)
    assert split_names("imagenet+probe") == ("imagenet", "probe")
    assert split_names("imagenet+probe:imagenet+places365") == ("imagenet", "probe:imagenet+places365")


def test_labels_that_are_hidden_have_no_part_in_a_run(project, tmp_path):
    """Other labels in the place of the hidden ones change nothing."""
    dataset = open_dataset("digits", "train", paths=project[1]["paths"], limit=N)
    hidden = keep_labels(dataset, 3)
    assert np.bincount(hidden.labels[hidden.labelled]).tolist() == [3] * 10
    more = keep_labels(dataset, 5)
    assert set(hidden.labelled) < set(more.labelled)
    stores = {str(path): Store.open(path) for path in find_stores(project[1]["paths"].cache_dir)}
    scrambled = replace(hidden, labels=np.where(hidden.is_labelled, dataset.labels, -1))
    wrong = replace(dataset, labels=np.where(hidden.is_labelled, 9 - dataset.labels, dataset.labels))
    of = {
        name: inputs_of(StoredRows(stores, some, 3, 1.0), "mean").sha256
        for name, some in (("hidden", hidden), ("same", scrambled), ("wrong", wrong), ("more", more))
    }
    assert of["hidden"] == of["same"]
    assert len(set(of.values())) == 3


@pytest.mark.parametrize(("share", "world_size"), [(None, 1), (0.5, 1), (0.25, 2), (None, 3)])
def test_every_step_has_its_share_of_labelled_samples_on_every_rank(share, world_size):
    labelled = np.arange(0, 103, 9)  # 12 of 103
    samplers = [Sampler(103, 16, 5, World(rank, world_size), labelled, share) for rank in range(world_size)]
    for epoch in (0, 3):
        per_rank = [sampler.steps(epoch) for sampler in samplers]
        wholes = [np.concatenate(parts) for parts in zip(*per_rank, strict=True)]
        assert [len(whole) for whole in wholes] == [samplers[0].size_of(step) for step in range(7)]
        counts = np.array([np.isin(whole, labelled).sum() for whole in wholes])
        expected = (share or 12 / 103) * 103 / 7
        assert (abs(counts - expected) <= max(2, world_size)).all()
        for steps in per_rank:
            assert all(np.isin(step, labelled).any() for step in steps)
        unlabelled = np.concatenate(wholes)[~np.isin(np.concatenate(wholes), labelled)]
        assert len(set(unlabelled)) == len(unlabelled)  # none twice
        if share is None and world_size == 1:
            assert sorted(np.concatenate(wholes)) == list(range(103))
    assert not all(
        np.array_equal(a, b) for a, b in zip(samplers[0].steps(0), samplers[0].steps(1), strict=True)
    )


@pytest.mark.parametrize("loss", ["ce", "focal", "bce"])
def test_ranks_with_uneven_labels_add_up_to_one_process(loss):
    config = LabelConfig(primary_loss=loss)
    logits = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, -1, 2, -1, -1, -1, -1, 1, -1, -1, -1, -1])
    truth = labels
    if loss == "bce":
        truth = torch.nn.functional.one_hot(labels.clamp(min=0), 4)
        truth[labels < 0] = -1
    whole = config.primary(logits, truth, None, 4 / 13)
    parts = [slice(0, 7), slice(7, 13)]
    added = sum(
        config.primary(logits[part], truth[part], None, 4 / 13) * World(0, 2).weight(len(logits[part]), 13)
        for part in parts
    )
    assert added / 2 == pytest.approx(float(whole), rel=1e-6)
    assert whole == pytest.approx(float(config.primary(logits[labels >= 0], truth[labels >= 0])), rel=1e-6)


def test_a_teacher_beside_a_probe_still_has_its_classes_put_in_order(project, tmp_path):
    """kd's other teacher declares the target's classes backwards, and is stored so."""
    network, path = nn.Linear(192, 10), tmp_path / "backwards.pt2"
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), network)
    save_program(path, flat)
    contract = {f"program:{path}": Contract(classes=tuple(str(9 - digit) for digit in range(10)))}
    paths = replace(project[1]["paths"], contracts=contract, cache_dir=tmp_path / "stores")
    common = {**project[1], "paths": paths}
    shutil.copytree(project[1]["paths"].cache_dir, tmp_path / "stores")
    api.precompute(["digits"], [f"program:{path}"], views=3, **common)
    chosen = f"probe:{project[0][0]}"
    said = Remarks()
    train(tmp_path / "run", (project[0], common), chosen, f"program:{path}", method="kd", epochs=1)
    assert any("backwards" in line and "top-1" in line for line in said)
    assert (tmp_path / "run" / "probe.safetensors").is_file()


def test_a_contract_of_a_source_that_a_bare_probe_does_not_read_is_refused(project, tmp_path):
    common = {**project[1], "paths": replace(project[1]["paths"], weights={"imagenet": tmp_path / "no.pth"})}
    with pytest.raises(RunError, match="--weights names imagenet, this run's sources are"):
        train(tmp_path / "run", (project[0], common), "probe")
