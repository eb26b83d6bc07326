"""Files are there whole or not at all, listed in order, read by ranges: on local disk, and on a real server that speaks S3."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
import pytest

from shared import buckets, files, shards
from shared.clip import AnnotatedClip

TREE = ("a/1.mp4", "a/2.MP4", "a/b/c/3.mp4", "a.mp4", "a0/4.mp4", "é è+%20#?.mp4", "notes.txt", "z/5.mkv")


@pytest.fixture(params=["local", "file", "s3", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of every kind that can be had here."""
    if request.param in ("s3", "gs"):
        return request.getfixturevalue("bucket" if request.param == "s3" else "google_bucket") + "/some folder"
    return str(tmp_path / "files") if request.param == "local" else (tmp_path / "files").as_uri()


def plant(root: str, names: tuple[str, ...] = TREE) -> None:
    for name in names:
        files.write_whole(files.join(root, quote(name) if root.startswith("file:") else name), name.encode())


def test_what_was_written_is_read(root: str) -> None:
    data = np.random.default_rng(0).bytes(200_000)
    uri = files.join(root, "deep", "er", "x.bin")
    assert not files.exists(uri)
    files.write_whole(uri, data)
    assert files.exists(uri)
    assert files.is_folder(files.join(root, "deep"))
    assert not files.is_folder(uri)
    assert files.size(uri) == len(data)
    assert files.read_bytes(uri) == data
    assert files.read_range(uri, 199_990, 10) == data[-10:]
    assert files.read_range(uri, 7, 0) == b""
    assert files.read_up_to(uri, 199_990, 100) == data[-10:]
    with pytest.raises(ValueError, match=r"x\.bin: ends after 10 of 100 bytes at 199990"):
        files.read_range(uri, 199_990, 100)
    files.write_whole(uri, b"")
    assert files.size(uri) == 0
    files.remove(uri)
    files.remove(uri)
    assert not files.exists(uri)


def test_a_file_is_seekable(root: str) -> None:
    data = np.random.default_rng(1).bytes(3 * files.READ_AHEAD_BYTES + 17)
    files.write_whole(files.join(root, "x"), data)
    with files.open_input(files.join(root, "x")) as file:
        assert file.read(5) == data[:5]
        assert file.seek(-9, os.SEEK_END) == len(data) - 9
        assert file.read() == data[-9:]
        assert file.seek(1000) == 1000
        assert file.read() == data[1000:]
        assert file.read() == b""


def test_a_replaced_file_is_read_anew(root: str) -> None:
    uri = files.join(root, "x")
    for content in (b"first", b"longer", b"short"):
        files.write_whole(uri, content)
        assert files.read_range(uri, 0, len(content)) == content
        assert files.read_bytes(uri) == content
        assert files.size(uri) == len(content)
    files.remove(uri)
    with pytest.raises(files.NotFound, match="x: no such file"):
        files.read_range(uri, 0, 1)


def test_listing_is_sorted_by_whole_name_and_filtered(root: str) -> None:
    plant(root, (*TREE, ".hidden.mp4", ".git/6.mp4"))
    found = list(files.list_files(root, (".mp4", ".mkv")))
    start = len(str(files.split(root)[1])) + 1
    names = [files.split(uri)[1][start:] for uri in found]
    assert names == sorted(name for name in TREE if name != "notes.txt")
    for uri, name in zip(found, names):
        assert files.read_bytes(uri) == name.encode()
    assert list(files.list_files(found[0])) == [found[0]]
    with pytest.raises(files.NotFound, match="nowhere: no such file or folder"):
        list(files.list_files(files.join(root, "nowhere")))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["a.mp4", "é è+%20#?.mp4"]),
        ("a/*", ["a/1.mp4", "a/2.MP4"]),
        ("a*/[0-9].mp4", ["a/1.mp4", "a0/4.mp4"]),
        ("**/*.mp4", ["a.mp4", "a/1.mp4", "a/b/c/3.mp4", "a0/4.mp4", "é è+%20#?.mp4"]),
        ("[!a]/[0-5].*", ["z/5.mkv"]),
        ("a/**", ["a/1.mp4", "a/2.MP4", "a/b/c/3.mp4"]),
        ("?/5.mkv", ["z/5.mkv"]),
        ("é è+%20#?.mp4", ["é è+%20#?.mp4"]),
        ("x*", []),
    ],
)
@pytest.mark.parametrize("root", ["local", "s3"], indirect=True)
def test_patterns(root: str, pattern: str, expected: list[str]) -> None:
    plant(root)
    assert list(files.list_files(files.join(root, pattern))) == [files.join(root, name) for name in expected]


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "1.mp4").write_bytes(b"1")
    (tmp_path / "videos" / "again").symlink_to(tmp_path / "videos")
    (tmp_path / "linked").symlink_to(tmp_path / "videos")
    assert list(files.list_files(tmp_path / "linked")) == [str(tmp_path / "linked" / "1.mp4")]


@pytest.mark.parametrize("root", ["local", "s3"], indirect=True)
def test_a_listing_holds_one_folder_at_a_time(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(root)
    opened: list[str] = []
    names = files._names
    monkeypatch.setattr(files, "_names", lambda folder: opened.append(folder) or names(folder))
    listing = files.list_files(root, (".mp4",))
    assert opened == []
    assert next(listing).endswith("a.mp4")
    assert opened == [root]


def test_a_failing_writer_leaves_what_was_there(root: str) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise RuntimeError("no more")

    uri = files.join(root, "x")
    with pytest.raises(RuntimeError):
        files.write_whole(uri, fail)
    assert not files.exists(uri)
    files.write_whole(uri, b"old")
    with pytest.raises(RuntimeError):
        files.write_whole(uri, fail)
    assert files.read_bytes(uri) == b"old"
    assert [files.split(found) for found in files.list_files(root)] == [files.split(uri)]
    if not files.is_remote(root):
        assert os.listdir(files.split(root)[1]) == ["x"]


def test_a_writer_may_write_more_than_a_part(bucket: str) -> None:
    data = np.random.default_rng(2).bytes(27 << 20)

    def write(file: BinaryIO) -> None:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])

    files.write_whole(f"{bucket}/big", write)
    assert files.read_bytes(f"{bucket}/big") == data


KILLED = """
import sys, time
from shared import files
def write(file):
    file.write(b"x" * 1_000_000); file.flush(); print("writing", flush=True); time.sleep(60)
files.write_whole(sys.argv[1], write)
"""


def test_a_killed_writer_leaves_nothing_that_counts(root: str) -> None:
    uri = files.join(root, "x")
    with subprocess.Popen([sys.executable, "-c", KILLED, uri], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        assert files.sweep(root) == 0  # it lives
        writer.kill()
    assert not files.exists(uri)
    if not files.is_remote(root):
        folder = Path(files.split(root)[1])
        assert len(list(folder.iterdir())) == 1
        assert list(files.list_files(root)) == []
        assert files.sweep(root) == 1
        assert list(folder.iterdir()) == []


def test_the_sweep_takes_only_dead_writers_files(tmp_path: Path) -> None:
    names = {
        ".x.tar.tmp-elsewhere-1-1": files.STALE_SECONDS + 60,  # another machine's, long ago
        ".y.tar.tmp-elsewhere-1-1": 0.0,  # another machine's, just now
        f".z.tar.tmp-{files._host()}-{os.getpid()}-1": 0.0,  # ours
        ".bashrc": 1e6,
        "x.tar": 1e6,
    }
    for name, age in names.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert files.sweep(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {".x.tar.tmp-elsewhere-1-1"}


def test_writers_at_once_do_not_mix(root: str) -> None:
    uri = files.join(root, "x")
    contents = [bytes([n]) * 100_000 for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: files.write_whole(uri, content), contents))
    assert files.read_bytes(uri) in contents


def test_threads_share_handles(root: str) -> None:
    data = np.random.default_rng(3).bytes(100_000)
    uris = [files.join(root, f"{n}") for n in range(3)]
    for uri in uris:
        files.write_whole(uri, data)
    places = np.random.default_rng(4).integers(0, 99_000, 60)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: files.read_range(uris[n % 3], int(places[n]), 1000), range(60)))
    assert found == [data[place : place + 1000] for place in places]


def test_handles_are_closed_when_there_are_many(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(files.OPEN_HANDLES + 50):
        files.write_whole(tmp_path / str(n), b"12345")
        assert files.read_range(tmp_path / str(n), 1, 2) == b"23"
    assert len(os.listdir("/proc/self/fd")) <= before + files.OPEN_HANDLES


def test_an_output_is_checked_by_writing(root: str) -> None:
    files.check_writable(root)
    assert not files.exists(root) or list(files.list_files(root)) == []


def test_identity_changes_with_the_content_and_not_with_the_place(root: str) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"three")):
        files.write_whole(files.join(root, name), content)
    one, same, other = (files.identity(files.join(root, name)) for name in "abc")
    assert one == same != other


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("http://x/y.mp4", "http://x/y.mp4: expected a local path, file://, s3:// or gs://"),
        ("s3://", "s3://: names no bucket"),
        ("/proc/none/x", "/proc/none/x: no such file"),
    ],
)
def test_uris_that_lead_nowhere(uri: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence):
        files.read_bytes(uri)


def test_what_is_missing_or_forbidden_is_one_sentence(root: str, bucket: str) -> None:
    with pytest.raises(files.NotFound, match="x: no such file"):
        files.read_bytes(files.join(root, "x"))
    with pytest.raises(files.NotFound, match="x: no such file"):
        files.read_range(files.join(root, "x"), 0, 1)
    with pytest.raises(files.NotFound, match="x: no such file"):
        files.open_input(files.join(root, "x"))
    with pytest.raises(ValueError, match="not-a-bucket/x: no such file, folder or bucket"):
        files.write_whole("s3://not-a-bucket/x", b"")
    with pytest.raises(ValueError, match=r"/proc/x: (no right to write it|no such|cannot write it)"):
        files.write_whole("/proc/x", b"")
    files.write_whole(files.join(root, "file"), b"")
    if not files.is_remote(root):
        with pytest.raises(ValueError, match=r"file/below: cannot write it: (Not a directory|File exists)"):
            files.write_whole(files.join(root, "file", "below"), b"")


class Moody(http.server.BaseHTTPRequestHandler):
    """A bucket's server with one object, that fails in a chosen way before it answers."""

    content = b"0123456789" * 1000
    failures: list[int | str]
    requests: list[str]

    def do_HEAD(self) -> None:
        self.answer(b"", {"Content-Length": str(len(self.content)), "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})

    def do_GET(self) -> None:
        if "list-type" in self.path:
            self.answer(b"<ListBucketResult/>", {})
            return
        first, last = self.headers.get("Range", "bytes=0-9999").removeprefix("bytes=").split("-")
        body = self.content[int(first) : int(last) + 1]
        self.answer(body, {"Content-Length": str(len(body)), "Content-Range": f"bytes {first}-{last}/10000"}, 206)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(b"", {"Content-Length": "0", "ETag": '"e"'})

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.requests.append(f"{self.command} {self.path}")
        failure = self.failures.pop(0) if self.failures else None
        if failure == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if isinstance(failure, int):
            code = {403: "AccessDenied", 503: "SlowDown", 500: "InternalError"}[failure]
            body, headers, status = f"<Error><Code>{code}</Code></Error>".encode(), {}, failure
        headers.setdefault("Content-Length", str(len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Moody]]:
    handler = type("Handler", (Moody,), {"failures": [], "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",  # the one for S3 alone goes before it
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(buckets, "FIRST_WAIT_SECONDS", 0.01)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("failure", [503, 500, "drop"])
def test_errors_that_may_pass_are_tried_again(moody: type[Moody], failure: int | str) -> None:
    moody.failures[:] = [failure] * 11
    assert files.read_range("s3://b/x", 5, 10) == moody.content[5:15]
    moody.failures[:] = [failure] * 11
    files.write_whole("s3://b/y", b"content")
    assert sum(request.startswith("PUT") for request in moody.requests) == 12


def test_a_server_that_stays_busy_is_given_up(moody: type[Moody]) -> None:
    moody.failures[:] = [503] * 1000
    with pytest.raises(ValueError, match=r"^s3://b/x: cannot read it: .*(SLOW_DOWN|503)") as error:
        files.read_range("s3://b/x", 5, 10)
    assert "\n" not in str(error.value)


def test_missing_rights_are_said_at_once(moody: type[Moody]) -> None:
    moody.failures[:] = [403] * 1000
    with pytest.raises(ValueError, match=r"^s3://b/y: no right to write it \(check permissions or credentials\)$"):
        files.write_whole("s3://b/y", b"content")
    with pytest.raises(ValueError, match=r"^s3://b/x: no right to read it"):
        files.read_range("s3://b/x", 5, 10)
    assert len(moody.requests) < 6


def test_google_storage_is_reached_by_its_emulator_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    filesystem, path = files.resolve("gs://bucket/a/b")
    assert (filesystem.type_name, path) == ("gcs", "bucket/a/b")


def test_shards_live_in_a_bucket(bucket: str, make_clip: Callable[..., AnnotatedClip], tmp_path: Path) -> None:
    clips = [make_clip("a0"), make_clip("b0")]
    items = [(clip.id, shards.encode(clip, shards.Store()), shards.index_row(clip)) for clip in clips]
    for place in (f"{bucket}/run/shards", tmp_path):
        shards.write_shard(place, "s-000000", items)
        shards.write_shard(place, "s-000001", [])
    for name in ("s-000000.tar", "s-000000.parquet"):
        assert files.read_bytes(f"{bucket}/run/shards/{name}") == (tmp_path / name).read_bytes()
    found = list(shards.read_clips(f"{bucket}/run"))
    assert [clip.id for clip in found] == ["a0", "b0"]
    assert [clip.id for clip in shards.read_clips(f"{bucket}/run/shards/s-000000.tar")] == ["a0", "b0"]
    rows = shards.read_index(f"{bucket}/run").to_pylist()
    assert shards.read_clip(f"{bucket}/run/shards", rows[1], ["depth"]).depth is not None
    assert [row["parts"] for row in shards.index_foreign(f"{bucket}/run/shards/s-000000.tar")] == [
        row["parts"] for row in rows
    ]
    shards.verify(f"{bucket}/run/shards", "s-000000")
    shards.write_artifact(f"{bucket}/spool/a0.tar", *items[0])
    assert shards.read_artifact(f"{bucket}/spool/a0.tar") == items[0]
