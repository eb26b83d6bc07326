"""True labels made wrong in controlled ways: what gates are calibrated on.

Each corruption takes a clip with truth, a strength and a generator. Its `mild` strength is what we still want to train on; at its
`harmful` strength labels teach something false. A corruption that changes nothing (the poses of a still camera, put in another
order) is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64

from shared.clip import AnnotatedClip, Flow

Corruptor = Callable[[AnnotatedClip, float, np.random.Generator], AnnotatedClip]


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to be wrong."""

    name: str
    what: str
    """With {} for the strength."""
    apply: Corruptor
    mild: float | None
    """None: there is no mild way."""
    harmful: float


def changed(clip: AnnotatedClip, other: AnnotatedClip) -> bool:
    """Whether any label differs by more than rounding."""
    before, after = (_arrays(c) for c in (clip, other))
    return any(np.abs(a - b).max(initial=0) > 1e-9 for a, b in zip(before, after))


def _arrays(clip: AnnotatedClip) -> list[np.ndarray]:
    parts: list[np.ndarray] = []
    if clip.depth is not None:
        parts.append(clip.depth.z)
    if clip.cameras is not None:
        parts += [clip.cameras.world_from_cam, clip.cameras.intrinsics]
    if clip.flow is not None:
        parts += [clip.flow.forward, clip.flow.backward]
    if clip.motion is not None:
        parts += [clip.motion.scene_flow, clip.motion.dynamic.astype(np.float32)]
    return parts


def _scale_drift(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    ramp = np.exp(rng.choice((-1, 1)) * np.log1p(strength) * np.linspace(0, 1, clip.shape[0]))
    return _scaled(clip, ramp)


def _scale_flicker(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    return _scaled(clip, np.exp(rng.normal(0, strength, clip.shape[0])))


def _other_unit(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    """No change where the camera stays in its place: its translations have no unit to differ from."""
    if np.ptp(_poses(clip)[:, :3, 3], axis=0).max() < 1e-6 * _median_depth(clip):
        return clip
    return _scaled(clip, np.full(clip.shape[0], (1 + strength) ** rng.choice((-1, 1))))


def _uneven_depth(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    waves = np.stack([_smooth_noise(clip.shape[1:], 0.15, rng) for _ in range(clip.shape[0])])
    return _scaled(clip, np.exp(strength * waves))


def _wide_edges(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    """The nearer surface grows over what lies behind it."""
    import cv2

    assert clip.depth is not None
    reach = max(1, round(strength * clip.shape[2] / 720))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    z = np.stack([cv2.erode(frame, kernel) for frame in np.where(clip.depth.valid, clip.depth.z, np.inf)])
    return clip.with_(depth=replace(clip.depth, z=np.where(clip.depth.valid, z, 0).astype(np.float32)))


def _center_jitter(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    poses = _poses(clip).copy()
    poses[1:, :3, 3] += rng.normal(0, strength * _median_depth(clip), (len(poses) - 1, 3))
    return _with_poses(clip, poses)


def _turn_jitter(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    poses = _poses(clip).copy()
    for pose in poses[1:]:
        pose[:3, :3] = pose[:3, :3] @ _rotation(np.radians(rng.normal(0, strength, 3)))
    return _with_poses(clip, poses)


def _longer_focal(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    assert clip.cameras is not None
    factor = (1 + strength) ** rng.choice((-1, 1))
    return clip.with_(cameras=replace(clip.cameras, intrinsics=clip.cameras.intrinsics * (factor, factor, 1, 1)))


def _zoom(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    assert clip.cameras is not None
    factor = np.linspace(1, 1 + strength, clip.shape[0])[:, None]
    intrinsics = clip.cameras.intrinsics * np.concatenate((factor, factor, factor**0, factor**0), axis=1)
    return clip.with_(cameras=replace(clip.cameras, intrinsics=intrinsics))


def _noisy_flow(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    """Errors of patches, as flow networks make them, not of single pixels."""

    def noisy(flow: Flow | None) -> Flow | None:
        if flow is None:
            return None
        error = strength * clip.shape[2] / 720 / np.sqrt(2)
        pair = [
            flow.forward + error * _patches(flow.forward, rng),
            flow.backward + error * _patches(flow.backward, rng),
        ]
        return replace(flow, forward=pair[0].astype(np.float32), backward=pair[1].astype(np.float32))

    return clip.with_(flow=noisy(clip.flow), key_flow=noisy(clip.key_flow))


def _swapped_poses(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    """The cameras of frames four apart, `strength` times, each at the other's place."""
    order = np.arange(clip.shape[0])
    for start in rng.choice(np.arange(1, clip.shape[0] - 4), round(strength), replace=False):
        order[[start, start + 4]] = order[[start + 4, start]]
    return _with_poses(clip, _poses(clip)[order])


def _frozen(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    """The camera stops after 1 - `strength` of the clip."""
    last = int((1 - strength) * (clip.shape[0] - 1))
    return _with_poses(clip, _poses(clip)[np.minimum(np.arange(clip.shape[0]), last)])


def _inverted(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    return _with_poses(clip, np.linalg.inv(_poses(clip)))


def _missed_movers(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    assert clip.motion is not None
    still = replace(clip.motion, dynamic=np.zeros_like(clip.motion.dynamic))
    return _with_scene_flow(clip.with_(motion=still), np.zeros_like)


def _wrong_scene_flow(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    """Off by `strength` of its own length, in a random direction."""
    axis = rng.normal(size=3)
    axis *= strength / np.linalg.norm(axis)
    return _with_scene_flow(clip, lambda flow: flow + np.linalg.norm(flow, axis=-1, keepdims=True) * axis)


def _leaking_scene_flow(clip: AnnotatedClip, strength: float, rng: np.random.Generator) -> AnnotatedClip:
    """Camera motion left in: everything moves by `strength` of the median depth."""
    off = strength * _median_depth(clip)
    return _with_scene_flow(clip, lambda flow: flow + off)


CORRUPTIONS = (
    Corruption(name="scale_drift", what="depth grows by {:.0%} through the clip", apply=_scale_drift, mild=0.05, harmful=0.4),
    Corruption(name="scale_flicker", what="depth scale of each frame off by {:.1%}", apply=_scale_flicker, mild=0.01, harmful=0.2),
    Corruption(name="other_unit", what="depth {:.0%} larger than the cameras' unit", apply=_other_unit, mild=0.03, harmful=0.5),
    Corruption(name="uneven_depth", what="depth of patches off by {:.0%}", apply=_uneven_depth, mild=0.02, harmful=0.2),
    Corruption(name="wide_edges", what="near surfaces {:.0f} px too wide", apply=_wide_edges, mild=3.0, harmful=24.0),
    Corruption(name="center_jitter", what="centers off by {:.2%} of the depth", apply=_center_jitter, mild=0.0003, harmful=0.02),
    Corruption(name="turn_jitter", what="cameras turned by {:.2f}° an axis", apply=_turn_jitter, mild=0.02, harmful=0.5),
    Corruption(name="focal_error", what="focal length off by {:.0%}", apply=_longer_focal, mild=0.03, harmful=0.5),
    Corruption(name="zoom", what="focal length drifts by {:.0%}", apply=_zoom, mild=0.02, harmful=0.5),
    Corruption(name="flow_noise", what="flow of patches off by {:.1f} px", apply=_noisy_flow, mild=0.5, harmful=6.0),
    Corruption(name="swapped_poses", what="{:.0f} pairs of cameras exchanged", apply=_swapped_poses, mild=None, harmful=2.0),
    Corruption(name="frozen_camera", what="the camera stops for the last {:.0%}", apply=_frozen, mild=None, harmful=0.9),
    Corruption(name="inverted_poses", what="world-from-camera is camera-from-world", apply=_inverted, mild=None, harmful=1.0),
    Corruption(name="missed_movers", what="nothing is said to move", apply=_missed_movers, mild=None, harmful=1.0),
    Corruption(name="wrong_scene_flow", what="scene flow off by {:.0%} of itself", apply=_wrong_scene_flow, mild=0.05, harmful=1.0),
    Corruption(name="leaking_scene_flow", what="all moves {:.1%} of depth", apply=_leaking_scene_flow, mild=None, harmful=0.005),
)  # fmt: skip


def _scaled(clip: AnnotatedClip, factor: Float64[np.ndarray, "T *image"]) -> AnnotatedClip:
    assert clip.depth is not None
    z = clip.depth.z * factor.reshape(clip.shape[0], *(factor.shape[1:] or (1, 1)))
    return clip.with_(depth=replace(clip.depth, z=z.astype(np.float32)))


def _poses(clip: AnnotatedClip) -> Float64[np.ndarray, "T 4 4"]:
    assert clip.cameras is not None
    return clip.cameras.world_from_cam


def _with_poses(clip: AnnotatedClip, poses: Float64[np.ndarray, "T 4 4"]) -> AnnotatedClip:
    assert clip.cameras is not None
    poses = poses.copy()
    poses[:, 3] = (0, 0, 0, 1)
    return clip.with_(cameras=replace(clip.cameras, world_from_cam=poses))


def _with_scene_flow(clip: AnnotatedClip, change: Callable[[np.ndarray], np.ndarray]) -> AnnotatedClip:
    """From frame to frame, and from key frame to key frame where there is one."""
    assert clip.motion is not None
    flows = {"scene_flow": clip.motion.scene_flow, "key_scene_flow": clip.motion.key_scene_flow}
    made = {name: change(flow).astype(np.float32) for name, flow in flows.items() if flow is not None}
    return clip.with_(motion=replace(clip.motion, **made))


def _median_depth(clip: AnnotatedClip) -> float:
    assert clip.depth is not None
    return float(np.median(clip.depth.z[clip.depth.valid]))


def _rotation(vector: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """Rodrigues' formula."""
    import cv2

    return np.asarray(cv2.Rodrigues(vector)[0], np.float64)


def _patches(like: Float32[np.ndarray, "P H W 2"], rng: np.random.Generator) -> np.ndarray:
    shape = like.shape[1:3]
    return (
        np.stack([np.stack([_smooth_noise(shape, 0.03, rng) for _ in range(2)], -1) for _ in like])
        if len(like)
        else like
    )


def _smooth_noise(shape: tuple[int, ...], part: float, rng: np.random.Generator) -> Float64[np.ndarray, "H W"]:
    """Unit deviation, patches as large as `part` of the longer side."""
    import cv2

    sigma = part * max(shape)
    noise = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), sigma)
    return (noise - noise.mean()) / noise.std()
