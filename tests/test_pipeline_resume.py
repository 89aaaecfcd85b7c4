"""A run that was stopped goes on to the very numbers of one that was not."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from listening import Remarks
from processes import PATIENCE_S, Process, run_python
from programs import Tiny, save_program, small_student
from stopping import stop_after
from upath import UPath

from cli import main
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.train import loop as training
from pipeline.train.run_folder import RunBusyError, read_student
from sskt.errors import RunError
from sskt.students import WrappedBackbone

pytestmark = pytest.mark.usefixtures("narrow")

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("_s", "_share", "_mb")  # ends of the names of what a clock or the memory tells
N = 60
SCHEDULE = {"epochs": 4, "batch_size": 20, "lr": 0.05, "milestones": (2,), "gamma": 0.5}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    paths = Paths(folder / "data", folder / "stores")
    execution = choose_execution(device="cpu", renderer="torch", threads=2)
    common = {"paths": paths, "execution": execution, "limit": N}
    api.precompute(["digits"], [source], views=3, **common)
    return folder, source, common


def numbers(run: Path) -> list[dict]:
    """What an epoch's metrics say, but for the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(MEASURED)} for line in lines]


def student(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes() + (run / "best.safetensors").read_bytes()


VARIANTS = {
    "multistep": {},
    "plateau": {"schedule": "plateau"},
    "cosine": {"schedule": "cosine"},
    "fast": {"recipe": "fast", "schedule": "trapezoid", "ema": 0.9},
    "adam": {"optimizer": "adam", "lr": 0.002},
    "live": {"labels": "live"},
    "mixed": {"mixup": 0.4, "cutmix": 1.0, "clip_norm": 1.0, "label_smoothing": 0.1},
    "module": {"transfer_module": True},
    "gradient cosine": {"gradient_cosine": "weigh"},
    "dml": {"method": "dml", "sources": (), "peers": 3, "epochs": 3},
    "maxl": {"method": "maxl", "sources": (), "psi": 2, "transfer_module": True, "epochs": 3},
}
NAMED = ("multistep", "dml", "maxl")  # variants with the recipe's ResNet20: the others have less to compute


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_at_any_step_goes_on_to_the_same_numbers(project, variant, monkeypatch, tmp_path):
    _folder, source, common = project
    chosen = VARIANTS[variant]
    settings = {**SCHEDULE, "sources": (source,), "seed": 3, "eval_every": 2, **chosen, **common}
    named = variant in NAMED
    api.train("digits", out=tmp_path / "whole", model=None if named else small_student(), **settings)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)  # between all steps
    stops = (0, 1, 5, 6, 11) if variant == "multistep" else (7,)  # an epoch has three
    for n_steps in stops:
        out = tmp_path / f"stopped-{n_steps}"
        with monkeypatch.context() as stopping:
            stop_after(stopping, n_steps)
            with pytest.raises(KeyboardInterrupt):
                api.train("digits", out=out, model=None if named else small_student(), **settings)
        assert not (out / "summary.json").exists()
        torch.rand(3)  # the process that goes on is in another state
        api.resume(out, execution=common["execution"], backbone=None if named else small_student())
        assert numbers(out) == numbers(tmp_path / "whole")
        assert student(out) == student(tmp_path / "whole")


def test_a_run_that_goes_on_otherwise_says_so(project, monkeypatch, tmp_path):
    _folder, source, common = project
    settings = {"sources": (source,), **SCHEDULE, **common}
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    for renderer, threads, expected in (
        ("torch", 2, []),
        ("dali", 2, ["the renderer is dali-cpu and was torch-cpu"]),
        ("torch", 1, ["the number of threads is 1 and was 2"]),
    ):
        out, said = tmp_path / f"{renderer}-{threads}", Remarks()
        with monkeypatch.context() as stopping:
            monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
            stop_after(stopping, 2)
            with pytest.raises(KeyboardInterrupt):
                api.train("digits", out=out, **settings)
        monkeypatch.setattr(torch, "get_num_threads", lambda now=threads: now)
        other = choose_execution(device="cpu", renderer=renderer, threads=2)
        api.resume(out, execution=other)
        assert [line.partition(":")[0] for line in said if " and was " in line] == expected


def test_the_same_command_goes_on_with_its_own_run_and_no_other(project, monkeypatch, tmp_path):
    folder, source, _common = project
    words = ["train", "--target", "digits", "--source", source, "--epochs", "3", "--limit", str(N), "--lr"]
    words += [
        "0.05",
        "--batch-size",
        "20",
        "--data-dir",
        str(folder / "data"),
        "--threads",
        "2",
        "--renderer",
    ]
    words += ["torch", "--cache-dir", str(folder / "stores"), "--model", "resnet20", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert CliRunner().invoke(main, [*words, str(whole)]).exit_code == 0
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    for n_steps in (1, 5):  # of nine
        with monkeypatch.context() as stopping:
            stop_after(stopping, n_steps)
            assert CliRunner().invoke(main, [*words, str(out)]).exit_code != 0
    for more, found in (
        (["--seed", "5"], "was started with seed 0, this command has 5; choose another --out"),
        (["--views", "2"], "was started with views 3, this command has 2"),
        (["--method", "scratch"], "was started with method sskt, this command has scratch"),
    ):
        told = words if "scratch" not in more else [w for w in words if w not in ("--source", source)]
        refused = CliRunner().invoke(main, [*told, str(out), *more])
        assert refused.exit_code == 1
        assert found in refused.stderr
    ended = [CliRunner().invoke(main, [*words, str(out)]) for _ in range(2)]
    assert [(run.exit_code, run.stdout.strip()) for run in ended] == [(0, str(out))] * 2
    assert "has finished already" in ended[1].stderr
    assert (numbers(out), student(out)) == (numbers(whole), student(whole))


def test_a_run_at_a_url_goes_on_from_another_machine(project, monkeypatch, tmp_path):
    _folder, source, common = project
    settings = {**SCHEDULE, "sources": (source,), "eval_every": 2, **common}
    api.train("digits", out=tmp_path / "whole", model=small_student(), **settings)
    out = UPath("memory://runs/a")
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 7)
        with pytest.raises(KeyboardInterrupt):
            api.train("digits", out=str(out), model=small_student(), **settings)
    api.train("digits", out=str(out), model=small_student(), **settings)
    assert (numbers(out), student(out)) == (numbers(tmp_path / "whole"), student(tmp_path / "whole"))
    assert sum("tfevents" in path.name for path in out.iterdir()) == 2
    figures = api.evaluate(str(out), backbone=small_student(), execution=common["execution"])
    assert figures["test_top1"] == numbers(out)[-1]["test_top1"]


def test_a_run_that_another_process_trains_is_left_alone(project, monkeypatch, tmp_path):
    _folder, source, common = project
    settings = {"sources": (source,), **SCHEDULE, **common}
    out = tmp_path / "run"
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 5)
        with pytest.raises(KeyboardInterrupt):
            api.train("digits", out=out, **settings)
    before = {path: path.read_bytes() for path in out.iterdir()}
    holds = "import sys\nfrom pathlib import Path\nfrom pipeline.runtime.lock import alone_in\n"
    holds += "with alone_in(Path(sys.argv[1])): print('in', flush=True); input()"
    other = Process("-c", holds, out, cwd=ROOT)
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(RunBusyError, match="another process trains this run"):
        api.resume(out, execution=common["execution"])
    with pytest.raises(RunBusyError, match="another process trains this run"):
        api.train("digits", out=out, **settings)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    other.kill()
    other.communicate()
    api.resume(out, execution=common["execution"])
    assert len(numbers(out)) == SCHEDULE["epochs"]


def test_kill_9_at_random_moments_leaves_a_run_that_goes_on(project, tmp_path):
    """As a user has it: the same numbers after two kills, wherever they fall."""
    folder, source, _ = project
    words = ["-m", "cli", "train", "--threads", "1"]
    begin = [*words, "--target", "digits", "--source", source, "--limit", str(N), "--lr", "0.05"]
    begin += ["--cache-dir", str(folder / "stores"), "--data-dir", str(folder / "data")]
    begin += ["--epochs", "16", "--batch-size", "20", "--eval-every", "7"]
    assert run_python(*begin, "--out", tmp_path / "whole", cwd=ROOT).returncode == 0
    out, moments = tmp_path / "killed", random.Random(5)
    for _ in range(2):
        goes_on = (out / "config.json").exists()
        process = Process(*(words if goes_on else begin), "--resume" if goes_on else "--out", out, cwd=ROOT)
        wait_for(out / "last.pt", process)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
    assert run_python(*words, "--resume", out, cwd=ROOT).returncode == 0
    assert len(numbers(out)) == 16
    assert numbers(out) == numbers(tmp_path / "whole")
    assert student(out) == student(tmp_path / "whole")


def wait_for(path: Path, process: Process) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def begun(project):
    """A run that was stopped in its second epoch."""
    folder, source, common = project
    with pytest.MonkeyPatch.context() as stopping:
        stop_after(stopping, 4)
        with pytest.raises(KeyboardInterrupt):
            api.train("digits", out=folder / "begun", sources=(source,), **SCHEDULE, **common)
    return folder / "begun"


@pytest.fixture
def stopped(begun, tmp_path):
    """A copy of it, to go on with."""
    return shutil.copytree(begun, tmp_path / "run")


def go_on(out: Path, **more) -> list[str]:
    said = Remarks()
    execution = choose_execution(device="cpu", renderer="torch", threads=2)
    api.resume(out, execution=execution, **more)
    return said


def test_a_torn_line_of_metrics_is_written_again(stopped):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_lo')
    (said,) = [line for line in go_on(stopped) if "continues" in line]
    assert said == f"{stopped}: continues in epoch 2 of 4"
    assert [m["epoch"] for m in numbers(stopped)] == [1, 2, 3, 4]


def test_a_finished_run_is_left_alone(stopped):
    go_on(stopped)
    before = {path: path.read_bytes() for path in stopped.iterdir()}
    assert go_on(stopped) == [f"{stopped}: has finished already, nothing is left to do"]
    assert {path: path.read_bytes() for path in stopped.iterdir()} == before


def test_the_student_of_a_finished_run_is_written_again_from_its_checkpoint(stopped):
    go_on(stopped)
    names = ("student.safetensors", "summary.json", "metrics.jsonl", "last.pt")
    before = {name: (stopped / name).read_bytes() for name in names}
    (stopped / "student.safetensors").unlink()
    with pytest.raises(RunError, match=r"has no student\.safetensors, .* written again, with `sskt"):
        read_student(stopped)
    said = go_on(stopped)
    assert f"{stopped}: all 4 epochs are done, its student is written from last.pt" in said
    assert {name: (stopped / name).read_bytes() for name in names} == before
    (stopped / "student.safetensors").unlink()
    (stopped / "last.pt").unlink()
    with pytest.raises(RunError, match=r"both its student and last\.pt are missing; restore one"):
        go_on(stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]


def test_a_damaged_checkpoint_is_named_and_nothing_changes(stopped):
    checkpoint = stopped / "last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"last\.pt: cannot be read .*; restore it, or train again"):
        go_on(stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_settings_that_were_edited_are_refused(stopped):
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps({**config, "lr": 1.0}))
    with pytest.raises(RunError, match=r"config\.json and last\.pt are of different runs"):
        go_on(stopped)
    del config["lr"]
    (stopped / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"its settings are not this version's, lr is missing"):
        go_on(stopped)


def test_other_pictures_are_refused(stopped, monkeypatch):
    from pipeline.data import index_copies as opening

    load = opening.load_dataset
    monkeypatch.setattr(
        opening,
        "load_dataset",
        lambda spec, split, **options: load(spec, split, **options).take(
            range(N - 1) if split == "train" else slice(None)
        ),
    )
    with pytest.raises(RunError, match=r"its contents\.train was .* and is .* now"):
        go_on(stopped)


def test_another_number_of_processes_is_refused(stopped):
    for name in ("config.json",):
        config = json.loads((stopped / name).read_text())
        (stopped / name).write_text(json.dumps({**config, "ranks": 4}))
    (stopped / "last.pt").unlink()
    with pytest.raises(RunError, match=r"was started by 4 process\(es\), this is one of 1"):
        go_on(stopped)


def test_a_backbone_of_ones_own_goes_on_from_python(project, tmp_path, monkeypatch):
    _, source, common = project

    def own():
        torch.manual_seed(1)
        convolution = torch.nn.Conv2d(3, 8, 3, stride=2)
        return WrappedBackbone(torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(8)), side_px=32)

    settings = {"sources": (source,), **SCHEDULE}
    api.train("digits", out=tmp_path / "whole", model=own(), **settings, **common)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 7)
        with pytest.raises(KeyboardInterrupt):
            api.train("digits", out=tmp_path / "run", model=own(), **settings, **common)
    with pytest.raises(RunError, match="its student is own:WrappedBackbone; continue from Python"):
        go_on(tmp_path / "run")
    go_on(tmp_path / "run", backbone=own())
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "last.pt").unlink()  # as if it had been killed before its first checkpoint
    go_on(tmp_path / "run", backbone=own())
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    with pytest.raises(RunError, match="its student is own:WrappedBackbone; continue from Python"):
        api.evaluate(tmp_path / "run")
    figures = api.evaluate(tmp_path / "run", backbone=own(), execution=common["execution"])
    assert figures["test_top1"] == numbers(tmp_path / "whole")[-1]["test_top1"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lr", "0.3"], "--lr is settled by the run that --resume continues; leave it out"),
        (["--target", "digits"], "--target is settled by the run"),
        ([], "has no config.json; give the folder that sskt train printed"),
    ],
)
def test_the_command_line_says_what_does_not_go_with_resume(tmp_path, words, expected):
    result = CliRunner().invoke(main, ["train", "--resume", str(tmp_path), *words])
    assert result.exit_code != 0
    assert expected in result.stderr


def test_the_command_line_goes_on_with_data_that_moved(stopped, project):
    folder, _, _ = project
    (folder / "stores").rename(folder / "elsewhere")
    try:
        result = CliRunner().invoke(main, ["train", "--resume", str(stopped), "--threads", "1"])
        assert result.exit_code == 1
        assert "say where they are now with --cache-dir" in result.stderr
        words = ["train", "--resume", str(stopped), "--cache-dir", str(folder / "elsewhere")]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.strip() == str(stopped)
    finally:
        (folder / "elsewhere").rename(folder / "stores")


def test_a_run_goes_on_with_the_store_it_began_with_when_its_source_has_another_by_now(
    project, monkeypatch, tmp_path
):
    _folder, _source, common = project
    source = f"program:{save_program(tmp_path / 'net.pt2')}"
    shown = common | {"paths": Paths(tmp_path / "data", tmp_path / "stores")}
    api.precompute(["digits"], [source], views=2, **shown)
    settings = {**SCHEDULE, "sources": (source,), "eval_every": 2}
    api.train("digits", out=tmp_path / "whole", **settings, **shown)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 4)
        with pytest.raises(KeyboardInterrupt):
            api.train("digits", out=tmp_path / "run", **settings, **shown)
    save_program(tmp_path / "net.pt2", Tiny(seed=5))
    api.precompute(["digits"], [source], views=2, **shown)
    api.resume(tmp_path / "run", execution=shown["execution"])
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
