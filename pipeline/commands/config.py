"""The command that prints what a run would do."""

from __future__ import annotations

import click

from pipeline.commands.front import Sectioned
from pipeline.commands.train import train


@click.command(
    cls=Sectioned, params=[param for param in train.params if param.name not in ("resume", "out", "trackers")]
)
def config(**told: object) -> None:
    """Print what sskt train would do, and train nothing.

    One line per setting that the run reads, and where its value comes from: the command line, the file of
    --config, the recipe or a default; null: the data will settle it. What is printed can be given to
    --config.
    """
    assert train.callback is not None  # noqa: S101 - what click.command decorates
    train.callback(resume=None, out=None, trackers=(), only_resolve=True, **told)
