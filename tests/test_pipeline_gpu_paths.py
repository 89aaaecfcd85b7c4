"""What a GPU would do, found without one: no step waits for it, its graphs lie on it, its buffers live."""

import sys
import weakref
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cache_samples import IDENTITY, fill, logits_of
from nowhere import NOWHERE, Autocast, QueuedWork, Watch, stub_events
from nvidia.dali import Pipeline
from programs import Tiny, small_student

from cache.manifest import Manifest
from cache.store import Store
from pipeline.api import Augmentation, choose_execution
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.datasets.joined import Parts as JoinedParts
from pipeline.data.loader import Loader, Sampler
from pipeline.data.plan import PadCropFlip, RandomResizedCropFlip
from pipeline.data.render import dali, in_batches
from pipeline.data.render.joined import JoinedRenderer
from pipeline.data.render.resident import ResidentRenderer
from pipeline.runtime.distributed import World
from pipeline.runtime.execution import Execution
from pipeline.source_outputs.cached import CachedOutputs
from pipeline.source_outputs.live import LiveOutputs
from pipeline.source_outputs.networks import LiveNetworks
from pipeline.source_outputs.placement import Placement
from pipeline.source_outputs.write_through import WriteThroughOutputs
from pipeline.stores import SourceStore
from pipeline.stores.sources import choose_forward, step_batch_size
from pipeline.train import compiled, trainer
from pipeline.train.evaluate import Evaluator
from pipeline.train.loop import kernels
from pipeline.train.method import open_method
from pipeline.train.resolve import resolve
from sskt.errors import RunError
from sskt.methods import Losses, Parts, method_named
from sskt.methods.pretext import PRETEXT_METHODS
from sskt.sources.forward import Forward
from sskt.sources.frozen import FrozenSource, NonFiniteLogitsError
from sskt.sources.input_map import InputMap
from sskt.sources.source import Source, SourceSpec
from sskt.students import build_backbone
from sskt.students.student import Student

N, BATCH, SIDE, CUDA = 40, 20, 8, torch.device("cuda")
PLAN = PadCropFlip(SIDE, pad=1)
SOURCES = ("imagenet", "places365")
KINDS = {
    "scratch": {"method": "scratch"},
    "sskt": {},
    "sskt with everything": {
        "mixup": 0.2,
        "cutmix": 0.5,
        "clip_norm": 5.0,
        "ema": 0.9,
        "transfer_module": True,
    },
    "sskt of vectors": {"aux_loss": "cosine"},
    "sskt with gated gradients": {"gradient_cosine": "weigh"},
    "kd": {"method": "kd"},
    "dml": {"method": "dml"},
    "maxl": {"method": "maxl"},
    "graph": {"method": "graph"},
}
# all that waits for a GPU in an epoch: the looks at the losses, every 25 steps, and the figures at its end
WAITS = {
    ("waits", "pipeline/train/sums.py", "correct = torch.stack([each.correct for each in losses]).tolist()"),
    (
        "waits",
        "pipeline/train/sums.py",
        (
            "for (total, primary, *others), hits in "
            "zip(torch.stack(rows).double().tolist(), correct, strict=True)"
        ),
    ),
    ("waits", "pipeline/train/sums.py", "n, labelled, correct, total, primary, *others = summed.tolist()"),
    (
        "copies from pageable memory",
        "pipeline/train/sums.py",
        "summed = world.all_reduce(torch.tensor(parts, dtype=torch.float64, device=device))",
    ),
}
# a scaler of gradients asks at every step whether one of them overflowed
SCALER = ("waits", "pipeline/train/trainer.py", "self._scaler.step(self._optimiser)")
# and what is copied there once: all images, and a view's rows
COPIES = {
    (
        "copies from pageable memory",
        "pipeline/data/render/resident.py",
        "self._on_device = torch.from_numpy(everything).to(self._device)",
    ),
    (
        "copies from pageable memory",
        "pipeline/source_outputs/placement.py",
        "return _OnDevice(table.to(self.device))",
    ),
    (
        "copies from pageable memory",
        "sskt/normalise.py",
        "return torch.tensor(values, dtype=torch.float32, device=device)",
    ),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return load_dataset(parse_target("digits"), "train", data_dir=folder, index_dir=folder, limit=N)


@pytest.fixture(scope="module")
def stores(dataset, tmp_path_factory):
    """A store of each source, of as many classes as the target has."""
    folder, found = tmp_path_factory.mktemp("stores"), {}
    for name in SOURCES:
        found[name] = empty_store(folder / f"{name}.zarr", dataset, top_k=None)
        fill(found[name], logits_of(found[name]))
    return found


def empty_store(path, dataset, *, n_classes=10, top_k):
    manifest = Manifest(identity=IDENTITY, made_by={"compute": "fp32", "versions": {}})
    about = {"ids": dataset.ids, "contents": dataset.contents, "n_classes": n_classes, "views": 2}
    return Store.create(path, manifest, **about, top_k=top_k)


@pytest.fixture
def lazily(monkeypatch):
    """Batches are drawn in the thread that asks, where the watch sees it; SGD as a step without a GPU can."""
    stub_events(monkeypatch)
    monkeypatch.setattr("pipeline.data.loader.prefetch", lambda items, _n: items)
    unfused = trainer.build_optimizer
    monkeypatch.setattr(trainer, "build_optimizer", lambda *a, **how: unfused(*a, **{**how, "fused": False}))
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr("pipeline.train.method._another", lambda *_: small_student())


def config_of(dataset, settings, amp):
    config = resolve(
        "digits",
        execution=choose_execution(device="cpu"),
        world=World(),
        augmentation=Augmentation(),
        model="resnet20",
        batch_size=BATCH,
        epochs=2,
        sources=SOURCES if settings.get("method", "sskt") not in ("scratch", "dml", "maxl") else (),
        **settings,
    )
    return replace(config, classes=dataset.classes, amp=amp)


@pytest.mark.parametrize(
    ("kind", "amp"),
    [(kind, "bf16") for kind in KINDS]
    + [(kind, "fp16") for kind in ("sskt", "sskt with gated gradients", "graph")]
    + [("scratch", "fp32")],
)
def test_no_step_waits_for_the_device(dataset, stores, lazily, kind, amp):
    config = config_of(dataset, KINDS[kind], amp)
    outputs, classes = None, {}
    if config.sources:
        placement = Placement("device", NOWHERE)
        outputs = CachedOutputs(stores, dataset, views=2, placement=placement, temperature=3.0)
        classes = dict(outputs.n_classes)
    method = open_method(config, small_student(), classes)
    learner = trainer.Trainer(config, method, dataset, outputs, Execution(NOWHERE), World())
    order = Sampler(N, BATCH, 0, World())
    loader = Loader(dataset, ResidentRenderer(dataset, PLAN, device=NOWHERE), order, NOWHERE)
    in_steps = watch_steps(learner)
    with Watch() as watch:
        learner.train_epoch(loader, lambda _: None, lambda: None)
    assert len(in_steps) == 2
    once = {SCALER} if amp == "fp16" else set()
    assert lines(in_steps[1]) == once, in_steps[1].found  # by file and line
    assert in_steps[1].found.total() == len(once)
    assert lines(watch) - COPIES == WAITS


def lines(watch):
    """What was noted, without line numbers."""
    return {(what, file, line.partition(": ")[2]) for what, file, line in watch.found}


def watch_steps(learner):
    step, watches = learner._take_step, []

    def watched(batch):
        with Watch() as watch:
            step(batch)
        watches.append(watch)

    learner._take_step = watched
    return watches


@pytest.mark.parametrize("task", PRETEXT_METHODS)
def test_no_pretext_step_waits_for_the_device(task, monkeypatch):
    monkeypatch.setattr(torch, "autocast", Autocast)
    n_frames, n_answers = {"sorting": (4, 5), "tracking": (2, 7), "prediction": (3, 1)}.get(task, (2, 1))
    kind = method_named(task)
    model = "prednet" if task == "prediction" else f"vgg19-{task}-small"
    method = kind.build(kind.Config(), Parts(build_backbone(model), None, 2, {}, channels_last=False))
    method.to(NOWHERE).train()
    method.progress = 0.6  # tracking looks for hard patches from the half on
    side = 64
    pixels = torch.empty(4, 3, n_frames, side, side, dtype=torch.uint8, device=NOWHERE)
    labels = torch.empty(4, n_answers, dtype=torch.int64, device=NOWHERE)
    with Watch(), torch.autocast("meta", torch.bfloat16):
        method(pixels, labels, {})  # constants are copied once
    with Watch() as watch:
        with torch.autocast("meta", torch.bfloat16):
            losses = method(pixels, labels, {})
        losses.total.backward()
    assert not watch.found
    assert all(w.grad is not None for w in method.parameters() if w.requires_grad)


def frozen_there(monkeypatch, seed=0, *, name="program:a"):
    """`Tiny` as a frozen source on the device that computes nothing."""
    monkeypatch.setattr(torch, "autocast", Autocast)
    spec = SourceSpec(name, "program", "program", 7, (0.5,) * 3, (0.5,) * 3)
    source = Source(spec, Tiny(seed), "0" * 64, None)
    return FrozenSource(source, InputMap(SIDE), device=NOWHERE, forward=Forward("fp16", BATCH))


class Slow:
    """A live network that notes when it is started and when it is waited for."""

    source = Source(SourceSpec("a", "program", "program", 7, (0.5,) * 3, (0.5,) * 3), None, "", None)
    input_map = InputMap(SIDE)

    def __init__(self, events):
        self.events = events

    def submit(self, pixels, *, in_order):
        assert in_order
        self.events.append("start")

        def wait():
            self.events.append("wait")
            return torch.zeros(len(pixels), 7, dtype=torch.float16)

        return wait


def test_live_starts_every_source_before_it_waits_for_one():
    events = []
    live = LiveOutputs({"a": Slow(events), "b": Slow(events), "c": Slow(events)}, views=None)
    for _ in range(2):
        live.logits(np.arange(4), torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8))
    assert events == 2 * (3 * ["start"] + 3 * ["wait"])


def test_live_rows_are_looked_at_only_when_losses_are(monkeypatch):
    live = LiveOutputs({"a": frozen_there(monkeypatch), "b": frozen_there(monkeypatch, 1)}, views=None)
    pixels = torch.empty(BATCH, 3, SIDE, SIDE, dtype=torch.uint8, device=NOWHERE)
    with Watch() as watch:
        for _ in range(3):
            live.logits(np.arange(BATCH), pixels)
    assert lines(watch) <= COPIES
    with Watch() as watch:
        live.check()
    assert {file for _, file, _ in watch.found} == {"sskt/sanity.py"}


def test_bad_live_rows_are_told_from_their_maxima():
    """The look that is put off, at rows of the host: three batches, one bad row in the second."""
    network = Tiny(bad=True)
    spec = SourceSpec("program:a", "program", "program", 7, (0.5,) * 3, (0.5,) * 3)
    source = Source(spec, network, "0" * 64, None)
    frozen = FrozenSource(source, InputMap(SIDE), device=torch.device("cpu"), forward=Forward("fp32", 4))
    networks = LiveNetworks()
    pixels = torch.zeros(3, 4, 3, SIDE, SIDE, dtype=torch.uint8)
    for batch in pixels:
        rows = frozen.logits(batch)
        networks._unchecked.setdefault(frozen, []).append([rows.abs().amax(dim=1)])
    networks.check()
    networks._unchecked[frozen] = [[torch.ones(4)], [torch.tensor([1.0, torch.nan, 1.0, 2.0])]]
    with pytest.raises(
        NonFiniteLogitsError, match=r"program:a gave NaN.* for 1 of 8 rows, nan first"
    ) as error:
        networks.check()
    assert error.value.rows == [5]
    networks.check()  # nothing is left


def test_write_through_waits_once_a_view(dataset, tmp_path, monkeypatch):
    frozen = frozen_there(monkeypatch)
    stores = [empty_store(tmp_path / f"{k}.zarr", dataset, n_classes=7, top_k=k) for k in (None, 3)]
    filled = {
        str(i): SourceStore(frozen.source, frozen, store, set(store.pending(2)))
        for i, store in enumerate(stores)
    }
    through = WriteThroughOutputs(
        filled,
        dataset,
        views=2,
        open_cached=None,
        placement=Placement("device", CUDA),
        temperature=3.0,
    )
    pixels = torch.empty(BATCH, 3, SIDE, SIDE, dtype=torch.uint8, device=NOWHERE)
    through.load(0, np.arange(N))
    with Watch() as watch:
        for positions in in_batches(np.arange(N), BATCH):
            through.logits(positions, pixels)
    assert lines(watch) <= COPIES
    with Watch() as watch:
        through.finish()
    copied = [n for (_, file, _), n in watch.found.items() if file.endswith("write_through.py")]
    assert copied == [len(stores)]
    assert all(len(store.pending(2)) == 1 for store in stores)


@pytest.mark.parametrize(
    ("n", "measured", "expected"), [(50_000, 512, 481), (2_500, 1250, 1250), (2_500, 512, 313), (96, 64, 48)]
)
def test_forwards_divide_a_unit(monkeypatch, n, measured, expected):
    asked = {}

    def fastest(_open, **bounds):
        asked.update(bounds)
        return measured

    monkeypatch.setattr("pipeline.stores.sources.fastest_batch_size", fastest)
    source = Slow.source
    choose = partial(choose_forward, source, InputMap(SIDE), image_px=SIDE, n_samples=n, views=1)
    assert choose(Execution(CUDA)).batch_size == expected
    assert choose(Execution(CUDA, batch_size=7)).batch_size == 7
    asked.clear()
    assert choose(Execution(CUDA), n_step=128).batch_size == 128
    assert not asked, "a step's share needs no measuring"
    assert step_batch_size(source, InputMap(SIDE), Execution(torch.device("cpu")), 128) == 16


def graph_of(node):
    """An operator with where its output lies, and in brackets what it is made from."""
    made_from = ", ".join(map(graph_of, node.source.inputs))
    name = type(node.source._op).__name__.lower()
    return f"{name}:{node.device}" + (f"({made_from})" if made_from else "")


@pytest.mark.parametrize(
    ("plan", "entry", "cut"),
    [
        (PLAN, "pixels", "{slice}(externalsource:gpu, {host}, {host})"),
        (RandomResizedCropFlip(16), "pixels", "resize:gpu({slice}(externalsource:gpu, {host}, {host}))"),
        (RandomResizedCropFlip(16), "files", "resize:gpu({slice}(image:gpu({host}), {host}, {host}))"),
    ],
)
def test_dalis_graphs_lie_on_the_gpu_and_are_told_by_the_host(dataset, monkeypatch, plan, entry, cut):
    monkeypatch.setattr(Pipeline, "build", lambda _self: None)
    renderer = dali.DaliRenderer(dataset, plan, device=CUDA, batch_size=4, threads=1)
    (output,) = renderer._build(entry)._graph_out
    cut = cut.format(slice="slice:gpu", host="externalsource:cpu")
    assert graph_of(output) == f"transpose:gpu(flip:gpu({cut}, externalsource:cpu))"
    with renderer.cache_decoded():
        assert renderer._entry([np.arange(4)]) == "pixels"  # of images in memory; files are not kept:
        assert renderer._decoded is None
    assert dali._decoding(gpu=True).items() >= {"device": "mixed", "hw_decoder_load": 0.0}.items()
    renderer.close()


class Lent:
    """A renderer that uses a buffer again as DALI does, as soon as nobody holds it: each must live until the
    device has done all that was queued while it was in use.
    """

    name = "lent"

    def __init__(self, *_, **_how):
        self._lent = []

    def render(self, _view, batches):
        for positions in batches:
            before = QueuedWork.n_queued
            pixels = torch.empty(len(positions), 3, 16, 16, dtype=torch.uint8, device=NOWHERE)
            buffer = weakref.ref(pixels)
            yield pixels
            del pixels
            read_by = QueuedWork.n_queued if QueuedWork.n_queued > before else np.inf
            self._lent.append((buffer, read_by))
            self.require_alive()

    def require_alive(self):
        for buffer, read_by in self._lent:
            assert buffer() is not None or QueuedWork.n_done >= read_by

    def close(self):
        self.require_alive()
        assert self._lent


def test_buffers_live_until_an_evaluation_has_read_them(dataset, monkeypatch):
    stub_events(monkeypatch)
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(sys.modules[Evaluator.__module__], "open_renderer", Lent)
    evaluator = Evaluator(dataset, PLAN, Execution(NOWHERE), keeps=False)
    evaluator._batch = 4
    student = Student(small_student(), 10, {}, False).to(NOWHERE)
    with Watch() as watch:
        evaluator.predict(student, "fp32")
    assert lines(watch) - COPIES == {
        ("waits", "pipeline/train/evaluate.py", "answers.append(torch.cat(latest).cpu())"),
        (
            "waits",
            "sskt/sanity.py",
            "return not n_batches or int(torch.stack(n_batches).min()) >= _SETTLED_AFTER",
        ),
    }
    assert all(n == 1 for (what, *_), n in watch.found.items() if what == "waits")
    assert Evaluator(dataset, PLAN, Execution(torch.device("cpu")))._batch == 250 < evaluator._batch * 500


def test_buffers_live_until_steps_have_read_them(dataset, monkeypatch, lazily):
    renderer = Lent()
    loader = Loader(dataset, renderer, Sampler(N, 4, 0, World()), NOWHERE)
    with Watch() as watch, closing(loader.epoch(0, 0)) as batches:
        for batch in batches:
            QueuedWork().record()  # what a step queues
            del batch
    assert not watch.found
    renderer.close()


def test_buffers_live_until_a_joined_batch_has_them(monkeypatch):
    """Of two parts, one drawn on the device and one on the host."""
    stub_events(monkeypatch)
    lent = Lent()
    on_host = SimpleNamespace(name="host", render=host_batches)
    images = SimpleNamespace(parts=(lent, on_host), place=JoinedParts([N // 2, N // 2]).place)
    joined = JoinedRenderer(images, lambda part: part, NOWHERE)
    batches = in_batches(np.random.default_rng(0).permutation(N), 8)
    with Watch() as watch:
        sizes = [(len(pixels), pixels.device) for pixels in joined.render(0, batches)]
    assert sizes == [(8, NOWHERE)] * 5
    assert not watch.found
    lent.close()


def host_batches(_view, batches):
    for rows in batches:
        yield torch.zeros(len(rows), 3, 16, 16, dtype=torch.uint8)


def test_the_next_unit_is_started_while_one_is_written(dataset, tmp_path, monkeypatch):
    from threading import Event

    from pipeline.precompute import worker
    from pipeline.runtime import Progress

    spec = SourceSpec("program:a", "program", "program", 7, (0.5,) * 3, (0.5,) * 3)
    source = Source(spec, Tiny(), "0" * 64, None)
    frozen = FrozenSource(source, InputMap(SIDE), device=torch.device("cpu"), forward=Forward("fp32", 10))
    seen, n_started = [], [0]
    submit = frozen.submit

    def counted(pixels):
        n_started[0] += len(pixels)
        return submit(pixels)

    for ahead in (False, True):
        manifest = Manifest(identity=IDENTITY, made_by={"compute": "fp32", "versions": {}})
        about = {"ids": dataset.ids, "contents": dataset.contents, "n_classes": 7, "views": 1}
        store = Store.create(tmp_path / f"{ahead}.zarr", manifest, **about, block_rows=20)
        write, still, n_started[0] = store.write_unit, Event(), 0

        def written(unit, rows, write=write, still=still):
            before = -1
            while before != n_started[0]:  # until nothing more is started
                before = n_started[0]
                still.wait(0.1)
            seen.append(n_started[0])
            return write(unit, rows)

        monkeypatch.setattr(store, "write_unit", written)
        monkeypatch.setattr(frozen, "submit", counted)
        filled = SourceStore(source, frozen, store, set(store.pending(1)))
        renderer = ResidentRenderer(dataset, PLAN, device=torch.device("cpu"))
        work = worker.Worker(dataset, [filled], renderer, batch_size=10, progress=Progress("units", total=N))
        assert not work._starts_ahead
        work._starts_ahead = ahead
        work.do([(unit,) for unit in store.pending(1)])
        assert not store.pending(1)
    assert seen == [20, 40, 30, 40]
    monkeypatch.setattr(frozen, "device", CUDA)
    work = worker.Worker(dataset, [filled], renderer, batch_size=10, progress=None)
    assert work._starts_ahead


def test_a_compiled_step_is_a_graph_for_each_shape_and_its_results_are_kept(monkeypatch):
    made, marks = [], []
    step_losses = Losses(*torch.zeros(5).split(1))

    def compile_stub(step, **how):
        made.append(how)
        return step

    monkeypatch.setattr(torch, "compile", compile_stub)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    alone = compiled.compile_step(lambda: step_losses, CUDA, alone=True)
    compiled.compile_step(lambda: step_losses, CUDA, alone=False)
    on_cpu = compiled.compile_step(lambda: step_losses, torch.device("cpu"), alone=True)
    assert made == [{"dynamic": False, "mode": "reduce-overhead"}, {"dynamic": False, "mode": None}, {}]
    kept = alone()
    for value in step_losses:
        value.fill_(9)  # the next replay
    assert [float(value) for value in kept] == [0] * 5
    assert marks == [1]
    assert on_cpu() is step_losses


def test_a_network_without_deterministic_kernels_is_refused_with_a_remedy():
    config = SimpleNamespace(deterministic=True, model="resnet3d10")
    said = "max_pool3d_with_indices_backward_cuda does not have a deterministic implementation, but"
    remedy = r"--deterministic: torch .* resnet3d10 .*_backward_cuda does not have .*; leave it out"
    with pytest.raises(RunError, match=remedy), kernels(config, torch.device("cpu")):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), kernels(config, torch.device("cpu")):
        raise RuntimeError("another")
    assert not torch.are_deterministic_algorithms_enabled()
