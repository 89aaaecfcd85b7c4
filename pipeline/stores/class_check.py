"""Whether a source whose classes are the target's is right about them: its answers against the labels, near
chance or better in another known order of the classes.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cache import Store
from pipeline.data.datasets.dataset import Dataset
from sskt.metrics import class_precisions
from sskt.sources import Contract, SourceSpec, columns_of, kind_of, known_orders
from sskt.topk import decode

log = logging.getLogger(__name__)

MOST_ROWS = 20_000  # of a view that are looked at
_MOST_NUMBERS = 20_000_000
_GAIN = 1.0  # percentage points beyond chance fluctuation before an order is called better
_GAIN_MAP = 10.0  # of mean average precision, whose fluctuation is not known
_NEAR_CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Knowledge:
    """How well answers agree with the labels, in percent."""

    metric: str  # "top-1", or "mAP" of several labels a picture
    n_rows: int
    figure: float
    chance: float
    near_chance: bool
    order: str | None = None  # in which the source's classes fit the labels better; one of ORDERS
    in_order: float = math.nan  # the figure then
    matched: float | None = None  # near chance: the figure on other rows, with classes matched by these

    @property
    def misplaced(self) -> bool:
        """Whether the classes fit the labels far better in another order, named or not."""
        return self.order is not None or self.matched is not None

    def sentence(self, name: str, target: str) -> str:
        """The figure, and what is wrong with it."""
        text = f"{name} on {target}: {self.metric} {self.figure:.1f} % of {self.n_rows} rows of view 0"
        if self.order is not None:
            return (
                f"{text}, and {self.in_order:.1f} % if its classes are in {self.order} order: declare "
                f"--contract {name}=classes={self.order} before it teaches with --method kd"
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
        return f"{text}: as a teacher of these classes (--method kd) it would teach nothing right"


def known_columns(
    contract: Contract, name: str, n_classes: int, dataset: Dataset
) -> NDArray[np.int64] | None:
    """The column of each target class in a source whose classes are the target's, or seem to be: by its
    contract, or by their number where the source is the user's own or of the target's name. Else None.
    """
    classes, kind = dataset.classes, kind_of(name)
    if contract.classes is not None:
        found = columns_of(contract.classes, classes) if n_classes == len(classes) else None
        if found is not None or kind.prefix != dataset.target:
            return found
    likely = kind.is_path or kind.prefix == dataset.target
    return np.arange(n_classes) if likely and n_classes == len(classes) else None


def knowledge_of(
    logits: torch.Tensor, dataset: Dataset, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Knowledge:
    """Answers (n, K) to the index rows `rows`, held against their labels; `columns` as in
    `sskt.sources.class_order`.
    """
    orders = known_orders(dataset.classes)
    if dataset.multi_hot is not None:
        return _of_multi_hot(logits, dataset.multi_hot[rows], columns, orders)
    truth, said = dataset.labels[rows], logits.argmax(dim=1).numpy()
    n, n_classes = len(rows), len(columns)
    figure = _share(columns[truth] == said)
    of_truth = np.bincount(columns[truth], minlength=n_classes) / n
    chance = float(of_truth @ (np.bincount(said, minlength=n_classes) / n))
    spread = 100 * math.sqrt(chance * (1 - chance) / n)
    near = figure <= 100 * chance + 3 * spread + _NEAR_CHANCE
    gain = 300 * math.sqrt(0.25 / n) + _GAIN
    figures = {name: _share(order[truth] == said) for name, order in orders.items()}
    best = max(figures, key=lambda name: figures[name], default=None)
    found = ("top-1", n, figure, 100 * chance, near)
    matched = _matched(said, truth, n_classes) if near else 0.0
    if best is not None and figures[best] > max(figure + gain, matched - gain):
        return Knowledge(*found, order=best, in_order=figures[best])
    return Knowledge(*found, matched=matched if matched > figure + 2 * gain else None)


def say_what_rows_know(store: Store, spec: SourceSpec, dataset: Dataset) -> None:
    """After stage one: how often the stored rows of view 0 are right, where the source's classes are the
    target's.
    """
    columns = known_columns(spec.contract, spec.name, spec.n_classes, dataset)
    if columns is None or store.whole_views < 1:
        return
    rows = some_rows(dataset, spec.n_classes)
    stored = torch.from_numpy(store.rows(0, store.positions_of(dataset.ids[rows])))
    logits = stored if store.top_k is None else decode(stored, store.n_classes, 1.0)
    log.info(knowledge_of(logits.float(), dataset, rows, columns).sentence(spec.name, dataset.target))


def some_rows(dataset: Dataset, n_classes: int) -> NDArray[np.int64]:
    """Index rows, sorted and evenly spread, as many as are quickly read."""
    most = min(len(dataset), MOST_ROWS, max(1, _MOST_NUMBERS // n_classes))
    return np.unique(np.linspace(0, len(dataset) - 1, most).round().astype(np.int64))


def _of_multi_hot(
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
    found = ("mAP", len(multi_hot), figure, chance, figure <= 1.5 * chance + _NEAR_CHANCE)
    if best is not None and figures[best] > figure + _GAIN_MAP:
        return Knowledge(*found, order=best, in_order=figures[best])
    return Knowledge(*found)


def _matched(said: NDArray[np.int64], truth: NDArray[np.int64], n_classes: int) -> float:
    """Each answer taken for the class that it goes with most often in every other row; scored on the rest."""
    together = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(together, (said[::2], truth[::2]), 1)
    return _share(together.argmax(axis=1)[said[1::2]] == truth[1::2])


def _share(right: NDArray[np.bool_]) -> float:
    return 100 * float(right.mean()) if len(right) else 0.0
