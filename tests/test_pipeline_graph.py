"""Method graph through both stages: temperatures, cached and live answers, stops, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from listening import Remarks
from safetensors.torch import load_file
from stopping import stop_after

import cli
from cache.store import Store
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.train import loop as training
from pipeline.train.run_folder import read_metrics
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")

N = 40
CPU = choose_execution(device="cpu", renderer="torch", threads=1)
SHORT = {"epochs": 2, "batch_size": 20, "limit": N, "amp": "fp32", "lr": 0.05, "execution": CPU}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Three runs on digits, and the stores of what they say."""
    folder = tmp_path_factory.mktemp("graph")
    paths = Paths(folder / "data", folder / "stores")
    for seed in range(3):
        settings = SHORT | {"epochs": 1 + (seed == 2), "seed": seed}
        api.train("digits", out=folder / f"teacher{seed}", method="scratch", paths=paths, **settings)
    sources = tuple(f"run:{folder / f'teacher{seed}'}" for seed in range(3))
    reports = api.precompute(["digits"], sources, views=2, limit=N, paths=paths, execution=CPU)
    return paths, sources, {source: report.path for source, report in zip(sources, reports, strict=True)}


def train(project, out, **settings):
    paths, sources, _ = project
    usual = {"method": "graph", "sources": sources, "labels": "cached", "paths": paths}
    return api.train("digits", out=out, **{**SHORT, **usual, **settings})


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_temperatures_make_the_teachers_equally_soft_and_are_recorded(project, tmp_path):
    _, sources, stores = project
    said = Remarks()
    train(project, tmp_path / "run", temperature=3.0, epochs=1)
    for source in sources:
        heard = (f"{source} on digits: top-1", f"warning: {source} on digits: top-1")
        assert any(line.startswith(heard) for line in said)  # how often each teacher is right
    scales = []
    for source in sources:
        rows = Store.open(stores[source]).view(0).astype(np.float64)
        scales.append(np.sqrt(((rows - rows.mean(axis=1, keepdims=True)) ** 2).mean()))
    expected = 3 * np.array(scales) / np.prod(scales) ** (1 / 3)
    found = config_of(tmp_path / "run")["teacher_temperature"]
    assert [*found] == [*sources]
    assert [*found.values()] == pytest.approx(expected, rel=1e-6)
    assert max(found.values()) > 1.02 * min(found.values())
    metrics = read_metrics(tmp_path / "run")[-1]
    edges = [metrics[f"edges_from/{source}"] for source in sources]
    assert sum(edges) == pytest.approx(1, abs=1e-5)
    assert all(0 <= metrics[f"aux_loss/{source}"] <= 1 for source in sources)


def test_cached_and_live_answers_train_the_same_student(project, tmp_path):
    _, sources, _ = project
    told = {source: 1.0 + i for i, source in enumerate(sources)}
    for labels in ("cached", "live"):
        train(project, tmp_path / labels, labels=labels, views=2, teacher_temperature=told, epochs=1)
    cached, live = (read_metrics(tmp_path / labels) for labels in ("cached", "live"))
    assert [m["train_loss"] for m in cached] == [m["train_loss"] for m in live]
    ours, theirs = (load_file(tmp_path / labels / "student.safetensors") for labels in ("cached", "live"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert config_of(tmp_path / "live")["teacher_temperature"] == told


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(project, monkeypatch, tmp_path):
    settings = {"transport": "batch"}
    train(project, tmp_path / "whole", **settings)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 3)
        with pytest.raises(KeyboardInterrupt):
            train(project, tmp_path / "stopped", **settings)
    api.resume(tmp_path / "stopped", execution=CPU)
    ours, theirs = (read_metrics(tmp_path / name) for name in ("stopped", "whole"))
    assert [m["train_loss"] for m in ours] == [m["train_loss"] for m in theirs]
    assert (tmp_path / "stopped" / "student.safetensors").read_bytes() == (
        tmp_path / "whole" / "student.safetensors"
    ).read_bytes()


def test_the_command_line_takes_teachers_that_are_stored(project, tmp_path):
    """Without --source those of the target's classes, and a temperature for one of them."""
    paths, sources, _ = project
    words = ["train", "--target", "digits", "--method", "graph", "--limit", str(N), "--epochs", "1"]
    words += ["--batch-size", "20", "--amp", "fp32", "--device", "cpu", "--threads", "1"]
    words += ["--edges", "uniform"]
    words += ["--data-dir", str(paths.data_dir), "--cache-dir", str(paths.cache_dir)]
    told = ["--teacher-temperature", f"{sources[1]}=1.5"]
    result = CliRunner().invoke(cli.main, [*words, *told, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    config = config_of(tmp_path / "run")
    assert sorted(config["sources"]) == [
        "run:teacher0",
        "run:teacher1",
        "run:teacher2",
    ]  # as stores name them
    assert config["teacher_temperature"]["run:teacher1"] == 1.5
    assert (config["temperature"], config["alpha"], config["edges"]) == (2.0, 0.6, "uniform")
    for bad, message in (
        (["--teacher-temperature", "much"], "'much' is not NAME=T, e.g. run:runs/teacher=2.0"),
        (["--teacher-temperature", "run:no=2"], "names run:no, which is no source of this run; name one of"),
        (["--aux-loss", "kd"], "--aux-loss kd: --method graph does not read it, sskt and kd would"),
        (
            ["--graph-logits", "cosine", *told],
            "--teacher-temperature softens probabilities, and --graph-logits",
        ),
        (["--graph-logits", "cosine", "--temperature", "3"], "--temperature 3.0 softens probabilities, and"),
        (["--mixup", "0.2"], "--method graph does not support --mixup or --cutmix; leave that out"),
    ):
        result = CliRunner().invoke(cli.main, [*words, *bad, "--out", str(tmp_path / "no")])
        assert result.exit_code != 0
        assert message in " ".join(result.output.split()), result.output
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_measured_or_is_not_whole_is_refused(project, tmp_path):
    paths, sources, _ = project
    with pytest.raises(
        RunError, match=r"has --labels live; give --teacher-temperature NAME=T for run:.*, or"
    ):
        train(project, tmp_path / "no", labels="live", teacher_temperature={sources[0]: 1.0})
    few = replace(paths, cache_dir=tmp_path / "stores")
    api.precompute(["digits"], sources[:2], views=1, limit=N, paths=few, execution=CPU, top_k=2)
    with pytest.raises(
        RunError, match=r"holds the top 2 of 10 logits of .*, and --method graph compares all"
    ):
        train(project, tmp_path / "no", sources=sources[:2], paths=few)
    with pytest.raises(RunError, match=r"teacher_temperature is 2.0 .*, expected numbers by name"):
        train(project, tmp_path / "no", teacher_temperature=2.0)
    with pytest.raises(RunError, match="--edges gain: --method kd does not read it, graph would"):
        train(project, tmp_path / "no", method="kd", edges="gain")
    assert not (tmp_path / "no").exists()
