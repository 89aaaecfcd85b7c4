"""The options of method graph."""

from __future__ import annotations

import click

from pipeline.commands.option_kinds import choice_option, section


def _named_numbers(_ctx: click.Context, _option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, float]:
    """NAME=T pairs; a name may hold '=', a number does not."""
    found = {}
    for pair in pairs:
        name, equals, number = pair.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise click.BadParameter(f"{pair!r} is not NAME=T, e.g. run:runs/teacher=2.0")
    return found


GRAPH = section(
    "Graph distillation",
    choice_option(
        "--graph-logits",
        "em cosine",
        "em",
        "Distance from each teacher: earth mover's distance of probabilities, or 1 - cosine of logits "
        "(MMGD).",
    ),
    choice_option(
        "--edges",
        "learned gain uniform",
        "learned",
        "Weights between teachers: learned, by how much better the student imitates one than another, or "
        "all alike.",
    ),
    choice_option(
        "--transport",
        "sample batch",
        "sample",
        "Compare the answers about each sample, or match those about the whole batch at the least cost.",
    ),
    click.option(
        "--teacher-temperature",
        multiple=True,
        metavar="NAME=T",
        callback=_named_numbers,
        help="Temperature of one source's logits. Repeatable. [default: such that all are equally soft "
        "on average, around --temperature]",
    ),
)
