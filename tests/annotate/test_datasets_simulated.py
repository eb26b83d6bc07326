"""Simulated scenes: their truth held against their own pictures, and against what a wrong pose would make of it."""

import importlib.util
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from miniatures import imported

from annotate.datasets import given_flow, importing, poses, selfcheck
from annotate.datasets.dataset import Frame
from annotate.datasets.simulated import Mujoco, MujocoRgb, met
from shared.clip import AnnotatedClip

SMALL = Mujoco(height=96, width=128, frames=12)


@pytest.fixture(scope="module", autouse=True)
def _drawn() -> None:
    """These tests ask for the package and for a way to draw without a screen."""
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("the extra `mujoco` is not installed")
    try:
        SMALL.open("mujoco://000000").frame(0)
    except ValueError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def clip() -> AnnotatedClip:
    scene = SMALL.open("mujoco://000005")
    cut = imported.cut(24.0, frames=9, height=96, width=128)
    (span,) = importing.spans(scene, cut, selfcheck.check(scene))
    return importing.load(scene, span, cut, "mujoco")


def test_all_is_known(clip: AnnotatedClip) -> None:
    assert clip.depth.valid.all()
    assert clip.motion.scene_flow_valid.all()
    assert clip.motion.key_scene_flow_valid.all()
    assert clip.flow.uncertainty is None
    assert 0.01 < clip.motion.dynamic.mean() < 0.7
    assert not clip.motion.scene_flow[~clip.motion.dynamic[:-1]].any()
    assert clip.scores["selfcheck_reprojection"] < 1e-3
    assert clip.rgb.std() > 20


def test_flow_of_key_frames_is_the_truth_too(clip: AnnotatedClip) -> None:
    """Where points end that ride on the world or on a mover, seen by the camera four frames later; and nothing still moves."""
    assert clip.key_flow.source == "mujoco"
    points, cam = clip.pointmap(), clip.cameras
    for q, t in enumerate((0, 4)):
        p_cam = poses.moved(
            np.linalg.inv(cam.world_from_cam[t + 4]), points[t].astype(float) + clip.motion.key_scene_flow[q]
        )
        fx, fy, cx, cy = cam.intrinsics[t + 4]
        there = np.stack((fx * p_cam[..., 0] / p_cam[..., 2] + cx, fy * p_cam[..., 1] / p_cam[..., 2] + cy), -1)
        u, v = np.meshgrid(np.arange(128) + 0.5, np.arange(96) + 0.5)
        off = np.linalg.norm(there - np.stack((u, v), -1) - clip.key_flow.forward[q], axis=-1)[p_cam[..., 2] > 0.3]
        assert np.quantile(off, 0.999) < 0.05, "px"
        assert not clip.motion.key_scene_flow[q][~clip.motion.dynamic[t]].any()


def test_flow_beyond_the_picture_is_bounded() -> None:
    """A point that passes the camera has flow without bound, which no codec keeps; its way out of the picture stays."""
    long, short = (6000.0, 8000.0), (3.0, 4.0)
    found = given_flow.bounded(np.array([[long, short] * 2] * 3, np.float32))  # a picture of 3 x 4
    np.testing.assert_allclose(found[0, 0], (3.0, 4.0), rtol=1e-6)
    np.testing.assert_array_equal(found[0, 1], short)


def test_flow_leads_to_the_same_color(clip: AnnotatedClip) -> None:
    """The picture at the end of the flow looks like the start: far better than with none, and than half a pixel off."""
    u, v = np.meshgrid(np.arange(128, dtype=np.float32), np.arange(96, dtype=np.float32))

    def difference(t: int, shift: float, length: float) -> float:
        to = clip.flow.forward[t] * np.float32(length) + np.float32(shift)
        there = cv2.remap(clip.rgb[t + 1], u + to[..., 0], v + to[..., 1], cv2.INTER_LINEAR)
        return float(np.median(np.abs(there.astype(int) - clip.rgb[t])[8:-8, 8:-8]))

    true, none, off = (
        np.mean([difference(t, s, n) for t in range(8)]) for s, n in ((0.0, 1.0), (0.0, 0.0), (0.5, 1.0))
    )
    assert true < 0.6 * none
    assert true < 0.8 * off


def test_scene_flow_is_what_flow_and_depth_say(clip: AnnotatedClip) -> None:
    """Equation 5 with nearest depth at the target, where both frames show the same body: two ways to one vector."""
    points, errors = clip.pointmap(), []
    for t in range(8):
        row, column = np.nonzero(clip.motion.dynamic[t])
        to = np.floor(np.stack((column, row), 1) + 0.5 + clip.flow.forward[t, row, column]).astype(int)
        inside = ((to >= 0) & (to < (128, 96))).all(1)
        row, column, to = row[inside], column[inside], to[inside]
        same = clip.motion.instances[t + 1, to[:, 1], to[:, 0]] == clip.motion.instances[t, row, column]
        moved = points[t + 1, to[:, 1], to[:, 0]] - points[t, row, column]
        errors.append(np.linalg.norm(moved - clip.motion.scene_flow[t, row, column], axis=1)[same])
    found = np.concatenate(errors)
    assert len(found) > 100
    assert np.median(found) < 0.02, "a pixel at 4 m is 3 cm wide"


def test_cloth_and_jelly_bend_and_their_flow_leads_to_the_same_color(clip: AnnotatedClip) -> None:
    """No rigid motion explains what deforms; the triangle that a ray meets is where the driver drew it; colors ride along."""
    scene = SMALL.open("mujoco://000005")
    bent, drawn, colors = [], [], []
    for number in range(3, 8):
        ahead, frame, there = scene.flow(number, number + 1), scene.frame(number), scene.frame(number + 1)
        moved = scene.scene_flow(number, number + 4, frame)
        scene.frame(number)
        z = scene.drawn_truth()[0]
        for thing in np.unique(frame.instances[frame.instances >= scene.first_soft]):
            where = frame.instances == thing
            if where.sum() < 60:
                continue
            before = clip_points(frame)[where]
            bent.append(unexplained(before, before + moved.values[where]))
            drawn.append(np.abs(z - frame.z)[where])
            row, column = np.nonzero(where)
            to = np.stack((column, row), 1) + ahead.values[where]
            near = there.instances[
                np.clip(np.rint(to[:, 1]).astype(int), 0, 95), np.clip(np.rint(to[:, 0]).astype(int), 0, 127)
            ]
            for scale in (1.0, 0.0):
                at = (np.stack((column, row), 1) + scale * ahead.values[where]).astype(np.float32)
                color = cv2.remap(there.rgb, at[:, :1], at[:, 1:], cv2.INTER_LINEAR)[:, 0]
                colors.append(np.median(np.abs(color.astype(int) - frame.rgb[where])[near == thing]))
    assert max(bent) > 0.01, "meters"
    assert np.concatenate(drawn).max() < 0.005
    assert np.mean(colors[0::2]) < 0.6 * np.mean(colors[1::2])


def clip_points(frame: Frame) -> np.ndarray:
    return poses.moved(frame.world_from_cam, poses.lifted(frame.z, frame.intrinsics))


def unexplained(before: np.ndarray, after: np.ndarray) -> float:
    """RMS distance that the best rigid motion leaves."""
    a, b = before - before.mean(0), after - after.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return float(np.sqrt(((a @ turn - b) ** 2).sum(1).mean()))


def test_a_ray_meets_the_nearest_triangle_where_geometry_says() -> None:
    near = np.array([[-1.0, -1, 2], [3, -1, 2], [-1, 3, 2]])
    far = near * (1, 1, 2)
    where = np.ones((8, 8), bool)
    faces, weights, z = met(np.stack((far, near)), np.array([8.0, 8, 4, 4]), where)
    assert (faces[2:6, 2:6] == 1).all()
    np.testing.assert_allclose(z[2:6, 2:6], 2)
    rays = poses.lifted(np.ones((8, 8), np.float32), np.array([8.0, 8, 4, 4]))
    np.testing.assert_allclose((weights[2:6, 2:6] @ near), 2 * rays[2:6, 2:6], atol=1e-12)
    assert (met(near[None], np.array([8.0, 8, 4, 4]), ~where)[0] == -1).all()


@pytest.mark.parametrize(
    "environment",
    [{"MUJOCO_GL": "bogus"}, {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}],
    ids=["driver", "import"],
)
def test_a_machine_that_cannot_draw_is_told_what_to_install(environment: dict[str, str]) -> None:
    code = "from annotate.datasets.simulated import Mujoco; Mujoco(frames=2).open('mujoco://000000').frame(0)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: mujoco: cannot draw without a screen")
    assert last.endswith("apt install libosmesa6, or libegl1")


def test_the_same_seed_makes_the_same_world_and_others_differ() -> None:
    first, again, other = (SMALL.open(f"mujoco://{seed:06d}").frame(6) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.z, again.z)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    assert (first.z != other.z).mean() > 0.5


def test_pictures_alone_for_annotators_to_be_measured_on() -> None:
    plain = MujocoRgb(height=96, width=128, frames=12)
    assert plain.kind == "mujoco_rgb"
    frame = plain.open("mujoco://000003").frame(6)
    assert frame.z is None
    assert frame.world_from_cam is None
    np.testing.assert_array_equal(frame.rgb, SMALL.open("mujoco://000003").frame(6).rgb)


def test_scenes_are_counted() -> None:
    assert list(Mujoco().scenes("3")) == ["mujoco://000000", "mujoco://000001", "mujoco://000002"]
    assert list(Mujoco().scenes("7-8")) == ["mujoco://000007", "mujoco://000008"]
    with pytest.raises(ValueError, match="expected a number of scenes"):
        Mujoco().scenes("/data/x")
