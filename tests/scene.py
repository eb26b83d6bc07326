"""A world in closed form: a ray-cast room, textured boxes that move through it, and the exact truth of every frame.

Nothing here uses `shared.camera`: rays, projections and flows are written out once more in numpy, so that a wrong convention there
cannot agree with itself here. The truth is analytic. A pixel's surface point is known in the frame of the body it lies on, so where
that point is at any other time follows from the body's pose, seen or not: flow is the true projection also where the point leaves
the image or hides behind something.

    clip = scene.clip("orbit")                      # 49 frames, 240 x 320, f = 300 px
    clip = scene.tiny()                             # 9 frames, 48 x 64: for tests that only need something true
    seen = scene.visible("orbit")                   # does the forward flow's target show the same surface?
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from shared.clip import KEY_STRIDE, AnnotatedClip, Cameras, Depth, Flow, Motion

KINDS = (
    "lateral",  # sideways
    "orbit",  # around the middle of the room
    "dolly",  # forward
    "follow",  # sideways, and the mover keeps pace: it hardly moves in the image
    "handheld",  # a walk by hand: six wobbling degrees of freedom
    "low_texture",  # lateral, with walls of 4 grey levels' contrast
    "planar",  # lateral in front of one slanted wall
    "pure_rotation",  # pan and tilt about the camera's center
    "static",  # camera still
    "many_moving",  # lateral, with about 47 % of the pixels on movers
)
SUPERSAMPLING = 2
TEXTURE_M = 12.0
"""Every texture repeats after about this many meters."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A textured box and its pose at every frame."""

    half_m: np.ndarray
    stage_from_box: np.ndarray
    instance: int
    """0: part of the room."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The stage (x right, y down, z forward from where the camera starts, in meters) and the camera's way through it."""

    low: np.ndarray
    high: np.ndarray
    boxes: tuple[Box, ...]
    stage_from_cam: np.ndarray
    intrinsics: tuple[float, float, float, float]
    contrast: float
    """Standard deviation of the room's grey levels."""
    seed: int

    @property
    def stage_from_body(self) -> np.ndarray:
        """Poses of the room (body 0) and the boxes: bodies, frames, 4, 4."""
        room = np.broadcast_to(np.eye(4), self.stage_from_cam.shape)
        return np.stack([room, *(box.stage_from_box for box in self.boxes)])

    @property
    def instances(self) -> np.ndarray:
        return np.array([0, *(box.instance for box in self.boxes)], np.int32)


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What rays meet. Component first: `local` is 3, ...: the point in the frame of the body it lies on."""

    z: np.ndarray
    body: np.ndarray
    face: np.ndarray
    local: np.ndarray


def tiny(kind: str = "lateral", *, frames: int = 9, seed: int = 0) -> AnnotatedClip:
    """The same worlds at 48 x 64 pixels, in a few hundredths of a second."""
    return clip(kind, frames=frames, height=48, width=64, focal=60.0, seed=seed)


@lru_cache(maxsize=6)
def clip(
    kind: str, *, frames: int = 49, height: int = 240, width: int = 320, focal: float = 300.0, seed: int = 0
) -> AnnotatedClip:
    """Rendered frames with every slot filled by exact, metric truth. Cached: leave its arrays as they are."""
    world = build(kind, frames=frames, height=height, width=width, focal=focal, seed=seed)
    hits = [cast(world, t, centers(height, width)) for t in range(frames)]
    keys = range(0, frames, KEY_STRIDE)
    world_from_cam = np.linalg.inv(world.stage_from_cam[0]) @ world.stage_from_cam
    z = np.stack([h.z for h in hits]).astype(np.float32)
    instances = np.stack([world.instances[h.body] for h in hits])
    pairs, key_pairs = list(pairwise(range(frames))), list(pairwise(keys))
    scene_flow = _stack([_scene_flow(world, hits[a], a, b) for a, b in pairs], (0, height, width, 3))
    key_scene_flow = _stack([_scene_flow(world, hits[a], a, b) for a, b in key_pairs], (0, height, width, 3))
    return AnnotatedClip(
        id=f"scene-{kind}-{frames}x{height}x{width}-f{round(focal)}-s{seed}",
        rgb=render(world, height, width),
        fps=8.0,
        source=f"scene://{kind}-{seed}",
        frames=np.arange(frames),
        caption="a box moves through a room",
        licence="CC0-1.0",
        depth=Depth(z=z, valid=np.ones(z.shape, bool), metric=True, source="scene"),
        cameras=Cameras(
            world_from_cam=_rigid(world_from_cam),
            intrinsics=np.tile(np.array(world.intrinsics), (frames, 1)),
            metric=True,
            source="scene",
        ),
        flow=_flow(world, hits, pairs, 1),
        key_flow=_flow(world, hits, key_pairs, KEY_STRIDE),
        motion=Motion(
            dynamic=instances > 0,
            scene_flow=scene_flow,
            scene_flow_valid=np.ones(scene_flow.shape[:3], bool),
            key_scene_flow=key_scene_flow,
            key_scene_flow_valid=np.ones(key_scene_flow.shape[:3], bool),
            instances=instances,
            source="scene",
        ),
    )


def visible(
    kind: str,
    *,
    frames: int = 49,
    height: int = 240,
    width: int = 320,
    focal: float = 300.0,
    seed: int = 0,
    stride: int = 1,
) -> np.ndarray:
    """P H W: True where the forward flow ends inside the image, on the surface it came from (exact, by a ray through its end)."""
    world = build(kind, frames=frames, height=height, width=width, focal=focal, seed=seed)
    seen = []
    for t in range(0, frames - stride, stride):
        hits = cast(world, t, centers(height, width))
        uv, z = project(world, hits, t + stride)
        inside = (uv >= 0).all(0) & (uv[0] <= width) & (uv[1] <= height)
        there = cast(world, t + stride, uv)
        seen.append(inside & (there.body == hits.body) & (np.abs(there.z - z) < 1e-6 * z))
    return np.stack(seen)


def build(kind: str, *, frames: int, height: int, width: int, focal: float, seed: int) -> World:
    """The world of this kind. Speeds are per frame, so a longer clip travels farther."""
    if kind not in KINDS:
        raise ValueError(f"scene {kind!r}: expected one of {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    i = np.arange(frames) - (frames - 1) / 2
    planar = kind == "planar"
    low, high = np.array([-4.2, -2.0, -4.0]), np.array([4.2, 1.6, 8.0])
    if planar:  # one wall is all that any camera sees
        low, high = np.array([-90.0, -90.0, -90.0]), np.array([90.0, 90.0, 6.0])
    stage_from_cam = _camera(kind, i, rng)
    furniture = () if planar else _furniture(frames, rng)
    return World(
        low=low,
        high=high,
        boxes=(*furniture, *_movers(kind, i, stage_from_cam, rng)),
        stage_from_cam=stage_from_cam,
        intrinsics=(focal, focal, width / 2, height / 2),
        contrast=4.0 if kind == "low_texture" else 34.0,
        seed=seed,
    )


def _camera(kind: str, i: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """stage_from_cam of every frame; `i` counts frames from the middle one."""
    zero, pace = np.zeros_like(i), rng.uniform(0.9, 1.1)
    if kind in ("static", "pure_rotation"):
        turning = kind == "pure_rotation"
        yaw, pitch = 0.3 * pace * i, 2.0 * np.sin(i / 12)
        return _poses(zero, zero, zero, yaw_deg=yaw * turning, pitch_deg=pitch * turning)
    # without turning, no focal length can be told from another; the first camera looks along the stage's axes
    yaw, pitch = 2.5 * (np.sin(i / 9) - np.sin(i[0] / 9)), 1.2 * (np.sin(i / 13) - np.sin(i[0] / 13))
    if kind == "dolly":
        return _poses(zero, zero, 0.03 * pace * i, yaw_deg=yaw, pitch_deg=pitch)
    if kind == "orbit":
        angle = np.radians(0.6 * pace * i)
        x, z = -4.0 * np.sin(angle), 4.0 - 4.0 * np.cos(angle)
        return _poses(x, 0.1 * np.sin(i / 15), z, yaw_deg=np.degrees(angle))
    if kind == "handheld":
        wobble = [_wobble(i, rng) for _ in range(6)]
        x, y, z = 0.18 * wobble[0] + 0.008 * i, 0.12 * wobble[1], 0.18 * wobble[2] + 0.006 * i
        return _poses(x, y, z, yaw_deg=3 * wobble[3], pitch_deg=2 * wobble[4], roll_deg=1.5 * wobble[5])
    slant = 18.0 if kind == "planar" else 0.0
    return _poses(0.03 * pace * i, zero, zero, yaw_deg=yaw + slant, pitch_deg=pitch)


def _wobble(i: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth, restless signal of amplitude about one: periods of 12 to 60 frames."""
    periods, phases = np.array([60.0, 31.0, 17.0, 12.0]), rng.uniform(0, 2 * np.pi, 4)
    return (np.sin(2 * np.pi * i[:, None] / periods + phases) * (0.6, 0.4, 0.15, 0.07)).sum(1)


def _furniture(frames: int, rng: np.random.Generator) -> tuple[Box, ...]:
    """Three still boxes, so that depth has steps."""
    places = ((-2.3, 0.9, 5.2), (2.2, 0.6, 6.0), (0.6, -1.4, 6.6))
    halves = ((0.6, 0.7, 0.5), (0.7, 1.0, 0.5), (0.9, 0.5, 0.4))
    boxes = []
    for place, half in zip(places, halves):
        x, y, z = np.array(place) + rng.uniform(-0.15, 0.15, 3)
        pose = _poses(*(np.full(frames, c) for c in (x, y, z)), yaw_deg=np.full(frames, rng.uniform(-40, 40)))
        boxes.append(Box(half_m=np.array(half), stage_from_box=pose, instance=0))
    return tuple(boxes)


def _movers(kind: str, i: np.ndarray, stage_from_cam: np.ndarray, rng: np.random.Generator) -> tuple[Box, ...]:
    """One box that sways and turns; one that keeps pace with the camera; or four large ones."""
    half, phase = np.array([0.5, 0.5, 0.5]), rng.uniform(-0.4, 0.4)
    if kind == "follow":
        start = np.array([0.25, 0.15, 3.2])
        x, y, z = (start + stage_from_cam[:, :3, 3]).T
        pose = _poses(x, y, z, yaw_deg=np.full_like(i, 25.0), pitch_deg=np.full_like(i, 15.0))
        return (Box(half_m=half, stage_from_box=pose, instance=1),)
    if kind == "many_moving":
        places = ((-1.25, -0.1, 3.4), (0.1, 0.45, 2.9), (1.3, -0.2, 3.5), (0.0, -0.95, 3.9))
        return tuple(_swaying(half * 1.03, place, i, k, rng.uniform(0, 2 * np.pi)) for k, place in enumerate(places, 1))
    place = (0.9, 0.1, 3.3) if kind == "planar" else (-0.2, 0.1, 3.3)
    return (_swaying(half, place, i, 1, phase),)


def _swaying(half: np.ndarray, place: tuple[float, float, float], i: np.ndarray, instance: int, phase: float) -> Box:
    angle, sign = 2 * np.pi * i / 64 + phase, 1 - 2 * (instance % 2)
    x = place[0] + 0.55 * sign * np.sin(angle)
    y = place[1] + 0.15 * np.sin(1.7 * angle)
    z = place[2] + 0.25 * np.cos(angle)
    pose = _poses(x, y, z, yaw_deg=30 + 1.2 * sign * i, pitch_deg=20 + 0.5 * i)
    return Box(half_m=half, stage_from_box=pose, instance=instance)


def _poses(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    *,
    yaw_deg: np.ndarray | float = 0.0,
    pitch_deg: np.ndarray | float = 0.0,
    roll_deg: np.ndarray | float = 0.0,
) -> np.ndarray:
    """stage_from_body: turned by yaw (about y) after pitch (about x) after roll (about z)."""
    yaw, pitch, roll = (np.radians(np.broadcast_to(a, x.shape)) for a in (yaw_deg, pitch_deg, roll_deg))
    poses = np.tile(np.eye(4), (len(x), 1, 1))
    poses[:, :3, :3] = _turn(yaw, 2, 0) @ _turn(pitch, 1, 2) @ _turn(roll, 0, 1)
    poses[:, :3, 3] = np.stack((x, y, z), axis=1)
    return poses


def _turn(angle: np.ndarray, a: int, b: int) -> np.ndarray:
    """Rotations that turn axis a towards axis b."""
    turn = np.tile(np.eye(3), (len(angle), 1, 1))
    turn[:, a, a] = turn[:, b, b] = np.cos(angle)
    turn[:, b, a], turn[:, a, b] = np.sin(angle), -np.sin(angle)
    return turn


def centers(height: int, width: int, samples: int = 1) -> np.ndarray:
    """2 H W: (u, v) of the centers of `samples` x `samples` cells a pixel, the image's corner at (0, 0)."""
    u = (np.arange(width * samples) + 0.5) / samples
    v = (np.arange(height * samples) + 0.5) / samples
    return np.stack(np.meshgrid(u, v, indexing="xy"))


def cast(world: World, t: int, uv: np.ndarray) -> Hits:
    """Rays through image points. They have z = 1 in the camera, so the way along one is its depth."""
    fx, fy, cx, cy = world.intrinsics
    ray = np.stack(((uv[0] - cx) / fx, (uv[1] - cy) / fy, np.ones_like(uv[0])))
    rotation, origin = world.stage_from_cam[t, :3, :3], world.stage_from_cam[t, :3, 3]
    direction = np.tensordot(rotation.astype(uv.dtype), ray, 1)
    _, leaving = _slabs(origin, direction, world.low, world.high)
    z, axis = leaving.min(0), leaving.argmin(0)
    face, body = _face(axis, direction), np.zeros(z.shape, np.int8)
    local = _along(origin, direction, z)
    for number, box in enumerate(world.boxes, 1):
        box_from_stage = np.linalg.inv(box.stage_from_box[t])
        start = box_from_stage[:3, :3] @ origin + box_from_stage[:3, 3]
        heading = np.tensordot(box_from_stage[:3, :3].astype(uv.dtype), direction, 1)
        entering, leaving = _slabs(start, heading, -box.half_m, box.half_m)
        enter = entering.max(0)
        hit = (enter < leaving.min(0)) & (enter > 0) & (enter < z)
        z[hit], body[hit] = enter[hit], number
        face[hit] = _face(entering[:, hit].argmax(0), -heading[:, hit])
        local[:, hit] = _along(start, heading[:, hit], enter[hit])
    return Hits(z=z, body=body, face=face, local=local)


def _slabs(
    origin: np.ndarray, direction: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per axis, the ways along a ray to where it enters and leaves the slab between low and high."""
    safe = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    shape = (3,) + (1,) * (direction.ndim - 1)
    to_low = (low - origin).reshape(shape).astype(direction.dtype) / safe
    to_high = (high - origin).reshape(shape).astype(direction.dtype) / safe
    return np.minimum(to_low, to_high), np.maximum(to_low, to_high)


def _face(axis: np.ndarray, outward: np.ndarray) -> np.ndarray:
    """0..5: twice the axis, and 1 on its upper side."""
    return 2 * axis + (np.take_along_axis(outward, axis[None], 0)[0] > 0)


def _along(origin: np.ndarray, direction: np.ndarray, way: np.ndarray) -> np.ndarray:
    return origin.astype(direction.dtype).reshape((3,) + (1,) * way.ndim) + way * direction


def project(world: World, hits: Hits, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the hit points are at frame t: (2 H W pixels, depth). They ride on their bodies."""
    cam_from_stage = np.linalg.inv(world.stage_from_cam[t])
    cam_from_body = cam_from_stage @ world.stage_from_body[:, t]
    x, y, z = _ride(cam_from_body, hits)
    fx, fy, cx, cy = world.intrinsics
    return np.stack((fx * x / z + cx, fy * y / z + cy)), z


def _ride(target_from_body: np.ndarray, hits: Hits) -> np.ndarray:
    """The hit points in a target frame, by their body's transform."""
    points = np.empty_like(hits.local)
    for body, transform in enumerate(target_from_body):
        on = hits.body == body
        points[:, on] = transform[:3, :3] @ hits.local[:, on] + transform[:3, 3:]
    return points


def _scene_flow(world: World, hits: Hits, a: int, b: int) -> np.ndarray:
    """H W 3: how far the points seen at a go until b, along the axes of the first camera."""
    bodies = world.stage_from_body
    moved = _ride(bodies[:, b] - bodies[:, a], hits)  # exactly 0 on what stands still
    world_from_stage = world.stage_from_cam[0, :3, :3].T
    return np.moveaxis(np.tensordot(world_from_stage, moved, 1), 0, -1).astype(np.float32)


def _flow(world: World, hits: list[Hits], pairs: list[tuple[int, int]], stride: int) -> Flow:
    height, width = hits[0].z.shape
    uv, empty = centers(height, width), (0, height, width, 2)

    def lead(a: int, b: int) -> np.ndarray:
        return np.moveaxis(project(world, hits[a], b)[0] - uv, 0, -1).astype(np.float32)

    forward = _stack([lead(a, b) for a, b in pairs], empty)
    backward = _stack([lead(b, a) for a, b in pairs], empty)
    return Flow(forward=forward, backward=backward, stride=stride, source="scene")


def _stack(arrays: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.stack(arrays) if arrays else np.zeros(empty, np.float32)


def _rigid(poses: np.ndarray) -> np.ndarray:
    """Exactly (0, 0, 0, 1) below, and the identity first."""
    poses = poses.copy()
    poses[:, 3] = (0, 0, 0, 1)
    poses[0] = np.eye(4)
    return poses


def render(world: World, height: int, width: int) -> np.ndarray:
    """T H W 3: the mean of `SUPERSAMPLING`² rays a pixel."""
    texel_m, atlas = _textures(world, world.intrinsics[0])
    size = atlas.shape[1] - 1
    uv = centers(height, width, SUPERSAMPLING).astype(np.float32)
    frames = []
    for t in range(len(world.stage_from_cam)):
        hits = cast(world, t, uv)
        axis = hits.face // 2
        along = [np.take_along_axis(hits.local, ((axis + k) % 3)[None], 0)[0] / texel_m for k in (1, 2)]
        column = (along[0] + hits.face * 0.31 * size) % size
        row = along[1] % size + hits.body * np.float32(size + 1)
        fine = cv2.remap(atlas, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)
        frames.append(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def _textures(world: World, focal: float) -> tuple[float, np.ndarray]:
    """(Meters a texel, one periodic texture a body, stacked): noise without wavelengths below 2.5 pixels at 6 m."""
    texel_m = 2.5 * 6.0 / focal / 4
    size = 2 ** max(5, round(np.log2(TEXTURE_M / texel_m)))
    rng = np.random.default_rng([world.seed, 77])
    layers = []
    for instance in world.instances:
        contrast = max(world.contrast, 14.0) if instance else world.contrast
        color = 128 + rng.uniform(-30, 30, 3)
        layer = np.clip(color + contrast * _noise(size, texel_m, rng), 0, 255)
        layers.append(np.pad(layer.astype(np.uint8), ((0, 1), (0, 1), (0, 0)), mode="wrap"))
    return texel_m, np.concatenate(layers)


def _noise(size: int, texel_m: float, rng: np.random.Generator) -> np.ndarray:
    """Periodic color noise of unit deviation: wavelengths from 4 texels to 3 m, amplitudes falling as 1/frequency^1.2."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    band = (frequency <= 0.25) & (frequency >= texel_m / 3.0)
    gain = np.where(band, np.maximum(frequency, 1e-9) ** -1.2, 0).astype(np.float32)

    def channel() -> np.ndarray:
        white = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
        noise = np.fft.irfft2(white * gain, s=(size, size))
        return (noise / noise.std()).astype(np.float32)

    grey = channel()
    return np.stack([0.85 * grey + 0.5 * channel() for _ in range(3)], axis=-1)
