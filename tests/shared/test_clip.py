"""What does not agree cannot be constructed, and says in one sentence why."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shared.clip import AnnotatedClip, Cameras, Clip, Depth, Flow, Motion, Points, key_frames

MakeClip = Callable[..., AnnotatedClip]


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("slot", "change", "sentence"),
    [
        (
            "depth",
            {"z": (4, 24, 32), "valid": (4, 24, 32)},
            "a1b2c3d4: depth is (4, 24, 32), the frames ask for (9, 24, 32)",
        ),
        (
            "depth",
            {"z": (9, 24, 31), "valid": (9, 24, 31)},
            "a1b2c3d4: depth is (9, 24, 31), the frames ask for (9, 24, 32)",
        ),
        ("flow", {"forward": (9, 24, 32, 2), "backward": (9, 24, 32, 2), "uncertainty": None}, "a1b2c3d4: flow is (9,"),
        ("flow", {"stride": 4}, "a1b2c3d4: flow has stride 4, expected 1"),
        ("key_flow", {"stride": 1}, "a1b2c3d4: key flow has stride 1, expected 4"),
        (
            "key_flow",
            {"forward": (3, 24, 32, 2), "backward": (3, 24, 32, 2), "uncertainty": None},
            "a1b2c3d4: key flow is (3,",
        ),
        (
            "cameras",
            {"world_from_cam": 8, "intrinsics": 8},
            "a1b2c3d4: cameras is (8, 4, 4), the frames ask for (9, 4, 4)",
        ),
        ("motion", {"dynamic": (8, 24, 32), "sky": None, "instances": None}, "a1b2c3d4: dynamic is (8, 24, 32)"),
        (
            "motion",
            {"scene_flow": (9, 24, 32, 3), "scene_flow_valid": (9, 24, 32)},
            "a1b2c3d4: scene flow is (9, 24, 32, 3)",
        ),
        (
            "motion",
            {"key_scene_flow": (1, 24, 32, 3), "key_scene_flow_valid": (1, 24, 32)},
            "a1b2c3d4: key scene flow is (1,",
        ),
        ("tracks", {"p_world": 8, "visible": 8, "valid": 8}, "a1b2c3d4: tracks is (8, 11, 3), the frames ask for (9,"),
    ],
)
def test_slots_agree_with_the_frames(make_clip: MakeClip, slot: str, change: dict[str, Any], sentence: str) -> None:
    clip = make_clip()
    part = getattr(clip, slot)

    def resized(name: str, size: Any) -> Any:
        array = getattr(part, name)
        if isinstance(size, tuple):
            return np.zeros(size, array.dtype)
        return array[:size] if isinstance(array, np.ndarray) and isinstance(size, int) else size

    wrong = dataclasses.replace(part, **{name: resized(name, size) for name, size in change.items()})
    assert sentence in refused(lambda: clip.with_(**{slot: wrong}))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_that_is_not_finite_gets_in(make_clip: MakeClip, bad: float) -> None:
    clip = make_clip()
    assert clip.depth is not None
    assert clip.flow is not None
    assert clip.cameras is not None
    assert clip.motion is not None
    assert clip.tracks is not None

    def spoiled(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[5] = bad
        return array

    replace = dataclasses.replace
    depth, flow, cameras, motion, tracks = clip.depth, clip.flow, clip.cameras, clip.motion, clip.tracks
    points = Points(p_cam=np.ones((9, 24, 32, 3), np.float32), valid=depth.valid, metric=True, source="x")
    for name, act in {
        "depth": lambda: replace(depth, z=spoiled(depth.z)),
        "points": lambda: replace(points, p_cam=spoiled(points.p_cam)),
        "flow": lambda: replace(flow, backward=spoiled(flow.backward)),
        "uncertainty": lambda: replace(flow, uncertainty=spoiled(np.ones((8, 24, 32), np.float32))),
        "cameras": lambda: replace(cameras, world_from_cam=spoiled(cameras.world_from_cam)),
        "intrinsics": lambda: replace(cameras, intrinsics=spoiled(cameras.intrinsics)),
        "scene flow": lambda: replace(motion, scene_flow=spoiled(motion.scene_flow)),
        "tracks": lambda: replace(tracks, p_world=spoiled(tracks.p_world)),
        "key scene flow": lambda: replace(motion, key_scene_flow=spoiled(np.ones((2, 24, 32, 3), np.float32))),
    }.items():
        assert refused(act) == f"{name} holds 1 values that are not finite"


def test_depth_is_above_zero_where_valid() -> None:
    z = np.ones((1, 2, 2), np.float32)
    z[0, 0, 0] = 0
    Depth(z=z, valid=z > 0, metric=True, source="x")
    sentence = "depth from x is 0 at a valid pixel, expected above 0"
    assert refused(lambda: Depth(z=z, valid=np.ones((1, 2, 2), bool), metric=True, source="x")) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda pose: pose.__setitem__((0, 0, 0), -1), "hold no rotation"),  # a mirror
        (lambda pose: pose.__setitem__((0, 0, 1), 0.1), "hold no rotation"),  # a shear
        (lambda pose: pose.__setitem__((0, slice(3), slice(3)), 2 * np.eye(3)), "hold no rotation"),  # a scale
        (lambda pose: pose.__setitem__((0, 3, 0), 1), "the last row of a pose is not (0, 0, 0, 1)"),
    ],
)
def test_cameras_are_rigid(change: Callable[[np.ndarray], None], sentence: str) -> None:
    pose = np.eye(4)[None].copy()
    change(pose)
    assert sentence in refused(
        lambda: Cameras(world_from_cam=pose, intrinsics=np.ones((1, 4)), metric=False, source="x")
    )


def test_masks_and_frame_numbers_agree_too() -> None:
    """Also without the tests' run-time check of shapes, hence a process of its own."""
    code = """
import numpy as np
from dataclasses import replace
from shared.clip import AnnotatedClip, Depth, Flow, Motion, Tracks
clip = AnnotatedClip(id="a", rgb=np.zeros((5, 4, 6, 3), np.uint8), fps=8.0, source="s", frames=np.arange(5))
z, valid = np.ones((5, 4, 6), np.float32), np.ones((5, 4, 1), bool)
flow = Flow(forward=np.zeros((4, 4, 6, 2), np.float32), backward=np.zeros((3, 4, 6, 2), np.float32), source="x")
motion = Motion(dynamic=np.zeros((5, 4, 6), bool), scene_flow=np.zeros((4, 4, 6, 3), np.float32),
                scene_flow_valid=np.zeros((5, 4, 6), bool), source="x")
seen, moved = np.ones((5, 7), bool), np.zeros((5, 7, 3), np.float32)
for act in (lambda: Depth(z=z, valid=valid, metric=True, source='x'),
            lambda: Tracks(p_world=moved, visible=seen, valid=seen[:4], source='x'),
            lambda: clip.with_(flow=flow), lambda: clip.with_(motion=motion),
            lambda: replace(clip, frames=np.arange(4))):
    try:
        act()
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "depth from x: valid is (5, 4, 1), z is (5, 4, 6)",
        "tracks from x: visible is (5, 7), valid is (4, 7), p_world is (5, 7, 3)",
        "a: backward flow is (3, 4, 6, 2), the frames ask for (4, 4, 6, 2)",
        "a: scene_flow_valid is (5, 4, 6), the frames ask for (4, 4, 6)",
        "a: frame numbers is (4,), the frames ask for (5,)",
    ]


def test_an_id_survives_as_a_member_name(make_clip: MakeClip) -> None:
    assert "expected a name without a dot" in refused(lambda: make_clip("a.b"))
    assert "expected a name without a dot" in refused(lambda: make_clip(""))


def test_slots_are_filled_and_scores_added(make_clip: MakeClip) -> None:
    clip = make_clip()
    bare = Clip(**{f.name: getattr(clip, f.name) for f in dataclasses.fields(Clip)})
    empty = AnnotatedClip.of(bare)
    assert (empty.depth, empty.flow, dict(empty.scores)) == (None, None, {})
    full = empty.with_(scores={"a": 1.0}, depth=clip.depth).with_(scores={"b": 2.0}, flow=clip.flow)
    assert dict(full.scores) == {"a": 1.0, "b": 2.0}
    assert full.depth is clip.depth
    assert full.flow is clip.flow
    assert empty.depth is None


@pytest.mark.parametrize(("frames", "keys"), [(1, [0]), (4, [0]), (5, [0, 4]), (49, list(range(0, 49, 4)))])
def test_key_frames(frames: int, keys: list[int]) -> None:
    assert key_frames(frames) == keys


def test_a_pointmap_needs_what_it_is_made_of(make_clip: MakeClip) -> None:
    clip = make_clip()
    assert "a1b2c3d4: a pointmap asks for cameras" in refused(lambda: clip.with_(cameras=None).pointmap())
    assert "a1b2c3d4: a pointmap asks for cameras" in refused(lambda: clip.with_(depth=None).pointmap())


def test_a_pointmap_by_hand(make_clip: MakeClip) -> None:
    clip = make_clip()
    assert clip.depth is not None
    assert clip.cameras is not None
    p_world = clip.pointmap()
    assert (p_world[~clip.depth.valid] == 0).all()
    t, row, column = 5, 20, 7
    fx, fy, cx, cy = clip.cameras.intrinsics[t]
    z = clip.depth.z[t, row, column]
    p_cam = np.array([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z])
    pose = clip.cameras.world_from_cam[t]
    np.testing.assert_allclose(p_world[t, row, column], pose[:3, :3] @ p_cam + pose[:3, 3], rtol=1e-6)


def test_points_of_their_own_go_before_depth(make_clip: MakeClip) -> None:
    clip = make_clip()
    assert clip.depth is not None
    assert clip.cameras is not None
    points = Points(p_cam=np.ones((9, 24, 32, 3), np.float32), valid=clip.depth.valid, metric=True, source="x")
    expected = clip.cameras.world_from_cam[4, :3] @ (1, 1, 1, 1)
    np.testing.assert_allclose(clip.with_(points=points).pointmap()[4, 20, 7], expected, rtol=1e-6)


def test_one_frame_has_no_pairs(make_clip: MakeClip) -> None:
    clip = make_clip(frames=1)
    assert clip.flow is not None
    assert clip.motion is not None
    assert clip.flow.forward.shape == (0, 24, 32, 2)
    assert clip.motion.scene_flow.shape == (0, 24, 32, 3)
    assert Flow(**vars(clip.flow)).stride == 1
    assert Motion(**vars(clip.motion)).source == "formula"
