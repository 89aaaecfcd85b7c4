"""--pretrained: the file of a student's published weights. timm's are taken from a cache; torchvision's from
where sources have theirs or from torch's cache, and are else downloaded, as for a source.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cache import Location
from pipeline.runtime import Paths, coerce
from sskt.download import fetch
from sskt.errors import RunError
from sskt.sources import kind_of, parse_source
from sskt.students import KINETICS_BACKBONES, TIMM, require_built_by_name, timm_weights

# our names of torchvision's networks for images, and its own
_TORCHVISION = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "densenet121", "alexnet")},
    "vgg16": "vgg16_bn",
}


def first_weights(
    model: str | nn.Module, paths: Paths, finetune_from: Location | None, pretrained: bool
) -> Path | None:
    """The file of the weights that a student starts from, here; None for fresh ones, or its own."""
    given = None if finetune_from is None else paths.local(finetune_from)
    return published_weights(model, paths, given=given) if coerce.flag(pretrained, "pretrained") else given


def published_weights(model: str | nn.Module, paths: Paths, *, given: Path | None) -> Path:
    """The file of the published weights of the student `model`. Raises RunError if there are none, or `given`
    is another file that it should start from; SourceError or DownloadError if they cannot be had.
    """
    if given is not None:
        raise RunError(f"--pretrained and --finetune-from {given} both say what to start from; leave one out")
    if isinstance(model, nn.Module):
        raise RunError(
            "--pretrained is for a student by name; your own module keeps its weights, leave it out"
        )
    require_built_by_name(model)
    if model.startswith(TIMM):
        return timm_weights(model.removeprefix(TIMM))
    kind = "kinetics" if model in KINETICS_BACKBONES else "imagenet"
    source = f"{kind}:{_TORCHVISION.get(model, model)}"
    is_published = model in _TORCHVISION or model in KINETICS_BACKBONES
    spec = parse_source(source) if is_published else None
    if spec is None or spec.url is None:
        raise RunError(
            f"--pretrained: no weights are published for {model}; give a file with --finetune-from, or "
            f"choose one of {', '.join(_TORCHVISION)}, or timm:NAME"
        )
    cached = Path(torch.hub.get_dir()) / "checkpoints" / spec.url.rpartition("/")[2]
    if cached.is_file() and not kind_of(source).weights_path(source, paths.weights_dir).is_file():
        return fetch(spec.url, cached, sha256_prefix=spec.sha256_prefix)  # which compares the digest
    return kind_of(source).fetch_weights(source, paths.weights_dir)
