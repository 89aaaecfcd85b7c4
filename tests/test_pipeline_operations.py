"""RandAugment, TrivialAugment, colour jitter and random erasing beside torchvision's own: tables, draws and
pixels; and the same bytes by every renderer, in any order.
"""

import json
from contextlib import closing
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import shared
from programs import save_program, small_student
from scipy import stats
from torchvision.transforms import v2
from videos import make_folder

from cache import StoreMismatch
from pipeline import api
from pipeline.data import Augmentation, open_renderer, parse_target, pick_frames, plan_from
from pipeline.data.datasets import load_dataset
from pipeline.data.plan import (
    OPERATIONS,
    POLICIES,
    Augmented,
    CornerClip,
    Operations,
    PadCropFlip,
    RandomResizedCropFlip,
)
from pipeline.data.plan.operations import spaces_of
from pipeline.data.render import in_batches
from pipeline.data.render.operations import apply, change_image
from pipeline.runtime.execution import Execution
from sskt.errors import SettingError, TargetError

CPU = torch.device("cpu")
EVERYTHING = Operations("randaugment", 2, 9, (0.4, 0.4, 0.4, 0.1), 0.5)
THEIRS = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}
PLAN = RandomResizedCropFlip(64, seed=1)
IDS = np.arange(20_000)
P = 1e-4  # seeds are fixed: of all comparisons here none is this unlikely


def rows_of(operations, ids=IDS, side_px=64, view=3, seed=5):
    return operations.rows(seed, view, ids, side_px)


def drawn_by(theirs, n, side_px, monkeypatch):
    """Names and magnitudes of torchvision's policy on n images."""
    found = []

    def record(image, transform_id, magnitude, **_):
        found.append((transform_id, np.float32(magnitude)))
        return image

    monkeypatch.setattr(theirs, "_apply_image_or_video_transform", record)
    image = torch.zeros(3, side_px, side_px, dtype=torch.uint8)
    torch.manual_seed(0)
    for _ in range(n):
        theirs(image)
    return found


def differ(ours, theirs):
    """Whether two samples of categories are of different distributions, by chi-square."""
    kinds = sorted({*ours, *theirs})
    table = [[sample.count(kind) for kind in kinds] for sample in (ours, theirs)]
    return stats.chi2_contingency(table).pvalue < P


def images(side_px):
    """Noise, and a smooth image that does not reach every level."""
    draws = torch.Generator().manual_seed(side_px)
    noise = torch.randint(0, 256, (3, side_px, side_px), generator=draws, dtype=torch.uint8)
    rough = torch.randint(20, 200, (1, 3, 5, 5), generator=draws).float()
    smooth = torch.nn.functional.interpolate(rough, size=(side_px, side_px), mode="bilinear")[0]
    return noise, smooth.to(torch.uint8), torch.full((3, side_px, side_px), 7, dtype=torch.uint8)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("side_px", [16, 32, 111, 224])
def test_magnitudes_are_torchvisions(policy, side_px):
    table = THEIRS[policy]._AUGMENTATION_SPACE
    assert tuple(table) == OPERATIONS[: len(table)]
    for ours, (space, _) in zip(spaces_of(policy, side_px), table.values(), strict=True):
        theirs = space(31, side_px, side_px)
        theirs = np.zeros(31) if theirs is None else theirs.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=3e-7)  # torch.linspace's last bit is the processor's


@pytest.mark.parametrize("side_px", [2, 31, 96])
@pytest.mark.parametrize("policy", POLICIES)
def test_pixels_of_a_policy_are_torchvisions(policy, side_px):
    theirs = THEIRS[policy]
    for name, (_, signed) in theirs._AUGMENTATION_SPACE.items():
        for magnitude in spaces_of(policy, side_px)[OPERATIONS.index(name)][::6].tolist():
            for value in (magnitude, -magnitude) if signed else (magnitude,):
                for image in images(side_px):
                    nearest = v2.InterpolationMode.NEAREST
                    expected = theirs._apply_image_or_video_transform(image, name, value, nearest, {})
                    assert torch.equal(apply(image, name, value), expected), (name, value)


def test_pixels_of_jitter_and_erasing_are_torchvisions():
    operations = Operations(color_jitter=(0.4, 0.3, 0.9, 0.5), random_erasing=0.7)
    jitter, erasing = v2.ColorJitter(), v2.RandomErasing()
    rows = rows_of(operations, np.arange(40), 33)
    names = ("brightness", "contrast", "saturation", "hue")
    for row in range(40):
        drawn = [OPERATIONS[code] for code in rows.codes[row]]
        values = zip(drawn, rows.values[row].tolist(), strict=True)
        params = {"fn_idx": list(map(names.index, drawn)), **{f"{name}_factor": v for name, v in values}}
        top, left, height, width = map(int, rows.boxes[row])
        box = {"i": top, "j": left, "h": height, "w": width, "v": torch.zeros(1, 1, 1) if height else None}
        for image in images(33):
            before = image.clone()
            expected = erasing.transform(jitter.transform(image, params), box)
            assert torch.equal(change_image(image, rows, row), expected)
            assert torch.equal(image, before)


@pytest.mark.parametrize("name", ["ShearX", "Rotate"])
def test_pixels_do_not_move_elsewhere_under_autocast(name):
    image, value = images(64)[0], 0.1234
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = apply(image, name, value)  # which is then looked up
    expected = THEIRS["randaugment"]._apply_image_or_video_transform(
        image, name, value, v2.InterpolationMode.NEAREST, {}
    )
    assert torch.equal(first, expected)


def test_operations_follow_one_another_as_torchvisions_do():
    rows, image = rows_of(Operations("randaugment", 3, 20), np.arange(30), 31), images(31)[1]
    for row in range(30):
        expected = image
        for code, value in zip(rows.codes[row], rows.values[row], strict=True):
            expected = THEIRS["randaugment"]._apply_image_or_video_transform(
                expected, OPERATIONS[code], float(value), v2.InterpolationMode.NEAREST, {}
            )
        assert torch.equal(change_image(image, rows, row), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_draws_as_torchvisions_does(policy, monkeypatch):
    rows = rows_of(Operations(policy, 2, 9))
    ours = [
        [(OPERATIONS[code], value) for code, value in zip(codes, values, strict=True)]
        for codes, values in zip(rows.codes.T, rows.values.T, strict=True)
    ]
    theirs = drawn_by(THEIRS[policy], 5_000, 64, monkeypatch)
    n_ops = 2 if policy == "randaugment" else 1
    assert len(ours) == n_ops
    for k, column in enumerate(ours):
        assert not differ([name for name, _ in column], [name for name, _ in theirs[k::n_ops]])
        rotations = [[value for name, value in sample if name == "Rotate"] for sample in (column, theirs)]
        assert not differ(*rotations)  # bins and signs
        assert {value for name, value in column if name == "Posterize"} == {
            value for name, value in theirs if name == "Posterize"
        }
    if policy == "randaugment":  # the second is drawn without regard to the first
        pairs = np.histogram2d(*rows.codes.T, bins=14)[0]
        assert stats.chi2_contingency(pairs).pvalue > P


def test_a_jitter_draws_as_torchvisions_does():
    operations = Operations(color_jitter=(0.4, 1.5, 0.4, 0.1))
    rows, theirs = rows_of(operations), v2.ColorJitter(0.4, 1.5, 0.4, 0.1)
    torch.manual_seed(0)
    drawn = [theirs.make_params([]) for _ in range(4_000)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        values = rows.values[rows.codes == OPERATIONS.index(name)]
        assert len(values) == len(IDS)
        assert stats.ks_2samp(values, [one[f"{name}_factor"] for one in drawn]).pvalue > P
    first = OPERATIONS.index("brightness")
    ours = list(map(tuple, (rows.codes.astype(int) - first).tolist()))
    assert set(ours) == set(permutations(range(4)))
    assert not differ(ours, [tuple(one["fn_idx"].tolist()) for one in drawn])


def test_boxes_are_drawn_as_torchvisions_are():
    boxes = rows_of(Operations(random_erasing=0.25)).boxes
    erased = boxes[boxes[:, 2] > 0]
    assert stats.binomtest(len(erased), len(IDS), 0.25).pvalue > P
    theirs, image = v2.RandomErasing(), torch.zeros(3, 64, 64)
    torch.manual_seed(0)
    drawn = [theirs.make_params([image]) for _ in range(4_000)]
    for column, name in enumerate("ijhw"):
        assert stats.ks_2samp(erased[:, column], [one[name] for one in drawn]).pvalue > P
    assert (erased[:, :2] + erased[:, 2:] <= 64).all()


@pytest.mark.parametrize("operations", [EVERYTHING, Operations("trivialaugment")])
def test_a_row_is_a_pure_function_of_seed_view_and_id(operations):
    ids = np.array([3, 2**35, 7, 11, 5])
    order = np.array([4, 0, 2, 1, 3])
    whole, shuffled = rows_of(operations, ids), rows_of(operations, ids[order])
    for name in ("codes", "values", "boxes"):
        assert np.array_equal(getattr(whole, name)[order], getattr(shuffled, name))
        assert np.array_equal(getattr(rows_of(operations, ids[:1]), name), getattr(whole, name)[:1])
    many = np.arange(200)
    base = rows_of(operations, many)
    for other in (
        rows_of(operations, many, view=4),
        rows_of(operations, many, seed=6),
        rows_of(operations, many + 2**32),
    ):
        assert not np.array_equal(base.codes, other.codes)
    assert [a.dtype for a in (base.codes, base.values, base.boxes)] == [np.int8, np.float32, np.int32]


def test_draws_stay_what_they_are_from_version_to_version():
    ids, sizes = np.arange(500), np.full((500, 2), 300, dtype=np.int32)
    plain = PLAN.rows(2, ids, sizes)
    changed = Augmented(PLAN, EVERYTHING, 1).rows(2, ids, sizes)
    assert np.array_equal(plain.windows, changed.windows)
    assert np.array_equal(plain.flips, changed.flips)
    assert plain.sha256() != changed.sha256()
    assert changed.sha256()[:16] == "cfeba04c43571b21"
    wide = Augmented(PLAN, Operations("trivialaugment"), 1).rows(2, ids, sizes)
    assert wide.sha256()[:16] == "ecd2f9200a950e0e"


def test_a_plan_without_operations_is_recorded_as_before():
    spec = parse_target("cifar10")
    assert Augmentation(color_jitter=0, random_erasing=0.0).training_plan(spec) == PadCropFlip(32)
    assert Augmentation().to_dict().keys() == {
        "seed", "kind", "side_px", "source_side_px", "n_frames", "stride", "source_frames", "source_input"
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "randaugment:3:12", "random_erasing": 0.25},
        {"augment": "trivialaugment", "kind": "centre"},
        {"color_jitter": 0.4},
        {"color_jitter": "0.4,0.3,0.2", "seed": 3},
        {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
    ],
)
def test_a_plan_is_rebuilt_from_its_record(settings):
    augmentation = Augmentation(**settings)
    plan = augmentation.training_plan(parse_target("stl10"))
    record = json.loads(json.dumps(plan.to_dict()))
    assert plan_from(record, "here") == plan
    assert Augmentation(**json.loads(json.dumps(augmentation.to_dict()))) == augmentation
    record["operations"]["algorithm"] = "another/v2"
    with pytest.raises(TargetError, match="here: its operations are drawn by another/v2, expected philox"):
        plan_from(record, "here")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "autoaugment"}, "augment is 'autoaugment', expected randaugment or trivialaugment"),
        ({"augment": "randaugment:2"}, "augment is 'randaugment:2', expected randaugment or"),
        ({"augment": "trivialaugment:1:3"}, "augment is 'trivialaugment:1:3', expected"),
        ({"augment": "randaugment:0:9"}, "augment has 0 operations per image, expected 1 to 16"),
        ({"augment": "randaugment:2:31"}, "augment has magnitude 31, expected 0 to 30"),
        ({"color_jitter": "0.4,x"}, "color_jitter is '0.4,x', expected brightness,contrast,saturation,hue"),
        ({"color_jitter": (0.1, 0.2)}, r"color_jitter is \(0.1, 0.2\), expected brightness"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "color_jitter is 0.4,0.4,0.4,0.6, expected .* hue at most"),
        ({"color_jitter": "nan"}, "color_jitter is nan,nan,nan,0, expected strengths of 0 or more"),
        ({"color_jitter": -1}, "color_jitter is -1,-1,-1,0, expected strengths of 0 or more"),
        ({"random_erasing": 1.5}, "random_erasing is 1.5, expected a probability from 0 to 1"),
        ({"random_erasing": "0.5"}, "random_erasing is '0.5' .*, expected a number"),
    ],
)
def test_what_no_image_can_undergo_is_refused(settings, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        Augmentation(**settings)


@pytest.mark.parametrize(
    "settings", [{"augment": "trivialaugment"}, {"color_jitter": 0.4}, {"random_erasing": 0.1}]
)
def test_a_pretext_task_refuses_operations(settings, tmp_path):
    with pytest.raises(SettingError, match=f"{next(iter(settings))} is .*task sorting shows frames as they"):
        Augmentation(**settings).pretext_plan(parse_target(f"videofolder:{tmp_path}"), "sorting")


def draw(dataset, plan, backend, batches, threads=2, view=1):
    execution = Execution(CPU, renderer=backend, threads=threads)
    renderer = open_renderer(dataset, plan, execution, batch_size=max(map(len, batches)))
    with closing(renderer), closing(renderer.render(view, batches)) as drawn:
        return torch.cat([batch.clone() for batch in drawn])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 of the real ImageNet images."""
    data, index_dir = shared("data/imagenet").parent, tmp_path_factory.mktemp("index")
    dataset = load_dataset(parse_target("imagenet"), "test", data_dir=data, index_dir=index_dir)
    return dataset.take(np.arange(0, 1000, 25))


@pytest.mark.parametrize("operations", [EVERYTHING, Operations("trivialaugment")], ids=["all", "trivial"])
def test_photos_are_changed_alike_by_dali_and_torch(photos, operations):
    plan, batches = Augmented(PLAN, operations, 1), in_batches(np.arange(len(photos)), 16)
    ours, dalis = (draw(photos, plan, backend, batches) for backend in ("torch", "dali"))
    base = draw(photos, PLAN, "torch", batches)
    rows = plan.rows(1, photos.ids, photos.sizes).operations
    expected = torch.stack([change_image(image, rows, i) for i, image in enumerate(base)])
    assert torch.equal(ours, expected)
    assert (ours != base).flatten(1).any(dim=1).float().mean() > 0.6  # not those that drew the identity
    assert (ours.int() - dalis.int()).abs().float().mean(dim=(1, 2, 3)).max() <= 1.0


@pytest.mark.parametrize("backend", ["torch", "dali", "resident"])
def test_the_same_bytes_in_any_order_batch_and_number_of_threads(backend, tmp_path):
    dataset = load_dataset(parse_target("digits"), "train", data_dir=tmp_path, index_dir=tmp_path, limit=30)
    plan, order = Augmented(PadCropFlip(8, pad=2), EVERYTHING, 4), np.random.default_rng(0).permutation(30)
    whole = draw(dataset, plan, "torch", [np.arange(30)])
    for batch_size, threads in ((1, 1), (7, 3)):
        assert torch.equal(draw(dataset, plan, backend, in_batches(order, batch_size), threads), whole[order])


def test_all_frames_of_a_clip_are_changed_alike_and_picked_frames_too(tmp_path):
    root = make_folder(tmp_path / "videos")
    paths, target = api.Paths(tmp_path, tmp_path / "stores"), f"videofolder:{root}"
    api.prepare(target, paths=paths)
    dataset = api.open_dataset(target, "train", paths=paths)
    clips, every = CornerClip(24, n_frames=6), np.arange(len(dataset))
    plan = Augmented(clips, EVERYTHING, 2)
    for backend in ("torch", "dali"):
        whole, base = (draw(dataset, one, backend, [every]) for one in (plan, clips))
        rows = plan.rows(1, dataset.ids, dataset.sizes).operations
        for row in every:
            for frame in range(6):
                expected = change_image(base[row, :, frame].contiguous(), rows, row)
                assert torch.equal(whole[row, :, frame], expected)
        assert torch.equal(draw(dataset, pick_frames(plan, (1, 3)), backend, [every]), whole[:, :, [1, 3]])


def test_stored_and_live_labels_train_to_the_same_numbers(tmp_path):
    source, paths = f"program:{save_program(tmp_path / 'tiny.pt2')}", api.Paths(tmp_path, tmp_path / "stores")
    shown = Augmentation(augment="randaugment", color_jitter=0.4, random_erasing=0.5)
    how = {"augmentation": shown, "limit": 40, "paths": paths}
    how["execution"] = api.choose_execution(device="cpu", amp="fp32", threads=2)
    api.precompute(["digits"], [source], views=2, **how)
    losses = {}
    for labels in ("cached", "live"):
        usual = {"labels": labels, "views": 2, "epochs": 2, "batch_size": 20, "sources": source}
        api.train("digits", out=tmp_path / labels, model=small_student(), **usual, **how)
        lines = (tmp_path / labels / "metrics.jsonl").read_text().splitlines()
        losses[labels] = [{k: v for k, v in json.loads(line).items() if "loss" in k} for line in lines]
        config = json.loads((tmp_path / labels / "config.json").read_text())
        assert config["plan"]["operations"]["policy"] == "randaugment"
    assert losses["cached"] == losses["live"]
    assert all(losses["live"])
    usual, how["augmentation"] = {"labels": "cached", "sources": source}, Augmentation()
    with pytest.raises(StoreMismatch, match=r"plan\.operations"):
        api.train("digits", out=tmp_path / "plain", model=small_student(), **usual, **how)
