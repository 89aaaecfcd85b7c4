"""Several runs as one classifier, against torch and scikit-learn on pixels that this test draws itself."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

import cli
from pipeline import api
from pipeline.api import Paths, choose_execution, open_dataset
from pipeline.data.plan import plan_from
from pipeline.data.render import open_renderer
from pipeline.train.run_folder import read_student
from sskt.errors import RunError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.students.student import build_student

CPU = choose_execution(device="cpu", renderer="torch", threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    paths = Paths(folder / "data", folder / "stores")
    found = []
    for seed in (0, 1):
        found.append(folder / f"run-{seed}")
        settings = {"method": "scratch", "epochs": 2, "batch_size": 20, "limit": 60, "amp": "fp32"}
        api.train("digits", out=found[-1], paths=paths, execution=CPU, seed=seed, val_share=0.1, **settings)
    return paths, found


def drawn(dataset, config):
    plan = plan_from(config["eval_plan"], "")
    renderer = open_renderer(dataset, plan, CPU, batch_size=len(dataset))
    with closing(renderer), closing(renderer.render(0, [np.arange(len(dataset))])) as batches:
        return normalise(next(batches), IMAGENET_MEAN, IMAGENET_STD)


def test_fusion_and_the_linear_classifier_are_those_of_torch_and_scikit_learn(runs, tmp_path):
    paths, folders = runs
    rows = api.ensemble(folders, out=tmp_path, execution=CPU)
    test, train = (
        open_dataset("digits", "test", paths=paths),
        open_dataset("digits", "train", paths=paths, limit=60),
    )
    probabilities, features = [], {"train": [], "test": []}
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        student = build_student(config["model"], 10, {}, transfer_module=False)
        student.load_state_dict(read_student(folder))
        student.eval()
        with torch.inference_mode():
            logits = student.predict(drawn(test, config))
            for name, dataset in (("train", train), ("test", test)):
                features[name].append(student.backbone(drawn(dataset, config)).pooled.numpy())
        probabilities.append(logits.softmax(dim=1))
        alone = 100 * float((logits.argmax(dim=1).numpy() == test.labels).mean())
        row = next(row for row in rows if row["what"] == str(folder))
        assert row["test_top1"] == pytest.approx(alone, abs=0.3)
        assert row["test_top1"] == json.loads((folder / "summary.json").read_text())["test_top1"]
    fused = torch.stack(probabilities).mean(dim=0).argmax(dim=1).numpy()
    assert rows[2]["what"] == "fusion"
    assert rows[2]["test_top1"] == pytest.approx(100 * float((fused == test.labels).mean()), abs=0.3)
    seen, asked = (np.concatenate(features[name], axis=1) for name in ("train", "test"))
    kept = held_in(train, folders[0])
    mean, std = seen[kept].mean(axis=0), seen[kept].std(axis=0)
    model = LogisticRegression(C=1.0, max_iter=1000).fit((seen[kept] - mean) / std, train.labels[kept])
    right = float((model.predict((asked - mean) / std) == test.labels).mean())
    assert rows[3]["what"] == "linear"
    assert rows[3]["test_top1"] == pytest.approx(100 * right, abs=1.0)
    assert json.loads((tmp_path / "ensemble.json").read_text())["rows"] == rows


def held_in(train, folder):
    """Which training samples a run was trained on: those whose digest its contents are made of."""
    from pipeline.train.splits import choosing

    kept = np.flatnonzero(~choosing(train, 0.1))
    recorded = json.loads((folder / "config.json").read_text())["contents"]["train"]
    assert train.take(kept).content_sha256 == recorded
    assert len(kept) < len(train)
    return kept


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    _, folders = runs
    for what, change in (
        ("training samples", {"contents": {"train": "ab" * 32}}),
        ("classes", {"classes": ["no", "yes"]}),
    ):
        other = tmp_path / what.split()[0]
        shutil.copytree(folders[1], other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(RunError, match=rf"has other {what} than .*run-0; name runs of one target"):
            api.ensemble([folders[0], other], execution=CPU)
    with pytest.raises(RunError, match="an ensemble needs two or more runs"):
        api.ensemble(folders[:1], execution=CPU)


def test_the_command_prints_each_row_and_where_it_wrote(runs, tmp_path):
    _, folders = runs
    words = ["ensemble", *map(str, folders), "--device", "cpu", "--threads", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["what", "model"]
    assert [line.split()[0] for line in lines[1:] if line.startswith(("fusion", "linear"))] == [
        "fusion",
        "linear",
    ]
    assert lines[-1] == str(tmp_path / "ensemble.json")
    result = CliRunner().invoke(cli.main, ["ensemble", str(folders[0]), "--device", "cpu"])
    assert result.exit_code == 1
    assert "an ensemble needs two or more runs" in result.output
