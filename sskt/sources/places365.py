"""places365: and places365:ARCHITECTURE, the networks that CSAILVision trained on Places365."""

from __future__ import annotations

from torch import nn

from sskt.sources.source import SourceSpec
from sskt.sources.torchvision import Published, image_architectures, image_network

_URL = "http://places2.csail.mit.edu/models_places365/{}_places365.pth.tar"
_PUBLISHED = ("alexnet", "resnet18", "resnet50", "densenet161")


class Places365(Published):
    """Classifiers of Places365's 365 scenes."""

    prefix, forms = "places365", ("places365", "places365:ARCHITECTURE")
    n_classes, default_architecture = 365, "resnet50"
    publisher = "CSAILVision"

    def architectures(self) -> list[str]:
        """Every torchvision classifier; those without published weights can be given a file."""
        return image_architectures()

    def url(self, architecture: str) -> str | None:
        """See `Published.url`."""
        return _URL.format(architecture) if architecture in _PUBLISHED else None

    def published(self) -> list[SourceSpec]:
        """See `Kind.published`; in CSAILVision's order."""
        return [self.parse(self.name_at(a)) for a in _PUBLISHED]

    def network(self, architecture: str) -> nn.Module:
        """See `Published.network`."""
        return image_network(architecture, self.n_classes, transform_input=False)
