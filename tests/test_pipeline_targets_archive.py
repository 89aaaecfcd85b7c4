"""Official archives: downloaded, checked, unpacked whole or not at all."""

import hashlib
import io
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pipeline.data.datasets import archive as archive_module
from pipeline.data.datasets import load_dataset, parse_target
from pipeline.data.datasets.archive import Part, obtain
from sskt.errors import DownloadError, TargetError

FOLDER = "cifar-10-batches-bin"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder and the address at which a local server offers it."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _files(n=10):
    """Contents of a small CIFAR-10: two splits of n pictures, class names, and a file that nobody reads."""
    random = np.random.default_rng(3)
    records = random.integers(0, 256, (2, n, 3073)).astype(np.uint8)
    records[:, :, 0] = np.arange(n) % 10
    return {
        "data_batch_1.bin": records[0].tobytes(),
        "test_batch.bin": records[1].tobytes(),
        "batches.meta.txt": "".join(f"name{i}\n" for i in range(10)).encode(),
        "readme.html": b"<html>",
    }


def _pack(path, files, prefix=f"{FOLDER}/"):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _spec(address, archive, n=10, md5=None):
    spec = parse_target("cifar10")
    binary = replace(
        spec.binary,
        url=f"{address}/{archive.name}",
        md5=md5 or hashlib.md5(archive.read_bytes()).hexdigest(),
        train=(Part("data_batch_1.bin", n),),
        test=(Part("test_batch.bin", n),),
    )
    return replace(spec, binary=binary)


def _tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_archive_is_fetched_unpacked_and_read(served, tmp_path):
    archive = served[0] / "small.tar.gz"
    _pack(archive, _files(), prefix=f"./{FOLDER}/")
    data_dir = tmp_path / "new" / "data"
    spec = _spec(served[1], archive)
    dataset = load_dataset(spec, "test", data_dir=data_dir, index_dir=tmp_path)
    assert dataset.pixels_of(4)[31, 30, 2] == _files()["test_batch.bin"][4 * 3073 + 1 + 2048 + 31 * 32 + 30]
    wanted = [f"{FOLDER}/{name}" for name in ("batches.meta.txt", "data_batch_1.bin", "test_batch.bin")]
    assert _tree(data_dir) == sorted([FOLDER, *wanted, "small.tar.gz"])
    archive.unlink()
    (data_dir / "small.tar.gz").unlink()
    load_dataset(spec, "train", data_dir=data_dir, index_dir=tmp_path)  # needs neither any more


def test_archive_put_there_by_hand_needs_no_download(tmp_path):
    _pack(tmp_path / "small.tar.gz", _files())
    spec = _spec("http://nowhere.invalid", tmp_path / "small.tar.gz")
    obtain(spec, tmp_path, download=False)
    assert (tmp_path / FOLDER / "test_batch.bin").read_bytes() == _files()["test_batch.bin"]


def test_without_download_the_remedy_is_told(tmp_path):
    with pytest.raises(
        TargetError, match=r"bin: batches.meta.txt, .*not found for cifar10; allow the download, or put"
    ):
        obtain(parse_target("cifar10"), tmp_path, download=False)
    assert _tree(tmp_path) == []


def test_only_missing_files_are_replaced(tmp_path):
    _pack(tmp_path / "small.tar.gz", _files())
    spec = _spec("http://nowhere.invalid", tmp_path / "small.tar.gz")
    obtain(spec, tmp_path)
    own = bytes(30730)
    (tmp_path / FOLDER / "data_batch_1.bin").write_bytes(own)
    (tmp_path / FOLDER / "test_batch.bin").unlink()
    obtain(spec, tmp_path)
    assert (tmp_path / FOLDER / "data_batch_1.bin").read_bytes() == own
    assert (tmp_path / FOLDER / "test_batch.bin").stat().st_size == 30730


def test_another_archive_under_the_name_is_refused_with_both_digests(tmp_path):
    path = tmp_path / "small.tar.gz"
    _pack(path, _files())
    spec = _spec("http://nowhere.invalid", path, md5="0" * 32)
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DownloadError) as caught:
        obtain(spec, tmp_path)
    assert found in str(caught.value)
    assert "0" * 32 in str(caught.value)
    assert _tree(tmp_path) == ["small.tar.gz"]


def test_failed_download_leaves_nothing(served, tmp_path):
    archive = served[0] / "small.tar.gz"
    _pack(archive, _files())
    data_dir = tmp_path / "data"
    for spec in (_spec(served[1], archive, md5="0" * 32), _spec(f"{served[1]}/absent", archive)):
        with pytest.raises(DownloadError):
            obtain(spec, data_dir)
    assert not any(path.is_file() for path in data_dir.rglob("*"))


def _without_test(files):
    return {name: data for name, data in files.items() if name != "test_batch.bin"}


def _short_test(files):
    return {**files, "test_batch.bin": files["test_batch.bin"][:-7]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_test, rf"holds no {FOLDER}/test_batch.bin, as cifar10 expects; remove it"),
        (_short_test, r"test_batch.bin: has 30,723 bytes, expected 30,730; small.tar.gz is a wrong archive"),
    ],
    ids=["missing member", "short member"],
)
def test_wrong_contents_unpack_to_nothing(tmp_path, change, message):
    path = tmp_path / "small.tar.gz"
    _pack(path, change(_files()))
    with pytest.raises(TargetError, match=message):
        obtain(_spec("http://nowhere.invalid", path), tmp_path)
    assert _tree(tmp_path) == ["small.tar.gz"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no archive at all"])
def test_damaged_archive_is_one_sentence(tmp_path, damage):
    path = tmp_path / "small.tar.gz"
    _pack(path, _files())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        TargetError, match=r"small.tar.gz: is not a sound tar archive \(.*\); remove it and run again"
    ):
        obtain(_spec("http://nowhere.invalid", path), tmp_path)
    assert _tree(tmp_path) == ["small.tar.gz"]


def test_link_in_place_of_a_member_is_not_followed(tmp_path):
    path = tmp_path / "small.tar.gz"
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(30730))
    with tarfile.open(path, "w:gz") as tar:
        for name, data in _without_test(_files()).items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo(f"{FOLDER}/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(TargetError, match="holds no"):
        obtain(_spec("http://nowhere.invalid", path), tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_interrupted_unpacking_never_looks_complete(tmp_path, monkeypatch):
    path = tmp_path / "small.tar.gz"
    _pack(path, _files())
    spec = _spec("http://nowhere.invalid", path)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(archive_module, "_check_size", stop)
        with pytest.raises(KeyboardInterrupt):
            obtain(spec, tmp_path)
    assert _tree(tmp_path) == ["small.tar.gz"]
    obtain(spec, tmp_path)
    assert len(_tree(tmp_path / FOLDER)) == 3


def test_full_disk_while_unpacking_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "small.tar.gz"
    _pack(path, _files())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(
        TargetError, match=r"cannot be unpacked into .* \(No space left on device\); make room"
    ):
        obtain(_spec("http://nowhere.invalid", path), tmp_path)
    assert _tree(tmp_path) == ["small.tar.gz"]
