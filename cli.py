"""The front door: each command parses, calls one function of the pipeline, and prints what came out.

The errors of our own rooms become one line and exit code 1; nothing heavy is imported before a command needs
it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.api import Supervision
    from pipeline.choices import Augmentation, Places
    from pipeline.execution import Execution

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_STOPPED = {  # what Ctrl-C leaves behind
    "precompute": "stopped; finished units are kept, and the same command goes on from there",
    "train": "stopped; the run folder holds the last whole epoch (last.pt), a run cannot be continued yet",
    "demo": "stopped; trained sources and stores are kept for the next run",
}
_OF_RECIPE = "[default: the recipe's]"


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is being written is finished."""


def _terminate(_number: int, _frame: object) -> None:
    raise _Terminated


class FrontDoor(click.Group):
    """A click group that prints our own errors as one line, and Ctrl-C as what it means."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exits with 1 on an error of ours, with 130 on Ctrl-C and with 143 on SIGTERM."""
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo(_STOPPED.get(ctx.invoked_subcommand or "", "stopped"), err=True)
            sys.exit(143 if isinstance(stop, _Terminated) else 130)
        except Exception as error:
            from cache.errors import CacheError
            from sskt.errors import SsktError

            if not isinstance(error, CacheError | SsktError):
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(1)


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


def _places(data_dir: Path, cache_dir: str, weights: tuple[str, ...] = ()) -> Places:
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


def _execution(
    device: str,
    renderer: str,
    threads: int,
    amp: str = "auto",
    batch_size: int | None = None,
    compiled: bool | None = None,
) -> Execution:
    from pipeline.choices import choose_execution

    return choose_execution(
        device=device, amp=amp, renderer=renderer, threads=threads, batch_size=batch_size, compiled=compiled
    )


def _augmentation(
    plan_seed: int, plan_kind: str | None, side_px: int | None, source_side_px: int | None
) -> Augmentation:
    from pipeline.choices import Augmentation

    return Augmentation(plan_seed, plan_kind, side_px, source_side_px)


def _supervision(**values: Any) -> Supervision:
    from pipeline.api import Supervision

    return Supervision(**values)


def _epochs(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """60,120 as numbers."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of epochs such as 60,120") from None


def _count_or_auto(_ctx: click.Context, _option: click.Parameter, text: str) -> int | None:
    """A number of at least 1; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither auto nor a number of at least 1")
    return int(text)


def _folder(flag: str, default: str | None, text: str, **more: Any) -> Decorator:
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option(
        flag, type=kind, default=default and Path(default), show_default=bool(default), help=text, **more
    )


def _count(
    flag: str, text: str, default: int | None = None, low: int = 1, name: str | None = None
) -> Decorator:
    names = (flag, name) if name else (flag,)
    kind = click.IntRange(min=low)
    return click.option(*names, type=kind, default=default, show_default=default is not None, help=text)


def _number(flag: str, text: str, *, positive: bool = True) -> Decorator:
    return click.option(flag, type=click.FloatRange(min=0, min_open=positive), default=None, help=text)


def _choice(flag: str, values: str, default: str | None, text: str) -> Decorator:
    return click.option(
        flag, type=click.Choice(values.split()), default=default, show_default=default is not None, help=text
    )


def _text(flag: str, text: str, name: str | None = None, **more: Any) -> Decorator:
    return click.option(*((flag, name) if name else (flag,)), default=None, help=text, **more)


DATA_DIR = _folder(
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
LIMIT = _count("--limit", "Use a fixed stratified subset of N training samples.")
WEIGHTS = click.option(
    "--weights",
    multiple=True,
    metavar="NAME=PATH",
    help="Local weights of a source (.pth, .pth.tar, .safetensors), e.g. imagenet=resnet50.pth. Repeatable.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="Threads that decode pictures.",
)
HOW = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    _choice("--renderer", "auto dali torch", "auto", "What draws the pictures."),
    THREADS,
)
SHOWN = (
    _text(
        "--plan", "pad-crop-flip, random-resized-crop-flip or centre. [default: the target's]", "plan_kind"
    ),
    _count("--size", "Side in pixels of what the student sees. [default: the target's]", name="side_px"),
    _count(
        "--source-size",
        "Side in pixels of what the sources see. [default: small pictures 7/3 of --size, else --size]",
        name="source_side_px",
    ),
)


@click.group(
    cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="sskt")
def main() -> None:
    """Pay for the teachers once: keep what frozen networks say of your data, then train any student with it.

    \b
    sskt demo                                          see it work: no download, three minutes
    sskt precompute --source places365 --target stl10  stage one: what the source says, once
    sskt train --target stl10                          stage two: a student, taught from the store
    """  # noqa: D301  (click's mark for "do not rewrap" is the character, not the two signs)


@main.command()
@options(
    CACHE_DIR,
    _folder("--out", None, "Folder of the report. [default: runs/demo-<time>]"),
    _count("--seeds", "Students per method.", 3),
    THREADS,
    JSON,
)
def demo(cache_dir: str, out: Path | None, seeds: int, threads: int, as_json: bool) -> None:
    """See both stages work on handwritten digits.

    Few labels, one student, three ways: from scratch, SSKT with cached logits, SSKT with the live sources.
    The sources are trained on drawn letters and strokes at the first run and kept. Writes a report.
    """
    from pipeline.demo import run_demo
    from pipeline.run import new_run_folder

    out = out or new_run_folder("demo")
    result = run_demo(cache_dir=Path(cache_dir), out=out, seeds=seeds, threads=threads, say=_say)
    click.echo(json.dumps(result, indent=2) if as_json else result["table"])


@main.command()
@options(
    click.option("--target", "targets", multiple=True, required=True, help="Repeatable."),
    together("places", _places, DATA_DIR, CACHE_DIR),
    JSON,
)
def prepare(targets: tuple[str, ...], places: Places, as_json: bool) -> None:
    """Download and check a target.

    Official archives are fetched if they are not there; of folders, every picture is checked and indexed.
    """
    from pipeline.api import run_prepare

    rows = [row for name in targets for row in run_prepare(name, places=places, say=_say)]
    _print(rows, as_json, "target split samples classes contents")


@main.command()
@options(
    click.option(
        "--source",
        "sources",
        multiple=True,
        required=True,
        help="imagenet, places365, imagenet:ARCH or program:FILE.pt2. Repeatable.",
    ),
    click.option(
        "--target",
        "targets",
        multiple=True,
        help="Repeatable. [default: every target prepared under --data-dir]",
    ),
    _count("--views", "Augmented views of every sample.", 10),
    together(
        "augmentation",
        _augmentation,
        _count("--seed", "Seed of the augmentation plan.", 0, low=0, name="plan_seed"),
        *SHOWN,
    ),
    LIMIT,
    _count(
        "--top-k",
        "Keep the K largest logits and the tail's sum; 0: all. [default: all, 64 beyond 100 GB a store]",
        low=0,
    ),
    together(
        "execution",
        _execution,
        _choice(
            "--amp", "auto fp32 bf16 fp16", "auto", "Precision of the sources; auto: fp16 on CUDA, else fp32."
        ),
        click.option(
            "--batch-size",
            default="auto",
            show_default=True,
            callback=_count_or_auto,
            help="Rows of one forward; auto: 16 on a CPU, on CUDA what is measured to be fastest.",
        ),
        click.option(
            "--compile/--no-compile",
            "compiled",
            default=None,
            help="Compile the sources. [default: for 10,000 pictures and more]",
        ),
        *HOW,
    ),
    together("places", _places, WEIGHTS, DATA_DIR, CACHE_DIR),
    click.option(
        "--estimate", is_flag=True, help="Measure for some seconds what it would cost; make nothing."
    ),
    JSON,
)
def precompute(estimate: bool, as_json: bool, **what: Any) -> None:
    """Stage one: keep what sources say of a target.

    Every planned view of every training picture is drawn once and shown to each source. Stop at any time:
    the same command goes on from there, and more --views or another --source extend what is kept. Several
    processes, or torchrun's, share the work.
    """
    from pipeline.api import run_estimate, run_precompute

    if estimate:
        rows = run_estimate(**what, say=_say)
        _print(
            rows,
            as_json,
            "target source rows bytes bytes_per_row draw_img_s forward_img_s write_mb_s hours pays_after",
        )
        return
    rows = [report.to_dict() for report in run_precompute(**what, say=_say)]
    if os.environ.get("RANK", "0") != "0":  # torchrun's first rank speaks for all
        return
    _print(rows, as_json, "source n_samples n_classes views rows_done images_s nbytes path")


@main.command()
@options(
    _text(
        "--target", "cifar10, cifar100, stl10, imagenet, places365, digits, imagefolder:PATH.", required=True
    ),
    _text("--model", f"resnet20, resnet32, resnet44, resnet18, resnet34, resnet50. {_OF_RECIPE}"),
    together(
        "supervision",
        _supervision,
        _choice("--method", "sskt scratch", "sskt", "With sources, or on labels alone."),
        click.option(
            "--source",
            "sources",
            multiple=True,
            help="Repeatable. [default: every source with a complete store for the target]",
        ),
        _choice(
            "--labels",
            "auto cached live",
            "auto",
            "Logits from the store, or from the sources in every step.",
        ),
        _count("--views", "Views to go through in turn. [default: all stored; live: a new one each epoch]"),
        click.option(
            "--transfer-module/--no-transfer-module",
            default=False,
            show_default=True,
            help="Source heads that see every block, or the last feature only.",
        ),
        _choice("--kd-reduction", "mean batchmean", "mean", "mean = over batch and classes, as released."),
    ),
    together(
        "overrides",
        dict,
        _choice("--aux-loss", "ce kd", None, f"Loss of the source heads. {_OF_RECIPE}"),
        _number("--temperature", f"Softens the sources' logits. {_OF_RECIPE}"),
        _number("--alpha", f"Weight of the auxiliary losses. {_OF_RECIPE}", positive=False),
        _count("--epochs", _OF_RECIPE),
        _count("--batch-size", _OF_RECIPE),
        _number("--lr", _OF_RECIPE),
        _text(
            "--milestones", f"Epochs at which the rate drops. {_OF_RECIPE}", metavar="E,E", callback=_epochs
        ),
        _number("--gamma", f"Factor of a drop. {_OF_RECIPE}"),
        _number("--weight-decay", _OF_RECIPE, positive=False),
    ),
    _count("--seed", "Seed of initial weights and order.", 0, low=0),
    together(
        "augmentation",
        _augmentation,
        _count("--plan-seed", "Seed of the augmentation plan: precompute's --seed.", 0, low=0),
        *SHOWN,
    ),
    LIMIT,
    _choice("--amp", "auto fp32 bf16", "auto", "Precision of the student; auto: bf16 on CUDA, else fp32."),
    _count("--eval-every", "Epochs between two looks at the test split.", 1),
    together("execution", _execution, *HOW),
    _folder("--out", None, "Run folder. [default: runs/<target>-<method>-<time>]"),
    together("places", _places, WEIGHTS, DATA_DIR, CACHE_DIR),
    JSON,
)
def train(target: str, amp: str, execution: Execution, out: Path | None, as_json: bool, **what: Any) -> None:
    """Stage two: train a student, taught by sources.

    It learns its own labels and, in one auxiliary head per source, what the source said of the same pixels.
    What is not given is the paper's recipe for the target (table 1).
    """
    from pipeline.api import run_train
    from pipeline.choices import student_precision
    from pipeline.run import new_run_folder
    from pipeline.targets.spec import target_slug

    out = out or new_run_folder(f"{target_slug(target)}-{what['supervision'].method}")
    student_amp = student_precision(execution) if amp == "auto" else amp
    summary = run_train(target, execution=execution, student_amp=student_amp, out=out, say=_say, **what)
    click.echo(json.dumps(summary | {"run": str(out)}, indent=2) if as_json else str(out))


@main.command()
@options(
    click.argument("run", type=click.Path(path_type=Path)),
    together("execution", _execution, *HOW),
    together("places", _places, DATA_DIR, CACHE_DIR),
    JSON,
)
def evaluate(run: Path, execution: Execution, places: Places, as_json: bool) -> None:
    """Score a run's student on the test split."""
    from pipeline.api import run_evaluate

    figures = run_evaluate(run, places=places, execution=execution, say=_say)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    by_class = figures.pop("class_top1")
    _print([figures], as_json, " ".join(figures))
    _print([{"class": name, "top1": value} for name, value in by_class.items()], as_json, "class top1")


@main.group()
def cache() -> None:
    """Look at stores and check them."""


@cache.command("ls")
@options(CACHE_DIR, JSON)
def cache_ls(cache_dir: str, as_json: bool) -> None:
    """List every store with its target, source, views and size."""
    from cache.files import location
    from pipeline.tables import store_rows

    _print(
        store_rows(location(cache_dir)),
        as_json,
        "target source samples classes views units bytes path problem",
    )


@cache.command("info")
@options(click.argument("store"), JSON)
def cache_info(store: str, as_json: bool) -> None:
    """Show what a store depends on and holds, and what a label costs."""
    from cache.files import location
    from pipeline.tables import store_fields

    fields = store_fields(location(store))
    if as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        _print([{"field": k, "value": v} for k, v in fields.items()], as_json, "field value")


@cache.command("verify")
@options(
    click.argument("store"),
    _count("--recompute", "Ask the source again about N random rows and compare.", name="n_rows"),
    click.option("--repair", is_flag=True, help="Compute damaged units again, and nothing else."),
    _text("--target", "Where the pictures are now. [default: as recorded]"),
    click.option(
        "--weights",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Where the source's weights or program are now. [default: as recorded]",
    ),
    together(
        "execution",
        _execution,
        *HOW,
    ),
    together("places", _places, DATA_DIR, CACHE_DIR),
    _count("--seed", "Which rows are random.", 0, low=0),
    JSON,
)
def cache_verify(store: str, as_json: bool, **what: Any) -> None:
    """Check a store: every finished unit, and its rows against the source.

    Checksum, shape, NaN and inf, manifest, tables. Exits with 1 if anything is wrong, and says how to mend
    it.
    """
    from cache.files import location
    from pipeline.check import verify_store

    found = verify_store(location(store), **what, say=_say)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        if found.problems:
            _print(found.problems, as_json, "unit problem")
        if found.agreement:
            row = found.agreement.to_dict()
            _print([row], as_json, "rows max_error mean_error min_cosine same_top identical worst")
        click.echo(found.verdict)
    if not found.good:
        sys.exit(1)


@cache.command("prune")
@options(
    click.argument("stores", nargs=-1),
    _count("--views", "Keep the first N views of each STORE, instead of removing it."),
    click.option("--dry-run", is_flag=True, help="Only say what would go."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    CACHE_DIR,
    JSON,
)
def cache_prune(
    stores: tuple[str, ...], views: int | None, dry_run: bool, yes: bool, cache_dir: str, as_json: bool
) -> None:
    """Give disk space back.

    Without a STORE, removes what killed runs left behind in the cache folder; with some, removes these, or
    all their views beyond the first N.
    """
    from pipeline.pruning import plan_pruning, prune

    rows = plan_pruning(cache_dir, stores, views)
    if not as_json or dry_run:
        _print(rows, as_json, "what bytes path")
    if not rows or dry_run:
        return
    if stores and not yes:
        click.confirm(f"remove these {len(rows)}?", abort=True, err=True)
    prune(rows, views)
    if as_json:
        _print(rows, as_json, "")


@main.command()
@options(JSON)
def sources(as_json: bool) -> None:
    """List the sources that can be named."""
    from pipeline.tables import source_rows

    _print(source_rows(), as_json, "source architecture classes weights")


@main.command()
@options(DATA_DIR, JSON)
def targets(data_dir: Path, as_json: bool) -> None:
    """List the targets, and which are prepared."""
    from pipeline.tables import target_rows

    _print(target_rows(data_dir), as_json, "target classes student_px source_px plan model prepared")


def _say(sentence: str) -> None:
    """Pass a remark on to the user, apart from results."""
    click.echo(sentence, err=True)


def _print(rows: list[dict[str, Any]], as_json: bool, columns: str) -> None:
    """Rows as JSON, or as a table of those columns that any row has."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("none")
        return
    shown = [name for name in columns.split() if any(row.get(name) is not None for row in rows)]
    lines = [[name.replace("_", " ") for name in shown]]
    lines += [[_cell(name, row.get(name)) for name in shown] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # never cut or folded: a path must be fit to be copied
        click.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("bytes", "nbytes"):
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
