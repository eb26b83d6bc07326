"""Scene flow by equation 5 against the world's own, and the reasons it is given up."""

from dataclasses import replace

import numpy as np
import pytest
import scene

from annotate import dynamic, flow_slots
from annotate.depth import scale
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from annotate.motion import Motion
from pipelines import truth as truths
from pipelines.evaluate import evaluate_clip
from shared.clip import AnnotatedClip
from shared.clip import Motion as MotionLabels

SIZE = {"frames": 9, "height": 120, "width": 160, "focal": 150.0}


def without_scene_flow(truth: AnnotatedClip, **parts: object) -> AnnotatedClip:
    """The true clip, its scene flow to be found again."""
    assert truth.motion is not None
    empty = np.zeros_like(truth.motion.scene_flow)
    motion = MotionLabels(
        dynamic=truth.motion.dynamic,
        scene_flow=empty,
        scene_flow_valid=np.zeros(empty.shape[:3], bool),
        instances=truth.motion.instances,
        source="truth",
    )
    return truth.with_(motion=replace(motion, **parts))


def found(clip: AnnotatedClip, knobs: Motion | None = None) -> MotionLabels:
    motion = (knobs or Motion()).load()(clip, Dis().load()).motion
    assert motion is not None
    return motion


@pytest.fixture(scope="module")
def truth() -> AnnotatedClip:
    return scene.clip("orbit", **SIZE)


def test_scene_flow_is_the_worlds(truth: AnnotatedClip) -> None:
    motion = found(without_scene_flow(truth))
    assert truth.motion is not None
    moving = motion.dynamic[:-1] & motion.scene_flow_valid
    error = np.linalg.norm(motion.scene_flow - truth.motion.scene_flow, axis=-1)[moving]
    assert np.median(error) < 5e-4  # meters; the box goes 50 mm a frame
    assert np.percentile(error, 95) < 5e-3
    assert moving.sum() > 0.75 * motion.dynamic[:-1].sum()


def test_with_depth_of_movers_their_scene_flow_is_kept() -> None:
    """Truth in other units stands in for a depth network's answer and for estimated cameras; masks are estimated."""
    truth = scene.clip("orbit", frames=16, height=120, width=160, focal=150.0)
    assert truth.depth is not None
    assert truth.cameras is not None
    depth = replace(truth.depth, z=7 * truth.depth.z, metric=False, source="network")
    clip = AnnotatedClip(
        id="orbit",
        rgb=truth.rgb,
        fps=truth.fps,
        source=truth.source,
        frames=truth.frames,
        depth=depth,
        cameras=replace(truth.cameras, metric=False, source="other"),
    )
    seen = evaluate_clip(Motion().load()(clip, Dis().load()), truths.from_clip(truth))
    assert seen["scene_flow.kept"] > 0.6
    assert seen["scene_flow.epe3d"] < 0.02  # meters; the box goes 50 mm a frame
    assert seen["dynamic.iou"] > 0.75


def test_key_scene_flow_too(truth: AnnotatedClip) -> None:
    motion = found(without_scene_flow(truth))
    assert truth.motion is not None
    assert motion.key_scene_flow is not None
    assert motion.key_scene_flow_valid is not None
    assert truth.motion.key_scene_flow is not None
    moving = motion.dynamic[[0, 4]] & motion.key_scene_flow_valid
    error = np.linalg.norm(motion.key_scene_flow - truth.motion.key_scene_flow, axis=-1)[moving]
    assert np.median(error) < 1e-3
    assert moving.any()


def test_what_stands_still_is_exactly_zero(truth: AnnotatedClip) -> None:
    motion = found(without_scene_flow(truth))
    assert not motion.scene_flow[~motion.dynamic[:-1]].any()
    assert not motion.scene_flow[~motion.scene_flow_valid].any()


def test_each_reason_is_counted(truth: AnnotatedClip) -> None:
    clip = Motion().load()(without_scene_flow(truth), Dis().load())
    for reason in ("in_bounds", "cycle", "depth_here", "depth_there", "edge_here", "edge_there", "instance", "speed"):
        assert 0 < clip.scores[f"motion_kept_{reason}"] <= 1
        assert 0 < clip.scores[f"motion_kept_key_{reason}"] <= 1
    assert clip.scores["motion_kept_all"] < clip.scores["motion_kept_edge_here"]


def test_flow_that_does_not_lead_back_is_not_believed(truth: AnnotatedClip) -> None:
    assert truth.flow is not None
    broken = without_scene_flow(truth).with_(flow=replace(truth.flow, backward=truth.flow.backward + 3))
    motion = found(broken)
    assert not (motion.scene_flow_valid & motion.dynamic[:-1]).any()


def test_uncertain_flow_is_not_believed(truth: AnnotatedClip) -> None:
    assert truth.flow is not None
    doubt = np.full(truth.flow.forward.shape[:3], 2, np.float32)
    motion = found(without_scene_flow(truth).with_(flow=replace(truth.flow, uncertainty=doubt)))
    assert not (motion.scene_flow_valid & motion.dynamic[:-1]).any()


def test_truth_is_kept(truth: AnnotatedClip) -> None:
    assert Motion().load()(truth, Dis().load()) is truth


def test_a_parked_car_is_not_dynamic(truth: AnnotatedClip) -> None:
    """Of two movable instances, one on the mover and one on the floor, only the first moves."""
    assert truth.motion is not None
    assert truth.motion.instances is not None
    instances = truth.motion.instances.copy()
    instances[:, 90:, :40] = np.where(instances[:, 90:, :40] == 0, 7, instances[:, 90:, :40])
    motion = MotionLabels(
        dynamic=np.zeros_like(truth.motion.dynamic),
        scene_flow=np.zeros_like(truth.motion.scene_flow),
        scene_flow_valid=np.zeros_like(truth.motion.scene_flow_valid),
        instances=instances,
        source="movable",
    )
    nothing = np.zeros_like(motion.dynamic)
    moving = dynamic.join(nothing, truth.with_(motion=motion), motion, still_px=1.5)
    assert moving[instances == 1].all()
    # its own three grown pixels aside, the mover takes nothing of the other with it
    assert moving[(instances == 7)].mean() < 0.1


def test_depth_in_another_unit_is_brought_to_the_cameras(truth: AnnotatedClip) -> None:
    assert truth.depth is not None
    assert truth.cameras is not None
    other = replace(truth.depth, z=3 * truth.depth.z, metric=False, source="network")
    clip = scale.agree(truth.with_(depth=other), PairFlows(truth.rgb, Dis().load()), 384)
    assert clip.depth is not None
    assert clip.scores["depth_scale"] == pytest.approx(3, rel=0.03)
    assert np.median(np.abs(clip.depth.z / truth.depth.z - 1)) < 0.03
    assert clip.depth.metric


def test_metric_depth_lends_its_meters_to_the_cameras(truth: AnnotatedClip) -> None:
    assert truth.cameras is not None
    shrunk = truth.cameras.world_from_cam.copy()
    shrunk[:, :3, 3] /= 5
    cameras = replace(truth.cameras, world_from_cam=shrunk, metric=False, source="other")
    clip = scale.agree(truth.with_(cameras=cameras), PairFlows(truth.rgb, Dis().load()), 384)
    assert clip.cameras is not None
    assert clip.cameras.metric
    ratio = clip.cameras.world_from_cam[1:, :3, 3] / truth.cameras.world_from_cam[1:, :3, 3]
    assert np.median(ratio) == pytest.approx(1, rel=0.03)


def test_flow_slots_hold_both_ways_and_both_strides() -> None:
    clip = scene.tiny(frames=10)
    bare = AnnotatedClip(id=clip.id, rgb=clip.rgb, fps=clip.fps, source=clip.source, frames=clip.frames)
    filled = flow_slots.fill_flow(bare, Dis().load())
    assert filled.flow is not None
    assert filled.key_flow is not None
    assert filled.flow.forward.shape == (9, 48, 64, 2)
    assert filled.key_flow.forward.shape == (2, 48, 64, 2)
    direct = Dis().load()(clip.rgb, np.array([(8, 4)])).flow[0]
    assert (filled.key_flow.backward[1] == direct).all()
    assert flow_slots.fill_flow(filled, Dis().load()).flow is filled.flow


def test_a_clip_of_one_frame_has_no_flow() -> None:
    clip = scene.tiny(frames=2)
    one = AnnotatedClip(id="one", rgb=clip.rgb[:1], fps=8.0, source="x", frames=clip.frames[:1])
    assert flow_slots.fill_flow(one, Dis().load()).flow is not None
