"""The published result rows of both papers (published.csv), by table: S1 to S8 of the supplement, M2, M7 and
M8 of the main paper, R of the authors' page, and G of graph distillation, which also cites other papers.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sskt.errors import RunError

_FILE = Path(__file__).with_name("published.csv")
_PSI = re.compile(r"maxl psi=(\d+)")
_CITED = "cited: "  # prefix of the authors of a row that the table cites from another paper
GRAPH = "G"  # the second paper's tables 1 and 2, which print no column of initial weights
TEACHERS_ALONE = ("models fusion", "models ensemble")  # rows of that table without a student
_PRETRAINED = "alexnet imagenet-pretrained"


@dataclass(frozen=True, slots=True)
class Published:
    """One row: what was run, and its result in percent."""

    table: str
    target: str
    model: str  # "" if there is no student
    method: str  # of sskt.methods.METHODS, "finetune" or "cited"; of table G in that paper's words
    init: str  # "random", or the task of the weights that the student started from; "" of cited rows
    sources: tuple[str, ...]
    transfer_module: bool
    primary_loss: str  # "" if the method has its own
    aux_loss: str  # likewise
    psi: int | None  # maxl only
    metric_percent: float
    std: float | None
    authors: str = ""  # with year, for a cited row: another paper's figure, shown but never run

    @property
    def is_cited(self) -> bool:
        """Whether the table cites the figure from another paper, so that there is nothing to train."""
        return self.method == "cited"

    @property
    def name(self) -> str:
        """The row's name, the same in every table, and its runs' folder name."""
        if self.is_cited:
            return f"{self.target}-cited-{re.sub(r'[^A-Za-z0-9]+', '-', self.authors).strip('-')}"
        if self.table == GRAPH:
            return f"{self.target}-{self.method.replace(' ', '-')}"
        words = [self.target, self.model, self.method]
        words += [f"from-{self.init}"] if self.init != "random" else []
        words += ["+".join(source.replace(":", "-") for source in self.sources)] if self.sources else []
        words += ["tm"] if self.transfer_module else []
        words += [self.aux_loss] if self.aux_loss and self.sources else []
        words += [f"psi{self.psi}"] if self.psi else []
        return "-".join(words)


def published_rows(table: str | None = None) -> list[Published]:
    """All rows, or those of one table, in the file's order. Raises RunError for an unknown table."""
    rows = _all_rows()
    tables = list(dict.fromkeys(row.table for row in rows))
    if table is not None and table not in tables:
        raise RunError(f"--table is {table!r}, expected one of {', '.join(tables)}")
    return [row for row in rows if table is None or row.table == table]


@cache
def _all_rows() -> tuple[Published, ...]:
    with _FILE.open(newline="", encoding="utf-8") as file:
        return tuple(_row(fields) for fields in csv.DictReader(file))


def _row(fields: dict[str, str]) -> Published:
    method, primary, auxiliary = fields["method"], fields["primary_loss"], fields["aux_loss"]
    psi = _PSI.fullmatch(method)
    authors = method.removeprefix(_CITED) if method.startswith(_CITED) else ""
    sources = tuple(_source(name) for name in fields["sources"].split("+") if name)
    if sources and not auxiliary:  # table R names one loss for both
        auxiliary = primary
    return Published(
        fields["table"],
        fields["target"],
        "" if method in TEACHERS_ALONE else fields["model"],
        "cited" if authors else "maxl" if psi else method,
        fields["init"] or ("" if authors else "imagenet" if method == _PRETRAINED else "random"),
        sources,
        fields["transfer_module"] == "yes",
        primary,
        auxiliary,
        int(psi[1]) if psi else None,
        float(fields["metric_percent"]),
        float(fields["std"]) if fields["std"] else None,
        authors,
    )


def _source(name: str) -> str:
    """Convert imagenet(vgg16) to our notation, imagenet:vgg16."""
    return re.sub(r"(\w+)\((\w+)\)", r"\1:\2", name)
