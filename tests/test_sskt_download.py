"""A local HTTP server serves good, wrong, missing and truncated files; what stays on disk is checked."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sskt.download import digest_of, fetch, fetch_recorded
from sskt.errors import DownloadError, SourceError

BODY = bytes(range(256)) * 500
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(BODY) + (1000 if self.path == "/truncated" else 0)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.body = 0, BODY
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "digest",
    [{"sha256": SHA256}, {"md5": MD5}, {"sha256_prefix": SHA256[:8]}, {"sha256": SHA256.upper()}, {}],
)
@pytest.mark.parametrize("page", ["good", "unsized"])
def test_good_file_arrives_whole_and_alone(server, tmp_path, digest, page):
    path = tmp_path / "new" / "file.bin"
    assert fetch(f"{server.url}/{page}", path, **digest) == path
    assert path.read_bytes() == BODY
    assert left_in(path.parent) == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_file_already_there_is_checked_and_not_asked_for_again(server, tmp_path):
    path = fetch(f"{server.url}/good", tmp_path / "file.bin", sha256=SHA256)
    before = path.stat()
    fetch(f"{server.url}/good", path, sha256=SHA256)
    assert server.asked == 1
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_file_already_there_with_another_digest_is_named_and_left(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"the user's own")
    found = hashlib.sha256(b"the user's own").hexdigest()
    with pytest.raises(DownloadError, match=rf"sha256 is {found}, expected {SHA256}; .*move it away"):
        fetch(f"{server.url}/good", path, sha256=SHA256)
    assert path.read_bytes() == b"the user's own"
    assert server.asked == 0


@pytest.mark.parametrize(
    ("digest", "found"),
    [({"sha256": "0" * 64}, SHA256), ({"md5": "0" * 32}, MD5), ({"sha256_prefix": "deadbeef"}, SHA256)],
)
def test_wrong_checksum_names_both_digests_and_leaves_nothing(server, tmp_path, digest, found):
    path = tmp_path / "file.bin"
    expected = next(iter(digest.values()))
    with pytest.raises(DownloadError) as caught:
        fetch(f"{server.url}/good", path, **digest)
    for part in (f"{server.url}/good", found, expected, f"by hand to {path}"):
        assert part in str(caught.value)
    assert left_in(tmp_path) == []


def test_missing_page_names_the_status(server, tmp_path):
    with pytest.raises(DownloadError, match=r"/missing: the server answered 404 Not Found; .*by hand to"):
        fetch(f"{server.url}/missing", tmp_path / "file.bin")
    assert left_in(tmp_path) == []


def test_truncated_body_is_not_kept_even_without_a_checksum(server, tmp_path):
    with pytest.raises(DownloadError, match="connection broke before the whole file"):
        fetch(f"{server.url}/truncated", tmp_path / "file.bin")
    assert left_in(tmp_path) == []


def test_refused_connection_is_one_sentence(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError) as caught:
        fetch(f"{server.url}/good", tmp_path / "file.bin")
    assert "cannot be reached" in str(caught.value)
    assert "refused" in str(caught.value)
    assert "object at 0x" not in str(caught.value)
    assert left_in(tmp_path) == []


def test_file_in_place_of_the_folder_is_named(server, tmp_path):
    (tmp_path / "weights").write_text("not a folder")
    with pytest.raises(DownloadError, match=r"weights: cannot write there"):
        fetch(f"{server.url}/good", tmp_path / "weights" / "file.bin")
    assert server.asked == 0


def test_full_disk_is_named_and_leaves_nothing(server, tmp_path, monkeypatch):
    def no_space(url, output_file, pooch):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", lambda self, *a: no_space(*a))
    with pytest.raises(DownloadError, match=r"file\.bin: cannot be written \(No space left on device\)"):
        fetch(f"{server.url}/good", tmp_path / "file.bin")
    assert left_in(tmp_path) == []


def test_unpublished_checksum_is_recorded_at_the_first_download(server, tmp_path):
    path = fetch_recorded(f"{server.url}/good", tmp_path / "net.pth.tar")
    assert (tmp_path / "net.pth.tar.sha256").read_text() == f"{SHA256}  net.pth.tar\n"
    assert fetch_recorded(f"{server.url}/good", path) == path
    assert server.asked == 1
    assert left_in(tmp_path) == ["net.pth.tar", "net.pth.tar.sha256"]


def test_recorded_checksum_refuses_a_changed_file_naming_both(server, tmp_path):
    path = fetch_recorded(f"{server.url}/good", tmp_path / "net.pth.tar")
    path.write_bytes(b"changed")
    with pytest.raises(SourceError) as caught:
        fetch_recorded(f"{server.url}/good", path)
    assert digest_of(path) in str(caught.value)
    assert SHA256 in str(caught.value)


def test_recorded_checksum_refuses_another_file_from_the_server(server, tmp_path):
    path = fetch_recorded(f"{server.url}/good", tmp_path / "net.pth.tar")
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(DownloadError, match=f"expected {SHA256}"):
        fetch_recorded(f"{server.url}/good", path)
    assert left_in(tmp_path) == ["net.pth.tar.sha256"]


def test_file_put_there_by_hand_is_recorded_without_asking(server, tmp_path):
    path = tmp_path / "net.pth.tar"
    path.write_bytes(BODY)
    fetch_recorded(f"{server.url}/good", path)
    assert server.asked == 0
    assert (tmp_path / "net.pth.tar.sha256").read_text().startswith(SHA256)
