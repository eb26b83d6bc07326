"""The page, one clip's explanation, and kept clips packed anew."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scene

from curate import measure
from curate.explain import explain
from curate.materialize import materialize
from curate.recipe import CurateRecipe
from curate.select import curate as select
from curate.select import read_selection
from pipelines import curation
from shared import files, shards
from shared.clip import AnnotatedClip
from shared.knobs import load

curate_recipe = partial(load, CurateRecipe)
ALL = CurateRecipe()


def wrong_unit(clip: AnnotatedClip) -> AnnotatedClip:
    ramp = np.linspace(1, 1.7, clip.shape[0], dtype=np.float32)[:, None, None]
    return clip.with_(depth=replace(clip.depth, z=clip.depth.z * ramp))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards: three true clips, one whose depth doubles, and one that failed."""
    folder = tmp_path_factory.mktemp("run")
    clips = [scene.tiny(kind, frames=13) for kind in ("orbit", "dolly", "follow")]
    clips.append(replace(wrong_unit(scene.tiny("handheld", frames=13)), id="drifting"))
    items = []
    for clip in clips:
        clip = clip.with_(scores=measure.scores(clip))
        items.append((clip.id, shards.encode(clip, shards.Store()), shards.index_row(clip, dataset="scene")))
    failed = {
        "clip_id": "broken",
        "status": "failed",
        "reason": "<b>no</b> video",
        "source": "x",
        "dataset": "scene",
        "num_frames": 0,
        "fps": 8.0,
    }
    shards.write_shard(str(folder / "shards"), "a-000000", items[:2])
    shards.write_shard(str(folder / "shards"), "a-000001", [*items[2:], ("broken", {}, failed)])
    return str(folder)


def test_the_page_holds_all_it_shows(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = curation.curate(out, ALL)
    page = (Path(out) / "report" / "index.html").read_text()
    assert "3 kept of 4 annotated" in capsys.readouterr().out
    assert summary.kept == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    assert page.count("data:image/jpeg;base64,") >= 4
    assert "scale_drift.scale_drift" in page
    assert "rejected by depth_reprojection.depth_ratio_8" in page
    assert page.count("<svg") > 10
    assert "<b>no</b>" not in page  # what others wrote is text


def test_without_pictures_no_shard_is_opened(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a shard was read")

    monkeypatch.setattr(shards, "read_clip", refuse)
    monkeypatch.setattr(shards, "read_members", refuse)
    curation.curate(out, curate_recipe(ALL, ["report.pictures=0"]))
    assert "data:image" not in (Path(out) / "report" / "index.html").read_text()


def test_moving_a_limit_tells_what_it_keeps(out: str) -> None:
    from curate.histograms import histograms

    recipe = curate_recipe(ALL, ["checks.scale_drift.scale_drift.fail_above=0.1"])
    summary = select(out, recipe, dry_run=True)
    found = {h.score: h for h in histograms(summary.sample, recipe)}
    only = curate_recipe(
        recipe, [f"checks.{name}=null" for name in type(ALL.checks).model_fields if name != "scale_drift"]
    )
    drift = {h.score: h for h in histograms(select(out, only, dry_run=True).sample, only)}["scale_drift"]
    shares = dict(drift.moves)["above 0.1"]
    assert [bound for bound, _ in shares] == pytest.approx([0.05, 0.075, 0.1, 0.15, 0.2])
    assert shares[2][1] == 0.75
    assert shares[-1][1] == 1.0  # its drift is 0.17
    assert dict(found["scale_drift"].moves)["above 0.1"][-1][1] == 0.75  # other gates reject it still


def test_explain_names_every_verdict(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    select(out, ALL)
    curation.curate(out, ALL, explain="drifting")
    text = capsys.readouterr().out
    assert "scale_drift: fail" in text
    assert "flow_cycle: pass" in text
    assert "picture: not measured" in text
    assert "selection: fail, not kept" in text
    loose = curate_recipe(
        {"per_source": [{"dataset": "scene", "set": {"scale_drift.scale_drift.fail_above": 9.0}}]}, []
    )
    assert "scale_drift: flag" in explain(out, "drifting", loose)
    assert "failed: <b>no</b> video" in explain(out, "broken", ALL)
    with pytest.raises(ValueError, match="no index holds a clip nobody"):
        explain(out, "nobody", ALL)


def test_kept_clips_are_packed_byte_for_byte(out: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no selection"):
        materialize(str(tmp_path), str(tmp_path / "x"))
    select(out, ALL)
    dest = str(tmp_path / "kept")
    assert materialize(out, dest) == 3
    before = {row["clip_id"]: row for row in shards.read_index(out).to_pylist()}
    rows = shards.read_index(dest).to_pylist()
    assert {row["clip_id"] for row in rows} == set(before) - {"drifting", "broken"}
    for row in rows:
        was = before[row["clip_id"]]
        assert {k: v for k, v in row.items() if k not in ("shard", "parts")} == {
            k: v for k, v in was.items() if k not in ("shard", "parts")
        }
        assert shards.read_members(files.join(dest, "shards"), row) == shards.read_members(
            files.join(out, "shards"), was
        )
    select(dest, ALL)  # a run of its own
    assert read_selection(dest).num_rows == 3
    with pytest.raises(ValueError, match="holds shards already"):
        materialize(out, dest)


def test_a_run_of_which_nothing_is_kept_fails_and_has_its_page(out: str) -> None:
    with pytest.raises(ValueError, match=r"none of \d+ annotated clips is kept; .*index\.html says why"):
        curation.curate(out, curate_recipe(ALL, ["min_frames=1000", "report.pictures=0"]))
    assert "min_frames" in Path(out, "report", "index.html").read_text()
    assert curation.curate(out, curate_recipe(ALL, ["min_frames=1000"]), dry_run=True).kept == 0
