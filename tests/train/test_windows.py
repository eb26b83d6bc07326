"""Windows continue one another: joined truth is truth, and a seam that does not fit is measured."""

from dataclasses import replace

import examples
import numpy as np
import pytest
import scene

from train import windows
from train.generate import Sampler


def _part(first: int, last: int):
    """Frames of a true clip as a window of its own: its world is its own first camera."""
    clip = scene.tiny("many_moving", frames=25)
    pairs, keys = slice(first, last - 1), slice(first // 4, (last - 1) // 4)
    frames = slice(first, last)
    poses = np.linalg.inv(clip.cameras.world_from_cam[first]) @ clip.cameras.world_from_cam[frames]
    turn = clip.cameras.world_from_cam[first, :3, :3].astype(np.float32)  # row vectors: world to window
    motion = clip.motion
    return replace(
        clip,
        rgb=clip.rgb[frames],
        frames=clip.frames[frames],
        depth=replace(clip.depth, z=clip.depth.z[frames], valid=clip.depth.valid[frames]),
        cameras=replace(clip.cameras, world_from_cam=poses, intrinsics=clip.cameras.intrinsics[frames]),
        flow=replace(clip.flow, forward=clip.flow.forward[pairs], backward=clip.flow.backward[pairs]),
        key_flow=replace(clip.key_flow, forward=clip.key_flow.forward[keys], backward=clip.key_flow.backward[keys]),
        motion=replace(
            motion,
            dynamic=motion.dynamic[frames],
            scene_flow=motion.scene_flow[pairs] @ turn,
            scene_flow_valid=motion.scene_flow_valid[pairs],
            key_scene_flow=motion.key_scene_flow[keys] @ turn,
            key_scene_flow_valid=motion.key_scene_flow_valid[keys],
            instances=None,
        ),
    )


def test_true_windows_join_into_the_true_clip():
    clip, before, after = scene.tiny("many_moving", frames=25), _part(0, 17), _part(12, 25)
    small = windows.moved(after, np.eye(4), 0.25)
    drift, fitted = windows._fitted(before, small, 5)
    whole = windows.joined(before, fitted, 5)
    assert drift.scale == pytest.approx(4, rel=1e-5)
    assert max(drift.color, drift.depth, drift.position, drift.angle_deg) < 1e-4
    assert np.array_equal(whole.rgb, clip.rgb)
    assert np.allclose(whole.depth.z, clip.depth.z, rtol=1e-5)
    assert np.allclose(whole.cameras.world_from_cam, clip.cameras.world_from_cam, atol=1e-5)
    assert np.array_equal(whole.flow.forward, clip.flow.forward)
    assert np.allclose(whole.motion.key_scene_flow, clip.motion.key_scene_flow, atol=1e-5)


def test_a_seam_that_does_not_fit_is_measured():
    before, after = _part(0, 17), _part(12, 25)
    dimmed = replace(after, rgb=after.rgb // 2)
    assert windows._fitted(before, dimmed, 5)[0].color > 0.1
    poses = after.cameras.world_from_cam.copy()
    poses[1:, :3, 3] += 0.5
    jumped = after.with_(cameras=replace(after.cameras, world_from_cam=poses))
    assert windows._fitted(before, jumped, 5)[0].position > 0.05


def test_windows_follow_each_other():
    whole, drifts = windows.generate_long(
        examples.built(),
        scene.tiny("orbit").rgb[0],
        "a room",
        num_windows=3,
        overlap=5,
        frames=9,
        height=48,
        width=64,
        sampler=Sampler(steps=2, guidance=1.0, seed=1),
    )
    assert whole.shape == (17, 48, 64)
    assert whole.motion.key_scene_flow.shape == (4, 48, 64, 3)
    assert len(drifts) == 2
    assert drifts[0].color < 0.2  # the overlap is held to
    assert whole.scores["drift_color"] == max(drift.color for drift in drifts)
    assert whole.scores["drift_scale"] > 0


def test_a_length_is_so_many_windows():
    assert windows.count(49, 49, 9) == 1
    assert windows.count(89, 49, 9) == 2
    with pytest.raises(ValueError, match="make 89, or 40 more or fewer"):
        windows.count(97, 49, 9)


def test_overlaps_fill_latent_frames():
    with pytest.raises(ValueError, match="overlap by 4"):
        windows.generate_long(
            examples.built(),
            scene.tiny("orbit").rgb[0],
            "",
            num_windows=2,
            overlap=4,
            frames=9,
            height=48,
            width=64,
            sampler=Sampler(steps=1),
        )
