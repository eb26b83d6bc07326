"""The closed-form clip of the golden shard, and a server that speaks Google's protocol."""

import runpy
import subprocess
import sys
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
