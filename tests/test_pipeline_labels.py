"""Whatever the logits come from, and wherever they lie: the same rows, for the same pixels."""

from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Remarks
from programs import Tiny, save_program
from torch import nn

from cache.errors import StoreDamaged, StoreMismatch
from cache.store import Store, Unit, find_stores
from pipeline import api
from pipeline.api import (
    Augmentation,
    Paths,
    choose_execution,
    open_dataset,
    open_training_data,
)
from pipeline.data.datasets import parse_target
from pipeline.data.datasets.registry import TARGETS
from pipeline.data.render import open_renderer
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.placement import Placement, choose_placement
from pipeline.train.run_folder import read_config, read_metrics
from sskt.errors import RunError, SourceError
from sskt.sources.batch_stats import BatchStatisticsSource
from sskt.sources.input_map import InputMap
from sskt.sources.registry import parse_source
from sskt.sources.source import Source
from sskt.students import WrappedBackbone

N, CPU = 120, torch.device("cpu")
PLACEMENTS = [Placement("device", CPU), Placement("map", CPU)]


class Wide(nn.Module):
    """Eighty classes, so that the top few are worth keeping."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 80)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(80, 12, generator=torch.Generator().manual_seed(1)) * 3)

    def forward(self, x):
        return self.linear(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    execution = choose_execution(device="cpu", threads=2)
    common = {"execution": execution, "limit": N}
    return folder, source, common


def paths(folder: Path, stores: str) -> Paths:
    return Paths(folder / "data", folder / stores)


@pytest.fixture(scope="module")
def stored(project):
    """A store of three views in blocks of 50, copied from one of a single block each."""
    folder, source, common = project
    api.precompute(["digits"], [source], views=3, paths=paths(folder, "stores"), **common)
    whole = Store.open(find_stores(folder / "stores")[0])
    dataset = open_dataset("digits", "train", paths=paths(folder, "stores"), limit=N)
    blocks = Store.create(
        folder / "blocks.zarr",
        whole.manifest,
        ids=whole.ids,
        contents=whole.contents,
        n_classes=7,
        views=3,
        block_rows=50,
    )
    for view in range(3):
        for block in range(blocks.n_blocks):
            blocks.write_unit(Unit(view, block), whole.view(view)[blocks.rows_of(block)])
    return whole, blocks, dataset


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_rows_are_those_of_the_view_wherever_they_lie(stored, placement):
    whole, blocks, dataset = stored
    labels = CachedOutputs({"a": blocks}, dataset, views=3, placement=placement, temperature=3.0)
    rng = np.random.default_rng(0)
    share = np.sort(rng.permutation(N)[:70])  # one rank's part of an epoch
    for view, rows in ((0, np.arange(N)), (2, share), (1, share[:1])):
        labels.load(view, rows)
        for _ in range(5):
            asked = rng.permutation(rows)[:16]
            found = labels.logits(asked, torch.empty(0))["a"]
            assert found.dtype == torch.float16
            assert np.array_equal(found.numpy(), whole.view(view)[asked])


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_the_next_view_is_read_ahead_and_damage_found_there_is_raised_in_its_turn(
    stored, placement, tmp_path
):
    import shutil

    whole, blocks, dataset = stored
    copy = tmp_path / "copy.zarr"
    shutil.copytree(blocks.path, copy)
    labels = CachedOutputs({"a": Store.open(copy)}, dataset, views=3, placement=placement, temperature=3.0)
    rows = np.arange(N)
    labels.load(0, rows)
    labels.prepare(1, rows)
    labels.load(1, rows)
    unit = copy / "logits" / "c.2.1.0"
    unit.write_bytes(unit.read_bytes()[:-9] + b"\0\0\0\0\0\0\0\0\0")
    labels.prepare(2, rows)
    assert np.array_equal(labels.logits(rows, torch.empty(0))["a"].numpy(), whole.view(1))
    with pytest.raises(StoreDamaged, match=r"view 2, block 1"):
        labels.load(2, rows)


def test_only_the_units_that_hold_a_rows_are_read(stored, tmp_path):
    import shutil

    whole, blocks, _ = stored
    copy = tmp_path / "copy.zarr"
    shutil.copytree(blocks.path, copy)
    (copy / "logits" / "c.0.1.0").unlink()
    store = Store.open(copy)
    here = np.array([119, 3, 49, 100])
    assert np.array_equal(store.rows(0, here), whole.view(0)[here])
    assert np.array_equal(store.mapped(0, here).rows(here), whole.view(0)[here])
    with pytest.raises(StoreDamaged, match=r"view 0, block 1"):
        store.rows(0, np.array([50]))


def test_views_too_large_for_memory_stay_on_the_disk(stored, monkeypatch):
    whole, _, _ = stored
    assert str(choose_placement({"a": whole}, N, CPU)) == "in memory"
    monkeypatch.setattr("pipeline.source_outputs.placement.memory_for_images", lambda: 2 * N * 2 * 7 - 1)
    assert str(choose_placement({"a": whole}, N, CPU)) == "mapped from disk"


def small_backbone() -> WrappedBackbone:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3)
    return WrappedBackbone(nn.Sequential(*layers), side_px=32)


def losses(run: Path) -> list[tuple[float, ...]]:
    names = ("train_loss", "primary_loss", "train_top1", "test_top1")
    return [tuple(m[name] for name in names) for m in read_metrics(run)]


@pytest.mark.parametrize("compiled", [False, True])
def test_cached_and_live_give_the_same_losses_step_by_step(project, stored, tmp_path, compiled):
    """60 steps of one batch each: an epoch's losses are its only step's. The stated tolerance is none, for
    sources that are run alike; a compiled and a plain one are compared by their rows, with stage one.
    """
    folder, source, common = project
    common = {**common, "execution": choose_execution(device="cpu", threads=2, compiled=compiled)}
    here = paths(folder, "compiled" if compiled else "stores")
    if compiled:
        api.precompute(["digits"], [source], views=3, paths=here, **common)
    for labels in ("cached", "live"):
        api.train(
            "digits",
            out=tmp_path / labels,
            model=small_backbone(),
            sources=(source,),
            labels=labels,
            views=3,
            batch_size=N,
            epochs=60,
            lr=0.01,
            eval_every=30,
            paths=here,
            **common,
        )
    steps = [read_metrics(tmp_path / labels) for labels in ("cached", "live")]
    assert len(steps[0]) == 60
    for cached, live in zip(*steps, strict=True):
        for name in ("train_loss", "primary_loss", f"aux_loss/{source}"):
            assert live[name] == cached[name]


def train_through(project, out: Path, stores: str, **more) -> list[str]:
    folder, source, common = project
    said = Remarks()
    settings = {"epochs": 5, "batch_size": 32, "lr": 0.05, **more.pop("overrides", {})}
    api.train(
        "digits",
        out=out,
        model=small_backbone(),
        sources=(source,),
        labels="write-through",
        views=3,
        **settings,
        paths=paths(folder, stores),
        **common,
        **more,
    )
    assert said[0].startswith("the best epoch is chosen on the test split")
    assert said[1].startswith(f"{source} declares nothing; assumed: ")
    return said


def test_write_through_fills_the_store_that_stage_one_makes_and_then_reads_it(project, stored, tmp_path):
    folder, source, common = project
    said = train_through(project, tmp_path / "through", "through")
    assert "3 of 3 view(s) will be asked for once" in said[2]
    assert any(line.startswith("labels: cached, 3 view(s)") for line in said)
    (path,) = find_stores(folder / "through")
    made, (reference, _, _) = Store.open(path), stored
    assert path.name == reference.path.name, "one fingerprint"
    assert made.complete
    assert made.verify() == []
    for view in range(3):
        assert made.view(view).tobytes() == reference.view(view).tobytes()
    api.train(
        "digits",
        out=tmp_path / "cached",
        model=small_backbone(),
        sources=(source,),
        labels="cached",
        views=3,
        epochs=5,
        batch_size=32,
        lr=0.05,
        paths=paths(folder, "stores"),
        **common,
    )
    assert losses(tmp_path / "through") == losses(tmp_path / "cached")


def test_write_through_takes_up_a_store_that_stage_one_began(project, stored, tmp_path):
    folder, source, common = project
    api.precompute(["digits"], [source], views=1, paths=paths(folder, "begun"), **common)
    said = train_through(project, tmp_path / "through", "begun")
    assert "2 of 3 view(s) will be asked for once" in said[2]
    made = Store.open(find_stores(folder / "begun")[0])
    assert [made.view(v).tobytes() for v in range(3)] == [stored[0].view(v).tobytes() for v in range(3)]


def test_write_through_goes_on_in_the_precision_that_the_store_was_begun_in(project, tmp_path):
    folder, source, common = project
    here = paths(folder, "bf16")
    execution = choose_execution(device="cpu", threads=2, amp="bf16")
    api.precompute(["digits"], [source], views=1, paths=here, **{**common, "execution": execution})
    train_through(project, tmp_path / "through", "bf16")
    (path,) = find_stores(folder / "bf16")
    made = Store.open(path)
    assert made.complete
    assert made.manifest.made_by["compute"] == "bf16"
    api.precompute(
        ["digits"], [source], views=3, paths=paths(folder, "all"), **{**common, "execution": execution}
    )
    other = Store.open(find_stores(folder / "all")[0])
    assert [made.view(v).tobytes() for v in range(3)] == [other.view(v).tobytes() for v in range(3)]


def test_write_through_asks_nothing_that_is_stored(project, stored, tmp_path, monkeypatch):
    """One source has all views, the other one of them: only what is missing is asked for, each sample of each
    view once.
    """
    from sskt.sources.frozen import FrozenSource

    folder, source, common = project
    second = f"program:{save_program(tmp_path / 'second.pt2', Tiny(seed=5))}"
    here = {"paths": paths(folder, "two"), **common}
    api.precompute(["digits"], [source], views=3, **here)
    api.precompute(["digits"], [second], views=1, **here)
    submit, asked = FrozenSource.submit, []

    def watched(self, pixels, **how):
        asked.append((self.source.spec.name, len(pixels)))
        return submit(self, pixels, **how)

    settings = {"epochs": 4, "batch_size": 32, "lr": 0.05}
    with monkeypatch.context() as watching:
        watching.setattr(FrozenSource, "submit", watched)
        api.train(
            "digits",
            out=tmp_path / "through",
            model=small_backbone(),
            sources=(source, second),
            labels="write-through",
            views=3,
            **settings,
            **here,
        )
    assert asked == [("program:second.pt2", 30)] * 8  # two views of four batches, 120 images each
    api.train(
        "digits",
        out=tmp_path / "cached",
        model=small_backbone(),
        sources=(source, second),
        labels="cached",
        views=3,
        **settings,
        **here,
    )
    assert losses(tmp_path / "through") == losses(tmp_path / "cached")


def test_write_through_survives_a_kill_and_loses_no_view_that_was_whole(project, tmp_path, monkeypatch):
    from pipeline.train.trainer import Trainer

    folder, _, _ = project
    step, taken = Trainer._take_step, []

    def interrupted(self, batch):
        taken.append(1)
        if len(taken) > 6:  # in the second epoch, which has four steps
            raise KeyboardInterrupt
        step(self, batch)

    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "_take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_through(project, tmp_path / "stopped", "stopped")
    store = Store.open(find_stores(folder / "stopped")[0])
    assert {unit.view for unit in store.pending(3)} == {1, 2}
    said = train_through(project, tmp_path / "again", "stopped")
    assert "2 of 3 view(s) will be asked for once" in said[2]
    assert Store.open(store.path).complete


def test_write_through_keeps_the_top_classes_as_stage_one_does(project, tmp_path, monkeypatch):
    _folder, _, common = project
    wide = f"program:{save_program(tmp_path / 'wide.pt2', Wide())}"
    monkeypatch.setattr("pipeline.stores.match.DENSE_BUDGET", 100)
    monkeypatch.setattr("pipeline.stores.match.DEFAULT_TOP_K", 8)
    api.precompute(["digits"], [wide], views=2, paths=paths(tmp_path, "one"), **common)
    api.train(
        "digits",
        out=tmp_path / "through",
        model=small_backbone(),
        sources=(wide,),
        labels="write-through",
        views=2,
        epochs=3,
        batch_size=32,
        paths=paths(tmp_path, "two"),
        **common,
    )
    api.train(
        "digits",
        out=tmp_path / "cached",
        model=small_backbone(),
        sources=(wide,),
        labels="cached",
        views=2,
        epochs=3,
        batch_size=32,
        paths=paths(tmp_path, "one"),
        **common,
    )
    one, two = (Store.open(find_stores(tmp_path / name)[0]) for name in ("one", "two"))
    assert two.top_k == 8
    assert one.view(1).tobytes() == two.view(1).tobytes()
    assert losses(tmp_path / "through") == losses(tmp_path / "cached")


def test_mixed_logits_and_mixed_pixels(project, stored, tmp_path):
    """Cached labels are mixed as the pixels are; live sources see the mixtures, and say something else."""
    folder, source, common = project
    runs = {}
    for labels in ("cached", "live", "write-through"):
        api.train(
            "digits",
            out=tmp_path / labels,
            model=small_backbone(),
            sources=(source,),
            labels=labels,
            views=3,
            mixup=1.0,
            epochs=1,
            batch_size=N,
            paths=paths(folder, "mixed" if labels == "write-through" else "stores"),
            **common,
        )
        runs[labels] = losses(tmp_path / labels)
    assert runs["cached"] == runs["write-through"]
    assert runs["cached"] != runs["live"]
    assert runs["cached"][0][1] == runs["live"][0][1], "the first step's loss of the mixed hard labels"


def batch_norm_source(tmp_path, *, folded: bool = False) -> Source:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    if not folded:
        module(torch.randn(8, 3, 16, 16) + 1)  # running statistics of some data
    spec = parse_source("imagenet:resnet18")
    return Source(spec, module.eval().requires_grad_(False), "0" * 64, tmp_path / "net.pth")


def test_batch_statistics_are_those_of_train_mode(tmp_path):
    source = batch_norm_source(tmp_path)
    reference = batch_norm_source(tmp_path).module.train()
    input_map = InputMap(side_px=16)
    asked = BatchStatisticsSource(source, input_map, device=CPU, compute="fp32")
    for seed in range(3):
        pixels = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).byte()
        with torch.no_grad():
            expected = reference(input_map(pixels))
        torch.testing.assert_close(asked.logits(pixels).float(), expected, rtol=2e-3, atol=2e-3)
        assert not torch.allclose(
            asked.logits(pixels)[:6].float(), asked.logits(pixels[:6]).float(), atol=1e-4
        )
        reference(input_map(pixels)), reference(input_map(pixels[:6]))
    assert torch.equal(source.module[1].running_mean, reference[1].running_mean), "they drift as released"


def test_batch_statistics_of_a_network_with_more_heads_in_train_mode(tmp_path):
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            z = self.norm(x).mean(dim=(2, 3))
            return (z, 2 * z) if self.training else z

    spec = parse_source("imagenet:googlenet")
    source = Source(spec, TwoHeads().requires_grad_(False), "0" * 64, tmp_path / "net.pth")
    source.module.norm.running_mean += 1
    asked = BatchStatisticsSource(source, InputMap(side_px=16), device=CPU, compute="fp32")
    pixels = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.allclose(asked.logits(pixels).float().mean(dim=0), torch.zeros(3), atol=1e-3), (
        "the first head"
    )


def test_batch_statistics_need_batch_norm_that_is_still_there(tmp_path, project):
    folder, source, common = project
    with pytest.raises(SourceError, match=r"net\.pth: its batch norms were folded into other weights"):
        BatchStatisticsSource(
            batch_norm_source(tmp_path, folded=True), InputMap(side_px=16), device=CPU, compute="fp32"
        )
    arguments = {"paths": paths(folder, "stores"), **common}
    for labels, error, expected in (
        ("cached", RunError, "makes a row depend on its batch, so it cannot be stored; add --labels live"),
        ("live", SourceError, "has no batch norm to take batch statistics in"),
    ):
        supervision = {"sources": (source,), "labels": labels, "teacher_bn": "batch-stats"}
        with pytest.raises(error, match=expected):
            api.train("digits", out=tmp_path / labels, **supervision, **arguments)
        assert not (tmp_path / labels).exists()


def test_a_plain_loop_gets_the_rows_of_its_pixels(project, stored):
    folder, source, common = project
    data = open_training_data(
        "digits",
        sources=[source],
        batch_size=32,
        seed=4,
        paths=paths(folder, "stores"),
        execution=common["execution"],
        limit=N,
    )
    whole, _, dataset = stored
    assert (len(data), data.source_classes, len(data.classes)) == (4, {source: 7}, 10)
    plan = Augmentation().training_plan(parse_target("digits"))
    renderer = open_renderer(dataset, plan, common["execution"], batch_size=N)
    with closing(renderer):
        views = [next(renderer.render(v, [np.arange(N)])).clone() for v in range(3)]
    for epoch in range(4):
        seen = []
        for batch in data.epoch(epoch):
            rows = np.searchsorted(dataset.ids, batch.ids.numpy())
            assert torch.equal(batch.pixels, views[epoch % 3][torch.from_numpy(rows)])
            assert np.array_equal(batch.logits[source].numpy(), whole.view(epoch % 3)[rows])
            assert np.array_equal(batch.labels.numpy(), dataset.labels[rows])
            seen.append(rows)
        assert sorted(np.concatenate(seen)) == list(range(N))


def test_a_store_that_is_being_extended_teaches_with_the_views_that_it_has(project, tmp_path):
    folder, source, common = project
    here = paths(folder, "extended")
    api.precompute(["digits"], [source], views=2, paths=here, **common)
    store = Store.open(find_stores(folder / "extended")[0])
    store.grow(4)
    said = Remarks()
    api.train(
        "digits", out=tmp_path / "run", model=small_backbone(), epochs=1, batch_size=N, paths=here, **common
    )
    assert "2 of 4 view(s) are finished and no others are used" in said[1]
    assert said[2].startswith("labels: cached, 2 view(s) of")


def test_stores_of_before_go_on_and_are_not_taken_for_those_of_today(project, tmp_path, monkeypatch):
    """Pictures of 16 px times 7/3, which is not whole: sources saw them by 37/16, and see them by 7/3."""
    _, source, common = project
    monkeypatch.setitem(TARGETS, "digits", replace(TARGETS["digits"], source_scale=Fraction(7, 3)))
    here, said = paths(tmp_path, "stores"), Remarks()
    before = Augmentation(source_input="earlier")
    api.precompute(["digits"], [source], views=1, paths=here, augmentation=before, **common)
    (old,) = find_stores(here.cache_dir)
    assert Store.open(old).manifest.identity["input"] == InputMap(37).to_dict()

    def train(name, **more):
        taught = {"sources": (source,), "labels": "cached"}
        settings = {"epochs": 1, "batch_size": 32}
        out = tmp_path / name
        api.train("digits", out=out, **taught, paths=here, **settings, **{**common, **more})
        return read_config(out)["augmentation"]

    with pytest.raises(StoreMismatch, match=r"input\.scale.*: add --source-input earlier to go on with it"):
        train("refused")
    assert train("old", augmentation=before)["source_input"] == "earlier"
    now = {**common}
    (report,) = api.precompute(["digits"], [source], views=1, paths=here, **now)
    assert any(f"{old} was made before" in line and "--source-input earlier" in line for line in said)
    assert report.path != old
    new = Store.open(report.path)
    assert new.manifest.identity["input"] == {**InputMap(37).to_dict(), "scale": "7/3"}
    differ = np.abs(new.view(0).astype(np.float32) - Store.open(old).view(0).astype(np.float32))
    assert differ.max() > 0
    said.clear()
    api.precompute(["digits"], [source], views=1, paths=here, **now)
    assert not any("was made before" in line for line in said), "what is there need not be said"
    assert train("new")["source_input"] == "released"
    assert train("old again", augmentation=before)["source_input"] == "earlier"
