"""A convolution kernel of this machine that is broken on purpose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Backward = tuple[Tensor | None, Tensor | None, Tensor | None]


@contextmanager
def convolution_backward(change: Callable[[Tensor, Backward], Backward]) -> Iterator[None]:
    """Gradients of CPU convolutions as `change` makes them of the weight and the right ones."""
    operator = torch.ops.aten.convolution_backward.default

    def broken(g: Tensor, x: Tensor, w: Tensor, *how: object) -> Backward:
        key = torch._C.DispatchKey.CompositeExplicitAutograd
        return change(w, operator._op_dk(key, g, x, w, *how))

    library = torch.library.Library("aten", "IMPL")
    library.impl("convolution_backward", broken, "CPU")
    try:
        yield
    finally:
        library._destroy()
