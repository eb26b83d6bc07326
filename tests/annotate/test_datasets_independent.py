"""The importers against a second writer of every layout, made from the documentation by someone who had not read the first."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import imported
from miniatures.independent import extra_sets, movi, paper_sets
from miniatures.independent.world import World

from annotate.datasets import importing
from pipelines import annotation, recipes
from pipelines.datasets import DATASETS
from shared import shards
from shared.clip import AnnotatedClip
from shared.shards import read_clips, read_index
from shared.store import Store

WORLD, STILL = World(), World(boxes_move=False, focal=48.0)
INDOORS = World(ceiling=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a set must bring, in the units of `datasets.md`'s table of errors."""

    kind: str
    write: Callable[..., None]
    fps: float
    points_mm: float
    world: World = WORLD
    knobs: dict[str, Any] = field(default_factory=dict)
    flow_px: float | None = None
    scene_flow_mm: float | None = None
    dynamic: bool = True
    valid_share: float = 1.0
    poses: float = 1e-5


CASES = [
    Case(kind="pointodyssey", write=paper_sets.point_odyssey, fps=30, points_mm=20, scene_flow_mm=20),
    Case(kind="bedlam", write=paper_sets.bedlam, fps=30, points_mm=0.01, valid_share=0.85),
    Case(kind="bedlam2", write=paper_sets.bedlam2, fps=30, points_mm=4.5),
    Case(kind="dynamic_replica", write=paper_sets.dynamic_replica, fps=30, points_mm=4.5, flow_px=0.005),
    Case(
        kind="dynamic_replica",
        write=paper_sets.dynamic_replica,
        fps=30,
        points_mm=4.5,
        flow_px=0.005,
        knobs={"ndc": "ndc_norm_image_bounds", "tracks": False},
    ),
    Case(kind="omniworld", write=paper_sets.omniworld, fps=24, points_mm=0.5),
    Case(kind="tartanair", write=extra_sets.tartanair, fps=10, points_mm=0.01, world=STILL, flow_px=1e-4),
    Case(kind="tartanair_v2", write=extra_sets.tartanair_v2, fps=10, points_mm=0.01, world=STILL, flow_px=0.02),
    Case(
        kind="tartanair_v2",
        write=extra_sets.tartanair_v2,
        fps=10,
        points_mm=0.01,
        world=STILL,
        flow_px=1e-4,
        knobs={"npz": True},
    ),
    Case(kind="kubric", write=extra_sets.kubric, fps=12, points_mm=0.06, flow_px=0.001, scene_flow_mm=0.05),
    Case(kind="kubric", write=movi.write, fps=12, points_mm=0.06, world=INDOORS, flow_px=0.001, scene_flow_mm=0.05),
    Case(kind="spring", write=extra_sets.spring, fps=24, points_mm=0.01, flow_px=1e-4, scene_flow_mm=0.05),
    Case(
        kind="virtual_kitti2",
        write=extra_sets.virtual_kitti2,
        fps=10,
        points_mm=6.5,
        flow_px=0.0024,
        scene_flow_mm=0.35,
    ),
    Case(kind="sintel", write=extra_sets.sintel, fps=24, points_mm=0.01, flow_px=1e-4, dynamic=False),
    Case(kind="realestate10k", write=extra_sets.realestate10k, fps=10, points_mm=0, world=STILL),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([case.kind, *case.knobs]))
def test_every_layout_gives_its_truth_back(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path, case.world, **case.knobs)
    dataset = DATASETS[case.kind]
    uri = next(iter(dataset.scenes(str(tmp_path))))
    world = case.world
    size = {"frames": world.num_frames, "height": world.height, "width": world.width}
    clip = imported.clip(dataset, tmp_path, case.fps, dataset.open(uri), **size)
    _assert_true(clip, case)
    stored = shards.decode(clip.id, shards.encode(clip, Store(codec="plain")))
    _assert_true(stored, case)
    stored = shards.decode(clip.id, shards.encode(clip, Store(), truth=case.kind))
    _assert_true(stored, case, of_codec_mm=0.1, of_codec_px=1e-3)


def _assert_true(clip: AnnotatedClip, case: Case, of_codec_mm: float = 0.0, of_codec_px: float = 0.0) -> None:
    """Within the set's own tolerance, and what its codec adds."""
    world, first_from_world = case.world, case.world.cam_from_world[0]
    assert np.abs(clip.cameras.world_from_cam - first_from_world @ world.world_from_cam).max() < case.poses
    assert np.abs(clip.cameras.intrinsics - world.intrinsics).max() < 1e-5
    assert clip.fps == case.fps
    if case.points_mm:
        _assert_points(clip, case, first_from_world, of_codec_mm)
    if case.flow_px:
        _assert_flow(clip, case, of_codec_px)
    if case.dynamic:
        np.testing.assert_array_equal(clip.motion.dynamic, world.dynamic)
        _assert_scene_flow(clip, case, first_from_world, of_codec_mm)


def _assert_points(clip: AnnotatedClip, case: Case, first_from_world: np.ndarray, more_mm: float) -> None:
    world, valid = case.world, clip.depth.valid
    true = world.points @ first_from_world[:3, :3].T + first_from_world[:3, 3]
    assert not valid[world.sky].any()
    assert valid[~world.sky].mean() >= case.valid_share
    assert 1000 * np.linalg.norm(clip.pointmap() - true, axis=-1)[valid].max() < case.points_mm + more_mm
    if clip.motion is not None and clip.motion.sky is not None:
        np.testing.assert_array_equal(clip.motion.sky, world.sky)


def _assert_flow(clip: AnnotatedClip, case: Case, more_px: float) -> None:
    """Where the surface is seen in both frames; a set without a way back brings the way there, turned round."""
    both_ways = case.kind not in ("tartanair", "sintel") and not (case.kind == "tartanair_v2" and not case.knobs)
    for t in range(case.world.num_frames - 1):
        flow, _, visible, _ = case.world.flow(t, t + 1)
        assert np.linalg.norm(clip.flow.forward[t] - flow, axis=-1)[visible].max() < case.flow_px + more_px
        if both_ways:
            flow, _, visible, _ = case.world.flow(t + 1, t)
            assert np.linalg.norm(clip.flow.backward[t] - flow, axis=-1)[visible].max() < case.flow_px + more_px


def _assert_scene_flow(clip: AnnotatedClip, case: Case, first_from_world: np.ndarray, more_mm: float) -> None:
    valid = clip.motion.scene_flow_valid
    assert not clip.motion.scene_flow[~clip.motion.dynamic[:-1]].any()
    if not case.scene_flow_mm:
        return
    true = (
        np.stack([case.world.flow(t, t + 1)[3] for t in range(case.world.num_frames - 1)]) @ first_from_world[:3, :3].T
    )
    moving = valid & case.world.dynamic[:-1]
    assert moving.any()
    assert 1000 * np.linalg.norm(clip.motion.scene_flow - true, axis=-1)[moving].max() < case.scene_flow_mm + more_mm


def test_what_moves_in_sintel_follows_from_its_depth_cameras_and_flow(tmp_path: Path) -> None:
    """It has no instances. The whole road, in the default store."""
    extra_sets.sintel(tmp_path / "tree", WORLD)
    _annotate(f"sintel:{tmp_path / 'tree'}", tmp_path / "out", WORLD.num_frames, fps=24, height=64, width=96)
    (clip,) = read_clips(str(tmp_path / "out" / "shards"))
    _assert_points(clip, CASES[-2], WORLD.cam_from_world[0], more_mm=0.1)
    _assert_flow(clip, CASES[-2], more_px=1e-3)
    dynamic, true = clip.motion.dynamic, WORLD.dynamic
    assert (dynamic & true).sum() > 0.97 * (dynamic | true).sum()
    flows = [WORLD.flow(t, t + 1)[3] for t in range(WORLD.num_frames - 1)]
    error = np.linalg.norm(clip.motion.scene_flow - np.stack(flows) @ WORLD.cam_from_world[0, :3, :3].T, axis=-1)
    known = clip.motion.scene_flow_valid & true[:-1]
    assert known.sum() > 0.5 * true[:-1].sum()
    assert 1000 * np.median(error[known]) < 0.3
    assert not clip.motion.scene_flow[~dynamic[:-1]].any()


@pytest.mark.parametrize("num_frames", [2, 4])
def test_clips_too_short_for_a_pair_of_key_frames_are_annotated(num_frames: int, tmp_path: Path) -> None:
    """The recipe halves them here, and takes every second frame."""
    world = World(num_frames=2 * num_frames)
    paper_sets.dynamic_replica(tmp_path / "tree", world)
    _annotate(f"dynamic_replica:{tmp_path / 'tree'}", tmp_path / "out", num_frames, fps=15, height=32, width=48)
    clips = list(read_clips(str(tmp_path / "out" / "shards")))
    assert [clip.shape for clip in clips] == [(num_frames, 32, 48)] * 2
    assert clips[0].frames.tolist() == list(range(0, 2 * num_frames, 2))[:num_frames]
    poses = world.cam_from_world[0] @ world.world_from_cam[::2]
    assert np.abs(clips[0].cameras.world_from_cam - poses).max() < 1e-5
    assert np.abs(clips[0].cameras.intrinsics - world.intrinsics / 2).max() < 1e-6


def test_a_scene_that_fails_its_check_stands_between_two_that_are_imported(tmp_path: Path) -> None:
    for scene in ("first", "second", "third"):
        paper_sets.point_odyssey(tmp_path / "tree", WORLD, scene=scene)
    anno = tmp_path / "tree/train/second/anno.npz"
    arrays = dict(np.load(anno))
    np.savez(anno, **arrays | {"extrinsics": np.linalg.inv(arrays["extrinsics"])})
    _annotate(f"pointodyssey:{tmp_path / 'tree'}", tmp_path / "out", WORLD.num_frames, fps=30, height=64, width=96)
    rows = {Path(row["source"]).name: row for row in read_index(str(tmp_path / "out" / "shards")).to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "first": "annotated",
        "second": "failed",
        "third": "annotated",
    }
    assert "if its poses are inverted" in rows["second"]["reason"]
    assert "%" in rows["second"]["reason"]


def test_every_trap_names_tests_that_there_are() -> None:
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "datasets.md").read_text()))
    written = "\n".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    assert len(named) > 15
    assert not {name for name in named if f"def {name}(" not in written}


def test_one_missing_frame_is_called_a_gap_and_does_not_slow_the_scene_down(tmp_path: Path) -> None:
    paper_sets.bedlam(tmp_path, WORLD)
    next(tmp_path.rglob("*_0003_depth.exr")).unlink()
    scene = imported.only_scene(DATASETS["bedlam"], tmp_path)
    (span,) = importing.spans(scene, imported.cut(30, frames=WORLD.num_frames), {})
    assert span.reason.startswith("gaps: 1 ")
    (span,) = importing.spans(scene, imported.cut(30, frames=3), {})
    assert span.reason == ""
    assert span.frames.tolist() == [0, 1, 2]


def _annotate(source: str, out: Path, frames: int, fps: float, height: int, width: int) -> None:
    knobs = [f"cut.frames={frames}", f"cut.fps={fps}", f"cut.height={height}", f"cut.width={width}"]
    annotation.annotate(source, str(out), recipes.annotate_recipe("embedded", knobs), inline=True)
