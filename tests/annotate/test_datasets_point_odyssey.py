"""PointOdyssey: its layout read back to the exact scene, and every trap that it is known for."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import drawing, imported
from miniatures import point_odyssey as miniature

from annotate.datasets import importing, selfcheck
from annotate.datasets.point_odyssey import PointOdyssey
from annotate.flow.dis import Dis
from annotate.motion import Motion
from shared import shards


def test_a_scene_comes_back_as_it_was_written(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip, true = imported.clip(PointOdyssey(), tmp_path, 30.0), drawing.true()
    assert imported.point_error_mm(clip, true) < 20
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_allclose(clip.cameras.intrinsics, true.clip.cameras.intrinsics, rtol=1e-6)
    assert clip.depth.metric
    assert clip.licence == "CC-BY-NC-SA-4.0"
    assert clip.frames.tolist() == list(range(drawing.FRAMES))
    assert np.abs(clip.rgb.astype(int) - true.clip.rgb).mean() < 6


def test_what_moves_is_told_by_its_tracks(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip, true = imported.clip(PointOdyssey(), tmp_path, 30.0), drawing.true()
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)
    known = clip.motion.scene_flow_valid & clip.motion.dynamic[:-1]
    assert known.sum() > 20, "tracks lend their displacement to the pixels that they lie on"
    # a track is up to half a pixel away from the center of its pixel, on a body that turns
    assert imported.scene_flow_error_mm(clip, true) < 3


def test_tracks_are_kept_in_the_world_of_the_clip(tmp_path: Path) -> None:
    true = drawing.true()
    _, visible, _ = drawing.tracks(true)
    valids = np.ones(visible.shape, bool)
    valids[1, 10:40] = False
    miniature.write(tmp_path, valids=valids)
    clip = imported.clip(PointOdyssey(), tmp_path, 30.0)
    assert imported.track_error_mm(clip, true) < 0.01
    seen = (visible & valids).any(0)
    np.testing.assert_array_equal(clip.tracks.valid, valids[:, seen])
    assert not clip.tracks.p_world[~clip.tracks.valid].any()
    assert not (clip.tracks.visible & ~(visible & valids)[:, seen]).any()
    assert (clip.tracks.visible == (visible & valids)[:, seen]).mean() > 0.9, "all but those at the border"
    stored = shards.decode(clip.id, shards.encode(clip, shards.Store()))
    np.testing.assert_allclose(stored.tracks.p_world, clip.tracks.p_world, atol=1e-5)
    np.testing.assert_array_equal(stored.tracks.visible, clip.tracks.visible)


def test_tracks_are_strided_cropped_and_capped_with_the_clip(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    whole = imported.clip(PointOdyssey(), tmp_path, 30.0)
    size = {"frames": 3, "width": drawing.WIDTH // 2}
    cropped = imported.clip(PointOdyssey(max_tracks=50), tmp_path, 15.0, **size)
    assert cropped.tracks.p_world.shape == (3, 50, 3)
    same = (whole.tracks.p_world[0, :, None] == cropped.tracks.p_world[0]).all(-1).any(1)
    assert same.sum() == 50, "the same points, whatever the crop"
    np.testing.assert_array_equal(cropped.tracks.p_world, whole.tracks.p_world[::2, same])
    p_cam = np.einsum(
        "tij,tnj->tni",
        np.linalg.inv(cropped.cameras.world_from_cam),
        np.pad(cropped.tracks.p_world, ((0, 0), (0, 0), (0, 1)), constant_values=1),
    )
    k = cropped.cameras.intrinsics
    u = k[:, None, 0] * p_cam[..., 0] / p_cam[..., 2] + k[:, None, 2]
    assert cropped.tracks.visible.any(0).all()
    assert ((u >= 0) & (u <= drawing.WIDTH // 2))[cropped.tracks.visible].all()
    assert imported.clip(PointOdyssey(max_tracks=0), tmp_path, 30.0).tracks is None


@pytest.mark.parametrize("jitter_m", [0.0, 0.002])
def test_an_object_that_does_not_move_is_not_dynamic(tmp_path: Path, jitter_m: float) -> None:
    """Nor by less than the set's own rounding: 10 mm, or half a percent of the depth."""
    true = drawing.true()
    p_world, visible, _ = drawing.tracks(true)
    still = p_world[:1] + np.random.default_rng(0).uniform(-jitter_m, jitter_m, p_world.shape)
    miniature.write(tmp_path, trajs_3d=still.astype(np.float32), visibs=visible)
    clip = imported.clip(PointOdyssey(), tmp_path, 30.0)
    assert clip.motion.instances.any()
    assert not clip.motion.dynamic.any()


def test_sky_is_exactly_65535_and_is_not_depth(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip = imported.clip(PointOdyssey(max_range_m=5000), tmp_path, 30.0)
    assert not clip.depth.valid[:, 0, :4].any(), "65535 is 1000 m exactly: a test for more than 1000 m misses it"
    assert not clip.depth.valid[:, 1, :4].any()
    assert clip.depth.z.max() < 100


def test_half_a_step_makes_up_for_truncation(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip, true = imported.clip(PointOdyssey(), tmp_path, 30.0), drawing.true()
    error = (clip.depth.z - true.z)[clip.depth.valid]
    assert abs(error.mean()) < 0.001
    assert np.abs(error).max() < 0.0078


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trajs_3d": np.zeros((5, 0, 3), np.float32)}, "trajs_3d is empty"),
        ({"trajs_3d": np.array([None])}, "trajs_3d is empty"),
        ({"trajs_3d": None}, "trajs_3d is empty"),
        ({"visibilities": np.zeros(5)}, "v1.0"),
        ({"extrinsics": np.tile(np.eye(4), (5, 1, 1)) * 2}, "no rotation"),
    ],
)
def test_a_scene_that_cannot_be_trusted_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    miniature.write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as refusal:
        imported.only_scene(PointOdyssey(), tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_known_broken_scenes_are_excluded_and_the_list_can_be_changed(tmp_path: Path) -> None:
    miniature.write(tmp_path, "gso_in_big")
    with pytest.raises(ValueError, match=r"excluded .*tracks are missing"):
        imported.only_scene(PointOdyssey(), tmp_path)
    assert imported.only_scene(PointOdyssey(exclude=()), tmp_path).facts.width == drawing.WIDTH


def test_ground_that_is_not_where_the_tracks_are_is_refused_with_the_figure(tmp_path: Path) -> None:
    folder = miniature.write(tmp_path)
    for path in (folder / "depths").iterdir():
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), (raw * 1.05).astype(np.uint16))
    with pytest.raises(ValueError, match=r"depth is [45]\.\d% away from its tracks"):
        selfcheck.check(imported.only_scene(PointOdyssey(), tmp_path))


def test_poses_that_were_not_inverted_are_refused(tmp_path: Path) -> None:
    true = drawing.true()
    miniature.write(tmp_path, extrinsics=true.world_from_cam)
    with pytest.raises(ValueError, match=r"poses are inverted|away from"):
        selfcheck.check(imported.only_scene(PointOdyssey(), tmp_path))


def test_a_missing_frame_is_a_gap(tmp_path: Path) -> None:
    folder = miniature.write(tmp_path)
    (folder / "depths/depth_00002.png").unlink()
    scene = imported.only_scene(PointOdyssey(), tmp_path)
    spans = importing.spans(scene, imported.cut(30.0, frames=2), {})
    assert [span.frames.tolist() for span in spans] == [[0, 1], [3, 4]]
    (refused,) = importing.spans(scene, imported.cut(30.0), {})
    assert refused.reason.startswith("gaps")


def test_annotators_complete_scene_flow_and_keep_what_tracks_know(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip, true = imported.clip(PointOdyssey(), tmp_path, 30.0), drawing.true()
    done = Motion().load()(clip.with_(flow=true.clip.flow, key_flow=true.clip.key_flow), Dis().load())
    known = clip.motion.scene_flow_valid
    np.testing.assert_array_equal(done.motion.scene_flow[known], clip.motion.scene_flow[known])
    np.testing.assert_array_equal(done.motion.dynamic, true.clip.motion.dynamic)
    moving = done.motion.dynamic[:-1]
    assert (done.motion.scene_flow_valid & moving).sum() > 2 * (known & moving).sum()
    assert done.motion.key_scene_flow_valid.any()
    assert imported.scene_flow_error_mm(done, true) < 25
