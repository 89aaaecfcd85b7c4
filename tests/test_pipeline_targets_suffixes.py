"""Image files of every suffix and mode are read alike by both renderers, as Pillow reads them, or named."""

import hashlib
import os
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from listening import Remarks
from PIL import Image

from cli import main
from pipeline import api
from pipeline.api import Paths
from pipeline.data.datasets import checked_files as kept
from pipeline.data.datasets import load_dataset, parse_target, validation
from pipeline.data.datasets.decode import SUFFIXES
from pipeline.data.plan import Centre, RandomResizedCropFlip
from pipeline.data.render import in_batches, open_renderer
from pipeline.runtime.execution import Execution
from sskt.errors import TargetError

pytestmark = pytest.mark.usefixtures("narrow")

SIDE = 32


def noise(seed=0, size=(SIDE, SIDE), channels=3):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)


def put(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(noise(len(str(path))))).save(path, **options)
    return path


def load(root, split="train"):
    index_dir = root.parent / "kept"
    return load_dataset(
        parse_target(f"imagefolder:{root}"), split, data_dir=Path("unused"), index_dir=index_dir
    )


def draw(dataset, backend, plan=None):
    plan = plan or Centre(SIDE, SIDE)
    renderer = open_renderer(
        dataset, plan, Execution(torch.device("cpu"), renderer=backend, threads=2), batch_size=4
    )
    with closing(renderer):
        return torch.cat(list(renderer.render(1, in_batches(np.arange(len(dataset)), 4)))).permute(0, 2, 3, 1)


def assert_alike(dataset, expected):
    """Both renderers draw `expected`, a list of uint8 (32, 32, 3); JPEGs within the decoders' rounding."""
    for backend in ("torch", "dali"):
        for row, pixels in enumerate(draw(dataset, backend)):
            gap = int(np.abs(pixels.numpy().astype(int) - expected[row]).max())
            lossy = backend == "dali" and not dataset.access.transcode[row] and ".j" in dataset.name_of(row)
            assert gap <= (2 if lossy else 0), (backend, dataset.name_of(row), gap)


LOSSLESS = (".png", ".apng", ".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pnm", ".jp2", ".jpx", ".qoi")


def test_every_suffix_is_read_by_both_renderers_as_pillow_reads_it(tmp_path):
    root, kinds = tmp_path / "all", {".mpo": "JPEG", ".jpc": "JPEG2000", ".jpx": "JPEG2000"}
    for i, suffix in enumerate(sorted(SUFFIXES)):
        mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
        image = Image.fromarray(noise(i)).convert(mode)
        more = {"no_jp2": True} if suffix in (".j2k", ".j2c", ".jpc") else {}
        put(root / "train" / "ab"[i % 2] / f"{i}{suffix.upper() if i % 3 else suffix}", image,
            format=kinds.get(suffix, SUFFIXES[suffix]), **more)  # fmt: skip
    dataset = load(root)
    assert len(dataset) == len(SUFFIXES) > 20
    assert not dataset.notes
    expected = []
    for row in range(len(dataset)):
        path = Path(dataset.name_of(row))
        with Image.open(path) as image:
            expected.append(np.array(image.convert("RGB")))
        if path.suffix.lower() in LOSSLESS:
            np.testing.assert_array_equal(expected[-1], noise(int(path.stem)))
    assert_alike(dataset, expected)


def modes():
    """Pictures in the modes that TIFF has, and the RGB that each stands for."""
    rgb, grey = noise(1), noise(2)[..., 0]
    deep = np.random.default_rng(3).integers(0, 1 << 16, (SIDE, SIDE)).astype(np.uint16)
    deep[0, 0] = 65535
    bits = grey > 127
    palette = Image.fromarray(rgb).quantize(64)
    colours = np.array(palette.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    cmyk = noise(4, channels=4)
    plates = [255 - cmyk[..., :3].astype(int), 255 - cmyk[..., 3:].astype(int)]
    three = lambda values: np.repeat(values[..., None], 3, axis=2)  # noqa: E731
    return {
        "L": (Image.fromarray(grey), three(grey)),
        "RGBA": (Image.fromarray(np.dstack([rgb, grey])), rgb),
        "LA": (Image.fromarray(np.dstack([grey, rgb[..., 0]])), three(grey)),
        "P": (palette, colours[np.asarray(palette)]),
        "1": (Image.fromarray(bits), three(bits.astype(np.uint8) * 255)),
        "I;16": (Image.fromarray(deep), three((deep >> 8).astype(np.uint8))),
        "CMYK": (Image.fromarray(cmyk, mode="CMYK"), np.rint(plates[0] * plates[1] / 255).astype(np.uint8)),
    }


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_modes_of_tiff_are_the_same_rgb_in_both_renderers(tmp_path):
    made = modes()
    for i, (image, _) in enumerate(made.values()):
        put(tmp_path / "t" / "train" / "ab"[i // 4] / f"{i}.tif", image)
    values = np.asarray(made["I;16"][0]).astype(">u2").tobytes()
    big_endian = put(tmp_path / "t" / "train" / "b" / "9.tif", Image.frombytes("I;16B", (SIDE, SIDE), values))
    with Image.open(big_endian) as image:
        assert image.mode == "I;16B"
    expected = [rgb for _, rgb in made.values()] + [made["I;16"][1]]
    dataset = load(tmp_path / "t")
    for backend in ("torch", "dali"):
        for row, pixels in enumerate(draw(dataset, backend)):
            gap = np.abs(pixels.numpy().astype(int) - expected[row]).max()
            assert gap <= (1 if row == 6 else 0), (backend, row, gap)  # CMYK rounds its products otherwise


def test_a_file_is_what_its_content_says_and_that_is_counted(tmp_path):
    for i, kind in enumerate(("WEBP", "GIF", "BMP", "AVIF", "PNG", "TIFF")):
        put(tmp_path / "x" / "train" / "ab"[i % 2] / f"{i}.jpg", Image.fromarray(noise(i)), format=kind)
    put(tmp_path / "x" / "train" / "a" / "7.png", format="JPEG")
    dataset = load(tmp_path / "x")
    (note,) = dataset.notes
    assert "7 files are not what their suffix says" in note
    assert "1 .jpg with WEBP inside" in note
    assert "1 .png with JPEG inside" in note
    assert load(tmp_path / "x").notes == dataset.notes  # also when nothing is decoded again
    for row in range(len(dataset)):
        with Image.open(dataset.name_of(row)) as image:
            np.testing.assert_array_equal(dataset.pixels_of(row), np.asarray(image.convert("RGB")))


def test_of_several_images_in_a_file_the_first_is_taken_and_said(tmp_path):
    frames = [Image.fromarray(noise(i)) for i in range(3)]
    for suffix in (".tif", ".webp", ".png"):
        more = {"lossless": True} if suffix == ".webp" else {}
        put(tmp_path / "s" / "train" / "a" / f"x{suffix}", frames[0], save_all=True,
            append_images=frames[1:], **more)  # fmt: skip
    put(tmp_path / "s" / "train" / "b" / "y.tif", frames[0])
    dataset = load(tmp_path / "s")
    (note,) = dataset.notes
    assert "3 files hold several images" in note
    for row in range(len(dataset)):
        np.testing.assert_array_equal(dataset.pixels_of(row), noise(0))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "floats, whose black and white"),
        (np.full((8, 8), 70_000, dtype=np.int32), "reach from 70000 to 70000, expected 0 to 65535"),
    ],
)
def test_values_without_a_known_white_are_refused(tmp_path, values, why):
    put(tmp_path / "f" / "train" / "a" / "1.tif", Image.fromarray(values))
    put(tmp_path / "f" / "train" / "b" / "1.tif")
    with pytest.raises(TargetError, match=why):
        load(tmp_path / "f")


def deep(top, seed=0, shape=(SIDE, SIDE)):
    values = np.random.default_rng(seed).integers(0, top + 1, shape).astype(np.uint16)
    values.flat[0] = top
    return values


@pytest.mark.parametrize(
    ("top", "depth"), [(200, 8), (900, 10), (4095, 12), (4096, 14), (16383, 14), (16384, 16)]
)
def test_16_bit_files_keep_the_range_that_the_data_set_uses(tmp_path, top, depth):
    root = tmp_path / "m"
    first = put(root / "train" / "a" / "1.png", Image.fromarray(deep(top)))
    put(root / "train" / "b" / "1.tif", Image.fromarray(deep(top // 3, seed=1)))
    put(root / "val" / "a" / "1.png", Image.fromarray(deep(top // 5, seed=2)))
    train, test = load(root), load(root, "test")
    for dataset, values in ((train, [deep(top), deep(top // 3, seed=1)]), (test, [deep(top // 5, seed=2)])):
        expected = [
            np.repeat((each >> (depth - 8))[..., None], 3, axis=2).astype(np.uint8) for each in values
        ]
        assert_alike(dataset, expected)
        said = [note for note in dataset.notes if f"are read as {depth}-bit ones" in note]
        assert len(said) == (depth != 16)
    of_file = hashlib.sha256(first.read_bytes()).digest()[:16]
    assert (train.contents[0].tobytes() == of_file) == (depth == 16)  # as stores of before have it


def test_a_brighter_file_in_any_split_changes_the_depth_and_with_it_the_contents(tmp_path):
    root = tmp_path / "m"
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png"):
        put(root / name, Image.fromarray(deep(4000, seed=len(name))))
    before = load(root)
    put(root / "val" / "b" / "2.png", Image.fromarray(deep(60_000)))
    after = load(root)
    assert not (before.contents == after.contents).all(axis=1).any()
    assert (before.pixels_of(0) >> 4 == after.pixels_of(0)).all()


def test_16_bit_colours_and_the_bits_that_a_file_declares(tmp_path):
    from test_pipeline_targets_decode import _png

    root = tmp_path / "m"
    wide = deep(1000, shape=(SIDE, SIDE * 3)).astype(">u2")
    with_alpha = deep(1000, seed=1, shape=(SIDE, SIDE * 2)).astype(">u2")
    significant = b"\0\0\0\3sBIT\x0c\x0c\x0c"
    significant += zlib.crc32(significant[4:]).to_bytes(4, "big")
    for name, values, kind, extra in (("a", wide, 2, significant), ("b", with_alpha, 4, b"")):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "1.png").write_bytes(_png(values.view(np.uint8), 16, kind, extra))
    colours = wide.reshape(SIDE, SIDE, 3) >> 4  # sBIT says 12
    greys = np.repeat(with_alpha.reshape(SIDE, SIDE, 2)[..., :1] >> 4, 3, axis=2)
    assert_alike(load(root), [colours.astype(np.uint8), greys.astype(np.uint8)])


@pytest.mark.parametrize(
    "plan", [Centre(16, 20), RandomResizedCropFlip(16, seed=2)], ids=["centre", "random"]
)
def test_extreme_shapes_are_drawn_alike(tmp_path, plan):
    for i, size in enumerate([(4000, 1), (1, 4000), (1, 1), (2000, 3), (2, 2), (3, 700)]):
        put(tmp_path / "thin" / "train" / "ab"[i % 2] / f"{i}.png", Image.fromarray(noise(i, size)))
    dataset = load(tmp_path / "thin")
    ours, theirs = draw(dataset, "torch", plan), draw(dataset, "dali", plan)
    assert ours.shape == (6, 16, 16, 3)
    assert (ours.int() - theirs.int()).abs().max() <= 1


def broken(root):
    """Three files that cannot be used, two in train and one in val."""
    for split in ("train", "val"):
        for name in "ab":
            for i in range(3):
                put(root / split / name / f"{i}.png", Image.fromarray(noise(7 * i + ord(name) + len(split))))
    (root / "train" / "a" / "1.png").write_bytes(b"<!DOCTYPE html><title>gone</title>")
    (root / "train" / "b" / "2.png").write_bytes(b"")
    (root / "val" / "a" / "0.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")


def prepare(root, *words):
    target = ("--target", f"imagefolder:{root}", "--cache-dir", str(root.parent / "stores"))
    return CliRunner().invoke(main, ["prepare", *target, *words])


def test_damaged_files_are_listed_and_left_out_when_told_to(tmp_path):
    root = tmp_path / "pets"
    broken(root)
    refused = prepare(root)
    assert refused.exit_code == 1
    assert (
        "2 of 6 pictures cannot be used: a/1.png (a web page inside), b/2.png (zero bytes)" in refused.stderr
    )
    assert "sskt prepare --allow-missing" in refused.stderr
    (listed,) = (tmp_path / "stores" / "indexes").glob("*unusable.txt")
    assert str(listed) in refused.stderr
    assert listed.read_text() == "a/1.png\ta web page inside\nb/2.png\tzero bytes\n"
    done = prepare(root, "--allow-missing")
    assert done.exit_code == 0, done.output
    assert "2 of 6 pictures are left out, as --allow-missing said" in done.stderr
    paths = Paths(data_dir=Path("unused"), cache_dir=tmp_path / "stores")
    dataset = load_dataset(parse_target(f"imagefolder:{root}"), "train", data_dir=Path("unused"),
                       index_dir=paths.index_dir)  # fmt: skip
    assert dataset.ids.tolist() == [0, 2, 3, 4]  # places in the folder: a repaired file moves no other
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert [Path(dataset.name_of(row)).name for row in range(4)] == ["0.png", "2.png", "0.png", "1.png"]
    (root / "train" / "b" / "0.png").write_bytes(b"damaged later")
    assert "3 of 6 pictures cannot be used" in prepare(root).stderr
    put(root / "train" / "b" / "0.png")
    put(root / "train" / "a" / "1.png")
    said = prepare(root)
    assert "1 of 6 pictures are left out" in said.stderr  # repaired, and there again


def test_a_class_of_which_nothing_is_left_is_refused(tmp_path):
    root = tmp_path / "pets"
    broken(root)
    for path in (root / "train" / "b").iterdir():
        path.write_bytes(b"nothing")
    refused = prepare(root, "--allow-missing")
    assert refused.exit_code == 1
    assert "no picture that can be used in class folder b" in refused.stderr


@pytest.fixture
def decoded(monkeypatch):
    sizes = []
    inspect = validation.inspect
    monkeypatch.setattr(validation, "inspect", lambda data: sizes.append(len(data)) or inspect(data))
    return sizes


def test_touched_renamed_and_moved_files_are_known_by_their_content(tmp_path, decoded):
    root = tmp_path / "pets"
    for i in range(6):
        put(
            root / "train" / "ab"[i % 2] / f"{i}.png",
            Image.fromarray(deep(4000, seed=i) if i == 3 else noise(i)),
        )
    before = load(root)
    assert len(decoded) == 6
    decoded.clear()
    os.utime(root / "train" / "a" / "0.png", ns=(0, 5))
    (root / "train" / "a" / "2.png").rename(root / "train" / "a" / "2b.jpg")
    elsewhere = tmp_path / "copies"
    root.rename(elsewhere)
    after = load(elsewhere)
    assert decoded == []
    assert before.content_sha256 == after.content_sha256
    for row in range(6):
        np.testing.assert_array_equal(before.sizes[row], after.sizes[row])
        assert after.pixels_of(row).shape == (SIDE, SIDE, 3)


def test_an_index_kept_by_an_earlier_version_is_used(tmp_path, decoded):
    root = tmp_path / "pets"
    for i in range(4):
        put(root / "train" / "ab"[i % 2] / f"{i}.png", Image.fromarray(deep(4000) if i == 3 else noise(i)))
    before = load(root)
    (file,) = (tmp_path / "kept").glob("*.npz")
    paths, facts = kept.read_facts(file)
    old = np.dtype(
        [(name, kept.FACTS[name]) for name in ("bytes", "mtime_ns", "size", "content", "transcode", "valid")]
    )
    first = np.zeros(4, dtype=old)
    for name in old.names:
        first[name] = facts[name]
    np.savez(file, format=1, paths=paths, facts=first)
    decoded.clear()
    after = load(root)
    assert len(decoded) == 1  # the 16-bit file, of which it did not know the range
    assert (after.content_sha256, after.notes) == (before.content_sha256, before.notes)


def test_the_same_bytes_in_two_splits_or_classes_are_counted_and_listed(tmp_path):
    root, said = tmp_path / "pets", Remarks()
    for i in range(8):
        put(root / "train" / "ab"[i % 2] / f"{i}.png", Image.fromarray(noise(i)))
    for name, seed in (("val/a/x.png", 0), ("val/b/y.png", 1), ("val/b/z.png", 20),  # two of train
                       ("train/b/copy.png", 2),  # 2.png is an a
                       ("train/a/again.png", 4)):  # fmt: skip
        put(root / name, Image.fromarray(noise(seed)))
    paths = Paths(data_dir=Path("unused"), cache_dir=tmp_path / "stores")
    api.prepare(f"imagefolder:{root}", paths=paths)
    (listed,) = paths.index_dir.glob("*same-bytes.txt")
    layout, leak, contradiction, copies = said
    assert layout == f"{root}: train/ is the train split, val/ the test split"
    assert leak.startswith("imagefolder:pets: 2 of 3 files of the test split are in the train split as well")
    assert contradiction.startswith("imagefolder:pets: 2 files lie under another class as well, byte by byte")
    assert copies == f"imagefolder:pets: 1 files are copies of others of their class and split ({listed})"
    assert f"({listed}); remove" in leak
    assert f"({listed}); remove" in contradiction
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    assert len(lines) == 8
    for content in {line[3] for line in lines}:
        twins = {Path(line[0]).read_bytes() for line in lines if line[3] == content}
        assert len(twins) == 1
        assert content == hashlib.sha256(twins.pop()).hexdigest()[:12]


def test_a_class_that_the_test_split_lacks_is_said(tmp_path):
    root, said = tmp_path / "pets", Remarks()
    for i, name in enumerate(("train/a", "train/b", "train/c", "val/a", "val/c")):
        put(root / name / "1.png", Image.fromarray(noise(i)))
    api.prepare(f"imagefolder:{root}", paths=Paths(cache_dir=tmp_path / "stores"))
    assert said[1:] == ["imagefolder:pets: the test split has no sample of 1 of the 3 classes (b)"]


def test_what_systems_leave_in_folders_is_no_picture(tmp_path):
    root = tmp_path / "pets"
    for name in (
        "train/a/1.png",
        "train/b/1.png",
        "train/a/@eaDir/1.png",
        "train/__MACOSX/2.png",
        "train/9.png",
    ):
        put(root / name)
    dataset = load(root)
    assert (len(dataset), dataset.classes) == (2, ("a", "b"))
    assert "3 files ignored (2 hidden folder, 1 outside class folders), all in " in dataset.notes[0]
