"""Test the kernels of a network before it is trained or scored (`sskt.kernels`), and say which of its layers
shall run in plain fp32 instead.

Results are kept by machine, torch, threads and shape, so that a shape is tested once. Shapes of a kind whose
low-precision kernels can end the process are not tried: plain fp32 is about as fast for them.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache import write_durably
from sskt.errors import RunError
from sskt.kernels import TOLERANCES, Layer, errors, layers_of

_NAMED = 3  # shapes in a message
Result = dict[str, float]  # see `sskt.kernels.errors`; empty where the kernels failed or were not tried


@dataclass(frozen=True, slots=True)
class How:
    """How the layers are computed."""

    compute: str  # one of sskt.sources.forward.DTYPES
    channels_last: bool
    device: torch.device
    deterministic: bool = False  # torch is set to it by the caller

    @property
    def is_plain(self) -> bool:
        """Whether there is no fast kernel to be tested."""
        return self.compute == "fp32" and not self.channels_last


def wrong_layers(
    networks: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    how: How,
    *,
    learns: bool,
    plain: tuple[str, ...] = (),
    kept_in: Path,
) -> dict[Layer, tuple[list[str], Result]]:
    """The layers whose kernels are wrong on inputs of `shape`, with their modules' names and what was found.

    `networks` by the prefix of their modules' names; modules in `plain` run plainly already. `learns`: with
    gradients. Results are read from `kept_in` and added to it. Raises RunError where plain fp32 is wrong too.
    """
    if how.is_plain:
        return {}
    layers: dict[Layer, list[str]] = {}
    for prefix, network in networks.items():
        for layer, names in layers_of(network, shape, learns=learns).items():
            fast = [name for name in (f"{prefix}.{name}" for name in names) if name not in plain]
            if fast:
                layers.setdefault(layer, []).extend(fast)
    keys = {layer: _key(layer, how) for layer in layers}
    kept = _read(kept_in)
    new = [layer for layer in layers if keys[layer] not in kept]
    if new:
        found = {keys[layer]: result for layer, result in zip(new, _tested(new, how), strict=True)}
        kept = _read(kept_in) | found  # another process may have added to it
        _write(kept_in, kept)
    wrong = {
        layer: (names, kept[keys[layer]])
        for layer, names in layers.items()
        if _is_wrong(kept[keys[layer]], how.compute)
    }
    for layer, (names, result) in wrong.items():
        if result.get("plain fp32", 0.0) > TOLERANCES["fp32"]:
            raise RunError(
                f"{names[0]} ({layer}): plain fp32 is off by {result['plain fp32']:.2g} of float64 here, "
                f"expected under {TOLERANCES['fp32']:g}; nothing that this machine computes can be trusted, "
                f"use another version of torch"
            )
    return wrong


def sentence(wrong: Mapping[Layer, tuple[list[str], Result]], how: How) -> str:
    """What was found, in one sentence without an end."""
    said = []
    for layer, (names, result) in list(wrong.items())[:_NAMED]:
        name = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        said.append(f"{name} ({layer}): {_worst(result)}")
    if len(wrong) > _NAMED:
        said.append(f"and {len(wrong) - _NAMED} other shapes")
    in_layout = f"{how.compute}{' with channels last' if how.channels_last else ''}"
    n = sum(len(names) for names, _ in wrong.values())
    return f"kernels for {in_layout} are wrong on this machine in {n} layer(s), {'; '.join(said)}"


def _worst(result: Result) -> str:
    if not result:
        return "they fail, or are known to end the process"
    name = max((name for name in result if name != "plain fp32"), key=result.__getitem__)
    return f"{name} off by {result[name]:.0%}" if result[name] < 10 else f"{name} off by more than 1000%"


def _is_wrong(result: Result, compute: str) -> bool:
    return not result or any(
        error > TOLERANCES[compute] for name, error in result.items() if name != "plain fp32"
    )


def _tested(layers: list[Layer], how: How) -> list[Result]:
    """Each layer's errors; empty for those that are not tried."""
    on_cpu = how.device.type == "cpu" and how.compute != "fp32"
    found = [{} if on_cpu and layer.may_end_the_process else _errors(layer, how) for layer in layers]
    if how.device.type == "cuda":
        torch.cuda.empty_cache()  # DALI cannot use what torch keeps
    return found


def _errors(layer: Layer, how: How) -> Result:
    """With fewer samples where the device has no room for a plain and a fast layer side by side; empty where
    there is no such kernel.
    """
    try:
        return errors(layer, how.compute, channels_last=how.channels_last, device=how.device)
    except torch.OutOfMemoryError:
        if layer.input[0] == 1:
            raise
    except RuntimeError:
        return {}
    return _errors(replace(layer, input=(layer.input[0] // 2, *layer.input[1:])), how)


def _key(layer: Layer, how: How) -> str:
    about = [_machine(how.device), asdict(layer), how.compute, how.channels_last, how.deterministic]
    return sha256(json.dumps(about).encode()).hexdigest()[:32]


def _machine(device: torch.device) -> list[Any]:
    """What decides which kernels are chosen, but for the layer and its precision."""
    chosen = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("ONEDNN_", "DNNL_", "CUDNN_"))}
    about: list[Any] = [torch.__version__, torch.version.git_version, chosen]
    if device.type == "cuda":
        driver = Path("/proc/driver/nvidia/version")
        return [
            *about,
            torch.cuda.get_device_name(device),
            torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            driver.read_text(encoding="utf-8").splitlines()[0] if driver.is_file() else "",
        ]
    return [*about, _cpu(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


def _cpu() -> list[str]:
    """Its model and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.processor(), platform.machine()]
    return [next((line for line in lines if line.startswith(word)), "") for word in ("model name", "flags")]


def _read(path: Path) -> dict[str, Result]:
    """What was found before; nothing where the file is absent or damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): {str(k): float(v) for k, v in result.items()} for key, result in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, results: Mapping[str, Result]) -> None:
    """Whole or not at all; where nothing can be written the test is made again next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, (json.dumps(results, indent=1) + "\n").encode())
