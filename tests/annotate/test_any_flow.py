"""Another flow network changes how accurate labels are, and nothing else: SEA-RAFT's architecture at filled weights beside DIS."""

import json

import pytest
import scene

from annotate import flow_slots
from annotate.annotator import FlowModel
from annotate.cameras import degenerate
from annotate.cameras.flow_ba import FlowBA
from annotate.depth.multiview import Multiview
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from annotate.flow.sea_raft import Loaded, SeaRaft
from annotate.motion import Motion
from annotate.networks.sea_raft import SeaRAFT
from shared import members
from shared.clip import AnnotatedClip
from shared.store import Store
from tests import filling

FLAGS = {
    "static_camera", "rotation_only", "low_parallax", "focal_weak", "poor_fit", "dynamic_dominated", "flow_unreliable",
}  # fmt: skip


def labeled(model: FlowModel) -> AnnotatedClip:
    truth = scene.clip("orbit", frames=9, height=128, width=160, focal=150.0)
    clip = AnnotatedClip(id="any", rgb=truth.rgb, fps=truth.fps, source=truth.source, frames=truth.frames)
    flow = PairFlows.of(clip.rgb, model)
    clip = flow_slots.fill_flow(clip, flow)
    for annotate in (FlowBA().load(), Multiview().load(), Motion().load()):
        clip = annotate(clip, flow)
    return clip


@pytest.fixture(scope="module")
def pair() -> tuple[AnnotatedClip, AnnotatedClip]:
    """(by DIS, by SEA-RAFT that knows nothing)."""
    net = SeaRAFT("S")
    return labeled(Dis().load()), labeled(Loaded(SeaRaft(variant="S"), net.load_checkpoint(filling.state(net))))


def test_the_same_members_of_the_same_shapes(pair: tuple[AnnotatedClip, AnnotatedClip]) -> None:
    classical, neural = (members.encode(clip, Store()) for clip in pair)
    by_network_only = {"flow.uncertainty.wrz", "key_flow.uncertainty.wrz"}
    assert set(neural) - by_network_only == set(classical)
    assert by_network_only <= set(neural)
    few, many = (json.loads(clip["json"])["shapes"] for clip in (classical, neural))
    assert {name: many[name] for name in few} == few
    assert members.decode("any", neural).shape == (9, 128, 160)


def test_what_is_told_of_cameras_and_motion_is_of_the_same_kinds(pair: tuple[AnnotatedClip, AnnotatedClip]) -> None:
    for clip, source in zip(pair, ("dis", "sea-raft-s"), strict=True):
        assert clip.cameras is not None
        assert clip.motion is not None
        assert source in clip.cameras.source
        assert source in clip.motion.source
        assert set((clip.cameras.degenerate or "").split(",")) - {""} <= FLAGS
        assert not clip.motion.scene_flow[~clip.motion.dynamic[:-1]].any()


def test_accuracy_is_what_changes(pair: tuple[AnnotatedClip, AnnotatedClip]) -> None:
    classical, neural = pair
    assert classical.cameras is not None
    assert neural.cameras is not None
    assert not degenerate.is_unusable(classical.cameras.degenerate)
    assert degenerate.is_unusable(
        neural.cameras.degenerate
    )  # flow by weights that know nothing must not pass for cameras
