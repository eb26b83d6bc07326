"""Scenes that contradict themselves as a wrong reading of their files would make them: refused with the figure, and named."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from jaxtyping import Int64
from miniatures import drawing

from annotate.datasets import given_flow, movers, selfcheck
from annotate.datasets.dataset import Facts, Field, Frame, Scene, Tracks


class Exact(Scene):
    """The true scene, with one thing planted."""

    def __init__(self, kind: str = "orbit", change: Callable[[Frame], Frame] | None = None, **flow: bool) -> None:
        self._true, self._change, self._flow = drawing.true(kind, frames=17), change or (lambda frame: frame), flow
        shots = (np.arange(len(self._true.z)),)
        size = {"height": drawing.HEIGHT, "width": drawing.WIDTH}
        self.facts = Facts(uri="exact://scene", licence="", fps=8.0, shots=shots, **size)

    def frame(self, number: int) -> Frame:
        true = self._true
        return self._change(
            Frame(
                rgb=true.clip.rgb[number],
                z=true.z[number].astype(np.float32),
                instances=true.instances[number],
                world_from_cam=true.world_from_cam[number],
                intrinsics=true.clip.cameras.intrinsics[number],
            )
        )

    def flow(self, start: int, end: int) -> Field | None:
        values = self._true.clip.flow.forward[start]
        if self._flow.get("swapped"):
            values = np.ascontiguousarray(values[..., ::-1])
        return Field(values=-values if self._flow.get("negated") else values, valid=np.ones(values.shape[:2], bool))

    def tracks(self, numbers: Int64[np.ndarray, " T"]) -> Tracks | None:
        p_world, visible, _ = drawing.tracks(self._true)
        return Tracks(p_world=p_world[numbers], visible=visible[numbers], valid=np.ones(visible[numbers].shape, bool))


class Untracked(Exact):
    """Without tracks, which would catch most errors before the cameras do."""

    def tracks(self, numbers: Int64[np.ndarray, " T"]) -> Tracks | None:
        return None


def _times(factor: float) -> Callable[[Frame], Frame]:
    return lambda frame: replace(frame, z=(frame.z * np.float32(factor)))


def _rays(frame: Frame) -> Frame:
    slant = np.linalg.norm(drawing.true("orbit", frames=17).rays(), axis=-1)
    return replace(frame, z=(frame.z * slant).astype(np.float32))


def _inverted(frame: Frame) -> Frame:
    return replace(frame, world_from_cam=np.linalg.inv(frame.world_from_cam))


@pytest.mark.parametrize("kind", ["orbit", "lateral", "dolly", "handheld", "many_moving", "static", "pure_rotation"])
def test_a_true_scene_passes(kind: str) -> None:
    scores = selfcheck.check(Exact(kind))
    assert scores["selfcheck_reprojection"] < 0.003
    assert scores["selfcheck_tracks"] < 0.005
    assert scores["selfcheck_flow_px"] < 1e-3
    assert scores["selfcheck_half_pixel_px"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_times(10), "ten times too large"),
        (_times(0.1), "ten times too small"),
        (_times(100), "a hundred times too large"),
        (_rays, "the length of rays"),
        (_inverted, "poses are inverted"),
    ],
)
def test_another_reading_that_fits_is_named(change: Callable[[Frame], Frame], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        selfcheck.check(Untracked(change=change))
    figures = [float(figure) for figure in re.findall(r"(\d+\.\d+)%", str(refusal.value))]
    assert figures[0] > 1.0
    assert figures[1] < 0.4


@pytest.mark.parametrize("kind", ["dolly", "many_moving"])
@pytest.mark.parametrize("change", [_times(10), _times(0.1), _times(100), _rays, _inverted])
def test_wrong_readings_are_refused_where_nothing_tells_what_moves(kind: str, change: Callable[[Frame], Frame]) -> None:
    """That the truth passes says `test_a_close_up_of_movers_is_not_refused`."""
    with pytest.raises(ValueError, match="away from"):
        selfcheck.check(Untracked(kind, lambda frame: replace(change(frame), instances=None)))


def test_depth_that_tracks_contradict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth is 10\.\d% away from its tracks"):
        selfcheck.check(Exact("static", change=_times(1.1)))


@pytest.mark.parametrize("error", ["swapped", "negated"])
def test_flow_that_depth_and_cameras_contradict_is_refused(error: str) -> None:
    with pytest.raises(ValueError, match=r"flow is \d+\.\d+ px away"):
        selfcheck.check(Untracked("lateral", **{error: True}))


def test_what_stands_still_is_told_from_what_moves_by_depth_and_cameras_alone() -> None:
    """A wall with an instance number is found again where it was; a box that moves is not."""
    clip = drawing.true("orbit", frames=9).clip
    ids = clip.motion.instances.copy()
    ids[(clip.pointmap()[..., 0] < -1) & (ids == 0)] = 7
    assert (ids == 7).any()
    moving = movers.moving(clip, [None] * 9, [], ids, None, given_flow.Given([], [], [], []), static=False)
    np.testing.assert_array_equal(moving, clip.motion.dynamic)
