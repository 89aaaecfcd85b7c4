"""What is computed of a network of Hugging Face Transformers: logits, pooled features, image embeddings."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sskt.errors import SourceError
from sskt.sources.output_rows import OwnNetwork
from sskt.students import Features


class HfNetwork(OwnNetwork):
    """Normalised images (N, 3, H, W) to rows (N, n_numbers)."""

    block_channels = ()
    n_numbers = 0  # set by `load_network`, which tries the network

    def __init__(self, model: Any, size_px: int) -> None:
        super().__init__()
        self.model, self.size_px = model, size_px

    @cached_property
    def n_features(self) -> int:  # type: ignore[override]
        """Numbers of the pooled feature."""
        with torch.inference_mode():
            features, _ = self.features_and_logits(torch.zeros(1, 3, self.size_px, self.size_px))
        return int(features.pooled.shape[1])


class Classifier(HfNetwork):
    """A ...ForImageClassification."""

    def __init__(self, model: Any, n_classes: int, size_px: int) -> None:
        super().__init__(model, size_px)
        self.head = _take_head(model, n_classes, size_px)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes)."""
        z: Tensor = self.model(pixel_values=x).logits
        return z if self.head is None else self.head(z)

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """See `OwnNetwork`. Raises SourceError if its logits are not those of one last layer."""
        if self.head is None:
            raise SourceError(
                f"{type(self.model).__name__} has no single last linear layer; ask for its logits"
            )
        pooled: Tensor = self.model(pixel_values=x).logits
        return Features([], pooled), self.head(pooled)


class Backbone(HfNetwork):
    """A network that ends in features: its image embedding, the output of its pooler, or its first token."""

    def __init__(self, model: Any, size_px: int, *, uses_pooler: bool) -> None:
        super().__init__(model, size_px)
        self._uses_pooler = uses_pooler

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """The feature twice."""
        found = self.model(pixel_values=x)
        pooled = getattr(found, "image_embeds", None)
        if pooled is None and self._uses_pooler:
            pooled = getattr(found, "pooler_output", None)
        if pooled is None:
            last = found.last_hidden_state
            pooled = last[:, 0] if last.ndim == 3 else last.mean(dim=(2, 3))
        pooled = pooled.flatten(start_dim=1)
        return Features([], pooled), pooled


class ImageTower(HfNetwork):
    """The image tower of a CLIP or SigLIP: its projected embedding, before normalisation."""

    def __init__(self, pair: Any, size_px: int) -> None:
        super().__init__(pair.vision_model, size_px)
        self.projection = getattr(pair, "visual_projection", None) or nn.Identity()
        self._pair = [pair]  # in a list, so that the text tower is not moved to a device

    @property
    def pair(self) -> Any:
        """Both towers."""
        return self._pair[0]

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """What the projection reads, and the embedding."""
        pooled = self.model(pixel_values=x).pooler_output
        return Features([], pooled), self.projection(pooled)


class ZeroShot(OwnNetwork):
    """Logits of classes by their texts: scale * cos(image, text) + bias, as CLIP and SigLIP are trained."""

    text: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, tower: ImageTower, text: Tensor) -> None:
        """text: (K, D), of length 1."""
        super().__init__()
        self.tower = tower
        self.block_channels = tower.block_channels
        pair = tower.pair
        bias = getattr(pair, "logit_bias", None)
        self.register_buffer("text", text)
        self.register_buffer("scale", pair.logit_scale.detach().exp())
        self.register_buffer("bias", torch.zeros(()) if bias is None else bias.detach())

    @cached_property
    def n_features(self) -> int:  # type: ignore[override]
        """Numbers of the pooled feature."""
        return self.tower.n_features

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """See `OwnNetwork`; cosines are taken in float32, since the scale is about 100."""
        features, embedding = self.tower.features_and_logits(x)
        with torch.autocast(x.device.type, enabled=False):
            image = nn.functional.normalize(embedding.float(), dim=1)
            logits = self.scale * image @ self.text.t() + self.bias
        return features, logits


def _take_head(model: Any, n_classes: int, size_px: int) -> nn.Module | None:
    """Take the last linear layer out of `model`, whose logits are then what that layer read; None, and
    `model` unchanged, if its logits are not just those of the layer.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == n_classes
    ]
    if not layers:
        return None
    name, head = layers[-1]
    parent = model.get_submodule(name.rpartition(".")[0])
    x = torch.zeros(1, 3, size_px, size_px)
    with torch.inference_mode():
        logits = model(pixel_values=x).logits
        setattr(parent, name.rpartition(".")[2], nn.Identity())
        features = model(pixel_values=x).logits
        is_last = features.shape == (1, head.in_features) and torch.equal(head(features), logits)
    if not is_last:
        setattr(parent, name.rpartition(".")[2], head)
        return None
    return head
