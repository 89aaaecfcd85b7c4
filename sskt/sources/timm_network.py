"""A network of timm with its weights, and what timm records for its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from sskt.checkpoints import Checkpoint, read_checkpoint
from sskt.errors import SourceError
from sskt.extras import is_installed, library
from sskt.sources.output_rows import OwnNetwork
from sskt.students import Features
from sskt.weights import load_into

_PROJECTIONS = range(
    1, 2000
)  # widths of CLIP's image embeddings in timm; of labels it has 1,000, or over 10,000
_IMAGENET = 1000


@dataclass(frozen=True, slots=True)
class TimmConfig:
    """What timm's pretrained_cfg records of one name."""

    full_name: str  # with its tag: "resnet50.a1_in1k"
    fields: Mapping[str, Any]

    @property
    def n_classes(self) -> int:
        """Outputs of the published weights; 0 if they have no classifier."""
        return int(self.fields.get("num_classes", _IMAGENET))

    @property
    def returns_logits(self) -> bool:
        """Whether the published weights end in a classifier; those of CLIP end in a projection."""
        return self.n_classes == _IMAGENET or self.n_classes not in (0, *_PROJECTIONS)

    @property
    def size(self) -> int | None:
        """The side of the images it was trained on, in pixels."""
        shape = self.fields.get("input_size") or ()
        return int(shape[-1]) if shape else None

    @property
    def is_of_one_size(self) -> bool:
        """Whether it takes images of that size only."""
        return bool(self.fields.get("fixed_input_size"))

    @property
    def repo(self) -> str:
        """The hub's repository of the published weights; "" if there is none."""
        repo = str(self.fields.get("hf_hub_id") or "")
        return f"{repo}{self.full_name}" if repo.endswith("/") else repo

    @property
    def file(self) -> str:
        """The file in it, if it has an unusual name."""
        return str(self.fields.get("hf_hub_filename") or "")

    @property
    def url(self) -> str:
        """Where else the weights were published; "" if nowhere."""
        return str(self.fields.get("url") or "")


@overload
def find_config(named: str, source: str) -> TimmConfig: ...
@overload
def find_config(named: str, source: str, *, quietly: Literal[True]) -> TimmConfig | None: ...
def find_config(named: str, source: str, *, quietly: bool = False) -> TimmConfig | None:
    """What timm records for the network `named`, of which the tag may be left out.

    Raises SourceError for an unknown name, MissingExtraError without timm; `quietly` returns None instead.
    """
    if quietly and not is_installed("timm"):
        return None
    models = library("timm", extra="timm", needed_by=source, module="timm.models")
    architecture, _, tag = named.partition(".")
    if not models.is_model(architecture):
        if quietly:
            return None
        known = models.list_models()
        near = (
            difflib.get_close_matches(architecture, known, n=3) or [m for m in known if "resnet50" in m][:2]
        )
        raise SourceError(
            f"source {source!r}: timm has no network {architecture!r}, did you mean {' or '.join(near)}; "
            f"timm.list_models() lists all"
        )
    tags = {full.partition(".")[2]: full for full in models.list_pretrained(f"{architecture}.*")}
    if tag and tag not in tags:
        if quietly:
            return None
        near = difflib.get_close_matches(tag, tags, n=3) or sorted(tags)[:3]
        named_so = f"did you mean {' or '.join(tags[each] for each in near)}" if near else "it has none"
        raise SourceError(
            f"source {source!r}: timm has no weights {tag!r} of {architecture}, {named_so}; or leave the tag "
            f"out"
        )
    config = models.get_pretrained_cfg(named, allow_unregistered=True)
    fields = {} if config is None else config.to_dict()
    tag = str(fields.get("tag") or "")
    return TimmConfig(f"{architecture}.{tag}" if tag else architecture, fields)


def torch_hub_file(url: str) -> Path | None:
    """Where torch.hub keeps the download of `url`; None if it was not downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return path if url and path.is_file() else None


class TimmNetwork(OwnNetwork):
    """Normalised images (N, 3, H, W) to logits (N, n_numbers), or to the embedding of a network without a
    classifier.
    """

    def __init__(self, network: Any, size: int, *, n_classes: int, returns_logits: bool) -> None:
        """`network` is timm's, `size` the side of images that it takes."""
        super().__init__()
        self.network, self._size = network, size
        self.returns_logits = returns_logits
        layers = [entry["module"] for entry in getattr(network, "feature_info", None) or ()]
        self._layers = [i for i, layer in enumerate(layers) if re.fullmatch(r"layer\d+", str(layer))]
        self.block_channels = tuple(network.feature_info[i]["num_chs"] for i in self._layers)
        self.n_numbers = n_classes or self.n_features

    @cached_property
    def n_features(self) -> int:  # type: ignore[override]
        """Numbers of the pooled feature."""
        with torch.inference_mode():
            features, _ = self.features_and_logits(torch.zeros(1, 3, self._size, self._size))
        return int(features.pooled.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """As timm computes it."""
        z: Tensor = self.network(x)
        return z

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """See `OwnNetwork`; blocks are the layers of a ResNet, other networks have none."""
        if self._layers:
            last, maps = self.network.forward_intermediates(x, indices=self._layers)
        else:
            last, maps = self.network.forward_features(x), []
        pooled = self.network.forward_head(last, pre_logits=True)
        return Features(maps, pooled), self.network.forward_head(last)


def load_network(config: TimmConfig, weights: Path, source: str) -> tuple[TimmNetwork, tuple[str, ...]]:
    """The network with the weights in a file, and remarks about them. Its classifier is as wide as the
    file's.

    Raises SourceError for a file that cannot be read, or does not fit.
    """
    checkpoint = read_checkpoint(weights)  # first, so that a wrong path is reported at once
    n_classes = _n_classes(checkpoint, config)
    timm = library("timm", extra="timm", needed_by=source)
    network = timm.create_model(config.full_name, pretrained=False, num_classes=n_classes)
    notes = load_into(
        network,
        checkpoint,
        task=source,
        n_classes=n_classes,
        remedy="name the network of timm that the weights belong to, or save its state_dict() with timm",
    )
    network.eval().requires_grad_(False)
    if n_classes != config.n_classes:
        has = f"a classifier of {n_classes}" if n_classes else "no classifier"
        notes = (*notes, f"{weights}: has {has}, timm's own weights have {config.n_classes} outputs")
    is_published_head = n_classes == config.n_classes
    returns_logits = config.returns_logits if is_published_head else n_classes > 0
    own = TimmNetwork(network, config.size or 224, n_classes=n_classes, returns_logits=returns_logits)
    return own.eval(), notes


def _n_classes(checkpoint: Checkpoint, config: TimmConfig) -> int:
    """Outputs of the classifier in a file; 0 if it has none."""
    classifier = config.fields.get("classifier") or "fc"
    key = f"{classifier if isinstance(classifier, str) else classifier[0]}.weight"
    widths = {
        int(value.shape[0])
        for tensors in checkpoint.mappings
        for name, value in tensors.tensors.items()
        if value.ndim > 1 and (name == key or name.endswith(f".{key}"))
    }
    if len(widths) > 1:  # the widest mistake is named by `load_into`
        return config.n_classes
    return widths.pop() if widths else 0
