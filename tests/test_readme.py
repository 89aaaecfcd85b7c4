"""What the documents tell a reader to type exists."""

import re
import shlex
from pathlib import Path

import click
import pytest

from cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SCALE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(
        re.findall(r"^(sskt [^\n]*?)\s*(?:#.*)?$", (TEXT + SCALE + RESULTS).replace("\\\n", ""), re.MULTILINE)
    )
    # after variables, or in a job's description
    | set(re.findall(r'\bsskt precompute --[^\n&"`]+', SCALE.replace("\\\n", "")))
)


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_parses(command):
    words = shlex.split(command)[1:]
    group, context = main, click.Context(main, **main.context_settings)
    while isinstance(found := group.commands[words.pop(0)], click.Group):
        group, context = found, click.Context(found, parent=context)
    assert found.make_context(found.name, words, parent=context).params


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)\b(?!-)", TEXT))))
def test_a_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\(([^)#:]+)\)|python (benchmarks/\w+\.py)", TEXT + RESULTS)))
)
def test_a_file_of_the_readme_exists(path):
    assert (ROOT / next(name for name in path if name)).is_file()


def test_every_setting_named_in_the_readme_is_an_option():
    commands = [*main.commands.values(), *main.commands["cache"].commands.values()]
    known = {"--nproc-per-node"}  # torchrun's
    known |= {opt for command in commands for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named <= known, named - known
