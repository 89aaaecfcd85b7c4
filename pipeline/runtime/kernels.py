"""Test a network's kernels before it is trained or scored (`sskt.kernels`), and report which of its layers
must run in plain fp32 instead.

Results are cached per machine, torch version, thread count and shape, so each shape is tested once. Shapes
whose low-precision kernels can crash the process are not tried: plain fp32 is about as fast for them.
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

import torch
from torch import nn

from cache import CacheError, Location, read_file
from pipeline.runtime.results import write_result
from sskt.errors import RunError
from sskt.kernels import TOLERANCES, Layer, errors, layers_of

_MAX_NAMED = 3  # shapes named in a message
Result = dict[str, float]  # see `sskt.kernels.errors`; empty if the kernels failed or were not tried


@dataclass(frozen=True, slots=True)
class How:
    """How the layers are computed."""

    compute: str  # one of sskt.sources.forward.DTYPES
    channels_last: bool
    device: torch.device
    deterministic: bool = False  # the caller has set torch to it

    @property
    def is_plain(self) -> bool:
        """Whether there is no fast kernel to test."""
        return self.compute == "fp32" and not self.channels_last


def wrong_layers(
    networks: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    how: How,
    *,
    learns: bool,
    plain: tuple[str, ...] = (),
    kept_in: Location,
) -> dict[Layer, tuple[list[str], Result]]:
    """The layers whose kernels are wrong on inputs of `shape`, with their modules' names and errors.

    `networks` maps a prefix of module names to a network; modules in `plain` already run in plain fp32.
    `learns`: test gradients too. Results are read from and added to `kept_in`. Raises RunError if plain fp32
    is wrong too.
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
    results = _read(kept_in)
    untested = [layer for layer in layers if keys[layer] not in results]
    if untested:
        new = {keys[layer]: result for layer, result in zip(untested, _test(untested, how), strict=True)}
        results = _read(kept_in) | new  # another process may have added to it
        _write(kept_in, results)
    wrong = {
        layer: (names, results[keys[layer]])
        for layer, names in layers.items()
        if _is_wrong(results[keys[layer]], how.compute)
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
    """Describe the wrong layers in one sentence, without its full stop."""
    parts = []
    for layer, (names, result) in list(wrong.items())[:_MAX_NAMED]:
        name = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        parts.append(f"{name} ({layer}): {_worst(result)}")
    if len(wrong) > _MAX_NAMED:
        parts.append(f"and {len(wrong) - _MAX_NAMED} other shapes")
    in_layout = f"{how.compute}{' with channels last' if how.channels_last else ''}"
    n = sum(len(names) for names, _ in wrong.values())
    return f"kernels for {in_layout} are wrong on this machine in {n} layer(s), {'; '.join(parts)}"


def _worst(result: Result) -> str:
    if not result:
        return "they fail, or are known to end the process"
    name = max((name for name in result if name != "plain fp32"), key=result.__getitem__)
    return f"{name} off by {result[name]:.0%}" if result[name] < 10 else f"{name} off by more than 1000%"


def _is_wrong(result: Result, compute: str) -> bool:
    return not result or any(
        error > TOLERANCES[compute] for name, error in result.items() if name != "plain fp32"
    )


def _test(layers: list[Layer], how: How) -> list[Result]:
    """Each layer's errors; empty for layers that are not tried."""
    on_cpu = how.device.type == "cpu" and how.compute != "fp32"
    results = [{} if on_cpu and layer.may_end_the_process else _errors(layer, how) for layer in layers]
    if how.device.type == "cuda":
        torch.cuda.empty_cache()  # DALI cannot use memory that torch caches
    return results


def _errors(layer: Layer, how: How) -> Result:
    """Errors of one layer, on fewer samples if a plain and a fast layer do not fit in memory together; empty
    if there is no such kernel.
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


def _machine(device: torch.device) -> list[object]:
    """Everything but the layer and its precision that decides which kernels are chosen."""
    chosen = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("ONEDNN_", "DNNL_", "CUDNN_"))}
    about: list[object] = [torch.__version__, torch.version.git_version, chosen]
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
    """The CPU's model and feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.processor(), platform.machine()]
    return [next((line for line in lines if line.startswith(word)), "") for word in ("model name", "flags")]


def _read(path: Location) -> dict[str, Result]:
    """Earlier results; none if the file is absent or damaged."""
    try:
        stored = json.loads(read_file(path))
        return {str(key): {str(k): float(v) for k, v in result.items()} for key, result in stored.items()}
    except (CacheError, OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Location, results: Mapping[str, Result]) -> None:
    """Write atomically; if that fails, the tests simply run again next time."""
    with suppress(CacheError, RunError):
        write_result(path, (json.dumps(results, indent=1) + "\n").encode())
