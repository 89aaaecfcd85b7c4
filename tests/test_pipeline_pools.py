"""Samples without labels beside a target's own: drawn, looked up, counted and recorded exactly as they are by
themselves.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Remarks
from PIL import Image
from programs import Tiny, save_program
from safetensors.numpy import load_file
from torch import nn

from cache import StoreIncomplete, StoreMismatch
from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import parse_target
from pipeline.data.datasets.joined import JoinedImages, join
from pipeline.data.loader import Sampler
from pipeline.data.render import open_renderer
from pipeline.runtime.distributed import World
from pipeline.train import loop as training
from pipeline.train.data import open_data
from pipeline.train.resolve import resolve
from pipeline.train.run_folder import read_config
from pipeline.train.trainer import Trainer
from sskt.errors import RunError
from sskt.students import WrappedBackbone

pytestmark = pytest.mark.usefixtures("narrow")

NETWORK = Tiny().eval()
SHOWN = Augmentation(side_px=24)
N_TRAIN, N_POOL, N_OTHER = 12, 9, 6  # of the 12, one of each class chooses the best epoch
EXECUTION = choose_execution(device="cpu", renderer="torch", threads=2)
SCHEDULE = {"epochs": 2, "batch_size": 8, "amp": "fp32", "views": 2}


def backbone() -> WrappedBackbone:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()
    return WrappedBackbone(nn.Sequential(*layers), side_px=24)


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    side = 24 + seed % 9
    pixels = np.random.default_rng(seed).integers(0, 256, (side, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    for n, name in enumerate(("cat", "dog")):
        for i in range(6):
            draw(folder / "pets" / "train" / name / f"{i}.png", 100 * n + i)
        for i in range(3):
            draw(folder / "pets" / "val" / name / f"{i}.png", 500 + 100 * n + i)
    for i in range(N_POOL):
        draw(folder / "pets" / "unlabelled" / ("a/b" if i % 2 else "") / f"{i}.png", 900 + i)
    for i in range(N_OTHER):
        draw(folder / "more" / f"{i}.png", 1100 + i)
    source = f"program:{save_program(folder / 'tiny.pt2', NETWORK)}"
    paths = Paths(folder / "data", folder / "stores")
    api.precompute(
        f"imagefolder:{folder / 'pets'}",
        source,
        views=2,
        augmentation=SHOWN,
        paths=paths,
        execution=EXECUTION,
        unlabelled=str(folder / "more"),
    )
    return folder, source, paths


@pytest.fixture
def project(made, tmp_path):
    """A copy, to be spoilt."""
    folder, source, _ = made
    for name in ("pets", "more", "stores"):
        shutil.copytree(folder / name, tmp_path / name)
    return tmp_path, source, Paths(tmp_path / "data", tmp_path / "stores")


def train(project, out: str, **settings):
    folder, source, paths = project
    usual = {"sources": source, "unlabelled": str(folder / "more"), "augmentation": SHOWN}
    how = {"paths": paths, "execution": EXECUTION, "model": backbone(), **SCHEDULE, **usual, **settings}
    return api.train(f"imagefolder:{folder / 'pets'}", out=folder / out, **how)


def resume(out: Path, **told):
    return api.resume(out, execution=EXECUTION, backbone=backbone(), **told)


def stop_at(monkeypatch, n: int) -> None:
    """Ctrl-C in a run's n-th step; the ones before are saved."""
    step, taken = Trainer._take_step, []

    def interrupted(self, batch):
        taken.append(batch)
        if len(taken) == n:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(Trainer, "_take_step", interrupted)


def opened(project, **settings):
    folder, source, paths = project
    asked = {"sources": source, "unlabelled": str(folder / "more"), "views": 2, **settings}
    config = resolve(
        f"imagefolder:{folder / 'pets'}",
        execution=EXECUTION,
        world=World(),
        augmentation=SHOWN,
        model="resnet20",
        amp="fp32",
        val_share=0.0,
        **asked,
    )
    return open_data(config, paths=paths, execution=EXECUTION, world=World())


def drawn(data, view: int, positions: np.ndarray) -> torch.Tensor:
    with closing(open_renderer(data.dataset, data.plan, EXECUTION, batch_size=32)) as renderer:
        (pixels,) = renderer.render(view, [positions])
    return pixels


def test_every_part_has_its_own_stores_rows_and_pixels(made):
    """Against a forward in plain torch of what each part's own plan decides."""
    data = opened(made, labels="cached")
    assert isinstance(data.dataset.access, JoinedImages)
    assert [len(part) for part in data.dataset.access.parts] == [N_TRAIN, N_POOL, N_OTHER]
    assert data.dataset.labels.tolist() == [0] * 6 + [1] * 6 + [-1] * (N_POOL + N_OTHER)
    assert len(np.unique(data.dataset.ids)) == N_TRAIN + N_POOL + N_OTHER
    order = np.random.default_rng(0).permutation(len(data.dataset))
    (source,) = data.source_outputs.n_classes
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    for view in range(2):
        pixels = drawn(data, view, order)
        for part in range(3):
            its = [n for n, at in enumerate(order) if np.digitize(at, [N_TRAIN, N_TRAIN + N_POOL]) == part]
            alone = data.dataset.access.parts[part]
            rows = order[its] - (0, N_TRAIN, N_TRAIN + N_POOL)[part]
            with closing(open_renderer(alone, data.plan, EXECUTION, batch_size=32)) as renderer:
                assert torch.equal(next(renderer.render(view, [rows])), pixels[its])
        data.source_outputs.load(view, np.arange(len(order)))
        logits = data.source_outputs.logits(order, torch.empty(0))[source]
        with torch.no_grad():
            expected = NETWORK((pixels / 255 - mean) / std)
        torch.testing.assert_close(logits.float(), expected, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("renderer", ["torch", "dali"])
def test_stored_logits_are_the_live_ones(made, renderer):
    """To the last bit, for samples of every part and batches of any mixture."""
    execution = choose_execution(device="cpu", renderer=renderer, threads=2)
    cached, live = opened(made, labels="cached"), opened(made, labels="live")
    assert live.source_outputs.kind == "live"
    rng = np.random.default_rng(1)
    for view in range(2):
        cached.source_outputs.load(view, np.arange(len(cached.dataset)))
        batches = [rng.permutation(len(live.dataset))[:n] for n in (1, 2, 20, 7)]
        with closing(open_renderer(live.dataset, live.plan, execution, batch_size=32)) as drawing:
            for positions, pixels in zip(batches, drawing.render(view, batches), strict=True):
                ours = cached.source_outputs.logits(positions, torch.empty(0))
                theirs = live.source_outputs.logits(positions, pixels)
                for name, rows in theirs.items():
                    assert torch.equal(ours[name], rows)


def test_a_rank_reads_its_own_rows_alone(made):
    data = opened(made, labels="cached")
    (source,) = data.source_outputs.n_classes
    data.source_outputs.load(1, np.arange(len(data.dataset)))
    some = np.array([1, 3, N_TRAIN + N_POOL + 2])  # none of the folder's own pool
    expected = data.source_outputs.logits(some, torch.empty(0))[source]
    data.source_outputs.prepare(1, some)
    data.source_outputs.load(1, some)
    assert torch.equal(
        data.source_outputs.logits(some[::-1].copy(), torch.empty(0))[source], expected.flip(0)
    )


def test_the_probe_tells_what_it_thinks_of_pools(made):
    """With all its folds together, of the mean over the stored views; of labelled samples, cross-fitted."""
    data = opened(made, sources="probe")
    probe = data.probe
    everything = np.arange(len(data.dataset))
    data.source_outputs.load(0, everything)
    answers = data.source_outputs.logits(everything, torch.empty(0))[probe.name].float()
    stores = {s.n_samples: s for s in map(Store.open, find_stores(made[2].cache_dir))}
    for begin, n in ((N_TRAIN, N_POOL), (N_TRAIN + N_POOL, N_OTHER)):
        rows = np.stack([stores[n].view(view).astype(np.float64) for view in range(2)])
        normal = (rows - rows.mean(axis=2, keepdims=True)) / np.sqrt(rows.var(axis=2, keepdims=True) + 1e-5)
        weight, bias = (part[-1].numpy() for part in (probe.fitted.weight, probe.fitted.bias))
        expected = torch.from_numpy(normal.mean(axis=0) @ weight + bias).float()
        torch.testing.assert_close(answers[begin : begin + n], expected, rtol=2e-3, atol=5e-3)
    assert not set(probe.ids.tolist()) & set(data.dataset.ids[N_TRAIN:].tolist())


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
@pytest.mark.parametrize("share", [None, 0.5])
def test_every_step_has_labelled_samples_on_every_rank(n_ranks, share):
    """And the ranks together see what one process sees; with the usual share, every sample once an epoch."""
    n, labelled = 103, np.arange(0, 21)
    alone = Sampler(n, 16, 5, World(), labelled, share).steps(2)
    ranks = [Sampler(n, 16, 5, World(rank, n_ranks), labelled, share).steps(2) for rank in range(n_ranks)]
    for step, whole in enumerate(alone):
        parts = [steps[step] for steps in ranks]
        assert sorted(np.concatenate(parts)) == sorted(whole)
        counts = [int((part < 21).sum()) for part in parts]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1
        wanted = len(whole) * (share or 21 / n)
        assert abs(sum(counts) - max(wanted, n_ranks)) <= 1
    seen = np.concatenate(alone)
    assert len(seen) == n
    if share is None and n_ranks == 1:
        assert sorted(seen) == list(range(n))


def test_a_run_says_and_records_what_it_sees(made, tmp_path):
    said = Remarks()
    summary = train(made, tmp_path / "run")
    assert summary["labelled_per_step"] + summary["unlabelled_per_step"] == pytest.approx(25 / 4)  # 10 + 15
    assert summary["labelled_per_step"] == pytest.approx(19 / 4)  # 3 of 4: labels alone teach it
    assert any("a step has 4.8 labelled and 1.5 unlabelled samples on average" in line for line in said)
    config = read_config(tmp_path / "run")
    assert config["labelled_share"] == 0.75
    assert config["unlabelled"] == [f"imagefolder:{made[0] / 'pets'}", f"unlabelled:{made[0] / 'more'}"]
    assert {"unlabelled-1", "unlabelled-2"} < set(config["contents"])
    (line, *_) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    right = json.loads(line)["train_top1"] * 19 / 100
    assert right == pytest.approx(round(right))
    assert "test_top1" in api.evaluate(tmp_path / "run", execution=EXECUTION, backbone=backbone())


def test_where_a_probe_teaches_too_every_sample_is_seen_once_an_epoch(made, tmp_path):
    summary = train(made, tmp_path / "run", sources=("probe",))
    assert summary["labelled_per_step"] == pytest.approx(10 / 4)
    assert read_config(tmp_path / "run")["labelled_share"] is None


def test_a_share_is_for_runs_with_samples_without_labels(made, tmp_path):
    with pytest.raises(
        RunError, match=r"--labelled-share 0\.5 mixes labelled and unlabelled samples, and all 10 "
    ):
        train(made, tmp_path / "all", unlabelled="none", labelled_share=0.5)
    with pytest.raises(RunError, match=r"labelled_share is 1\.5, expected more than 0 and at most 1"):
        train(made, tmp_path / "beyond", labelled_share=1.5)


def test_methods_of_labels_alone_leave_the_folders_pool_out(made, tmp_path):
    said = Remarks()
    train(made, tmp_path / "scratch", method="scratch", sources=(), unlabelled=(), epochs=1)
    assert read_config(tmp_path / "scratch")["unlabelled"] == []
    assert any("--method scratch learns from labels alone" in line for line in said)
    with pytest.raises(RunError, match="--method scratch does not support images without labels"):
        train(made, tmp_path / "asked", method="scratch", sources=())
    assert len(opened(made, unlabelled="none").dataset) == N_TRAIN
    assert len(opened(made, unlabelled=["none", str(made[0] / "more")]).dataset) == N_TRAIN + N_OTHER


def test_a_stopped_run_goes_on_to_the_same_weights(project, monkeypatch):
    folder = project[0]
    train(project, "whole")
    with monkeypatch.context() as stopping:
        stop_at(stopping, 3)  # of four in an epoch
        with pytest.raises(KeyboardInterrupt):
            train(project, "stopped")
    (folder / "more").rename(folder / "moved")
    with pytest.raises(
        RunError, match=r"lay in .*more, which is no folder .*say where they are now with --un"
    ):
        resume(folder / "stopped")
    moved = {"unlabelled": [f"imagefolder:{folder / 'pets'}", str(folder / "moved")]}
    draw(folder / "moved" / "0.png", 77)
    with pytest.raises(RunError, match=r"contents.unlabelled-2 was .*moved holds other data"):
        resume(folder / "stopped", **moved)
    draw(folder / "moved" / "0.png", 1100)
    resume(folder / "stopped", **moved)
    weights = [load_file(folder / out / "student.safetensors") for out in ("whole", "stopped")]
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_run_begun_before_pools_goes_on_without_them(project, monkeypatch):
    """Its config names none, and its folder has one by now."""
    folder = project[0]
    (folder / "pets" / "unlabelled").rename(folder / "later")
    with monkeypatch.context() as stopping:
        stop_at(stopping, 2)
        with pytest.raises(KeyboardInterrupt):
            train(project, "old", unlabelled=())
    with monkeypatch.context() as stopping:
        stop_at(stopping, 2)
        with pytest.raises(KeyboardInterrupt):
            train(project, "with-more")
    state = torch.load(folder / "old" / "last.pt", weights_only=True)
    config = read_config(folder / "old")
    for name in ("unlabelled", "labelled_list"):
        del config[name], state["config"][name]
    (folder / "old" / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "old" / "last.pt")
    (folder / "later").rename(folder / "pets" / "unlabelled")
    assert "labelled_per_step" not in resume(folder / "old")
    resume(folder / "with-more")  # of the one pool that it began with
    assert len(read_config(folder / "with-more")["unlabelled"]) == 1


def test_test_images_in_a_pool_are_refused_and_training_images_counted(project):
    folder = project[0]
    shutil.copy(folder / "pets" / "train" / "cat" / "0.png", folder / "pets" / "unlabelled" / "same.png")
    said = Remarks()
    assert opened(project, labels="live").pools[0].dataset.name_of(0)
    assert any(
        "1 of 10 samples without labels are in the train split as well, with the same contents" in line
        for line in said
    )
    for i in range(2):
        shutil.copy(folder / "pets" / "val" / "dog" / f"{i}.png", folder / "more" / f"copy-{i}.png")
    with pytest.raises(RunError, match=r"2 of 8 samples are in the test split .*copy-0.png is .*dog/0.png"):
        train(project, "leaks")
    assert not (folder / "leaks").exists()


def test_stores_that_do_not_go_with_the_targets_are_refused(project):
    folder, source, paths = project
    pools = [path for path in find_stores(paths.cache_dir) if "unlabelled-more" in str(path)]
    (store,) = pools
    kept = store.rename(folder / "kept.zarr")
    command = r"run `sskt precompute --source .*--target \S+pets --views 2 --size 24 --unlabelled \S+more "
    with pytest.raises(RunError, match=f"no store of {source} for its 6 samples without labels .*{command}"):
        opened(project)
    pets, how = f"imagefolder:{folder / 'pets'}", {"paths": paths, "execution": EXECUTION, "views": 2}
    api.precompute(
        pets, source, augmentation=Augmentation(side_px=16), unlabelled=str(folder / "more"), **how
    )
    with pytest.raises(StoreMismatch, match=f"plan.side_px is 16 in the store and 24 in this run.*{command}"):
        opened(project)
    kept.rename(store)
    how["views"] = 3
    (folder / "pets" / "unlabelled").rename(folder / "away")
    api.precompute(pets, source, augmentation=SHOWN, **how)
    with pytest.raises(StoreIncomplete, match=r"2 view\(s\) are finished, this run needs 3 of .*--views 3"):
        opened(project, views=3)
    assert len(opened(project).dataset) == N_TRAIN + N_OTHER
    with pytest.raises(RunError, match="--labels write-through fills the stores of the target alone"):
        opened(project, labels="write-through")


def test_a_target_of_its_own_is_a_pool_whose_stores_serve(project):
    """Stores made of it as a target, without a thought of pools, are read and left as they are."""
    folder, source, paths = project
    for name in ("x", "y"):
        for i in range(5):
            draw(folder / "birds" / name / f"{i}.png", 3000 + 10 * (name == "y") + i)
    api.precompute(
        f"imagefolder:{folder / 'birds'}",
        source,
        views=2,
        augmentation=SHOWN,
        paths=paths,
        execution=EXECUTION,
    )
    files = {path: path.read_bytes() for path in paths.cache_dir.rglob("*") if path.is_file()}
    data = opened(project, unlabelled=f"imagefolder:{folder / 'birds'}", labels="cached")
    assert {path: path.read_bytes() for path in files} == files
    assert data.dataset.labels.tolist()[N_TRAIN:] == [-1] * (N_POOL + 8)


def test_pools_that_cannot_be_are_refused(project):
    folder = project[0]
    for asked, why in (
        ("nowhere", "is neither a target nor a folder"),
        ([str(folder / "more"), f"unlabelled:{folder / 'more'}"], "is named twice"),
        ("ucf101", "holds videos, and .* holds images"),
    ):
        with pytest.raises(RunError, match=why):
            opened(project, unlabelled=asked)


def test_pictures_in_memory_and_files_are_joined(made):
    """Digits have 8 px and a plan that keeps the size of pictures, which must be square."""
    digits = api.open_dataset("digits", "train", paths=made[2], limit=20)
    pool = opened(made).pools[1].dataset
    joined = join([digits, pool])
    batch = np.array([21, 3, 25, 0])
    plan = Augmentation(side_px=24, kind="random-resized-crop-flip").training_plan(parse_target("digits"))
    with closing(open_renderer(joined, plan, EXECUTION, batch_size=4)) as renderer:
        (together,) = renderer.render(0, [batch])
    for dataset, which, rows in ((digits, [1, 3], [3, 0]), (pool, [0, 2], [1, 5])):
        with closing(open_renderer(dataset, plan, EXECUTION, batch_size=4)) as renderer:
            assert torch.equal(next(renderer.render(0, [np.array(rows)])), together[which])


def test_a_list_says_which_samples_keep_their_labels(project):
    folder = project[0]
    pets, names = folder / "pets", folder / "names.txt"
    names.write_text(f"cat/1.png\ntrain/dog/3.png\n\n{pets}/train/dog/5.png\r\n./train/cat/1.png\n")
    data = opened(project, labelled_list=names, labels="cached")
    assert data.dataset.labelled.tolist() == [1, 9, 11]
    summary = train(project, "listed", labelled_list=names, epochs=1)
    assert summary["labelled_per_step"] == pytest.approx(19 / 4)
    names.write_text("cat/1.png\ncat/none.png\nval/dog/0.png\n")
    with pytest.raises(
        RunError, match=r"2 of 3 lines name no training sample .* the first is line 2, cat/none"
    ):
        opened(project, labelled_list=names)
    (folder / "listed" / "summary.json").unlink()
    with pytest.raises(RunError, match=r"was started with the labels that names\.txt sha256"):
        resume(folder / "listed")
    with pytest.raises(RunError, match="both say which samples keep their labels"):
        opened(project, labelled_list=names, labels_per_class=1)


def test_a_list_of_ids_says_it_for_pictures_in_memory(made, tmp_path):
    (tmp_path / "ids.txt").write_text("3\n17\n")
    config = resolve(
        "digits",
        execution=EXECUTION,
        world=World(),
        augmentation=Augmentation(),
        model="resnet20",
        sources=made[1],
        labels="live",
        limit=100,
        labelled_list=tmp_path / "ids.txt",
    )
    train_ids = api.open_dataset("digits", "train", paths=made[2], limit=100).ids
    (tmp_path / "ids.txt").write_text("\n".join(map(str, train_ids[[4, 90]])))
    data = open_data(config, paths=made[2], execution=EXECUTION, world=World())
    assert data.dataset.ids[data.dataset.labelled].tolist() == train_ids[[4, 90]].tolist()


def test_a_loop_of_ones_own_gets_pools_when_it_asks(made):
    folder, source, paths = made
    how = {"paths": paths, "execution": EXECUTION, "augmentation": SHOWN, "sources": source, "batch_size": 9}
    plain = api.open_training_data(f"imagefolder:{folder / 'pets'}", **how)
    assert all((batch.labels >= 0).all() for batch in plain.epoch(0))
    data = api.open_training_data(f"imagefolder:{folder / 'pets'}", unlabelled=(), **how)
    labels = torch.cat([batch.labels for batch in data.epoch(0)])
    assert (len(labels), int((labels < 0).sum())) == (N_TRAIN + N_POOL, N_POOL)
