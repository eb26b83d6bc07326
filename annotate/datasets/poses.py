"""Rotations and poses as data sets write them, in float64."""

import numpy as np
from jaxtyping import Float32, Float64

BLENDER_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL and Blender look along -z with y up."""


def rotation(quaternion_wxyz: Float64[np.ndarray, "*batch 4"]) -> Float64[np.ndarray, "*batch 3 3"]:
    """Of unit quaternions, real part first. They are normalized; the caller refuses those far from unit length."""
    w, x, y, z = np.moveaxis(quaternion_wxyz / np.linalg.norm(quaternion_wxyz, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def pose(
    rotation: Float64[np.ndarray, "*batch 3 3"], translation: Float64[np.ndarray, "*batch 3"]
) -> Float64[np.ndarray, "*batch 4 4"]:
    out = np.zeros((*rotation.shape[:-2], 4, 4))
    out[..., :3, :3], out[..., :3, 3], out[..., 3, 3] = rotation, translation, 1
    return out


def inverse(target_from_source: Float64[np.ndarray, "*batch 4 4"]) -> Float64[np.ndarray, "*batch 4 4"]:
    turned = np.swapaxes(target_from_source[..., :3, :3], -1, -2)
    return pose(turned, -(turned @ target_from_source[..., :3, 3:])[..., 0])


def checked(uri: str, poses: np.ndarray) -> Float64[np.ndarray, "*batch 4 4"]:
    """The poses, their rotations made exact. Raises ValueError where R Rᵀ is off by 1e-3, mirrored, or a last row is wrong."""
    poses = np.asarray(poses, np.float64)
    if not np.isfinite(poses).all():
        raise ValueError(f"{uri}: a pose is not finite")
    turned = poses[..., :3, :3]
    off = np.abs(turned @ np.swapaxes(turned, -1, -2) - np.eye(3)).max(initial=0)
    if off > 1e-3 or (np.linalg.det(turned) < 0).any():
        raise ValueError(f"{uri}: holds no rotation, R Rᵀ is {off:.2g} away from the identity or mirrors")
    if np.abs(poses[..., 3, :] - (0, 0, 0, 1)).max(initial=0) > 1e-6:
        raise ValueError(f"{uri}: the last row of a pose is not (0, 0, 0, 1)")
    u, _, vt = np.linalg.svd(turned)
    return pose(u @ vt, poses[..., :3, 3])


def lifted(z: Float32[np.ndarray, "H W"], intrinsics: Float64[np.ndarray, " 4"]) -> Float64[np.ndarray, "H W 3"]:
    """Camera-frame points of every pixel."""
    fx, fy, cx, cy = intrinsics
    u, v = np.meshgrid(np.arange(z.shape[1]) + 0.5, np.arange(z.shape[0]) + 0.5)
    return np.stack(((u - cx) / fx, (v - cy) / fy, np.ones(z.shape)), axis=-1) * z[..., None]


def moved(
    target_from_source: Float64[np.ndarray, "4 4"], p_source: Float64[np.ndarray, "*batch 3"]
) -> Float64[np.ndarray, "*batch 3"]:
    return p_source @ target_from_source[:3, :3].T + target_from_source[:3, 3]
