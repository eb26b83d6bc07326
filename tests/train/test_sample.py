"""A sample holds what its clip holds, at another size and in units of the scene. Projections are written out in numpy here."""

from dataclasses import replace

import numpy as np
import pytest
import scene
import torch

from shared.clip import AnnotatedClip, Depth
from train import sample


def _project(points: np.ndarray, world_from_cam: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    rotation, center = world_from_cam[:3, :3], world_from_cam[:3, 3]
    seen = (points - center) @ rotation
    return seen[..., :2] / seen[..., 2:] * intrinsics[:2] + intrinsics[2:]


def _centers(height: int, width: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)


def _without(clip: AnnotatedClip, *slots: str) -> AnnotatedClip:
    return replace(clip, **dict.fromkeys(slots))


def test_at_its_own_size_nothing_is_resampled():
    clip = scene.tiny("orbit")
    found = sample.from_clip(clip, 9, 48, 64)
    assert np.array_equal(found.rgb, clip.rgb)
    assert np.array_equal(found.depth, clip.depth.z)
    assert np.allclose(found.key_depth * found.scale, clip.depth.z[::4], rtol=1e-6)
    assert np.array_equal(found.flow, clip.flow.forward)
    assert np.allclose(found.intrinsics, clip.cameras.intrinsics[::4])
    assert np.allclose(found.scene_flow[:-1] * found.scale, clip.motion.key_scene_flow, atol=1e-5)
    assert not found.scene_flow_valid[-1].any()


def test_the_mean_point_is_one_unit_away():
    found = sample.from_clip(scene.tiny("handheld"), 9, 48, 64)
    assert found.points[found.key_valid].norm(dim=-1).mean() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("height", "width", "start"), [(48, 64, 0), (32, 64, 0), (48, 48, 4), (80, 96, 0)])
def test_points_cameras_flow_and_scene_flow_agree_at_any_size(height, width, start):
    found = sample.from_clip(scene.tiny("many_moving", frames=17), 9, height, width, start=start)
    lens, pose = found.intrinsics.numpy(), found.world_from_cam.double().numpy()
    assert np.allclose(pose[0], np.eye(4))
    for k in range(2):
        here = _project(found.points[k].numpy(), pose[k], lens[k])
        assert np.abs(here - _centers(height, width)).max() < 0.01
        moved = (found.points[k] + found.scene_flow[k]).numpy()
        error = np.abs(_project(moved, pose[k + 1], lens[k + 1]) - here - found.key_flow[k].numpy())
        limit = 0.01 if (height, width) == (48, 64) else 0.6  # a nearest pixel is up to half a pixel aside
        assert np.quantile(error, 0.9) < limit


def test_a_resized_picture_shows_the_same():
    clip = scene.tiny("static")
    small = sample.from_clip(clip, 9, 32, 64).rgb
    assert torch.equal(small, torch.tensor(clip.rgb)[:, 8:40])
    large = sample.from_clip(clip, 9, 96, 128).rgb.float()
    back = large.unflatten(1, (48, 2)).unflatten(3, (64, 2)).mean((2, 4))
    assert (back - torch.tensor(clip.rgb)).abs().mean() < 6


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((10, 48, 64), "9x48x64"),
        ((45, 48, 64), "49x48x64"),
        ((5, 48, 64), "9x48x64"),
        ((9, 48, 50), "9x48x48"),
        ((49, 240, 360), "49x240x368"),
    ],
)
def test_illegal_sizes_are_refused_with_the_nearest_legal_one(size, nearest):
    with pytest.raises(ValueError, match=f"nearest is {nearest}$"):
        sample.check_size(*size)


def test_a_window_beyond_the_clip_is_refused():
    with pytest.raises(ValueError, match="9 frames from frame 4"):
        sample.from_clip(scene.tiny("static"), 9, 48, 64, start=4)


def test_what_is_missing_is_flagged_and_finite():
    clip = scene.tiny("orbit")
    bare = sample.from_clip(_without(clip, "depth", "cameras", "flow", "key_flow", "motion"), 9, 48, 64)
    flags = ("has_depth", "has_cameras", "has_flow", "has_key_flow", "has_motion")
    assert not any(getattr(bare, flag) for flag in flags)
    full = sample.from_clip(clip, 9, 48, 64)
    assert all(getattr(full, flag) for flag in flags)
    batch = sample.collate([bare, full, sample.placeholder(9, 48, 64, id="torn")])
    assert batch.weight.tolist() == [1, 1, 0]
    values = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert all(torch.isfinite(value).all() for value in values)
    assert batch.key_valid.flatten(1).any(1).tolist() == [False, True, False]


def test_a_camera_that_only_turns_has_no_depth_and_unit_scale():
    clip = scene.tiny("pure_rotation")
    nowhere = np.zeros_like(clip.depth.z)
    clip = replace(
        clip, depth=Depth(z=nowhere, valid=nowhere > 0, metric=False, source="x"), motion=None, key_flow=None
    )
    found = sample.from_clip(clip, 9, 48, 64)
    assert found.scale == 1
    assert not found.has_depth
    assert found.has_cameras


def test_the_sky_is_no_depth():
    clip = scene.tiny("static")
    sky = np.zeros(clip.shape, bool)
    sky[:, :10] = True
    found = sample.from_clip(replace(clip, motion=replace(clip.motion, sky=sky)), 9, 48, 64)
    assert not found.depth_valid[:, :10].any()
    assert not found.key_valid[:, :10].any()
    assert found.depth_valid[:, 10:].all()


def test_a_batch_has_one_size():
    with pytest.raises(ValueError, match="expected one size"):
        sample.collate([sample.placeholder(9, 48, 64, id="a"), sample.placeholder(9, 64, 64, id="b")])
