"""The kinds of options and their sections, and the options that several commands share with the objects that
are built of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.data import Augmentation, Packing
    from pipeline.runtime import Execution, Paths

VIEWS, EXECUTION, PLACES = "Augmentation", "Execution", "Files"  # sections
RARE = "Rarely needed"  # the last section of a page

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class LocalPath(click.Path):
    """A path on this machine. A URL would be taken for a folder called s3:."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`; refuses URLs."""
        if "://" in str(value):
            self.fail(
                f"{value} is a URL, expected a local path; copy the files to or from it yourself", param, ctx
            )
        return super().convert(value, param, ctx)


PATH, FILE = LocalPath(path_type=Path), LocalPath(path_type=Path, dir_okay=False)
FOLDER = LocalPath(path_type=Path, file_okay=False)


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
    return click.option(
        flag, type=FOLDER, default=default and Path(default), show_default=bool(default), help=text, **more
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


def build_paths(
    data_dir: Path, cache_dir: str, weights: tuple[str, ...] = (), contracts: tuple[str, ...] = ()
) -> Paths:
    """NAME=PATH and NAME=KEY=VALUE pairs: a name holds no '=', a path may."""
    from cache.storage import location, require_bucket
    from pipeline.runtime import Paths
    from sskt.sources import parse_told

    for pair in weights:
        if "=" not in pair:
            raise click.BadParameter(
                f"{pair!r} is not NAME=PATH, e.g. imagenet=resnet50.pth", param_hint="--weights"
            )
    for pair in contracts:
        if pair.count("=") < 2:
            raise click.BadParameter(
                f"{pair!r} is not NAME=KEY=VALUE, e.g. program:teacher.pt2=mean=0.5,std=0.5",
                param_hint="--contract",
            )
    place = location(cache_dir)
    require_bucket(place)  # also where a command would not look there
    return Paths(
        data_dir,
        place,
        {n: Path(p) for n, _, p in (pair.partition("=") for pair in weights)},
        {n: parse_told(told) for n, _, told in (pair.partition("=") for pair in contracts)},
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
    from pipeline.runtime import choose_execution

    return choose_execution(
        device=device, amp=amp, renderer=renderer, threads=threads, batch_size=batch_size, compiled=compiled
    )


def build_augmentation(plan_seed: int, kind: str | None, **shown: Any) -> Augmentation:
    """The plan that a user asks for; see `Augmentation`."""
    from pipeline.data import Augmentation

    return Augmentation(plan_seed, kind, **shown)


def build_packing(short_px: int, quality: int, every: int | None) -> Packing:
    """How frames of videos are packed; see `Packing`."""
    from pipeline.data import Packing

    return Packing(short_px, quality, every)


def build_target(target: str | None, split: str | None) -> str | None:
    """A target by name and --split."""
    from pipeline.data import TARGETS, family_of

    if target is None or split is None:
        return target
    splitting = [name for name, spec in TARGETS.items() if family_of(spec).official_splits]
    if target not in splitting:
        raise click.BadParameter(f"is for {' and '.join(splitting)}, not for {target}", param_hint="--split")
    return f"{target}:{split}"


def build_targets(targets: tuple[str, ...], split: str | None) -> list[str]:
    """Several of them."""
    return [target for target in (build_target(name, split) for name in targets) if target is not None]


DATA_DIR = folder_option(
    "--data-dir", "data", "Datasets and downloaded weights.", envvar="SSKT_DATA_DIR", show_envvar=True
)
CACHE_DIR = click.option(
    "--cache-dir",
    default="stores",
    show_default=True,
    metavar="DIRECTORY|URL",
    help="Stores and dataset indexes; a URL such as s3://bucket/stores keeps the stores elsewhere.",
    envvar="SSKT_CACHE_DIR",
    show_envvar=True,
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
MOVED = text_option(
    "--target", "Where your own dataset is now, such as imagefolder:PATH. [default: as recorded]"
)
BEST = click.option(
    "--best", is_flag=True, help="Take the student of the best epoch instead of the last one."
)
LIMIT = count_option("--limit", "Use a fixed stratified subset of N training samples.")
UNLABELLED = click.option(
    "--unlabelled",
    multiple=True,
    help="More training images, whose labels are not read: the training split of another target, or all "
    "images below a folder; stl10 for STL10's own 100,000. Repeatable. [default: the split "
    "unlabelled of your own data; none: not even that]",
)
WEIGHTS = click.option(
    "--weights",
    multiple=True,
    metavar="NAME=PATH",
    help="Local weights of a source (.pth, .ckpt, .bin, .safetensors), e.g. imagenet=resnet50.pth. "
    "Repeatable.",
)
CONTRACT = rare(
    click.option(
        "--contract",
        "contracts",
        multiple=True,
        metavar="NAME=KEY=VALUE",
        help="What a source expects and returns, if its file does not declare it: mean=0.5/0.5/0.5, std=0.5, "
        "range=0/255, channels=bgr, interpolation=bicubic, size=224, returns=logits, log-probabilities, "
        "probabilities, sigmoids or embedding, classes=FILE (one name per line) or an order of the target's "
        "names: target, numeric, text, case-insensitive or reversed; prompts=FILE (one per line, {} is the "
        "class's name) for zero-shot classifiers. Separate several by commas. Repeatable.",
    )
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    show_default="all cores, shared by torchrun's processes",
    help="Threads that decode images.",
)
HOW = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    rare(
        choice_option(
            "--renderer",
            "auto dali dali-cpu torch resident",
            "auto",
            "Backend that decodes and crops images.",
        )
    ),
    rare(THREADS),
)
SHOWN = (
    text_option(
        "--plan",
        "pad-crop-flip, random-resized-crop-flip or centre; for clips corner-clip or centre-clip. "
        "[default: the target's]",
        "kind",
    ),
    count_option("--size", "Side in pixels of the student's input. [default: the target's]", name="side_px"),
    count_option(
        "--source-size",
        "Side in pixels of the sources' input. [default: 7/3 of --size for small images, "
        "twice --size for clips, else --size]",
        name="source_side_px",
    ),
    text_option(
        "--augment",
        "Change the cropped pixels that student and sources see: randaugment[:N:M], by N operations at "
        "magnitude M of 30 (2:9), or trivialaugment. [default: none]",
    ),
    text_option(
        "--color-jitter",
        "Strengths of brightness,contrast,saturation,hue, e.g. 0.4,0.4,0.4,0.1; one number is for the first "
        "three. [default: none]",
    ),
    number_option(
        "--random-erasing", "Probability that a box in an image becomes black. [default: 0]", positive=False
    ),
    rare(count_option("--clip-frames", "Frames per clip. [default: 16]", name="n_frames")),
    rare(count_option("--stride", "Step between the frames of a clip. [default: 1]")),
    rare(
        text_option(
            "--source-frames",
            "What image sources see of a clip: center_frame, mean_frame, frames:K, "
            "frames:K:log-probabilities or reference. [default: center_frame]",
        )
    ),
    rare(
        choice_option(
            "--source-input",
            "released earlier",
            "released",
            "Scale and normalise the sources' input as the released code does, or as stores made before this "
            "option existed.",
        )
    ),
)
PLANNED = as_argument(  # of what trains; stage one calls the seed --seed
    "augmentation",
    build_augmentation,
    section(
        VIEWS,
        rare(count_option("--plan-seed", "Seed of the augmentation plan: --seed of precompute.", 0, low=0)),
        *SHOWN,
    ),
)


def _clips(_ctx: click.Context, _option: click.Parameter, text: str) -> int | str:
    """A whole number from 1 on, or all."""
    if text == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is not a number of clips such as 10, nor all")
    return int(text)


CLIPS = click.option(
    "--clips",
    default="10",
    show_default=True,
    metavar="N|all",
    callback=_clips,
    help="Clips per video: N evenly spaced ones, or all consecutive ones, as in the released test script.",
)
SCORING = options(  # of a run, by commands that ask its student
    CLIPS, BEST, as_argument("execution", build_execution, *HOW), MOVED, DATA_DIR, CACHE_DIR
)
BEGINNING = (
    choice_option(
        "--init",
        "released torch",
        None,
        "Initialisation of the heads. [default: released for resnet* and resnet3d*, else torch]",
    ),
    choice_option(
        "--clip-mean",
        "activitynet kinetics",
        "activitynet",
        "Mean that resnet3d* subtract; the released code: activitynet.",
    ),
)
SPLIT = choice_option("--split", "1 2 3", None, "Official split of ucf101 or hmdb51. [default: 1]")
