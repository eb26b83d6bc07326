"""One thread for every test, since the suite is timed on two shared cores; and a server that speaks S3."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


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
