"""The closed-form clip of the golden shard, and a server that speaks Google's protocol."""

import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.clip import AnnotatedClip, Tracks

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> dict:
    """What tests/golden/make.py defines, as it was when the shard was written: `clip`, `items`."""
    return runpy.run_path(str(GOLDEN / "make.py"))


@pytest.fixture(scope="session")
def make_clip(golden: dict) -> Callable[..., AnnotatedClip]:
    """The closed-form clip, with tracks, which the golden shard does not have."""

    def make(*args: Any, **kwargs: Any) -> AnnotatedClip:
        clip: AnnotatedClip = golden["clip"](*args, **kwargs)
        t, n = np.meshgrid(np.arange(len(clip.rgb)), np.arange(11), indexing="ij")
        valid = (t + n) % 5 > 0
        p_world = np.stack([0.1 * n + 0.01 * t, 0.2 * n - 1, 2 + 0.03 * t * (n % 2)], axis=-1) * valid[..., None]
        visible = valid & (n % 3 > 0)
        return clip.with_(
            tracks=Tracks(p_world=p_world.astype(np.float32), visible=visible, valid=valid, source="formula")
        )

    return make


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
