"""A method is one file and one line: a strange one works from the command line like ours."""

import json

import pytest
from processes import run_python
from programs import save_program

from sskt.errors import RunError
from sskt.methods import METHODS, Scratch, method_named, readers, register

ECHO = """
from dataclasses import dataclass

import torch

from sskt.methods import Losses, Method, SourceConfig, register
from sskt.methods.method import n_correct, stacked


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoConfig(SourceConfig):
    share: float = 0.25


class Echo(Method):
    Config, needs = EchoConfig, ("logits",)

    @classmethod
    def build(cls, config, parts):
        student = parts.student(parts.backbone, parts.source_classes)
        return cls(student, config, channels_last=parts.channels_last)

    def forward(self, pixels, labels, source_logits, mixed=None, mixed_sources=None):
        logits, auxiliary = self.student(self._seen(pixels))
        primary = self.config.primary(logits, labels, mixed)
        losses = [self.config.auxiliary(z, source_logits[name]) for name, z in auxiliary.items()]
        total = primary + self.config.share * torch.stack(losses).mean()
        correct, nothing = n_correct(logits, labels), stacked([], total)
        return Losses(total, primary.detach(), stacked(losses, total), correct, nothing)


register("echo", Echo)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the strange method's file is, and a store to learn from."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text(ECHO)
    save_program(folder / "tiny.pt2")
    words = ("--source", "program:tiny.pt2", "--target", "digits", "--limit", "40", "--views", "2")
    done = run(folder, "precompute", *words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder, *words):
    """`sskt` with the strange method registered."""
    code = "import sys, echo, cli; cli.main(sys.argv[1:])"
    return run_python("-c", code, *words, cwd=folder)


SHORT = ("--target", "digits", "--limit", "40", "--epochs", "1", "--batch-size", "20", "--amp", "fp32")


def test_a_strange_method_trains_and_its_run_is_scored(folder):
    done = run(folder, "train", "--method", "echo", *SHORT, "--temperature", "5", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["method"], config["temperature"], config["labels"]) == ("echo", 5.0, "cached")
    figures = run(folder, "evaluate", "run", "--json")
    assert figures.returncode == 0, figures.stderr
    assert json.loads(figures.stdout)["test_top1"] == json.loads(done.stdout)["test_top1"]


def test_what_a_strange_method_does_not_read_is_refused_and_so_is_a_name_that_nobody_has(folder):
    done = run(folder, "train", "--method", "echo", *SHORT, "--peers", "3", "--out", "no")
    assert done.returncode == 1
    assert "--peers 3: --method echo does not read it, dml would" in done.stderr
    done = run(folder, "train", "--method", "ecco", *SHORT, "--out", "no")
    assert done.returncode == 1
    known = "sskt, scratch, kd, dml, maxl, graph, echo"
    assert f"error: --method is 'ecco', expected one of {known}" in done.stderr
    assert not (folder / "no").exists()


def test_a_name_is_registered_once_and_settings_know_their_readers():
    with pytest.raises(ValueError, match="the method kd is registered already"):
        register("kd", Scratch)
    with pytest.raises(RunError, match="method is 'nil', expected one of sskt, scratch"):
        method_named("nil")
    assert readers("temperature") == ["sskt", "kd", "graph"]
    assert readers("psi") == ["maxl"]
    assert readers("primary_loss") == [name for name in METHODS if name != "maxl"]
