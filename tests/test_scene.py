"""The scene's truth, checked by the pictures it renders and by sums worked out here."""

import time

import cv2
import numpy as np
import pytest
import scene

SMALL = {"frames": 9, "height": 96, "width": 128, "focal": 120.0}


def color_at_end(rgb: np.ndarray, flow: np.ndarray, stride: int = 1) -> np.ndarray:
    """Mean absolute 8-bit difference between each pixel and the color where its flow ends."""
    height, width = rgb.shape[1:3]
    u, v = np.meshgrid(np.arange(width), np.arange(height), indexing="xy")  # cv2 counts pixel centers from 0
    steps = []
    for pair, lead in enumerate(flow):
        this, later = rgb[pair * stride], rgb[(pair + 1) * stride]
        found = cv2.remap(
            later.astype(np.float32),
            (u + lead[..., 0]).astype(np.float32),
            (v + lead[..., 1]).astype(np.float32),
            cv2.INTER_CUBIC,
        )
        steps.append(np.abs(found - this).mean(-1))
    return np.stack(steps)


def median_step(kind: str, wrong_by_px: float = 0.0, size: dict = SMALL) -> float:
    clip, seen = scene.clip(kind, **size), scene.visible(kind, **size)
    return float(np.median(color_at_end(clip.rgb, clip.flow.forward + np.float32(wrong_by_px))[seen]))


@pytest.mark.parametrize("kind", scene.KINDS)
def test_flow_ends_on_the_same_color(kind: str) -> None:
    true, wrong = median_step(kind), median_step(kind, wrong_by_px=0.5)
    assert true < (0.6 if kind == "low_texture" else 3.0)
    assert wrong > 2.5 * true


def test_flow_ends_on_the_same_color_at_full_size() -> None:
    size = {"frames": 3, "height": 240, "width": 320, "focal": 300.0}
    assert median_step("orbit", size=size) < 1.2
    assert median_step("orbit", 0.5, size=size) > 5


@pytest.mark.parametrize("kind", ["orbit", "many_moving", "handheld"])
def test_key_flow_and_backward_flow_too(kind: str) -> None:
    clip = scene.clip(kind, **SMALL)
    seen = scene.visible(kind, stride=4, **SMALL)
    assert np.median(color_at_end(clip.rgb, clip.key_flow.forward, 4)[seen]) < 3
    reverse = color_at_end(clip.rgb[::-1], clip.flow.backward[::-1])
    assert np.median(reverse) < 2.5


@pytest.mark.parametrize("kind", ["lateral", "orbit", "dolly", "handheld", "pure_rotation"])
def test_still_points_land_on_the_next_depth(kind: str) -> None:
    """A still pixel, lifted by depth and pose and seen from the next camera, is where flow says, at that camera's depth."""
    clip = scene.clip(kind, **SMALL)
    height, width = clip.shape[1:]
    fx, fy, cx, cy = clip.cameras.intrinsics[0]
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5, indexing="xy")
    for t in range(clip.shape[0] - 1):
        z = clip.depth.z[t].astype(np.float64)
        p_cam = np.stack(((u - cx) / fx * z, (v - cy) / fy * z, z, np.ones_like(z)), -1)
        here, then = clip.cameras.world_from_cam[t], clip.cameras.world_from_cam[t + 1]
        x, y, depth, _ = np.moveaxis(p_cam @ (np.linalg.inv(then) @ here).T, -1, 0)
        flow = np.stack((fx * x / depth + cx - u, fy * y / depth + cy - v), -1)
        still = ~clip.motion.dynamic[t]
        assert np.abs(flow - clip.flow.forward[t])[still].max() < 1e-3


@pytest.mark.parametrize("kind", ["orbit", "many_moving", "follow"])
def test_movers_land_where_scene_flow_takes_them(kind: str) -> None:
    clip = scene.clip(kind, **SMALL)
    points = clip.pointmap()  # of the code under test; what it must agree with is rendered
    for flow, scene_flow, stride in (
        (clip.flow, clip.motion.scene_flow, 1),
        (clip.key_flow, clip.motion.key_scene_flow, 4),
    ):
        for pair in range(len(scene_flow)):
            t = pair * stride
            cam_from_world = np.linalg.inv(clip.cameras.world_from_cam[t + stride])
            landed = points[t] + scene_flow[pair]
            x, y, z = np.moveaxis(landed @ cam_from_world[:3, :3].T + cam_from_world[:3, 3], -1, 0)
            fx, fy, cx, cy = clip.cameras.intrinsics[0]
            ends = np.stack((fx * x / z + cx, fy * y / z + cy), -1)
            height, width = z.shape
            u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5, indexing="xy")
            assert np.abs(ends - np.stack((u, v), -1) - flow.forward[pair]).max() < 2e-3


def test_still_points_do_not_move() -> None:
    clip = scene.clip("many_moving", **SMALL)
    still = ~clip.motion.dynamic[:-1]
    assert (clip.motion.scene_flow[still] == 0).all()
    assert (np.abs(clip.motion.scene_flow[~still]).max(-1) > 0).mean() > 0.999


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("many_moving", 0.42, 0.52), ("lateral", 0.1, 0.2), ("follow", 0.1, 0.2)]
)
def test_share_of_moving_pixels(kind: str, low: float, high: float) -> None:
    size = {"frames": 49, "height": 60, "width": 80, "focal": 75.0}
    assert low < scene.clip(kind, **size).motion.dynamic.mean() < high


def test_cameras_move_as_named() -> None:
    def rigid(kind: str) -> np.ndarray:
        return scene.clip(kind, frames=17, height=24, width=32, focal=30.0).cameras.world_from_cam

    assert (rigid("static") == np.eye(4)).all()
    assert np.abs(rigid("pure_rotation")[:, :3, 3]).max() < 1e-12
    assert np.abs(rigid("pure_rotation")[-1, :3, :3] - np.eye(3)).max() > 0.05
    along = rigid("lateral")[:, :3, 3]
    assert along[-1, 0] > 0.4
    assert np.abs(along[:, 1:]).max() < 1e-12
    assert rigid("dolly")[-1, 2, 3] > 0.4


def test_planar_is_one_plane_and_the_mover() -> None:
    clip = scene.clip("planar", **SMALL)
    still = ~clip.motion.dynamic
    points = clip.pointmap()[still].astype(np.float64)
    plane, *_ = np.linalg.lstsq(points, np.ones(len(points)), rcond=None)
    assert np.abs(points @ plane - 1).max() < 1e-5


def test_same_seed_same_clip_and_other_seed_other_clip() -> None:
    first = scene.tiny("handheld")
    scene.clip.cache_clear()
    assert (scene.tiny("handheld").rgb == first.rgb).all()
    assert (scene.tiny("handheld", seed=1).rgb != first.rgb).mean() > 0.5


def test_tiny_is_fast() -> None:
    scene.clip.cache_clear()
    begin = time.process_time()
    scene.tiny()
    assert time.process_time() - begin < 1.0  # about 0.15 s where nothing else runs


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of lateral"):
        scene.tiny("spiral")
