"""What a source is: the outputs that its name may ask for, what is known before its weights are loaded, the
network with its weights, and its kind, which is everything that depends on how a source is named.

NAME asks for a network's logits, NAME@pooled for the input of its last linear layer, NAME@embedding for the
vector that a program returns, NAME@layer4 for the maps of its fourth layer, averaged to 6x6, and
NAME@layer4:13 for those averaged to 13x13. A probe has no output but its logits.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sskt.download import digest_of, known_digest_of
from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sanity import LARGEST_LOGIT
from sskt.sources.contract import EMBEDDING, LOGITS, NOTHING, Contract
from sskt.sources.declared import Declared

LOGITS_OUTPUT = "logits"  # the output that every source has
POOLED, EMBEDDED = "pooled", "embedding"
MAP = "map"  # the kind of the outputs layerN:G
OUTPUTS = (LOGITS_OUTPUT, POOLED, EMBEDDED)  # that are written as they are
OUTPUT_FORMS = (*OUTPUTS, "layerN", "layerN:GRID")  # for messages
DEFAULT_GRID = 6  # the side of AlexNet's maps at 112 px, which graph distillation compares others' with
_LAYER = re.compile(r"layer([1-9]\d?)(?::([1-9]\d{0,2}))?")
_PROBE = "probe"  # whose name holds those of its inputs, which may have outputs


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


class Kind(ABC):
    """All sources whose names are `prefix` alone or PREFIX:REST, with or without an output; `parse` and
    `open` get names without one.
    """

    prefix: str
    forms: tuple[str, ...]  # of names, for messages: ("imagenet", "imagenet:ARCHITECTURE")
    weights_note = "your own"  # where weights come from, for a listing, if none are published
    is_path = False  # whether REST is a path, so that a source that moves gets another name
    must_be_named = False  # whether its stores serve only runs that name the source
    sees_target_size = False  # whether it sees images in the student's size, without upsampling
    is_fitted = False  # whether it is fitted to the target's labels, so that its classes are the target's
    files: tuple[str, ...] = ()  # in the folder that a name contains, all that the source needs
    outputs: tuple[str, ...] = (LOGITS_OUTPUT,)  # kinds of them that its networks may have
    is_foreign = False  # whether its normalisation is known only if it is declared

    @abstractmethod
    def parse(self, name: str) -> SourceSpec:
        """What `name` tells about a source, without its weights. Raises SourceError for an invalid name."""

    @abstractmethod
    def open(self, name: str, weights: Path, told: Contract) -> Source:
        """The source with the weights in the file `weights`, under the contract that the user declares.

        Raises SourceError; see `sskt.sources.registry.open_source`.
        """

    @abstractmethod
    def weights_path(self, name: str, weights_dir: Path) -> Path:
        """The file that holds the weights if the user gives none, whether it exists or not."""

    def digest(self, weights: Path) -> str:
        """The sha256 by which stores recognise the weights in a file that `weights_path` names. Raises
        OSError.
        """
        return known_digest_of(weights)

    def fetch_weights(self, name: str, weights_dir: Path) -> Path:
        """`weights_path`, downloaded and verified if need be. Raises SourceError or DownloadError."""
        return self.weights_path(name, weights_dir)

    def published(self) -> list[SourceSpec]:
        """Every source of this kind that has published weights."""
        return []

    def unopened(self, name: str, architecture: str) -> SourceSpec:
        """The spec of a source whose file was not read: its classes are not known, nor is its input."""
        return SourceSpec(name, self.prefix, architecture, n_classes=0, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def slug(self, name: str) -> str:
        """What follows `prefix` in the name of the folder that holds the source's stores."""
        return self.parse(name).architecture

    def path(self, name: str) -> Path | None:
        """The path of the source, if names of this kind contain it."""
        return rest_path(name) if self.is_path else None

    def name_at(self, path: Path | str) -> str:
        """The name of the source that lies at `path`."""
        return f"{self.prefix}:{path}"

    def name_by_weights(self, weights: Path | str) -> str | None:
        """The name of the source whose weights are the file `weights`, if this kind is named by path."""
        return self.name_at(weights) if self.is_path else None

    def declared(self, name: str, told: Contract) -> Contract:  # noqa: ARG002
        """`told`, completed by what the source's own file declares, if it exists."""
        return told

    def describe(self, name: str) -> tuple[SourceSpec, list[str]]:
        """What is known about a source without a download, and statements of who declares it. Raises
        SourceError.
        """
        return self.parse(name), []


def rest_path(name: str) -> Path:
    """The PATH of a name PREFIX:PATH or PREFIX:PATH@OUTPUT."""
    return Path(network_of(name).partition(":")[2]).expanduser()


def weights_digest(path: Path) -> str:
    """The sha256 of a file's bytes. Raises SourceError if it cannot be read."""
    try:
        return digest_of(path)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error


def split_output(name: str) -> tuple[str, str]:
    """A network's name and the output that `name` asks for, in full: ("imagenet", "layer4:6") of
    "imagenet@layer4".

    What follows an "@" and is no output belongs to the network's name, which may be a path.
    """
    network, at, asked = name.rpartition("@")
    output = as_output(asked)
    if not at or output is None or name.partition(":")[0] == _PROBE:
        return name, LOGITS_OUTPUT
    return network, output


def as_output(text: str) -> str | None:
    """An output as it is recorded, with a map's grid; None if `text` names none."""
    layer = _LAYER.fullmatch(text)
    if layer is not None:
        return f"layer{layer[1]}:{layer[2] or DEFAULT_GRID}"
    return text if text in OUTPUTS else None


def output_kind(output: str) -> str:
    """What an output is: one of OUTPUTS, or MAP."""
    return MAP if _LAYER.fullmatch(output) else output


def layer_and_grid(output: str) -> tuple[int, int]:
    """The number of a map's layer, from 1, and the side of the grid that it is averaged to."""
    layer = _LAYER.fullmatch(output)
    if layer is None:
        raise ValueError(f"{output} is no map")
    return int(layer[1]), int(layer[2] or DEFAULT_GRID)


def row_shape(output: str, n_numbers: int) -> tuple[int, ...]:
    """The shape of one sample's `n_numbers` of an output: (K,), or of a map (channels, grid, grid)."""
    return map_shape(output, n_numbers) if output_kind(output) == MAP else (n_numbers,)


def map_shape(output: str, n_numbers: int) -> tuple[int, int, int]:
    """The shape of one sample's map of `n_numbers`: (channels, grid, grid)."""
    _, grid = layer_and_grid(output)
    return n_numbers // grid**2, grid, grid


def network_of(name: str) -> str:
    """The name of the network, whose weights and contract serve all of its outputs."""
    return split_output(name)[0]


def output_of(name: str) -> str:
    """The output that a source's name asks for, in full."""
    return split_output(name)[1]


def at_output(network: str, output: str) -> str:
    """The name of an output of a network, given by its name."""
    return network if output == LOGITS_OUTPUT else f"{network}@{output}"


def with_usual_output(name: str, output: str) -> str:
    """`name` with `output`, unless it says which, or is a probe."""
    says_which = "@" in name and as_output(name.rpartition("@")[2]) is not None
    return name if says_which else at_output(name, output)
