"""Pinhole geometry, in torch, for any batch shape. Conventions: see `shared`."""

import torch
from jaxtyping import Float
from torch import Tensor


def pixel_centers(height: int, width: int, like: Tensor | None = None) -> Float[Tensor, "H W 2"]:
    """(u, v) of every pixel's center: (0.5, 0.5) first. `like` gives dtype and device; float64 on the CPU without."""
    dtype = like.dtype if like is not None else torch.float64
    device = like.device if like is not None else None
    v, u = torch.meshgrid(
        torch.arange(height, dtype=dtype, device=device) + 0.5,
        torch.arange(width, dtype=dtype, device=device) + 0.5,
        indexing="ij",
    )
    return torch.stack((u, v), dim=-1)


def project(p_cam: Float[Tensor, "*#batch 3"], intrinsics: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch 2"]:
    """Where camera-frame points land, in pixels. Points with z <= 0 are behind the camera: the caller masks them."""
    focal, center = intrinsics[..., :2], intrinsics[..., 2:]
    return focal * p_cam[..., :2] / p_cam[..., 2:] + center


def unproject(
    uv: Float[Tensor, "*#batch 2"], z: Float[Tensor, "*#batch"], intrinsics: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch 3"]:
    """Camera-frame points at depth z along the optical axis (not along the ray)."""
    focal, center = intrinsics[..., :2], intrinsics[..., 2:]
    xy = (uv - center) / focal * z[..., None]
    return torch.cat((xy, z[..., None].expand(*xy.shape[:-1], 1)), dim=-1)


def transform(
    target_from_source: Float[Tensor, "*#batch 4 4"], p_source: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Points of the source frame in the target frame."""
    rotated = (target_from_source[..., :3, :3] @ p_source[..., None])[..., 0]
    return rotated + target_from_source[..., :3, 3]


def invert(target_from_source: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """source_from_target of a rigid transform."""
    rotation = target_from_source[..., :3, :3].transpose(-1, -2)
    translation = -rotation @ target_from_source[..., :3, 3:]
    top = torch.cat((rotation, translation), dim=-1)
    return torch.cat((top, target_from_source[..., 3:, :]), dim=-2)


def pointmap(
    z: Float[Tensor, "T H W"], world_from_cam: Float[Tensor, "T 4 4"], intrinsics: Float[Tensor, "T 4"]
) -> Float[Tensor, "T H W 3"]:
    """World-frame points of every pixel: z R K⁻¹ (u, v, 1) + t, where the ray is a part of its column and a part of its row."""
    uv = pixel_centers(z.shape[1], z.shape[2], like=z)
    fx, fy, cx, cy = intrinsics[..., None].unbind(1)
    x, y = (uv[0, :, 0] - cx) / fx, (uv[:, 0, 1] - cy) / fy
    rotation, translation = world_from_cam[:, :3, :3, None], world_from_cam[:, :3, 3, None, None]
    column, row = rotation[:, :, 0] * x[:, None], rotation[:, :, 1] * y[:, None] + rotation[:, :, 2]
    axes = [(column[:, i, None] + row[:, i, :, None]) * z + translation[:, i] for i in range(3)]
    return torch.stack(axes, dim=-1)


def rigid_flow(
    z: Float[Tensor, "P H W"],
    next_from_this: Float[Tensor, "P 4 4"],
    intrinsics: Float[Tensor, "P 4"],
    next_intrinsics: Float[Tensor, "P 4"],
) -> tuple[Float[Tensor, "P H W 2"], Float[Tensor, "P H W"]]:
    """The flow a static world would show, in pixels, and each point's z in the next camera (<= 0: behind it)."""
    uv = pixel_centers(z.shape[1], z.shape[2], like=z)
    p_next = transform(next_from_this[:, None, None], unproject(uv, z, intrinsics[:, None, None]))
    return project(p_next, next_intrinsics[:, None, None]) - uv, p_next[..., 2]
