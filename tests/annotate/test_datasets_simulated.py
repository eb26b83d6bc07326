"""Simulated scenes: their truth held against their own pictures, and against what a wrong pose would make of it."""

import importlib.util

import cv2
import numpy as np
import pytest
from miniatures import imported

from annotate.datasets import importing, selfcheck
from annotate.datasets.simulated import Mujoco, MujocoRgb
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
    scene = SMALL.open("mujoco://000001")
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
