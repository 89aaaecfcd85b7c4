"""One training step is the paper's equation; an epoch sees every sample once; a broken run says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Remarks
from programs import save_program, small_student

from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import open_dataset
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import parse_target
from pipeline.data.loader import shuffled_batches
from pipeline.runtime.execution import choose_execution
from pipeline.runtime.paths import Paths
from pipeline.train.run_folder import read_checkpoint, read_config
from sskt.errors import RunError, SettingError
from sskt.students import build_backbone
from sskt.students.student import Student, build_student

pytestmark = pytest.mark.usefixtures("narrow")

ROOT = Path(__file__).parents[1]

N = 40


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    paths = Paths(folder / "data", folder / "stores")
    execution = choose_execution(device="cpu", amp="auto", renderer="torch", threads=2)
    shared_arguments = {"augmentation": Augmentation(), "paths": paths, "execution": execution, "limit": N}
    api.precompute(["digits"], [source], views=2, **shared_arguments)
    return folder, source, shared_arguments


def train(project, out: str, **settings) -> dict:
    folder, source, arguments = project
    usual = {"sources": (source,), "epochs": 1, "batch_size": N, "amp": "fp32"}
    return api.train("digits", out=folder / out, **{**usual, **arguments, **settings})


def metrics_of(project, out: str) -> list[dict]:
    return [json.loads(line) for line in (project[0] / out / "metrics.jsonl").read_text().splitlines()]


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("transfer_module", [False, True])
@pytest.mark.parametrize("aux_loss", ["ce", "kd"])
def test_the_first_step_has_the_papers_losses(project, aux_loss, transfer_module):
    """One batch holds everything, so the epoch's losses are those of the freshly made student."""
    _, source, arguments = project
    out = f"{aux_loss}-{transfer_module}"
    train(project, out, transfer_module=transfer_module, aux_loss=aux_loss, temperature=2.0)
    (metrics,) = metrics_of(project, out)

    dataset = open_dataset("digits", "train", paths=arguments["paths"], limit=N)
    rows = Augmentation().training_plan(parse_target("digits")).rows(0, dataset.ids, dataset.sizes)
    padded = np.pad(dataset.images(np.arange(N)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    crops = np.stack(
        [p[t + 1 : t + 9, s + 1 : s + 9] for p, (t, s, _, _) in zip(padded, rows.windows, strict=True)]
    )
    x = torch.nn.functional.interpolate(
        torch.from_numpy(crops).permute(0, 3, 1, 2).float(), size=(16, 16), mode="bilinear", antialias=True
    ).round()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.manual_seed(0)
    backbone = build_backbone("resnet20")
    student = Student(backbone, 10, {source: 7}, transfer_module, init="released").train()
    with torch.no_grad():
        primary, auxiliary = student((x / 255 - mean) / std)
    z_s = Store.open(find_stores(arguments["paths"].cache_dir)[0]).view(0).astype(np.float64)
    z_t = auxiliary[source].double().numpy()
    p, log_p, log_q = np.exp(log_softmax(z_s / 2)), log_softmax(z_s / 2), log_softmax(z_t / 2)
    expected = 4 * -(p * log_q).sum(axis=1).mean() if aux_loss == "ce" else 4 * (p * (log_p - log_q)).mean()
    assert metrics[f"aux_loss/{source}"] == pytest.approx(expected, rel=2e-3)
    hard = -log_softmax(primary.double().numpy())[np.arange(N), dataset.labels].mean()
    assert metrics["primary_loss"] == pytest.approx(hard, rel=2e-3)
    assert metrics["train_loss"] == pytest.approx(hard + 0.1 * expected, rel=2e-3)


def test_alpha_scales_what_the_sources_teach(project):
    """With alpha 0 the heads teach the backbone nothing: the student is the one trained from scratch."""
    train(project, "alpha0", alpha=0.0, epochs=2, weight_decay=0.0)
    train(project, "scratch", method="scratch", sources=(), views=2, epochs=2, weight_decay=0.0)
    train(project, "alpha1", alpha=1.0, epochs=2, weight_decay=0.0)
    weights = [
        (project[0] / out / "student.safetensors").read_bytes() for out in ("alpha0", "scratch", "alpha1")
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_scratch_and_sskt_start_from_the_same_student(project):
    states = []
    for sources, transfer in (({}, False), ({"a": 1000, "b": 365}, False), ({"a": 1000}, True)):
        torch.manual_seed(3)
        states.append(build_student("resnet20", 10, sources, transfer).exported_state())
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


@pytest.mark.parametrize(("n", "batch_size"), [(50_000, 128), (450, 32), (33, 32), (5, 128), (129, 128)])
def test_an_epoch_holds_every_sample_once_in_even_batches(n, batch_size):
    batches = shuffled_batches(n, batch_size, seed=1, epoch=4)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(n))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    if n > 100:
        assert not np.array_equal(batches[0], shuffled_batches(n, batch_size, seed=1, epoch=5)[0])
        assert not np.array_equal(batches[0], shuffled_batches(n, batch_size, seed=2, epoch=4)[0])


def test_the_order_of_samples_is_pinned():
    assert np.concatenate(shuffled_batches(10, 4, seed=1, epoch=2)).tolist() == [1, 4, 5, 0, 7, 6, 8, 2, 3, 9]


def test_the_rate_drops_at_the_milestones(project):
    train(project, "rates", epochs=4, lr=0.1, milestones=(1, 3), gamma=0.5)
    assert [m["lr"] for m in metrics_of(project, "rates")] == pytest.approx([0.1, 0.05, 0.05, 0.025])


def test_deterministic_kernels_are_asked_for_while_it_trains_and_not_after(project, monkeypatch):
    from pipeline.train.trainer import Trainer

    step, seen = Trainer._take_step, []

    def watched(self, batch):
        seen.append(torch.are_deterministic_algorithms_enabled())
        step(self, batch)

    monkeypatch.setattr(Trainer, "_take_step", watched)
    train(project, "plain")
    train(project, "deterministic", deterministic=True)
    assert seen == [False, True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_gradients_are_clipped_as_one_vector(project, monkeypatch):
    """The first step moves the weights by lr * clip_norm in all, weight decay and momentum aside."""
    from pipeline.train.trainer import Trainer

    step, moved = Trainer._take_step, []

    def watched(self, batch):
        before = [p.detach().clone() for p in self.student.parameters()]
        step(self, batch)
        gaps = [(p.detach() - b).norm() for p, b in zip(self.student.parameters(), before, strict=True)]
        moved.append(float(torch.stack(gaps).norm()))

    monkeypatch.setattr(Trainer, "_take_step", watched)
    settings = {"weight_decay": 0.0, "lr": 0.5}
    train(project, "clipped", **settings, clip_norm=0.01, amp="fp32")
    train(project, "free", **settings)
    assert moved[0] == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert moved[1] > 10 * moved[0]


def test_the_best_student_is_kept_and_can_be_scored(project):
    from pipeline import api

    folder, _, arguments = project
    summary = train(project, "best", epochs=8, lr=0.3)
    by_epoch = [m["test_top1"] for m in metrics_of(project, "best")]
    assert summary["best_test_top1"] == max(by_epoch)
    assert summary["best_epoch"] == by_epoch.index(max(by_epoch)) + 1
    for which, expected in (("best", max(by_epoch)), ("last", by_epoch[-1])):
        figures = api.evaluate(folder / "best", execution=arguments["execution"], which=which)
        assert figures["test_top1"] == expected


def test_weights_beyond_anything_sound_stop_the_run_and_keep_the_epochs_before(project):
    overrides = {"lr": 0.01, "milestones": (2,), "gamma": 1e14, "epochs": 6}
    with pytest.raises(RunError, match=r"digits: the .* in epoch 3.*lower --lr.*last.pt holds"):
        train(project, "absurd", **overrides)
    kept = torch.load(project[0] / "absurd" / "last.pt", weights_only=True)
    assert 1 <= kept["epoch"] <= len(metrics_of(project, "absurd")) == 2
    assert all(float(value.abs().max()) < 1e4 for value in kept["method"].values())
    assert not (project[0] / "absurd" / "student.safetensors").exists()
    found = json.loads((project[0] / "absurd" / "diverged.json").read_text())
    assert found["epoch"] == 3
    assert found["what"].startswith("the largest value of student.")


def test_every_sample_of_the_step_whose_loss_is_no_number_is_named(project):
    with pytest.raises(
        RunError, match=r"digits: the loss is inf in epoch 1, step 1 \(samples .*diverged.json"
    ):
        train(project, "inf", alpha=1e39)
    found = json.loads((project[0] / "inf" / "diverged.json").read_text())
    dataset = open_dataset("digits", "train", paths=project[2]["paths"], limit=N)
    assert sorted(found["ids"]) == dataset.ids.tolist()
    assert not (project[0] / "inf" / "student.safetensors").exists()


@pytest.mark.parametrize("gradient_cosine", ["off", "weigh"])
def test_a_first_step_that_overflows_in_fp16_is_left_out_and_spoils_nothing(
    project, monkeypatch, gradient_cosine
):
    """Deterministic mode fills memory that nobody has written with NaN: what a momentum must not be read
    from. Gradients that are gated overflow as the others do.
    """
    monkeypatch.setattr("pipeline.train.method.student_precision", lambda *_: "fp16")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **k, init_scale=2.0**22))
    tuning = {"amp": "fp16", "deterministic": True}
    overrides, out = {"epochs": 2, "batch_size": 4, "lr": 0.01}, f"fp16-{gradient_cosine}"
    train(project, out, model=small_student(), **tuning, **overrides, gradient_cosine=gradient_cosine)
    state = torch.load(project[0] / out / "last.pt", weights_only=True)
    assert state["scaler"]["scale"] < 2.0**22, "steps were left out"
    metrics = metrics_of(project, out)
    losses = [m["train_loss"] for m in metrics]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    cosines = [m[name] for m in metrics for name in m if name.startswith("gradient_cosine/")]
    assert len(cosines) == (0 if gradient_cosine == "off" else 2)
    assert all(-1 < c < 1 and c != 0 for c in cosines)


def test_maxl_does_without_fp16(project, monkeypatch):
    """Gradients of gradients leave its range: refused where it is asked for, fp32 where the device would."""
    monkeypatch.setattr("pipeline.train.method.student_precision", lambda *_: "fp16")
    with pytest.raises(RunError, match="--amp fp16: --method maxl takes gradients of gradients"):
        train(project, "no", method="maxl", sources=(), amp="fp16")
    train(project, "maxl", method="maxl", sources=(), amp="auto")
    assert read_config(project[0] / "maxl")["amp"] == "fp32"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"lr": -1.0}, "lr is -1.0, expected more than 0"),
        (
            {"schedule": "poly"},
            "schedule is 'poly', expected one of multistep, plateau, cosine",
        ),
        ({"aux_loss": "kl"}, "aux_loss is 'kl', expected one of ce, kd, focal"),
        (
            {"label_smoothing": 2.0},
            "label_smoothing is 2.0, expected at least 0 and at most 1",
        ),
        ({"mixup": float("nan")}, "mixup is nan, expected at least 0"),
        ({"temperature": float("inf")}, "temperature is inf, expected more than 0"),
        (
            {"method": "kd", "alpha": 2.0},
            "alpha is 2, expected at most 1 with --method kd",
        ),
    ],
)
def test_a_value_that_no_training_can_have_is_refused_before_anything_is_written(project, wrong, expected):
    with pytest.raises(SettingError, match=f"^{expected}") as raised:
        train(project, "wrong", **wrong)
    assert raised.value.parameter == list(wrong)[-1]
    assert not (project[0] / "wrong").exists()


@pytest.mark.parametrize(("model", "batch_size"), [("vgg16", N), ("resnet18", 1)])
def test_pictures_too_small_for_a_network_are_refused_before_anything_is_written(project, model, batch_size):
    folder, _, arguments = project
    with pytest.raises(RunError, match=f"--model {model} cannot train on . image.s. of 16 px at a time"):
        api.train(
            "digits",
            method="scratch",
            epochs=1,
            batch_size=batch_size,
            model=model,
            out=folder / "small",
            **arguments,
        )
    assert not (folder / "small").exists()


def test_numbers_from_numpy_make_a_checkpoint_that_can_be_read(project):
    overrides = {"lr": np.float64(0.01), "alpha": np.float32(0.5), "epochs": np.int64(1)}
    tuning = {"amp": "fp32", "mixup": np.float32(0.25)}
    train(project, "numpy", **overrides, **tuning, seed=np.int64(3))
    state = read_checkpoint(project[0] / "numpy")
    assert state is not None
    assert [state["config"][name] for name in ("lr", "alpha", "mixup", "seed")] == [0.01, 0.5, 0.25, 3]


@pytest.mark.parametrize("method", ["scratch", "sskt"])
def test_a_compiled_step_is_the_eager_one(project, method):
    losses = {}
    for compiled in (False, True):
        out = f"compiled-{method}-{compiled}"
        sources = {"sources": ()} if method == "scratch" else {}
        tuning = {"amp": "fp32", "compiled": compiled}
        overrides = {"epochs": 3, "lr": 0.01}  # slowly: roundings of the two grow with the rate
        train(project, out, method=method, model=small_student(), views=2, **tuning, **overrides, **sources)
        losses[compiled] = [m["train_loss"] for m in metrics_of(project, out)]
    assert losses[True] == pytest.approx(losses[False], rel=2e-3)
    assert losses[True][2] != losses[True][0]


def test_what_is_not_the_recipes_is_said_and_recorded(project):
    said = Remarks()
    recipe = {"batch_size": 32, "milestones": [20, 30]}
    train(project, "departs", **(recipe | {"lr": 0.07, "milestones": [1]}))
    summary = json.loads((project[0] / "departs" / "summary.json").read_text())
    assert summary["overridden"] == {"epochs": [1, 40], "lr": [0.07, 0.05], "milestones": [[1], [20, 30]]}
    words = "the recipe of digits, except: epochs 1 (not 40), lr 0.07 (not 0.05), mile"
    assert any(remark.startswith(words) for remark in said)
    train(project, "departs-maxl", method="maxl", sources=(), **recipe)
    summary = json.loads((project[0] / "departs-maxl" / "summary.json").read_text())
    assert summary["overridden"] == {"epochs": [1, 40]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(
    ("chosen", "arrays"),
    # the second need not wait for torch to be imported: what is looked at is whether mallopt is called
    [({}, "import torch as arrays"), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, "import numpy as arrays")],
)
def test_memory_that_a_step_frees_is_used_again_unless_the_user_has_chosen(chosen, arrays):
    count_faults = f"""
import resource, runpy, sys
{arrays}
sys.modules.setdefault("torch", sys)  # which memory.py imports
reuse_freed_memory = runpy.run_path(sys.argv[1])["reuse_freed_memory"]  # the rest takes seconds to import
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [arrays.ones(1 << 20, dtype=arrays.float32) for _ in range(8)]  # 4 MB each
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
reuse_freed_memory()
faults()
print(before, faults())
"""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    # a Python of its own: glibc reads the environment when a process starts, and a fork has started
    command = [sys.executable, "-c", count_faults, "pipeline/runtime/memory.py"]
    done = subprocess.run(command, env=own | chosen, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert (after < before / 10) == (not chosen), (before, after)


def _large_pages() -> str:
    """Whether the kernel hands out pages of 2 MB: always, when asked to, or never."""
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return file.read_text().partition("[")[2].partition("]")[0] if file.is_file() else "never"


@pytest.mark.skipif(_large_pages() != "madvise", reason="needs a kernel that has large pages for who asks")
@pytest.mark.parametrize("chosen", [{}, {"THP_MEM_ALLOC_ENABLE": "0"}])
def test_stage_ones_command_puts_large_tensors_on_large_pages_unless_the_user_has_chosen(chosen):
    count_faults = """
import resource, torch
from cli import main
from pipeline import api
def precompute(**what):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(1 << 24) for _ in range(4)]  # 64 MB each
    raise SystemExit(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < (256 << 20) // 4096 / 10)
api.precompute = precompute
main(["precompute", "--target", "digits", "--source", "imagenet"], standalone_mode=False)
"""
    own = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", count_faults]
    done = subprocess.run(command, env=own | chosen, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    assert done.returncode == (not chosen)
