"""A run at a URL is what the same run is in a local folder, to every command that takes one."""

import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load

from cache.storage import location
from cli import main
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.studies.report.runs import list_runs
from pipeline.train.run_folder import read_config, read_metrics
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")

CPU = choose_execution(device="cpu", renderer="torch", threads=1)
SHORT = {"epochs": 1, "batch_size": 20, "amp": "fp32", "limit": 40, "execution": CPU}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two runs in a folder, and the same files at URLs."""
    folder = tmp_path_factory.mktemp("urls")
    paths, url = Paths(folder / "data", folder / "stores"), location(f"memory://{uuid.uuid4().hex}")
    for seed, name in enumerate("ab"):
        size = api.Augmentation(source_side_px=40 + seed)
        how = {"method": "scratch", "augmentation": size, "paths": paths, **SHORT}
        api.train("digits", out=folder / "runs" / name, seed=seed, **how)
        for file in (folder / "runs" / name).iterdir():
            place = url / "runs" / name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return folder, url, paths


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def both(project, *words):
    """What a command prints of run a, in the folder and at the URL, without where that is."""
    folder, url, _ = project
    return [
        run(*(str(word).replace("RUNS", runs) for word in words)).replace(runs, "RUNS")
        for runs in (str(folder / "runs"), str(url / "runs"))
    ]


def test_a_run_is_scored_asked_and_exported_alike(project, tmp_path):
    folder, url, _ = project
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    for words in (
        ("evaluate", "RUNS/a", "--device", "cpu", "--json"),
        ("predict", "RUNS/a", tmp_path, "--device", "cpu", "--json"),
        ("export", "RUNS/a", "--format", "safetensors", "--json"),
        ("explain", "RUNS/a", "RUNS/b", "--out", tmp_path / "seen.png", "--device", "cpu", "--json"),
        ("ensemble", "RUNS/a", "RUNS/b", "--device", "cpu", "--json"),
        ("report", "RUNS/a", "--device", "cpu"),
    ):
        local, remote = both(project, *words)
        assert local == remote
    local, remote = folder / "runs" / "a", url / "runs" / "a"
    assert {file.name for file in local.iterdir()} - {file.name for file in remote.iterdir()} <= {"run.lock"}
    for name in ("confusion.csv", "confusion.png", "report.html"):
        assert (remote / name).read_bytes() == (local / name).read_bytes()
    exported = [load((place / "exported.safetensors").read_bytes()) for place in (local, remote)]
    torch.testing.assert_close(*exported, rtol=0, atol=0)


def test_runs_below_a_url_are_listed_and_compared(project, tmp_path):
    folder, url, _ = project
    local, remote = both(project, "runs", "RUNS", "--html", tmp_path / "page.html")
    assert local.replace(" ", "") == remote.replace(" ", "")  # columns are as wide as the longest path
    heads = remote.splitlines()[0].split("  ")
    assert "source size" in [head.strip() for head in heads]
    assert [Path(row["run"]).name for row in list_runs(str(url))] == [
        Path(row["run"]).name for row in list_runs(folder / "runs")
    ]
    with pytest.raises(RunError, match=r"nothing: is no folder, or an empty one; give runs"):
        list_runs(str(url / "nothing"))


def test_a_student_at_a_url_teaches_and_is_fine_tuned(project, tmp_path):
    folder, url, paths = project
    figures, students = [], []
    for place, name in ((folder, "local"), (url, "remote")):
        teacher = f"run:{place / 'runs' / 'a'}"
        out = tmp_path / name
        api.train(
            "digits", out=out, sources=[teacher], labels="live", views=1, paths=paths,
            finetune_from=str(place / "runs" / "b" / "student.safetensors"), **SHORT,
        )  # fmt: skip
        assert read_config(out)["sources"] == [teacher]
        figures.append([{k: v for k, v in each.items() if "loss" in k} for each in read_metrics(out)])
        figures[-1] = [{k.replace(teacher, "teacher"): v for k, v in each.items()} for each in figures[-1]]
        students.append((out / "student.safetensors").read_bytes())
    assert figures[0] == figures[1]
    assert students[0] == students[1]
    # stopped before its first checkpoint, and on another machine, which has fetched nothing
    for name in ("summary.json", "student.safetensors", "last.pt"):
        (out / name).unlink()
    elsewhere = Paths(tmp_path / "data", tmp_path / "stores")
    (tmp_path / "data").mkdir()
    api.resume(out, paths=elsewhere, execution=CPU)
    assert (out / "student.safetensors").read_bytes() == students[0]


def test_rows_of_a_student_at_a_url_are_those_of_the_local_one(project, tmp_path):
    folder, url, paths = project
    stored = paths.cache_dir
    for place in (folder, url):
        source = f"run:{place / 'runs' / 'a'}"
        (report,) = api.precompute(["digits"], [source], views=1, paths=paths, limit=40, execution=CPU)
        assert report.rows_done == (0 if place is url else 40)  # the same store
    assert len(list(stored.rglob("*.zarr"))) == 1
    run("train", "--target", "digits", "--source", source, "--limit", 40, "--epochs", 1, "--views", 1,
        "--batch-size", 20, "--data-dir", paths.data_dir, "--cache-dir", stored, "--device", "cpu",
        "--out", tmp_path / "taught")  # fmt: skip
    assert read_config(tmp_path / "taught")["source_weights"].keys() == {source}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("evaluate {url}/none", "{url}/none: is not a run, it has no config.json"),
        ("train --target digits --finetune-from {url}/none.pth", "{url}/none.pth: there is no such file"),
        (
            "precompute --target digits --source run:{url}/none",
            "{url}/none/config.json: there is no such file",
        ),
        ("sweep --target digits --sources imagenet --out {url}", "{url} is a URL, expected a local path"),
        ("evaluate {run} --on {url}", "{url} is a URL, expected a local path"),
        ("sources run:{url}/runs/a", "{url}/runs/a: is at a URL, and nothing is downloaded here"),
    ],
)
def test_what_is_not_there_or_has_to_be_local_is_one_sentence(project, tmp_path, words, found):
    folder, url, _ = project
    names = {"url": url, "run": folder / "runs" / "a"}
    words = words.format(**names).split()
    if words[0] in ("train", "precompute"):
        words += ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "stores")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code in (1, 2)
    assert found.format(**names) in result.stderr
    assert "Traceback" not in result.stderr
