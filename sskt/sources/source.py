"""A source network: what is known before its weights are loaded, and the network with its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sskt.errors import SourceError
from sskt.sanity import LARGEST_LOGIT
from sskt.sources.contract import EMBEDDING, LOGITS, NOTHING, Contract
from sskt.sources.declared import Declared
from sskt.sources.outputs import LOGITS_OUTPUT


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What is known about a source before its weights are loaded."""

    # as displayed and recorded in stores: "imagenet", "places365:resnet18", "program:net.pt2", and with an
    # output that is not the logits "imagenet@pooled"
    name: str
    task: str  # its kind's prefix: "imagenet", "places365", "kinetics", "program", "run"
    # torchvision's name, one of `sskt.students.KINETICS_BACKBONES` for kinetics, or "program"
    architecture: str
    # numbers of a row of its output, which are classes unless that is an embedding. `open_source` sets it for
    # embeddings and programs (0 until then), and reads_clips for programs
    n_classes: int
    mean: tuple[float, ...]  # of pixels in 0..1
    std: tuple[float, ...]
    url: str | None = None  # of published weights
    sha256_prefix: str | None = None  # of the published file, if known
    weights_note: str = ""  # who publishes the weights, for a listing
    reads_clips: bool = False  # (N, 3, D, H, W) instead of (N, 3, H, W)
    # a run of ours that reads images and was trained on frames of clips, in the size that its student saw
    sees_student_frames: bool = False
    contract: Contract = NOTHING  # what is known about published weights, or declared about a program
    earlier_mean: tuple[float, ...] | None = None  # the mean in older stores, if it differs
    output: str = LOGITS_OUTPUT  # which of the source's outputs is computed and stored
    identity: tuple[tuple[str, str], ...] = ()  # what else its rows depend on: fields of a fingerprint

    def under(self, contract: Contract) -> SourceSpec:
        """The source under a contract; what the contract leaves open is unchanged."""
        total = contract.over(self.contract)
        if contract.normalisation is None:
            return replace(self, contract=total)
        mean, std = contract.normalisation
        return replace(self, mean=mean, std=std, earlier_mean=None, contract=total)

    @property
    def output_noun(self) -> str:
        """What the numbers of its output are called in a message."""
        return "logits" if self.output == LOGITS_OUTPUT else "features"

    @property
    def returns(self) -> str:
        """One of `sskt.sources.contract.RETURNS`, of the output that is computed; logits if nothing is
        declared.
        """
        return self.contract.returns or LOGITS if self.output == LOGITS_OUTPUT else EMBEDDING


@dataclass(frozen=True, slots=True)
class Source:
    """A source with its weights: a float32 module in eval mode on the CPU, (N, 3, H, W) normalised, or
    (N, 3, D, H, W), to (N, K) logits.
    """

    spec: SourceSpec
    module: nn.Module
    weights_sha256: str  # of the file's bytes
    weights_path: Path
    side_range_px: tuple[int, int] | None = None  # image sides that it accepts; None: any
    declared: Declared | None = None  # its contract and who declares it; None if nobody does
    batch_range: tuple[int, int | None] = (1, None)  # batch sizes that it accepts; None: no upper limit
    notes: tuple[str, ...] = ()  # what was used of its file, for the caller to log
    is_traced: bool = False  # a graph whose mode, memory layout and guards were fixed at export
    runs_itself: bool = False  # by a runtime of its own, in the precision that it was exported in
    outputs: tuple[str, ...] = (LOGITS_OUTPUT,)  # names of the outputs that the module can compute
    largest_logit: float = LARGEST_LOGIT  # a larger one means that the network is not sound
    network: Source | None = None  # of which this is another output than the logits, or several outputs
    parts: tuple[Source, ...] = ()  # the outputs whose rows lie side by side in this one's, if it has several
    # of a classifier without classes of its own (zero-shot): makes it one of the classes with these names
    of_classes: Callable[[tuple[str, ...]], Source] | None = None

    def for_classes(self, classes: tuple[str, ...]) -> Source:
        """Itself, or if its logits are those of any classes that are named, the classifier of `classes`."""
        if self.of_classes is None or self.spec.output != LOGITS_OUTPUT:
            return self
        return self.of_classes(classes)

    def with_columns(self) -> list[tuple[Source, slice]]:
        """Every output, and where its numbers are in a row; without parts, its own is the whole row."""
        parts, columns, start = self.parts or (self,), [], 0
        for part in parts:
            columns.append((part, slice(start, start + part.spec.n_classes)))
            start += part.spec.n_classes
        return columns

    def columns_of(self, output: str) -> slice:
        """Where the numbers of one of its outputs are in a row."""
        return next(columns for part, columns in self.with_columns() if part.spec.output == output)

    def nearest_batch_size(self, batch_size: int) -> int:
        """The accepted batch size that is nearest to `batch_size`."""
        low, high = self.batch_range
        return max(low, batch_size if high is None else min(batch_size, high))

    def require_batch_size(self, batch_size: int) -> None:
        """Raise SourceError for a batch size that it does not accept."""
        if batch_size != (nearest := self.nearest_batch_size(batch_size)):
            low, high = self.batch_range
            takes = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
            raise SourceError(
                f"{self.spec.name} takes batches of {takes}, asked for {batch_size}; "
                f"pass --batch-size {nearest}, or export it with a dynamic batch"
            )
