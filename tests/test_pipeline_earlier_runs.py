"""Runs whose config.json has an earlier form go on and are scored as those of today are."""

import json
from dataclasses import MISSING, fields

import pytest
from test_golden import GOLDEN, METHODS, PROGRAM, run

from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("narrow")

FORMS = {"today": "configs.json", "before labels could be left out": "earlier-configs.json"}
SHORT = ("--epochs", "1", "--batch-size", "20", "--limit", "40", "--amp", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store for the run of sskt, and a run from scratch, which is the teacher of kd's."""
    folder = tmp_path_factory.mktemp("earlier")
    about = ("--source", f"program:{PROGRAM}", "--target", "digits", "--limit", "40", "--views", "2")
    run(folder, "precompute", *about, "--device", "cpu")
    alone = ("--target", "digits", "--method", "scratch", *SHORT)
    run(folder, "train", *alone, "--out", str(folder / "scratch"))
    return folder


def stopped(folder, name, config):
    """The folder of a run that was stopped before its first checkpoint."""
    out = folder / name
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    places = {"data_dir": str(folder / "data"), "cache_dir": str(folder / "stores"), "weights": {}}
    (out / "environment.json").write_text(json.dumps({"places": places}))
    return out


def recorded(folder, form, method):
    """The golden config.json of a method, in one of its forms, as it would lie on this machine."""
    text = json.dumps(json.loads((GOLDEN / FORMS[form]).read_text())[method])
    config = json.loads(text.replace("FOLDER", str(folder)).replace("PROGRAM", str(PROGRAM)))
    if method == "kd":  # whose teacher has other last bits on another machine
        paths = Paths(folder / "data", folder / "stores")
        config["source_weights"] = {name: paths.weights_sha256(name) for name in config["source_weights"]}
    return config


def finish(folder, out):
    """Resume a run and score it by commands; returns its student, and its accuracy according to both."""
    run(folder, "train", "--resume", str(out))
    trained = json.loads((out / "summary.json").read_text())
    scored = json.loads(run(folder, "evaluate", str(out), "--json"))
    return (out / "student.safetensors").read_bytes(), trained["test_top1"], scored["test_top1"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_begun_by_an_earlier_version_goes_on_and_is_scored(folder, method):
    outs = [stopped(folder, f"{method} {form}", recorded(folder, form, method)) for form in FORMS]
    assert len({(out / "config.json").read_text() for out in outs}) == len(outs)
    (today, trained, scored), earlier = (finish(folder, out) for out in outs)
    assert trained == pytest.approx(scored)
    assert earlier == (today, trained, scored)
    if method == "scratch":
        assert today == (folder / "scratch" / "student.safetensors").read_bytes()


def test_the_first_form_means_what_runs_did_then(folder):
    config = recorded(folder, "today", "scratch")
    for setting in fields(TrainConfig):
        if setting.default is not MISSING or setting.default_factory is not MISSING:
            config.pop(setting.name, None)
    del config["augmentation"]["source_input"]
    student, trained, scored = finish(folder, stopped(folder, "first", config))
    assert trained == pytest.approx(scored)
    execution = choose_execution(device="cpu", amp="fp32")
    settings = {"method": "scratch", "init": "torch", "epochs": 1, "batch_size": 20, "amp": "fp32"}
    api.train("digits", out=folder / "now", limit=40, execution=execution, **settings)
    assert student == (folder / "now" / "student.safetensors").read_bytes()
    assert student != (folder / "scratch" / "student.safetensors").read_bytes()
