"""docs/architecture.md is what the house is: its picture, its contracts and the functions that it names."""

import ast
import re
import sys
from inspect import signature
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest

import cli
from pipeline import api
from pipeline.train.config import Settings, TrainConfig
from pipeline.train.resolve import _DEFAULTS, _usual
from pipeline.train.run import train
from sskt.recipes import recipe_for

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "cli.py", *(p for room in ("sskt", "pipeline", "cache") for p in (ROOT / room).rglob("*.py"))]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
sys.path.insert(0, str(ROOT / "docs"))

import draw_architecture  # noqa: E402


@pytest.fixture(scope="module")
def edges():
    return draw_architecture.imports()


@pytest.fixture(scope="module")
def nodes():
    """Of every file, all that its syntax tree holds."""
    return {path: list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in FILES}


def test_the_picture_is_that_of_todays_imports(tmp_path, edges):
    draw_architecture.draw(edges, tmp_path / "drawn.svg")
    drawn = (tmp_path / "drawn.svg").read_text()
    assert drawn == (ROOT / "docs" / "architecture.svg").read_text(), "run docs/draw_architecture.py"


def test_no_room_imports_another_in_a_circle_and_the_stages_meet_in_the_store(edges):
    floors = draw_architecture.floors(edges)  # endless if there were a circle
    assert max(floors.values()) <= 10
    assert "precompute" not in edges["source_outputs"] | edges["train"]
    assert "source_outputs" not in edges["precompute"]


def test_every_function_and_file_that_the_page_names_exists():
    named = re.findall(r"`([\w/]+\.py):(\w+)`", PAGE)
    assert len(named) > 20
    for path, name in named:
        text = (ROOT / path).read_text()
        assert re.search(rf"(def|class) {name}\b", text), f"{path} has no {name}"
    for path, line in re.findall(r"`([\w/]+\.py):\w+` \| `(.+)` \|$", PAGE, flags=re.M):
        lines = [each.partition("  #")[0].strip() for each in (ROOT / path).read_text().splitlines()]
        assert line.replace("\\|", "|") in lines, f"{path}: {line}"
    for link in re.findall(r"\]\((?:\.\./)?([\w/.]+)\)", PAGE):
        assert (ROOT / link).exists() or (ROOT / "docs" / link).exists(), link


def test_temperature_is_followed_from_the_command_to_the_loss_in_four_files():
    way = PAGE.partition("to the loss.**")[2].partition("\n\nBetween")[0]
    assert len(set(re.findall(r"`([\w/]+\.py):", way))) == 4


def test_a_file_imports_few_modules_on_average(nodes):
    """Distinct modules anywhere in a file, also those imported late or for types; not __future__."""
    counts = []
    for each in nodes.values():
        imported = set()
        for node in each:
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {name.name for name in node.names}
        counts.append(len(imported))
    assert sum(counts) / len(counts) <= 8.46


def test_no_file_and_no_function_is_long(nodes):
    for path, each in nodes.items():
        assert path.read_text(encoding="utf-8").count("\n") <= 400, path
        for node in each:
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_what_a_user_may_say_are_fields_of_a_runs_config():
    """`Settings` has the name and the type of each setting, None aside."""
    said, recorded = get_type_hints(Settings), get_type_hints(TrainConfig)
    assert set(_usual(recipe_for("digits"))) | set(_DEFAULTS) == set(said)
    # said as lists, paths or mappings, too, or not recorded
    loose = {"sources", "unlabelled", "labelled_list", "milestones", "teacher_temperature", "preset"}
    for name in set(said) - loose:
        assert set(get_args(said[name] | None)) == set(get_args(recorded[name] | None)), name


def test_the_train_command_passes_on_settings_and_arguments_of_train_alone():
    """Click calls the command with names that mypy does not see."""
    # as the group makes it: a command keeps the help option of its first context
    group = click.Context(cli.main, **cli.main.context_settings)
    context = cli.train.make_context("train", ["--target", "digits"], parent=group)
    values = context.params
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "train", lambda target, **settings: asked.update(settings) or {})
        context.invoke(cli.train.callback, **values)
    of_train = set(signature(train).parameters) - {"target", "settings", "on_epoch"}
    assert set(asked) - of_train <= set(Settings.__annotations__)
    assert of_train <= set(asked)


def test_the_glossary_has_twelve_words_and_six_files_to_begin_with():
    table = PAGE.partition("## Twelve words")[2].partition("##")[0]
    assert len(re.findall(r"^\| (?!word|---)", table, flags=re.M)) - 1 <= 12
    assert len(re.findall(r"^\d\. \[", PAGE, flags=re.M)) == 6
