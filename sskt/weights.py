"""Load weights from files into networks: find them in whatever was saved around them, and compare every key
with the network before loading anything.

Nothing is guessed from the names of wrappers: of all tensors in a file, those that fit the network exactly,
under whatever prefix, are used. The caller is told which.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sskt.checkpoints import Checkpoint, Tensors
from sskt.errors import SourceError

_MAX_NAMED = 3  # keys spelled out in a message
# Names that wrappers insert anywhere in keys: DataParallel around a part (CSAILVision's AlexNet),
# torch.compile, FSDP, activation checkpoints.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# torchvision's and CSAILVision's DenseNet files predate a renaming in torchvision ("norm.1" is now "norm1").
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_COUNTER = "num_batches_tracked"  # of batch norms, unused in evaluation
# words in the names of averaged weights
_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "shadow", "polyak"}
_N_AVERAGED = "n_averaged"  # the counter that torch's AveragedModel keeps beside them
_REMEDY = (
    "name the architecture that the weights belong to, or export their own network and give it as "
    "program:FILE.pt2"
)


def load_into(
    module: nn.Module,
    checkpoint: Checkpoint,
    *,
    task: str,
    n_classes: int,
    remedy: str = _REMEDY,
    leaving: Sequence[str] = (),
    published: Callable[[str], str] = str,
) -> tuple[str, ...]:
    """Copy the weights in `checkpoint` into `module`, strictly: both must have the same keys and shapes.
    Returns remarks on which weights were used: wrapper, prefix, raw or averaged.

    `task` and `n_classes` describe the network in errors, `remedy` is the advice if nothing fits. Keys that
    start with one of `leaving` are ignored; `published` maps a key of the module to its name in files.
    BatchNorm's num_batches_tracked may be missing. Raises SourceError naming what does not fit, or two sets
    of weights that fit equally well; `module` is then unchanged.
    """
    own = module.state_dict()
    names = {published(key): value for key, value in own.items()}
    fits = [fit for tensors in checkpoint.mappings for fit in _fits(tensors, names, leaving)]
    exact = _distinct([fit for fit in fits if fit.is_exact])
    if not exact:
        best = max(fits, key=lambda fit: (fit.n_matched, -len(fit.unexpected)))
        raise SourceError(_misfit(best, names, checkpoint, module, task, n_classes, remedy))
    chosen, averaged = _choose(exact, checkpoint)
    state = {key: _as_float32(chosen.state[published(key)]) for key in own if published(key) in chosen.state}
    module.load_state_dict(_versioned(state, own), strict=False)  # False only for counters: see is_exact
    return _remarks(chosen, averaged, checkpoint)


@dataclass(frozen=True, slots=True)
class _Fit:
    """One mapping of a checkpoint, under one prefix, compared with a network's keys."""

    place: tuple[str, ...]
    prefix: str  # of the keys as saved, including wrappers
    state: dict[str, Tensor]  # by the network's keys, and any that it does not have
    n_matched: int  # keys whose name and shape agree
    missing: list[str]
    unexpected: list[str]
    misfits: list[str]
    outside: list[str]  # keys without the prefix
    is_average: bool

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unexpected or self.misfits)

    @property
    def where(self) -> str:
        """Where in the checkpoint it was found, for messages."""
        parts = []
        if self.place:
            parts.append(f"under {'.'.join(self.place)}")
        if self.prefix:
            parts.append(f"with the prefix {self.prefix}")
        return ", ".join(parts) or "as the file itself"


def _fits(tensors: Tensors, names: Mapping[str, Tensor], leaving: Sequence[str]) -> list[_Fit]:
    """The fit of a mapping under every prefix that makes some of the network's keys appear in it."""
    saved = {_unwrap(key, names): key for key in tensors.tensors}
    if len(saved) < len(tensors.tensors):  # wrapped and bare keys side by side
        saved = {key: key for key in tensors.tensors}
    required = [key for key in names if not key.endswith(_COUNTER)]
    anchors = {*required[:2], *required[-2:], max(required, key=len)}
    prefixes = {key.removesuffix(a) for key in saved for a in anchors if key == a or key.endswith(f".{a}")}
    return [_fit(tensors, saved, prefix, names, leaving) for prefix in sorted(prefixes | {""})]


def _fit(
    tensors: Tensors,
    saved: Mapping[str, str],
    prefix: str,
    names: Mapping[str, Tensor],
    leaving: Sequence[str],
) -> _Fit:
    under = {key.removeprefix(prefix): raw for key, raw in saved.items() if key.startswith(prefix)}
    counts = [key for key in saved if key.split(".")[-1] == _N_AVERAGED]
    under = {
        key: raw for key, raw in under.items() if not key.startswith(tuple(leaving)) and raw not in counts
    }
    state = {key: tensors.tensors[raw] for key, raw in under.items()}
    outside = [raw for key, raw in saved.items() if not key.startswith(prefix) and raw not in counts]
    misfits = [key for key in names if key in state and names[key].shape != state[key].shape]
    wrapped = (raw.removesuffix(key) for key, raw in under.items() if raw.endswith(key) and key in names)
    words = re.split(r"[._]", ".".join((*tensors.place, prefix)).lower())
    return _Fit(
        tensors.place,
        prefix=next(wrapped, prefix),
        state=state,
        n_matched=sum(key in state for key in names) - len(misfits),
        missing=[key for key in names if key not in state and not key.endswith(_COUNTER)],
        unexpected=[key for key in state if key not in names],
        misfits=misfits,
        outside=outside,
        is_average=bool(counts) or not _AVERAGES.isdisjoint(words),
    )


def _distinct(fits: list[_Fit]) -> list[_Fit]:
    """Drop fits whose tensors equal another's: some tools save one state dict under two names."""
    distinct: list[_Fit] = []
    for fit in fits:
        same = (
            fit.state.keys() == other.state.keys()
            and all(_equal(value, other.state[key]) for key, value in fit.state.items())
            for other in distinct
        )
        if not any(same):
            distinct.append(fit)
    return distinct


def _choose(exact: list[_Fit], checkpoint: Checkpoint) -> tuple[_Fit, list[_Fit]]:
    """The raw weights and the averaged ones beside them; if there are no raw ones, the averaged alone."""
    raw, averaged = [f for f in exact if not f.is_average], [f for f in exact if f.is_average]
    candidates = raw or averaged
    if len(candidates) > 1:
        raise SourceError(
            f"{checkpoint.path}: holds {len(candidates)} sets of weights that fit alike, "
            f"{' and '.join(fit.where for fit in candidates)}; save the one that you want: "
            f"{_saving(candidates[0], checkpoint)}"
        )
    return candidates[0], averaged if raw else []


def _remarks(fit: _Fit, averaged: list[_Fit], checkpoint: Checkpoint) -> tuple[str, ...]:
    """One line on which weights were used; empty if the file is a bare state dict."""
    parts = []
    if fit.is_average:
        parts.append("they are averaged weights")
    if averaged:
        parts.append(
            f"they are the raw ones, averaged ones are {averaged[0].where}: to have those, "
            f"{_saving(averaged[0], checkpoint)}"
        )
    if fit.outside:
        parts.append(f"{len(fit.outside)} other tensors ({_some(fit.outside)}) are left out")
    if not (parts or fit.place or fit.prefix):
        return ()
    return ("; ".join([f"{checkpoint.path}: its weights are taken {fit.where}", *parts]),)


def _saving(fit: _Fit, checkpoint: Checkpoint) -> str:
    """Python code that saves one set of weights alone."""
    nest = f"torch.load({checkpoint.path.name!r})" + "".join(f"[{key!r}]" for key in fit.place)
    if fit.prefix:
        nest = f"{{k: v for k, v in {nest}.items() if k.startswith({fit.prefix!r})}}"
    return f"`torch.save({nest}, 'weights.pth')`"


def _misfit(
    fit: _Fit,
    names: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    module: nn.Module,
    task: str,
    n_classes: int,
    remedy: str,
) -> str:
    """Why a file's best match does not fit, and the remedy."""
    where = str(checkpoint.path)
    for key in fit.misfits:
        if _is_class_count(names[key], fit.state[key], n_classes):
            return (
                f"{where}: {key} has {len(fit.state[key])} classes, {task} expects {n_classes}; give weights "
                f"trained for {task}, or export their network and give it as program:FILE.pt2"
            )
    problems = []
    if fit.missing:
        problems.append(f"{len(fit.missing)} missing keys ({_some(fit.missing)})")
    if fit.unexpected:
        problems.append(f"{len(fit.unexpected)} unexpected keys ({_some(fit.unexpected)})")
    if fit.misfits:
        shapes = [
            f"{key} {tuple(fit.state[key].shape)} instead of {tuple(names[key].shape)}" for key in fit.misfits
        ]
        problems.append(f"{len(fit.misfits)} tensors of another shape ({_some(shapes)})")
    seen_at = f" (seen {fit.where})" if fit.place or fit.prefix else ""
    if re.search(r"-\d{5}-of-\d{5}\.", checkpoint.path.name):
        remedy = "it is one part of several: put all of them into one file"
    return (
        f"{where}: does not fit {type(module).__name__} for {task}{seen_at}: {'; '.join(problems)}; {remedy}"
    )


def _versioned(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Attach the module's layout version to `state`, without which MNASNet loads nothing."""
    versioned = OrderedDict(state)
    versioned._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]
    return versioned


def _unwrap(key: str, names: Mapping[str, Tensor]) -> str:
    """A key without the names that wrappers insert, in torchvision's present spelling."""
    parts = key.split(".")
    bare = key if key in names else ".".join(part for part in parts if part not in _WRAPPERS)
    return _OLD_DENSENET.sub(r"\1\2", bare)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _as_float32(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def _is_class_count(own: Tensor, saved: Tensor, n_classes: int) -> bool:
    """Whether the shapes differ only in the first axis, ours being `n_classes`: another task's head."""
    return (
        own.ndim > 0
        and own.ndim == saved.ndim
        and own.shape[0] == n_classes
        and own.shape[1:] == saved.shape[1:]
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
