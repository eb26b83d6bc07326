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
from shared import camera, warp
from shared.clip import AnnotatedClip, Motion

GROW_PX = 3
"""Instance masks are drawn tightly; what they cast and blur moves too."""

VANISHED_FRAMES = (1, 2, 4, 8)
"""Frames away in which a point's place is looked at."""
BEHIND = 1.02
"""Ratio of depths from which on what is seen lies behind."""


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
    if len(clip.rgb) > 1 and clip.depth is not None and clip.depth.metric and clip.cameras.metric:
        known = clip.depth  # meters of both: a data set's truth, which no triangulation betters
        return triangulate.against_depth(pairs, clip.cameras, known.z, known.valid) | vanished(clip)
    if len(clip.rgb) < 2 or degenerate.is_unusable(clip.cameras.degenerate):
        return triangulate.without_depth(pairs, clip.cameras, clip.shape).dynamic
    return triangulate.dense(pairs, clip.cameras, clip.shape).dynamic


def vanished(clip: AnnotatedClip) -> Bool[np.ndarray, "T H W"]:
    """Points whose place is seen to be empty in another frame: what is behind it shows. Asks for true depth and cameras."""
    assert clip.depth is not None
    assert clip.cameras is not None
    z, box = torch.from_numpy(clip.depth.z).double(), np.ones((3, 3), np.uint8)
    nearest = torch.from_numpy(np.stack([cv2.erode(frame, box) for frame in clip.depth.z]))[..., None].double()
    world_from_cam, intrinsics = (
        torch.from_numpy(clip.cameras.world_from_cam),
        torch.from_numpy(clip.cameras.intrinsics),
    )
    uv = camera.pixel_centers(*clip.shape[1:])
    gone = np.zeros(clip.shape, bool)
    for t in range(clip.shape[0]):
        p_here = camera.unproject(uv, z[t], intrinsics[t])
        for other in (t + sign * gap for gap in VANISHED_FRAMES for sign in (-1, 1)):
            if 0 <= other < clip.shape[0]:
                p_there = camera.transform(camera.invert(world_from_cam[other]) @ world_from_cam[t], p_here)
                ahead = p_there[..., 2] > 1e-6
                there = camera.project(
                    torch.where(ahead[..., None], p_there, torch.ones_like(p_there)), intrinsics[other]
                )
                ahead &= warp.in_bounds(there, *clip.shape[1:])
                seen = warp.sample(nearest[other], there, mode="nearest")[..., 0]
                gone[t] |= (ahead & (seen > BEHIND * p_there[..., 2])).numpy()
        gone[t] = cv2.morphologyEx(gone[t].astype(np.uint8), cv2.MORPH_OPEN, box) > 0
    return gone & clip.depth.valid


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
