"""Bad inputs end in one line that says what to do, or are handled; nothing that was good is lost."""

import errno
import hashlib
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from conftest import shared
from PIL import Image
from programs import Pair, Tiny, save_program

from cache.store import find_stores
from cli import main
from pipeline import run as run_files

SMALL = ("--size", "32", "--source-size", "32", "--threads", "2")
TRAIN = ("--epochs", "1", "--model", "resnet20", "--batch-size", "6")


class Bench:
    """Real pictures, a tiny source, a complete store and a finished run; every test breaks a copy of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes = folder / "scenes"
        self.program = folder / "tiny.pt2"
        self.places = ("--data-dir", str(folder / "data"), "--cache-dir", str(folder / "stores"))

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
        return self.run("precompute", *target, *SMALL, *self.places, *words)

    def train(self, *words: object, out: str = "again") -> Result:
        target = ("--target", f"imagefolder:{self.scenes}")
        source = () if "--source" in words else ("--source", f"program:{self.program}")
        where = ("--out", self.folder / out)
        return self.run("train", *target, *source, *SMALL, *TRAIN, *self.places, *where, *words)

    @property
    def store(self) -> Path:
        return find_stores(self.folder / "stores")[0]

    @property
    def picture(self) -> Path:
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
            for picture in sorted((scenes / split / name).iterdir())[:n]:
                shutil.copyfile(picture, bench.scenes / split / name / picture.name)
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


def damaged(kind: str, picture: Path) -> None:
    content = picture.read_bytes()
    text = b"this is a text, not a picture\n" * 20
    picture.write_bytes({"truncated": content[: len(content) // 2], "text": text, "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_damaged_picture_is_named(bench, kind):
    damaged(kind, bench.picture)
    before = bench.good()
    assert_refused(bench.train(), bench.picture.name)
    assert_refused(bench.precompute("--views", "3"), bench.picture.name)
    assert bench.good() == before


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16", "P", "RGBA", "1"])
def test_every_kind_of_picture_is_handled(bench, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    picture = Image.fromarray(pixels.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(pixels)
    if mode not in ("L", "I;16"):
        picture = picture.convert(mode)
    picture.save(bench.scenes / "train" / "Coast" / ("extra.jpg" if mode == "CMYK" else "extra.png"))
    for renderer in ("dali", "torch"):
        result = bench.precompute("--renderer", renderer, "--seed", "5" if renderer == "dali" else "6")
        assert result.exit_code == 0, result.output
        assert "7" in result.output


def missing_target(b: Bench) -> Result:
    return b.run("train", "--target", f"imagefolder:{b.folder / 'nowhere'}", *b.places)


def empty_class(b: Bench) -> Result:
    (b.scenes / "train" / "Office").mkdir()
    return b.train()


def one_class(b: Bench) -> Result:
    shutil.move(b.scenes / "train" / "Kitchen", b.folder / "moved")
    return b.train()


def strange_test_class(b: Bench) -> Result:
    (b.scenes / "val" / "Moon").mkdir()
    shutil.copyfile(b.picture, b.scenes / "val" / "Moon" / "1.jpg")
    return b.train()


def wrong_archive(b: Bench) -> Result:
    (b.folder / "data").mkdir(exist_ok=True)
    with tarfile.open(b.folder / "data" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("hello"), io.BytesIO())
    return b.run("prepare", "--target", "cifar10", *b.places)


def short_binary(b: Bench) -> Result:
    folder = b.folder / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"):
        (folder / name).write_bytes(b"0" * 1000)
    return b.run("prepare", "--target", "cifar10", *b.places)


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
    return b.run("evaluate", b.scenes, *b.places)


def damaged_student(b: Bench) -> Result:
    path = b.folder / "run" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    return b.run("evaluate", b.folder / "run", *b.places)


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
    (occupied_out, "not empty"),
    (out_below_a_file, "tiny.pt2/run"),
    (demo_below_a_file, "tiny.pt2/stores"),
    (no_run, "config.json"),
    (damaged_student, "student.safetensors"),
    (lambda b: b.run("train", "--target", "cifar11", *b.places), "cifar11"),
    (lambda b: b.train("--model", "resnet21"), "resnet21"),
    (lambda b: b.precompute("--source", "imagenet:resnet19"), "resnet19"),
    (lambda b: b.train("--plan", "zoom"), "zoom"),
    (lambda b: b.train("--device", "tpu"), "tpu"),
    (lambda b: b.train("--limit", "1"), "limit"),
    (lambda b: b.train("--lr", "1e30", "--epochs", "3"), "epoch"),
    (lambda b: b.run("precompute", "--source", "imagenet", *b.places), "sskt prepare"),
    (lambda b: b.run("cache", "info", b.scenes), "not a store"),
]


@pytest.mark.parametrize(("act", "words"), BAD, ids=[getattr(a, "__name__", "") + f" {w}" for a, w in BAD])
def test_a_bad_input_is_named_in_one_line_and_costs_nothing(bench, act, words, monkeypatch):
    before = bench.good()
    result = act(bench)
    assert_refused(result, words)
    if act in (edited_manifest, truncated_unit, flipped_byte, damaged_student, one_class):
        return  # these break a good file themselves
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
