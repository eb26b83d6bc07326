"""`worldreel calibrate` as a command: verdicts on errors that labels have, against the truth in another run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scene

from curate import measure
from curate.recipe import CurateRecipe
from pipelines import calibration
from shared import shards
from shared.clip import AnnotatedClip


def write(folder: Path, clips: list[AnnotatedClip], part: int) -> str:
    """In shards of so many clips."""
    scored = [replace(clip, scores=measure.scores(clip)) for clip in clips]
    items = [(clip.id, shards.encode(clip, shards.Store()), shards.index_row(clip)) for clip in scored]
    for start in range(0, len(items), part):
        shards.write_shard(str(folder / "shards"), f"x-{start:06d}", items[start : start + part])
    return str(folder)


def test_verdicts_are_held_against_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three clips one has no mover in its mask, and one a depth that no picture contradicts: a bend of still pixels."""
    truth = [
        replace(scene.clip(kind, frames=9, height=72, width=96, focal=90.0), source=f"{kind}.mp4")
        for kind in ("orbit", "many_moving", "static")
    ]
    unmarked = truth[1].with_(motion=replace(truth[1].motion, dynamic=np.zeros_like(truth[1].motion.dynamic)))
    bend = np.linspace(0.5, 2, 96, dtype=np.float32)
    bent = truth[2].with_(depth=replace(truth[2].depth, z=truth[2].depth.z * bend))
    made = write(tmp_path / "made", [truth[0], unmarked, bent], 2)
    to = tmp_path / "page.md"
    page = calibration.against(made, write(tmp_path / "true", truth, 3), CurateRecipe(), str(to))
    assert "Of 3 clips 1 are usable; 2 are kept, 1 of them usable: precision 50 %, recall\n100 %." in page
    assert "| movers | dynamic.iou below 0.5 | 1 | 1 |" in page
    assert "| depth | static_depth.abs_rel above 0.1 | 1 | 0 |" in page
    assert f"calibrate {made} --truth" in page
    assert to.read_text() == page
    said = capsys.readouterr().out
    assert said.index("total of 3") < said.index("# How good the verdicts are")


def test_truth_of_other_clips_is_refused(tmp_path: Path) -> None:
    clips = [scene.tiny("orbit"), scene.tiny("static", frames=5)]
    made, truth = (write(tmp_path / name, [clip], 1) for name, clip in zip("ab", clips))
    with pytest.raises(ValueError, match="has its source and frames in"):
        calibration.against(made, truth, CurateRecipe(), None)
