"""Experimental: clips longer than the model's window, window after window, each held to the end of the one before.

A window sees only what overlaps: nothing persists beyond it, so what leaves the overlap is forgotten. `Drift` says how far each
window was from continuing the one before, which is the thing to watch when windows are added.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shared import metrics
from shared.clip import KEY_STRIDE, AnnotatedClip
from train import generate, latents, sample
from train.generate import Sampler, decoded, denoise
from train.models import dit
from train.models.parts import Models


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How a window disagrees with the one before on the frames that both have."""

    color: float
    """Mean |ΔI| / 255."""
    depth: float
    """Median |ln z - ln z'| after the scale below."""
    scale: float
    """That the window's lengths were multiplied by to fit."""
    position: float
    """Gap of the camera at the end of the overlap, in median depths."""
    angle_deg: float


@torch.no_grad()
def generate_long(
    models: Models,
    image: UInt8[np.ndarray, "H W 3"],
    prompt: str,
    *,
    num_windows: int,
    overlap: int,
    frames: int,
    height: int,
    width: int,
    sampler: Sampler,
) -> tuple[AnnotatedClip, list[Drift]]:
    """`num_windows` windows of `frames` that share `overlap` frames (4N + 1), and the drift at each seam.

    Raises ValueError for sizes that are not the model's, and for overlaps that do not fill whole latent frames.
    """
    sample.check_size(frames, height, width)
    if not 1 <= overlap < frames or (overlap - 1) % KEY_STRIDE:
        raise ValueError(
            f"windows of {frames} frames overlap by {overlap}, expected 4N + 1 frames, fewer than a window"
        )
    first = sample.image(image, height, width).to(models.device)
    whole, drifts, known = None, [], None
    for window in range(num_windows):
        here = replace(sampler, seed=sampler.seed + window)
        z0 = denoise(models, first, prompt, frames, here, known)
        clip = decoded(models, z0, f"window{window}", prompt, here)
        if whole is None:
            whole = clip
        else:
            drift, clip = _fitted(whole, clip, overlap)
            whole, drifts = joined(whole, clip, overlap), [*drifts, drift]
        first, known = _handover(models, z0, overlap)
    assert whole is not None
    scores = {**whole.scores, **_worst(drifts)}
    name = generate.name_of(image, prompt, (num_windows, frames, overlap, height, width), sampler)
    return replace(whole, id=name, frames=np.arange(len(whole.rgb)), scores=scores), drifts


def _worst(drifts: list[Drift]) -> dict[str, float]:
    """The largest of every measure over the seams; of scales the one furthest from 1."""
    if not drifts:
        return {}
    found = {name: max(vars(drift)[name] for drift in drifts) for name in ("color", "depth", "position", "angle_deg")}
    found["scale"] = max((drift.scale for drift in drifts), key=lambda scale: abs(np.log(scale)))
    return {f"drift_{name}": float(value) for name, value in found.items()}


def count(frames: int, window: int, overlap: int) -> int:
    """Windows that fill a clip of `frames` exactly. Raises ValueError with the nearest length that can be filled."""
    step = window - overlap
    num_windows = max(1, round((frames - overlap) / step))
    if overlap + num_windows * step != frames:
        raise ValueError(
            f"{frames} frames: windows of {window} that overlap by {overlap} make {overlap + num_windows * step}, or {step} more "
            "or fewer"
        )
    return num_windows


def _handover(
    models: Models, z0: Float[Tensor, "1 F Z h w"], overlap: int
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "1 M Z h w"]]:
    """The next window's first frame, and the latents of all frames it shares: decoded and encoded again, from their own start."""
    halves = z0.split(dit.CHANNELS, dim=2)
    videos = [latents.decode(models.vae, half)[:, -overlap:].clamp(-1, 1) for half in halves]
    known = torch.cat([latents.encode(models.vae, video).mean for video in videos], dim=2)
    return videos[0][0, 0], known


def _fitted(before: AnnotatedClip, after: AnnotatedClip, overlap: int) -> tuple[Drift, AnnotatedClip]:
    """The later window in the earlier one's world and unit, by the depth and the first camera of the overlap."""
    assert before.depth is not None and before.cameras is not None  # noqa: PT018
    assert after.depth is not None and after.cameras is not None  # noqa: PT018
    both = before.depth.valid[-overlap:] & after.depth.valid[:overlap]
    gap = np.log(before.depth.z[-overlap:][both]) - np.log(after.depth.z[:overlap][both])
    scale = float(np.exp(np.median(gap)))
    world_from_window = before.cameras.world_from_cam[-overlap]
    clip = moved(after, world_from_window, scale)
    assert clip.cameras is not None
    seam = np.linalg.inv(before.cameras.world_from_cam[-1]) @ clip.cameras.world_from_cam[overlap - 1]
    drift = Drift(
        color=float(np.abs(before.rgb[-overlap:].astype(float) - after.rgb[:overlap]).mean() / 255),
        depth=float(np.median(np.abs(gap - np.median(gap)))),
        scale=scale,
        position=float(np.linalg.norm(seam[:3, 3]) / np.median(before.depth.z[before.depth.valid])),
        angle_deg=float(metrics.angle_deg(torch.from_numpy(seam[:3, :3]))),
    )
    return drift, clip


def moved(clip: AnnotatedClip, world_from_window: np.ndarray, scale: float) -> AnnotatedClip:
    """The clip with its lengths multiplied, and its world another one."""
    assert clip.depth is not None and clip.cameras is not None and clip.motion is not None  # noqa: PT018
    poses = clip.cameras.world_from_cam.copy()
    poses[:, :3, 3] *= scale
    turn = (world_from_window[:3, :3] * scale).astype(np.float32)
    motion = clip.motion
    turned = {"scene_flow": motion.scene_flow @ turn.T}
    if motion.key_scene_flow is not None:
        turned["key_scene_flow"] = motion.key_scene_flow @ turn.T
    return clip.with_(
        depth=replace(clip.depth, z=clip.depth.z * np.float32(scale)),
        cameras=replace(clip.cameras, world_from_cam=world_from_window @ poses),
        motion=replace(motion, **turned),
    )


SLOTS = {
    "depth": {"z": "frames", "valid": "frames"},
    "cameras": {"world_from_cam": "frames", "intrinsics": "frames"},
    "flow": {"forward": "pairs", "backward": "pairs"},
    "key_flow": {"forward": "keys", "backward": "keys"},
    "motion": {
        "dynamic": "frames",
        "scene_flow": "pairs",
        "scene_flow_valid": "pairs",
        "key_scene_flow": "keys",
        "key_scene_flow_valid": "keys",
    },
}
"""What there is one of for each frame, pair of frames, or pair of key frames."""


def joined(before: AnnotatedClip, after: AnnotatedClip, overlap: int) -> AnnotatedClip:
    """One clip: all of the earlier, and of the later what does not overlap."""
    skip = {"frames": overlap, "pairs": overlap - 1, "keys": (overlap - 1) // KEY_STRIDE}
    parts = {}
    for slot, kinds in SLOTS.items():
        old, new = getattr(before, slot), getattr(after, slot)
        if old is not None:
            arrays = {
                name: np.concatenate((getattr(old, name), getattr(new, name)[skip[kind] :]))
                for name, kind in kinds.items()
            }
            parts[slot] = replace(old, **arrays)
    rgb = np.concatenate((before.rgb, after.rgb[overlap:]))
    return replace(before, rgb=rgb, frames=np.arange(len(rgb)), **parts)
