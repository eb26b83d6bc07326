"""Cameras from flow, held against worlds we know."""

import numpy as np
import pytest
import scene

from annotate.cameras.flow_ba import FlowBA
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from shared.clip import AnnotatedClip


def bare(clip: AnnotatedClip) -> AnnotatedClip:
    """Only the pixels."""
    return AnnotatedClip(id=clip.id, rgb=clip.rgb, fps=clip.fps, source=clip.source, frames=clip.frames)


def test_a_still_camera_is_called_still() -> None:
    clip = bare(scene.clip("static", frames=9, height=90, width=120, focal=112.0))
    cameras = FlowBA().load()(clip, PairFlows(clip.rgb, Dis().load())).cameras
    assert cameras is not None
    assert cameras.degenerate == "static_camera"
    assert (cameras.world_from_cam == np.eye(4)).all()


@pytest.mark.slow
def test_orbit() -> None:
    truth = scene.clip("orbit", frames=24, height=180, width=240, focal=225.0)
    clip = bare(truth)
    cameras = FlowBA().load()(clip, PairFlows(clip.rgb, Dis().load())).cameras
    assert cameras is not None
    assert truth.cameras is not None
    assert cameras.degenerate is None
    assert abs(cameras.intrinsics[0, 0] / truth.cameras.intrinsics[0, 0] - 1) < 0.06
