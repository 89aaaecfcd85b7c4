"""f_s against its formula, and logits that depend on nothing but the picture: on real weights if present."""

import json
import threading
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from sskt.sources.batch_size import fastest_batch_size
from sskt.sources.contract import Contract
from sskt.sources.forward import Forward, default_compute
from sskt.sources.frozen import FrozenSource, NonFiniteLogitsError
from sskt.sources.input_map import InputMap, scaled_side
from sskt.sources.registry import open_source
from sskt.sources.source import Source, SourceSpec

SHARED = Path(__file__).parents[2] / "shared"
CPU = torch.device("cpu")


def images(n):
    """The first n CIFAR-10 test pictures, uint8 (n, 3, 32, 32)."""
    tile = SHARED / "data" / "cifar10" / "test_00.webp"
    if not tile.exists():
        pytest.skip("needs the real pictures in ../shared/data/cifar10")
    mosaic = np.asarray(Image.open(tile).convert("RGB")).reshape(25, 32, 40, 32, 3)
    return torch.from_numpy(mosaic.transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)[:n].copy())


@cache
def real_source(name):
    weights = SHARED / "weights" / "imagenet_resnet50.safetensors"
    program = SHARED / "weights" / "places365_squeezenet.pt2"
    if not (weights.exists() and program.exists()):
        pytest.skip("needs the real weights in ../shared/weights")
    if name == "imagenet":
        return open_source(name, weights=weights, weights_dir=weights.parent)
    return open_source(f"program:{program}", weights_dir=weights.parent)


def made_source(module, n_classes=4, side_range_px=None, **more):
    spec = SourceSpec("imagenet", "imagenet", "made", n_classes, IMAGENET_MEAN, IMAGENET_STD)
    return Source(
        spec, module.eval().requires_grad_(False), "0" * 64, Path("made.pth"), side_range_px, **more
    )


class Means(nn.Module):
    """Logits that show what went in: the mean of each channel, and one more."""

    def forward(self, x):
        means = x.mean(dim=(2, 3))
        return torch.cat([means, means.sum(dim=1, keepdim=True)], dim=1)


def bilinear(image, side, scale=None):
    """Half-pixel bilinear interpolation of (C, H, W), weights from the definition."""

    def matrix(size):
        at = np.clip((np.arange(side) + 0.5) / (scale or side / size) - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, size - 1)
        weights = np.zeros((side, size))
        np.add.at(weights, (np.arange(side), low), 1 - (at - low))
        np.add.at(weights, (np.arange(side), high), at - low)
        return weights

    return np.einsum("yh,chw,xw->cyx", matrix(image.shape[1]), image, matrix(image.shape[2]), optimize=True)


@pytest.mark.parametrize(("from_px", "to_px"), [(32, 74), (96, 224), (16, 32), (64, 40)])
def test_input_map_normalises_then_interpolates(from_px, to_px):
    pixels = torch.randint(0, 256, (2, 3, from_px, from_px), dtype=torch.uint8)
    got = InputMap(to_px)(pixels)
    assert got.dtype == torch.float32
    mean, std = (np.array(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    for n in range(2):
        expected = bilinear((pixels[n].numpy() / 255 - mean) / std, to_px)
        np.testing.assert_allclose(got[n].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(("from_px", "to_px"), [(32, 74), (20, 46), (96, 224)])
def test_input_map_may_map_positions_by_a_factor_as_the_released_call_does(from_px, to_px):
    pixels = torch.randint(0, 256, (2, 3, from_px, from_px), dtype=torch.uint8)
    got = InputMap(to_px, scale="7/3")(pixels)
    upsample = torch.nn.Upsample(scale_factor=7 / 3, mode="bilinear", align_corners=False)
    assert torch.equal(got, upsample(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)))
    mean, std = (np.array(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = bilinear((pixels[0].numpy() / 255 - mean) / std, to_px, 7 / 3)
    np.testing.assert_allclose(got[0].numpy(), expected, atol=2e-4)
    by_size = InputMap(to_px)(pixels)
    if from_px == 96:
        torch.testing.assert_close(got, by_size, rtol=0, atol=1e-4)
    else:
        assert (got - by_size).abs().mean() > 0.01
    with pytest.raises(
        SourceError, match="pictures of 33 px times 7/3 are 77 px wide, sources were to see 74"
    ):
        InputMap(74, scale="7/3")(torch.zeros(1, 3, 33, 33, dtype=torch.uint8))


def test_the_compiler_takes_the_map_in_one_piece():
    """As stage one compiles it with the network; torch 2.11 traces less than later ones."""
    input_map, pixels = InputMap(74, scale="7/3"), torch.arange(6 * 32 * 32).reshape(2, 3, 32, 32).byte()
    traced = torch.compile(lambda x: input_map(x), fullgraph=True, backend="eager")
    assert torch.equal(traced(pixels), input_map(pixels))


def test_input_map_of_the_same_size_only_normalises():
    pixels = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(InputMap(20)(pixels), normalise(pixels, IMAGENET_MEAN, IMAGENET_STD))


def test_input_map_is_plain_data_and_every_setting_is_in_it():
    plain = InputMap(74).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    scaled = InputMap(74, scale="7/3")
    assert InputMap.from_dict(json.loads(json.dumps(scaled.to_dict()))) == scaled
    assert plain == {
        "side_px": 74,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "align_corners": False,
        "antialias": False,
    }


def test_scaled_side_is_the_papers():
    assert [scaled_side(px, Fraction(7, 3)) for px in (32, 96)] == [74, 224]
    assert scaled_side(16, Fraction(2)) == 32


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["imagenet", "program"])
def test_row_is_the_same_bits_in_any_batch_place_company_and_thread_count(name, compute):
    source, pixels = real_source(name), images(26)
    small = name == "imagenet" and compute == "bf16"  # slow on processors that do not compute in it
    seen = InputMap(37 if small else 74)
    frozen = FrozenSource(source, seen, device=CPU, forward=Forward(compute), threads=2)
    whole = frozen.logits(pixels)
    assert whole.shape == (26, source.spec.n_classes)
    assert whole.dtype == torch.float16
    order = torch.from_numpy(np.random.default_rng(0).permutation(26))
    for batch in (13, 20):  # of which forwards take 16 at a time
        again = torch.empty_like(whole)
        for rows in order.split(batch):
            again[rows] = frozen.logits(pixels[rows])
        assert torch.equal(again, whole), f"shuffled batches of {batch}"
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            other = FrozenSource(source, seen, device=CPU, forward=Forward(compute))
            assert torch.equal(other.logits(pixels[9:22]), whole[9:22]), f"{threads} threads"
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["imagenet", "program"])
def test_logits_are_the_plain_forward_of_the_pictures(name):
    source, pixels = real_source(name), images(20)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        x = (pixels.float() / 255 - mean) / std
        plain = source.module(F.interpolate(x, size=(74, 74), mode="bilinear", align_corners=False)).numpy()
    ours = FrozenSource(source, InputMap(74), device=CPU).logits(pixels).float().numpy()
    np.testing.assert_allclose(ours, plain, rtol=2e-3, atol=2e-3)
    shifted = np.abs(ours[1:] - plain[:-1]).max(axis=1)
    assert shifted.min() > 0.1, "a shifted pairing must not pass the same comparison"
    bf16 = (
        FrozenSource(source, InputMap(74), device=CPU, forward=Forward("bf16")).logits(pixels).float().numpy()
    )
    cosine = (bf16 * plain).sum(1) / np.linalg.norm(bf16, axis=1) / np.linalg.norm(plain, axis=1)
    assert cosine.min() > 0.999


def test_every_forward_has_the_same_number_of_rows():
    seen = []

    class Spy(Means):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    frozen = FrozenSource(made_source(Spy()), InputMap(8), device=CPU, forward=Forward(batch_size=5))
    seen.clear()
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    got = frozen.logits(pixels)
    assert seen == [5, 5, 5]
    expected = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD).mean(dim=(2, 3))
    torch.testing.assert_close(got[:, :3].float(), expected, atol=2e-3, rtol=2e-3)
    assert frozen.logits(pixels[:0]).shape == (0, 4)


def test_logits_may_enter_a_loss_and_carry_no_gradient():
    frozen = FrozenSource(made_source(Means()), InputMap(8), device=CPU)
    got = frozen.logits(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert not got.requires_grad
    assert not got.is_inference()
    weight = torch.ones(4, requires_grad=True)
    (got.float() * weight).sum().backward()
    assert weight.grad is not None


def test_source_leaves_the_callers_threads_alone():
    before = torch.get_num_threads()
    FrozenSource(made_source(Means()), InputMap(8), device=CPU, threads=3)
    assert torch.get_num_threads() == before
    born = []
    thread = threading.Thread(target=lambda: born.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert born == [before], "threads born later must not inherit the workers' single thread"


@pytest.mark.parametrize(
    ("scale", "what"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (1e6, "too large")]
)
def test_non_finite_rows_are_named(scale, what):
    class Bad(Means):
        def forward(self, x):
            z = super().forward(x)
            return torch.where(z[:, :1] > 1, z * scale, z)

    frozen = FrozenSource(made_source(Bad()), InputMap(8), device=CPU, forward=Forward(batch_size=4))
    pixels = torch.zeros(11, 3, 8, 8, dtype=torch.uint8)
    pixels[[3, 9]] = 255
    with pytest.raises(
        NonFiniteLogitsError, match=r"imagenet gave NaN, infinite or over 10000 logits for 2 of 11 rows"
    ) as e:
        frozen.logits(pixels)
    assert e.value.rows == [3, 9]
    assert isinstance(e.value, SourceError)
    assert torch.isfinite(frozen.logits(pixels[:3])).all()


def test_size_out_of_a_programs_range_is_named():
    with pytest.raises(SourceError, match="reads pictures of 64 to 1024 px, this target gives it 32 px"):
        FrozenSource(real_source("program"), InputMap(32), device=CPU)
    with pytest.raises(SourceError, match="reads pictures of 32 px, this target gives it 74 px"):
        FrozenSource(made_source(Means(), side_range_px=(32, 32)), InputMap(74), device=CPU)


def test_program_tied_to_a_batch_size_is_named(tmp_path):
    program = torch.export.export(Means().eval(), (torch.zeros(2, 3, 32, 32),))
    torch.export.save(program, tmp_path / "net.pt2")
    source = open_source(f"program:{tmp_path / 'net.pt2'}", weights_dir=tmp_path)
    with pytest.raises(SourceError, match="takes batches of 2, asked for 16; pass --batch-size 2, or export"):
        FrozenSource(source, InputMap(32), device=CPU, forward=Forward(batch_size=16))
    frozen = FrozenSource(source, InputMap(32), device=CPU)
    assert frozen.forward.batch_size == 2, "where nobody asks for more"
    assert frozen.logits(torch.zeros(3, 3, 32, 32, dtype=torch.uint8)).shape == (3, 4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room\nat all"), RuntimeError("batch <= 16")])
def test_rows_are_doubled_until_a_source_takes_no_more(monkeypatch, error):
    class Limited(Means):
        def forward(self, x):
            if len(x) > 16:
                raise error
            return super().forward(x)

    def opened(rows):
        source = made_source(Limited(), is_traced=True)
        return FrozenSource(source, InputMap(8), device=CPU, forward=Forward(batch_size=rows))

    monkeypatch.setattr("sskt.sources.batch_size._GAIN", 0.0)
    assert fastest_batch_size(opened, first=4, most=64) == 16
    assert fastest_batch_size(opened, first=4, most=8) == 8
    with pytest.raises(SourceError, match=r"32 pictures of 8 px in fp32 .*(memory of cpu|batch <= 16)"):
        fastest_batch_size(opened, first=32, most=64)


def test_wrong_shape_of_output_is_named():
    with pytest.raises(SourceError, match=r"imagenet returns \(1, 4\), expected logits of shape \(1, 9\)"):
        FrozenSource(made_source(Means(), n_classes=9), InputMap(8), device=CPU)


def test_precision_is_chosen_for_agreement_and_unknown_ones_are_refused():
    assert default_compute(CPU) == "fp32"
    assert default_compute(torch.device("cuda")) == "fp16"
    with pytest.raises(SourceError, match="'tf32', expected one of fp32, bf16, fp16"):
        FrozenSource(made_source(Means()), InputMap(8), device=CPU, forward=Forward("tf32"))
    with pytest.raises(SourceError, match="fp16 on a CPU"):
        FrozenSource(made_source(Means()), InputMap(8), device=CPU, forward=Forward("fp16"))


def test_outputs_are_what_the_network_returns_and_logits_what_its_contract_makes_of_them():
    class Probabilities(Means):
        def forward(self, x):
            return super().forward(x).softmax(dim=1)

    source = made_source(Probabilities())
    source = replace(source, spec=replace(source.spec, contract=Contract(returns="probabilities")))
    frozen = FrozenSource(source, InputMap(8), device=CPU, forward=Forward(batch_size=5))
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    means = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD).mean(dim=(2, 3))
    expected = torch.cat([means, means.sum(dim=1, keepdim=True)], dim=1)
    torch.testing.assert_close(frozen.outputs(pixels), expected.softmax(dim=1))
    torch.testing.assert_close(
        frozen.logits(pixels).float(), expected.log_softmax(dim=1), atol=2e-3, rtol=2e-3
    )
