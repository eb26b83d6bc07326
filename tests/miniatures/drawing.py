"""One exact scene for every miniature, and the files that miniatures are made of.

What is written here follows the documentation of the formats, not what the importers expect. The scene's cameras stand anywhere in
the world, not at its origin, so that an importer has to bring them home.
"""

import gzip
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import scene

from shared.clip import AnnotatedClip

FRAMES, HEIGHT, WIDTH, FOCAL = 5, 48, 64, 60.0
BODIES = {"lateral": 1, "many_moving": 4}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The scene's truth in a world of its own."""

    clip: AnnotatedClip
    world_from_cam: np.ndarray
    """T 4 4, OpenCV's axes."""
    cam_from_world: np.ndarray
    k: np.ndarray
    """3 3, corner origin."""
    visible: np.ndarray
    """P H W."""

    @property
    def z(self) -> np.ndarray:
        return self.clip.depth.z

    @property
    def instances(self) -> np.ndarray:
        return self.clip.motion.instances

    @property
    def p_world(self) -> np.ndarray:
        """T H W 3, in the world of the scene."""
        rays = self.rays()
        p_cam = rays * self.z[..., None]
        return (
            np.einsum("tij,thwj->thwi", self.world_from_cam[:, :3, :3], p_cam)
            + self.world_from_cam[:, None, None, :3, 3]
        )

    def rays(self) -> np.ndarray:
        """H W 3, z = 1."""
        height, width = self.z.shape[1:]
        u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        fx, fy, cx, cy = self.k[0, 0], self.k[1, 1], self.k[0, 2], self.k[1, 2]
        return np.stack(((u - cx) / fx, (v - cy) / fy, np.ones_like(u)), axis=-1)

    @property
    def scene_flow(self) -> np.ndarray:
        """P H W 3 along the axes of the scene's world."""
        return self.clip.motion.scene_flow @ self.world_from_cam[0, :3, :3].T


def true(
    kind: str = "lateral",
    *,
    frames: int = FRAMES,
    seed: int = 3,
    height: int = HEIGHT,
    width: int = WIDTH,
    focal: float | None = None,
) -> Truth:
    """The scene, seen from cameras that start turned and away from the origin."""
    size = {"frames": frames, "height": height, "width": width, "focal": focal or FOCAL * width / WIDTH, "seed": seed}
    clip = scene.clip(kind, **size)
    start = np.eye(4)
    start[:3, :3] = cv2.Rodrigues(np.array([0.3, -0.9, 0.2]))[0]
    start[:3, 3] = (1.5, -2.0, 0.7)
    world_from_cam = start @ clip.cameras.world_from_cam
    fx, fy, cx, cy = clip.cameras.intrinsics[0]
    return Truth(
        clip=clip,
        world_from_cam=world_from_cam,
        cam_from_world=np.linalg.inv(world_from_cam),
        k=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        visible=scene.visible(kind, **size),
    )


def image(path: Path, pixels: np.ndarray) -> None:
    """A picture in the order of its file: RGB, or one channel; .jpg or .png, 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), pixels, parameters)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def document(path: Path, value: object) -> None:
    text(path, json.dumps(value))


def jgz(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(value).encode()))


def exr(path: Path, channels: dict[str, np.ndarray], compression: str = "zip") -> None:
    """A flat scan-line OpenEXR; float16 or float32 channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = next(iter(channels.values())).shape
    codes, kinds = {"none": 0, "zips": 2, "zip": 3}, {"float16": 1, "float32": 2}
    names = sorted(channels)
    listed = b"".join(
        name.encode() + b"\0" + struct.pack("<iIii", kinds[str(channels[name].dtype)], 0, 1, 1) for name in names
    )
    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    header = b"\x76\x2f\x31\x01" + struct.pack("<I", 2)
    for name, kind, value in (
        ("channels", "chlist", listed + b"\0"),
        ("compression", "compression", bytes([codes[compression]])),
        ("dataWindow", "box2i", box),
        ("displayWindow", "box2i", box),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ):
        header += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    header += b"\0"
    rows = 16 if compression in ("zip",) else 1
    chunks = []
    for y in range(0, height, rows):
        raw = b"".join(channels[name][line].tobytes() for line in range(y, min(y + rows, height)) for name in names)
        data = raw if compression == "none" else _zipped(raw)
        chunks.append(struct.pack("<ii", y, len(data)) + data)
    offsets, at = b"", len(header) + 8 * len(chunks)
    for chunk in chunks:
        offsets += struct.pack("<Q", at)
        at += len(chunk)
    path.write_bytes(header + offsets + b"".join(chunks))


def _zipped(raw: bytes) -> bytes:
    split = np.frombuffer(raw[0::2] + raw[1::2], np.uint8).astype(int)
    steps = split.copy()
    steps[1:] = (split[1:] - split[:-1] + 128) % 256
    packed = zlib.compress(steps.astype(np.uint8).tobytes())
    return packed if len(packed) < len(raw) else raw


def half_bits(values: np.ndarray) -> np.ndarray:
    """float16 values as the u16 numbers that have the same bits."""
    return values.astype(np.float16).view(np.uint16)


def quaternion_wxyz(rotation: np.ndarray) -> np.ndarray:
    """By the axis and the angle."""
    vector = cv2.Rodrigues(np.ascontiguousarray(rotation))[0][:, 0]
    angle = np.linalg.norm(vector)
    axis = vector / angle if angle > 1e-12 else np.zeros(3)
    return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis)])


def tracks(true: Truth, every: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T N 3 in the scene's world, T N visible, N instance): pixels of the first frame, followed by the truth of every step.

    A track rides on its surface, so its position after each step is that of the first frame plus the displacement of its body;
    it is visible where the picture shows the same depth.
    """
    frames = len(true.z)
    rows, columns = (grid.ravel() for grid in np.mgrid[1:HEIGHT:every, 1:WIDTH:every])
    instance = true.instances[0, rows, columns]
    points = [true.p_world[0, rows, columns]]
    for t in range(frames - 1):
        points.append(_moved(true, points[-1], instance, t))
    p_world = np.stack(points)
    visible = np.stack([_shown(true, p_world[t], t) for t in range(frames)])
    return p_world, visible, instance


def _moved(true: Truth, p_world: np.ndarray, instance: np.ndarray, t: int) -> np.ndarray:
    """By the rigid motion of each body between t and t + 1, found from its pixels' true scene flow."""
    moved = p_world.copy()
    for number in np.unique(instance[instance > 0]):
        where = true.instances[t] == number
        a = true.p_world[t][where]
        b = a + true.scene_flow[t][where]
        u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
        turn = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
        mine = instance == number
        moved[mine] = (p_world[mine] - a.mean(0)) @ turn.T + b.mean(0)
    return moved


def _shown(true: Truth, p_world: np.ndarray, t: int) -> np.ndarray:
    cam = true.cam_from_world[t]
    p_cam = p_world @ cam[:3, :3].T + cam[:3, 3]
    uv = p_cam @ true.k.T
    column, row = (np.floor(uv[:, k] / uv[:, 2]).astype(int) for k in (0, 1))
    inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    z = true.z[t, np.clip(row, 0, HEIGHT - 1), np.clip(column, 0, WIDTH - 1)]
    return inside & (np.abs(z - p_cam[:, 2]) < 0.02 * z)
