"""What the user said on the command line or in the environment, as opposed to defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pipeline.commands.options import build_paths

if TYPE_CHECKING:
    from pipeline.runtime import Paths


def paths_of(run: str | Path) -> Paths:
    """Where a run found its data, stores and weights, except what the command line says."""
    from pipeline import api

    context = click.get_current_context()
    told = {name: value for name, value in context.params.items() if is_told(context, name)}
    built = build_paths(told.get("data_dir", Path()), told.get("cache_dir", ""), told.get("weights", ()))
    names = [name for name in ("data_dir", "cache_dir", "weights") if name in told]
    return api.paths_of(run, **{name: getattr(built, name) for name in names})


def require_alone(allowed: str) -> None:
    """Refuse options that the run which --resume continues has settled: all but those in `allowed`."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name not in allowed.split() and is_told(context, option.name or ""):
            raise click.UsageError(
                f"{option.opts[0]} is settled by the run that --resume continues; leave it out"
            )


def is_told(context: click.Context, name: str) -> bool:
    """Whether the user gave an option, on the command line or in the environment."""
    return context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
