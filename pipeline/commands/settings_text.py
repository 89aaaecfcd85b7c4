"""The text of a settings file, YAML or JSON, as names and words."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click


def parsed(path: Path) -> dict[str, Any]:
    """A file's settings, with numbers and words as text, so that options read them as on the command line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refused(f"{path}: cannot be read ({error}); give a YAML or JSON file") from None
    try:
        found = json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=lambda p: _unique(path, p))
    except json.JSONDecodeError as error:
        if path.suffix == ".json":
            raise refused(f"{path}: is no JSON ({error}); correct it") from None
        found = _parsed_yaml(path, text)
    if not isinstance(found, dict):
        raise refused(f"{path}: holds {type(found).__name__}, expected settings by name such as epochs: 30")
    return found


def _parsed_yaml(path: Path, text: str) -> Any:
    import yaml

    loader: Any = type("Loader", (yaml.BaseLoader,), {})  # scalars stay text

    def mapping(of: Any, node: Any) -> dict[str, Any]:
        return _unique(path, [tuple(of.construct_object(n, deep=True) for n in pair) for pair in node.value])

    loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, loader) or {}  # noqa: S506 - builds lists, mappings and text alone
    except yaml.YAMLError as error:
        raise refused(f"{path}: is no YAML ({' '.join(str(error).split())}); correct it") from None


def _unique(path: Path, pairs: Collection[Any]) -> dict[str, Any]:
    """Pairs as a mapping. Raises BadParameter for a name that stands twice: one would be lost."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise refused(f"{path}: {name!r} is no name of a setting")
        if name in found:
            raise refused(f"{path}: {name} stands twice; leave one out")
        found[name] = value
    return found


def refused(message: str) -> click.BadParameter:
    """The error of a file that --config cannot take."""
    return click.BadParameter(message, param_hint="--config")
