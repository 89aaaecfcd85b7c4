"""docs/architecture.md is what the house is: its picture, its contracts and the functions that it names."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
sys.path.insert(0, str(ROOT / "docs"))

import draw_architecture  # noqa: E402


def test_the_picture_is_that_of_todays_imports(tmp_path):
    draw_architecture.draw(draw_architecture.imports(), tmp_path / "drawn.svg")
    drawn = (tmp_path / "drawn.svg").read_text()
    assert drawn == (ROOT / "docs" / "architecture.svg").read_text(), "run docs/draw_architecture.py"


def test_no_room_imports_another_in_a_circle_and_the_stages_meet_in_the_store():
    edges = draw_architecture.imports()
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
    for link in re.findall(r"\]\((?:\.\./)?([\w/.]+)\)", PAGE):
        assert (ROOT / link).exists() or (ROOT / "docs" / link).exists(), link


def test_the_glossary_has_twelve_words_and_six_files_to_begin_with():
    table = PAGE.partition("## Twelve words")[2].partition("##")[0]
    assert len(re.findall(r"^\| (?!word|---)", table, flags=re.M)) - 1 <= 12
    assert len(re.findall(r"^\d\. \[", PAGE, flags=re.M)) == 6
