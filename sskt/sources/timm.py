"""timm:NAME, the networks of the library timm by its own names: timm:resnet50, timm:resnet50.a1_in1k.

Nothing is downloaded: weights are a file that --weights names, or lie in the hub's cache. What the network
expects is what timm records for the name (its pretrained_cfg), whichever weights are loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sskt.errors import SourceError
from sskt.hub import cached_file, download_advice
from sskt.sources.contract import EMBEDDING, LOGITS, Contract
from sskt.sources.declared import Declared, combine
from sskt.sources.preprocessor import read_foreign
from sskt.sources.source import (
    EMBEDDED,
    LOGITS_OUTPUT,
    MAP,
    POOLED,
    Kind,
    Source,
    SourceSpec,
    network_of,
    weights_digest,
)
from sskt.sources.timm_network import TimmConfig, find_config, load_network, torch_hub_file

_FILE = "model.safetensors"


class TimmKind(Kind):
    """timm's networks, with the user's weights or cached ones."""

    prefix, forms, weights_note = "timm", ("timm:NAME",), "--weights, or the hub's cache"
    outputs = (LOGITS_OUTPUT, POOLED, EMBEDDED, MAP)
    is_foreign = True

    def parse(self, name: str) -> SourceSpec:
        """See `Kind.parse`; timm is not imported, so the number of classes is 0, and a name that timm lacks
        is found when the source is opened.
        """
        named = _named(name)
        if not named or "/" in named:
            raise SourceError(f"source {name!r} names no network of timm, expected such as timm:resnet50")
        return self.unopened(self.name_at(named), named.partition(".")[0])

    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """See `Kind.open`."""
        config = find_config(_named(name), name)
        if not weights.is_file() and weights == self.weights_path(name, weights.parent):
            raise SourceError(_no_weights(name, config))
        network, notes = load_network(config, weights, name)
        declared = self._declared(name, config, network.returns_logits, told)
        spec = replace(self.parse(name).under(declared.contract), n_classes=network.n_numbers)
        return Source(
            spec,
            network,
            weights_digest(weights),
            weights,
            (config.size, config.size) if config.is_of_one_size and config.size else None,
            declared,
            notes=notes,
            outputs=(LOGITS_OUTPUT if network.returns_logits else EMBEDDED,),
        )

    def weights_path(self, name: str, weights_dir: Path) -> Path:
        """See `Kind.weights_path`: in the hub's cache, or where torch.hub keeps what it downloads."""
        named = _named(name)
        if "." in named and (cached := cached_file(f"timm/{named}", _FILE)):
            return cached
        config = find_config(named, name, quietly=True)
        if config is not None:
            cached = cached_file(config.repo, config.file or _FILE) if config.repo else None
            cached = cached or torch_hub_file(config.url)
        else:
            cached = None
        return cached or weights_dir / f"timm-{named}.safetensors"

    def slug(self, name: str) -> str:
        """See `Kind.slug`: NAME, with its tag."""
        return _named(name)

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """See `Kind.describe`; of timm's own weights."""
        config = find_config(_named(name), name)
        declared = self._declared(name, config, config.returns_logits, Contract())
        spec = self.parse(name).under(declared.contract)
        return replace(spec, n_classes=config.n_classes), [*declared.statements, *declared.remarks]

    def _declared(self, name: str, config: TimmConfig, returns_logits: bool, told: Contract) -> Declared:
        recorded, remarks = read_foreign(config.fields)
        returns = LOGITS if returns_logits else EMBEDDING
        recorded = replace(recorded, range=(0.0, 1.0), channels="rgb", returns=returns)
        return combine(_named(name), told, [(f"timm's {config.full_name}", recorded)], remarks)


def _named(name: str) -> str:
    """The NAME of timm:NAME."""
    return network_of(name).partition(":")[2]


def _no_weights(name: str, config: TimmConfig) -> str:
    repo = config.repo or f"timm/{config.full_name}"
    return (
        f"{name}: its weights ({repo}) are not in the hub's cache, and nothing is downloaded here; pass a "
        f"file with --weights {name}=FILE, or {download_advice(repo, config.file or _FILE)}"
    )
