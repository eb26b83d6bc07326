"""What moves, and how far: dynamic pixels, and scene flow by equation 5 of the paper with the reasons it may not hold.

scene_flow_t(u) = P_{t+1}(u + F_t(u)) - P_t(u)   where dynamic, else exactly 0;  P: world-frame points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64
from pydantic import Field

from annotate.annotator import Annotate, Annotator, FlowModel
from shared import clip as clips
from shared.clip import AnnotatedClip, Flow


class Motion(Annotator):
    """Dynamic pixels from what a rigid world does not explain, joined with instances where given, and their scene flow."""

    kind: Literal["motion"] = "motion"
    long_side_px: Annotated[int, Field(ge=160, le=640)] = 384
    """Size at which a rigid world is tested; the cameras' setting gives it the same flows."""
    still_instance_px: Annotated[float, Field(ge=0)] = 1.5
    """A movable instance stands still if its median rigid residual is below this, or below 5 % of its flow."""
    max_depth_ratio: Annotated[float, Field(gt=1)] = 1.05
    """Of the depths around a point, at both ends: more is an edge."""
    max_uncertainty: Annotated[float, Field(gt=0)] = 1.0
    """Of the flow, where the network tells."""
    max_speed_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Times the clip's 99.5th percentile of speed: faster is an error."""

    def load(self) -> Annotate:
        return _Motion(self)


@dataclass(frozen=True)
class _Motion:
    knobs: Motion

    def __call__(self, clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
        if clip.motion is not None and _complete(clip.motion):
            return clip
        if clip.cameras is None or clip.depth is None:
            raise ValueError(f"{clip.id}: motion asks for cameras and depth, and the clip has no such labels")
        from annotate import dynamic, flow_slots
        from annotate.depth import scale

        clip = flow_slots.fill_flow(clip, flow)
        clip = scale.agree(clip, flow, self.knobs.long_side_px)
        clip = dynamic.decide(clip, flow, self.knobs.long_side_px, self.knobs.still_instance_px)
        return with_scene_flow(clip, self.knobs)


def _complete(motion: clips.Motion) -> bool:
    """Whether nothing that moves lacks scene flow; a data set may know it at some pixels only, such as those of its tracks."""
    missing = motion.dynamic[:-1] & ~motion.scene_flow_valid
    return bool(motion.scene_flow_valid.any()) and not missing.any() and motion.key_scene_flow is not None


def with_scene_flow(clip: AnnotatedClip, knobs: Motion) -> AnnotatedClip:
    """Scene flow of adjacent frames and of key frames; what truth has already is kept."""
    assert clip.motion is not None
    assert clip.flow is not None
    assert clip.key_flow is not None
    motion = clip.motion
    kept: dict[str, float] = {}
    known = motion.scene_flow_valid
    if not known.any() or (motion.dynamic[:-1] & ~known).any():
        vectors, valid, shares = scene_flow(clip, clip.flow, knobs)
        kept |= shares
        vectors[known] = motion.scene_flow[known]
        motion = replace(motion, scene_flow=vectors, scene_flow_valid=known | valid)
    if motion.key_scene_flow is None:
        vectors, valid, shares = scene_flow(clip, clip.key_flow, knobs)
        motion = replace(motion, key_scene_flow=vectors, key_scene_flow_valid=valid)
        kept |= {f"key_{name}": share for name, share in shares.items()}
    scores = {f"motion_kept_{name}": share for name, share in kept.items()}
    return clip.with_(motion=motion, scores=scores | {"motion_dynamic": float(motion.dynamic.mean())})


def scene_flow(
    clip: AnnotatedClip, flow: Flow, knobs: Motion
) -> tuple[Float32[np.ndarray, "P H W 3"], Bool[np.ndarray, "P H W"], Mapping[str, float]]:
    """World-frame displacements, their validity, and the share of dynamic pixels that passes each test.

    Static pixels are exactly 0, and valid where their depth is.
    """
    assert clip.motion is not None
    starts = range(0, clip.shape[0] - flow.stride, flow.stride)
    vectors = np.zeros((len(starts), *clip.shape[1:], 3), np.float32)
    valid = np.zeros(vectors.shape[:3], bool)
    counts = Counts()
    for p, t in enumerate(starts):
        moving = clip.motion.dynamic[t]
        good = _tested(clip, flow, p, t, knobs, counts)
        valid[p] = np.where(moving, good, _has_points(clip)[t])
        if good.any():
            vectors[p][good] = _displacement(clip, flow, p, t, good)
    moving = clip.motion.dynamic[list(starts)]
    _drop_too_fast(vectors, valid, moving & valid, knobs, counts)
    counts.add("all", valid[moving])
    return vectors, valid, counts.shares()


@dataclass
class Counts:
    """Of dynamic pixels: how many were asked, how many passed."""

    passed: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, passed: np.ndarray) -> None:
        self.passed[name] = self.passed.get(name, 0) + int(passed.sum())
        self.asked[name] = self.asked.get(name, 0) + passed.size

    def shares(self) -> dict[str, float]:
        return {name: self.passed[name] / self.asked[name] for name in self.passed if self.asked[name]}


def _tested(clip: AnnotatedClip, flow: Flow, p: int, t: int, knobs: Motion, counts: Counts) -> Bool[np.ndarray, "H W"]:
    """Dynamic pixels of frame t whose displacement can be believed."""
    import torch

    from shared import camera, warp

    assert clip.motion is not None
    moving, n = clip.motion.dynamic[t], t + flow.stride
    if not moving.any():
        return moving
    forward, backward = torch.from_numpy(flow.forward[p][moving]), torch.from_numpy(flow.backward[p])
    uv = camera.pixel_centers(*clip.shape[1:], like=forward)[torch.from_numpy(moving)]
    ends = uv + forward

    def at_end(values: np.ndarray, mode: Literal["bilinear", "nearest"] = "bilinear") -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(values, np.float32))[..., None]
        return warp.sample(image, ends, mode=mode).numpy()[..., 0]

    here, there = _has_points(clip)[t], _has_points(clip)[n]
    tests = {
        "in_bounds": warp.in_bounds(ends, *clip.shape[1:]).numpy(),
        "cycle": warp.cycle(forward[None], backward[None], uv)[1][0].numpy(),
        "depth_here": here[moving],
        "depth_there": at_end(there) > 0.999,  # all four pixels around
        "edge_here": _smooth(clip, t, here, knobs.max_depth_ratio)[moving],
        "edge_there": at_end(_smooth(clip, n, there, knobs.max_depth_ratio)) > 0.999,
        "moving_there": at_end(clip.motion.dynamic[n], "nearest") > 0.5,
    }
    if (instances := clip.motion.instances) is not None:
        tests["instance"] = at_end(instances[n], "nearest") == instances[t][moving]
    if flow.uncertainty is not None:
        tests["uncertainty"] = flow.uncertainty[p][moving] < knobs.max_uncertainty
    for name, passes in tests.items():
        counts.add(name, passes)
    good = moving.copy()
    good[moving] = np.logical_and.reduce(list(tests.values()))
    return good


def _displacement(
    clip: AnnotatedClip, flow: Flow, p: int, t: int, good: Bool[np.ndarray, "H W"]
) -> Float32[np.ndarray, "N 3"]:
    """Equation 5 at these pixels."""
    import torch

    from shared import warp

    ends = warp.targets(torch.from_numpy(flow.forward[p : p + 1]))[0][torch.from_numpy(good)]
    there = warp.sample(torch.from_numpy(points_of(clip, t + flow.stride)), ends).numpy()
    return (there - points_of(clip, t)[good]).astype(np.float32)


def points_of(clip: AnnotatedClip, t: int) -> Float64[np.ndarray, "H W 3"]:
    """World-frame points of one frame: a pointmap of the whole clip, to read a few pixels, costs a second."""
    import torch

    from shared import camera

    assert clip.cameras is not None
    world_from_cam = torch.from_numpy(clip.cameras.world_from_cam[t])
    if clip.points is not None:
        return camera.transform(world_from_cam, torch.from_numpy(clip.points.p_cam[t]).double()).numpy()
    assert clip.depth is not None
    z = torch.from_numpy(clip.depth.z[t : t + 1]).double()
    return camera.pointmap(z, world_from_cam[None], torch.from_numpy(clip.cameras.intrinsics[t : t + 1]))[0].numpy()


def _has_points(clip: AnnotatedClip) -> Bool[np.ndarray, "T H W"]:
    known = clip.points or clip.depth
    assert known is not None
    return known.valid


def _smooth(clip: AnnotatedClip, t: int, valid: Bool[np.ndarray, "H W"], ratio: float) -> Bool[np.ndarray, "H W"]:
    """No depth edge within a pixel: the ratio of the largest to the smallest valid depth of the 3x3 around stays small."""
    import cv2

    z = clip.points.p_cam[t, ..., 2] if clip.points is not None else clip.depth.z[t] if clip.depth is not None else None
    assert z is not None
    box = np.ones((3, 3), np.uint8)
    far = cv2.dilate(np.where(valid, z, 0).astype(np.float32), box)
    near = cv2.erode(np.where(valid, z, 1e30).astype(np.float32), box)
    return valid & (far < ratio * near)


def _drop_too_fast(
    vectors: Float32[np.ndarray, "P H W 3"],
    valid: Bool[np.ndarray, "P H W"],
    moving: Bool[np.ndarray, "P H W"],
    knobs: Motion,
    counts: Counts,
) -> None:
    """Displacements far above the clip's others are errors: set to 0 and not valid, in place."""
    speed = np.linalg.norm(vectors[moving], axis=-1)
    if not len(speed):
        return
    slow = speed <= knobs.max_speed_ratio * np.percentile(speed, 99.5)
    counts.add("speed", slow)
    valid[moving] = slow
    vectors[moving] *= slow[:, None]
