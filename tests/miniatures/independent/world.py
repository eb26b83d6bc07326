"""An exact world, ray-traced in float64: a textured room, a box that stands, two boxes that move, a camera that turns and rolls.

Written without a look at the importers or at the other miniatures, so that a misreading of a layout would have to be made twice.
World: right-handed, x east, y north, z up, metres. Cameras: OpenCV axes, corner-origin pixels.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SUPERSAMPLES = 3


def rotation(axis: str, degrees: float) -> np.ndarray:
    """3 x 3, right-handed, about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def rigid(rotation: np.ndarray, translation: object) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def moved(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]


@dataclass(frozen=True)
class World:
    """`num_frames` frames of it. Surfaces have ids: 0 the room, 1 the standing box, 2 and 3 the moving ones, -1 the sky."""

    num_frames: int = 6
    width: int = 96
    height: int = 64
    focal: float = 80.0
    ceiling: bool = False
    """False: the sky is seen above the walls."""
    camera_moves: bool = True
    boxes_move: bool = True

    BOXES = (
        ((-1.1, 1.4, 0.5), (0.4, 0.35, 0.5)),
        ((0.7, 0.5, 0.45), (0.32, 0.3, 0.45)),
        ((0.1, 2.0, 1.5), (0.3, 0.25, 0.3)),
    )
    """Centre at time 0 and half sizes."""
    ROOM = ((-2.5, -3.5, 0.0), (2.5, 3.0, 2.5))

    @cached_property
    def intrinsics(self) -> np.ndarray:
        """(fx, fy, cx, cy): the principal point is the middle of the picture."""
        return np.array([self.focal, self.focal, self.width / 2, self.height / 2])

    @property
    def k(self) -> np.ndarray:
        fx, fy, cx, cy = self.intrinsics
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])

    @cached_property
    def world_from_cam(self) -> np.ndarray:
        """T x 4 x 4."""
        looking_north = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0.0]])  # columns: right, down, forward
        poses = []
        for t in range(self.num_frames):
            s = t if self.camera_moves else 0
            turn = rotation("z", 4 - 1.3 * s) @ rotation("x", -6 + 0.5 * s) @ looking_north @ rotation("z", 3 + 0.7 * s)
            poses.append(rigid(turn, (0.1 + 0.06 * s, -2.6 + 0.04 * s, 1.4 - 0.02 * s)))
        return np.array(poses)

    @cached_property
    def cam_from_world(self) -> np.ndarray:
        return np.linalg.inv(self.world_from_cam)

    def box_pose(self, box: int, t: int) -> np.ndarray:
        """world_from_box of box 1, 2 or 3."""
        center, s = np.array(self.BOXES[box - 1][0]), t if self.boxes_move else 0
        if box == 1:
            return rigid(rotation("z", 20), center)
        if box == 2:
            return rigid(rotation("z", 35 + 5 * s), center + s * np.array((-0.09, -0.03, 0)))
        return rigid(rotation("y", 15 - 4 * s), center + s * np.array((0.05, -0.06, -0.04)))

    def pose_of(self, ids: np.ndarray, t: int) -> np.ndarray:
        """world_from_surface of every id (the room's and the sky's are the identity)."""
        poses = np.array([np.eye(4), *(self.box_pose(box, t) for box in (1, 2, 3))])
        return poses[np.maximum(ids, 0)]

    def centers(self) -> np.ndarray:
        """H x W x 2: the pixels' centres."""
        return np.stack(np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5), axis=-1)

    def cast(self, t: int, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is seen at places (... x 2) of frame t: depth along the optical axis (inf: sky), id, world point."""
        fx, fy, cx, cy = self.intrinsics
        rays = np.stack(((uv[..., 0] - cx) / fx, (uv[..., 1] - cy) / fy, np.ones(uv.shape[:-1])), axis=-1)
        direction, origin = rays @ self.world_from_cam[t, :3, :3].T, self.world_from_cam[t, :3, 3]
        z, ids = self._room(origin, direction), np.zeros(uv.shape[:-1], int)
        for box in (1, 2, 3):
            near = self._box(box, t, origin, direction)
            ids, z = np.where(near < z, box, ids), np.minimum(near, z)
        ids = np.where(np.isfinite(z), ids, -1)
        return z, ids, origin + np.where(np.isfinite(z), z, 1.0)[..., None] * direction

    def _room(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        low, high = np.array(self.ROOM)
        with np.errstate(divide="ignore"):
            exits = np.where(direction > 0, (high - origin) / direction, (low - origin) / direction)
        z = exits.min(axis=-1)
        through_roof = (exits.argmin(axis=-1) == 2) & (direction[..., 2] > 0)
        return z if self.ceiling else np.where(through_roof, np.inf, z)

    def _box(self, box: int, t: int, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        box_from_world = np.linalg.inv(self.box_pose(box, t))
        start, way, half = (
            moved(box_from_world, origin),
            direction @ box_from_world[:3, :3].T,
            np.array(self.BOXES[box - 1][1]),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            one, other = (-half - start) / way, (half - start) / way
        enter, leave = np.minimum(one, other).max(axis=-1), np.maximum(one, other).min(axis=-1)
        return np.where((enter < leave) & (enter > 0), enter, np.inf)

    @cached_property
    def seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Depth, id and world point of every pixel of every frame."""
        per_frame = [self.cast(t, self.centers()) for t in range(self.num_frames)]
        z, ids, points = (np.array(part) for part in zip(*per_frame))
        return z, ids, points

    @property
    def z(self) -> np.ndarray:
        return self.seen[0]

    @property
    def ids(self) -> np.ndarray:
        return self.seen[1]

    @property
    def points(self) -> np.ndarray:
        return self.seen[2]

    @property
    def sky(self) -> np.ndarray:
        return self.ids < 0

    @property
    def dynamic(self) -> np.ndarray:
        return (self.ids >= 2) & self.boxes_move

    def at(self, points: np.ndarray, ids: np.ndarray, t: int, other: int) -> np.ndarray:
        """Where the surfaces' points of time t are at another time."""
        onward = self.pose_of(ids, other) @ np.linalg.inv(self.pose_of(ids, t))
        return (onward[..., :3, :3] @ points[..., None])[..., 0] + onward[..., :3, 3]

    def project(self, points: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixel and depth of world points in frame t."""
        fx, fy, cx, cy = self.intrinsics
        p_cam = moved(self.cam_from_world[t], points)
        z = p_cam[..., 2]
        safe = np.where(z > 0, z, 1.0)
        return np.stack((fx * p_cam[..., 0] / safe + cx, fy * p_cam[..., 1] / safe + cy), axis=-1), z

    def flow(self, t: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(flow, defined, visible, scene flow) from frame t to another, in pixels and world metres."""
        ids, points = self.ids[t], self.points[t]
        onward = self.at(points, ids, t, other)
        uv, z_other = self.project(onward, other)
        defined = (ids >= 0) & (z_other > 0.01)
        inside = (uv > 0).all(axis=-1) & (uv[..., 0] < self.width) & (uv[..., 1] < self.height)
        z_seen, _, _ = self.cast(other, uv)
        visible = defined & inside & (np.abs(z_seen - z_other) < 1e-6)
        flow = np.where(defined[..., None], uv - self.centers(), 0.0)
        return flow, defined, visible, np.where((ids >= 2)[..., None], onward - points, 0.0)

    def tracks(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Points seen in some frame, followed through all: world (T, N, 3), pixel and depth (T, N, 3), visible (T, N), id (N,)."""
        draws = np.random.default_rng(seed)
        start = draws.integers(self.num_frames, size=count)
        uv = draws.uniform((1, 1), (self.width - 1, self.height - 1), size=(count, 2))
        found, ids = np.zeros((count, 3)), np.full(count, -1)
        for t in range(self.num_frames):
            _, ids[start == t], found[start == t] = self.cast(t, uv[start == t])
        start, found, ids = start[ids >= 0], found[ids >= 0], ids[ids >= 0]
        world, pixels, visible = [], [], []
        for t in range(self.num_frames):
            back = np.array([np.linalg.inv(self.pose_of(ids, s)) for s in range(self.num_frames)])[
                start, np.arange(len(ids))
            ]
            onward = self.pose_of(ids, t) @ back
            points = (onward[:, :3, :3] @ found[..., None])[..., 0] + onward[:, :3, 3]
            uv, z = self.project(points, t)
            z_seen, _, _ = self.cast(t, uv)
            inside = (uv > 0).all(axis=-1) & (uv[:, 0] < self.width) & (uv[:, 1] < self.height) & (z > 0)
            world.append(points)
            pixels.append(np.concatenate((uv, z[:, None]), axis=-1))
            visible.append(inside & (np.abs(z_seen - z) < 1e-6))
        return np.array(world), np.array(pixels), np.array(visible), ids

    @cached_property
    def rgb(self) -> np.ndarray:
        """T x H x W x 3, u8, area-averaged."""
        offsets = (np.arange(SUPERSAMPLES) + 0.5) / SUPERSAMPLES - 0.5
        frames = []
        for t in range(self.num_frames):
            shots = [self._colour(t, self.centers() + np.array((du, dv))) for du in offsets for dv in offsets]
            frames.append(np.mean(shots, axis=0))
        return np.array(frames).round().clip(0, 255).astype(np.uint8)

    def _colour(self, t: int, uv: np.ndarray) -> np.ndarray:
        _, ids, points = self.cast(t, uv)
        local = self.at(points, ids, t, 0)
        colour = np.full((*ids.shape, 3), 0.0)
        for channel, phase in enumerate((0.0, 1.7, 3.1)):
            waves = [
                np.sin(frequency * (local @ way) + phase + 2 * ids)
                for frequency, way in zip(
                    (6.0, 9.0, 13.0, 21.0), ((1, 0.3, 0.9), (-0.4, 1, 0.8), (0.8, -0.7, 1), (0.5, 1, -1))
                )
            ]
            colour[..., channel] = 128 + 27 * np.sum(waves, axis=0)
        colour += (
            20
            * np.sign(np.sin(5 * local[..., :1] + ids[..., None]))
            * np.sign(np.sin(5 * local[..., 1:2] + 5 * local[..., 2:]))
        )
        return np.where((ids < 0)[..., None], (150.0, 190.0, 235.0), colour)
