"""How a command ends: our own errors become one line and exit code 1, signals a note on what is kept."""

from __future__ import annotations

import signal
import sys

import click

from pipeline.commands.options import RARE
from pipeline.commands.output import show_remarks
from sskt.errors import shown

_STOPPED = {  # the message after Ctrl-C, by command
    "prepare": "stopped; finished files are kept, and the same command continues from there",
    "precompute": "stopped; finished units are kept, and the same command continues from there",
    "train": "stopped; the run folder is kept",
    "pretext": "stopped; the run folder is kept",
    "reproduce": "stopped; the same command continues from there",
    "sweep": "stopped; the same command continues from there",
    "demo": "stopped; trained sources and stores are kept for the next run",
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: pending writes are finished."""


def _terminate(_number: int, _frame: object) -> None:
    raise _Terminated


class Sectioned(click.Command):
    """A command whose help groups options under the titles given by `pipeline.commands.options.section`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every option once, below its title: untitled options first, rare ones last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        if RARE in sections:
            sections[RARE] = sections.pop(RARE)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class FrontDoor(click.Group):
    """A click group that prints remarks and our own errors, one per line, and a message after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; exits with 1 on one of our errors, 130 on Ctrl-C, 143 on SIGTERM."""
        signal.signal(signal.SIGTERM, _terminate)
        try:
            with show_remarks():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo(_STOPPED.get(ctx.invoked_subcommand or "", "stopped"), err=True)
            sys.exit(143 if isinstance(stop, _Terminated) else 130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from cache.errors import CacheError
            from sskt.errors import SettingError, SsktError

            if not isinstance(error, CacheError | SsktError):
                raise
            text = str(error)
            if isinstance(error, SettingError) and (option := self._option_of(ctx, error.parameter)):
                text = f"{option} {error.sentence}"
            click.echo(shown(f"error: {text}", keep="\n\t"), err=True)
            sys.exit(1)

    def _option_of(self, ctx: click.Context, parameter: str) -> str | None:
        """The option of the command in force that sets a parameter; None if there is none."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        options = command.params if command else []
        return next((option.opts[0] for option in options if option.name == parameter), None)
