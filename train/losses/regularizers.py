"""L_reg: what depth, cameras and scene flow must agree on, whatever each says alone (equation 3).

Convention: frames are key frames; (i, j) are indices of them; X is a point in camera j.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from shared import camera, warp
from train import pose
from train.losses.reduce import root_mean
from train.sample import Batch, Predicted


def depth_consistency(
    predicted: Predicted, batch: Batch, pairs: Int64[Tensor, "B N 2"], max_depth_gap: float = 0.05
) -> Float[Tensor, " B"]:
    """mean over pairs of √mean r² with r = D_j(π(X)) - z(X) and X = T_j←i · D_i · K_i⁻¹ u, in units of the scene.

    Over pixels u of frame i that are static, there and where they land; in bounds; and visible: the label depths agree. Depth and
    pose are the predicted ones; intrinsics are the label's, because the nine numbers leave out the principal point.
    """
    height, width = predicted.depth.shape[-2:]
    world_from_cam, _ = pose.decode(predicted.camera, height, width)
    uv, z, inside = land(predicted.depth, world_from_cam, batch.intrinsics.to(predicted.depth.dtype), pairs)
    residual = at(predicted.depth, pairs[..., 1], uv) - z
    return root_mean(residual.square(), inside & _static_and_visible(batch, pairs, max_depth_gap))


def smooth_flow(predicted: Predicted, moving: Bool[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
    """mean over frames of √mean |∇x F3d|² + √mean |∇y F3d|², in units of the scene a pixel, over neighbors that both move.

    `moving` are pixels of the foreground with valid motion. Across its edge a jump is the truth, so such neighbors do not count.
    """
    flow = predicted.scene_flow
    along_x = (flow[:, :, :, 1:] - flow[:, :, :, :-1]).square().sum(-1)
    along_y = (flow[:, :, 1:] - flow[:, :, :-1]).square().sum(-1)
    both_x, both_y = moving[..., 1:] & moving[..., :-1], moving[:, :, 1:] & moving[:, :, :-1]
    return root_mean(along_x, both_x) + root_mean(along_y, both_y)


def neighbors(num_frames: int, batch_size: int, device: torch.device) -> Int64[Tensor, "B N 2"]:
    """The pairs (0, 1), (1, 2), ... for each sample."""
    first = torch.arange(num_frames - 1, device=device)
    return torch.stack((first, first + 1), dim=-1).expand(batch_size, -1, -1)


def land(
    depth: Float[Tensor, "B K H W"],
    world_from_cam: Float[Tensor, "B K 4 4"],
    intrinsics: Float[Tensor, "B K 4"],
    pairs: Int64[Tensor, "B N 2"],
) -> tuple[Float[Tensor, "B N H W 2"], Float[Tensor, "B N H W"], Bool[Tensor, "B N H W"]]:
    """Where frame i's pixels lie in frame j if nothing moves: pixel, z there, and whether that is inside the image."""
    height, width = depth.shape[-2:]
    source, target = pairs.unbind(-1)
    target_from_source = camera.invert(of(world_from_cam, target)) @ of(world_from_cam, source)
    uv = camera.pixel_centers(height, width, like=depth)
    p_source = camera.unproject(uv, of(depth, source), of(intrinsics, source)[:, :, None, None])
    p_target = camera.transform(target_from_source[:, :, None, None], p_source)
    return view(p_target, of(intrinsics, target))


def view(
    p_cam: Float[Tensor, "B N H W 3"], intrinsics: Float[Tensor, "B N 4"]
) -> tuple[Float[Tensor, "B N H W 2"], Float[Tensor, "B N H W"], Bool[Tensor, "B N H W"]]:
    """Pixel, z and whether it is inside the image. Points at or behind the camera are not, and get no gradient from it."""
    height, width = p_cam.shape[2:4]
    z = p_cam[..., 2]
    in_front = z > 1e-3
    safe = torch.where(in_front[..., None], p_cam, torch.ones_like(p_cam))
    uv = camera.project(safe, intrinsics[:, :, None, None])
    return uv, z, in_front & warp.in_bounds(uv, height, width)


def at(
    maps: Float[Tensor, "B K H W"], frames: Int64[Tensor, "B N"], uv: Float[Tensor, "B N H W 2"]
) -> Float[Tensor, "B N H W"]:
    """Maps of those frames, bilinear at those pixels."""
    return warp.sample(of(maps, frames)[..., None], uv)[..., 0]


def of(values: Tensor, frames: Int64[Tensor, "B N"]) -> Tensor:
    """`B K ...` -> `B N ...`: each sample's own choice of frames."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, frames]


def _static_and_visible(batch: Batch, pairs: Int64[Tensor, "B N 2"], max_depth_gap: float) -> Bool[Tensor, "B N H W"]:
    """From labels alone: depth valid and static at both ends, and label depth there within the gap of the point's."""
    uv, z, inside = land(batch.key_depth, batch.world_from_cam, batch.intrinsics, pairs)
    source, target = pairs.unbind(-1)
    static = (batch.key_valid & ~batch.dynamic).to(z.dtype)
    both = (of(static, source) > 0) & (at(static, target, uv) > 0.999)
    gap = (at(batch.key_depth, target, uv) - z).abs()
    known = (batch.has_cameras & batch.has_depth)[:, None, None, None]
    return inside & both & (gap < max_depth_gap * z) & known
