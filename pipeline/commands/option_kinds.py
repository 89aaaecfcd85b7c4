"""The kinds of options that repeat, and what groups them: on a help page, or into one argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

VIEWS, EXECUTION, PLACES = "Augmentation", "Execution", "Files"  # sections
RARE = "Rarely needed"  # the last section of a page

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which --help shows them."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def as_argument(argument: str, build: Callable[..., Any], *decorators: Decorator) -> Decorator:
    """Several options that the command receives as one argument: `argument` = build(**their values)."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**values: Any) -> Any:
            values[argument] = build(**{name: values.pop(name) for name in names})
            return function(**values)

        before = list(getattr(command, "__click_params__", []))
        decorated = options(*decorators)(command)
        names = [option.name for option in decorated.__click_params__ if option not in before]  # type: ignore[attr-defined]
        return decorated

    return apply


def section(title: str, *decorators: Decorator) -> Decorator:
    """Options that stand together on the help page of a `pipeline.commands.front.Sectioned` command, except
    for those that have a section already.
    """

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        before = list(getattr(function, "__click_params__", []))
        function = options(*decorators)(function)
        for option in function.__click_params__:  # type: ignore[attr-defined]
            if option not in before and not hasattr(option, "section"):
                option.section = title
        return function

    return apply


def rare(decorator: Decorator) -> Decorator:
    """An option that few need: it stands in the last section of the page."""
    return section(RARE, decorator)


def folder_option(flag: str, default: str | None, text: str, **more: Any) -> Decorator:
    """A folder, which need not be there yet."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option(
        flag, type=kind, default=default and Path(default), show_default=bool(default), help=text, **more
    )


def count_option(
    flag: str,
    text: str,
    default: int | None = None,
    low: int = 1,
    high: int | None = None,
    name: str | None = None,
) -> Decorator:
    """A whole number from `low` on; `name` is the argument's, where it is not the flag's."""
    names = (flag, name) if name else (flag,)
    kind = click.IntRange(min=low, max=high)
    return click.option(*names, type=kind, default=default, show_default=default is not None, help=text)


def number_option(flag: str, text: str, *, positive: bool = True, default: float | None = None) -> Decorator:
    """A number above 0, or from 0 on."""
    kind = click.FloatRange(min=0, min_open=positive)
    return click.option(flag, type=kind, default=default, show_default=default is not None, help=text)


def choice_option(flag: str, values: str, default: str | None, text: str, **more: Any) -> Decorator:
    """One of some words, given as one string."""
    kind = click.Choice(values.split())
    return click.option(flag, type=kind, default=default, show_default=default is not None, help=text, **more)


def text_option(flag: str, text: str, name: str | None = None, **more: Any) -> Decorator:
    """Any text; `name` is the argument's, where it is not the flag's."""
    return click.option(*((flag, name) if name else (flag,)), default=None, help=text, **more)
