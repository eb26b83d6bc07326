"""The closed-form clip of the golden shard, and a server that speaks S3."""

import os
import runpy
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.clip import AnnotatedClip

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> dict:
    """What tests/golden/make.py defines: `clip`, `items`."""
    return runpy.run_path(str(GOLDEN / "make.py"))


@pytest.fixture(scope="session")
def make_clip(golden: dict) -> Callable[..., AnnotatedClip]:
    return golden["clip"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of a moto server in a process of its own, on a free port of this machine."""
    code = (
        "from moto.server import ThreadedMotoServer as S; s = S(ip_address='127.0.0.1', port=0); s.start();"
        "print(); print(s.get_host_and_port()[1], flush=True); import threading; threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            port = next(int(line) for line in server.stdout if line.strip().isdigit())
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, reached through the usual environment variables."""
    name = f"b{os.getpid()}-{time.time_ns()}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT")).close()
    for variable, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    return f"s3://{name}"


@pytest.fixture
def google_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of Google's protocol."""
    script = Path(__file__).with_name("google_storage.py")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{int(server.stdout.readline())}")
            yield "gs://bucket"
        finally:
            server.kill()
