"""The examples run as they are shown."""

import shutil
from pathlib import Path

import pytest
from conftest import shared
from processes import run_python
from programs import save_program

from pipeline import api
from pipeline.api import Paths

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, example: str, *words: str) -> str:
    done = run_python(ROOT / "examples" / example, *words, cwd=folder, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_network_of_ones_own_is_trained_on_a_folder_of_ones_own(tmp_path):
    for scene in ("Forest", "Highway"):
        for i, image in enumerate(sorted((shared("data/scene15/train") / scene).glob("*.jpg"))[:5]):
            (tmp_path / "pictures" / scene).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, tmp_path / "pictures" / scene / f"{i}.jpg")
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    out = run(tmp_path, "own_backbone.py", "pictures", source)
    assert "10 epochs: test top-1" in out
    assert (tmp_path / "runs" / "pictures" / "student.safetensors").is_file()


def test_a_plain_loop_takes_stored_logits(tmp_path):
    source = f"program:{save_program(tmp_path / 'tiny.pt2')}"
    paths = Paths(tmp_path / "data", tmp_path / "stores")
    api.precompute(["digits"], [source], views=2, paths=paths)
    (tmp_path / "use.py").write_text("")
    out = run(tmp_path, "plain_loop.py", "digits")
    first, second = (float(line.rpartition(" ")[2]) for line in out.splitlines() if "loss" in line)
    assert second < first


@pytest.mark.parametrize("name", ["own_backbone.py", "plain_loop.py"])
def test_an_example_is_short(name):
    lines = (ROOT / "examples" / name).read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.lstrip().startswith(('"""', "#"))]
    assert len(code) <= 25
