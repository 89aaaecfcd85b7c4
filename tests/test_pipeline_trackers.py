"""What follows a run: a function of the caller's, trackers (stand-ins for their packages), TensorBoard."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from listening import Remarks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import api
from pipeline.train import read_metrics
from sskt.errors import RunError, SettingError

pytestmark = pytest.mark.usefixtures("narrow")

SHORT = {"method": "scratch", "limit": 20, "batch_size": 20, "epochs": 2, "amp": "fp32", "eval_every": 2}


def train(out, **more):
    return api.train("digits", out=out, **{**SHORT, **more})


class Package(ModuleType):
    """Records the calls on a tracker's package, and on what they return."""

    def __init__(self, name, broken=(), talks=False):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, origin="made")
        self.calls, self.broken, self.talks, self.hash = [], broken, talks, "aim-hash"
        self.info, self.summary = SimpleNamespace(run_id="mlflow-id"), {}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if self.talks:
                print(f"about to {name}")
            if name in self.broken:
                raise ConnectionError("no way there")
            return self

        return call

    def __setitem__(self, name, value):
        self.calls.append(("set", (name, value), {}))

    def named(self, name):
        return [(args, kwargs) for each, args, kwargs in self.calls if each == name]


@pytest.fixture
def package(monkeypatch):
    def install(name, **more):
        made = Package(name, **more)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return install


def test_on_epoch_sees_every_line_of_the_metrics(tmp_path):
    seen = []
    train(tmp_path / "run", on_epoch=seen.append)
    assert seen == read_metrics(tmp_path / "run")
    assert [each["epoch"] for each in seen] == [1, 2]


def test_what_on_epoch_raises_ends_a_run_that_goes_on_later(tmp_path):
    def stop(figures):
        raise StopIteration(figures["epoch"])

    with pytest.raises(StopIteration):
        train(tmp_path / "run", on_epoch=stop)
    seen = []
    api.resume(tmp_path / "run", on_epoch=seen.append)
    assert [each["epoch"] for each in seen] == [1, 2]


def test_wandb_gets_settings_figures_and_summary_under_one_id(tmp_path, package):
    wandb = package("wandb")
    summary = train(tmp_path / "run", trackers="wandb")
    ((_, about),) = wandb.named("init")
    assert about["config"]["epochs"] == 2
    assert about["name"] == "run"
    logged = wandb.named("log")
    assert [kwargs["step"] for _, kwargs in logged] == [1, 2]
    lines = read_metrics(tmp_path / "run")
    assert [args[0]["train_loss"] for args, _ in logged] == [line["train_loss"] for line in lines]
    assert wandb.summary["test_top1"] == summary["test_top1"]
    assert wandb.named("finish") == [((), {"exit_code": 0})]
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"wandb": about["id"]}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "aim"])
def test_a_run_that_continues_is_the_same_run_to_its_tracker(tmp_path, package, name):
    first = package(name)

    def stop(figures):
        raise KeyError

    with pytest.raises(KeyError):
        train(tmp_path / "run", trackers=[name], on_epoch=stop)
    ended = {"wandb": ("finish", {"exit_code": 1}), "mlflow": ("end_run", {"status": "KILLED"})}
    call, how = ended.get(name, ("finish" if name == "trackio" else "close", {}))
    assert first.named(call) == [((), how)]
    known = json.loads((tmp_path / "run" / "trackers.json").read_text())[name]
    second = package(name)
    api.resume(tmp_path / "run", trackers=[name])
    started = {"wandb": ("init", "id"), "mlflow": ("start_run", "run_id"), "trackio": ("init", "name")}
    call, key = started.get(name, ("Run", "run_hash"))
    ((_, asked),) = second.named(call)
    assert asked[key] == known
    if name == "mlflow":
        assert not second.named("log_params")  # which must not change
        assert all(
            "/" in key or key.replace("_", "").isalnum()
            for (args, _) in second.named("log_metrics")
            for key in args[0]
        )


def test_a_tracker_that_fails_later_costs_the_tracking_and_not_the_run(tmp_path, package):
    mlflow = package("mlflow", broken=("log_metrics",))
    remarks = Remarks()
    assert train(tmp_path / "run", trackers=("mlflow",))["epochs"] == 2
    assert len(mlflow.named("log_metrics")) == 1
    assert "the run goes on without it" in str(remarks)


def test_a_tracker_that_cannot_start_or_is_not_installed_is_refused(tmp_path, package):
    package("wandb", broken=("init",))
    with pytest.raises(RunError, match=r"--tracker wandb cannot start \(no way there\)"):
        train(tmp_path / "run", trackers="wandb")
    with pytest.raises(SettingError, match=r"pip install 'sskt\[aim\]'"):
        train(tmp_path / "other", trackers="aim")
    with pytest.raises(SettingError, match="expected one of wandb, mlflow, trackio, aim"):
        train(tmp_path / "other", trackers="comet")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("name", "says"), [("mlflow", "end_run"), ("trackio", "init finish")])
def test_what_a_package_prints_does_not_mix_with_the_result(tmp_path, package, capsys, name, says):
    package(name, talks=True)
    remarks = Remarks()
    train(tmp_path / "run", trackers=name)
    assert ("mlflow: sends figures to" in str(remarks)) == (name == "mlflow")
    out, err = capsys.readouterr()
    for call in says.split():
        assert f"about to {call}\n" in err
        assert f"about to {call}\n" not in out


def test_tensorboard_has_the_settings_and_the_images_that_the_student_saw(tmp_path):
    train(tmp_path / "run", epochs=1)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    (tag,) = events.Tags()["images"]
    (image,) = events.Images(tag)
    assert "training" in tag
    assert image.height >= 16
    shown = events.PluginTagToContent("hparams")
    assert b"label_smoothing" in shown["_hparams_/session_start_info"]
    (line,) = read_metrics(tmp_path / "run")
    assert np.isclose(events.Scalars("train_loss")[0].value, line["train_loss"], rtol=1e-6)
