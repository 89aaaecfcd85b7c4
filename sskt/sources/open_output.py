"""Take an output of an opened source: its logits, its pooled features, or a program's embedding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sskt.errors import SourceError
from sskt.sources.contract import EMBEDDING
from sskt.sources.outputs import EMBEDDED, LOGITS_OUTPUT, POOLED, at_output
from sskt.sources.source import Source

_LARGEST = torch.finfo(torch.float16).max  # of a feature: what a stored row can hold


def open_output(source: Source, output: str) -> Source:
    """`source`, whose spec asks for logits, with a module that computes `output`, one of its kind's.

    Raises SourceError if its contract says that it returns something else, or it has no such output.
    """
    if output == LOGITS_OUTPUT:
        _require_no_embedding(source)
        return source
    changed = _embedding(source) if output == EMBEDDED else _pooled(source)
    spec = replace(changed.spec, name=at_output(source.spec.name, output), output=output)
    return replace(changed, spec=spec, outputs=(output,), largest_logit=_LARGEST)


def _require_no_embedding(source: Source) -> None:
    name = source.spec.name
    if source.spec.contract.returns == EMBEDDING:
        features = at_output(name, EMBEDDED if source.is_traced else POOLED)
        raise SourceError(
            f"{name} is declared to return an embedding, and logits are asked of it; name it {features}, or "
            f"export the network with its classifier"
        )


def _embedding(source: Source) -> Source:
    """A program whose rows are taken as they are."""
    spec = source.spec
    if spec.contract.returns not in (None, EMBEDDING):
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


def _pooled(source: Source) -> Source:
    """The network with its last linear layer left out: what that would have read is what it returns."""
    found = _last_linear(source.module, source.spec.n_classes)
    if found is None:
        raise SourceError(
            f"{source.spec.name} has no linear layer that gives its {source.spec.n_classes} classes; export "
            f"the network without its classifier, as program:FILE.pt2@{EMBEDDED}"
        )
    name, n_features = found
    source.module.set_submodule(name, nn.Identity())
    return replace(source, spec=replace(source.spec, n_classes=n_features))


def _last_linear(module: nn.Module, n_classes: int) -> tuple[str, int] | None:
    """The name and the input width of the last layer that gives `n_classes` numbers from a vector at each
    place; the last, since GoogLeNet and Inception have auxiliary ones before it.
    """
    for name, layer in reversed(list(module.named_modules())):
        if isinstance(layer, nn.Linear) and layer.out_features == n_classes:
            return name, layer.in_features
        # SqueezeNet's: a 1x1 convolution, whose outputs are averaged over the image
        if isinstance(layer, nn.Conv2d) and (layer.out_channels, layer.kernel_size) == (n_classes, (1, 1)):
            return name, layer.in_channels
    return None
