"""sskt runs and sskt report, against the files that they are made of."""

import base64
import io
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from listening import Remarks
from PIL import Image
from programs import save_program
from sklearn.metrics import normalized_mutual_info_score

from cli import main
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.studies.report.mistakes import mistakes, multilabel_mistakes
from pipeline.studies.report.runs import differing, list_runs, over_seeds
from pipeline.studies.report.taught import agreement
from pipeline.train import read_metrics
from sskt.errors import RunError

pytestmark = pytest.mark.usefixtures("narrow")

NAMES = {"a": {"seed": 0}, "b": {"seed": 1}, "deep/c": {"lr": 0.3}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    paths = Paths(folder / "data", folder / "stores")
    how = {"execution": choose_execution(device="cpu", threads=1), "paths": paths, "limit": 40}
    source = f"program:{save_program(folder / 'tiny.pt2')}"
    api.precompute(["digits"], [source], views=2, **how)
    short = {"epochs": 2, "batch_size": 20, "amp": "fp32", "sources": (source,), "views": 2}
    for name, settings in NAMES.items():
        api.train("digits", out=folder / "runs" / name, **short, **settings, **how)
    return folder


class Page(HTMLParser):
    """A page's addresses, words and the tags that were not closed."""

    def __init__(self, path):
        super().__init__()
        self.text, self.addresses, self.open, self.tags = path.read_text(), [], [], []
        self.words = []
        self.feed(self.text.replace("<wbr>", ""))  # where a name may be broken

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def test_runs_are_sorted_by_their_metric_and_tell_apart_what_differs(project):
    rows = list_runs(project / "runs")
    assert len(rows) == 3
    recorded = [json.loads((Path(row["run"]) / "summary.json").read_text())["test_top1"] for row in rows]
    assert [row["test_top1"] for row in rows] == sorted(recorded, reverse=True) == recorded
    assert differing(rows) == ["lr"]  # seed has a column of its own
    shown = CliRunner().invoke(main, ["runs", str(project / "runs"), "--json"])
    assert [row["run"] for row in json.loads(shown.stdout)] == [row["run"] for row in rows]
    table = CliRunner().invoke(main, ["runs", str(project / "runs")]).stdout.splitlines()
    assert " lr " in table[0]
    assert "0.3" in next(line for line in table if "deep/c" in line)


def test_means_over_seeds_join_runs_that_differ_in_the_seed_alone(project):
    rows = list_runs(project / "runs")
    joined = over_seeds(rows)
    assert sorted(row["runs"] for row in joined) == [1, 2]
    (pair,) = (row for row in joined if row["runs"] == 2)
    values = [row["test_top1"] for row in rows if "deep" not in row["run"]]
    assert pair["mean"] == pytest.approx(statistics.mean(values))
    assert pair["std"] == pytest.approx(statistics.stdev(values))


def test_a_stopped_and_a_damaged_run_are_listed_and_other_configs_are_not(project, tmp_path):
    (tmp_path / "stopped").mkdir()
    first = project / "runs" / "a"
    for name in ("config.json", "environment.json"):
        (tmp_path / "stopped" / name).write_bytes((first / name).read_bytes())
    line = (first / "metrics.jsonl").read_text().splitlines()[0]
    (tmp_path / "stopped" / "metrics.jsonl").write_text(line + "\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "environment.json").write_text("{}")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "vit"}')
    states = {Path(row["run"]).name: row["state"] for row in list_runs(tmp_path)}
    assert states.keys() == {"stopped", "broken"}
    assert states["stopped"] == "not finished, 1 of 2 epochs"
    assert states["broken"].startswith("damaged")
    with pytest.raises(RunError, match="there is no run below"):
        list_runs(tmp_path / "teacher")
    with pytest.raises(RunError, match="is no folder"):
        list_runs(tmp_path / "none")


def test_a_page_about_a_run_shows_what_its_files_and_its_student_say(project):
    run = project / "runs" / "a"
    result = CliRunner().invoke(main, ["report", str(run), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    page = Page(run / "report.html")
    assert page.open == []
    assert "script" not in page.tags
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['test_top1']:.2f} %" in page.words
    figures = api.evaluate(run)
    wrong = round((1 - figures["test_top1"] / 100) * figures["n_samples"])
    assert f"is wrong about {wrong:,} of {figures['n_samples']:,} test samples" in " ".join(page.text.split())
    cells = re.findall(
        r"<tr><td>(\w+)</td><td class=\"n\">(\d+)</td><td class=\"n\">([\d.]+)</td>", page.text
    )
    assert {name: value for name, _, value in cells} == {
        name: f"{value:.1f}" for name, value in figures["classes"].items()
    }
    images = [a for a in page.addresses if a.startswith("data:image/png")]
    assert len(images) == 12
    sizes = {Image.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))).size for a in images}
    assert sizes == {(16, 16)}
    last = read_metrics(run)[-1]
    (loss,) = (value for name, value in last.items() if name.startswith("aux_loss/program:"))
    assert f"to {loss:.2f}" in page.text
    assert "80" in page.words  # forwards: two views of 40 samples


def test_a_page_says_what_it_goes_without(project, tmp_path):
    out, run = tmp_path / "page.html", project / "runs" / "b"
    (run / "student.safetensors").rename(tmp_path / "kept")
    try:
        remarks = Remarks()
        api.report(run, out=out, paths=Paths(project / "data", tmp_path / "nothing"))
    finally:
        (tmp_path / "kept").rename(run / "student.safetensors")
    page = out.read_text()
    assert "goes without the test split" in page
    assert "goes without the test split" in str(remarks)
    assert "What taught it" in page  # without stores: dashes


def test_a_page_that_compares_has_every_run_and_no_address_but_its_own(project, tmp_path):
    api.evaluate(project / "runs" / "a")
    api.report(project / "runs" / "a")
    out = tmp_path / "compare.html"
    result = CliRunner().invoke(main, ["runs", str(project / "runs"), "--html", str(out)])
    assert result.exit_code == 0
    assert result.stdout.strip().endswith(str(out))
    page = Page(out)
    assert page.open == []
    assert "script" not in page.tags
    links = [address for address in page.addresses if not address.startswith("data:image/svg")]
    assert [(out.parent / link).resolve() for link in links] == [(project / "runs/a/report.html").resolve()]
    for row in list_runs(project / "runs"):
        assert row["run"] in page.words
        assert f"{row['test_top1']:.2f}" in page.words
    assert "No classes of" in page.text


def test_names_cannot_write_into_a_page(project, tmp_path):
    rows = list_runs(project / "runs")
    rows[0] = {**rows[0], "run": "<script>alert(1)</script>", "state": "<b>"}
    page = api.compare(rows, tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_surest_mistakes_come_first():
    shares = np.array([[0.6, 0.4], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8]])
    assert mistakes(shares, shares, np.array([0, 0, 0, 1])) == [(1, 1, 0.9), (2, 1, 0.7)]
    truth = np.array([[1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.int8)
    assert multilabel_mistakes(shares, truth) == [(1, 0, pytest.approx(0.1))]


def test_agreement_is_1_for_the_same_partition_and_near_0_for_chance():
    labels = np.random.default_rng(0).integers(0, 5, 600)
    other = np.random.default_rng(1).integers(0, 5, 600)
    assert agreement(labels, 9 - labels) == pytest.approx(1)
    assert abs(agreement(labels, other)) < 0.02 < normalized_mutual_info_score(labels, other) + 0.02
