"""Laying one prediction onto another: a scale, a scale and a shift, a rigid motion, a similarity.

Depths come as flat lists of what is valid in both. Everything is exact up to rounding: no iteration that stops early.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def median_scale(depth: Float[Tensor, " N"], reference: Float[Tensor, " N"]) -> float:
    """median(reference / depth): the usual scale, blind to outliers (of an even number, the lower middle one)."""
    _some(depth)
    return float((reference / depth).median())


def lad_scale(depth: Float[Tensor, " N"], reference: Float[Tensor, " N"]) -> float:
    """The s that minimizes Σ |s·depth - reference|: the median of reference / depth, weighted by depth (depth > 0)."""
    _some(depth)
    ratio, order = (reference / depth).double().sort()
    weight = depth.double()[order].cumsum(0)
    return float(ratio[torch.searchsorted(weight, weight[-1] / 2)])


def lad_scale_shift(depth: Float[Tensor, " N"], reference: Float[Tensor, " N"]) -> tuple[float, float]:
    """The (s, t) that minimize Σ |s·depth + t - reference|.

    For a given s the best t is the median residual, and the remaining cost is convex in s, so its slope is bisected
    to nine digits. A depth that does not vary keeps s = 1.
    """
    _some(depth)
    d, g = depth.double(), reference.double()
    spread = float((g - g.median()).abs().mean()) / max(float((d - d.median()).abs().mean()), 1e-300)
    if float(d.max() - d.min()) <= 1e-12 * float(d.abs().max()):
        return 1.0, float((g - d).median())
    low, high = -spread, spread
    while _slope(d, g, low) > 0:
        low *= 2
    while _slope(d, g, high) < 0:
        high *= 2
    while high - low > 1e-9 * max(abs(low), abs(high), 1e-3 * spread):
        middle = (low + high) / 2
        slope = _slope(d, g, middle)
        low, high = (middle if slope <= 0 else low), (middle if slope >= 0 else high)
    s = (low + high) / 2
    return s, float((g - s * d).median())


def _slope(d: Tensor, g: Tensor, s: float) -> float:
    """A subgradient in s of Σ |g - s d - t| at its best t, along which one point stays on the line."""
    residual = g - s * d
    t, at = residual.median(0)
    return float(((d[at] - d) * (residual - t).sign()).sum())


def least_squares_scale(points: Float[Tensor, "N 3"], reference: Float[Tensor, "N 3"]) -> float:
    """The s that minimizes Σ |s·point - reference|²."""
    _some(points)
    return float((points * reference).sum() / points.square().sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarity:
    """target = scale · rotation · source + translation."""

    scale: float
    rotation: Float64[Tensor, "3 3"]
    translation: Float64[Tensor, " 3"]

    def points(self, p_source: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3"]:
        return self.scale * p_source @ self.rotation.T + self.translation

    def poses(self, source_from_cam: Float64[Tensor, "T 4 4"]) -> Float64[Tensor, "T 4 4"]:
        """target_from_cam; the camera's own axes keep unit length."""
        target_from_cam = source_from_cam.clone()
        target_from_cam[:, :3, :3] = self.rotation @ source_from_cam[:, :3, :3]
        target_from_cam[:, :3, 3] = self.points(source_from_cam[:, :3, 3])
        return target_from_cam


def sim3(source: Float64[Tensor, "N 3"], target: Float64[Tensor, "N 3"]) -> Similarity:
    """The similarity that minimizes Σ |s R x + t - y|² (Umeyama 1991, equations 40-42).

    About points on a line the rotation is free: what is returned is one of the best. Points that do not move give s = 0.
    """
    rotation, strength = _rotation(source, target)
    spread = float((source - source.mean(0)).square().sum() / len(source))
    scale = strength / spread if spread > 0 else 0.0
    return Similarity(scale=scale, rotation=rotation, translation=target.mean(0) - scale * rotation @ source.mean(0))


def se3(source: Float64[Tensor, "N 3"], target: Float64[Tensor, "N 3"]) -> Similarity:
    """The rigid motion that minimizes Σ |R x + t - y|²."""
    rotation, _ = _rotation(source, target)
    return Similarity(scale=1.0, rotation=rotation, translation=target.mean(0) - rotation @ source.mean(0))


def _rotation(source: Float64[Tensor, "N 3"], target: Float64[Tensor, "N 3"]) -> tuple[Float64[Tensor, "3 3"], float]:
    """(The best rotation, trace(D S): how much of the spread it explains). Never a reflection."""
    _some(source)
    covariance = (target - target.mean(0)).T @ (source - source.mean(0)) / len(source)
    u, singular, vt = torch.linalg.svd(covariance)
    sign = torch.ones(3, dtype=source.dtype)
    if torch.linalg.det(u) * torch.linalg.det(vt) < 0:
        sign[2] = -1
    return u @ torch.diag(sign) @ vt, float((singular * sign).sum())


def _some(values: Tensor) -> None:
    if not len(values):
        raise ValueError("nothing to align: no value is valid in both")
