"""A source's answers are held against plain fp32 on real images before any is kept."""

import numpy as np
import pytest
import torch
from listening import Remarks
from programs import save_program
from torch import nn

import sskt.sources.frozen as frozen
from cache.errors import StoreMismatch
from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.runtime import execution
from sskt.errors import SourceError
from sskt.sources.forward import Forward
from sskt.sources.plain import DisagreementError, plain_answers, require_agreement


class WrongUnderAutocast(nn.Module):
    """A network whose low precision is broken."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x):
        z = self.linear(x.mean(dim=(2, 3)))
        return z.flip(1) if torch.is_autocast_enabled("cpu") else z


@pytest.mark.parametrize(
    ("compute", "noise", "good"),
    [
        ("fp32", 1e-4, True),
        ("fp32", 1e-2, False),
        ("fp16", 5e-3, True),
        ("fp16", 5e-2, False),
        ("bf16", 5e-2, True),
        ("bf16", 0.3, False),
        ("bf16", np.nan, False),
    ],
)
def test_answers_may_be_off_by_what_their_precision_explains(compute, noise, good):
    plain = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    centred = plain - plain.mean(dim=1, keepdim=True)
    z = plain.clone()
    z[3] += noise * centred[3].flip(0)  # one row, as far off as `noise` says
    z += torch.tensor([[3.0]])  # which no softmax sees
    if good:
        require_agreement("made", Forward(compute), z, plain)
    else:
        with pytest.raises(DisagreementError, match=f"made: .*, uncompiled in {compute}, are off by"):
            require_agreement("made", Forward(compute), z, plain)


def test_a_single_logit_is_compared_as_it_is():
    plain = torch.tensor([[1.0], [2.0]])
    require_agreement("made", Forward(), plain * 1.0005, plain)
    with pytest.raises(DisagreementError):
        require_agreement("made", Forward(), plain * 1.1, plain)


def test_plain_answers_are_computed_in_contiguous_memory_without_autocast():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    network = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    z = plain_answers(network, x, keeps_layout=False)
    assert z.dtype == torch.float32
    assert conv.weight.is_contiguous()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return f"program:{save_program(tmp_path_factory.mktemp('source') / 'tiny.pt2')}"


def precompute(stores, source, said, **more):
    how = {"device": "cpu", "renderer": "torch", "threads": 1, **more}
    paths = Paths(stores.parent / "data", stores)
    api.precompute(
        ["digits"],
        [source],
        views=more.pop("views", 1),
        limit=60,
        paths=paths,
        execution=choose_execution(**{name: value for name, value in how.items() if name != "views"}),
    )
    (path,) = find_stores(stores)
    return Store.open(path)


def bad_compiler(network, _device):
    """Code that gives other logits for other than black images."""
    return lambda pixels: network(pixels).roll(1, dims=1)


def test_a_wrong_compiled_source_runs_uncompiled_and_the_store_says_so(tmp_path, source, monkeypatch):
    plain = precompute(tmp_path / "plain", source, [])
    monkeypatch.setattr(frozen, "compile_network", bad_compiler)
    monkeypatch.setattr(execution, "_COMPILE_FROM", 1)
    said = Remarks()
    store = precompute(tmp_path / "stores", source, said)
    sentence = next(text for text in said if "plain fp32" in text)
    assert sentence.startswith("program:tiny.pt2: its logits of real pictures, compiled in fp32, are off by ")
    assert sentence.endswith("; it runs uncompiled in fp32")
    assert store.manifest.made_by["compiled"] is False
    assert np.array_equal(store.view(0), plain.view(0))
    with pytest.raises(SourceError, match="leave --compile out"):
        precompute(tmp_path / "asked", source, [], compiled=True)
    assert not list(find_stores(tmp_path / "asked")), "nothing is kept"


def test_a_live_source_is_tested_on_the_students_images(tmp_path, source, monkeypatch):
    monkeypatch.setattr(frozen, "compile_network", bad_compiler)
    monkeypatch.setattr(execution, "_COMPILE_FROM", 1)
    said = Remarks()
    api.train(
        "digits",
        out=tmp_path / "run",
        paths=Paths(tmp_path / "data", tmp_path / "stores"),
        limit=20,
        sources=(source,),
        labels="live",
        execution=choose_execution(device="cpu", threads=1),
        epochs=1,
        batch_size=20,
        amp="fp32",
    )
    assert any("compiled in fp32, are off by" in text and text.endswith("in fp32") for text in said)


def test_a_store_that_was_computed_in_a_way_that_is_wrong_here_is_not_added_to(tmp_path, source, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(frozen, "compile_network", lambda network, _device: network)
        store = precompute(tmp_path / "stores", source, [], compiled=True)
    monkeypatch.setattr(frozen, "compile_network", bad_compiler)
    with pytest.raises(
        StoreMismatch, match="its rows were computed in a way that is wrong here: program:tiny"
    ):
        precompute(tmp_path / "stores", source, [], views=2)
    assert Store.open(store.path).n_views == 2, "its room was made"
    assert store.manifest.made_by["compiled"] is True


def test_a_source_whose_low_precision_is_wrong_runs_in_fp32_or_is_refused(tmp_path, monkeypatch):
    from test_sskt_frozen import made_source

    from pipeline.runtime.execution import Execution
    from pipeline.stores.sources import open_frozen
    from sskt.sources.input_map import InputMap

    source = made_source(WrongUnderAutocast(), n_classes=5)
    shown = torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8)
    said = Remarks()
    free = Execution(torch.device("cpu"))
    how = Forward("bf16", 4)
    teacher = open_frozen(source, InputMap(16), how, free, 16, shown=shown)
    assert teacher.forward == Forward("fp32", 4)
    assert said[0].endswith("; it runs uncompiled in fp32")
    with pytest.raises(SourceError, match="leave --amp bf16 out, or pass --amp fp32"):
        open_frozen(source, InputMap(16), how, Execution(torch.device("cpu"), "bf16"), 16, shown=shown)
    with monkeypatch.context() as patched:  # and if fp32 with channels last is wrong as well
        patched.setattr(frozen, "plain_answers", lambda *_, **__: torch.zeros(4, 5))
        with pytest.raises(SourceError, match="nothing that is computed here can be trusted"):
            open_frozen(source, InputMap(16), how, free, 16, shown=shown)
