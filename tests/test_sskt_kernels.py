"""Which layers a network has, by shape; whether their kernels are right; and layers that compute plainly."""

import copy

import pytest
import torch
from broken import convolution_backward
from torch import nn

from pipeline.runtime.execution import student_precision
from pipeline.runtime.kernels import How, wrong_layers
from sskt.kernels import Layer, _normal, _run, compute_plainly, errors, layers_of
from sskt.students.student import build_student

CPU = torch.device("cpu")

MODULES = {
    "3x3": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "grouped, strided, dilated": (nn.Conv2d(4, 8, 3, stride=2, dilation=2, groups=4), (3, 4, 9, 9)),
    "same": (nn.Conv2d(3, 5, (3, 5), padding="same"), (2, 3, 6, 8)),
    "reflected": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 8)),
    "clips": (nn.Conv3d(3, 4, 3, padding=1, bias=False), (2, 3, 2, 5, 5)),
    "a line": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 5, 5),
    ),
    "linear": (nn.Linear(6, 3), (4, 6)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_is_computed_as_autograd_computes_its_module(name):
    module, shape = MODULES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = Layer.of(module, x)
    padded = x
    if name in ("same", "reflected"):  # what the module does before it convolves
        sides = module._reversed_padding_repeated_twice
        padded = nn.functional.pad(x, sides, mode="constant" if name == "same" else "reflect")
    assert tuple(padded.shape) == layer.input
    found = _run(layer, padded.detach(), module.weight.detach(), module.bias)
    torch.testing.assert_close(found["forward"], module(x))
    z = module(x)
    g = _normal(tuple(z.shape), 3, CPU) / (z.numel() / z.shape[1]) ** 0.5  # the outputs' gradient
    gx, gw = torch.autograd.grad(z, (x, module.weight), g.to(torch.bfloat16).float())
    torch.testing.assert_close(found["weight gradient"], gw)
    if padded is x:
        torch.testing.assert_close(found["input gradient"], gx)


def test_every_distinct_layer_of_a_student_is_found_and_the_student_stays_as_it_is():
    student = build_student("resnet20", 10, {"source": 7}, transfer_module=False)
    student.backbone.layer1.eval()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    modes = [module.training for module in student.modules()]
    random = torch.get_rng_state()
    layers = layers_of(student, (2, 3, 32, 32), learns=True)
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in student.modules())
    named = {name: layer for layer, names in layers.items() for name in names}
    kinds = (nn.Conv2d, nn.Linear)
    assert set(named) == {name for name, module in student.named_modules() if isinstance(module, kinds)}
    assert not named["backbone.conv1"].learns_input
    assert named["backbone.layer3.0.conv1"].learns_input
    assert named["backbone.layer3.0.conv1"].input == (2, 32, 16, 16)
    assert str(named["backbone.layer3.0.conv1"]) == "Conv2d 32 to 64 with 3 x 3 taps on 16 x 16"
    assert len(layers) == 6 + 2, "six shapes of convolutions and two heads"
    assert not any(layer.learns_weight for layer in layers_of(student, (2, 3, 32, 32), learns=False))


class OfItsOwn(nn.Module):
    """Makes a tensor on the CPU whatever its input is on, which shapes alone do not survive."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) + torch.ones(4, 1, 1, device="cpu") * float(torch.ones(1))


def test_a_network_that_needs_values_is_run_on_black_images():
    (layer,) = layers_of(OfItsOwn(), (1, 3, 8, 8), learns=True)
    assert layer.input == (1, 3, 8, 8)


def wrong_in_bf16(w, gradients):
    gx, gw, gb = gradients
    return (gx, gw * 1.03 if gw is not None and w.dtype == torch.bfloat16 else gw, gb)


def test_a_wrong_kernel_is_seen_by_its_gradient_alone():
    layer = Layer.of(*(MODULES["3x3"][0], torch.zeros(2, 4, 7, 5, requires_grad=True)))
    sound = errors(layer, "bf16", channels_last=True, device=CPU)
    assert set(sound) == {"forward", "weight gradient", "input gradient"}
    assert 0 < max(sound.values()) < 0.01
    with convolution_backward(wrong_in_bf16):
        found = errors(layer, "bf16", channels_last=True, device=CPU)
    assert found["weight gradient"] == pytest.approx(0.03, abs=0.006)
    assert max(found["forward"], found["input gradient"]) < 0.01
    assert found["plain fp32"] < 1e-5, "and it was fp32 that was right"


def test_one_wrong_value_among_thousands_is_seen():
    def spoilt(w, gradients):
        gx, gw, gb = gradients
        if w.dtype == torch.bfloat16:
            gw = gw.clone()
            gw[1, 2, 0, 0] = 0.0
        return gx, gw, gb

    layer = Layer.of(nn.Conv2d(64, 64, 3, padding=1), torch.zeros(1, 64, 6, 6, requires_grad=True))
    with convolution_backward(spoilt):
        found = errors(layer, "bf16", channels_last=False, device=CPU)
    assert found["weight gradient"] > 0.01


def test_a_plain_layer_computes_in_fp32_whatever_is_around_it_and_so_does_a_copy_of_it():
    conv = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
    expected = copy.deepcopy(conv)
    names = list(conv.state_dict())
    compute_plainly(conv)
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.weight.mul_(2)
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, doubled = conv(x), twin(x)
    assert z.dtype == torch.float32
    assert z.is_contiguous()
    torch.testing.assert_close(z, expected(x), rtol=1e-5, atol=1e-5)
    bias = conv.bias[:, None, None]
    torch.testing.assert_close(doubled - bias, 2 * (z - bias), rtol=1e-4, atol=1e-4)
    assert list(conv.state_dict()) == names
    assert isinstance(conv, nn.Conv2d)


# of 3D ResNets on clips of 112 px: channels in and out, frames, side, kernel, stride
@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True}, "fp32"),  # the slower one there
        ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC 7763"}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_a_cpu_takes_bf16_only_where_it_is_faster(found, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert student_precision("auto", CPU) == chosen
    assert student_precision("bf16", CPU) == "bf16", "which is the user's choice"


SHAPES = {
    "layer3, 16 frames": (256, 256, 2, 7, 3, 1),
    "layer2, 16 frames": (128, 128, 4, 14, 3, 1),
    "layer4, 16 frames": (512, 512, 1, 4, 3, 1),
    "layer3's first, 16 frames": (128, 256, 4, 14, 3, 2),
    "layer4, 32 frames": (512, 512, 2, 4, 3, 1),
    "layer2, 8 frames": (128, 128, 2, 14, 3, 1),
    "r3d_18's layer4, 16 frames": (512, 512, 2, 7, 3, 1),
    "r2plus1d_18's layer4, 16 frames": (1152, 512, 2, 7, (3, 1, 1), 1),
    "layer3, 24 frames": (256, 256, 3, 7, 3, 1),
    "the first, 4 frames": (3, 64, 4, 16, 7, (1, 2, 2)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_3d_resnets_are_right_in_bf16(name, tmp_path):
    """cases/gen_16: bf16 kernels for AVX512-BF16 get the weight gradient wrong where two frames are left."""
    amp, found = "bf16", torch.cpu.get_capabilities()
    if not found.get("avx512_bf16") and not found.get("amx_bf16"):
        pytest.skip("this CPU has no bf16 kernel")
    c_in, c_out, frames, side, kernel, stride = SHAPES[name]
    torch.manual_seed(0)
    taps = (kernel,) * 3 if isinstance(kernel, int) else kernel
    conv = nn.Conv3d(c_in, c_out, taps, stride=stride, padding=tuple(k // 2 for k in taps), bias=False)
    network = nn.Sequential(conv).to(memory_format=torch.channels_last_3d)
    x = torch.randn(1, c_in, frames, side, side)
    expected = nn.functional.conv3d(x, conv.weight, None, conv.stride, conv.padding)
    g = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, conv.weight, g)

    wrong = wrong_layers(
        {"network": network},
        tuple(x.shape),
        How(amp, True, CPU),
        learns=True,
        kept_in=tmp_path / "kernels.json",
    )
    for names, _ in wrong.values():
        assert names == ["network.0"]
        compute_plainly(conv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = network(x.to(memory_format=torch.channels_last_3d))
    (found,) = torch.autograd.grad(z, conv.weight, g.to(z.dtype))
    assert float((found - wanted).norm() / wanted.norm()) < 0.01
