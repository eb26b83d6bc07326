"""New checks on old clips: the index is brought up to date, the tar is not touched."""

from pathlib import Path

import pytest
import scene

from curate import measure
from pipelines import scoring
from shared import shards

STORE = shards.Store(codec="plain")


def test_scores_are_added_and_tars_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [scene.tiny("orbit").with_(scores={"luminance": 99.0}), scene.tiny("dolly")]
    failed = {"clip_id": "broken", "status": "failed", "reason": "x"}
    items = [(clip.id, shards.encode(clip, STORE), shards.index_row(clip)) for clip in clips]
    shards.write_shard(tmp_path / "shards", "a-000000", [*items, ("broken", {}, failed)])
    tar = (tmp_path / "shards" / "a-000000.tar").read_bytes()
    assert scoring.score(str(tmp_path)) == 2
    assert (tmp_path / "shards" / "a-000000.tar").read_bytes() == tar
    rows = {row["clip_id"]: row for row in shards.read_index(tmp_path).to_pylist()}
    for clip in clips:
        expected = measure.scores(clip)
        found = {name[6:]: v for name, v in rows[clip.id].items() if name.startswith("score.") and v is not None}
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert rows[clips[0].id]["score.luminance"] == 99.0
    assert rows["broken"]["score.fb_ok"] is None
    shards.verify(tmp_path / "shards", "a-000000")
    before = (tmp_path / "shards" / "a-000000.parquet").read_bytes()
    monkeypatch.setattr(measure, "scores", lambda clip: {"newer": 1.0})
    scoring.score(str(tmp_path))
    rows = shards.read_index(tmp_path).to_pylist()
    assert [row["score.newer"] for row in rows] == [1.0, 1.0, None]
    assert rows[0]["score.fb_ok"] is not None
    assert (tmp_path / "shards" / "a-000000.parquet").read_bytes() != before
