"""Whether the kernels of a layer compute what they should: its forward and gradients in the precision and
memory layout of a training, held against plain ones (fp32, contiguous) on random values of the same shapes.

No fast kernel is trusted unasked: in torch 2.15 on CPUs with AVX512-BF16, the bf16 weight gradient of many a
3D convolution that pads an axis shorter than its kernel is garbage, and some of them write outside their
memory.
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
from torch.nn import functional as F

from sskt.sources import DTYPES

# bf16 keeps 8 bits and is off by 0.3 %, as are sums of fp16 that a GPU splits; TF32 would be off by 0.03 %
TOLERANCES = {"bf16": 1e-2, "fp16": 1e-2, "fp32": 1e-4}

_PERIOD = 65_537  # a prime: no period of a tensor's own
_Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer by shape: all that decides which kernels compute it."""

    kind: str  # for messages
    weight: tuple[int, ...]
    input: tuple[int, ...]  # with the batch
    learns_weight: bool  # whether the gradient of its weight is needed
    learns_input: bool
    bias: bool
    stride: tuple[int, ...] = ()  # none of a linear layer
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    transposed: bool = False
    groups: int = 1

    @classmethod
    def of(cls, module: nn.Linear | _Convolution, x: Tensor) -> Self:
        """As `module` meets it with the input `x`."""
        shape, learns = (
            tuple(x.shape),
            (module.weight.requires_grad and torch.is_grad_enabled(), x.requires_grad),
        )
        kind, weight, bias = type(module).__name__, tuple(module.weight.shape), module.bias is not None
        if isinstance(module, nn.Linear):
            return cls(kind, weight, (math.prod(shape[:-1]), shape[-1]), *learns, bias)
        padding: tuple[int, ...] = (0,) * len(module.stride)
        if isinstance(module.padding, str) or module.padding_mode != "zeros":  # it pads before it convolves
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
        """Whether it is of a kind that is known to in oneDNN's bf16: of three axes, one is padded and shorter
        than the kernel, but longer than 1 (where the kernels can be wrong, as a test shows, but nothing of
        260 shapes broke the heap).
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

    Nothing is computed and the network stays as it is; one that cannot be run on shapes alone is run on black
    images. `learns`: whether gradients will be needed.
    """
    found: dict[Layer, list[str]] = {}

    def noting(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def note(module: Any, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                names = found.setdefault(Layer.of(module, inputs[0]), [])
                if name not in names:
                    names.append(name)

        return note

    kinds = (nn.Linear, *_Convolution.__args__)
    hooks = [
        module.register_forward_pre_hook(noting(name))
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
            except Exception:  # noqa: BLE001  (a network of somebody's own may make tensors of any device)
                found.clear()
                device = next(iter(tensors.values())).device
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    network(torch.zeros(shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return found


def errors(layer: Layer, compute: str, *, channels_last: bool, device: torch.device) -> dict[str, float]:
    """How far the layer's kernels are from plain ones: the error of "forward", "weight gradient" and "input
    gradient", as a share, over all values or of the worst one against the largest; infinite where it is not
    finite. Where one exceeds the tolerance, "plain fp32" says how far the plain ones are from float64.
    """
    low, layout = DTYPES[compute], _LAYOUTS.get(len(layer.input)) if channels_last else None
    x, w, b = (None if t is None else t.to(low).float() for t in _drawn(layer, device))
    plain = _passed(layer, x, w, b)

    def to(kind: torch.dtype, tensor: Tensor | None, like: Any = layout) -> Tensor | None:
        return None if tensor is None else tensor.to(kind, memory_format=like or torch.contiguous_format)

    fast = _passed(layer, to(low, x), to(low, w), b if b is None else b.to(low), layout=layout)
    found = {name: _error(fast[name], plain[name]) for name in plain}
    if max(found.values()) > TOLERANCES[compute]:
        exact = _passed(layer, *(t if t is None else t.double() for t in (x, w, b)))
        found["plain fp32"] = max(_error(plain[name], exact[name]) for name in plain)
    return found


def compute_plainly(module: nn.Module) -> None:
    """Have a layer run in fp32 and contiguous memory, whatever autocast and layout are around it."""
    module.__class__ = _plain_class(type(module))  # type: ignore[arg-type]
    module.to(memory_format=torch.contiguous_format)


@cache
def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass, since a copy of a module keeps its class."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            z: Tensor = kind.forward(self, x.float().contiguous())
        return z

    return type(f"Plain{kind.__name__}", (kind,), {"forward": forward})


def _drawn(layer: Layer, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias that give values of order 1; torch's own generators are left alone."""
    n_out = layer.weight[1] * layer.groups if layer.transposed else layer.weight[0]
    scale = 1 / math.sqrt(math.prod(layer.weight[1:]))
    bias = _normal((n_out,), 2, device) if layer.bias else None
    return _normal(layer.input, 0, device), _normal(layer.weight, 1, device) * scale, bias


def _normal(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Normal values, a fixed few thousand over and over: to draw them all would take most of the time."""
    few = torch.randn(_PERIOD, generator=torch.Generator(device).manual_seed(seed), device=device)
    n = math.prod(shape)
    return few.repeat(-(-n // _PERIOD))[:n].view(shape)


def _passed(
    layer: Layer, x: Any, w: Any, b: Any, *, layout: torch.memory_format | None = None
) -> dict[str, Tensor]:
    """Output and gradients that are needed, by the operators that autograd calls."""
    aten = torch.ops.aten
    how = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)
    with torch.no_grad():
        z = aten.convolution(x, w, b, *how) if layer.stride else F.linear(x, w, b)
        out = {"forward": z}
        if not (layer.learns_weight or layer.learns_input):
            return out
        # sums over all positions stay of order 1: fp16 ends at 65,504
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


def _error(found: Tensor, expected: Tensor) -> float:
    """See `errors`."""
    apart = found.to(expected.dtype) - expected
    norms = (
        torch.linalg.vector_norm(apart, order) / torch.linalg.vector_norm(expected, order).clamp(1e-30)
        for order in (2, math.inf)
    )
    errors = [float(norm) for norm in norms]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf
