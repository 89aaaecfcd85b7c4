"""A source network: what is known of it before its weights are at hand, and the network with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sskt.errors import SourceError
from sskt.sanity import LARGEST_LOGIT
from sskt.sources.contract import LOGITS, NOTHING, Contract
from sskt.sources.declared import Declared

LOGITS_OUTPUT = "logits"  # the output that every source has


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What is known of a source before its weights are at hand."""

    name: str  # as recorded with stores and shown: "imagenet", "places365:resnet18", "program:net.pt2"
    task: str  # its kind's prefix: "imagenet", "places365", "kinetics", "program", "run"
    architecture: str  # torchvision's name, of `sskt.students.CLIP_BACKBONES` for kinetics, or "program"
    n_classes: int  # 0 for a program until `open_source` has read it, which also tells reads_clips
    mean: tuple[float, ...]  # of pixels in 0..1
    std: tuple[float, ...]
    url: str | None = None  # of published weights
    sha256_prefix: str | None = None  # of the published file, as far as known
    weights_note: str = ""  # who publishes the weights, for a listing
    reads_clips: bool = False  # (N, 3, D, H, W) instead of (N, 3, H, W)
    contract: Contract = NOTHING  # of published weights what is known, of a program what is declared
    earlier_mean: tuple[float, ...] | None = None  # what stores that were made before have as its mean
    output: str = LOGITS_OUTPUT  # one of the source's outputs: the one that it is asked for and a store holds

    def under(self, contract: Contract) -> SourceSpec:
        """The source with what a contract says of it; what that leaves open stays as it is."""
        total = contract.over(self.contract)
        if contract.normalisation is None:
            return replace(self, contract=total)
        mean, std = contract.normalisation
        return replace(self, mean=mean, std=std, earlier_mean=None, contract=total)

    @property
    def returns(self) -> str:
        """One of `sskt.sources.contract.RETURNS`; logits where nothing is declared."""
        return self.contract.returns or LOGITS


@dataclass(frozen=True, slots=True)
class Source:
    """A source with its weights: a float32 module in eval mode on the CPU, (N, 3, H, W) normalised, or
    (N, 3, D, H, W), to (N, K) logits.
    """

    spec: SourceSpec
    module: nn.Module
    weights_sha256: str  # of the file's bytes
    weights_path: Path
    side_range_px: tuple[int, int] | None = None  # of images it reads, None where any
    declared: Declared | None = None  # who says what it wants and returns; None where nothing is said
    batch_range: tuple[int, int | None] = (1, None)  # images that it takes at once; None: no upper end
    notes: tuple[str, ...] = ()  # what was taken from its file, for whoever opens it to say
    is_traced: bool = False  # a graph with its mode, memory layout and guards fixed when it was exported
    outputs: tuple[str, ...] = (LOGITS_OUTPUT,)  # what the module can be asked for, by name
    largest_logit: float = LARGEST_LOGIT  # beyond which it is not sound

    def nearest_batch_size(self, batch_size: int) -> int:
        """The batch size nearest to `batch_size` that it takes."""
        low, high = self.batch_range
        return max(low, batch_size if high is None else min(batch_size, high))

    def require_batch_size(self, batch_size: int) -> None:
        """Raise SourceError for a batch size that it does not take."""
        if batch_size != (nearest := self.nearest_batch_size(batch_size)):
            low, high = self.batch_range
            takes = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
            raise SourceError(
                f"{self.spec.name} takes batches of {takes}, asked for {batch_size}; "
                f"pass --batch-size {nearest}, or export it with a dynamic batch"
            )
