"""`sskt probe`: its figures are those of other libraries on the same folds, and it refuses what it cannot
tell.
"""

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from listening import Remarks
from programs import Tiny, save_program
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from test_pipeline_probe import Wide

from cache import Store
from cache.manifest import Manifest
from cli import main
from pipeline import api
from pipeline.api import Augmentation, Paths, choose_execution
from pipeline.data.datasets.images import array_dataset
from pipeline.source_outputs.fit_probe import StoredRows, rows_to_fit
from pipeline.studies.probe import rows as reading
from pipeline.studies.probe.advice import recommend
from pipeline.studies.probe.figures import Figures, HeldOut
from pipeline.studies.probe.label_curve import draw_ranks
from pipeline.studies.probe.rows import Samples, read_rows
from pipeline.studies.probe.run import compare
from pipeline.studies.probe.stored import StoreGroup
from sskt.errors import RunError
from sskt.probe import cross_fit

pytestmark = pytest.mark.usefixtures("narrow")

N, C, VIEWS = 75, 3, 3


@pytest.fixture(autouse=True, scope="module")
def few_strengths():
    """Two to choose between: what a choice costs is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sskt.probe.cross_fitted.STRENGTHS", (1e-2, 1e-1))
        yield


def made_dataset(labels, classes=C):
    pixels = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    names = tuple(f"class {c}" for c in range(classes))
    return array_dataset("made", "train", names, pixels, labels, np.arange(len(labels)))


def made_store(folder, name, logits, side=74):
    """A store of logits (V, N, K)."""
    views, n, columns = logits.shape
    identity = {"source": {"name": name}, "input": {"side_px": side}, "plan": {"side_px": 32}}
    store = Store.create(
        folder / f"{name}-{side}.zarr",
        Manifest(identity=identity, made_by={}),
        ids=np.arange(n),
        contents=np.zeros((n, 16), dtype=np.uint8),
        n_classes=columns,
        views=views,
        block_rows=40,
    )
    for unit in store.pending(views):
        store.write_unit(unit, logits[unit.view, store.rows_of(unit.block)].astype(np.float16))
    return store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two sources that know the classes well and badly, in three views."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    labels = rng.permutation(np.arange(N) % C)
    logits = {}
    for name, columns, known in (("imagenet", 9, 1.1), ("places365", 6, 0.8)):
        own = known * rng.standard_normal((C, columns))[labels] + rng.standard_normal((N, columns))
        logits[name] = 2 * (own + rng.standard_normal((VIEWS, N, columns))).astype(np.float16)
    group = StoreGroup({name: made_store(folder, name, rows) for name, rows in logits.items()})
    return made_dataset(labels), group, logits


@pytest.fixture(scope="module")
def compared(made):
    dataset, group, _ = made
    samples = Samples(dataset)
    return samples, *compare([group], samples, temperature=3.0)


def features_of(logits, names):
    """Layer-normalised and standardised features (V, N, D), and those of the mean over the views (N, D)."""
    parts = [logits[name].astype(np.float64) for name in names]
    parts = [(p - p.mean(axis=2, keepdims=True)) / p.std(axis=2, keepdims=True) for p in parts]
    x = np.concatenate(parts, axis=2)
    centre, scale = x.mean(axis=(0, 1)), x.std(axis=(0, 1))
    return (x - centre) / scale, (x.mean(axis=0) - centre) / scale


def test_accuracies_are_scikit_learns_on_the_same_folds(made, compared):
    """Cross-validated by scikit-learn, on features computed with NumPy; what is within 0.05 of another class
    may go either way.
    """
    dataset, _, logits = made
    samples, found, report = compared
    assert [len(figures.sources) for figures in found].count(1) == 2
    for figures, row in zip(found, report["rows"], strict=True):
        views, mean = features_of(logits, figures.sources)
        answers, margins = np.empty(N, dtype=np.int64), np.empty(N)
        for fold, strength in enumerate(figures.strengths):
            inside, out = samples.folds != fold, samples.folds == fold
            model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
            model.fit(np.concatenate(views[:, inside]), np.tile(dataset.labels[inside], VIEWS))
            scores = model.decision_function(mean[out])
            answers[out] = scores.argmax(axis=1)
            best = np.sort(scores, axis=1)
            margins[out] = best[:, -1] - best[:, -2]
        sure = margins > 0.05
        assert sure.mean() > 0.8
        assert np.array_equal(figures.answers[sure], answers[sure])
        right = figures.answers == dataset.labels
        assert row["accuracy"] == pytest.approx(100 * right.mean())
        by_fold = [100 * right[samples.folds == fold].mean() for fold in range(5)]
        assert row["by_fold"] == pytest.approx(by_fold)
        assert row["spread"] == pytest.approx(np.std(by_fold, ddof=1))


def test_of_one_strength_it_is_cross_val_predict(made, monkeypatch):
    dataset, group, logits = made
    monkeypatch.setattr("sskt.probe.cross_fitted.STRENGTHS", (0.1,))
    one = StoreGroup({"imagenet": group.stores["imagenet"]})
    samples = Samples(dataset)
    (figures,), _ = compare([one], samples, temperature=3.0)
    assert figures.strengths == (0.1,) * 5
    views, mean = features_of(logits, ("imagenet",))
    x, y = np.concatenate([*views, mean]), np.tile(dataset.labels, VIEWS + 1)
    # the mean rows are asked about and weigh nothing in the fit
    split = PredefinedSplit(np.tile(samples.folds, VIEWS + 1))
    weights = np.repeat([1.0, 1e-12], [VIEWS * N, N])
    model = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)
    answers = cross_val_predict(model, x, y, cv=split, params={"sample_weight": weights})[-N:]
    assert (figures.answers == answers).mean() > 0.99


def test_the_probe_is_that_of_a_run(made, compared, monkeypatch):
    """What `sskt train --source probe` would fit and say, however the rows are read."""
    dataset, group, _ = made
    samples, found, _ = compared
    monkeypatch.setattr(reading, "_AT_ONCE", 64)
    asked = {"views": VIEWS, "temperature": 3.0}
    for figures in found:
        stores = {name: group.stores[name] for name in figures.sources}
        features, mean = rows_to_fit(StoredRows(stores, dataset, **asked), samples.positions, answers="mean")
        read = reading.join([read_rows(store, name, samples, **asked) for name, store in stores.items()])
        assert read.fitted.equal(features)
        assert read.mean.equal(mean[0])
        expected = cross_fit(features, mean, dataset.labels, samples.folds, C).held_out[0]
        assert np.array_equal(figures.answers, expected.argmax(axis=1))


def test_one_view_is_what_a_store_of_one_view_gives(made, compared, tmp_path):
    dataset, _, logits = made
    _, _, report = compared
    (row,) = [row for row in report["rows"] if row["sources"] == ["imagenet"]]
    alone = StoreGroup({"imagenet": made_store(tmp_path, "imagenet", logits["imagenet"][:1])})
    _, of_one = compare([alone], Samples(dataset), temperature=3.0)
    assert of_one["rows"][0]["accuracy"] == row["one_view"] < row["accuracy"]
    assert of_one["rows"][0]["one_view"] is None
    assert "what more views than one would add is not known" in of_one["recommendation"]


def test_of_many_samples_one_view_is_fitted_on(made, tmp_path, monkeypatch):
    """The same answers about a store of one view three times, asked about one or about the mean."""
    dataset, _, logits = made
    monkeypatch.setattr(reading, "MOST_ROWS", N)
    rows = np.repeat(logits["imagenet"][:1], 3, axis=0)
    group = StoreGroup({"imagenet": made_store(tmp_path, "imagenet", rows)})
    (figures,), _ = compare([group], Samples(dataset), temperature=3.0)
    assert figures.one_view == figures.all_views


def test_draws_of_few_labels_share_none_and_lie_within_those_of_more(compared):
    samples = compared[0]
    seen = []
    for fold in range(5):
        ranks = draw_ranks(samples, fold)
        assert np.array_equal(ranks < 0, samples.folds == fold)
        for n in (1, 3, 12):
            drawn = (ranks >= 0) & (ranks < n)
            assert np.bincount(samples.labels[drawn]).tolist() == [n] * C
        seen += np.flatnonzero((ranks >= 0) & (ranks < 5)).tolist()
    assert len(seen) == len(set(seen)) == 5 * 5 * C


def test_a_point_of_few_labels_is_scikit_learns_on_the_same_draw(made, compared):
    dataset, _, logits = made
    samples, found, report = compared
    for figures, row in zip(found, report["rows"], strict=True):
        numbers = [point["labels_per_class"] for point in row["curve"]]
        assert numbers == [1, 2, 5, 10, 20]
        assert row["curve"][-1] == {
            "labels_per_class": 20,
            "accuracy": row["accuracy"],
            "spread": row["spread"],
        }
        views, mean = features_of(logits, figures.sources)
        by_draw = []
        for fold in range(5):
            ranks, out = draw_ranks(samples, fold), samples.folds == fold
            drawn = (ranks >= 0) & (ranks < 5)
            model = LogisticRegression(C=0.01, max_iter=5000, tol=1e-8)
            model.fit(np.concatenate(views[:, drawn]), np.tile(dataset.labels[drawn], VIEWS))
            by_draw.append(100 * (model.predict(mean[out]) == dataset.labels[out]).mean())
        one_sample = 100 / (N / 5)
        assert row["curve"][2]["accuracy"] == pytest.approx(np.mean(by_draw), abs=one_sample)
        assert row["curve"][2]["spread"] == pytest.approx(np.std(by_draw, ddof=1), abs=one_sample)


def test_of_several_labels_per_image_it_is_mean_average_precision(made):
    _, group, logits = made
    truth = (logits["imagenet"][:, :, :4].mean(axis=0) > 0.5).astype(np.int8)
    truth[::9, 1] = -1
    several = replace(made_dataset(truth.argmax(axis=1), 4), multi_hot=truth)
    samples = Samples(several)
    group = StoreGroup({"imagenet": group.stores["imagenet"]})
    found, report = compare([group], samples, temperature=3.0)
    assert report["metric"] == "mAP"
    for row in report["rows"]:
        assert (row["knn"], row["leep"], row["h_score"]) == (None, None, None)
    fit = cross_fit(*_rows(group, samples, found[0].sources), truth, samples.folds, 4)
    precisions = [
        average_precision_score(truth[counted, c], fit.held_out[0, counted, c])
        for c, counted in enumerate((truth >= 0).T)
    ]
    # VOC's precision at a recall is the best at that recall or a higher one
    assert np.mean(precisions) * 100 <= report["rows"][0]["accuracy"] < np.mean(precisions) * 100 + 2
    assert report["rows"][0]["accuracy"] > 20 + report["chance"]


def _rows(group, samples, names):
    rows = reading.join(
        [read_rows(group.stores[name], name, samples, views=VIEWS, temperature=3.0) for name in names]
    )
    return rows.fitted, rows.mean[None]


@pytest.mark.parametrize("n", [2, 3])
def test_two_or_three_labels_per_class_give_as_many_folds(made, n):
    """Of labels that few it still says something: better than chance by a source that knows the classes."""
    dataset, group, _ = made
    first = np.concatenate([np.flatnonzero(dataset.labels == c)[:n] for c in range(C)])
    hidden = dataset.hide_labels(~np.isin(np.arange(N), first))
    _, report = compare([group], Samples(hidden), temperature=3.0)
    assert (report["labelled"], report["folds"]) == (n * C, n)
    assert len(report["rows"][0]["by_fold"]) == n
    assert report["rows"][0]["accuracy"] > report["chance"]
    assert report["rows"][0]["curve"][0]["labels_per_class"] == 1


@pytest.mark.parametrize("left", [[], [0], [0, 1]])
def test_too_few_labels_are_refused(made, left):
    dataset = made[0]
    of_one = np.flatnonzero(dataset.labels == 0)
    hidden = dataset.hide_labels(~np.isin(np.arange(N), of_one[left]))
    with pytest.raises(
        RunError, match=rf"^made: {len(left)} of 75 training samples have a label, .* needs at"
    ):
        Samples(hidden)


# What is recommended


def figures_of(sources, by_fold, *, one_view=None, source_px=74):
    def held(scores):
        return HeldOut(float(np.mean(scores)), tuple(scores))

    return Figures(
        sources=sources,
        student_px=32,
        source_px=source_px,
        source_scale="7/3",
        views=10,
        all_views=held(by_fold),
        one_view=None if one_view is None else held(one_view),
        knn=None,
        leep=None,
        h_score=None,
        answers=np.zeros(N, dtype=np.int64),
        strengths=(0.1,) * len(by_fold),
        plan={},
        stores=(),
    )


def advice(samples, *found):
    ordered = sorted(found, key=lambda figures: -figures.all_views.score)
    return recommend(ordered, samples, {figures: figures.name for figures in ordered})


def test_the_recommendation_weighs_differences_against_their_spread(compared):
    samples = compared[0]
    best = figures_of(("imagenet",), [70, 72, 74], one_view=[70, 73, 73])
    other = figures_of(("places365",), [60, 61, 62])
    better = figures_of(("imagenet", "places365"), [75, 77, 80], one_view=[70, 71, 76])
    alike = figures_of(("imagenet", "places365"), [71, 71, 75])
    assert advice(samples, best, other, better) == (
        "keep all together (imagenet + places365): 77.3 ± 2.5 % top-1; 5.3 ± 0.6 points more than imagenet "
        "alone; 10 views are 5.0 ± 1.0 points better than one"
    )
    assert advice(samples, best, other, alike) == (
        "keep imagenet: 72.0 ± 2.0 % top-1; all together gain nothing beyond the spread (+0.3 ± 1.2 points); "
        "10 views are no better than one beyond the spread (+0.0 ± 1.0 points)"
    )
    small = figures_of(("imagenet",), [60, 62, 64], source_px=32)
    assert "; 32 px shown at 74 px is 10.0 ± 0.0 points better than 32 px shown at 32 px;" in advice(
        samples, best, small
    )
    nothing = figures_of(("places365",), [30, 34, 37])
    assert advice(samples, nothing) == (
        "no stored source tells these classes apart: places365 reaches 33.7 ± 3.5 % top-1, and knowing "
        "no image 33.3 %; precompute another source, or label more samples"
    )


# The command, on real digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Stores of 100 digits: two sources at 32 px, one of which is there at 24 px too and as its top 2."""
    folder = tmp_path_factory.mktemp("digits")
    wide = f"program:{save_program(folder / 'wide.pt2', Wide())}"
    tiny = f"program:{save_program(folder / 'tiny.pt2', Tiny())}"
    common = {
        "paths": Paths(folder / "data", folder / "stores"),
        "limit": 100,
        "execution": choose_execution(device="cpu", threads=2),
    }
    api.precompute(["digits"], [wide, tiny], views=2, **common)
    api.precompute(["digits"], [wide], views=1, top_k=2, **common)
    api.precompute(["digits"], [wide], views=1, augmentation=Augmentation(source_side_px=24), **common)
    return folder, wide, tiny


def run(folder, *words, cache="stores"):
    places = ("--data-dir", str(folder / "data"), "--cache-dir", str(folder / cache))
    return CliRunner().invoke(main, ["probe", "--target", "digits", "--limit", "100", *words, *places])


def test_the_command_lists_every_size_and_its_train_command_runs(digits, tmp_path):
    folder, *_ = digits
    result = run(folder, "--picture", str(tmp_path / "new" / "labels.png"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert " ".join(lines[0].split()) == (
        "source student px source px views accuracy spread one view kNN LEEP H-score seconds"
    )
    table = lines[1 : lines.index("")]
    assert len(table) == 4  # of a store and its top 2 the fuller one
    assert sorted(line.rsplit(maxsplit=8)[1] for line in table) == ["1", "2", "2", "2"]  # views
    scores = [float(line.rsplit(maxsplit=8)[-7]) for line in table]
    assert scores == sorted(scores, reverse=True)
    assert sum("24 px" in line for line in table) == 1
    assert sum("get the same class" in line for line in lines) == 1  # the two sources of one size
    (together,) = [line for line in table if line.startswith("all together (program:tiny.pt2 + program:wide")]
    assert together.split()[-3] == "-"
    assert lines[-3].startswith("keep ")
    assert "100 labelled samples, 10 in each of 10 classes" in result.stderr
    assert lines[-1].endswith("labels.png")
    assert (tmp_path / "new" / "labels.png").read_bytes().startswith(b"\x89PNG")
    words = lines[-2].split()
    assert words[:4] == ["sskt", "train", "--target", "digits"]
    more = ("--epochs", "1", "--model", "resnet20", "--amp", "fp32", "--out", str(tmp_path / "run"))
    trained = CliRunner().invoke(main, [*words[1:], *more, "--device", "cpu"])
    assert trained.exit_code == 0, trained.output


def test_json_has_all_figures_and_one_size_may_be_chosen(digits):
    folder, wide, _ = digits
    result = run(folder, "--source", wide, "--source-size", "24", "--labels-per-class", "3", "--json")
    report = json.loads(result.stdout)
    assert set(report) == {
        "target", "split", "samples", "labelled", "classes", "labels_per_class", "metric", "folds", "chance",
        "rows", "agreement", "recommendation", "train", "seconds",
    }  # fmt: skip
    assert (report["samples"], report["labelled"], report["folds"]) == (100, 30, 3)
    assert report["labels_per_class"] == [3, 3]
    (row,) = report["rows"]
    assert set(row) == {
        "name", "sources", "student_px", "source_px", "views", "accuracy", "spread", "by_fold", "one_view",
        "one_view_spread", "knn", "leep", "h_score", "strengths", "plan", "stores", "seconds", "curve",
    }  # fmt: skip
    assert (row["source_px"], row["views"], row["one_view"]) == (24, 1, None)
    assert row["leep"] < 0 < row["h_score"] <= 9
    assert "--source-size 24" in report["train"]
    assert "--labels-per-class 3" in report["train"]


def test_a_store_of_embeddings_is_named_as_a_source_is(digits, tmp_path):
    folder, _, tiny = digits
    paths = Paths(folder / "data", folder / "embedded")
    api.precompute(["digits"], [f"{tiny}@embedding"], views=1, limit=100, paths=paths)
    report = json.loads(run(folder, "--json", cache="embedded").stdout)
    assert report["rows"][0]["sources"] == ["program:tiny.pt2@embedding"]
    words = shlex.split(report["train"])[1:]
    more = ("--epochs", "1", "--model", "resnet20", "--amp", "fp32", "--out", str(tmp_path / "run"))
    trained = CliRunner().invoke(main, [*words, *more, "--device", "cpu"])
    assert trained.exit_code == 0, trained.output


@pytest.mark.parametrize(
    ("words", "cache", "message"),
    [
        (
            (),
            "none",
            "there is no store with a whole view of any source under .*run `sskt precompute --source",
        ),
        (
            ("--source", "imagenet"),
            "stores",
            r"imagenet under .* of 16/24 px, program:wide.pt2 of 16/32 px\); run `sskt precompute --source",
        ),
        (("--size", "64"), "stores", "no store .* any source with --size 64 .*--size 64 "),
        (("--source", "probe"), "stores", "--source probe is a probe itself; name the sources"),
        (("--labels-per-class", "1"), "stores", "--labels-per-class is 1, .* keep at least 2 per class"),
        (
            ("--picture", "/dev/null/a.png"),
            "stores",
            "/dev/null/a.png: cannot be written .*another --picture",
        ),
    ],
)
def test_what_it_cannot_tell_is_one_line(digits, words, cache, message):
    result = run(digits[0], *words, cache=cache)
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error


def test_stores_of_other_images_are_counted_and_left_out(digits):
    folder, *_ = digits
    said = Remarks()
    with pytest.raises(RunError, match="no store with a whole view"):
        api.probe("digits", paths=Paths(folder / "data", folder / "stores"), limit=120)
    assert "4 store(s) of other images than digits has are left out" in said
