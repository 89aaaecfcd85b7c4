"""--config FILE: settings of a run from YAML or JSON, by the names of config.json, each checked as its
option.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import FILE, Decorator
from pipeline.commands.settings_text import parsed, refused

_REPEATED = "sskt.repeated"  # in a context's meta: who follows a run that repeats another

_ABSENT = (None, "", "~", "null")
_OF_AUGMENTATION = {"seed": "plan_seed"}  # an option by another name
_OF_COMMAND = ("config", "resume", "trackers", "as_json", "help")  # what a file does not say


def config_option(text: str, *, stage_one: bool = False) -> Decorator:
    """--config, whose values stand where the command line says nothing. Of a command of stage one
    (`stage_one`) the settings of a student are read over.
    """
    return click.option(
        "--config",
        type=FILE,
        is_eager=True,
        expose_value=False,
        callback=_read_stage_one if stage_one else _read_train,
        help=text,
    )


def _read_train(ctx: click.Context, _option: click.Parameter, path: Path | None) -> None:
    """Make the file's settings the defaults of `sskt train`."""
    if path is not None:
        options = _options(ctx.command)
        ctx.default_map = _checked(ctx, path, _settings(ctx, path), options, options)


def _read_stage_one(ctx: click.Context, _option: click.Parameter, path: Path | None) -> None:
    """Of a run's settings, make those that stores depend on the defaults of `sskt precompute`."""
    if path is None:
        return
    from pipeline.commands.train import train
    from sskt.sources import asked_of

    of_train, own = _options(train), _options(ctx.command)
    # by these names a file means the student
    own = {name: option for name, option in own.items() if name not in ("amp", "batch_size", "compiled")}
    found = dict(_settings(ctx, path))
    if "target" in found:
        found["targets"] = found.pop("target")
    if isinstance(names := found.get("sources"), str | list):
        found["sources"] = [each for name in _texts(names) for each in asked_of(name) or (name,)]
    ctx.default_map = _checked(ctx, path, found, own, {**of_train, **own})


def _options(command: click.Command) -> dict[str, click.Parameter]:
    """A command's options by the names of their settings."""
    return {
        option.name: option for option in command.params if option.name and option.name not in _OF_COMMAND
    }


def _settings(ctx: click.Context, path: Path) -> Mapping[str, Any]:
    """What a file says; of a run's own config.json, the settings that repeat it."""
    found = parsed(path)
    if not {"plan", "eval_plan", "contents"} <= set(found):
        return dict(_flat(path, found))
    from pipeline.train.repeat import repeated_settings
    from pipeline.train.repeated_run import RepeatedRun

    recorded = json.loads(path.read_text(encoding="utf-8"))
    ctx.meta[_REPEATED] = RepeatedRun(recorded, path)
    return dict(_flat(path, repeated_settings(path.parent, recorded)))


def _flat(path: Path, found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by the names of options: those below `augmentation` have options of their own."""
    for name, value in found.items():
        if name != "augmentation" or value in _ABSENT:
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((_OF_AUGMENTATION.get(str(key), str(key)), each) for key, each in value.items())
        else:
            raise refused(f"{path}: augmentation is {value!r}, expected settings by name such as side_px: 64")


def _checked(
    ctx: click.Context,
    path: Path,
    found: Mapping[str, Any],
    options: Mapping[str, click.Parameter],
    known: Mapping[str, click.Parameter],
) -> dict[str, Any]:
    """The values of a file as its `options` take them; others that are `known` are read over. Raises
    BadParameter for a name that is not, or a value that its option refuses.
    """
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name not in known:
            raise refused(f"{path}: {name} is no setting{_near(name, known)}")
        if value in _ABSENT or name not in options:
            continue
        option = options[name]
        try:
            values[name] = _as_told(option, value)
            option.process_value(ctx, values[name])
        except click.BadParameter as error:
            raise refused(f"{path}: {name}: {error.message}") from None
    return values


def followers_of_config() -> list[Any]:
    """Who says where a run departs from the one that its --config repeats; nobody if it repeats none."""
    follower = click.get_current_context().meta.get(_REPEATED)
    return [] if follower is None else [follower]


def _near(name: str, known: Collection[str]) -> str:
    """A hint at names like an unknown one."""
    derived = _derived()
    if name in derived:
        return ", a run works it out itself; leave it out"
    near = difflib.get_close_matches(name.replace("-", "_"), [*known, "augmentation"], n=3, cutoff=0.6)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return meant or "; sskt config prints those that there are"


def _derived() -> set[str]:
    """The fields of config.json that nobody sets."""
    from pipeline.train.config import TrainConfig

    return set(TrainConfig.__annotations__)


def _as_told(option: click.Parameter, value: Any) -> Any:
    """A value in the form in which an option takes it from the command line."""
    if isinstance(value, Mapping):
        if not option.multiple:
            raise click.BadParameter(f"{value!r} is a mapping, expected {option.type.name}")
        return [f"{name}={_text(each)}" for name, each in value.items()]
    if option.multiple:
        return _texts(value)
    return ",".join(_texts(value)) if isinstance(value, list | tuple) else _text(value)


def _texts(value: Any) -> list[str]:
    return [_text(each) for each in value] if isinstance(value, list | tuple) else [_text(value)]


def _text(value: Any) -> str:
    """A scalar as a user would type it."""
    if isinstance(value, Mapping | list | tuple):
        raise click.BadParameter(f"{value!r} is not one value")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
