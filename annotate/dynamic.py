"""Which pixels move in the world: what no rigid world explains, joined with instances that could move where those are given."""

from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32

from annotate.annotator import FlowModel
from annotate.cameras import degenerate
from annotate.depth import triangulate
from annotate.flow.pairs import PairFlows
from shared import camera
from shared.clip import AnnotatedClip, Motion

GROW_PX = 3
"""Instance masks are drawn tightly; what they cast and blur moves too."""


def decide(clip: AnnotatedClip, flow: FlowModel, long_side_px: int, still_px: float) -> AnnotatedClip:
    """The clip with `motion.dynamic`. Masks that are there already are kept; bare instances are judged one by one.

    Scene flow that is known anywhere says that its source knows what moves, and that it may be nothing.
    """
    motion = clip.motion
    if motion is not None and (motion.dynamic.any() or motion.instances is None or motion.scene_flow_valid.any()):
        return clip
    found = _residual_mask(clip, flow, long_side_px)
    if motion is None:
        steps = (clip.shape[0] - 1, *clip.shape[1:])
        motion = Motion(
            dynamic=found,
            scene_flow=np.zeros((*steps, 3), np.float32),
            scene_flow_valid=np.zeros(steps, bool),
            source=f"rigid({flow.source})",
        )
        return clip.with_(motion=motion)
    dynamic = join(found, clip, motion, still_px)
    return clip.with_(motion=replace(motion, dynamic=dynamic, source=f"{motion.source}, rigid({flow.source})"))


def _residual_mask(clip: AnnotatedClip, flow: FlowModel, long_side_px: int) -> Bool[np.ndarray, "T H W"]:
    assert clip.cameras is not None
    pairs = PairFlows.of(clip.rgb, flow).at_most(long_side_px)
    if len(clip.rgb) < 2 or degenerate.is_unusable(clip.cameras.degenerate):
        return triangulate.without_depth(pairs, clip.cameras, clip.shape).dynamic
    return triangulate.dense(pairs, clip.cameras, clip.shape).dynamic


def join(
    found: Bool[np.ndarray, "T H W"], clip: AnnotatedClip, motion: Motion, still_px: float
) -> Bool[np.ndarray, "T H W"]:
    """Moving instances whole and a little grown; still ones (a parked car) not at all; the rest as the residual says."""
    assert motion.instances is not None
    residual, size = rigid_residual(clip)
    joined = found.copy()
    box = np.ones((2 * GROW_PX + 1, 2 * GROW_PX + 1), np.uint8)
    for instance in np.unique(motion.instances[motion.instances > 0]):
        where = motion.instances == instance
        inside = where[:-1] & np.isfinite(residual)
        still = inside.any() and np.median(residual[inside]) < max(still_px, 0.05 * np.median(size[inside]))
        if still:
            joined &= ~where
        else:
            joined |= np.stack([cv2.dilate(frame.astype(np.uint8), box) > 0 for frame in where])
    return joined & ~motion.sky if motion.sky is not None else joined


def rigid_residual(clip: AnnotatedClip) -> tuple[Float32[np.ndarray, "P H W"], Float32[np.ndarray, "P H W"]]:
    """|F - F_rigid| of adjacent frames, pixels, inf where depth is not valid; and |F|."""
    assert clip.cameras is not None
    assert clip.depth is not None
    assert clip.flow is not None
    world_from_cam = torch.from_numpy(clip.cameras.world_from_cam)
    next_from_this = camera.invert(world_from_cam[1:]) @ world_from_cam[:-1]
    intrinsics = torch.from_numpy(clip.cameras.intrinsics).float()
    valid = torch.from_numpy(clip.depth.valid[:-1])
    z = torch.where(valid, torch.from_numpy(clip.depth.z[:-1]), 1.0)
    rigid, z_next = camera.rigid_flow(z, next_from_this.float(), intrinsics[:-1], intrinsics[1:])
    flow = torch.from_numpy(clip.flow.forward)
    residual = torch.where(valid & (z_next > 0), (flow - rigid).norm(dim=-1), torch.inf)
    return residual.numpy(), flow.norm(dim=-1).numpy()
