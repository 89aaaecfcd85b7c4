"""Check a layer's kernels: compare its forward and gradients, in the precision and memory layout used for
training, with plain ones (fp32, contiguous) on random values of the same shapes.

No fast kernel is trusted untested: in torch 2.15 on CPUs with AVX512-BF16, the bf16 weight gradient of many
3D convolutions that pad an axis shorter than their kernel is garbage, and some write out of bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sskt.sources import DTYPES

# bf16 has 8 bits and is off by 0.3 %, as are split-K sums of fp16 on a GPU; TF32 would be off by 0.03 %
TOLERANCES = {"bf16": 1e-2, "fp16": 1e-2, "fp32": 1e-4}

_PERIOD = 65_537  # a prime, so that it matches no stride of a tensor
_Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True)
class Layer:
    """The shape of a convolution or linear layer: everything that decides which kernels compute it."""

    kind: str  # for messages
    weight: tuple[int, ...]
    input: tuple[int, ...]  # including the batch
    learns_weight: bool  # whether the gradient of its weight is needed
    learns_input: bool
    bias: bool
    stride: tuple[int, ...] = ()  # empty for a linear layer
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    transposed: bool = False
    groups: int = 1

    @classmethod
    def of(cls, module: nn.Linear | _Convolution, x: Tensor) -> Self:
        """The layer that `module` is on the input `x`."""
        shape, learns = (
            tuple(x.shape),
            (module.weight.requires_grad and torch.is_grad_enabled(), x.requires_grad),
        )
        kind, weight, bias = type(module).__name__, tuple(module.weight.shape), module.bias is not None
        if isinstance(module, nn.Linear):
            return cls(kind, weight, (math.prod(shape[:-1]), shape[-1]), *learns, bias)
        padding: tuple[int, ...] = (0,) * len(module.stride)
        if isinstance(module.padding, str) or module.padding_mode != "zeros":  # pads before convolving
            around = module._reversed_padding_repeated_twice[::-1]
            shape = (*shape[:2], *(n + sum(around[2 * i : 2 * i + 2]) for i, n in enumerate(shape[2:])))
        else:
            padding = tuple(map(int, module.padding))
        return cls(
            kind,
            weight,
            shape,
            *learns,
            bias,
            tuple(module.stride),
            padding,
            tuple(module.dilation),
            tuple(map(int, module.output_padding)),
            module.transposed,
            module.groups,
        )

    @property
    def may_end_the_process(self) -> bool:
        """Whether oneDNN's bf16 kernels are known to crash on such a layer: of three axes, one is padded and
        shorter than the kernel, but longer than 1 (an axis of 1 can give wrong values, which a test finds,
        but none of 260 shapes corrupted the heap).
        """
        axes = list(zip(self.padding, self.input[2:], self.weight[2:], strict=False))
        return len(axes) == 3 and any(padding and 1 < n < taps for padding, n, taps in axes)

    def __str__(self) -> str:
        if not self.stride:
            return f"{self.kind} {self.weight[1]} to {self.weight[0]}"
        taps, size = (" x ".join(map(str, shape[2:])) for shape in (self.weight, self.input))
        n_in, n_out = self.input[1], self.weight[1] * self.groups if self.transposed else self.weight[0]
        return f"{self.kind} {n_in} to {n_out} with {taps} taps on {size}"


def layers_of(network: nn.Module, shape: tuple[int, ...], *, learns: bool) -> dict[Layer, list[str]]:
    """The distinct layers that `network` runs on an input of `shape`, and the names of their modules.

    Runs on the meta device, so nothing is computed; a network that cannot is run on black images. The network
    is unchanged. `learns`: whether gradients will be needed.
    """
    layers: dict[Layer, list[str]] = {}

    def make_hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(module: Any, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                names = layers.setdefault(Layer.of(module, inputs[0]), [])
                if name not in names:
                    names.append(name)

        return add

    kinds = (nn.Linear, *_Convolution.__args__)
    hooks = [
        module.register_forward_pre_hook(make_hook(name))
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    ]
    modes = [(module, module.training) for module in network.modules()]
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in tensors.items()
    }
    try:
        network.eval()
        with torch.set_grad_enabled(learns):
            try:
                functional_call(network, shapes, (torch.empty(shape, device="meta"),))
            except Exception:  # noqa: BLE001  (a user's network may create tensors on any device)
                layers.clear()
                device = next(iter(tensors.values())).device
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    network(torch.zeros(shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return layers


def errors(layer: Layer, compute: str, *, channels_last: bool, device: torch.device) -> dict[str, float]:
    """Relative errors of the layer's kernels against plain ones, of "forward", "weight gradient" and "input
    gradient": the larger of the 2-norm's and the maximum norm's; infinite if not finite. If one exceeds the
    tolerance, "plain fp32" is the error of the plain kernels against float64.
    """
    low, layout = DTYPES[compute], _LAYOUTS.get(len(layer.input)) if channels_last else None
    x, w, b = (None if t is None else t.to(low).float() for t in _draw(layer, device))
    plain = _run(layer, x, w, b)

    def to(kind: torch.dtype, tensor: Tensor | None, like: Any = layout) -> Tensor | None:
        return None if tensor is None else tensor.to(kind, memory_format=like or torch.contiguous_format)

    fast = _run(layer, to(low, x), to(low, w), b if b is None else b.to(low), layout=layout)
    result = {name: _error(fast[name], plain[name]) for name in plain}
    if max(result.values()) > TOLERANCES[compute]:
        exact = _run(layer, *(t if t is None else t.double() for t in (x, w, b)))
        result["plain fp32"] = max(_error(plain[name], exact[name]) for name in plain)
    return result


def compute_plainly(module: nn.Module) -> None:
    """Make a layer run in fp32 and contiguous memory, whatever the surrounding autocast and layout."""
    module.__class__ = _plain_class(type(module))  # type: ignore[arg-type]
    module.to(memory_format=torch.contiguous_format)


@cache
def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass rather than a hook, since copies of a module keep its class."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            z: Tensor = kind.forward(self, x.float().contiguous())
        return z

    return type(f"Plain{kind.__name__}", (kind,), {"forward": forward})


def _draw(layer: Layer, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw input, weight and bias that give outputs of order 1; torch's global generators are untouched."""
    n_out = layer.weight[1] * layer.groups if layer.transposed else layer.weight[0]
    scale = 1 / math.sqrt(math.prod(layer.weight[1:]))
    bias = _normal((n_out,), 2, device) if layer.bias else None
    return _normal(layer.input, 0, device), _normal(layer.weight, 1, device) * scale, bias


def _normal(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Normal values, 65,537 of them repeated: drawing them all would take most of the time."""
    few = torch.randn(_PERIOD, generator=torch.Generator(device).manual_seed(seed), device=device)
    n = math.prod(shape)
    return few.repeat(-(-n // _PERIOD))[:n].view(shape)


def _run(
    layer: Layer, x: Any, w: Any, b: Any, *, layout: torch.memory_format | None = None
) -> dict[str, Tensor]:
    """The output and the gradients needed, by the operators that autograd calls."""
    aten = torch.ops.aten
    how = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)
    with torch.no_grad():
        z = aten.convolution(x, w, b, *how) if layer.stride else nn.functional.linear(x, w, b)
        out = {"forward": z}
        if not (layer.learns_weight or layer.learns_input):
            return out
        # keep sums over all positions of order 1: fp16 ends at 65,504
        g = _normal(tuple(z.shape), 3, z.device) / math.sqrt(z.numel() / z.shape[1])
        g = g.to(torch.bfloat16).to(z.dtype, memory_format=layout or torch.contiguous_format)
        if layer.stride:
            wanted = [layer.learns_input, layer.learns_weight, False]
            gx, gw, _ = aten.convolution_backward(g, x, w, None, *how, wanted)
        else:
            gx, gw = g @ w, g.t() @ x
    if layer.learns_weight:
        out["weight gradient"] = gw
    if layer.learns_input:
        out["input gradient"] = gx
    return out


def _error(actual: Tensor, expected: Tensor) -> float:
    """See `errors`."""
    difference = actual.to(expected.dtype) - expected
    norms = (
        torch.linalg.vector_norm(difference, order) / torch.linalg.vector_norm(expected, order).clamp(1e-30)
        for order in (2, math.inf)
    )
    errors = [float(norm) for norm in norms]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf
