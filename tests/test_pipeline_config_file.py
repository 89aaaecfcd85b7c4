"""--config FILE: the same run as by options, a run that repeats itself, and files that are refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from programs import save_program

from cache import Store
from cli import main
from pipeline import api

pytestmark = pytest.mark.usefixtures("narrow")


def run(*words):
    return CliRunner().invoke(main, [*map(str, words)])


def resolved(*words):
    result = run("config", "--json", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A store of two views of 40 digits, and a run on it whose settings are not the recipe's."""
    folder = tmp_path_factory.mktemp("config")
    places = ("--data-dir", folder / "data", "--cache-dir", folder / "stores")
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    file = folder / "mine.yaml"
    file.write_text(
        f"target: digits\nsources: [{source!r}]\nviews: 2\nlimit: 40\nepochs: 2\nbatch_size: 20\n"
        f"temperature: 2\nnesterov: yes\ndampening: 0\namp: fp32\nmilestones: [1]\n"
        f"augmentation:\n  seed: 3\ndata_dir: {folder}/data\n"
    )
    assert run("precompute", "--config", file, *places).exit_code == 0
    assert run("train", "--config", file, *places, "--out", folder / "first").exit_code == 0
    return folder


def config_of(run_folder):
    return json.loads((run_folder / "config.json").read_text())


def test_a_file_gives_the_run_that_options_give(project):
    config = config_of(project / "first")
    assert config["epochs"] == 2
    assert config["temperature"] == 2
    assert config["nesterov"] is True
    assert config["milestones"] == [1]
    assert config["plan"]["seed"] == 3
    assert config["views"] == 2
    (store,) = (project / "stores").rglob("*.zarr")
    assert Store.open(store).manifest.identity["plan"]["seed"] == 3


def test_a_runs_own_config_repeats_it_from_another_folder(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = run("train", "--config", project / "first" / "config.json", "--out", "again")
    assert result.exit_code == 0, result.output
    assert "in every setting" in result.stderr
    assert config_of(Path("again")) == config_of(project / "first")
    weights = [(folder / "student.safetensors").read_bytes() for folder in (project / "first", Path("again"))]
    assert weights[0] == weights[1]


def test_the_command_line_wins_and_what_departs_is_said(project, tmp_path):
    words = ("--config", project / "first" / "config.json", "--epochs", "1", "--alpha", "0.5")
    result = run("train", *words, "--out", tmp_path / "other")
    assert result.exit_code == 0, result.output
    said = next(line for line in result.stderr.splitlines() if line.startswith("repeats"))
    assert "epochs 1 (not 2)" in said
    assert "alpha 0.5 (not 0.1)" in said
    assert "temperature" not in said


METHODS = ("sskt", "scratch", "kd", "dml", "maxl", "graph")
MORE = ((), ("--recipe", "fast"), ("--schedule", "plateau", "--patience", "3"), ("--optimizer", "adam"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", MORE, ids=lambda words: "-".join(words) or "recipe")
def test_what_sskt_config_prints_means_the_same_again(method, more, tmp_path):
    if method == "maxl" and "fast" in more:
        pytest.skip("it has a schedule of its own")
    words = ("--target", "cifar10", "--method", method, *more)
    before = resolved(*words)
    printed = tmp_path / "printed.yaml"
    printed.write_text(run("config", *words).stdout)
    assert resolved("--config", printed) == before


def test_the_environment_wins_over_a_file(tmp_path, monkeypatch):
    file = tmp_path / "a.yaml"
    file.write_text("target: digits\ndata_dir: of-the-file\nlr: 1e-2\n")
    monkeypatch.setenv("SSKT_DATA_DIR", "of-the-environment")
    seen = {}
    monkeypatch.setattr(api, "train", lambda target, **given: seen.update(given) or {})
    assert run("train", "--config", file).exit_code == 0
    assert seen["paths"].data_dir == Path("of-the-environment")
    assert seen["lr"] == 0.01


def test_stage_one_leaves_the_students_settings_alone(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    about = {"target": "digits", "sources": ["probe:imagenet+places365"], "batch_size": 7, "amp": "bf16"}
    file.write_text(json.dumps(about | {"compiled": True, "views": 3, "lr": 0.1}))
    seen = {}
    monkeypatch.setattr(api, "precompute", lambda **given: seen.update(given) or [])
    assert run("precompute", "--config", file, "--views", "4").exit_code == 0
    assert seen["sources"] == ("imagenet", "places365")
    assert seen["views"] == 4
    assert seen["targets"] == ["digits"]
    how = seen["execution"]
    assert how.batch_size is None
    assert how.compute is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "epoch: 3", "epoch is no setting; did you mean epochs?"),
        ("a.yaml", "batch-size: 3", "did you mean batch_size?"),
        ("a.yaml", "zzz: 3", "sskt config prints those that there are"),
        ("a.yaml", "epochs: 2.5", "epochs: '2.5' is not a valid integer"),
        ("a.json", '{"epochs": true}', "epochs: 'yes' is not a valid integer"),
        ("a.yaml", "lr: -1", "lr: -1.0 is not in the range"),
        ("a.yaml", "aux_loss: [ce, kd]", "aux_loss: 'ce,kd' is not one of"),
        ("a.yaml", "nesterov: perhaps", "nesterov: 'perhaps' is not a valid boolean"),
        ("a.yaml", "epochs: 3\nepochs: 4", "epochs stands twice"),
        ("a.json", '{"lr": 1, "lr": 2}', "lr stands twice"),
        ("a.yaml", "epochs: {a: 1}", "epochs: {'a': '1'} is a mapping"),
        ("a.yaml", "- epochs", "holds list, expected settings by name"),
        ("a.yaml", "epochs: [1", "is no YAML"),
        ("a.json", '{"epochs": 1', "is no JSON"),
        ("a.yaml", "augmentation: 3", "augmentation is '3'"),
        ("a.yaml", "augmentation: {side: 3}", "did you mean"),
        ("a.yaml", "plan: {}", "plan is no setting, a run works it out itself"),
        ("a.yaml", "resume: runs/a", "resume is no setting"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    result = run("train", "--config", tmp_path / name)
    assert result.exit_code == 2
    last = result.output.strip().splitlines()[-1]
    assert said in last
    assert str(tmp_path / name) in last


def test_a_missing_file_and_a_run_that_continues_are_refused(tmp_path):
    assert "cannot be read" in run("train", "--config", tmp_path / "none.yaml").output
    (tmp_path / "a.yaml").write_text("epochs: 3")
    result = run("train", "--resume", tmp_path, "--config", tmp_path / "a.yaml")
    assert result.exit_code == 2
    assert "--config is settled by the run" in result.output
