"""The doors by which a student is made of other things, used and looked at: what is wrong ends in one line."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_inputs import Bench, Result, assert_refused, bench, original  # noqa: F401 - fixtures


def without(b: Bench, package: str, patch: pytest.MonkeyPatch) -> None:
    """As if `package` were not installed."""
    found = importlib.util.find_spec
    patch.setattr("importlib.util.find_spec", lambda name, *more: None if name == package else found(name, *more))


def nan_student(b: Bench) -> Result:
    path = b.folder / "run" / "student.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, path)
    return b.run("predict", b.folder / "run", b.image, *b.paths)


def no_student(b: Bench) -> Result:
    (b.folder / "run" / "student.safetensors").unlink()
    return b.run("predict", b.folder / "run", b.image, *b.paths)


def moved_images(b: Bench) -> Result:
    b.scenes.rename(b.folder / "elsewhere")
    return b.run("evaluate", b.folder / "run", *b.paths)


def strange_classes(b: Bench) -> Result:
    shutil.copytree(b.scenes / "val" / "Coast", b.folder / "other" / "Sea")
    return b.run("evaluate", b.folder / "run", "--on", b.folder / "other", *b.paths)


def nan_start(b: Bench) -> Result:
    weights = load_file(b.folder / "run" / "student.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, b.folder / "nan.safetensors")
    return b.train("--finetune-from", b.folder / "nan.safetensors")


def nan_timm(b: Bench) -> Result:
    import timm

    weights = timm.create_model("test_resnet").state_dict()
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, b.folder / "nan.safetensors")
    named = ("--source", "timm:test_resnet", "--weights", f"timm:test_resnet={b.folder / 'nan.safetensors'}")
    return b.precompute(*named)


def without_timm(b: Bench) -> Result:
    return b.train("--model", "timm:test_resnet")


def torn_export(b: Bench) -> Result:
    assert b.run("export", b.folder / "run", "--format", "pt2", *b.paths).exit_code == 0
    path = b.folder / "run" / "exported.pt2"
    path.write_bytes(path.read_bytes()[:5000])
    torn = path.rename(b.folder / "torn.pt2")
    return b.precompute("--source", f"program:{torn}")


def not_a_model(b: Bench) -> Result:
    return b.train("--model", "nonets:build")


DOORS = [
    (lambda b: b.run("predict", b.scenes, b.image, *b.paths), "config.json"),
    (no_student, "student.safetensors"),
    (nan_student, "NaN"),
    (lambda b: b.run("evaluate", b.folder / "run", "--on", b.folder / "none", *b.paths), "none"),
    (lambda b: b.run("evaluate", b.folder / "run", "--on", b.image, *b.paths), "folder"),
    (moved_images, "--target"),
    (strange_classes, "Sea"),
    (lambda b: b.run("export", b.scenes, "--format", "pt2", *b.paths), "config.json"),
    (lambda b: b.run("export", b.folder / "run", "--format", "pt2", "--out", b.program / "x", *b.paths), "tiny.pt2/x"),
    (lambda b: b.run("report", b.scenes, *b.paths), "config.json"),
    (lambda b: b.run("report", b.folder / "run", "--out", b.program / "x.html", *b.paths), "tiny.pt2/x.html"),
    (lambda b: b.run("runs", b.scenes), "no run below"),
    (lambda b: b.run("runs", b.folder / "run", "--html", b.program / "x.html"), "tiny.pt2/x.html"),
    (lambda b: b.run("runs", b.folder / "none"), "none"),
    (lambda b: b.train("--config", b.scenes), "scenes"),
    (lambda b: b.train("--model", "timm:resnet5O"), "did you mean"),
    (not_a_model, "nonets"),
    (lambda b: b.train("--tracker", "aim"), "sskt[aim]"),
    (lambda b: b.train("--augment", "cutout"), "cutout"),
    (lambda b: b.train("--color-jitter", "0.4,0.4,x"), "color-jitter"),
    (lambda b: b.train("--random-erasing", "2"), "random-erasing"),
    (lambda b: b.train("--class-weights", "balanced", "--primary-loss", "focal"), "class-weights"),
    (lambda b: b.train("--model", "timm:test_resnet", "--pretrained"), "test_resnet"),
    (nan_start, "nan.safetensors"),
    (nan_timm, "NaN"),
    (torn_export, "torn.pt2"),
    (lambda b: b.precompute("--source", f"run:{b.scenes}"), "config.json"),
    (lambda b: b.run("prepare", "--target", f"list:{b.program}", *b.paths), "tiny.pt2"),
    (lambda b: b.run("prepare", "--target", f"tar:{b.program}", *b.paths), "tiny.pt2"),
    (lambda b: b.run("prepare", "--target", f"hf-dataset:{b.scenes}", *b.paths), "scenes"),
]


@pytest.mark.parametrize(("act", "words"), DOORS, ids=range(len(DOORS)))
def test_x(bench, act, words):
    result = act(bench)
    print("EXIT", result.exit_code, type(result.exception).__name__, "|", result.stderr.strip().splitlines()[-2:], "|", result.output[-300:] if result.exit_code == 0 else "")
    assert_refused(result, words)
