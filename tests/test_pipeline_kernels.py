"""Kernels that are wrong are found before a training, named, and not used; and what was found is kept."""

import json
from dataclasses import replace

import pytest
import torch
from broken import convolution_backward
from listening import Remarks
from torch import nn

from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.runtime import kernels
from pipeline.runtime.kernels import How, sentence, wrong_layers
from pipeline.train.run_folder import read_metrics
from pipeline.train.trainer import Trainer
from sskt.errors import RunError
from sskt.kernels import compute_plainly, errors

CPU = torch.device("cpu")
BF16 = How("bf16", channels_last=True, device=CPU)
SHORT = (1, 3, 2, 6, 6)  # fewer frames than a kernel has taps


def network(convolution=nn.Conv2d):
    torch.manual_seed(0)
    return nn.Sequential(convolution(3, 8, 3, padding=1), nn.ReLU(), convolution(8, 8, 3, padding=1))


def wrong_of(net, folder, how=BF16, shape=(1, 3, 6, 6)):
    return wrong_layers({"net": net}, shape, how, learns=True, kept_in=folder / "kernels.json")


def garbage(w, gradients):
    """The weight gradient of the second convolution in bf16."""
    gx, gw, gb = gradients
    if w.dtype == torch.bfloat16 and w.shape[1] == 8 and gw is not None:
        gw = torch.full_like(gw, torch.inf)
    return gx, gw, gb


def test_a_wrong_layer_is_named_and_its_gradients_are_right_once_it_is_plain(tmp_path):
    net = network()
    x = torch.randn(2, 3, 6, 6)
    z = net(x)
    g = torch.randn_like(z)
    wanted = torch.autograd.grad(z, list(net.parameters()), g)
    with convolution_backward(garbage):
        wrong = wrong_of(net, tmp_path)
        ((names, result),) = wrong.values()
        assert names == ["net.2"]
        assert result["weight gradient"] == torch.inf
        assert sentence(wrong, BF16) == (
            "kernels for bf16 with channels last are wrong on this machine in 1 layer(s), net.2 "
            "(Conv2d 8 to 8 with 3 x 3 taps on 6 x 6): weight gradient off by more than 1000%"
        )
        compute_plainly(net[2])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = net(x)
        found = torch.autograd.grad(z, list(net.parameters()), g)
    for ours, right in zip(found, wanted, strict=True):
        assert float((ours - right).norm() / right.norm()) < 0.02


def test_nothing_is_tested_where_there_is_no_fast_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "layers_of", None)
    assert wrong_of(network(), tmp_path, How("fp32", channels_last=False, device=CPU)) == {}


def test_a_shape_of_the_kind_that_can_end_the_process_is_plain_and_not_tried(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(kernels, "errors", lambda layer, *_, **__: tried.append(layer) or {"forward": 0.0})
    wrong = wrong_of(network(nn.Conv3d), tmp_path, shape=SHORT)
    assert [names for names, _ in wrong.values()] == [["net.0"], ["net.2"]]
    assert "they fail, or are known to end the process" in sentence(wrong, BF16)
    assert not tried
    assert wrong_of(network(nn.Conv3d), tmp_path, shape=(1, 3, 3, 6, 6)) == {}
    assert len(tried) == 2


def test_where_plain_fp32_is_wrong_too_nothing_is_trusted(tmp_path):
    def hopeless(w, gradients):
        gx, gw, gb = gradients
        return gx, gw if gw is None or w.dtype == torch.float64 else gw * torch.rand_like(gw), gb

    with (
        convolution_backward(hopeless),
        pytest.raises(RunError, match=r"net.0 .*plain fp32 is off by .* of float64"),
    ):
        wrong_of(network(), tmp_path)


def test_what_was_found_is_kept_by_machine_and_shape_and_found_again_where_the_file_is_damaged(
    tmp_path, monkeypatch
):
    tested = []

    def counted(layer, *how, **more):
        tested.append(layer)
        return errors(layer, *how, **more)

    monkeypatch.setattr(kernels, "errors", counted)
    wrong_of(network(), tmp_path, shape=(1, 3, 8, 8))
    assert len(tested) == 2
    wrong_of(network(), tmp_path, shape=(1, 3, 8, 8))
    assert len(tested) == 2, "known"
    wrong_of(network(), tmp_path, shape=(1, 3, 9, 9))
    assert len(tested) == 4, "other shapes"
    wrong_of(network(), tmp_path, replace(BF16, channels_last=False), shape=(1, 3, 8, 8))
    assert len(tested) == 6, "another layout"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    wrong_of(network(), tmp_path, shape=(1, 3, 8, 8))
    assert len(tested) == 8, "other kernels are chosen"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    kept = tmp_path / "kernels.json"
    assert len(json.loads(kept.read_text())) == 8
    for damaged in (b"", b"\xff", b"[]", b'{"a": 1}', kept.read_bytes()[:-40]):
        tested.clear()
        kept.write_bytes(damaged)
        wrong_of(network(), tmp_path, shape=(1, 3, 8, 8))
        assert len(tested) == 2
        assert len(json.loads(kept.read_text())) == 2
    kept.unlink()
    kept.mkdir()  # cannot be read, nor written
    tested.clear()
    assert wrong_of(network(), tmp_path, shape=(1, 3, 8, 8)) == {}
    assert len(tested) == 2


N = 40


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    return Paths(folder / "data", folder / "stores")


def train(out, paths, **more):
    return api.train(
        "digits",
        out=out,
        paths=paths,
        limit=N,
        method="scratch",
        execution=choose_execution(device="cpu", threads=1),
        epochs=2,
        batch_size=20,
        lr=0.01,
        model="resnet20",
        **{"amp": "bf16", **more},
    )


def garbage_in_layer3(w, gradients):
    gx, gw, gb = gradients
    if w.dtype == torch.bfloat16 and tuple(w.shape[:2]) == (64, 64) and gw is not None:
        gw = torch.randn_like(gw)
    return gx, gw, gb


def test_a_training_falls_back_and_says_so_and_its_run_goes_on_as_it_began(paths, tmp_path, monkeypatch):
    said = Remarks()
    with convolution_backward(garbage_in_layer3):
        summary = train(tmp_path / "whole", paths)
        sentences = [text for text in said if "are wrong on this machine" in text]
        assert len(sentences) == 1
        assert "student.backbone.layer3.0.conv2 and 4 more (Conv2d 64 to 64" in sentences[0]
        assert sentences[0].endswith("; they run in plain fp32")
        names = [f"student.backbone.layer3.{unit}.conv{c}" for unit in range(3) for c in (1, 2)][1:]
        assert summary["plain_layers"] == names
        assert json.loads((tmp_path / "whole" / "config.json").read_text())["plain_layers"] == names

        _stop_after(monkeypatch, 3, tmp_path / "stopped", paths)
    # on a machine where nothing is wrong it computes as it began
    with convolution_backward(lambda _w, gradients: gradients):
        api.resume(tmp_path / "stopped")
    assert _losses(tmp_path / "stopped") == _losses(tmp_path / "whole")
    figures = api.evaluate(tmp_path / "whole")
    assert figures["test_top1"] == summary["test_top1"]


def test_a_run_that_was_begun_with_wrong_kernels_is_not_gone_on_with(paths, tmp_path, monkeypatch):
    out = tmp_path / "run"
    paths.kernels_file.unlink(missing_ok=True)
    _stop_after(monkeypatch, 3, out, paths)
    paths.kernels_file.unlink()
    with (
        convolution_backward(garbage_in_layer3),
        pytest.raises(RunError, match=r"was started with fast kernels that are wrong here: .*layer3.0.conv2"),
    ):
        api.resume(out)
    paths.kernels_file.unlink()
    api.resume(out)


def test_a_run_of_before_goes_on_without_plain_layers(paths, tmp_path, monkeypatch):
    out = tmp_path / "run"
    _stop_after(monkeypatch, 3, out, paths)
    config = json.loads((out / "config.json").read_text())
    config.pop("plain_layers")
    (out / "config.json").write_text(json.dumps(config))
    state = torch.load(out / "last.pt")
    state["config"].pop("plain_layers")
    torch.save(state, out / "last.pt")
    assert "plain_layers" not in api.resume(out)


def _stop_after(monkeypatch, n_steps, out, paths):
    """A run that is stopped by Ctrl-C with a checkpoint of its first epoch."""
    step, taken = Trainer._take_step, []

    def interrupted(self, batch):
        taken.append(1)
        if len(taken) > n_steps:
            raise KeyboardInterrupt
        step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_take_step", interrupted)
        patched.setattr("pipeline.train.loop._SAVING_SHARE", 1e9)
        with pytest.raises(KeyboardInterrupt):
            train(out, paths)
    assert (out / "last.pt").is_file()


def _losses(run):
    return [epoch["train_loss"] for epoch in read_metrics(run)]


def test_a_compiled_step_whose_gradients_are_wrong_is_refused(paths, tmp_path, monkeypatch):
    def bad_compiler(step):
        def compiled(*inputs):
            losses = step(*inputs)
            return losses._replace(total=losses.total * 1.05)

        return compiled

    monkeypatch.setattr("pipeline.train.trainer.torch.compile", bad_compiler)
    tuning = {"amp": "fp32", "compiled": True}
    with pytest.raises(RunError, match=r"--compile: the gradients .* off by 5.0% .* leave --compile out"):
        train(tmp_path / "bad", paths, **tuning)
    # one that is right leaves no trace of having been tried
    monkeypatch.setattr("pipeline.train.trainer.torch.compile", lambda step: step)
    train(tmp_path / "good", paths, **tuning)
    train(tmp_path / "eager", paths, amp="fp32")
    assert _losses(tmp_path / "good") == _losses(tmp_path / "eager")
