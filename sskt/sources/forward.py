"""How a frozen network is run: precision, batch size, compiled or not, and the CPU threads it runs in.

None of it is identity, since logits agree within float16's rounding, but a row's last bits depend on it: a
store records it, and whoever adds to a store or checks it computes in the same way.
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
from torch import Tensor

from sskt.errors import SourceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPUTE = tuple(DTYPES)

_CPU_BATCH_SIZE = 16  # ResNet50 compiled, one thread each: 8 and 32 are as fast or slower, at 74 and 224 px
_CUDA_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Forward:
    """compute: one of COMPUTE, the precision of autocast ("fp32": none). batch_size: images in every forward.
    compiled: by inductor, weights frozen into the code.
    """

    compute: str = "fp32"
    batch_size: int = _CPU_BATCH_SIZE
    compiled: bool = False

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'uncompiled'} in {self.compute}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a store's record, where the batch size is called "rows"."""
        return {"compute": self.compute, "rows": self.batch_size, "compiled": self.compiled}

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> Self:
        """Read what a store records; fields missing from older stores have the value that applied then."""
        names = {"compute": "compute", "rows": "batch_size", "compiled": "compiled"}
        return cls(**{own: recorded[name] for name, own in names.items() if name in recorded})


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
    """Images in a forward where nothing was measured."""
    return _CUDA_BATCH_SIZE if device.type == "cuda" else _CPU_BATCH_SIZE


def compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compile `function` for the one shape that it will be called with, its networks' weights frozen.

    The compiler keeps what it made by code object and gives up after eight shapes or networks, so every
    function gets a code object of its own.
    """
    own = FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, closure=function.__closure__
    )
    return torch.compile(own, dynamic=False, fullgraph=True, options={"freezing": True})


@contextmanager
def compiler_errors(name: str) -> Iterator[None]:
    """Silence the compiler during a first call, and turn what fails into one SourceError."""
    log = logging.getLogger("torch.utils.cpp_extension")  # remarks that there is no CUDA on a machine without
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
    """Worker threads, shared by all callers of one purpose, in which torch computes single-threaded.

    The caller's own number of threads stays.
    """
    before = torch.get_num_threads()
    started = Barrier(n_workers)

    def begin(_: int) -> None:
        torch.get_num_threads()  # a thread's first use of torch resets its number, so let that come before
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(n_workers, thread_name_prefix=purpose)
    list(pool.map(begin, range(n_workers)))
    torch.set_num_threads(before)  # the number is also the default of every thread born later
    return pool
