"""The first-steps page: its commands run in order, and its notebook and figures are those of one run."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import timm
from click.testing import CliRunner
from conftest import shared
from safetensors.torch import save_file

from cli import main
from pipeline import api

DOCS = Path(__file__).resolve().parents[1] / "docs"
sys.path.insert(0, str(DOCS))

from write_notebook import NOTEBOOK, PAGE, cells, notebook, with_outputs  # noqa: E402

pytestmark = pytest.mark.usefixtures("narrow")

TEXT = PAGE.read_text(encoding="utf-8")
CELLS = cells(TEXT)
COMMANDS = [cell for cell in CELLS if cell.kind == "console"]
SMALLER = {
    "--epochs 120": "--epochs 1",
    "--epochs 40": "--epochs 1",
    "--views 4": "--views 1",
    "--source-size 128": "--source-size 32",
}


def test_the_site_describes_every_public_name_of_the_api():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.\. auto(?:function|class):: (\w+)$", page, re.MULTILINE)) == sorted(
        api.__all__
    )


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_the_page(kept):
    made = notebook(TEXT)
    nbformat.validate(kept)
    for cell, same in zip(kept.cells, made.cells, strict=True):
        assert (cell.cell_type, cell.source) == (same.cell_type, same.source), "run docs/write_notebook.py"
    assert [cell.source for cell in kept.cells if cell.source.startswith("%%bash")] == [
        f"%%bash\n{cell.text}" for cell in COMMANDS
    ]


def test_what_the_page_shows_is_what_the_notebooks_run_printed(kept):
    assert not any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", ()))
    assert all(cell.shown for cell in COMMANDS)
    assert with_outputs(TEXT, kept) == TEXT, "run docs/write_notebook.py --run"


def made_project(folder: Path) -> None:
    """What the page asks for: images, the list and the weights, as few and as small as serves."""
    lines = ["path,label,split"]
    for split, name, n in (("train", "train", 6), ("val", "test", 2)):
        for label in ("Coast", "Kitchen", "Office"):
            for i, image in enumerate(sorted(shared(f"data/scene15/{split}/{label}").iterdir())[:n]):
                path = Path("scenes", split, label, image.name)
                (folder / path.parent).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(image, folder / path)
                lines.append(
                    f"{path.as_posix()},{label},{name}" if i < 4 else f"{path.as_posix()},,unlabelled"
                )
    (folder / "scenes.csv").write_text("\n".join(lines) + "\n")
    save_file(timm.create_model("resnet50").state_dict(), folder / "resnet50.safetensors")


def test_the_ten_commands_lead_to_an_exported_student(tmp_path, monkeypatch):
    made_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 10
    unused, printed = set(SMALLER), {}
    for cell in CELLS:
        if cell.kind == "python":
            exec(cell.text, {})
        elif cell.kind == "console":
            command = cell.text.replace("\\\n", "")
            for long, short in SMALLER.items():
                unused -= {long} if long in command else set()
                command = command.replace(long, short)
            program, *words = shlex.split(command)
            assert program == "sskt"
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, f"{command}: {result.output}"
            printed[words[0]] = result.stdout
    assert not unused  # the page has them
    assert len(printed["predict"].splitlines()) == 1 + 2
    assert {line.split()[0] for line in printed["runs"].splitlines()[1:]} == {"runs/scratch", "runs/taught"}
    assert {path.name for path in Path("runs/taught").iterdir()} >= {"report.html", "exported.onnx"}
