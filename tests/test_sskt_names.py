"""Names in any bytes go through the whole program and come out as they are, or readable."""

import csv
import json
import os
import shlex
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from programs import save_program

from cli import main
from sskt.errors import quoted, shown

pytestmark = pytest.mark.usefixtures("narrow")

CLASSES = [b"k\xfcrbis", b"a\nb \"q\" 's'", b"-dash", b"l" * 240, "\u65e5\u672c".encode(), b"[bold]\x1b[1m"]
FILES = [b"gr\xfcn", b"-n\new\tline", b"z" * 240, b"%s $HOME [x]"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain name", "plain name"),
        ("\u65e5\u672c \\n", "\u65e5\u672c \\n"),
        (os.fsdecode(b"k\xfcrbis"), "k\\xfcrbis"),
        ("a\nb\tc\x1b[1m", "a\\nb\\tc\\x1b[1m"),
        ("a\u2028b\x85", "a\\u2028b\\x85"),
    ],
)
def test_only_what_cannot_be_printed_is_escaped(name, expected):
    assert shown(name) == expected
    assert shown(name).encode().decode() == expected


@pytest.mark.parametrize("name", [b"plain", b"two words", b"k\xfcrbis", b"it's\n\\ \xff$x", b"-\t'"])
def test_a_quoted_name_is_what_a_shell_hands_on(name):
    word = quoted(os.fsdecode(name))
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert said == name
    if name.isascii() and name.decode().isprintable():
        assert word == shlex.quote(name.decode())


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_image_folders_with_such_names_are_prepared_taught_scored_and_drawn(tmp_path):
    root = tmp_path / os.fsdecode(b"na\xffsty 'x'")
    rng = np.random.default_rng(0)
    for name in map(os.fsdecode, CLASSES):
        (root / name).mkdir(parents=True)
        for file in map(os.fsdecode, FILES):
            pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{file}.png")
        (root / name / os.fsdecode(b"n\xf6te.txt")).write_text("x")
    program, run = save_program(tmp_path / "tiny.pt2"), tmp_path / "run"
    cache = ("--cache-dir", str(tmp_path / "stores"))
    target = ("--target", f"imagefolder:{root}", *cache)
    small = ("--source", f"program:{program}", "--size", "32", "--source-size", "32", "--views", "1")

    def done(*words):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, (words[0], result.output, result.exception)
        return result

    assert "6 files ignored (6 .txt), all in" in done("prepare", *target).stderr
    (listed,) = (tmp_path / "stores" / "indexes").glob("*ignored.txt")
    assert b"k\xfcrbis/n\xf6te.txt\t.txt\n" in listed.read_bytes()
    assert listed.read_bytes().count(b"\n") == 6
    done("precompute", *target, *small)
    more = ("--epochs", "1", "--model", "resnet20", "--batch-size", "8", "--out", run)
    done("train", *target, *small, *more)
    expected = sorted(map(os.fsdecode, CLASSES))
    assert json.loads((run / "config.json").read_text())["classes"] == expected
    scored = done("evaluate", run, *cache)
    assert "k\\xfcrbis" in scored.output
    assert 'a\\nb "q"' in scored.output
    assert list(json.loads(done("evaluate", run, *cache, "--json").stdout)["classes"]) == expected
    with (run / "confusion.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file))[1:] == [shown(name) for name in expected]
    done("explain", run, "--out", tmp_path / "e.png", "--class", os.fsdecode(CLASSES[0]))
    (root / os.fsdecode(CLASSES[1]) / f"{os.fsdecode(FILES[1])}.png").write_bytes(b"no image")
    refused = CliRunner().invoke(main, ["train", *target, *small, *map(str, more)])
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "a\\nb \"q\" 's'/-n\\new\\tline.png (no image inside that can be read)" in line
