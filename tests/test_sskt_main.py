"""The program starts in a folder that holds a cli.py, pipeline.py and cache.py of the user's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The packages as a wheel unpacks them, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    for room in ("sskt", "pipeline", "cache"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "cli.py", folder / "cli.py")
    return folder


@pytest.mark.parametrize("words", [("--help",), ("demo", "--help")])
def test_the_program_finds_its_own_rooms(installed, tmp_path, words):
    for name in ("cli", "pipeline", "cache"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(installed)])}
    done = subprocess.run(
        [sys.executable, "-m", "sskt", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"Usage: sskt {words[0]} [OPTIONS]" if len(words) > 1 else "Usage: sskt [OPTIONS]"
    )


def test_the_packages_say_that_they_are_typed_and_bring_their_templates(installed):
    assert all((installed / room / "py.typed").is_file() for room in ("sskt", "pipeline", "cache"))
    assert (installed / "pipeline" / "studies" / "report" / "templates" / "run.html").is_file()
