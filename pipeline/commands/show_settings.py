"""Print the settings of a run, and who chose each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from pipeline.commands.output import tell, tell_json

_WHO = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file of --config",
}


def show_settings(settings: Mapping[str, Any], as_json: bool) -> None:
    """Print settings as a file for --config, each with a comment on who chose its value, or as JSON."""
    if as_json:
        tell_json(settings)
        return
    import yaml

    plain = {name: value for name, value in settings.items() if name != "augmentation"}
    lines = yaml.safe_dump(plain, default_flow_style=None, sort_keys=False, width=10_000).splitlines()
    width = min(40, max(map(len, lines)))
    for (name, value), line in zip(plain.items(), lines, strict=True):
        tell(f"{line.ljust(width)}  # {_chosen_by(name, value)}")
    seen = {name: value for name, value in settings["augmentation"].items() if value is not None}
    tell(yaml.safe_dump({"augmentation": seen}, default_flow_style=False, sort_keys=False).rstrip())


def _chosen_by(name: str, value: Any) -> str:
    """Who chose a setting's value, in words."""
    from pipeline.train.config import SETTLED_BY_DATA
    from sskt.recipes import SETTINGS

    source = click.get_current_context().get_parameter_source(name)
    if source in _WHO:
        return _WHO[source]
    if value is None:
        return "settled by the data" if name in SETTLED_BY_DATA else "not set"
    return "recipe" if name in SETTINGS else "default"
