"""The value that flows through every stage: a clip, and what is known of it.

A `Clip` is pixels and where they came from. An `AnnotatedClip` is a clip with at most one `Depth`, `Cameras`, `Flow`, ...
Annotators fill its empty slots; a data set with truth brings some of them filled.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

KEY_STRIDE = 4
"""Frames a latent frame stands for: key frames are 0, 4, ..., the last of each causal group of the video VAE."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Depth:
    """z along the optical axis, 0 where not valid."""

    z: Float32[np.ndarray, "T H W"]
    valid: Bool[np.ndarray, "T H W"]
    metric: bool
    """True: meters. False: one unknown unit for the clip, the same as the cameras' translations."""
    source: str

    def __post_init__(self) -> None:
        _finite("depth", self.z)
        if self.valid.shape != self.z.shape:
            raise ValueError(f"depth from {self.source}: valid is {self.valid.shape}, z is {self.z.shape}")
        if (bad := self.valid & (self.z <= 0)).any():
            raise ValueError(f"depth from {self.source} is {self.z[bad].min():g} at a valid pixel, expected above 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Camera-frame points, only where the model is no pinhole; otherwise they are derived from depth and cameras."""

    p_cam: Float32[np.ndarray, "T H W 3"]
    valid: Bool[np.ndarray, "T H W"]
    metric: bool
    source: str

    def __post_init__(self) -> None:
        _finite("points", self.p_cam)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras:
    """Poses and pinhole intrinsics (fx, fy, cx, cy in pixels, corner origin) of every frame."""

    world_from_cam: Float64[np.ndarray, "T 4 4"]
    intrinsics: Float64[np.ndarray, "T 4"]
    metric: bool
    source: str
    degenerate: str | None = None
    """Why the cameras must not be trusted blindly: comma-joined flags such as `rotation_only` or `focal_weak`; None: no reason."""
    focal_source: str = "given"
    """given, metadata, self_calibrated, network or prior."""
    focal_rel_ci: float | None = None
    """Relative uncertainty of the focal length; None: unknown."""

    def __post_init__(self) -> None:
        _finite("cameras", self.world_from_cam)
        _finite("intrinsics", self.intrinsics)
        rotation = self.world_from_cam[:, :3, :3]
        off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(initial=0)
        if off > 1e-4 or (np.linalg.det(rotation) < 0).any():
            raise ValueError(f"cameras from {self.source} hold no rotation: R Rᵀ is {off:.2g} away from the identity")
        if np.abs(self.world_from_cam[:, 3] - (0, 0, 0, 1)).max(initial=0) > 0:
            raise ValueError(f"cameras from {self.source}: the last row of a pose is not (0, 0, 0, 1)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """Optical flow of the pairs (0, s), (s', s' + s), ...: every frame for stride 1, the key frames for stride 4."""

    forward: Float32[np.ndarray, "P H W 2"]
    backward: Float32[np.ndarray, "P H W 2"]
    stride: int = 1
    uncertainty: Float32[np.ndarray, "P H W"] | None = None
    """Of the forward flow, as the network gives it: 0 is certain; None: the method has none."""
    source: str

    def __post_init__(self) -> None:
        _finite("flow", self.forward)
        _finite("flow", self.backward)
        _finite("uncertainty", self.uncertainty)


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """What moves in the world, and how far until the next frame (world-frame displacement, exactly 0 where static)."""

    dynamic: Bool[np.ndarray, "T H W"]
    scene_flow: Float32[np.ndarray, "P H W 3"]
    scene_flow_valid: Bool[np.ndarray, "P H W"]
    key_scene_flow: Float32[np.ndarray, "Q H W 3"] | None = None
    """From key frame to key frame; None where it was not made."""
    key_scene_flow_valid: Bool[np.ndarray, "Q H W"] | None = None
    sky: Bool[np.ndarray, "T H W"] | None = None
    instances: Int32[np.ndarray, "T H W"] | None = None
    """0 is background."""
    source: str

    def __post_init__(self) -> None:
        _finite("scene flow", self.scene_flow)
        _finite("key scene flow", self.key_scene_flow)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tracks:
    """Points of surfaces that are followed through all frames; sparse, and exact where a data set knows them."""

    p_world: Float32[np.ndarray, "T N 3"]
    """In the clip's world and the unit of its cameras; 0 where not valid."""
    visible: Bool[np.ndarray, "T N"]
    """Valid, on the picture and not hidden."""
    valid: Bool[np.ndarray, "T N"]
    """The position is known."""
    source: str

    def __post_init__(self) -> None:
        _finite("tracks", self.p_world)
        if not self.p_world.shape[:2] == self.visible.shape == self.valid.shape:
            found = f"visible is {self.visible.shape}, valid is {self.valid.shape}, p_world is {self.p_world.shape}"
            raise ValueError(f"tracks from {self.source}: {found}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Frames of one shot at one rate and size, and where they came from."""

    id: str
    """A hash of source and span, without a dot, so that it survives a change of machine or order."""
    rgb: UInt8[np.ndarray, "T H W 3"]
    fps: float
    source: str
    """The uri of the video or scene it was cut from."""
    frames: Int64[np.ndarray, " T"]
    """Frame numbers in the source."""
    caption: str = ""
    licence: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        return self.rgb.shape[0], self.rgb.shape[1], self.rgb.shape[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedClip(Clip):
    """A clip and at most one of each annotation. Their agreement is checked here, once."""

    depth: Depth | None = None
    points: Points | None = None
    cameras: Cameras | None = None
    flow: Flow | None = None
    key_flow: Flow | None = None
    """Between key frames, `KEY_STRIDE` apart."""
    motion: Motion | None = None
    tracks: Tracks | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    """Measured once, stored for ever; thresholds are `curate`'s."""

    def __post_init__(self) -> None:
        if "." in self.id or not self.id:
            raise ValueError(f"clip id {self.id!r}: expected a name without a dot")
        for name, flow, stride in (("flow", self.flow, 1), ("key flow", self.key_flow, KEY_STRIDE)):
            if flow is not None and flow.stride != stride:
                raise ValueError(f"{self.id}: {name} has stride {flow.stride}, expected {stride}")
        for name, array, expected in self._shapes():
            if array is not None and array.shape != expected:
                raise ValueError(f"{self.id}: {name} is {array.shape}, the frames ask for {expected}")

    def _shapes(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        """Every array, and the shape that the frames ask for."""
        t, h, w = self.shape
        steps, keys = t - 1, (t - 1) // KEY_STRIDE
        yield "frame numbers", self.frames, (t,)
        if (depth := self.depth) is not None:
            yield "depth", depth.z, (t, h, w)
        if (points := self.points) is not None:
            yield "points", points.p_cam, (t, h, w, 3)
            yield "points.valid", points.valid, (t, h, w)
        if (cameras := self.cameras) is not None:
            yield "cameras", cameras.world_from_cam, (t, 4, 4)
            yield "intrinsics", cameras.intrinsics, (t, 4)
        for name, flow, pairs in (("flow", self.flow, steps), ("key flow", self.key_flow, keys)):
            if flow is not None:
                yield name, flow.forward, (pairs, h, w, 2)
                yield f"backward {name}", flow.backward, (pairs, h, w, 2)
                yield f"uncertainty of {name}", flow.uncertainty, (pairs, h, w)
        if (motion := self.motion) is not None:
            yield "dynamic", motion.dynamic, (t, h, w)
            yield "scene flow", motion.scene_flow, (steps, h, w, 3)
            yield "scene_flow_valid", motion.scene_flow_valid, (steps, h, w)
            yield "key scene flow", motion.key_scene_flow, (keys, h, w, 3)
            yield "key_scene_flow_valid", motion.key_scene_flow_valid, (keys, h, w)
            yield "sky", motion.sky, (t, h, w)
            yield "instances", motion.instances, (t, h, w)
        if (tracks := self.tracks) is not None:
            yield "tracks", tracks.p_world, (t, *tracks.p_world.shape[1:])

    @classmethod
    def of(cls, clip: Clip, **parts: Any) -> "AnnotatedClip":
        """The clip with these slots filled."""
        return cls(**{f.name: getattr(clip, f.name) for f in fields(clip)} | parts)

    def with_(self, *, scores: Mapping[str, float] | None = None, **parts: Any) -> "AnnotatedClip":
        """The clip with these slots filled or replaced; `scores` are added to those it has."""
        return replace(self, scores={**self.scores, **(scores or {})}, **parts)

    def pointmap(self) -> Float32[np.ndarray, "T H W 3"]:
        """World-frame points of every pixel, stored or derived from depth and cameras; 0 where depth is not valid.

        Raises ValueError if the clip has no cameras, or neither points nor depth.
        """
        if self.cameras is None or (self.points is None and self.depth is None):
            raise ValueError(f"{self.id}: a pointmap asks for cameras, and depth or points")
        import torch  # not at the top: reading an index needs no torch

        from shared import camera

        world_from_cam = torch.from_numpy(self.cameras.world_from_cam)
        if self.points is not None:
            p_cam, valid = torch.from_numpy(self.points.p_cam).double(), self.points.valid
            p_world = camera.transform(world_from_cam[:, None, None], p_cam)
        else:
            assert self.depth is not None
            z, valid = torch.from_numpy(self.depth.z).double(), self.depth.valid
            p_world = camera.pointmap(z, world_from_cam, torch.from_numpy(self.cameras.intrinsics))
        return np.where(valid[..., None], p_world.float().numpy(), np.float32(0))


def key_frames(num_frames: int) -> list[int]:
    """Frames 0, 4, 8, ... that latent frames stand for."""
    return list(range(0, num_frames, KEY_STRIDE))


def _finite(name: str, array: np.ndarray | None) -> None:
    if array is not None and not np.isfinite(array).all():
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(array))} values that are not finite")
