"""Table G: every row's settings, what rows and seeds share, what it would cost, and what the report says."""

import csv
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from made_ccv import make_ccv
from safetensors.torch import save_file

from cache.store import Store, find_stores
from cli import main
from pipeline import api
from pipeline.api import Campaign, GraphSettings, Paths, Shrink, choose_execution
from pipeline.runtime import World
from pipeline.studies import series
from pipeline.studies.reproduce.graph import marks, needs, price
from pipeline.studies.reproduce.graph import needs as pretexts
from pipeline.studies.reproduce.graph import rows as table
from pipeline.studies.reproduce.graph import run as runner
from pipeline.studies.reproduce.graph.needs import teachers_scores
from pipeline.studies.reproduce.graph.rows import graph_attempts, teacher_settings
from pipeline.studies.reproduce.published import published_rows
from pipeline.train.resolve import resolve
from sskt.errors import RunError
from sskt.students import build_backbone

CPU = choose_execution(device="cpu", renderer="torch", threads=1)
TASKS = ("sorting", "egomotion", "tracking", "prediction")
ROWS = ("fusion", "ensemble", "gl+gr")
RUNS = [f"run:out/teacher-{task}" for task in TASKS]


@pytest.fixture
def bare(tmp_path):
    return Campaign(tmp_path / "out", Paths(tmp_path / "data", tmp_path / "stores"), CPU)


def config_of(attempt):
    """As `train` would write it, as far as known without data."""
    settings = attempt.settings(RUNS)
    return resolve(attempt.row.target, world=World(), **settings)


def test_all_33_rows_have_the_schedule_of_the_paper_and_their_own_terms(bare):
    attempts = graph_attempts(bare, (), ())
    assert [a.row for a in attempts] == [row for row in published_rows("G") if not row.is_cited]
    assert len(attempts) == len({a.row.name for a in attempts}) == 33
    terms = {}
    for attempt in attempts:
        if not attempt.has_student:
            assert attempt.row.model == ""
            continue
        c = config_of(attempt)
        pretrained = attempt.row.init == "imagenet"
        assert (c.epochs, c.batch_size, c.optimizer, c.momentum) == (350, 128, "sgd", 0.9)
        assert (c.lr, c.gamma, c.dampening) == (0.001 if pretrained else 0.01, 0.5, 0)
        assert (c.schedule, c.milestones) == ("multistep", (50, 100, 150, 200, 250, 300))
        assert (c.model, c.plan["side_px"], c.views) == ("alexnet", 224, 10)
        assert c.primary_loss == ("bce" if attempt.row.target == "ccv" else "ce")
        graph = (c.graph_logits, c.graph_features) if c.method == "graph" else None
        learns = {"logits": RUNS[0] in c.sources, "maps": f"{RUNS[0]}@layer4:6" in c.sources}
        assert len(c.sources) == 4 * sum(learns.values())
        assert c.alpha == 0.6 or c.method == "scratch"
        terms.setdefault(attempt.row.method, set()).add((c.method, graph, *learns.values()))
    assert terms == {
        "alexnet random": {("scratch", None, False, False)},
        "alexnet imagenet-pretrained": {("scratch", None, False, False)},
        "kd uniform": {("kd", None, True, False)},
        "logits graph mmgd": {("graph", ("cosine", "off"), True, False)},
        "logits graph gl": {("graph", ("em", "off"), True, False)},
        "feature distill uniform": {("graph", ("off", "uniform"), False, True)},
        "feature graph gr": {("graph", ("off", "graph"), False, True)},
        "mmgd+gr": {("graph", ("cosine", "graph"), True, True)},
        "gl+gr": {("graph", ("em", "graph"), True, True)},
    }


def test_a_smaller_table_keeps_its_proportions(bare):
    small = replace(bare, shrink=Shrink(0.1), graph=GraphSettings(side_px=64, small=True))
    (attempt,) = graph_attempts(small, ["gl+gr"], ["hmdb51"])
    config = config_of(attempt)
    assert (config.epochs, config.milestones) == (35, (5, 10, 15, 20, 25, 30))
    assert config.sources[-1].endswith("@layer4:3"), "AlexNet's maps are 3 x 3 at 64 px"
    assert config.model == "alexnet-small"
    epochs = [teacher_settings(task, small)["epochs"] for task in TASKS]
    assert epochs == [10, 10, 10, 6]
    assert [pretexts.pretext_epochs(task, "hmdb51", small) for task in TASKS] == [20, 20, 20, 15]
    told = replace(small, graph=replace(small.graph, pretext_epochs=3))
    assert [pretexts.pretext_epochs(task, "hmdb51", told) for task in TASKS] == [3] * 4


def test_a_dry_run_shows_48_rows_and_prices_forwards_bytes_and_hours(bare, monkeypatch):
    for module, name in ((needs, "train_or_resume"), (needs, "precompute_once"), (needs, "ensemble")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was run"))
    monkeypatch.setattr(price, "_seconds", lambda network, _campaign: 0.2 if network == "prednet" else 0.1)
    results = api.reproduce("G", bare, dry_run=True)
    assert [result.row for result in results] == published_rows("G")
    costs = {result.row.name: result.cost(3) for result in results}
    assert sum(cost["runs_left"] for cost in costs.values()) == 27 * 3
    assert costs["ucf101-models-fusion"]["runs_left"] == 0
    assert sum(cost["teacher_runs_left"] or 0 for cost in costs.values()) == 12, "shared by rows and seeds"
    parts = {(p["target"], p["what"]): p for p in api.price_graph(bare, targets=["ucf101"])}
    assert not bare.out.exists()
    n, n_test = 9537, 3783
    assert parts["ucf101", "pretext tracking"]["forwards"] == 3 * 2 * 8583 * 200
    assert parts["ucf101", "teacher prediction"]["forwards"] == 3 * 60 * n
    for task in TASKS:
        stored = parts["ucf101", f"stores of {task}"]
        assert (stored["forwards"], stored["bytes"]) == (n * 10, n * 10 * 2 * (101 + 256 * 36))
        assert stored["hours"] == pytest.approx(n * 10 * (0.2 if task == "prediction" else 0.1) / 3600)
        assert parts["ucf101", f"scores of {task}"]["forwards"] == 25 * (n + n_test)
    students = parts["ucf101", "students"]
    assert (students["runs_left"], students["forwards"]) == (27, 27 * (3 * 350 * n + 25 * n_test))
    total = parts["all", "all"]
    others = [part for key, part in parts.items() if key != ("all", "all")]
    assert total["hours"] == pytest.approx(sum(part["hours"] for part in others))
    assert total["bytes"] == 4 * 10 * n * 2 * (101 + 9216)
    only = api.price_graph(bare, rows=["random"], targets=["hmdb51"])
    assert [part["what"] for part in only] == ["students", "all"], "it needs no teachers"
    assert api.price_graph(bare, rows=["cited"]) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """CCV of made videos, prepared without those that are gone."""
    folder = tmp_path_factory.mktemp("table-g")
    make_ccv(folder / "data")
    paths = Paths(folder / "data", folder / "stores")
    api.prepare("ccv", paths=paths, allow_missing=True)
    return paths


@pytest.fixture
def learned(monkeypatch):
    """The pretext runs, which learn nothing here: a fresh encoder in the folder of a run."""
    names = []

    def start(target, *, task, out, model, epochs, **_settings):
        recorded = out / "config.json"
        if recorded.is_file():
            assert json.loads(recorded.read_text())["epochs"] == epochs
            return
        names.append(out.name)
        out.mkdir(parents=True)
        recorded.write_text(json.dumps({"method": task, "target": target, "epochs": epochs}))
        (out / "summary.json").write_text(json.dumps({"task": task, "iterations": 7}))
        encoder = {f"backbone.{k}": v for k, v in build_backbone(model).state_dict().items()}
        save_file(encoder, out / pretexts.ENCODER)

    def matches(_target, folder, *, epochs, **_settings):
        return json.loads((folder / "config.json").read_text())["epochs"] == epochs

    monkeypatch.setattr(pretexts, "pretext_or_resume", start)
    monkeypatch.setattr(pretexts, "matches", matches)
    return names


def test_teachers_and_stores_are_made_once_for_rows_and_seeds_and_the_next_call_does_nothing(
    made, learned, tmp_path, monkeypatch
):
    trained = []
    for module in (marks, needs, runner, table):  # of 25, which the price above has
        monkeypatch.setattr(module, "CLIPS", 3)
    train = series.train
    monkeypatch.setattr(series, "train", lambda *a, **k: trained.append(k["out"].name) or train(*a, **k))
    paths = replace(made, cache_dir=tmp_path / "stores")
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "indexes").symlink_to(made.index_dir)
    graph = GraphSettings(side_px=64, small=True)
    campaign = Campaign(
        tmp_path / "out", paths, CPU, seeds=2, shrink=Shrink(0.002), views=1, amp="fp32", graph=graph
    )
    results = api.reproduce("G", campaign, rows=ROWS, targets=["ccv"])
    assert learned == [f"pretext-{task}-ccv-seed0" for task in TASKS]
    teachers = [f"teacher-{task}-ccv-seed0" for task in TASKS]
    assert sorted(trained) == sorted([*teachers, "ccv-gl+gr-seed0", "ccv-gl+gr-seed1"])
    stores = [Store.open(path).manifest.identity for path in find_stores(paths.cache_dir)]
    assert len(stores) == 8, "logits and maps of four teachers"
    by_name = {result.row.name: result for result in results}
    scores = teachers_scores("ccv", campaign)
    assert by_name["ccv-models-fusion"].values == (scores["fusion"]["test_map_plain"],)
    assert by_name["ccv-models-ensemble"].values == (scores["linear"]["test_map_plain"],)
    for seed in (0, 1):
        kept = json.loads((campaign.folder("ccv-gl+gr", seed) / "3-clips.json").read_text())
        assert by_name["ccv-gl+gr"].values[seed] == kept["test_map_plain"]
        assert kept["n_clips"] == 3
    config = json.loads((campaign.folder("teacher-prediction-ccv", 0) / "config.json").read_text())
    assert config["finetune_from"].startswith("encoder.safetensors sha256 ")
    assert (config["optimizer"], config["model"]) == ("adam", "prednet-small")
    with (campaign.out / "table-G.csv").open(newline="") as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    words = set(rows["ccv-gl+gr"]["differs"].split(", "))
    assert words >= {"scale", "size", "small", "optimizer", "pretext", "teachers", "reading", "maps", "data"}
    assert "optimizer" not in rows["ccv-models-fusion"]["differs"]
    page = (campaign.out / "table-G.md").read_text()
    assert "SGD with momentum 0.9 for the printed Adam" in page
    assert "all pretext tasks learn from ccv's own training videos" in page
    assert "of the pretext tasks on ccv: sorting 7, egomotion 7, tracking 7, prediction 7" in page
    assert "5 training videos of ccv, not the official 4,659" in page

    for module, name in (
        ("pipeline.train.run", "run_epochs"),
        ("pipeline.studies.reproduce.graph.needs", "ensemble"),
    ):
        monkeypatch.setattr(f"{module}.{name}", lambda *_, **__: pytest.fail("it is there"))
    monkeypatch.setattr(series, "precompute", lambda *_, **__: None)  # looks, and finds all there
    again = api.reproduce("G", campaign, rows=ROWS, targets=["ccv"])
    assert [result.values for result in again] == [result.values for result in results]
    left = {part["what"]: part["runs_left"] for part in api.price_graph(campaign, rows=ROWS, targets=["ccv"])}
    assert set(left.values()) == {0}
    assert len(learned) == 4
    other = replace(campaign, graph=replace(graph, pretext_epochs=2))
    assert all(needs.is_taught(task, "ccv", campaign) for task in TASKS)
    assert not any(needs.is_taught(task, "ccv", other) for task in TASKS), "of other pretext runs"
    student = campaign.folder("teacher-sorting-ccv", 0) / "student.safetensors"
    student.write_bytes((campaign.folder("teacher-egomotion-ccv", 0) / "student.safetensors").read_bytes())
    assert teachers_scores("ccv", campaign) is None, "they were another teacher's"


def test_what_is_not_of_a_table_is_refused(bare):
    for arguments, message in (
        (
            (["G", bare], {"targets": ["cifar10"]}),
            "--target is 'cifar10', table G has ucf101, hmdb51, ccv; name",
        ),
        ((["G", bare], {"stand_ins": {"places365": "x"}}), "--stand-in names places365, and the teachers of"),
        (
            (["S1", replace(bare, graph=GraphSettings(5))], {}),
            "are of table G, this is table S1; leave them out",
        ),
        (
            (["G", replace(bare, graph=GraphSettings(small=True))], {"rows": ["imagenet-pretrained"]}),
            "ucf101-alexnet-imagenet-pretrained starts from torchvision's weights of the whole alexnet",
        ),
    ):
        positional, named = arguments
        with pytest.raises(RunError, match=message):
            api.reproduce(*positional, **named, dry_run=True)


def test_the_command_line_prices_some_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(price, "_seconds", lambda *_: 0.36)
    words = [
        "reproduce",
        "--table",
        "G",
        "--rows",
        "gl+gr",
        "--target",
        "ucf101",
        "--scale",
        "0.1",
        "--dry-run",
    ]
    where = ["--out", str(tmp_path / "out"), "--pretext-epochs", "20", "--device", "cpu"]
    result = CliRunner().invoke(main, [*words, *where, "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    (row,) = found["rows"]
    assert (row["row"], row["paper"], row["epochs"]) == ("ucf101-gl+gr", "68.90", "35")
    assert row["sources"] == ", ".join(f"{task}-teacher{at}" for at in ("", "@layer4:6") for task in TASKS)
    stores = [part for part in found["price"] if part["what"] == "stores of sorting"]
    assert stores[0]["hours"] == pytest.approx(95_370 * 0.36 / 3600)
    shown = CliRunner().invoke(main, [*words, *where], catch_exceptions=False).output
    assert "Teacher forwards: 381,480 for all rows and seeds" in shown
    assert "pretext egomotion" in shown
