"""imagenet: and imagenet:ARCHITECTURE, from torchvision; and what all kinds with published weights share."""

from __future__ import annotations

import difflib
import re
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from sskt.checkpoints import Checkpoint, read_checkpoint
from sskt.download import fetch, fetch_recorded
from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.contract import LOGITS, Contract
from sskt.sources.source import (
    LOGITS_OUTPUT,
    MAP,
    POOLED,
    Kind,
    Source,
    SourceSpec,
    network_of,
    weights_digest,
)
from sskt.weights import load_into

# torchvision's weights for these two expect a network that first undoes our normalisation
_OWN_NORMALISATION = ("googlenet", "inception_v3")


class Published(Kind):
    """Known architectures with a head for the classes of one task, and weights that anyone can download.

    `prefix` alone means `default_architecture`, the paper's.
    """

    n_classes: int
    default_architecture: str
    outputs = (LOGITS_OUTPUT, POOLED, MAP)
    publisher: str  # of the weights, for a listing
    reads_clips = False

    @abstractmethod
    def architectures(self) -> list[str]:
        """Every architecture that can be named, with or without published weights."""

    @abstractmethod
    def network(self, architecture: str) -> nn.Module:
        """The untrained network, in the form that published weights expect."""

    def entry(self, architecture: str) -> Any:  # noqa: ARG002
        """Torchvision's own record of the weights; None if it has none."""
        return None

    def url(self, architecture: str) -> str | None:
        """The URL of the published weights; None if there are none."""
        entry = self.entry(architecture)
        return None if entry is None else str(entry.url)

    def normalisation(self, architecture: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of pixels in 0..1: ImageNet's, unless the network was trained with others."""
        entry = self.entry(architecture)
        if entry is None:
            return IMAGENET_MEAN, IMAGENET_STD
        transforms = entry.transforms()
        return tuple(transforms.mean), tuple(transforms.std)

    def load(self, network: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Copy the weights into `network`; see `sskt.weights.load_into`."""
        return load_into(network, checkpoint, task=self.prefix, n_classes=self.n_classes)

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`."""
        architecture = network_of(name).partition(":")[2] or self.default_architecture
        known = self.architectures()
        if architecture not in known:
            near = difflib.get_close_matches(architecture, known, n=3) or known[:2]
            raise SourceError(
                f"source {name!r}: there is no architecture {architecture!r}, did you mean "
                f"{' or '.join(near)}; sskt sources lists them, and any other network can be exported and "
                f"given as program:FILE.pt2"
            )
        url = self.url(architecture)
        match = re.search(r"-([0-9a-f]{8,})\.pth$", url) if url else None
        sha256_prefix = match[1] if match else None
        mean, std = self.normalisation(architecture)
        return SourceSpec(
            name=self.prefix if architecture == self.default_architecture else self.name_at(architecture),
            task=self.prefix,
            architecture=architecture,
            n_classes=self.n_classes,
            mean=mean,
            std=std,
            url=url,
            sha256_prefix=sha256_prefix,
            weights_note=self._note(url, sha256_prefix),
            reads_clips=self.reads_clips,
            contract=self._contract(architecture, mean, std),
        )

    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """See `Kind.open`."""
        spec = self.parse(name).under(told)
        checkpoint = read_checkpoint(weights)  # first, so that a wrong path is reported at once
        network = self.network(spec.architecture)
        notes = self.load(network, checkpoint)
        network.eval().requires_grad_(False)
        return Source(spec, network, weights_digest(weights), weights, notes=notes)

    def weights_path(self, name: str, weights_dir: Path) -> Path:
        """See `Kind.weights_path`."""
        return weights_dir / (self.parse(name).url or name).rpartition("/")[2]

    def fetch_weights(self, name: str, weights_dir: Path) -> Path:
        """See `Kind.fetch_weights`; verified, so that every use gets the same bytes."""
        spec, path = self.parse(name), self.weights_path(name, weights_dir)
        if spec.url is None:
            raise SourceError(
                f"{spec.name}: no weights are published; pass a file with --weights {spec.name}=PATH"
            )
        if spec.sha256_prefix is None:
            return fetch_recorded(spec.url, path)
        return fetch(spec.url, path, sha256_prefix=spec.sha256_prefix)

    def published(self) -> list[SourceSpec]:
        """See `Kind.published`."""
        return [self.parse(self.name_at(a)) for a in self.architectures() if self.url(a)]

    def _note(self, url: str | None, sha256_prefix: str | None) -> str:
        if url is None:
            return "none published: pass --weights"
        if sha256_prefix is None:
            return f"{self.publisher}; no checksum published: recorded at the first download"
        return f"{self.publisher}, sha256 begins {sha256_prefix}"

    def _contract(self, architecture: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Contract:
        """What is known about the weights. Size and interpolation are recorded under `crop` only: a source
        sees the student's pixels through f_s.
        """
        contract, entry = Contract(mean, std, (0.0, 1.0), "rgb", returns=LOGITS), self.entry(architecture)
        if entry is None:
            return contract
        t = entry.transforms()
        crop = f"resize {_sides(t.resize_size)}, crop {_sides(t.crop_size)}, {t.interpolation.value}"
        return replace(contract, crop=crop, classes=tuple(entry.meta["categories"]))


class ImageNet(Published):
    """Classifiers of ImageNet's 1,000 classes."""

    prefix, forms = "imagenet", ("imagenet", "imagenet:ARCHITECTURE")
    n_classes, default_architecture = 1000, "resnet50"
    publisher = "torchvision IMAGENET1K_V1"

    def architectures(self) -> list[str]:
        """Every torchvision classifier."""
        return image_architectures()

    def entry(self, architecture: str) -> Any:
        """IMAGENET1K_V1, the weights of the paper's networks."""
        return getattr(torchvision.models.get_model_weights(architecture), "IMAGENET1K_V1", None)

    def network(self, architecture: str) -> nn.Module:
        """See `Published.network`."""
        return image_network(architecture, self.n_classes, transform_input=True)


def image_architectures() -> list[str]:
    """Torchvision's image classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def image_network(architecture: str, n_classes: int, *, transform_input: bool) -> nn.Module:
    """A torchvision classifier. With `transform_input`, GoogLeNet and Inception undo ImageNet's
    normalisation, as torchvision's own weights for them expect.
    """
    options: dict[str, bool] = {}
    if architecture in _OWN_NORMALISATION:
        options = {"transform_input": transform_input, "aux_logits": True, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(
        architecture, weights=None, num_classes=n_classes, **options
    )
    return network


def _sides(sizes: list[int]) -> str:
    return "x".join(map(str, dict.fromkeys(sizes)))
