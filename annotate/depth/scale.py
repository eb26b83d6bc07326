"""One scale for a clip's depth and cameras, where they come from different tools."""

from dataclasses import replace

import numpy as np
import torch

from annotate.annotator import FlowModel
from annotate.cameras import degenerate, keyframes
from annotate.depth import triangulate
from annotate.flow.pairs import PairFlows
from shared import warp
from shared.clip import AnnotatedClip

ENOUGH = 200
"""Nodes with a depth from both; fewer tell no scale."""


def agree(clip: AnnotatedClip, flow: FlowModel, long_side_px: int) -> AnnotatedClip:
    """The clip with depth and translations in one unit: the median ratio of depth to what the cameras triangulate.

    Metric depth lends its meters to cameras that have none; otherwise depth follows the cameras. Scores: the ratio, and the median
    of |ln ratio| about it. Nothing changes where both are metric, where one tool made both, or where cameras cannot triangulate.
    """
    depth, cameras = clip.depth, clip.cameras
    assert depth is not None
    assert cameras is not None
    together = (
        depth.source.startswith("multiview") or depth.source == cameras.source or (depth.metric and cameras.metric)
    )
    if together or not depth.valid.any() or degenerate.is_unusable(cameras.degenerate) or len(clip.rgb) < 2:
        return clip
    ratios = log_ratios(clip, PairFlows.of(clip.rgb, flow).at_most(long_side_px))
    if len(ratios) < ENOUGH:
        return clip
    middle = float(np.median(ratios))
    scores = {"depth_scale": float(np.exp(middle)), "depth_scale_residual": float(np.median(np.abs(ratios - middle)))}
    if depth.metric:
        world_from_cam = cameras.world_from_cam.copy()
        world_from_cam[:, :3, 3] *= np.exp(middle)
        return clip.with_(cameras=replace(cameras, world_from_cam=world_from_cam, metric=True), scores=scores)
    z = (depth.z / np.exp(middle)).astype(np.float32)
    return clip.with_(depth=replace(depth, z=z, metric=cameras.metric), scores=scores)


def log_ratios(clip: AnnotatedClip, pairs: PairFlows) -> np.ndarray:
    """ln(depth / triangulated depth) at static nodes of every fourth frame that both know."""
    assert clip.depth is not None
    assert clip.cameras is not None
    grid, nodes = keyframes.node_grid(pairs.size, 80)
    rig = triangulate.rig_of(pairs, clip.cameras, clip.shape)
    cell = nodes.new_tensor((clip.shape[2] / pairs.size[1], clip.shape[1] / pairs.size[0]))
    found = []
    for t in range(0, clip.shape[0], 4):
        seen = triangulate.triangulate(triangulate.views_of(rig, t, nodes.float()))
        good = triangulate.valid_nodes(seen, triangulate.odd_nodes(seen, grid), 0.05)
        known = np.stack((clip.depth.z[t], clip.depth.valid[t].astype(np.float32)), -1)
        z, valid = warp.sample(torch.from_numpy(known), (nodes * cell).float()).unbind(-1)
        good &= valid > 0.999
        found.append(torch.log(z[good] * seen.inverse_depth[good] / rig.unit).numpy())
    return np.concatenate(found)
