"""Bad inputs end in one line that says what to do, or are handled; nothing that was good is lost."""

import errno
import hashlib
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner, Result
from conftest import shared
from PIL import Image
from programs import Pair, Tiny, save_program
from safetensors.torch import load_file, save_file

from cache.store import find_stores
from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_training_data
from pipeline.studies.reproduce.run import Campaign
from pipeline.studies.sweep_grid import Grid
from pipeline.train import run_folder as run_files
from sskt.errors import RunError

SMALL = ("--size", "32", "--source-size", "32", "--threads", "2")
TRAIN = ("--epochs", "1", "--model", "resnet20", "--batch-size", "6")


class Bench:
    """Real pictures, a tiny source, a complete store and a finished run; every test breaks a copy of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes = folder / "scenes"
        self.program = folder / "tiny.pt2"
        self.paths = ("--data-dir", str(folder / "data"), "--cache-dir", str(folder / "stores"))

    def run(self, *words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=True)

    def precompute(self, *words: object) -> Result:
        target = (
            "--target",
            f"imagefolder:{self.scenes}",
            "--source",
            f"program:{self.program}",
            "--views",
            "2",
        )
        return self.run("precompute", *target, *SMALL, *self.paths, *words)

    def train(self, *words: object, out: str = "again") -> Result:
        target = ("--target", f"imagefolder:{self.scenes}")
        source = () if "--source" in words else ("--source", f"program:{self.program}")
        where = ("--out", self.folder / out)
        return self.run("train", *target, *source, *SMALL, *TRAIN, *self.paths, *where, *words)

    @property
    def store(self) -> Path:
        return find_stores(self.folder / "stores")[0]

    @property
    def image(self) -> Path:
        return sorted((self.scenes / "train" / "Coast").iterdir())[1]

    def good(self) -> dict[str, str]:
        """Digests of the store, the run, the sources and the pictures."""
        kept = ("stores/imagefolder", "run", "tiny.pt2", "scenes")
        files = [p for p in sorted(self.folder.rglob("*")) if p.is_file()]
        names = {p.relative_to(self.folder).as_posix(): p for p in files}
        return {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in names.items() if n.startswith(kept)}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    bench = Bench(folder)
    scenes = shared("data/scene15")
    for split, n in (("train", 3), ("val", 2)):
        for name in ("Coast", "Kitchen"):
            (bench.scenes / split / name).mkdir(parents=True)
            for image in sorted((scenes / split / name).iterdir())[:n]:
                shutil.copyfile(image, bench.scenes / split / name / image.name)
    save_program(bench.program)
    assert bench.precompute().exit_code == 0
    assert bench.train(out="run").exit_code == 0
    return folder


@pytest.fixture
def bench(original, tmp_path) -> Bench:
    shutil.copytree(original, tmp_path / "bench")
    return Bench(tmp_path / "bench")


def assert_refused(result: Result, *words: str) -> None:
    """One line on standard error that holds `words`, exit code 1, and no traceback."""
    assert result.exit_code == 1, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0], lines[0]


def damaged(kind: str, image: Path) -> None:
    content = image.read_bytes()
    text = b"this is a text, not a picture\n" * 20
    image.write_bytes({"truncated": content[: len(content) // 2], "text": text, "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_damaged_picture_is_named(bench, kind):
    damaged(kind, bench.image)
    before = bench.good()
    assert_refused(bench.train(), bench.image.name)
    assert_refused(bench.precompute("--views", "3"), bench.image.name)
    assert bench.good() == before


@pytest.mark.parametrize("renderer", ["dali", "torch"])
def test_every_kind_of_picture_is_handled(bench, renderer):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    for mode in ("L", "CMYK", "I;16", "P", "RGBA", "1"):
        image = Image.fromarray(pixels.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(pixels)
        if mode not in ("L", "I;16"):
            image = image.convert(mode)
        name = f"{mode[0]}.jpg" if mode == "CMYK" else f"{mode[0]}.png"
        image.save(bench.scenes / "train" / "Coast" / name)
    result = bench.precompute("--renderer", renderer, "--seed", "5", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["n_samples"], row["rows_done"]) == (6 + 6, 2 * (6 + 6))


def missing_target(b: Bench) -> Result:
    return b.run("train", "--target", f"imagefolder:{b.folder / 'nowhere'}", *b.paths)


def empty_class(b: Bench) -> Result:
    (b.scenes / "train" / "Office").mkdir()
    return b.train()


def one_class(b: Bench) -> Result:
    shutil.move(b.scenes / "train" / "Kitchen", b.folder / "moved")
    return b.train()


def strange_test_class(b: Bench) -> Result:
    (b.scenes / "val" / "Moon").mkdir()
    shutil.copyfile(b.image, b.scenes / "val" / "Moon" / "1.jpg")
    return b.train()


def wrong_archive(b: Bench) -> Result:
    (b.folder / "data").mkdir(exist_ok=True)
    with tarfile.open(b.folder / "data" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("hello"), io.BytesIO())
    return b.run("prepare", "--target", "cifar10", *b.paths)


def short_binary(b: Bench) -> Result:
    folder = b.folder / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"):
        (folder / name).write_bytes(b"0" * 1000)
    return b.run("prepare", "--target", "cifar10", *b.paths)


def nan_source(b: Bench) -> Result:
    save_program(b.folder / "nan.pt2", Tiny(bad=True))
    Image.new("RGB", (40, 40), (255, 255, 255)).save(b.scenes / "train" / "Kitchen" / "white.png")
    return b.precompute("--source", f"program:{b.folder / 'nan.pt2'}")


def two_outputs(b: Bench) -> Result:
    return b.precompute("--source", f"program:{save_program(b.folder / 'pair.pt2', Pair())}")


def fixed_batch(b: Bench) -> Result:
    program = f"program:{save_program(b.folder / 'fixed.pt2', fixed_batch=True)}"
    return b.precompute("--source", program, "--batch-size", "16")


def text_program(b: Bench) -> Result:
    (b.folder / "text.pt2").write_text("hello")
    return b.precompute("--source", f"program:{b.folder / 'text.pt2'}")


def missing_program(b: Bench) -> Result:
    return b.precompute("--source", f"program:{b.folder / 'nowhere.pt2'}")


def weights_of(b: Bench, name: str, state: object) -> Result:
    torch.save(state, b.folder / name)
    return b.precompute("--source", "imagenet:resnet18", "--weights", f"imagenet:resnet18={b.folder / name}")


def wrong_class_count(b: Bench) -> Result:
    return weights_of(b, "ten.pth", torchvision.models.resnet18(num_classes=10).state_dict())


def missing_keys(b: Bench) -> Result:
    state = torchvision.models.resnet18().state_dict()
    del state["layer1.0.conv1.weight"]
    return weights_of(b, "less.pth", state)


class Code:
    """Something that a pickle would run."""

    def __reduce__(self):
        return (print, ("this must never be run",))


def pickled_code(b: Bench) -> Result:
    (b.folder / "code.pth").write_bytes(pickle.dumps(Code()))
    weights = f"imagenet:resnet18={b.folder / 'code.pth'}"
    return b.precompute("--source", "imagenet:resnet18", "--weights", weights)


def views_out_of_range(b: Bench) -> Result:
    return b.train("--labels", "cached", "--views", "9")


def cache_is_a_file(b: Bench) -> Result:
    (b.folder / "file").write_text("")
    target = ("--target", f"imagefolder:{b.scenes}", "--source", f"program:{b.program}")
    return b.run("precompute", *target, *SMALL, "--cache-dir", b.folder / "file" / "stores")


def edited_manifest(b: Bench) -> Result:
    path = b.store / "zarr.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    return b.train()


def truncated_unit(b: Bench) -> Result:
    path = b.store / "logits" / "c.0.0.0"
    path.write_bytes(path.read_bytes()[:-7])
    return b.train()


def flipped_byte(b: Bench) -> Result:
    path = b.store / "logits" / "c.0.0.0"
    content = bytearray(path.read_bytes())
    content[11] ^= 4
    path.write_bytes(content)
    return b.train()


def occupied_out(b: Bench) -> Result:
    return b.train(out="run")


def out_below_a_file(b: Bench) -> Result:
    return b.train(out="tiny.pt2/run")


def demo_below_a_file(b: Bench) -> Result:
    return b.run("demo", "--cache-dir", b.program / "stores", "--out", b.folder / "demo")


def no_run(b: Bench) -> Result:
    return b.run("evaluate", b.scenes, *b.paths)


def damaged_student(b: Bench) -> Result:
    path = b.folder / "run" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    return b.run("evaluate", b.folder / "run", *b.paths)


def no_student(b: Bench) -> Result:
    (b.folder / "run" / "student.safetensors").unlink()
    return b.run("predict", b.folder / "run", b.image, *b.paths)


def with_nan(file: Path, out: Path) -> None:
    """A copy of a file of weights whose first floating-point number is NaN."""
    weights = load_file(file)
    next(value for value in weights.values() if value.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, out)


def nan_student(b: Bench) -> Result:
    path = b.folder / "run" / "student.safetensors"
    with_nan(path, path)
    return b.run("predict", b.folder / "run", b.image, *b.paths)


def nan_start(b: Bench) -> Result:
    with_nan(b.folder / "run" / "student.safetensors", b.folder / "nan.safetensors")
    return b.train("--finetune-from", b.folder / "nan.safetensors")


def nan_timm(b: Bench) -> Result:
    network, file = timm.create_model("test_resnet"), b.folder / "nan.safetensors"
    save_file(network.state_dict(), file)
    with_nan(file, file)
    return b.precompute("--source", "timm:test_resnet", "--weights", f"timm:test_resnet={file}")


def strange_classes(b: Bench) -> Result:
    shutil.copytree(b.scenes / "val" / "Coast", b.folder / "other" / "Sea")
    return b.run("evaluate", b.folder / "run", "--on", b.folder / "other", *b.paths)


def torn_program(b: Bench) -> Result:
    (b.folder / "torn.pt2").write_bytes(b.program.read_bytes()[:5000])
    return b.precompute("--source", f"program:{b.folder / 'torn.pt2'}")


BAD = [
    (missing_target, "nowhere"),
    (empty_class, "Office"),
    (one_class, "class"),
    (strange_test_class, "Moon"),
    (wrong_archive, "cifar-10-binary.tar.gz"),
    (short_binary, "1,000"),
    (nan_source, "white.png"),
    (two_outputs, "pair.pt2"),
    (fixed_batch, "fixed.pt2"),
    (text_program, "text.pt2"),
    (missing_program, "nowhere.pt2"),
    (wrong_class_count, "10 classes"),
    (missing_keys, "layer1.0.conv1.weight"),
    (pickled_code, "code.pth"),
    (views_out_of_range, "9"),
    (cache_is_a_file, "file"),
    (edited_manifest, "manifest"),
    (truncated_unit, "c.0.0.0"),
    (flipped_byte, "c.0.0.0"),
    (occupied_out, "was started with target"),
    (out_below_a_file, "tiny.pt2/run"),
    (demo_below_a_file, "tiny.pt2/stores"),
    (no_run, "config.json"),
    (damaged_student, "student.safetensors"),
    (lambda b: b.run("train", "--target", "cifar11", *b.paths), "cifar11"),
    (lambda b: b.train("--model", "resnet21"), "resnet21"),
    (lambda b: b.precompute("--source", "imagenet:resnet19"), "resnet19"),
    (lambda b: b.train("--plan", "zoom"), "zoom"),
    (lambda b: b.train("--device", "tpu"), "tpu"),
    (lambda b: b.train("--limit", "1"), "limit"),
    (lambda b: b.train("--lr", "1e30", "--epochs", "3"), "epoch"),
    (lambda b: b.run("precompute", "--source", "imagenet", *b.paths), "sskt prepare"),
    (lambda b: b.run("cache", "info", b.scenes), "not a store"),
    # where a student is used and looked at, and where it comes from elsewhere
    (no_student, "student.safetensors"),
    (nan_student, "make no sense, nan"),
    (nan_start, "nan.safetensors"),
    (nan_timm, "NaN"),
    (strange_classes, "Sea"),
    (torn_program, "torn.pt2"),
    (lambda b: b.run("predict", b.scenes, b.image, *b.paths), "config.json"),
    (lambda b: b.run("export", b.scenes, "--format", "pt2", *b.paths), "config.json"),
    (lambda b: b.run("export", b.folder / "run", "--format", "pt2", "--out", "x.onnx", *b.paths), ".pt2"),
    (lambda b: b.run("report", b.scenes, *b.paths), "config.json"),
    (lambda b: b.run("runs", b.scenes), "no run below"),
    (lambda b: b.run("runs", b.folder / "none"), "is no folder"),
    (lambda b: b.run("runs", b.folder / "run", "--html", b.program / "x.html"), "tiny.pt2/x.html"),
    (lambda b: b.run("evaluate", b.folder / "run", "--on", b.folder / "none", *b.paths), "no such folder"),
    (lambda b: b.precompute("--source", f"run:{b.scenes}"), "is no run, it has no config.json"),
    (lambda b: b.train("--model", "timm:resnet5O"), "did you mean resnet50"),
    (lambda b: b.train("--model", "nonets:build"), "PYTHONPATH"),
    (lambda b: b.train("--model", "timm:test_resnet", "--pretrained"), "--finetune-from"),
    (lambda b: b.train("--tracker", "aim"), "sskt[aim]"),
    (lambda b: b.train("--augment", "cutout"), "--augment"),
    (lambda b: b.train("--color-jitter", "0.4,0.4,x"), "--color-jitter"),
    (lambda b: b.train("--random-erasing", "2"), "--random-erasing"),
    (lambda b: b.train("--class-weights", "balanced", "--primary-loss", "focal"), "--class-weights"),
    (lambda b: b.run("prepare", "--target", f"list:{b.program}", *b.paths), "rename the file if it is one"),
    (lambda b: b.run("prepare", "--target", f"tar:{b.program}", *b.paths), "tiny.pt2: is compressed"),
    (lambda b: b.run("prepare", "--target", f"hf-dataset:{b.scenes}", *b.paths), "save_to_disk"),
]


# these break a good file themselves
BREAKING = (
    edited_manifest,
    truncated_unit,
    flipped_byte,
    damaged_student,
    no_student,
    nan_student,
    one_class,
)


@pytest.mark.parametrize(("act", "words"), BAD, ids=[getattr(a, "__name__", "") + f" {w}" for a, w in BAD])
def test_a_bad_input_is_named_in_one_line_and_costs_nothing(bench, act, words, monkeypatch):
    before = bench.good()
    result = act(bench)
    assert_refused(result, words)
    if act in BREAKING:
        return
    after = bench.good()
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "0"),
        ("--views", "0"),
        ("--temperature", "0"),
        ("--alpha", "-1"),
        ("--lr", "-0.1"),
        ("--epochs", "none"),
        ("--milestones", "ten,20"),
        ("--weights", "resnet50.pth"),
        ("--labels", "cache"),
    ],
)
def test_an_option_out_of_range_is_a_usage_error(bench, option, value):
    result = bench.train(option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert value in result.stderr
    assert "Traceback" not in result.output
    assert not (bench.folder / "again").exists()


def test_a_disk_that_fills_up_while_training_is_named(bench, monkeypatch):
    write = run_files.write_durably

    def full(path: Path, *parts: bytes) -> None:
        if path.name.startswith("last.pt"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *parts)

    monkeypatch.setattr(run_files, "write_durably", full)
    before = bench.good()
    assert_refused(bench.train(), "last.pt: cannot be written (No space left on device)")
    assert bench.good() == before


def from_python(folder: Path, **more) -> dict:
    """Settings of `train` and the like with places that hold nothing."""
    return {"paths": Paths(folder / "data", folder / "stores"), **more}


MISTAKEN = [
    (lambda f: api.precompute(3, "imagenet", **from_python(f)), "targets is 3 (int), expected names"),
    (lambda f: api.precompute(["digits", 3], "imagenet", **from_python(f)), "one of targets is 3 (int)"),
    (
        lambda f: api.precompute("digits", {"imagenet": 1}, **from_python(f)),
        "sources is {'imagenet': 1} (dict)",
    ),
    (lambda f: api.precompute("digits", "imagenet", views=2.0, **from_python(f)), "views is 2.0 (float)"),
    (lambda f: api.precompute("digits", "imagenet", views=True, **from_python(f)), "views is True (bool)"),
    (lambda f: api.precompute("digits", "imagenet", limit="9", **from_python(f)), "limit is '9' (str)"),
    (lambda f: api.estimate("digits", "imagenet", top_k=1.5, **from_python(f)), "top_k is 1.5 (float)"),
    (lambda f: api.prepare(["digits"], **from_python(f)), "target is ['digits'] (list), expected one name"),
    (lambda f: api.train(["digits"], out=f / "run", **from_python(f)), "target is ['digits'] (list)"),
    (
        lambda f: api.train("digits", out=f / "run", seed=-1, **from_python(f)),
        "seed is -1 (int), expected a w",
    ),
    (
        lambda f: api.train("digits", out=f / "run", seed=2**63, **from_python(f)),
        "at least 0 and below 2**63",
    ),
    (lambda f: api.train("digits", out=f / "run", seed=0.5, **from_python(f)), "seed is 0.5 (float)"),
    (lambda f: api.train("digits", out=f / "run", limit=12.0, **from_python(f)), "limit is 12.0 (float)"),
    (lambda f: api.train("digits", out=7, **from_python(f)), "out is 7 (int), expected a folder or a URL"),
    (
        lambda f: api.train("digits", out=f / "run", model=torch.nn.Linear(2, 2), **from_python(f)),
        "the module Linear cannot take images (2x3x16x16: ",
    ),
    (
        lambda f: api.train("digits", out=f / "run", model=torch.nn.Linear, **from_python(f)),
        "expected a name or a torch.nn.Module",
    ),
    *[
        (
            lambda f, o=overrides: api.train("digits", out=f / "run", **o, **from_python(f)),
            said,
        )
        for overrides, said in (
            ({"epochs": 1.5}, "epochs is 1.5 (float)"),
            ({"epochs": True}, "epochs is True (bool)"),
            ({"lr": "0.1"}, "lr is '0.1' (str), expected a number"),
            ({"milestones": "60,120"}, "one of milestones is '60,120' (str)"),
            ({"aux_loss": ["ce"]}, "aux_loss is ['ce'] (list)"),
        )
    ],
    (lambda _: Augmentation(seed=-1), "seed is -1 (int)"),
    (lambda _: Augmentation(seed=2**64), "at least 0 and below 2**64"),
    (lambda _: Augmentation(side_px=32.5), "side_px is 32.5 (float)"),
    (lambda f: api.train("digits", out=f / "run", sources=7, **from_python(f)), "sources is 7 (int)"),
    (lambda f: api.train("digits", out=f / "run", views=1.0, **from_python(f)), "views is 1.0 (float)"),
    (
        lambda f: api.train("digits", out=f / "run", mixup="0.2", **from_python(f)),
        "mixup is '0.2' (str), expected a number",
    ),
    (lambda _: Paths(data_dir=None), "data_dir is None (NoneType), expected a path"),
    (lambda _: Paths(weights="resnet50.pth"), "weights are 'resnet50.pth', expected paths by source"),
    (lambda _: choose_execution(device="cpu", threads=1.5), "threads is 1.5 (float)"),
    (lambda _: Grid("imagenet", ("3",), (0.1,)), "one of temperatures is '3' (str), expected a number"),
    (lambda f: Campaign(f, Paths(), None, seeds=2.0), "seeds is 2.0 (float)"),
    (
        lambda f: api.evaluate(str(f), backbone=torch.nn.Linear),
        "backbone is <class 'torch.nn.modules.linear.Linear'>",
    ),
    (
        lambda f: api.resume(f, backbone="resnet20"),
        "backbone is 'resnet20' (str), expected a torch.nn.Module",
    ),
    (lambda f: api.explain([], out=f / "a.png", execution=None), "there is no run to explain"),
    (lambda f: api.explain(3.5, out=f / "a.png", execution=None), "runs is 3.5 (float), expected paths"),
    (
        lambda f: api.verify(str(f), n_rows=2.5, execution=None, **from_python(f)),
        "n_rows is 2.5 (float)",
    ),
]


@pytest.mark.parametrize(("act", "said"), MISTAKEN, ids=[said for _, said in MISTAKEN])
def test_a_mistaken_value_from_python_is_one_sentence(tmp_path, act, said):
    with pytest.raises(RunError) as caught:
        act(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing is begun"


def test_what_can_only_be_meant_one_way_is_taken(bench):
    """One name where several may be, paths as text, NumPy's numbers: through both stages and back."""
    paths = Paths(str(bench.folder / "data"), str(bench.folder / "stores"))
    target, source = f"imagefolder:{bench.scenes}", f"program:{bench.program}"
    augmentation = Augmentation(seed=np.int64(3), side_px=np.int32(32), source_side_px=np.uint8(32))
    common = {"paths": paths, "augmentation": augmentation}
    (report,) = api.precompute(target, source, views=np.int64(1), limit=np.int16(4), **common)
    assert (report.n_samples, report.views) == (4, 1)
    taught = {"sources": source, "labels": "cached"}
    overrides = {"epochs": np.int64(1), "batch_size": np.int64(2), "lr": np.float32(0.5), "milestones": 1}
    out = str(bench.folder / "taught")
    summary = api.train(
        target,
        out=out,
        **taught,
        **overrides,
        model="resnet20",
        limit=np.int64(4),
        seed=np.uint64(2**63 - 1),
        mixup=np.float64(0.0),
        **common,
    )
    assert (summary["epochs"], summary["seed"]) == (1, 2**63 - 1)
    again = api.resume(out)
    assert again["test_top1"] == api.evaluate(out)["test_top1"]
    assert len(open_training_data(target, sources=source, labels="cached", limit=4, batch_size=np.int64(2),
                                paths=paths, augmentation=augmentation)) == 2  # fmt: skip
    grid = Grid("imagenet", 3, np.float64(0.5), vary={"transfer_module": True}, seeds=np.int8(2))
    assert grid == Grid((("imagenet",),), (3,), (0.5,), {"transfer_module": (True,)}, 2)
    assert Grid(("imagenet", ["places365", "imagenet"]), 3, 1).sources[1] == ("places365", "imagenet")
