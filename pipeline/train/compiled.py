"""Compile a step, and check its gradients against eager ones before a run trains with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.runtime import autocast
from pipeline.train.config import TrainConfig
from sskt.errors import RunError
from sskt.methods import Losses, Method

_SLACK = 0.01  # fraction of the gradients' norm, beside twice the error of the run's precision
_SCALE = 256.0  # loss scale in fp16, whose gradients would vanish

Step = Callable[..., Losses]


def compile_step(step: Step, device: torch.device, *, alone: bool) -> Step:
    """Compile a method's step. On CUDA it becomes one graph of kernels for each of the two batch sizes of an
    epoch, since a small student's step takes longer to launch than to compute; not unless it is `alone`, as
    the gradients of several ranks are averaged within it.
    """
    if device.type == "cpu":
        return torch.compile(step)
    compiled = torch.compile(step, dynamic=False, mode="reduce-overhead" if alone else None)

    def run(*inputs: object) -> Losses:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # copies, since the next replay of the graph writes to the same memory
        return Losses(*[value.clone() for value in compiled(*inputs)])

    return run


def require_right(
    compiled: Step,
    eager: Step,
    method: Method,
    inputs: tuple[object, ...],
    config: TrainConfig,
    device: torch.device,
) -> None:
    """Raise RunError if the gradients of `compiled` for a step's `inputs` are wrong: more than twice as far
    from those of an eager step in fp32 as those of an eager step in the run's precision.

    `method` and the random generators are left unchanged. Each step draws different random numbers, as a
    compiled one does anyway, so a network with dropout is only compared as closely as it agrees with itself.
    """
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}

    def gradients(step: Step, amp: str, draw: int) -> Tensor:
        """The step's loss and all gradients as one vector, float32; `draw` seeds its random numbers."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(draw)
            method.zero_grad(set_to_none=True)
            with autocast(device, amp):
                losses = step(*inputs)
            (losses.total * (_SCALE if config.amp == "fp16" else 1.0)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, buffer in method.named_buffers():
                buffer.copy_(before[name])
        found = [weight.grad.flatten().float() for weight in method.parameters() if weight.grad is not None]
        return torch.cat([losses.total.detach().flatten().float(), *found])

    plain, same = gradients(eager, "fp32", 0), gradients(eager, config.amp, 1)
    # a CUDA graph is warmed up by the first call, captured by the second, and replayed by the third
    for _ in range(1 if device.type == "cpu" else 3):
        ours = gradients(compiled, config.amp, 2)
    method.zero_grad(set_to_none=True)
    allowed = 2 * float((same - plain).norm() / plain.norm()) + _SLACK
    error = float((ours - plain).norm() / plain.norm())
    if not error <= allowed:
        raise RunError(
            f"--compile: the gradients of the first step are off by {error:.1%} of those in plain fp32, "
            f"expected at most {allowed:.1%}, twice what they are uncompiled; leave --compile out"
        )
