"""The options of method graph."""

from __future__ import annotations

import click

from pipeline.commands.options import choice_option, section


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
        "em cosine off",
        "em",
        "Distance from each teacher: earth mover's distance of probabilities, 1 - cosine of logits (MMGD), "
        "or none.",
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
    choice_option(
        "--graph-features",
        "off uniform graph",
        "off",
        "Compare the student's fourth layer with each teacher's maps, or with the products of each pair's; "
        "needs --source NAME@layer4 for each.",
    ),
    choice_option(
        "--vertices",
        "located flat",
        "located",
        "Products of two teachers' maps: position by position, or of whole maps.",
    ),
    click.option(
        "--sketch-dim",
        type=click.IntRange(min=1),
        help="Channels of such a product. [default: 512, flat: 64]",
    ),
    click.option("--rep-weight", type=float, help="Weight of the loss of --graph-features. [default: 1]"),
    click.option(
        "--rep-temperature",
        type=float,
        help="Flattens where the channels of maps or products are active. [default: 1]",
    ),
    click.option(
        "--teacher-temperature",
        multiple=True,
        metavar="NAME=T",
        callback=_named_numbers,
        help="Temperature of one source's logits. Repeatable. [default: such that all are equally soft "
        "on average, around --temperature]",
    ),
    click.option(
        "--gradient-norms",
        is_flag=True,
        default=None,
        help="Record the norm of each loss's gradient on the student's fourth layer.",
    ),
)
