"""Labels as pictures that a person can judge: the same colors in the report, the viewer and the training log."""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

UNKNOWN = np.array((38, 38, 42), np.uint8)
"""The gray of pixels about which nothing is known."""


def depth(z: Float32[np.ndarray, "T H W"], valid: Bool[np.ndarray, "T H W"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Inverse depth from near (red) to far (blue), one range for the clip; gray where not valid."""
    known = valid & (z > 0)
    inverse = np.where(known, 1 / np.where(known, z, 1), 0)
    low, high = np.percentile(inverse[known], (2, 98)) if known.any() else (0.0, 1.0)
    shade = np.clip((inverse - low) / max(high - low, 1e-12), 0, 1)
    return np.where(known[..., None], _turbo(shade), UNKNOWN)


def flow(pixels: Float32[np.ndarray, "P H W 2"], largest: float | None = None) -> UInt8[np.ndarray, "P H W 3"]:
    """Direction as hue, length as saturation up to `largest` pixels (the clip's 99th percentile without)."""
    length = np.linalg.norm(pixels, axis=-1)
    largest = largest or max(float(np.percentile(length, 99)) if length.size else 1.0, 1.0)
    hue = (np.degrees(np.arctan2(pixels[..., 1], pixels[..., 0])) % 360) / 2
    saturation = 255 * np.clip(length / largest, 0, 1)
    hsv = np.stack((hue, saturation, np.full_like(hue, 255)), axis=-1).astype(np.uint8)
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_HSV2RGB) for frame in hsv]) if len(hsv) else hsv


def points(p_world: Float32[np.ndarray, "T H W 3"], valid: Bool[np.ndarray, "T H W"]) -> UInt8[np.ndarray, "T H W 3"]:
    """x, y and z as red, green and blue, each from its 2nd to its 98th percentile over the clip: a still world keeps its colors."""
    if not valid.any():
        return np.broadcast_to(UNKNOWN, p_world.shape).copy()
    low, high = np.percentile(p_world[valid], (2, 98), axis=0)
    shade = np.clip((p_world - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.where(valid[..., None], (255 * shade).astype(np.uint8), UNKNOWN)


def marked(rgb: UInt8[np.ndarray, "T H W 3"], where: Bool[np.ndarray, "T H W"]) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames in gray, and in magenta where marked."""
    gray = rgb.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    tint = 0.45 * gray + 0.55 * np.array((255, 40, 180))
    return np.where(where[..., None], tint, gray).astype(np.uint8)


def heat(
    value: Float32[np.ndarray, "T H W"], largest: float, known: Bool[np.ndarray, "T H W"] | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """From 0 (blue) to `largest` (red); gray where not known."""
    colors = _turbo(np.clip(value / largest, 0, 1))
    return colors if known is None else np.where(known[..., None], colors, UNKNOWN)


def _turbo(shade: np.ndarray) -> UInt8[np.ndarray, "T H W 3"]:
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return table[(shade * 255).astype(np.uint8)]
