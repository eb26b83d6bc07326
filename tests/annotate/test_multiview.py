"""Depth against true depth, with true flow and with estimated flow, and honest gaps where nothing can be known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scene
import torch

from annotate.annotator import PairFlow
from annotate.cameras.flow_ba import FlowBA
from annotate.depth import triangulate
from annotate.depth.multiview import Multiview
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from shared.clip import AnnotatedClip

SIZE = {"frames": 16, "height": 120, "width": 160, "focal": 150.0}


class TrueFlow:
    """A flow model that knows the world: the exact projection of every point at the other frame's time."""

    source = "truth"

    def __init__(self, kind: str) -> None:
        self.world = scene.build(kind, seed=0, **SIZE)
        self.uv = scene.centers(SIZE["height"], SIZE["width"])

    def __call__(self, rgb: np.ndarray, pairs: np.ndarray) -> PairFlow:
        flow = [
            scene.project(self.world, scene.cast(self.world, a, self.uv), b)[0] - self.uv for a, b in pairs.tolist()
        ]
        return PairFlow(flow=np.moveaxis(np.stack(flow), 1, -1).astype(np.float32))


def bare(clip: AnnotatedClip) -> AnnotatedClip:
    return AnnotatedClip(id=clip.id, rgb=clip.rgb, fps=clip.fps, source=clip.source, frames=clip.frames)


def relative_error(z: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """Mean |z - truth| / truth under the median scale."""
    scale = np.median(truth[valid] / z[valid])
    return float(np.mean(np.abs(scale * z[valid] - truth[valid]) / truth[valid]))


FOV_DEG = math.degrees(2 * math.atan(80 / 150))


@pytest.mark.parametrize(("kind", "fov_deg", "cover"), [("orbit", None, 0.8), ("dolly", FOV_DEG, 0.3)])
def test_true_flow_gives_near_exact_cameras_and_depth(kind: str, fov_deg: float | None, cover: float) -> None:
    """What is left is the method's own error, none of the flow's.

    So short a dolly tells no focal length, and no depth around the point it goes to.
    """
    truth = scene.clip(kind, seed=0, **SIZE)
    flow = PairFlows(truth.rgb, TrueFlow(kind))
    clip = Multiview().load()(FlowBA(horizontal_fov_deg=fov_deg).load()(bare(truth), flow), flow)
    assert clip.cameras is not None
    assert truth.cameras is not None
    assert clip.depth is not None
    assert truth.depth is not None
    assert truth.motion is not None
    turned = clip.cameras.world_from_cam[:, :3, :3].mT @ truth.cameras.world_from_cam[:, :3, :3]
    angle = np.degrees(np.arccos(np.clip((turned.trace(axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert angle.max() < 0.15
    assert abs(clip.cameras.intrinsics[0, 0] / SIZE["focal"] - 1) < 0.02
    still = clip.depth.valid & ~truth.motion.dynamic
    assert relative_error(clip.depth.z, truth.depth.z, still) < 0.02
    assert still.sum() > cover * (~truth.motion.dynamic).sum()


def test_true_cameras_give_metric_depth_from_estimated_flow() -> None:
    truth = scene.clip("orbit", seed=0, **SIZE)
    clip = Multiview().load()(bare(truth).with_(cameras=truth.cameras), PairFlows(truth.rgb, Dis().load()))
    assert clip.depth is not None
    assert truth.depth is not None
    assert truth.motion is not None
    assert clip.motion is not None
    assert clip.depth.metric
    still = clip.depth.valid & ~truth.motion.dynamic
    error = np.abs(clip.depth.z - truth.depth.z)[still] / truth.depth.z[still]
    assert np.median(error) < 0.06  # no scale is fitted
    assert not (clip.depth.valid & clip.motion.dynamic).any()
    both = clip.motion.dynamic & truth.motion.dynamic
    assert both.sum() > 0.6 * (clip.motion.dynamic | truth.motion.dynamic).sum()


def test_what_keeps_pace_with_the_camera_moves() -> None:
    """Its flow is that of a thing infinitely far; that it hides what is near gives it away."""
    truth = scene.clip("follow", seed=0, **SIZE)
    clip = bare(truth).with_(cameras=truth.cameras)
    dynamic = triangulate.dense(PairFlows(clip.rgb, TrueFlow("follow")), truth.cameras, clip.shape).dynamic
    assert truth.motion is not None
    both = dynamic & truth.motion.dynamic
    assert both.sum() > 0.7 * (dynamic | truth.motion.dynamic).sum()


@pytest.mark.parametrize("flag", ["static_camera", "rotation_only", "poor_fit", "focal_weak,flow_unreliable"])
def test_no_depth_is_invented(flag: str) -> None:
    truth = scene.tiny("pure_rotation")
    assert truth.cameras is not None
    clip = bare(truth).with_(cameras=replace(truth.cameras, degenerate=flag))
    depth = Multiview().load()(clip, PairFlows(clip.rgb, Dis().load())).depth
    assert depth is not None
    assert not depth.valid.any()
    assert not depth.z.any()


def test_truth_is_kept() -> None:
    truth = scene.tiny()
    assert Multiview().load()(truth, Dis().load()) is truth


def test_cameras_are_needed() -> None:
    with pytest.raises(ValueError, match="asks for cameras"):
        Multiview().load()(bare(scene.tiny()), Dis().load())


def test_noise_alone_is_not_beyond_infinity() -> None:
    """What is far has inverse depths on both sides of zero; farther than that is only what is known to be."""
    seen = triangulate.Nodes(
        inverse_depth=torch.tensor([-0.1, -0.1, 0.1]),
        score=torch.zeros(3),
        seen=torch.ones(3, dtype=torch.bool),
        hidden=torch.zeros(3),
        sigma_px=0.25,
        curvature=torch.tensor([4.0, 400.0, 400.0]),
        displacement=torch.zeros(3),
    )
    assert triangulate.is_beyond(seen).tolist() == [False, True, False]
