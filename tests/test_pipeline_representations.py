"""The representation graph through both stages: stored and live maps, stops, and what is refused."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from stopping import stop_after

import cli
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.train import loop as training
from pipeline.train.run_folder import read_metrics
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")

N = 12
CPU = choose_execution(device="cpu", renderer="torch", threads=1)
SHOWN = Augmentation(side_px=64)  # AlexNet's least
SHORT = {
    "model": "alexnet-small", "batch_size": 6, "limit": N, "amp": "fp32", "lr": 0.01, "execution": CPU,
    "augmentation": SHOWN,
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two runs on digits, and the stores of their logits and maps."""
    folder = tmp_path_factory.mktemp("representations")
    paths = Paths(folder / "data", folder / "stores")
    for seed in range(2):
        out = folder / f"teacher{seed}"
        api.train("digits", out=out, method="scratch", paths=paths, epochs=1, seed=seed, **SHORT)
    runs = tuple(f"run:{folder / f'teacher{seed}'}" for seed in range(2))
    how = {"views": 2, "limit": N, "paths": paths, "execution": CPU, "augmentation": SHOWN}
    api.precompute(["digits"], runs, output=("logits", "layer4:3", "layer4:2"), **how)
    return paths, runs


def train(project, out, **settings):
    paths, runs = project
    sources = (*runs, *(f"{run}@layer4:3" for run in runs))
    told = dict.fromkeys(runs, 2.0) if settings.get("graph_logits") != "off" else {}
    usual = {"method": "graph", "sources": sources, "labels": "cached", "views": 2, "epochs": 2}
    usual |= {"graph_features": "graph", "sketch_dim": 32, "teacher_temperature": told, "paths": paths}
    return api.train("digits", out=out, **{**SHORT, **usual, **settings})


def weights(run):
    return load_file(run / "student.safetensors")


def test_stored_and_live_maps_train_the_same_student_and_a_stopped_run_too(project, monkeypatch, tmp_path):
    for labels in ("cached", "live"):
        train(project, tmp_path / labels, labels=labels)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 3)
        with pytest.raises(KeyboardInterrupt):
            train(project, tmp_path / "stopped")
    api.resume(tmp_path / "stopped", execution=CPU)
    cached, *others = (read_metrics(tmp_path / name) for name in ("cached", "live", "stopped"))
    for other in others:
        assert [m["train_loss"] for m in cached] == [m["train_loss"] for m in other]
    ours = weights(tmp_path / "cached")
    for name in ("live", "stopped"):
        assert all(torch.equal(value, ours[key]) for key, value in weights(tmp_path / name).items())
    pair = "+".join(f"{run}@layer4:3" for run in project[1])
    config = json.loads((tmp_path / "cached" / "config.json").read_text())
    assert (config["graph_features"], config["sketch_dim"], config["vertices"]) == ("graph", 32, "located")
    assert list(config["teacher_temperature"]) == list(project[1])
    assert cached[-1][f"vertex_weight/{pair}"] == pytest.approx(1)
    assert 0 < cached[-1][f"aux_loss/{pair}"] < 2


def test_the_command_line_compares_with_each_teachers_maps_alone(project, tmp_path):
    paths, runs = project
    words = ["train", "--target", "digits", "--method", "graph", "--limit", str(N), "--epochs", "1"]
    words += ["--batch-size", "6", "--amp", "fp32", "--device", "cpu", "--threads", "1", "--size", "64"]
    words += ["--data-dir", str(paths.data_dir), "--cache-dir", str(paths.cache_dir)]
    words += ["--model", "alexnet-small", "--graph-logits", "off", "--graph-features", "uniform"]
    maps = [word for run in runs for word in ("--source", f"{run}@layer4:3")]
    result = CliRunner().invoke(cli.main, [*words, *maps, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    metrics = read_metrics(tmp_path / "run")[-1]
    assert [metrics[f"vertex_weight/{run}@layer4:3"] for run in runs] == [0.5, 0.5]
    for bad, message in (
        (
            ["--sketch-dim", "8"],
            "--vertices and --sketch-dim are of --graph-features graph, this run",
        ),
        (
            ["--temperature", "3"],
            "softens probabilities, and --graph-logits off compares none",
        ),
        (["--teacher-temperature", f"{runs[0]}=2"], "--graph-logits off compares none; leave it out"),
        (["--mixup", "0.2"], "--mixup mixes images, and run:"),
        (
            ["--graph-features", "off"],
            "--graph-logits off and --graph-features off leave",
        ),
    ):
        result = CliRunner().invoke(cli.main, [*words, *maps, *bad, "--out", str(tmp_path / "no")])
        assert result.exit_code != 0
        assert message in " ".join(result.output.split()), result.output
    assert not (tmp_path / "no").exists()


def test_maps_that_do_not_go_together_are_refused(project, tmp_path):
    _, runs = project
    first, second = runs
    for sources, settings, message in (
        ((f"{first}@layer4:3",), {}, "joins the maps of two or more teachers, and run:.* is the only one"),
        ((f"{first}@layer4:3", f"{second}@layer4:2"), {}, "is maps of layer4:3 and run:.* of layer4:2; name"),
        ((f"{first}@layer3:3", f"{second}@layer3:3"), {}, "no store of run:.*@layer3:3 .* are stored"),
        (
            (f"{first}@layer4:3", f"{second}@pooled"),
            {},
            "learns from logits and maps, and run:.* is an",
        ),
        (runs, {}, "compares maps, and no source gives any; add --source NAME@layer4"),
    ):
        off = {} if sources == runs else {"graph_logits": "off"}
        with pytest.raises(RunError, match=message):
            train(project, tmp_path / "no", sources=sources, **off, **settings)
    assert not (tmp_path / "no").exists()


def test_a_run_that_names_no_source_takes_the_stores_that_are_there_or_says_what_lacks(project, tmp_path):
    paths, runs = project
    where = Paths(paths.data_dir, tmp_path / "stores")
    how = {"views": 2, "limit": N, "paths": where, "execution": CPU, "augmentation": SHOWN}

    def without_sources(out="refused", **settings):
        return train((where, runs), tmp_path / out, sources=(), teacher_temperature={}, **settings)

    def refused(message, **settings):
        with pytest.raises(RunError, match=message):
            without_sources(**settings)

    refused("compares maps, and none of teachers of digits are stored under .* --output layer4 --source run:")
    api.precompute(["digits"], runs, output=("logits",), **how)
    refused("and none of teachers of digits are stored")
    api.precompute(["digits"], runs[:1], output=("layer4:3",), **how)
    refused(
        "run:teacher1 has stored logits and no maps, and run:teacher0 have maps; run sskt precompute --so"
    )
    api.precompute(["digits"], runs[1:], output=("layer4:2",), **how)
    refused("run:teacher0 has layer4:3; run:teacher1 has layer4:2.; precompute one of all")
    api.precompute(["digits"], runs[1:], output=("layer4:3",), **how)
    summary = without_sources("run", epochs=1)
    names = [f"run:teacher{seed}" for seed in range(2)]
    assert summary["sources"] == [*names, *(f"{name}@layer4:3" for name in names)]
    api.precompute(["digits"], runs[:1], output=("layer4:2",), **how)
    refused("maps of layer4:2 and layer4:3 are stored of every teacher; name one with --source run:teacher0@")


def test_maps_alone_are_taken_where_logits_are_not_compared(project, tmp_path):
    paths, runs = project
    where = Paths(paths.data_dir, tmp_path / "stores")
    how = {"views": 1, "limit": N, "paths": where, "execution": CPU, "augmentation": SHOWN}
    api.precompute(["digits"], runs, output=("layer4:3",), **how)
    off = {"sources": (), "graph_logits": "off", "epochs": 1, "views": 1}
    summary = train((where, runs), tmp_path / "run", **off)
    assert summary["sources"] == [f"run:teacher{seed}@layer4:3" for seed in range(2)]
    with pytest.raises(RunError, match="run:teacher0 has stored maps and no logits of the target's classes"):
        train((where, runs), tmp_path / "no", **off | {"graph_logits": "em", "teacher_temperature": {}})
