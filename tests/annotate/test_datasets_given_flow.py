"""A data set's own flow: between key frames it is followed over those between, and truth decides what moves where it is there."""

from dataclasses import replace

import numpy as np
import pytest
import scene
from miniatures import drawing

from annotate import dynamic
from annotate.datasets import given_flow
from annotate.datasets.dataset import Field
from annotate.flow.dis import Dis
from shared.clip import AnnotatedClip, Flow

SIZE = {"frames": 9, "height": 96, "width": 128}


def _fields(flow: Flow, *, ahead: bool = True) -> list[Field]:
    fields = flow.forward if ahead else flow.backward
    return [Field(values=field, valid=np.ones(field.shape[:2], bool)) for field in fields]


def _bare(clip: AnnotatedClip) -> AnnotatedClip:
    return replace(clip, flow=None, key_flow=None, motion=None)


@pytest.mark.parametrize("kind", ["lateral", "many_moving"])
@pytest.mark.parametrize("ahead", [True, False])
def test_flow_between_key_frames_is_that_of_the_frames_between(kind: str, ahead: bool) -> None:
    clip = drawing.true(kind, **SIZE).clip
    given = given_flow.Given(_fields(clip.flow), _fields(clip.flow, ahead=False), [None] * 2, [None] * 2)
    done = given.completed(clip, static=False).laid_into(_bare(clip), "x").key_flow
    true = clip.key_flow.forward if ahead else clip.key_flow.backward
    found = done.forward if ahead else done.backward
    known = done.uncertainty == 0
    error = np.linalg.norm(found - true, axis=-1)
    assert done.source == "x"
    if ahead:
        assert known.mean() > 0.7
        assert np.percentile(error[known], 99) < 0.15
        assert np.percentile(error[known & (clip.motion.instances[0:8:4] > 0)], 95) < 0.1
        assert not known[:, 1:-1, 1:-1][(error > 2)[:, 1:-1, 1:-1]].any()
    else:
        assert np.median(error) < 0.02


def test_flow_that_one_frame_lacks_is_not_strung() -> None:
    clip = drawing.true(**SIZE).clip
    forward = _fields(clip.flow)
    given = given_flow.Given([*forward[:3], None, *forward[4:]], [None] * 8, [None] * 2, [None] * 2)
    done = given.completed(clip, static=False).laid_into(_bare(clip), "x")
    assert done.flow is None
    assert done.key_flow is None


def test_what_is_hidden_keeps_its_flow_and_is_uncertain() -> None:
    clip = drawing.true(**SIZE).clip
    hidden = np.zeros(clip.shape[1:], bool)
    hidden[10:20, 30:40] = True
    forward = [replace(field, hidden=hidden) for field in _fields(clip.flow)]
    given = given_flow.Given(forward, _fields(clip.flow, ahead=False), [None] * 2, [None] * 2)
    done = given.completed(clip, static=False).laid_into(_bare(clip), "x")
    np.testing.assert_array_equal(done.flow.forward, clip.flow.forward)
    np.testing.assert_array_equal(done.flow.uncertainty > 0, np.broadcast_to(hidden, (8, *hidden.shape)))
    assert (done.key_flow.uncertainty[:, 10:20, 30:40] > 0).all()


def test_a_still_world_needs_no_flow() -> None:
    true = drawing.true("dolly", **SIZE).clip
    nothing = given_flow.Given([None] * 8, [None] * 8, [None] * 2, [None] * 2)
    done, background = (
        nothing.completed(true, static=True).laid_into(_bare(true), "x"),
        true.motion.instances == 0,
    )
    for found, expected, here in (
        (done.flow.forward, true.flow.forward, background[:-1]),
        (done.flow.backward, true.flow.backward, background[1:]),
        (done.key_flow.forward, true.key_flow.forward, background[0:8:4]),
        (done.key_flow.backward, true.key_flow.backward, background[4:9:4]),
    ):
        assert np.abs(found - expected)[here].max() < 1e-3


@pytest.mark.parametrize(("kind", "least"), [("orbit", 0.8), ("many_moving", 0.55)])
def test_true_depth_and_cameras_say_what_moves(kind: str, least: float) -> None:
    clip = scene.clip(kind, frames=9, height=120, width=184)
    mask = dynamic.decide(_bare(clip), Dis().load(), 384, 1.5).motion.dynamic
    assert (mask & clip.motion.dynamic).sum() > least * (mask | clip.motion.dynamic).sum()


def test_a_point_that_another_frame_sees_through_has_moved() -> None:
    clip = drawing.true("many_moving", **SIZE).clip
    gone = dynamic.vanished(clip)
    assert (gone & ~clip.motion.dynamic).sum() < 0.01 * gone.sum()
    assert (gone & clip.motion.dynamic).sum() > 0.3 * clip.motion.dynamic.sum()
    assert not dynamic.vanished(scene.clip("pure_rotation", **SIZE))[
        ~scene.clip("pure_rotation", **SIZE).motion.dynamic
    ].any()
