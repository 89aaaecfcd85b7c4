"""Take an output of an opened source: its logits, its pooled feature, a layer's maps, or a program's
embedding; or several of them, from one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sskt.errors import SourceError
from sskt.sources.contract import EMBEDDING
from sskt.sources.output_rows import OutputRows
from sskt.sources.source import EMBEDDED, LOGITS_OUTPUT, POOLED, Source, at_output

_LARGEST = torch.finfo(torch.float16).max  # of a feature: what a stored row can hold


def open_output(source: Source, output: str) -> Source:
    """`source`, whose spec asks for logits, with a module that computes `output`, one of its kind's.

    Raises SourceError if its contract says that it returns something else, or it has no such output.
    """
    if output == LOGITS_OUTPUT:
        _require_no_embedding(source)
        return source
    if output == EMBEDDED:
        changed = _embedding(source)
    else:
        module = OutputRows(source.module, [output], source.spec.n_classes, source.spec.name)
        changed = replace(source, module=module, spec=replace(source.spec, n_classes=module.widths[0]))
    spec = replace(changed.spec, name=at_output(source.spec.name, output), output=output)
    return replace(changed, spec=spec, outputs=(output,), largest_logit=_LARGEST, network=source)


def open_outputs(source: Source, outputs: Sequence[str]) -> Source:
    """A source whose rows are those of several `outputs` of a network side by side, computed by one forward.

    `source` is the network, or any output of it. One output is that output alone.
    """
    network = source.network or source
    parts = tuple(open_output(network, output) for output in outputs)
    if len(parts) == 1:
        return parts[0]
    first = parts[0].spec
    spec = replace(network.spec, output=first.output, n_classes=sum(part.spec.n_classes for part in parts))
    module = OutputRows(network.module, outputs, network.spec.n_classes, network.spec.name)
    return replace(network, spec=spec, module=module, outputs=tuple(outputs), parts=parts, network=network)


def _require_no_embedding(source: Source) -> None:
    name = source.spec.name
    if source.spec.contract.returns == EMBEDDING and source.of_classes is None:
        features = at_output(name, EMBEDDED if source.is_traced or EMBEDDED in source.outputs else POOLED)
        raise SourceError(
            f"{name} is declared to return an embedding, and logits are asked of it; name it {features}, or "
            f"use the network with its classifier"
        )


def _embedding(source: Source) -> Source:
    """A program whose rows are taken as they are."""
    spec = source.spec
    if spec.contract.returns not in (None, EMBEDDING) and source.of_classes is None:
        raise SourceError(
            f"{spec.name} is declared to return {spec.contract.returns}, and an embedding is asked of it; "
            f"leave out @{EMBEDDED}, or declare returns={EMBEDDING}"
        )
    declared = source.declared
    if declared is not None and spec.contract.returns is None:
        contract = replace(declared.contract, returns=EMBEDDING)
        statement = f"returns {EMBEDDING} (@{EMBEDDED})"
        declared = replace(declared, contract=contract, statements=(*declared.statements, statement))
    spec = replace(spec, contract=replace(spec.contract, returns=EMBEDDING))
    return replace(source, spec=spec, declared=declared)
