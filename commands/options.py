"""Options: the kinds that repeat, those that several commands share, and those that make one object."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.choices import Augmentation, Places
    from pipeline.execution import Execution
    from pipeline.targets.video.pack import Packing

VIEWS, EXECUTION, PLACES = "What is shown", "How it is computed", "Where things lie"  # sections

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which --help shows them."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def together(argument: str, build: Callable[..., Any], *decorators: Decorator) -> Decorator:
    """Options that make one object: the command is given `argument` = build(**their values)."""

    def nothing() -> None: ...

    names = [option.name for option in options(*decorators)(nothing).__click_params__]  # type: ignore[attr-defined]

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**values: Any) -> Any:
            values[argument] = build(**{name: values.pop(name) for name in names})
            return function(**values)

        return options(*decorators)(command)

    return apply


def section(title: str, *decorators: Decorator) -> Decorator:
    """Options that stand together on the help page of a `commands.front.Sectioned` command."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        before = list(getattr(function, "__click_params__", []))
        function = options(*decorators)(function)
        for option in function.__click_params__:  # type: ignore[attr-defined]
            if option not in before:
                option.section = title
        return function

    return apply


def build_places(data_dir: Path, cache_dir: str, weights: tuple[str, ...] = ()) -> Places:
    """NAME=PATH pairs: a name holds no '=', a path may."""
    from cache.files import location
    from pipeline.choices import Places

    for pair in weights:
        if "=" not in pair:
            raise click.BadParameter(
                f"{pair!r} is not NAME=PATH, e.g. imagenet=resnet50.pth", param_hint="--weights"
            )
    return Places(
        data_dir, location(cache_dir), {n: Path(p) for n, _, p in (pair.partition("=") for pair in weights)}
    )


def build_execution(
    device: str,
    renderer: str,
    threads: int | None,
    amp: str = "auto",
    batch_size: int | None = None,
    compiled: bool | None = None,
) -> Execution:
    """`HOW`'s options, and stage one's, as one object; see `choose_execution`."""
    from pipeline.choices import choose_execution

    return choose_execution(
        device=device, amp=amp, renderer=renderer, threads=threads, batch_size=batch_size, compiled=compiled
    )


def build_augmentation(plan_seed: int, plan_kind: str | None, **shown: Any) -> Augmentation:
    """The plan that a user asks for; see `Augmentation`."""
    from pipeline.choices import Augmentation

    return Augmentation(plan_seed, plan_kind, **shown)


def build_packing(short_px: int, quality: int) -> Packing:
    """How frames of videos are packed; see `Packing`."""
    from pipeline.targets.video.pack import Packing

    return Packing(short_px, quality)


def build_target(target: str | None, split: str | None) -> str | None:
    """A target by name and --split."""
    from pipeline.targets.spec import TARGETS

    if target is None or split is None:
        return target
    splitting = [name for name, spec in TARGETS.items() if spec.videos is not None]
    if target not in splitting:
        raise click.BadParameter(f"is for {' and '.join(splitting)}, not for {target}", param_hint="--split")
    return f"{target}:{split}"


def build_targets(targets: tuple[str, ...], split: str | None) -> list[str]:
    """Several of them."""
    return [target for target in (build_target(name, split) for name in targets) if target is not None]


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


def choice_option(flag: str, values: str, default: str | None, text: str) -> Decorator:
    """One of some words, given as one string."""
    return click.option(
        flag, type=click.Choice(values.split()), default=default, show_default=default is not None, help=text
    )


def text_option(flag: str, text: str, name: str | None = None, **more: Any) -> Decorator:
    """Any text; `name` is the argument's, where it is not the flag's."""
    return click.option(*((flag, name) if name else (flag,)), default=None, help=text, **more)


DATA_DIR = folder_option(
    "--data-dir", "data", "Data sets and downloaded weights.", envvar="SSKT_DATA_DIR", show_envvar=True
)
CACHE_DIR = click.option(
    "--cache-dir",
    default="stores",
    show_default=True,
    metavar="DIRECTORY|URL",
    help="Stores and target indexes; s3://bucket/stores and the like keep the stores elsewhere.",
    envvar="SSKT_CACHE_DIR",
    show_envvar=True,
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
LIMIT = count_option("--limit", "Use a fixed stratified subset of N training samples.")
WEIGHTS = click.option(
    "--weights",
    multiple=True,
    metavar="NAME=PATH",
    help="Local weights of a source (.pth, .ckpt, .bin, .safetensors), as imagenet=resnet50.pth. Repeatable.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    show_default="all cores, under torchrun a process's part",
    help="Threads that decode pictures.",
)
HOW = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    choice_option("--renderer", "auto dali torch resident", "auto", "What draws the pictures."),
    THREADS,
)
SHOWN = (
    text_option(
        "--plan",
        "pad-crop-flip, random-resized-crop-flip or centre; of clips corner-clip or centre-clip. "
        "[default: the target's]",
        "plan_kind",
    ),
    count_option(
        "--size", "Side in pixels of what the student sees. [default: the target's]", name="side_px"
    ),
    count_option(
        "--source-size",
        "Side in pixels of what the sources see. [default: 7/3 of --size for small pictures, "
        "twice for clips, else --size]",
        name="source_side_px",
    ),
    count_option("--clip-frames", "Frames of a clip. [default: 16]", name="n_frames"),
    count_option("--stride", "Frames from one of a clip's to the next. [default: 1]"),
    text_option(
        "--source-frames",
        "What picture sources see of a clip: center_frame, mean_frame, frames:K, "
        "frames:K:log-probabilities or reference. [default: center_frame]",
    ),
)
PLANNED = together(  # of what trains; stage one calls the seed --seed
    "augmentation",
    build_augmentation,
    section(
        VIEWS,
        count_option("--plan-seed", "Seed of the augmentation plan: precompute's --seed.", 0, low=0),
        *SHOWN,
    ),
)
SPLIT = choice_option("--split", "1 2 3", None, "Official split of ucf101 or hmdb51. [default: 1]")
