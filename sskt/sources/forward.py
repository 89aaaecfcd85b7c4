"""How a frozen network is run: precision, batch size, compiled or not, and the CPU threads it runs in.

None of it is identity, since logits agree within float16's rounding, but a row's last bits depend on it. So a
store records it, and adding to a store or checking it computes in the same way.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Barrier
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor, nn

from sskt.errors import SourceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPUTE = tuple(DTYPES)

_CPU_BATCH_SIZE = 16  # ResNet50 compiled, one thread each: 8 and 32 are as fast or slower, at 74 and 224 px
_CUDA_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Forward:
    """compute: one of COMPUTE, the precision of autocast ("fp32": none). batch_size: images in every forward.
    compiled: by inductor, weights frozen into the code. outputs: those of a network that are computed
    together, if they are several; a row's bits depend on them in compiled code only.
    """

    compute: str = "fp32"
    batch_size: int = _CPU_BATCH_SIZE
    compiled: bool = False
    outputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'uncompiled'} in {self.compute}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a store's record, where the batch size is called "rows"."""
        recorded = {"compute": self.compute, "rows": self.batch_size, "compiled": self.compiled}
        return {**recorded, "outputs": list(self.outputs)} if self.compiled and self.outputs else recorded

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> Self:
        """Read what a store recorded; fields that older stores lack get the value that applied then."""
        names = {"compute": "compute", "rows": "batch_size", "compiled": "compiled"}
        fields = {field: recorded[name] for name, field in names.items() if name in recorded}
        return cls(**fields, outputs=tuple(recorded.get("outputs", ())))


def default_compute(device: torch.device) -> str:
    """The fastest precision whose logits agree with fp32 on the top class in at least 99 of 100 images.

    ResNet50 keeps its top class with bf16 (8 significant bits) in 95 to 97 % of CIFAR-10 images at 74 px
    and in 98.8 % of ImageNet images at 224 px: too few for a default. fp16 has 11 bits; on a CPU it is
    several times slower than fp32.
    """
    return "fp16" if device.type == "cuda" else "fp32"


def exact_kernels(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA, use deterministic convolutions, and full fp32 rather than TF32."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, allow_tf32=False
    )
    return flags


def default_batch_size(device: torch.device) -> int:
    """Images per forward if nothing was measured."""
    return _CUDA_BATCH_SIZE if device.type == "cuda" else _CPU_BATCH_SIZE


def compile_network(function: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Compile `function` for the one shape that it will be called with, with its networks' weights frozen.

    On CUDA the compiler would time several kernels and take the fastest, so that two processes could take
    different ones, whose last bits differ; "deterministic" keeps it from that.

    The compiler caches by code object and gives up after eight shapes or networks, so every function gets its
    own code object.
    """
    copy = FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, closure=function.__closure__
    )
    options: dict[str, Any] = {"freezing": True}
    if device.type == "cuda":
        options["deterministic"] = True
    return torch.compile(copy, dynamic=False, fullgraph=True, options=options)


@contextmanager
def compiler_errors(name: str) -> Iterator[None]:
    """Silence the compiler during a first call, and turn any failure into one SourceError."""
    log = logging.getLogger("torch.utils.cpp_extension")  # reports missing CUDA on machines without a GPU
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{name} cannot be compiled here ({reason}); install a C++ compiler, or pass --no-compile"
        ) from error
    finally:
        log.setLevel(before)


@cache
def one_thread_each(n_workers: int, purpose: str) -> ThreadPoolExecutor:
    """Worker threads, shared by all callers with the same purpose, in which torch computes single-threaded.

    The caller's own number of threads is unchanged.
    """
    before = torch.get_num_threads()
    all_started = Barrier(n_workers)

    def start(_: int) -> None:
        torch.get_num_threads()  # a thread's first use of torch resets its number, so trigger that first
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(n_workers, thread_name_prefix=purpose)
    list(pool.map(start, range(n_workers)))
    torch.set_num_threads(before)  # the number is also the default for threads that start later
    return pool


def program_to_device(program: nn.Module, device: torch.device) -> nn.Module:
    """Move a program's module, its constants, and the devices written into its graph, which `.float()` or
    `torch.arange` left there when it was exported on another machine.
    """
    for graph_module in program.modules():
        if not isinstance(graph_module, torch.fx.GraphModule):
            continue
        for node in graph_module.graph.nodes:
            node.args = tuple(device if isinstance(a, torch.device) else a for a in node.args)
            if node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": device}
        graph_module.recompile()
        for name, value in list(vars(graph_module).items()):
            if isinstance(value, torch.Tensor):
                setattr(graph_module, name, value.to(device))
    return program.to(device)
