"""One small run on disk, shared by the trainer's tests."""

from pathlib import Path

import corpus
import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """Six clips of 17 frames at 48x64 in two data sets, `a` and `b`; the fourth is for validation."""
    split = lambda number: "validation" if number == 3 else "train"  # noqa: E731
    return corpus.write(tmp_path_factory.mktemp("root"), frames=17, height=48, width=64, split=split)
