"""A device that computes nothing, and a watch over what a GPU's step would wait for.

torch's "meta" device has shapes and types alone, and goes forward and backward like a GPU; our code treats
every device but a CPU as one. (Fake CUDA tensors go forward only: a backward pass asks the driver for a
context.) The watch sees each operator, those of a backward pass too, and notes where a real device would have
to be waited for, and where a tensor of the host meets one of the device.
"""

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NOWHERE = torch.device("meta")
_ROOT = Path(__file__).resolve().parents[1]
_OURS = tuple(str(_ROOT / room) for room in ("pipeline", "sskt"))
_aten = torch.ops.aten
# their result's size or value is known to the host only when the device has come to them
_ANSWERS = {_aten._local_scalar_dense.default: 1, _aten.equal.default: True}
_SIZED_BY_VALUES = {_aten.nonzero.default, _aten.masked_select.default, _aten._unique2.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}


class Watch(TorchDispatchMode):
    """`found` counts notes, each with the line of ours that caused it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str, str]] = Counter()  # what, file, line of code
        self._pinned: list[torch.Tensor] = []
        self._tensor = torch.tensor

    def __enter__(self):
        torch.tensor = self._made_of_values
        return super().__enter__()

    def __exit__(self, *raised):
        torch.tensor = self._tensor
        return super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if x.device == NOWHERE]
        here = [x for x in tensors if x.device.type == "cpu"]
        if func is _aten._pin_memory.default:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if func in _ANSWERS and there:
            self._note("waits")
            return _ANSWERS[func]
        if func in _SIZED_BY_VALUES and there:
            self._note("waits")
            return torch.empty((0, args[0].ndim), dtype=torch.int64, device=NOWHERE)  # nothing is found
        if func is _aten._to_copy.default and tensors[0].device != (
            kwargs.get("device") or tensors[0].device
        ):
            return self._copied(args[0], kwargs)
        if func is _aten.copy_.default and there and here:
            self._note("waits" if args[0] is here[0] else "copies from pageable memory")
            return args[0]
        if func in _INDEXED and any(
            x.dtype == torch.bool for x in pytree.tree_leaves(args[1]) if x is not None
        ):
            self._note("waits")  # a mask is turned into positions
        if there and any(x.ndim for x in here):
            self._note(f"host tensor in {func}")
        return func(*args, **kwargs)

    def _copied(self, tensor, kwargs):
        if kwargs["device"].type == "cpu":
            self._note("waits")
            return torch.ones(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)
        if tensor.ndim and not any(tensor is each for each in self._pinned):
            self._note("copies from pageable memory")
        return torch.empty(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype, device=NOWHERE)

    def _made_of_values(self, values, **how):
        if torch.device(how.get("device") or "cpu").type != "cpu":
            self._note("copies from pageable memory")
        return self._tensor(values, **how)

    def _note(self, what: str) -> None:
        last = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_OURS)][-1]
        self.found[what, str(Path(last.filename).relative_to(_ROOT)), f"{last.lineno}: {last.line}"] += 1


class Autocast(TorchFunctionMode):
    """Stands for `torch.autocast`, which knows no "meta": products in the low precision, and in full what
    CUDA's autocast computes in full.
    """

    _dtype: torch.dtype | None = None  # what is in force; the innermost context decides
    _products = frozenset(
        (torch.conv2d, torch.conv3d, torch.nn.functional.linear, torch.matmul, torch.bmm, torch.addmm)
    )
    _in_full = {
        getattr(torch.nn.functional, name)
        for name in (
            "softmax",
            "log_softmax",
            "cross_entropy",
            "kl_div",
            "mse_loss",
            "layer_norm",
            "normalize",
        )
    } | {torch.softmax, torch.log_softmax, torch.Tensor.softmax, torch.Tensor.log_softmax, torch.Tensor.pow}

    def __init__(self, _device: str, dtype: torch.dtype = torch.float16, enabled: bool = True) -> None:
        super().__init__()
        self._wanted = dtype if enabled else None

    def __enter__(self):
        self._before, Autocast._dtype = Autocast._dtype, self._wanted
        return super().__enter__()

    def __exit__(self, *raised):
        Autocast._dtype = self._before
        return super().__exit__(*raised)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self._dtype and func in self._products | self._in_full:
            dtype = self._dtype if func in self._products else torch.float32
            args, kwargs = pytree.tree_map_only(
                torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs)
            )
        return func(*args, **(kwargs or {}))


class QueuedWork:
    """Stands for `torch.cuda.Event`: the device does nothing until somebody waits for it, and then all that
    was queued up to there.
    """

    n_queued = n_done = 0

    def __init__(self, *, blocking: bool = False) -> None:
        self.blocking, self.at = blocking, 0

    def record(self, _stream=None) -> None:
        QueuedWork.n_queued += 1
        self.at = QueuedWork.n_queued

    def query(self) -> bool:
        return QueuedWork.n_done >= self.at

    def synchronize(self) -> None:
        QueuedWork.n_done = max(QueuedWork.n_done, self.at)


def stub_events(monkeypatch) -> None:
    """Let `QueuedWork` stand for CUDA's events, from the beginning."""
    monkeypatch.setattr(QueuedWork, "n_queued", 0)
    monkeypatch.setattr(QueuedWork, "n_done", 0)
    monkeypatch.setattr(torch.cuda, "Event", QueuedWork)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device=None: None)
