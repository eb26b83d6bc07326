"""One unit for depth that a network gave frame by frame, each frame in its own: what flow links must be equally far."""

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from shared import camera, warp
from shared.clip import KEY_STRIDE, AnnotatedClip, Cameras

STEP_PX = 4
MIN_POINTS = 100
MIN_PARALLAX_PX = 1.0
ANCHOR_WEIGHT = 0.3
"""Of what cameras say of a key frame, against 1 for what flow says of neighbors."""


def frame_scales(
    z: Float32[np.ndarray, "T H W"], valid: Bool[np.ndarray, "T H W"], clip: AnnotatedClip
) -> Float64[np.ndarray, " T"]:
    """Factors, with median 1, under which z agrees from frame to frame. The clip has its flow, and its cameras if it can.

    Least squares in ln s: neighbors give ln s_{t+1} − ln s_t, the median over points that flow links; where cameras move enough,
    the depth they triangulate anchors the key frames, so that errors cannot add up, and motion along the axis is allowed for.
    """
    num_frames = len(z)
    if num_frames == 1:
        return np.ones(1)
    anchors = _anchors(z, valid, clip)
    unit = _filled_in(anchors, num_frames)
    rows, wanted, weights = [], [], []
    for t, step in _steps(z, valid, clip, unit):
        rows.append(np.eye(num_frames)[t + 1] - np.eye(num_frames)[t])
        wanted.append(step)
        weights.append(1.0)
    for t, ratio in anchors.items():
        rows.append(np.eye(num_frames)[t])
        wanted.append(-ratio)
        weights.append(ANCHOR_WEIGHT)
    if not rows:
        return np.ones(num_frames)
    w = np.array(weights)[:, None]
    # the smallest solution: frames that nothing links keep their unit
    log_scale = np.linalg.lstsq(np.stack(rows) * w, np.array(wanted) * w[:, 0], rcond=None)[0]
    return np.exp(log_scale - np.median(log_scale))


def _steps(z: np.ndarray, valid: np.ndarray, clip: AnnotatedClip, unit: np.ndarray | None) -> list[tuple[int, float]]:
    """(t, ln of what z of frame t + 1 is to be multiplied by to agree with frame t)."""
    found = []
    for t in range(len(z) - 1):
        assert clip.flow is not None
        uv, ends = _linked(clip.flow.forward[t], clip.flow.backward[t])
        here, there = _read(z[t], valid[t], uv), _read(z[t + 1], valid[t + 1], ends)
        expected = here
        if clip.cameras is not None and unit is not None:
            expected = _seen_from_next(here, uv, clip.cameras, t, float(np.exp(unit[t])))
        ratio = torch.log(expected[(both := (here > 0) & (there > 0) & (expected > 0))] / there[both])
        if len(ratio) >= MIN_POINTS:
            found.append((t, float(ratio.median())))
    return found


def _anchors(z: np.ndarray, valid: np.ndarray, clip: AnnotatedClip) -> dict[int, float]:
    """ln(z / triangulated depth) of key frames, from flow to the next key frame (of the last: to the one before)."""
    found: dict[int, float] = {}
    if clip.cameras is None or clip.key_flow is None or not len(clip.key_flow.forward):
        return found
    forward, backward = clip.key_flow.forward, clip.key_flow.backward
    links = [(k, k + 1, forward[k], backward[k]) for k in range(len(forward))]
    links.append((len(forward), len(forward) - 1, backward[-1], forward[-1]))
    for here, there, way, way_back in links:
        uv, ends = _linked(way, way_back)
        inverse, parallax_px = _inverse_depth(uv, ends, clip.cameras, here * KEY_STRIDE, there * KEY_STRIDE)
        ratio = _read(z[here * KEY_STRIDE], valid[here * KEY_STRIDE], uv) * inverse
        known = (ratio > 0) & (parallax_px > MIN_PARALLAX_PX)
        if known.sum() >= MIN_POINTS:
            found[here * KEY_STRIDE] = float(torch.log(ratio[known]).median())
    return found


def _filled_in(anchors: dict[int, float], num_frames: int) -> np.ndarray | None:
    if not anchors:
        return None
    return np.interp(np.arange(num_frames), list(anchors), list(anchors.values()))


def _linked(way: np.ndarray, way_back: np.ndarray) -> tuple[Tensor, Tensor]:
    """Pixel positions of one frame and where flow takes them, where the way back agrees."""
    forward, backward = torch.tensor(way), torch.tensor(way_back)
    uv = camera.pixel_centers(*way.shape[:2], like=forward)[::STEP_PX, ::STEP_PX].flatten(0, 1)
    moved = forward[::STEP_PX, ::STEP_PX].flatten(0, 1)
    _, agrees = warp.cycle(moved[None], backward[None], uv)
    return uv[agrees[0]], (uv + moved)[agrees[0]]


def _read(z: np.ndarray, valid: np.ndarray, uv: Tensor) -> Tensor:
    """z at these places; 0 where it is not valid."""
    known = torch.from_numpy(np.stack((z, valid.astype(np.float32)), axis=-1))
    at, is_valid = warp.sample(known, uv).unbind(-1)
    return torch.where(is_valid > 0.999, at, 0)


def _next_from_this(cameras: Cameras, here: int, there: int) -> Tensor:
    world_from_cam = torch.tensor(cameras.world_from_cam)
    return (camera.invert(world_from_cam[there]) @ world_from_cam[here]).float()


def _rays(uv: Tensor, cameras: Cameras, t: int) -> Tensor:
    intrinsics = torch.tensor(cameras.intrinsics[t]).float()
    return camera.unproject(uv, torch.ones(len(uv)), intrinsics.expand(len(uv), 4))


def _seen_from_next(z: Tensor, uv: Tensor, cameras: Cameras, t: int, unit: float) -> Tensor:
    """z of the same points in the next camera; `unit`: of z, for one of the cameras'."""
    motion = _next_from_this(cameras, t, t + 1)
    return (_rays(uv, cameras, t) * z[:, None]) @ motion[2, :3] + unit * motion[2, 3]


def _inverse_depth(uv: Tensor, ends: Tensor, cameras: Cameras, here: int, there: int) -> tuple[Tensor, Tensor]:
    """ρ of m' ∝ R·x + ρ·τ in least squares, in the cameras' unit, and how many pixels of the flow are due to τ."""
    motion = _next_from_this(cameras, here, there)
    turned = _rays(uv, cameras, here) @ motion[:3, :3].T
    target = _rays(ends, cameras, there)[:, :2]
    of_depth = target * motion[2, 3] - motion[:2, 3]
    observed = turned[:, :2] - target * turned[:, 2:]
    inverse = (of_depth * observed).sum(-1) / of_depth.square().sum(-1).clamp(min=1e-20)
    return inverse, observed.norm(dim=-1) * float(cameras.intrinsics[there, 0])
