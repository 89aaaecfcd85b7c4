"""A run with the fast recipe keeps the average of its weights; what it cannot do is refused."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.data.datasets import parse_target
from pipeline.data.prepare import open_dataset
from pipeline.runtime.distributed import World
from pipeline.train.config import TrainConfig
from pipeline.train.evaluate import Evaluator
from pipeline.train.resolve import resolve
from pipeline.train.run_folder import read_config
from pipeline.train.settle import require_sound
from pipeline.train.trainer import Trainer
from sskt import recipes
from sskt.errors import RunError
from sskt.students.student import build_student

pytestmark = pytest.mark.usefixtures("narrow")

FAST = {"recipe": "fast", "method": "scratch", "epochs": 3, "batch_size": 20, "amp": "fp32"}
LATER = ("recipe", "warm_up", "cool_down", "nesterov", "decay_norms", "ema", "ema_matched")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, and the student's weights after each of its steps."""
    folder, after = tmp_path_factory.mktemp("fast"), []
    paths = Paths(folder / "data", folder / "stores")
    execution = choose_execution(device="cpu", renderer="torch", threads=1)
    step = Trainer._take_step

    def watched(self, batch):
        step(self, batch)
        after.append({k: v.clone() for k, v in self.student.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_take_step", watched)
        common = {"paths": paths, "execution": execution}
        summary = api.train("digits", out=folder / "run", limit=60, ema=0.7, **FAST, **common)
    return folder / "run", summary, after, common


def test_the_student_that_is_kept_is_the_average_of_all_steps(run):
    folder, _, after, _ = run
    assert len(after) == 9
    average = {name: value.double() for name, value in after[0].items()}
    for n, weights in enumerate(after[1:], start=1):
        d = min(0.7, (1 + n) / (10 + n))
        for name, value in weights.items():  # batch norms lag by more steps than these weights
            of_norms = "running" in name or not value.is_floating_point()
            average[name] = value.double() if of_norms else d * average[name] + (1 - d) * value
    kept = load_file(folder / "student.safetensors")
    assert kept.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(kept[name], value.to(kept[name].dtype), rtol=1e-5, atol=1e-6)
    assert not torch.equal(kept["head.weight"], after[-1]["head.weight"])


def test_what_is_scored_is_the_average(run):
    folder, summary, after, common = run
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    figures = api.evaluate(folder, execution=common["execution"])
    assert figures["test_loss"] == last["test_loss"]
    assert figures["test_top1"] == summary["test_top1"]
    student = build_student("resnet20", 10, {}, transfer_module=False)
    student.load_state_dict(after[-1])
    dataset = open_dataset("digits", "test", paths=common["paths"])
    plan = Augmentation().evaluation_plan(parse_target("digits"))
    own = Evaluator(dataset, plan, common["execution"]).accuracy(student, "fp32")
    assert own["test_loss"] != pytest.approx(last["test_loss"], rel=1e-3)


def test_the_rate_moves_at_every_step_and_the_recipe_is_recorded(run):
    folder, summary, _, _ = run
    rates = [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # of the step after each epoch's last one: 3, 6 and 9 of 9, which fall from the full 0.1 over 7.2 steps
    assert rates == pytest.approx([0.1 * 6 / 7.2, 0.1 * 3 / 7.2, 0.0])
    config = read_config(folder)
    assert {name: config[name] for name in (*LATER, "schedule", "lr", "label_smoothing")} == {
        "recipe": "fast",
        "warm_up": 0.2,
        "cool_down": 0.8,
        "nesterov": True,
        "decay_norms": False,
        "ema": 0.7,
        "ema_matched": True,
        "schedule": "trapezoid",
        "lr": 0.1,
        "label_smoothing": 0.0,
    }
    assert summary["overridden"] == {"epochs": [3, 10], "batch_size": [20, 32], "ema": [0.7, 0.99]}


def test_a_run_from_before_is_as_it_was(run):
    """Without the settings that came with the recipe it is the paper's, and its SGD and student are plain."""
    folder, _, _, _ = run
    found = {name: value for name, value in read_config(folder).items() if name not in LATER}
    config = TrainConfig.from_dict(found | {"schedule": "multistep"}, "config.json")
    assert [getattr(config, name) for name in LATER] == ["paper", 0.2, 0.8, False, True, 0.0, False]
    plain = resolved("digits", method="scratch")
    assert [getattr(plain, name) for name in LATER] == ["paper", 0.2, 0.8, False, True, 0.0, False]


def resolved(target, **settings):
    model = "resnet3d18" if target == "ucf101" else "resnet20"
    how = {"execution": choose_execution(device="cpu"), "world": World(), "augmentation": Augmentation()}
    return resolve(target, model=model, **how, **settings)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (
            "digits",
            {"warm_up": 0.1},
            "--warm-up is for --schedule trapezoid or warm-cosine, this run has multistep",
        ),
        (
            "digits",
            {"recipe": "fast", "schedule": "cosine", "cool_down": 0.1},
            "--cool-down is for --schedule",
        ),
        ("digits", {"recipe": "fast", "warm_up": 0.4}, "--warm-up 0.4 and --cool-down 0.8 are fractions of"),
        (
            "digits",
            {"recipe": "fast", "warm_up": -1.0},
            "warm_up is -1.0, expected at least 0 and at most 1",
        ),
        ("digits", {"recipe": "slow"}, "recipe is 'slow', expected one of paper, fast"),
        ("digits", {"nesterov": 1}, "nesterov is 1 .int., expected True or False"),
        ("digits", {"ema": 1.0}, "ema is 1, expected at least 0 and less than 1"),
        ("ucf101", {"recipe": "fast"}, "--recipe fast: there is none for ucf101"),
        ("ucf101", {"nesterov": True}, "this run has momentum 0.9 and dampening 0.9; use --no-nesterov"),
    ],
)
def test_what_cannot_hold_is_refused(target, settings, message):
    with pytest.raises(RunError, match=message):
        require_sound(resolved(target, **settings))


def test_nothing_is_written_for_a_run_that_is_refused(run, tmp_path):
    *_, common = run
    for settings in ({"ema": 1.0}, {"nesterov": True, "momentum": 0.0}, {"warm_up": 0.9}):
        with pytest.raises(RunError):
            api.train("digits", out=tmp_path / "no", limit=60, **FAST, **settings, **common)
    assert not (tmp_path / "no").exists()


def test_a_recipes_label_smoothing_is_of_cross_entropy_alone(monkeypatch):
    smooth = recipes.replace(recipes.recipe_for("digits", name="fast"), label_smoothing=0.1)
    monkeypatch.setitem(recipes._RECIPES, ("digits", "fast"), smooth)
    assert resolved("digits", recipe="fast").label_smoothing == 0.1
    focal = resolved("digits", recipe="fast", primary_loss="focal")
    assert focal.label_smoothing == 0.0
    assert focal.overridden["label_smoothing"] == (0.0, 0.1)


def test_the_command_takes_every_part_away_again(run, tmp_path):
    *_, common = run
    words = ["train", "--target", "digits", "--method", "scratch", "--recipe", "fast", "--limit", "40"]
    words += ["--epochs", "1", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    words += ["--no-nesterov", "--decay-norms", "--ema", "0", "--schedule", "multistep"]
    words += ["--data-dir", str(common["paths"].data_dir), "--cache-dir", str(tmp_path / "stores")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    config = read_config(tmp_path / "run")
    assert [config[name] for name in ("nesterov", "decay_norms", "ema", "schedule")] == [
        False,
        True,
        0.0,
        "multistep",
    ]
    assert "the recipe fast of digits, except: epochs 1 (not 10)" in result.stderr
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert "average" not in state
    assert len(state["optimiser"]["param_groups"]) == 1
