"""Every command on real data: scikit-learn's digits, and a tiny source."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from programs import save_program
from safetensors.torch import load_file

from cache.store import Store, find_stores
from cli import main
from pipeline.commands.output import show
from pipeline.data.augmentation import Augmentation
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.plan import PadCropFlip

pytestmark = pytest.mark.usefixtures("narrow")

SOURCE = "program:tiny.pt2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project with a store of three views of 60 digits, and a run trained on it."""
    path = tmp_path_factory.mktemp("project")
    save_program(path / "tiny.pt2")
    patch = pytest.MonkeyPatch()
    patch.chdir(path)
    assert (
        run("precompute", "--source", SOURCE, "--target", "digits", "--limit", "60", "--views", "3").exit_code
        == 0
    )
    words = ("--limit", "60", "--epochs", "4", "--transfer-module", "--out", "runs/first")
    assert run("train", "--target", "digits", *words).exit_code == 0
    yield path
    patch.undo()


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def good_json(*words: str):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "words", [("prepare",), ("precompute", "--source", SOURCE), ("train",)], ids=lambda words: words[0]
)
def test_a_split_is_of_targets_that_have_official_ones(words):
    result = run(*words, "--target", "videofolder:/x", "--split", "2")
    assert result.exit_code == 2
    assert "--split: is for ucf101 and hmdb51, not for videofolder:/x" in result.stderr


def test_help_does_not_wait_for_torch():
    script = (
        "import sys, cli; cli.main(['train', '--help'], standalone_mode=False); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'zarr', 'numpy', 'rich')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--transfer-module" in done.stdout


@pytest.mark.parametrize(
    "words",
    [(), *[(name,) for name in main.commands], *[("cache", n) for n in main.commands["cache"].commands]],
)
def test_every_help_page_fits_and_is_whole(words):
    result = CliRunner().invoke(main, [*words, "--help"], terminal_width=78)  # what click takes of 80
    assert result.exit_code == 0
    assert max(len(line) for line in result.output.splitlines()) <= 100
    assert "..." not in result.output.partition("\n")[2].replace("E,E,...", "").split("Commands:")[-1]


def test_the_store_holds_what_the_plan_and_the_source_say(folder):
    (path,) = find_stores(folder / "stores")
    dataset = load_dataset(
        parse_target("digits"), "train", data_dir=folder, index_dir=folder / "none", limit=60
    )
    plan = Augmentation().training_plan(parse_target("digits"))
    assert plan == PadCropFlip(16, seed=0, pad=1, flip=0.0)
    stored = Store.open(path)
    assert np.array_equal(stored.ids, dataset.ids)
    assert stored.view(2).shape == (60, 7)
    assert len(np.unique(stored.view(0)[:, 0])) > 30


def test_precompute_again_finds_nothing_to_do_and_says_so(folder):
    result = run("precompute", "--source", SOURCE, "--target", "digits", "--limit", "60", "--views", "3")
    assert result.exit_code == 0
    assert "already there" in result.stderr
    (row,) = good_json(
        "precompute", "--source", SOURCE, "--target", "digits", "--limit", "60", "--views", "3"
    )
    assert row["rows_done"] == 0


def test_a_run_leaves_config_metrics_events_checkpoint_and_a_student_without_source_heads(folder):
    out = folder / "runs" / "first"
    config = json.loads((out / "config.json").read_text())
    assert config["sources"] == [SOURCE]
    assert config["labels"] == "cached"
    assert config["transfer_module"] is True
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["view"] for m in metrics] == [0, 1, 2, 0]
    assert all(np.isfinite(m[f"aux_loss/{SOURCE}"]) for m in metrics)
    assert json.loads((out / "environment.json").read_text())["torch"] == torch.__version__
    assert list(out.glob("events.out.tfevents.*"))
    state = load_file(out / "student.safetensors")
    checkpoint = torch.load(out / "last.pt", weights_only=True)
    heads = [name for name in checkpoint["method"] if name.startswith("student.auxiliary")]
    assert heads
    assert {f"student.{name}" for name in state} == set(checkpoint["method"]) - set(heads)
    assert json.loads((out / "summary.json").read_text())["test_top1"] == metrics[-1]["test_top1"]


def test_evaluate_finds_the_accuracy_that_training_ended_with(folder):
    figures = good_json("evaluate", "runs/first")
    summary = json.loads((folder / "runs" / "first" / "summary.json").read_text())
    assert figures["test_top1"] == summary["test_top1"]
    assert figures["n_samples"] == 539
    assert len(figures["classes"]) == 10
    assert "test top1" in run("evaluate", "runs/first").stdout


def test_two_runs_of_one_command_are_the_same_run(folder):
    def metrics(out: str) -> list[dict]:
        result = run("train", "--target", "digits", "--limit", "60", "--epochs", "2", "--out", out)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == out
        lines = (folder / out / "metrics.jsonl").read_text().splitlines()
        timing = ("epoch_s", "label_s", "data_wait_s", "images_s", "data_wait_share", "peak_memory_mb")
        return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]

    assert metrics("runs/a") == metrics("runs/b")


def test_without_store_and_source_the_cost_and_the_command_are_told(folder, tmp_path, monkeypatch):
    import sskt.sources.torchvision

    def offline(*_args: object, **_options: object) -> None:
        raise sskt.errors.DownloadError("no network here")

    monkeypatch.setattr(sskt.sources.torchvision, "fetch", offline)
    monkeypatch.setattr(sskt.sources.torchvision, "fetch_recorded", offline)
    words = ("--target", "digits", "--cache-dir", str(tmp_path / "empty"), "--out", str(tmp_path / "run"))
    result = run("train", *words)
    assert result.exit_code == 1
    assert "every epoch asks 2 live network(s) about 1,258 pictures" in result.stderr
    assert "sskt precompute --source places365 --source imagenet --target digits" in result.stderr
    assert "error: no network here" in result.stderr
    assert not (tmp_path / "run").exists()


def test_precompute_without_target_takes_every_prepared_one(folder, cifar10_dir):
    words = ("--source", SOURCE, "--limit", "20", "--views", "1", "--data-dir", str(cifar10_dir))
    (row,) = good_json("precompute", *words, "--cache-dir", "other")
    assert row["n_samples"] == 20
    assert "cifar10" in row["path"]


def test_lists_and_checks(folder):
    (row,) = good_json("cache", "ls")
    assert (row["target"], row["source"], row["samples"], row["units"]) == ("digits/train", SOURCE, 60, "3/3")
    fields = good_json("cache", "info", row["path"])
    assert (row["student_px"], row["source_px"]) == (fields["plan.side_px"], fields["input.side_px"])
    assert fields["plan.kind"] == "pad-crop-flip"
    assert fields["made_by.compute"] == "fp32"
    assert good_json("cache", "verify", row["path"])["problems"] == []
    assert {"imagenet", "places365", "imagenet:resnet18", "places365:resnet18"} <= {
        r["source"] for r in good_json("sources")
    }
    targets = {r["target"]: r for r in good_json("targets")}
    assert targets["cifar10"]["source_px"] == 74
    assert targets["stl10"]["source_px"] == 224
    assert targets["digits"]["prepared"] is True
    assert [r["samples"] for r in good_json("prepare", "--target", "digits")] == [1258, 539]
    for words in (("cache", "ls"), ("cache", "info", row["path"]), ("sources",), ("targets",)):
        assert len(run(*words).stdout.splitlines()) > 1


@pytest.mark.parametrize(
    ("hours", "shown"), [(0.0, "0:00:00"), (6.2e-5, "0:00:01"), (0.9999, "1:00:00"), (27.5, "27:30:00")]
)
def test_hours_are_shown_as_a_clock_shows_them_and_a_moment_is_a_second(capsys, hours, shown):
    show([{"hours": hours}], False, "hours")
    assert capsys.readouterr().out.split() == ["hours", shown]


def test_a_store_without_a_finished_unit_has_no_bytes_a_label(folder, tmp_path):
    import shutil

    (path,) = find_stores(folder / "stores")
    copy = shutil.copytree(path, tmp_path / "copy.zarr")
    for entry in (copy / "units").glob("c.*"):
        entry.unlink()
    fields = good_json("cache", "info", str(copy))
    assert (fields["units"], fields["bytes_per_label"], fields["bytes_per_class"]) == ("0/3", None, None)
    assert "-" in [line.split()[-1] for line in run("cache", "info", str(copy)).stdout.splitlines()]


def test_verify_names_a_flipped_byte_and_fails(folder, tmp_path):
    import shutil

    (path,) = find_stores(folder / "stores")
    copy = tmp_path / "copy.zarr"
    shutil.copytree(path, copy)
    unit = copy / "logits" / "c.1.0.0"
    content = bytearray(unit.read_bytes())
    content[5] ^= 1
    unit.write_bytes(content)
    result = run("cache", "verify", str(copy), "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert "view 1, block 0" in problem["unit"]


def test_ctrl_c_says_what_is_kept(folder, monkeypatch):
    import pipeline.api

    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.api, "precompute", interrupted)
    result = run("precompute", "--source", SOURCE, "--target", "digits")
    assert result.exit_code == 130
    assert "the same command continues from there" in result.stderr


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--label-smoothing", "1.5"), "--label-smoothing is 1.5, expected at least 0 and at most 1"),
        (("--plan", "corner-clip"), "--plan is 'corner-clip', for digits expected one of pad-crop-flip"),
        (("--freeze-until", "layer9"), "--freeze-until is 'layer9', expected one of"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_name_of_its_option(folder, words, refusal):
    result = run("train", "--target", "digits", "--limit", "60", "--epochs", "1", *words, "--out", "wrong")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {refusal}")
    assert not (folder / "wrong").exists()


def test_a_probe_is_described_without_what_only_networks_have(folder):
    fields = json.loads(run("sources", "probe:imagenet+places365", "--json").stdout)
    assert fields == {
        "source": "probe:imagenet+places365",
        "architecture": "linear",
        "reads": "imagenet, places365",
        "returns": "logits",
        "classes": "the target's",
    }
    assert "every source with a store for the target" in run("sources", "probe").stdout
