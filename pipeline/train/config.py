"""Everything that changes the numbers of a run, as plain data; how it is executed is `Execution`.

`Settings` is what a user may say. `pipeline.train.resolve` completes it from the recipe, and
`pipeline.train.settle` from the data and the sources; the result, a `TrainConfig`, is written to config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypedDict

from sskt.download import known_digest_of
from sskt.errors import RunError
from sskt.methods import MethodConfig, method_named
from sskt.recipes import BY_SIZE, SETTINGS, finetune_length, recipe_for

PRECISIONS = ("fp32", "bf16", "fp16")
OWN = "own:"  # precedes the class name of a backbone that the caller made
EARLIER_MEAN = "kinetics"  # that 3D ResNets subtracted before runs recorded it
OWN_MEAN = "own"  # that such a backbone defines itself

ABOUT = ("target", "model", "seed", "limit", "eval_every")  # what a user says of a run besides `Settings`

# known only when a run's data and sources are open
SETTLED_BY_DATA = (
    "classes", "sources", "labels", "views", "contents", "source_weights", "contracts", "val_share",
    "chosen_on", "plain_layers", "unlabelled", "labelled_list", "labelled_share", "teacher_temperature",
    "weight_of_class",
)  # fmt: skip


class Settings(TypedDict, total=False):
    """What a user may say of a run, by the names of `TrainConfig`. None, like what is left out, means the
    recipe's value, the method's own, or what the data suggest.
    """

    method: str
    preset: str | None  # one of pipeline.train.presets.PRESETS
    recipe: str | None
    sources: str | Sequence[str]
    labels: str  # "auto", or as in `TrainConfig`
    views: int | None
    teacher_bn: str
    probe_views: str | None
    val_share: float | None
    labels_per_class: int | None
    labelled_share: float | None
    labelled_list: Path | str | None
    unlabelled: str | Sequence[str]
    freeze_until: str | None
    init: str | None
    clip_mean: str
    amp: str  # "auto" or one of PRECISIONS
    compiled: bool
    deterministic: bool
    # a recipe's
    epochs: int | None
    batch_size: int | None
    optimizer: str | None
    lr: float | None
    schedule: str | None
    milestones: Sequence[int] | None
    gamma: float | None
    patience: int | None
    warm_up: float | None
    cool_down: float | None
    momentum: float | None
    dampening: float | None
    nesterov: bool | None
    weight_decay: float | None
    decay_norms: bool | None
    ema: float | None
    layer_decay: float | None
    clip_norm: float | None
    mixup: float | None
    cutmix: float | None
    # a method's
    primary_loss: str | None
    label_smoothing: float | None
    class_weights: str | None
    aux_loss: str | None
    temperature: float | None
    alpha: float | None
    kd_reduction: str | None
    transfer_module: bool | None
    aux_head: str | None
    gradient_cosine: str | None
    probe_weight: float | None
    probe_temperature: float | None
    teacher_temperature: Mapping[str, float] | None
    graph_logits: str | None
    edges: str | None
    transport: str | None
    graph_features: str | None
    vertices: str | None
    sketch_dim: int | None
    rep_weight: float | None
    rep_temperature: float | None
    gradient_norms: bool | None
    peers: int | None
    psi: int | None


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run. It is written to config.json; a run is only continued with the same config."""

    target: str
    classes: tuple[str, ...]
    model: str
    method: str  # one of sskt.methods.METHODS
    sources: tuple[str, ...]
    transfer_module: bool
    primary_loss: str  # one of sskt.losses.PRIMARY_LOSSES
    aux_loss: str  # one of sskt.losses.AUXILIARY_LOSSES
    kd_reduction: str  # "mean" over batch and classes, as released, or "batchmean"
    temperature: float
    alpha: float
    labels: str  # "cached", "live", "write-through" or "none"
    gradient_cosine: str  # one of sskt.methods.GRADIENT_COSINE
    peers: int  # dml: networks
    psi: int  # maxl: sub-classes per class
    teacher_bn: str  # "frozen", or "batch-stats" as released
    views: int | None  # None: a new one in every epoch
    epochs: int
    batch_size: int  # over all ranks
    lr: float
    schedule: str  # one of sskt.schedules.SCHEDULES
    milestones: tuple[int, ...]
    gamma: float
    patience: int  # plateau: evaluations without a lower loss on the split that chooses
    momentum: float
    dampening: float
    weight_decay: float
    clip_norm: float | None  # largest norm of all gradients taken together
    label_smoothing: float
    finetune_from: str | None  # name and sha256 of the backbone's initial weights
    freeze_until: str | None  # the backbone is frozen up to this block
    mixup: float  # A of Beta(A, A); 0: off
    cutmix: float
    seed: int
    limit: int | None
    eval_every: int  # epochs between two evaluations; the last epoch always has one
    amp: str  # precision of the student's forward: one of PRECISIONS
    compiled: bool  # the student's step
    channels_last: bool
    deterministic: bool
    ranks: int  # processes that share the batches
    plan: dict[str, Any]
    eval_plan: dict[str, Any]
    augmentation: dict[str, Any]  # as given by the user
    contents: dict[str, str]  # content sha256 of each split
    source_weights: dict[str, str]  # sha256 of each source's weights
    # added later; the defaults are what earlier runs did
    gates: str = "losses"  # of gradient_cosine "weigh": one of sskt.methods.GATES
    init: str = "torch"  # of the heads: one of sskt.students.initialise.INITS
    clip_mean: str = EARLIER_MEAN  # that 3D ResNets subtract: one of CLIP_MEANS, or OWN_MEAN
    dropout: float = 0.0  # before the primary head
    # modules that compute in plain fp32 because the fast kernels were wrong: pipeline.train.kernel_check
    plain_layers: tuple[str, ...] = ()
    contracts: dict[str, Any] = field(default_factory=dict)  # of each source that declares anything
    # fraction of the training samples that chooses the best epoch and is held out; None: not settled yet
    val_share: float | None = 0.0
    chosen_on: str | None = "test"  # the split that chooses the best epoch: "val", "test" or None
    aux_head: str = "linear"  # one of sskt.students.student.AUXILIARY_HEADS
    probe_weight: float = 0.9  # sskt: the probe's share of the primary loss
    probe_temperature: float = 1.0
    probe_views: str = "mean"  # one of PROBE_VIEWS
    labels_per_class: int | None = None  # that are kept; None: all
    labelled_share: float | None = None  # labelled fraction of a batch; None: as in all samples
    recipe: str = "paper"  # one of RECIPES: the source of settings that were not given
    warm_up: float = 0.2  # trapezoid and warm-cosine: fraction of the steps in which the rate rises
    cool_down: float = 0.8  # trapezoid: fraction in which it falls
    nesterov: bool = False
    decay_norms: bool = True  # whether weight decay applies to norms and biases
    ema: float = 0.0  # decay per step of the averaged weights that are scored and saved; 0: none
    labelled_list: str | None = None  # name and sha256 of the list of samples that keep their labels
    unlabelled: tuple[str, ...] = ()  # pools, as `pipeline.data.pools` names them
    # what a student sees of a clip if it reads images: CENTER_FRAME; None: it reads clips, or there are none
    student_frames: str | None = None
    optimizer: str = "sgd"  # one of sskt.optimiser.OPTIMIZERS
    graph_logits: str = "em"  # of method graph: one of sskt.methods.graph.GRAPH_LOGITS
    edges: str = "learned"  # one of sskt.methods.edges.EDGES
    transport: str = "sample"  # one of sskt.methods.graph.TRANSPORTS
    teacher_temperature: dict[str, float] = field(default_factory=dict)  # by source
    graph_features: str = "off"  # one of sskt.methods.representations.GRAPH_FEATURES
    vertices: str = "located"  # one of sskt.methods.representations.VERTICES
    sketch_dim: int | None = None  # channels of a vertex; None: as many as `vertices` usually has
    rep_weight: float = 1.0
    rep_temperature: float = 1.0
    ema_matched: bool = False  # the statistics of batch norms lag as far as the averaged weights, not further
    gradient_norms: bool = False
    layer_decay: float = 1.0  # factor on the rate per layer below the heads
    model_sha256: str | None = None  # of the source of the function that makes the student, if one does
    class_weights: str = "off"  # one of sskt.methods.config.CLASS_WEIGHTS
    weight_of_class: tuple[float, ...] = ()  # what they are, in label order; empty: 1

    @property
    def settings(self) -> MethodConfig:
        """The method's own settings: its config's fields, from the fields of the same names. Raises RunError
        for one that no training can have.
        """
        config = method_named(self.method).Config
        return config(**{f.name: getattr(self, f.name) for f in fields(config) if hasattr(self, f.name)})

    @property
    def is_own(self) -> bool:
        """Whether the caller made the student's backbone, and only the caller can make it again."""
        return self.model.startswith(OWN)

    @property
    def metric(self) -> str:
        """The figure by which students are compared."""
        return "test_map" if self.primary_loss == "bce" else "test_top1"

    @property
    def watched(self) -> str | None:
        """The figure whose largest value marks the best epoch, e.g. "val_top1"; None: there is none."""
        return self.chosen_on and self.metric.replace("test", self.chosen_on, 1)

    @property
    def overridden(self) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from the recipe for this target and method: name -> (this run's, the
        recipe's).
        """
        finetuned = self.finetune_from is not None
        recipe = recipe_for(self.target, self.method, finetuned=finetuned, name=self.recipe)
        read = [name for name in SETTINGS if name != "milestones" or self.schedule == "multistep"]
        pairs = {name: (getattr(self, name), getattr(recipe, name)) for name in read}
        by_size = [name for name in BY_SIZE if not getattr(recipe, name)]
        return {
            name: (ours, recipes)
            for name, (ours, recipes) in pairs.items()
            if ours != recipes and name not in by_size
        }

    def sized(self, n_images: int) -> TrainConfig:
        """`self`, with what its recipe leaves to the number of training images; see BY_SIZE."""
        found = finetune_length(n_images, self.batch_size)
        return replace(self, **{name: found[name] for name in BY_SIZE if not getattr(self, name)})

    def smallest_step(self, n_samples: int) -> int:
        """Samples of the smallest step of an epoch, over all ranks."""
        return n_samples // -(-n_samples // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it: tuples are lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any], where: str) -> Self:
        """Read what `to_dict` gave, today or before settings with a default were added. Raises RunError,
        prefixed by `where`, for an unknown or missing setting.
        """
        names = {f.name for f in fields(cls)}
        found = with_defaults(found)
        if strange := sorted(names ^ set(found)):
            raise RunError(
                f"{where}: its settings are not this version's, {strange[0]} is "
                f"{'missing' if strange[0] in names else 'unknown'}; use the version that started it"
            )
        own: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        # earlier runs do not record what sources see
        own["augmentation"] = {"source_input": "earlier", **own["augmentation"]}
        return cls(**own)


def with_defaults(found: dict[str, Any]) -> dict[str, Any]:
    """A recorded config, completed by the defaults of settings that were added since."""
    defaults = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    made = {f.name: f.default_factory() for f in fields(TrainConfig) if f.default_factory is not MISSING}
    return defaults | made | found


def weights_name(path: Path) -> str:
    """A file as a config names it: its name and sha256. Raises RunError if it cannot be read."""
    try:
        return f"{path.name} sha256 {known_digest_of(path)[:16]}"
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); check its path") from None
