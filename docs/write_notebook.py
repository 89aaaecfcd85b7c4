"""Write docs/first-steps.ipynb from docs/first-steps.md: prose as it is, commands and Python code as cells.

    python docs/write_notebook.py [--run FOLDER]

--run runs the cells in FOLDER, which holds what the page asks for, and puts what they printed into the page.
Without it, cells keep their last output.
"""

import argparse
import os
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).with_name("first-steps.md")
NOTEBOOK = PAGE.with_suffix(".ipynb")
_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


class Cell(NamedTuple):
    """A part of the page: `kind` is markdown, python or console; `shown` is what the page shows as output."""

    kind: str
    text: str
    shown: str = ""


def cells(page: str) -> list[Cell]:
    """The page's prose, Python code and commands, in order."""
    found, at = [], 0
    for block in _BLOCK.finditer(page):
        found.append(Cell("markdown", page[at : block.start()].strip()))
        found.append(_command(block[2]) if block[1] == "console" else Cell("python", block[2].rstrip()))
        at = block.end()
    return [cell for cell in [*found, Cell("markdown", page[at:].strip())] if cell.text]


def _command(block: str) -> Cell:
    """The command of a console block, which follows "$ " and goes on after a backslash."""
    command = re.match(r"\$ ((?:.*\\\n)*.*)\n", block)
    if command is None:
        raise ValueError(f"a console block starts with {block[:20]!r}, expected '$ ' and a command")
    return Cell("console", command[1], block[command.end() :])


def notebook(page: str) -> nbformat.NotebookNode:
    """The notebook of the page, without outputs."""
    made = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    for i, cell in enumerate(cells(page)):
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" else nbformat.v4.new_code_cell
        source = f"%%bash\n{cell.text}" if cell.kind == "console" else cell.text
        made.cells.append(new(source, id=f"cell-{i}"))  # the same in every call
    return made


def keep_outputs(made: nbformat.NotebookNode, earlier: nbformat.NotebookNode) -> None:
    """Give code cells the outputs that a cell of the same source had."""
    outputs = {cell.source: cell for cell in earlier.cells if cell.cell_type == "code"}
    for cell in made.cells:
        if cell.cell_type == "code" and cell.source in outputs:
            cell.outputs = outputs[cell.source].outputs
            cell.execution_count = outputs[cell.source].execution_count


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell's command printed as its result, without remarks and spaces at the ends of lines."""
    streams = (output for output in cell.outputs if output.output_type == "stream")
    text = "".join(output.text for output in streams if output.name == "stdout")
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def with_outputs(page: str, run: nbformat.NotebookNode) -> str:
    """The page with what its commands printed in a run of its notebook."""
    results = {cell.source: printed(cell) for cell in run.cells if cell.cell_type == "code"}

    def shown(block: re.Match[str]) -> str:
        if block[1] != "console":
            return block[0]
        command = _command(block[2]).text
        result = results["%%bash\n" + command]
        return f"```console\n$ {command}\n{result}```\n"

    return _BLOCK.sub(shown, page)


def main() -> None:
    """Write the notebook; with --run, run it first."""
    parser = argparse.ArgumentParser(description="Write docs/first-steps.ipynb from docs/first-steps.md.")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="Run the cells in FOLDER first.")
    folder = parser.parse_args().run
    page = PAGE.read_text(encoding="utf-8")
    made = notebook(page)
    if folder is not None:
        how = {"timeout": None, "record_timing": False, "coalesce_streams": True}
        client = NotebookClient(made, resources={"metadata": {"path": str(folder)}}, **how)
        client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore"})  # of other packages, about this kernel
        PAGE.write_text(with_outputs(page, made), encoding="utf-8")
    elif NOTEBOOK.exists():
        keep_outputs(made, nbformat.read(NOTEBOOK, as_version=4))
    nbformat.write(made, NOTEBOOK)


if __name__ == "__main__":
    main()
