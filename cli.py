"""The front door: registers the commands, each of which parses, calls one function, and prints what came out.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import click

from pipeline.commands.cache import cache
from pipeline.commands.config import config
from pipeline.commands.ensemble import ensemble
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.front import FrontDoor
from pipeline.commands.listings import recipes, sources, targets
from pipeline.commands.precompute import precompute, prepare
from pipeline.commands.predict import predict
from pipeline.commands.pretext import pretext
from pipeline.commands.probe import probe
from pipeline.commands.report import report, runs
from pipeline.commands.reproduce import reproduce
from pipeline.commands.studies import demo, explain, sweep
from pipeline.commands.train import train


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


for command in (
    demo, prepare, precompute, probe, sources, targets, pretext, train, config, evaluate, predict, export,
    runs, report, cache, recipes, reproduce, sweep, explain, ensemble,
):  # fmt: skip
    main.add_command(command)


if __name__ == "__main__":
    main()
