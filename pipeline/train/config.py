"""Everything that changes the numbers of a run, as plain data; how it is executed is `Execution`.

A config is first what was asked for (`pipeline.train.resolve`), then also what the data and the sources
settle; the second is written to config.json.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Self

from sskt.errors import RunError
from sskt.methods import MethodConfig, method_named
from sskt.recipes import SETTINGS, recipe_for

PRECISIONS = ("fp32", "bf16", "fp16")
OWN = "own:"  # a model's name, before the class of a backbone that the caller made
EARLIER_MEAN = "kinetics"  # what 3D ResNets took off until runs said it
OWN_MEAN = "own"  # of such a backbone: whatever it says


# what is not settled before a run's data and sources are opened
SETTLED_BY_DATA = (
    "classes", "sources", "labels", "views", "contents", "source_weights", "contracts", "val_share",
    "chosen_on", "plain_layers", "unlabelled", "labelled_list", "teacher_temperature",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run. It is written to config.json, and a run is only ever continued with the same."""

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
    peers: int  # of dml
    psi: int  # sub-classes of a class, of maxl
    teacher_bn: str  # "frozen", or "batch-stats" as released
    views: int | None  # None: every epoch draws a view of its own
    epochs: int
    batch_size: int  # over all ranks
    lr: float
    schedule: str  # one of sskt.schedules.SCHEDULES
    milestones: tuple[int, ...]
    gamma: float
    patience: int  # of a plateau: evaluations without a lower loss on what chooses
    momentum: float
    dampening: float
    weight_decay: float
    clip_norm: float | None  # largest norm of all gradients together
    label_smoothing: float
    finetune_from: str | None  # name and sha256 of the weights that the backbone began with
    freeze_until: str | None  # the backbone's part before this one stays as it is
    mixup: float  # a of Beta(a, a); 0: off
    cutmix: float
    seed: int
    limit: int | None
    eval_every: int  # epochs between two looks at what chooses; the last epoch always has one
    amp: str  # precision of the student's forward: one of PRECISIONS
    compiled: bool  # the student's step
    channels_last: bool
    deterministic: bool
    ranks: int  # processes that share the batches
    plan: dict[str, Any]
    eval_plan: dict[str, Any]
    augmentation: dict[str, Any]  # as it was asked for
    contents: dict[str, str]  # sha256 of what each split holds
    source_weights: dict[str, str]  # sha256 of each source's weights
    # what follows was added later; the defaults are what runs did until then
    gates: str = "losses"  # of gradient_cosine "weigh": one of sskt.methods.GATES
    init: str = "torch"  # of the heads: one of sskt.students.initialise.INITS
    clip_mean: str = EARLIER_MEAN  # what 3D ResNets take off: of sskt.normalise.CLIP_MEANS, or OWN_MEAN
    dropout: float = 0.0  # before the primary head
    # modules that compute in plain fp32, since the fast kernels were found wrong; see
    # pipeline.train.kernel_check
    plain_layers: tuple[str, ...] = ()
    contracts: dict[str, Any] = field(default_factory=dict)  # of each source of which anything is declared
    # of the training samples, which choose the best epoch and are not trained on; None: not settled yet
    val_share: float | None = 0.0
    chosen_on: str | None = "test"  # the split that chooses it: "val", "test", or None for no best epoch
    aux_head: str = "linear"  # of the sources: one of sskt.students.student.AUXILIARY_HEADS
    probe_weight: float = 0.9  # the probe's share of the primary loss of method sskt
    probe_temperature: float = 1.0
    probe_views: str = "mean"  # what a probe answers about: one of PROBE_VIEWS
    labels_per_class: int | None = None  # training samples that keep their labels; None: all
    labelled_share: float | None = None  # of a batch, where some samples have no label; None: their share
    recipe: str = "paper"  # one of sskt.recipes.RECIPES: where the settings come from that were not given
    warm_up: float = 0.2  # of a trapezoid: the fraction of all steps in which the rate rises
    cool_down: float = 0.8  # in which it falls
    nesterov: bool = False
    decay_norms: bool = True  # whether norms and biases have weight decay too
    ema: float = 0.0  # decay per step of the average of weights that is scored and kept; 0: none
    labelled_list: str | None = None  # name and sha256 of the file that says which samples keep their labels
    unlabelled: tuple[str, ...] = ()  # pools of samples without labels, as `pipeline.data.pools` names them
    # what a student sees of a clip if it reads images: CENTER_FRAME; None: it reads clips, or there are none
    student_frames: str | None = None
    optimizer: str = "sgd"  # one of sskt.optimiser.OPTIMIZERS
    graph_logits: str = "em"  # of method graph: one of sskt.methods.graph.GRAPH_LOGITS
    edges: str = "learned"  # one of sskt.methods.edges.EDGES
    transport: str = "sample"  # one of sskt.methods.graph.TRANSPORTS
    teacher_temperature: dict[str, float] = field(default_factory=dict)  # by source

    @property
    def settings(self) -> MethodConfig:
        """The method's own settings. Raises RunError for one that no training can have."""
        config = method_named(self.method).Config
        return config(**{f.name: getattr(self, f.name) for f in fields(config) if hasattr(self, f.name)})

    @property
    def is_own(self) -> bool:
        """Whether the student's backbone is one that the caller made, and only the caller can make again."""
        return self.model.startswith(OWN)

    @property
    def metric(self) -> str:
        """The figure that says how good the student is."""
        return "test_map" if self.primary_loss == "bce" else "test_top1"

    @property
    def watched(self) -> str | None:
        """The figure whose largest value makes the best epoch, e.g. "val_top1"; None: there is none."""
        return self.chosen_on and self.metric.replace("test", self.chosen_on, 1)

    @property
    def overridden(self) -> dict[str, tuple[Any, Any]]:
        """What is not as the recipe of this target and method has it: setting -> (of this run, of the
        recipe).
        """
        finetuned = self.finetune_from is not None
        recipe = recipe_for(self.target, self.method, finetuned=finetuned, name=self.recipe)
        read = [name for name in SETTINGS if name != "milestones" or self.schedule != "trapezoid"]
        pairs = {name: (getattr(self, name), getattr(recipe, name)) for name in read}
        return {name: (ours, recipes) for name, (ours, recipes) in pairs.items() if ours != recipes}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it: tuples are lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any], where: str) -> Self:
        """What `to_dict` gave, now or before a setting with a default was added: the default is what runs
        did until then. Raises RunError, starting with `where`, for a setting that is unknown or missing.
        """
        names = {f.name for f in fields(cls)}
        found = with_defaults(found)
        if strange := sorted(names ^ set(found)):
            raise RunError(
                f"{where}: its settings are not this version's, {strange[0]} is "
                f"{'missing' if strange[0] in names else 'unknown'}; use the version that began it"
            )
        own: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        # what sources see had no name until then
        own["augmentation"] = {"source_input": "earlier", **own["augmentation"]}
        return cls(**own)


def with_defaults(found: dict[str, Any]) -> dict[str, Any]:
    """A config as it was written, with the settings that were added since at what runs did until then."""
    defaults = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    made = {f.name: f.default_factory() for f in fields(TrainConfig) if f.default_factory is not MISSING}
    return defaults | made | found
