"""Check a source that has the target's classes against the labels: are its predictions near chance, or better
in another known order of the classes?
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cache import Store
from pipeline.data import Dataset, Positions
from sskt.metrics import class_precisions
from sskt.sources import LOGITS_OUTPUT, Contract, SourceSpec, columns_of, kind_of, known_orders
from sskt.topk import decode

log = logging.getLogger(__name__)

MAX_ROWS = 20_000  # of one view that are checked
_MAX_NUMBERS = 20_000_000  # logits that are read for it
_GAIN = 1.0  # percentage points beyond chance fluctuation before an order counts as better
_GAIN_MAP = 10.0  # the same for mean average precision, whose fluctuation is unknown
_NEAR_CHANCE = 0.5  # percentage points above chance


@dataclass(frozen=True, slots=True)
class Knowledge:
    """How well a source's predictions agree with the labels, in percent."""

    metric: str  # "top-1", or "mAP" if multi-label
    n_rows: int
    figure: float
    chance: float
    near_chance: bool
    order: str | None = None  # a class order that fits the labels better; one of ORDERS
    in_order: float = math.nan  # the figure in that order
    matched: float | None = None  # if near chance: half the rows' figure, classes matched on the other half

    @property
    def misplaced(self) -> bool:
        """Whether the classes fit the labels far better in another order, known by name or not."""
        return self.order is not None or self.matched is not None

    def sentence(self, name: str, target: str) -> str:
        """State the figure, and what is wrong with it."""
        text = f"{name} on {target}: {self.metric} {self.figure:.1f} % of {self.n_rows} rows of view 0"
        if self.order is not None:
            return (
                f"{text}, and {self.in_order:.1f} % if its classes are in {self.order} order: declare "
                f"--contract {name}=classes={self.order} before it teaches these classes"
            )
        if not self.near_chance:
            return text
        text = f"warning: {text}, near chance ({self.chance:.1f} %)"
        if self.matched is not None:
            return (
                f"{text}; matched to the labels by half of the rows, its classes give {self.matched:.1f} % "
                f"of the others: they are in another order, give their names with "
                f"--contract {name}=classes=FILE"
            )
        return f"{text}: as a teacher of these classes it would teach nothing right"


def known_columns(
    contract: Contract, name: str, n_classes: int, dataset: Dataset
) -> NDArray[np.int64] | None:
    """The column of each target class in a source that has, or seems to have, the target's classes; else
    None. Decided by its contract, or, for the user's own sources and those named like the target, by the
    number of classes.
    """
    classes, kind = dataset.classes, kind_of(name)
    if contract.classes is not None:
        columns = columns_of(contract.classes, classes) if n_classes == len(classes) else None
        if columns is not None or kind.prefix != dataset.target:
            return columns
    likely = kind.is_path or kind.is_foreign or kind.prefix == dataset.target
    return np.arange(n_classes) if likely and n_classes == len(classes) else None


def knowledge_of(
    logits: torch.Tensor, dataset: Dataset, positions: Positions, columns: NDArray[np.int64]
) -> Knowledge:
    """Compare logits (n, K) for the samples at `positions` with their labels; `columns` as in
    `sskt.sources.class_order`.
    """
    orders = known_orders(dataset.classes)
    if dataset.multi_hot is not None:
        return _multi_label_knowledge(logits, dataset.multi_hot[positions], columns, orders)
    truth, predicted = dataset.labels[positions], logits.argmax(dim=1).numpy()
    n, n_classes = len(positions), len(columns)
    figure = _percent(columns[truth] == predicted)
    truth_shares = np.bincount(columns[truth], minlength=n_classes) / n
    chance = float(truth_shares @ (np.bincount(predicted, minlength=n_classes) / n))
    spread = 100 * math.sqrt(chance * (1 - chance) / n)
    near = figure <= 100 * chance + 3 * spread + _NEAR_CHANCE
    gain = 300 * math.sqrt(0.25 / n) + _GAIN
    figures = {name: _percent(order[truth] == predicted) for name, order in orders.items()}
    best = max(figures, key=lambda name: figures[name], default=None)
    knowledge = Knowledge("top-1", n, figure, 100 * chance, near)
    matched = _matched_figure(predicted, truth, n_classes) if near else 0.0
    if best is not None and figures[best] > max(figure + gain, matched - gain):
        return replace(knowledge, order=best, in_order=figures[best])
    return replace(knowledge, matched=matched if matched > figure + 2 * gain else None)


def log_knowledge(store: Store, spec: SourceSpec, dataset: Dataset) -> None:
    """After stage one: log how often the stored rows of view 0 are right, if they are logits of the target's
    classes.
    """
    if spec.output != LOGITS_OUTPUT:
        return
    columns = known_columns(spec.contract, spec.name, spec.n_classes, dataset)
    if columns is None or store.whole_views < 1 or not len(dataset.labelled):
        return
    positions = spread_positions(dataset, spec.n_classes)
    stored = torch.from_numpy(store.rows(0, store.positions_of(dataset.ids[positions])))
    logits = stored if store.top_k is None else decode(stored, store.n_classes, 1.0)
    log.info(knowledge_of(logits.float(), dataset, positions, columns).sentence(spec.name, dataset.target))


def spread_positions(dataset: Dataset, n_classes: int) -> Positions:
    """Sorted, evenly spread positions of labelled samples, as many as can be read quickly."""
    labelled = dataset.labelled
    n = min(len(labelled), MAX_ROWS, max(1, _MAX_NUMBERS // n_classes))
    return labelled[np.unique(np.linspace(0, len(labelled) - 1, n).round().astype(np.int64))]


def _multi_label_knowledge(
    logits: torch.Tensor,
    multi_hot: NDArray[np.int8],
    columns: NDArray[np.int64],
    orders: dict[str, NDArray[np.int64]],
) -> Knowledge:
    def mean_precision(order: NDArray[np.int64]) -> float:
        return 100 * float(np.nanmean(class_precisions(logits.numpy()[:, order], multi_hot)))

    figure = mean_precision(columns)
    chance = 100 * float((multi_hot == 1).sum() / max(1, (multi_hot >= 0).sum()))
    figures = {name: mean_precision(order) for name, order in orders.items()}
    best = max(figures, key=lambda name: figures[name], default=None)
    near = figure <= 1.5 * chance + _NEAR_CHANCE
    knowledge = Knowledge("mAP", len(multi_hot), figure, chance, near)
    if best is not None and figures[best] > figure + _GAIN_MAP:
        return replace(knowledge, order=best, in_order=figures[best])
    return knowledge


def _matched_figure(predicted: NDArray[np.int64], truth: NDArray[np.int64], n_classes: int) -> float:
    """Match each predicted class to the label it most often occurs with in half of the rows; the percentage
    of the other half that is then right.
    """
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)  # predicted class by label
    np.add.at(counts, (predicted[::2], truth[::2]), 1)
    return _percent(counts.argmax(axis=1)[predicted[1::2]] == truth[1::2])


def _percent(right: NDArray[np.bool_]) -> float:
    return 100 * float(right.mean()) if len(right) else 0.0
