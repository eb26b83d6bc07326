"""What video teaches without depth, point or scene-flow labels: optical flow between key frames, and what it says moves.

Convention: everything predicted is in units in which the mean distance of the points is 1, which `agreement` asks for: without
labels the scale of a scene is free. Poses, depth, points and scene flow are predicted; intrinsics are the clip's if it has them.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from shared import camera
from train import pose
from train.losses import regularizers
from train.losses.reduce import masked_mean
from train.sample import Batch, Predicted

NEAR = 0.05
"""Of the mean distance of a scene's points: no point that a camera sees should be nearer."""


def reprojection(predicted: Predicted, batch: Batch, huber_delta_diagonals: float = 0.005) -> Float[Tensor, " B"]:
    """mean huber(π_j(P + F3d) - (u + F2d)) / δ + (1 - z / near)⁺ over pixels whose flow is sure; static pixels take F3d = 0.

    Differences are in image diagonals. The flow says that the point is seen in frame j. So one that is predicted at z < near there,
    or behind the camera, is projected as if it were at `near` and pulled forward by the second term; and one that is predicted
    outside the image counts like any other: left out, it would be free to stay there.
    """
    pairs, world_from_cam, intrinsics = _setting(predicted, batch)
    moved = predicted.points + predicted.scene_flow * batch.dynamic[..., None]
    target = pairs[..., 1]
    next_from_world = camera.invert(regularizers.of(world_from_cam, target))
    p_next = camera.transform(next_from_world[:, :, None, None], regularizers.of(moved, pairs[..., 0]))
    z = p_next[..., 2:]
    seen = torch.cat((p_next[..., :2], z.clamp_min(NEAR)), dim=-1)
    uv = camera.project(seen, regularizers.of(intrinsics, target)[:, :, None, None])
    error = (uv - _flow_target(batch)) / _diagonal(batch)
    each = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=huber_delta_diagonals).sum(-1)
    behind = (1 - z[..., 0] / NEAR).clamp_min(0)
    return masked_mean(each / huber_delta_diagonals + behind, sure(batch))


def static_depth(predicted: Predicted, batch: Batch) -> Float[Tensor, " B"]:
    """mean |ln D_j(u + F2d) - ln z_j(X)| over static pixels whose flow is sure: two views of one place are at one place."""
    pairs, world_from_cam, intrinsics = _setting(predicted, batch)
    _, z, _ = regularizers.land(predicted.depth, world_from_cam, intrinsics, pairs)
    seen = regularizers.at(predicted.depth, pairs[..., 1], _flow_target(batch))
    each = (seen.clamp_min(1e-6).log() - z.clamp_min(1e-6).log()).abs()
    return masked_mean(each, sure(batch) & ~batch.dynamic[:, :-1])


def agreement(predicted: Predicted, batch: Batch) -> Float[Tensor, " B"]:
    """What the outputs must share: mean |P - lift(D)|₁ + mean over static pixels |F3d|₁ + (ln mean |lift(D)|)² + mean (C_0 - 1)².

    The third fixes the scale, the last makes the first camera the world (its nine numbers but the field of view).
    """
    _, world_from_cam, intrinsics = _setting(predicted, batch)
    height, width = predicted.depth.shape[-2:]
    uv = camera.pixel_centers(height, width, like=predicted.depth)
    p_cam = camera.unproject(uv, predicted.depth, intrinsics[:, :, None, None])
    lifted = camera.transform(world_from_cam[:, :, None, None], p_cam)
    points = (predicted.points - lifted).abs().sum(-1).flatten(1).mean(1)
    static = masked_mean(predicted.scene_flow.abs().sum(-1), ~batch.dynamic)
    scale = lifted.norm(dim=-1).flatten(1).mean(1).clamp_min(1e-6).log().square()
    identity = F.pad(predicted.camera.new_ones(1), (6, 0))
    first = (predicted.camera[:, 0, :7] - identity).square().mean(-1)
    return (points + static + scale + first) * batch.has_key_flow


def _setting(
    predicted: Predicted, batch: Batch
) -> tuple[Int64[Tensor, "B N 2"], Float[Tensor, "B K 4 4"], Float[Tensor, "B K 4"]]:
    """Neighboring pairs, predicted poses, and the intrinsics to use."""
    height, width = predicted.depth.shape[-2:]
    world_from_cam, own = pose.decode(predicted.camera, height, width)
    intrinsics = torch.where(batch.has_cameras[:, None, None], batch.intrinsics.to(own.dtype), own)
    pairs = regularizers.neighbors(predicted.depth.shape[1], len(own), own.device)
    return pairs, world_from_cam, intrinsics


def _flow_target(batch: Batch) -> Float[Tensor, "B Q H W 2"]:
    """u + F2d."""
    height, width = batch.key_flow.shape[2:4]
    return camera.pixel_centers(height, width, like=batch.key_flow) + batch.key_flow


def sure(batch: Batch) -> Bool[Tensor, "B Q H W"]:
    """Where key flow leads there and back."""
    return batch.key_flow_valid & batch.has_key_flow[:, None, None, None]


def _diagonal(batch: Batch) -> float:
    return math.hypot(*batch.key_flow.shape[2:4])
