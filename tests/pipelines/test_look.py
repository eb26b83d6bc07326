"""A clip as a folder that opens from disk: every video has the clip's frames, every point lies where the truth puts it."""

import re

import numpy as np
import pytest

from pipelines import look
from shared import codecs, shards
from tests import scene


@pytest.fixture(scope="module")
def truth():
    return scene.clip("lateral", frames=5, height=48, width=64)


def test_the_page_plays_every_label_in_step(truth, tmp_path):
    run = str(tmp_path / "run")
    shards.write_shard(
        f"{run}/shards", "a-000000", [(truth.id, shards.encode(truth, shards.Store()), shards.index_row(truth))]
    )
    page = look.look(run, truth.id, str(tmp_path / "look"))
    videos = re.findall(r'<video src="(\w+)\.mp4"', page.read_text())
    assert videos == ["rgb", "depth", "flow", "dynamic", "scene_flow"]
    for name in videos:
        assert codecs.decode_rgb((tmp_path / "look" / f"{name}.mp4").read_bytes()).shape == truth.rgb.shape
    assert "http" not in page.read_text()  # nothing is fetched


def test_points_lie_in_the_world(truth):
    head, _, body = look.ply(truth).partition(b"end_header\n")
    count = int(re.search(rb"element vertex (\d+)", head).group(1))
    rows = np.frombuffer(body, [("p", "<f4", 3), ("color", "u1", 3)])
    assert len(rows) == count
    static = ~truth.motion.dynamic
    static[0] = True
    expected = truth.pointmap()[truth.depth.valid & static]
    np.testing.assert_allclose(rows["p"].min(0), expected.min(0), atol=1e-5)
    np.testing.assert_allclose(rows["p"].max(0), expected.max(0), atol=1e-5)


def test_a_clip_that_is_not_there_is_a_sentence(truth, tmp_path):
    run = str(tmp_path / "run")
    shards.write_shard(
        f"{run}/shards", "a-000000", [(truth.id, shards.encode(truth, shards.Store()), shards.index_row(truth))]
    )
    with pytest.raises(ValueError, match="no such thing as clip other"):
        look.look(run, "other", str(tmp_path / "look"))
