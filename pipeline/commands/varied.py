"""--vary of sskt sweep: values of sskt train's options, as these declare them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from pipeline.commands.told import is_told


def varied(
    ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, tuple[Any, ...]]:
    """NAME=V,V pairs, as values by the name of the setting."""
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        word, equals, values = text.partition("=")
        word = word.strip().removeprefix("--")
        if not equals or not values.strip():
            raise click.BadParameter(f"{text!r} is not NAME=V,V such as probe-weight=0.5,0.9")
        option = _option_called(word)
        name = option.name or ""
        if name in found:
            raise click.BadParameter(f"{word} is given twice; list all of its values in one")
        found[name] = tuple(_value(ctx, option, word, value.strip()) for value in values.split(","))
        if len(set(found[name])) < len(found[name]):
            raise click.BadParameter(f"{text} has a value twice; leave one of them out")
    return found


def require_once(names: Collection[str]) -> None:
    """Refuse varied settings that the command line also gives by an option of their own."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and is_told(context, option.name or ""):
            word = option.opts[0]
            raise click.UsageError(f"{word} and --vary {word[2:]} both set it; leave one of them out")


def _option_called(word: str) -> click.Option:
    """The option of sskt train. Raises BadParameter for one that a sweep does not vary."""
    from pipeline.commands.train import train
    from pipeline.studies.sweep_grid import VARIABLE

    own = {"temperature": "--temperatures", "alpha": "--alphas", "source": "--sources"}
    if word in own:
        raise click.BadParameter(f"{word} has an option of its own, {own[word]}")
    known = {
        option.opts[0][2:]: option
        for option in train.params
        if isinstance(option, click.Option) and option.name in VARIABLE
    }
    if word not in known:
        raise click.BadParameter(f"{word!r} cannot be varied, expected one of {', '.join(sorted(known))}")
    return known[word]


def _value(ctx: click.Context, option: click.Option, word: str, text: str) -> Any:
    try:
        return option.type.convert(text, option, ctx)
    except click.BadParameter as error:
        raise click.BadParameter(f"{word}: {error.message}") from None
