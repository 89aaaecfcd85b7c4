"""The front door: each command parses, calls one function of the pipeline, and prints what came out.

The errors of our own rooms become one line and exit code 1; nothing heavy is imported before a command needs
it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data"),
    envvar="SSKT_DATA_DIR",
    show_default=True,
    show_envvar=True,
    help="Data sets and downloaded weights.",
)
CACHE_DIR = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("stores"),
    envvar="SSKT_CACHE_DIR",
    show_default=True,
    show_envvar=True,
    help="Stores of logits and target indexes.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
WEIGHTS = click.option(
    "--weights",
    multiple=True,
    metavar="NAME=PATH",
    help="Local weights of a source (.pth, .pth.tar, .safetensors), e.g. imagenet=resnet50.pth. Repeatable.",
)
PLAN = (
    click.option(
        "--plan",
        "plan_kind",
        default=None,
        help="pad-crop-flip, random-resized-crop-flip or centre. [default: the target's]",
    ),
    click.option(
        "--size",
        "side_px",
        type=int,
        default=None,
        help="Side in pixels of what the student sees. [default: the target's]",
    ),
    click.option(
        "--source-size",
        "source_side_px",
        type=int,
        default=None,
        help="Side in pixels of what the sources see. [default: small pictures 7/3 of --size, else --size]",
    ),
)
EXECUTION = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--renderer",
        type=click.Choice(["auto", "dali", "torch"]),
        default="auto",
        show_default=True,
        help="What draws the pictures.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=os.cpu_count() or 1,
        show_default="all cores",
        help="Threads that decode pictures.",
    ),
)
LIMIT = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=None,
    help="Use a fixed stratified subset of N training samples.",
)

_STOPPED = {  # what Ctrl-C leaves behind
    "precompute": "stopped; finished units are kept, and the same command goes on from there",
    "train": "stopped; the run folder holds the last whole epoch (last.pt), a run cannot be continued yet",
    "demo": "stopped; trained sources and stores are kept for the next run",
}


def options(*decorators: Any) -> Callable[[Any], Any]:
    """Several click options as one decorator, in the order in which --help shows them."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class FrontDoor(click.Group):
    """A click group that prints our own errors as one line, and Ctrl-C as what it means."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exits with 1 on an error of ours and with 130 on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(_STOPPED.get(ctx.invoked_subcommand or "", "stopped"), err=True)
            sys.exit(130)
        except Exception as error:
            from cache.errors import CacheError
            from sskt.errors import SsktError

            if not isinstance(error, CacheError | SsktError):
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(1)


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
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="Folder of the report. [default: runs/demo-<time>]",
    ),
    click.option(
        "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Students per method."
    ),
    EXECUTION[2],
    JSON,
)
def demo(cache_dir: Path, out: Path | None, seeds: int, threads: int, as_json: bool) -> None:
    """See both stages work on handwritten digits.

    Few labels, one student, three ways: from scratch, SSKT with cached logits, SSKT with the live sources.
    The sources are trained on drawn letters and strokes at the first run and kept. Writes a report.
    """
    from pipeline.demo import run_demo
    from pipeline.run import new_run_folder

    result = run_demo(
        cache_dir=cache_dir, out=out or new_run_folder("demo"), seeds=seeds, threads=threads, say=_say
    )
    click.echo(json.dumps(result, indent=2) if as_json else result["table"])


@main.command()
@options(
    click.option("--target", "targets", multiple=True, required=True, help="Repeatable."),
    DATA_DIR,
    CACHE_DIR,
    JSON,
)
def prepare(targets: tuple[str, ...], data_dir: Path, cache_dir: Path, as_json: bool) -> None:
    """Download and check a target.

    Official archives are fetched if they are not there; of folders, every picture is checked and indexed.
    """
    from pipeline.api import run_prepare
    from pipeline.choices import Places

    rows = [
        row for name in targets for row in run_prepare(name, places=Places(data_dir, cache_dir), say=_say)
    ]
    _print(rows, as_json, columns=("target", "split", "samples", "classes", "contents"))


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
    click.option(
        "--views",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Augmented views of every sample.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of the augmentation plan.",
    ),
    PLAN[0],
    PLAN[1],
    PLAN[2],
    LIMIT,
    WEIGHTS,
    click.option(
        "--amp",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="Precision of the sources.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Pictures rendered at a time.",
    ),
    *EXECUTION,
    DATA_DIR,
    CACHE_DIR,
    JSON,
)
def precompute(
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    views: int,
    seed: int,
    plan_kind: str | None,
    side_px: int | None,
    source_side_px: int | None,
    limit: int | None,
    weights: tuple[str, ...],
    amp: str,
    batch_size: int,
    device: str,
    renderer: str,
    threads: int,
    data_dir: Path,
    cache_dir: Path,
    as_json: bool,
) -> None:
    """Stage one: keep what sources say of a target.

    Every planned view of every training picture is drawn once and shown to each source. Stop at any time: the
    same command goes on from there, and more --views or another --source extend what is kept.
    """
    from pipeline.api import run_precompute
    from pipeline.choices import Augmentation, Places, choose_execution

    reports = run_precompute(
        targets,
        sources,
        views=views,
        augmentation=Augmentation(seed, plan_kind, side_px, source_side_px),
        places=Places(data_dir, cache_dir, _weights(weights)),
        execution=choose_execution(
            device=device, amp=amp, renderer=renderer, threads=threads, batch_size=batch_size
        ),
        limit=limit,
        say=_say,
    )
    _print(
        [r.to_dict() for r in reports],
        as_json,
        columns=("source", "n_samples", "n_classes", "views", "rows_done", "images_s", "nbytes", "path"),
    )


@main.command()
@options(
    click.option(
        "--target",
        required=True,
        help="cifar10, cifar100, stl10, imagenet, places365, digits, imagefolder:PATH.",
    ),
    click.option(
        "--model",
        default=None,
        help="resnet20, resnet32, resnet44, resnet18, resnet34, resnet50. [default: the recipe's]",
    ),
    click.option("--method", type=click.Choice(["sskt", "scratch"]), default="sskt", show_default=True),
    click.option(
        "--source",
        "sources",
        multiple=True,
        help="Repeatable. [default: every source with a complete store for the target]",
    ),
    click.option(
        "--labels",
        type=click.Choice(["auto", "cached", "live"]),
        default="auto",
        show_default=True,
        help="Logits from the store, or from the sources in every step.",
    ),
    click.option(
        "--views",
        type=click.IntRange(min=1),
        default=None,
        help="Views to go through in turn. [default: all stored; live: a new one each epoch]",
    ),
    click.option("--transfer-module/--no-transfer-module", default=False, show_default=True),
    click.option(
        "--aux-loss",
        type=click.Choice(["ce", "kd"]),
        default=None,
        help="Loss of the source heads. [default: the recipe's]",
    ),
    click.option(
        "--kd-reduction",
        type=click.Choice(["mean", "batchmean"]),
        default="mean",
        show_default=True,
        help="mean = over batch and classes, as released.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        help="[default: the recipe's]",
    ),
    click.option(
        "--alpha",
        type=click.FloatRange(min=0),
        default=None,
        help="Weight of the auxiliary losses. [default: the recipe's]",
    ),
    click.option("--epochs", type=click.IntRange(min=1), default=None, help="[default: the recipe's]"),
    click.option("--batch-size", type=click.IntRange(min=1), default=None, help="[default: the recipe's]"),
    click.option(
        "--lr", type=click.FloatRange(min=0, min_open=True), default=None, help="[default: the recipe's]"
    ),
    click.option(
        "--milestones",
        default=None,
        metavar="E,E,...",
        help="Epochs at which the rate drops. [default: the recipe's]",
    ),
    click.option("--gamma", type=float, default=None, help="Factor of a drop. [default: the recipe's]"),
    click.option("--weight-decay", type=float, default=None, help="[default: the recipe's]"),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of initial weights and order.",
    ),
    click.option(
        "--plan-seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of the augmentation plan: precompute's --seed.",
    ),
    PLAN[0],
    PLAN[1],
    PLAN[2],
    LIMIT,
    WEIGHTS,
    click.option(
        "--amp",
        type=click.Choice(["auto", "fp32", "bf16"]),
        default="auto",
        show_default=True,
        help="Precision of the student; auto: bf16 on CUDA, else fp32.",
    ),
    click.option(
        "--eval-every",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Epochs between two looks at the test split.",
    ),
    *EXECUTION,
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="Run folder. [default: runs/<target>-<model>-<time>]",
    ),
    DATA_DIR,
    CACHE_DIR,
    JSON,
)
def train(
    target: str,
    model: str | None,
    method: str,
    sources: tuple[str, ...],
    labels: str,
    views: int | None,
    transfer_module: bool,
    aux_loss: str | None,
    kd_reduction: str,
    temperature: float | None,
    alpha: float | None,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    milestones: str | None,
    gamma: float | None,
    weight_decay: float | None,
    seed: int,
    plan_seed: int,
    plan_kind: str | None,
    side_px: int | None,
    source_side_px: int | None,
    limit: int | None,
    weights: tuple[str, ...],
    amp: str,
    eval_every: int,
    device: str,
    renderer: str,
    threads: int,
    out: Path | None,
    data_dir: Path,
    cache_dir: Path,
    as_json: bool,
) -> None:
    """Stage two: train a student, taught by sources.

    It learns its own labels and, in one auxiliary head per source, what the source said of the same pixels.
    What is not given is the paper's recipe for the target (table 1).
    """
    from pipeline.api import Supervision, run_train
    from pipeline.choices import Augmentation, Places, choose_execution, student_precision
    from pipeline.run import new_run_folder
    from pipeline.targets.spec import target_slug

    execution = choose_execution(device=device, amp="auto", renderer=renderer, threads=threads, batch_size=64)
    out = out or new_run_folder(f"{target_slug(target)}-{method}")
    summary = run_train(
        target,
        model=model,
        supervision=Supervision(method, sources, labels, views, transfer_module, kd_reduction),
        overrides={
            "temperature": temperature,
            "alpha": alpha,
            "aux_loss": aux_loss,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "milestones": _milestones(milestones),
            "gamma": gamma,
            "weight_decay": weight_decay,
        },
        seed=seed,
        augmentation=Augmentation(plan_seed, plan_kind, side_px, source_side_px),
        places=Places(data_dir, cache_dir, _weights(weights)),
        execution=execution,
        student_amp=student_precision(execution) if amp == "auto" else amp,
        limit=limit,
        eval_every=eval_every,
        out=out,
        say=_say,
    )
    click.echo(json.dumps(summary | {"run": str(out)}, indent=2) if as_json else str(out))


@main.command()
@options(click.argument("run", type=click.Path(path_type=Path)), *EXECUTION, DATA_DIR, CACHE_DIR, JSON)
def evaluate(
    run: Path, device: str, renderer: str, threads: int, data_dir: Path, cache_dir: Path, as_json: bool
) -> None:
    """Score a run's student on the test split."""
    from pipeline.api import run_evaluate
    from pipeline.choices import Places, choose_execution

    execution = choose_execution(device=device, amp="auto", renderer=renderer, threads=threads, batch_size=64)
    figures = run_evaluate(run, places=Places(data_dir, cache_dir), execution=execution, say=_say)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    by_class = figures.pop("class_top1")
    _print([figures], as_json, columns=tuple(figures))
    _print(
        [{"class": name, "top1": value} for name, value in by_class.items()],
        as_json,
        columns=("class", "top1"),
    )


@main.group()
def cache() -> None:
    """Look at stores and check them."""


@cache.command("ls")
@options(CACHE_DIR, JSON)
def cache_ls(cache_dir: Path, as_json: bool) -> None:
    """List every store with its target, source, views and size."""
    from pipeline.tables import store_rows

    _print(
        store_rows(cache_dir),
        as_json,
        columns=("target", "source", "samples", "classes", "views", "units", "bytes", "path", "problem"),
    )


@cache.command("info")
@options(click.argument("store", type=click.Path(path_type=Path)), JSON)
def cache_info(store: Path, as_json: bool) -> None:
    """Show what a store depends on, how it was made and what it holds."""
    from pipeline.tables import store_fields

    fields = store_fields(store)
    if as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        _print([{"field": k, "value": v} for k, v in fields.items()], as_json, columns=("field", "value"))


@cache.command("verify")
@options(click.argument("store", type=click.Path(path_type=Path)), JSON)
def cache_verify(store: Path, as_json: bool) -> None:
    """Check every finished unit: checksum, shape, NaN and inf. Exits with 1 if anything is wrong."""
    from cache.store import Store

    opened = Store.open(store)
    problems = [{"unit": str(p.unit), "problem": p.what} for p in opened.verify()]
    if as_json:
        click.echo(json.dumps(problems, indent=2))
    elif problems:
        _print(problems, as_json, columns=("unit", "problem"))
    else:
        click.echo(
            f"{store}: every finished unit is sound ({opened.n_views} views of {opened.n_samples} samples)"
        )
    if problems:
        sys.exit(1)


@main.command()
@options(JSON)
def sources(as_json: bool) -> None:
    """List the sources that can be named."""
    from pipeline.tables import source_rows

    _print(source_rows(), as_json, columns=("source", "architecture", "classes", "weights"))


@main.command()
@options(DATA_DIR, JSON)
def targets(data_dir: Path, as_json: bool) -> None:
    """List the targets, and which are prepared."""
    from pipeline.tables import target_rows

    _print(
        target_rows(data_dir),
        as_json,
        columns=("target", "classes", "student_px", "source_px", "plan", "model", "prepared"),
    )


def _say(sentence: str) -> None:
    """Pass a remark on to the user, apart from results."""
    click.echo(sentence, err=True)


def _weights(pairs: tuple[str, ...]) -> dict[str, Path]:
    """NAME=PATH options; the name may hold no '=', the path may."""
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(
                f"{pair!r} is not NAME=PATH, e.g. imagenet=resnet50.pth", param_hint="--weights"
            )
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}


def _milestones(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of epochs such as 60,120", param_hint="--milestones"
        ) from None


def _print(rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...]) -> None:
    """Rows as JSON, or the chosen columns as a table."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("none")
        return
    columns = tuple(name for name in columns if any(row.get(name) is not None for row in rows))
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in columns), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(name, row.get(name)) for name in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if "bytes" in name:
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
