"""The other methods, from the same call as the first: what they leave behind, and what they refuse."""

import json
from dataclasses import replace

import pytest
import torch
from programs import save_program
from safetensors.torch import load_file

from cache.store import Store
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution, open_dataset
from pipeline.runtime.distributed import World
from pipeline.source_outputs.stored import stored_sources, stored_teachers
from pipeline.train.resolve import resolve
from pipeline.train.run_folder import read_metrics
from sskt.errors import RunError, SourceError

pytestmark = pytest.mark.usefixtures("narrow")

N = 60
QUICK = {"epochs": 2, "batch_size": 20, "lr": 0.05, "milestones": (1,)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A teacher of the same task: a student of ours."""
    folder = tmp_path_factory.mktemp("methods")
    common = {
        "paths": Paths(folder / "data", folder / "stores"),
        "execution": choose_execution(device="cpu", threads=2),
        "limit": N,
    }
    api.train("digits", out=folder / "teacher", method="scratch", **QUICK, **common)
    return folder, common


def test_a_student_of_ours_teaches_from_the_store_and_live(project, tmp_path):
    folder, common = project
    teacher = f"run:{folder / 'teacher'}"
    (report,) = api.precompute(["digits"], [teacher], views=2, **common)
    assert report.n_classes == 10
    store = Store.open(report.path)
    assert store.manifest.identity["input"]["side_px"] == 16, "it sees the pictures as it did in training"
    assert store.manifest.identity["source"]["architecture"] == "resnet20"
    runs = {}
    for labels in ("cached", "live"):
        taught = {"method": "kd", "sources": (teacher,), "labels": labels, "views": 2}
        api.train("digits", out=tmp_path / labels, **taught, amp="fp32", **QUICK, **common)
        runs[labels] = [m["train_loss"] for m in read_metrics(tmp_path / labels)]
    assert runs["cached"] == runs["live"]
    config = json.loads((tmp_path / "cached" / "config.json").read_text())
    assert (config["alpha"], config["temperature"], config["kd_reduction"]) == (0.9, 4.0, "batchmean")
    verdict = api.verify(report.path, n_rows=16, paths=common["paths"], execution=common["execution"])
    assert verdict.good
    assert verdict.agreement.identical == 1.0
    dataset = open_dataset("digits", "train", paths=common["paths"], limit=N)
    assert stored_sources(common["paths"].cache_dir, dataset) == (), "a student of ours teaches when named"
    assert stored_teachers(common["paths"].cache_dir, dataset) == ("run:teacher",)
    renamed = replace(dataset, classes=tuple(f"no {name}" for name in dataset.classes))
    assert stored_teachers(common["paths"].cache_dir, renamed) == (), "ten classes, but others"
    auto = {"method": "kd"}  # every source with a store, by its recorded name
    summary = api.train("digits", out=tmp_path / "auto", **auto, **QUICK, **common)
    assert summary["sources"] == ["run:teacher"]


def test_teachers_of_another_task_are_refused(project, tmp_path):
    folder, common = project
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    taught = {"method": "kd", "sources": (source,), "labels": "live"}
    with pytest.raises(RunError, match="knows 7 classes and the target has 10"):
        api.train("digits", out=tmp_path / "no", **taught, **QUICK, **common)
    with pytest.raises(SourceError, match="nothing: is no run"):
        api.precompute(["digits"], [f"run:{tmp_path / 'nothing'}"], views=1, **common)
    config = json.loads((folder / "teacher" / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(
        json.dumps(config | {"classes": [f"no {name}" for name in config["classes"]]})
    )
    for sources, message in (
        ((f"run:{tmp_path / 'other'}",), r"knows 10 classes \(no 0, no 1, no 2, \.\.\.\) and digits has 10 "),
        ((), "--method kd needs a teacher of the same task; add --source probe or --source run:FOLDER"),
    ):
        taught = {"method": "kd", "sources": sources, "labels": "live"}
        with pytest.raises(RunError, match=message):
            api.train("digits", out=tmp_path / "no", **taught, **QUICK, **common)
    assert not (tmp_path / "no").exists()


def test_peers_are_all_trained_and_the_first_is_kept(project, tmp_path):
    _, common = project
    summary = api.train("digits", out=tmp_path / "dml", method="dml", peers=3, **QUICK, **common)
    last = read_metrics(tmp_path / "dml")[-1]
    assert {"peer_top1/1", "peer_top1/2", "peer_top1/3", "aux_loss/peer 3"} <= set(last)
    assert last["peer_top1/1"] == pytest.approx(last["train_top1"], abs=1e-3)
    state = torch.load(tmp_path / "dml" / "last.pt", weights_only=True)["method"]
    first, second = state["student.head.weight"], state["others.0.head.weight"]
    assert not torch.equal(first, second)
    assert torch.equal(load_file(tmp_path / "dml" / "student.safetensors")["head.weight"], first)
    figures = api.evaluate(tmp_path / "dml", execution=common["execution"])
    assert figures["test_top1"] == pytest.approx(summary["test_top1"])


def test_maxls_generator_learns_and_is_left_behind(project, tmp_path):
    _, common = project
    states = {}
    for epochs in (1, 2):
        settings = QUICK | {"epochs": epochs}
        api.train("digits", out=tmp_path / f"maxl-{epochs}", method="maxl", psi=3, **settings, **common)
        states[epochs] = torch.load(tmp_path / f"maxl-{epochs}" / "last.pt", weights_only=True)["method"]
    moved = [
        name
        for name in states[1]
        if name.startswith("generator.")
        and "num" not in name
        and not torch.equal(states[1][name], states[2][name])
    ]
    assert len(moved) > 30
    exported = load_file(tmp_path / "maxl-2" / "student.safetensors")
    assert {name.partition(".")[0] for name in exported} == {"backbone", "head"}
    config = json.loads((tmp_path / "maxl-2" / "config.json").read_text())
    assert (config["schedule"], config["primary_loss"], config["psi"]) == ("cosine", "focal", 3)
    with pytest.raises(RunError, match="--method maxl does not support --mixup"):
        api.train("digits", out=tmp_path / "no", method="maxl", mixup=0.2, **QUICK, **common)
    assert not (tmp_path / "no").exists()


def test_the_gradient_cosine_is_kept_epoch_by_epoch(project, tmp_path):
    folder, common = project
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    taught = {"sources": (source,), "labels": "live", "views": 2, "gradient_cosine": "record"}
    api.train("digits", out=tmp_path / "run", **taught, **QUICK, **common)
    plain = taught | {"gradient_cosine": "off"}
    api.train("digits", out=tmp_path / "plain", **plain, **QUICK, **common)
    recorded, without = (read_metrics(tmp_path / name) for name in ("run", "plain"))
    assert all(-1 <= m[f"gradient_cosine/{source}"] <= 1 for m in recorded)
    assert [m["train_loss"] for m in recorded] == pytest.approx([m["train_loss"] for m in without], rel=1e-5)
    assert not any(name.startswith("gradient") for name in without[0])


def test_settings_that_do_not_go_together_are_refused(project, tmp_path):
    folder, common = project
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    for supervision, tuning, message in (
        ({"method": "dml", "sources": (source,)}, {}, "--method dml has no sources"),
        ({"method": "maxl"}, {"compiled": True}, "--method maxl takes gradients within its step"),
        (
            {"sources": (source,), "labels": "live", "gradient_cosine": "weigh"},
            {"compiled": True},
            "--gradient-cosine weigh takes gradients within its step",
        ),
        ({"method": "kd", "labels": "live", "sources": (source,)}, {}, "knows 7 classes"),
    ):
        with pytest.raises(RunError, match=message):
            api.train("digits", out=tmp_path / "no", **supervision, **tuning, **QUICK, **common)
    assert not (tmp_path / "no").exists()


def test_an_unknown_method_is_refused(project, tmp_path):
    _, common = project
    with pytest.raises(RunError, match="method is 'magic', expected one of sskt, scratch, kd, dml, maxl"):
        api.train("digits", out=tmp_path / "no", method="magic", **QUICK, **common)
    assert not (tmp_path / "no").exists()


def resolved(target, **settings):
    return resolve(
        target,
        execution=choose_execution(device="cpu"),
        world=World(),
        augmentation=Augmentation(),
        model="resnet3d18" if target == "ucf101" else "resnet20",
        **settings,
    )


@pytest.mark.parametrize(
    ("supervision", "tuning", "overrides", "message"),
    [
        ({"method": "maxl"}, {}, {"primary_loss": "ce"}, "--primary-loss ce: --method maxl does not read it"),
        ({"method": "maxl"}, {}, {"aux_loss": "kd"}, "--aux-loss kd: --method maxl does not read it"),
        ({"method": "maxl"}, {}, {"temperature": 2.0}, "--temperature 2.0: --method maxl does not read it"),
        ({"method": "maxl"}, {"label_smoothing": 0.1}, {}, "--label-smoothing 0.1: --method maxl"),
        (
            {"method": "dml"},
            {},
            {"alpha": 0.5},
            "--alpha 0.5: --method dml does not read it, sskt and kd and",
        ),
        ({"method": "dml"}, {}, {"temperature": 2.0}, "--temperature 2.0: --method dml"),
        ({"method": "dml"}, {}, {"aux_loss": "kd"}, "--aux-loss kd: --method dml"),
        ({"method": "dml", "transfer_module": True}, {}, {}, "--transfer-module: --method dml"),
        ({"method": "dml", "gradient_cosine": "weigh"}, {}, {}, "--gradient-cosine weigh: --method dml"),
        ({"method": "scratch", "gradient_cosine": "record"}, {}, {}, "sskt would; leave it out, or choose"),
        ({"method": "kd", "gradient_cosine": "record"}, {}, {}, "--gradient-cosine record: --method kd"),
        ({"peers": 3}, {}, {}, "--peers 3: --method sskt does not read it, dml would"),
        ({"kd_reduction": "mean"}, {}, {}, "--kd-reduction mean is for --aux-loss kd, this run has ce"),
    ],
)
def test_what_a_method_would_not_read_is_refused(supervision, tuning, overrides, message):
    with pytest.raises(RunError, match=message):
        resolved("digits", **supervision, **tuning, **overrides)


def test_a_recipes_own_settings_are_no_wish():
    assert resolved("digits", method="maxl", primary_loss="focal")
    for method in ("sskt", "scratch", "kd", "dml", "maxl"):
        assert resolved("digits", method=method, epochs=3, lr=0.1)


def test_smoothed_labels_are_of_cross_entropy(project, tmp_path):
    _, common = project
    with pytest.raises(RunError, match="--label-smoothing is for --primary-loss ce, this run has focal"):
        api.train(
            "digits",
            out=tmp_path / "no",
            method="scratch",
            label_smoothing=0.1,
            **QUICK,
            primary_loss="focal",
            **common,
        )
    assert not (tmp_path / "no").exists()


def test_the_patience_of_a_plateau_moves_with_the_epochs():
    for epochs, patience in ((None, 10), (20, 1), (400, 20)):
        assert resolved("ucf101", epochs=epochs).patience == patience
