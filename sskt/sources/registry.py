"""The kinds of sources, and what can be done with a source's name.

A kind is one file here and one line in `_KINDS`; other code adds its own with `register`. The paper's two
sources are ResNet50 on ImageNet (torchvision IMAGENET1K_V1) and ResNet50 on Places365 (CSAILVision).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sskt.errors import SourceError
from sskt.sources.contract import NOTHING, Contract, sentence
from sskt.sources.declared import OPTION, Declared
from sskt.sources.exported import ProgramKind
from sskt.sources.hf import HfKind
from sskt.sources.kinetics import Kinetics
from sskt.sources.onnx import OnnxKind
from sskt.sources.open_output import open_output
from sskt.sources.places365 import Places365
from sskt.sources.probe import ProbeKind
from sskt.sources.run import RunKind
from sskt.sources.source import (
    EMBEDDED,
    MAP,
    POOLED,
    Kind,
    Source,
    SourceSpec,
    at_output,
    network_of,
    output_kind,
    output_of,
    split_output,
    weights_digest,
)
from sskt.sources.timm import TimmKind
from sskt.sources.torchvision import ImageNet

_KINDS: dict[str, Kind] = {
    kind.prefix: kind
    for kind in (
        ImageNet(),
        Places365(),
        Kinetics(),
        TimmKind(),
        HfKind(),
        OnnxKind(),
        ProgramKind(),
        RunKind(),
        ProbeKind(),
    )
}


def register(kind: Kind) -> None:
    """Add a kind of source. Raises SourceError if its prefix is taken."""
    if kind.prefix in _KINDS:
        raise SourceError(
            f"a kind of source {kind.prefix!r} is registered already, {type(_KINDS[kind.prefix]).__name__}; "
            f"choose another prefix"
        )
    _KINDS[kind.prefix] = kind


def kinds() -> list[Kind]:
    """Every kind of source, the paper's first."""
    return list(_KINDS.values())


def kind_of(name: str) -> Kind:
    """The kind of the source called `name`. Raises SourceError for an unknown one."""
    kind = _KINDS.get(network_of(name).partition(":")[0])
    if kind is None:
        raise _unknown(name)
    return kind


def parse_source(name: str) -> SourceSpec:
    """The source called `name`; no file is read except a run's config. Raises SourceError for an unknown
    name, or an output that sources of its kind do not have.
    """
    kind, (network, output) = kind_of(name), split_output(name)
    lacks_rest = not network.partition(":")[2] if kind.is_path else network.endswith(":")
    if lacks_rest:
        raise _unknown(name)
    if output_kind(output) not in kind.outputs:
        raise _lacks_output(network, output, kind)
    spec = kind.parse(network)
    return replace(spec, name=at_output(spec.name, output), output=output)


def named_sources() -> list[SourceSpec]:
    """Every source whose weights are published, the paper's two first."""
    specs = [spec for kind in kinds() for spec in kind.published()]
    return sorted(specs, key=lambda spec: ":" in spec.name)


def asked_of(name: str) -> tuple[str, ...]:
    """The sources whose logits a source reads: of a probe those that it names, of a network itself."""
    prefix, _, rest = name.partition(":")
    if prefix != ProbeKind.prefix:
        return (name,)
    return split_names(rest) if rest else ()


def split_names(text: str) -> tuple[str, ...]:
    """Split source names joined by "+". A plus may also be part of a file name, so it separates only if a
    source's name follows, and never within a probe's name.
    """
    first, *rest = text.split("+")
    names = [first]
    for part in rest:
        network = network_of(part)
        kind = _KINDS.get(network.partition(":")[0])
        of_probe = names[-1].startswith(f"{ProbeKind.prefix}:")
        if kind is not None and (":" in network or network in kind.forms) and not of_probe:
            names.append(part)
        else:
            names[-1] += f"+{part}"
    return tuple(names)


def source_slug(name: str) -> str:
    """A short name that is safe for file systems: "imagenet-resnet50", "program-places365_squeezenet"."""
    spec, kind = parse_source(name), kind_of(name)
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{spec.task}-{kind.slug(name)}")


def open_source(
    name: str, *, weights: Path | None = None, weights_dir: Path, told: Contract | None = None
) -> Source:
    """Open a source: `open_network`, and the output that its name asks for."""
    network = open_network(name, weights=weights, weights_dir=weights_dir, told=told)
    return open_output(network, output_of(name))


def open_network(
    name: str, *, weights: Path | None = None, weights_dir: Path, told: Contract | None = None
) -> Source:
    """Open the network of a source, of which `open_output` takes an output, with weights from `weights`, or
    else from `weights_dir`, downloaded and verified if they are missing. `told` is the contract that the user
    declares; it overrides what the source's file declares.

    Raises SourceError if the weights do not fit or cannot be read, or the contract does not fit them,
    DownloadError if they cannot be fetched.
    """
    spec, kind, network = parse_source(name), kind_of(name), network_of(name)
    if weights is not None and kind.is_path:
        raise SourceError(
            f"{spec.name} carries its own weights, {weights} was given beside it; leave that out"
        )
    source = kind.open(network, weights or kind.fetch_weights(network, weights_dir), told or NOTHING)
    if source.of_classes is None:
        _require_fitting(source.spec)
    if told is not None and told.prompts and source.of_classes is None:
        raise SourceError(f"{spec.name} reads no texts, and its contract has prompts; leave them out")
    if told is not None and source.declared is None:
        source = replace(source, declared=Declared(told, told, (f"{sentence(told)} ({OPTION})",)))
    return source


def reopen_source(
    name: str, weights: str | Path | None, *, weights_dir: Path, told: Contract | None = None
) -> Source:
    """Open the source that was recorded as `name` with the weights file `weights`; raises what `open_source`
    raises.
    """
    if not weights:
        return open_source(name, weights_dir=weights_dir, told=told)
    by_weights = kind_of(name).name_by_weights(weights)
    if by_weights is not None:
        return open_source(at_output(by_weights, output_of(name)), weights_dir=weights_dir, told=told)
    return open_source(name, weights=Path(weights), weights_dir=weights_dir, told=told)


def weights_file(name: str, weights: Path | None, weights_dir: Path) -> Path:
    """The path of a named source's weights: `weights`, or else what its kind provides, downloaded to
    `weights_dir` and verified. Raises SourceError if none are published, DownloadError if the download fails.
    """
    return weights if weights is not None else kind_of(name).fetch_weights(name, weights_dir)


def published_digest(name: str, weights: Path) -> bool:
    """Whether a file holds a source's published weights; False if their checksum is unknown."""
    prefix = parse_source(name).sha256_prefix
    return prefix is not None and weights_digest(weights).startswith(prefix)


def _lacks_output(network: str, output: str, kind: Kind) -> SourceError:
    asked = f"{network} is asked for its output {output}"
    if output == POOLED and EMBEDDED in kind.outputs:
        return SourceError(
            f"{asked}, and a program's layers cannot be told apart; export the network without its "
            f"classifier, and name that {at_output(kind.forms[0], EMBEDDED)}"
        )
    if output == EMBEDDED and POOLED in kind.outputs:
        return SourceError(f"{asked}, which programs have; its features are {at_output(network, POOLED)}")
    if output_kind(output) == MAP and EMBEDDED in kind.outputs:
        return SourceError(f"{asked}, and a program's layers cannot be told apart; name a run or a ResNet")
    return SourceError(f"{asked}, expected {' or '.join(kind.outputs)}")


def _unknown(name: str) -> SourceError:
    forms = sorted((form for kind in kinds() for form in kind.forms), key=lambda form: ":" in form)
    with_output = " (an output may follow: @pooled, @embedding, @layer4)" if "@" in name else ""
    return SourceError(
        f"source {name!r} is unknown, expected {', '.join(forms[:-1])} or {forms[-1]}{with_output}; "
        f"sskt sources lists them"
    )


def _require_fitting(spec: SourceSpec) -> None:
    """Raise SourceError for a contract with another number of classes than the network returns."""
    classes = spec.contract.classes
    if isinstance(classes, tuple) and len(classes) != spec.n_classes:
        raise SourceError(
            f"{spec.name}: its contract names {len(classes)} classes ({classes[0]}, ...) and it returns "
            f"{spec.n_classes} numbers; correct the names, or leave them out"
        )
