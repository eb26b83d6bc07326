"""BEDLAM: people in clothes, rendered with Unreal: depth, cameras and a mask of every person.

Depth is EXR in centimeters, planar. Unreal's world is x forward, y right, z up and left-handed, in centimeters; angles are yaw,
pitch and roll in degrees.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32
from pydantic import Field

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Exclusion, Facts, Frame, Scene
from shared import files

EDGE_RATIO = 1.1
"""Depths of neighbors whose ratio is above this lie on two surfaces, unless they go on as a plane does."""
PARTS = ("body", "clothing", "hair")
ENV = -1
"""Stands among persons for what is none."""

EXCLUDED = (
    Exclusion(
        scenes=(
            "20221010_3_1000_batch01hand",
            "20221017_3_1000_batch01hand",
            "20221018_3-8_250_batch01hand",
            "20221019_3_250_highbmihand",
        ),
        why="a picture at infinity stands behind the people, without geometry",
    ),
    Exclusion(scenes=("*closeup*",), why="its pictures are portraits on their side"),
)


class Bedlam(Choice):
    """Sequences of people."""

    kind: Literal["bedlam"] = "bedlam"
    licence: ClassVar[str] = "BEDLAM (non-commercial research, no redistribution)"
    about: ClassVar[About] = About(
        title="BEDLAM",
        where="https://bedlam.is.tue.mpg.de",
        size="sequences at 1280 x 720; depth at 30 or 6 frames/s",
        layout="SCENE/: png/seq_000000/seq_000000_0000.png, depth/seq_000000/seq_000000_0000_depth.exr, masks/seq_000000/*.png, "
        "ground_truth/camera/seq_000000_camera.csv",
        brings="metric depth, cameras, persons, dynamic pixels",
    )
    fps: Annotated[float, Field(gt=0)] = 30.0
    max_range_m: Annotated[float, Field(gt=0)] = 200.0
    """Depth beyond is not valid."""
    edge_px: Annotated[int, Field(ge=0)] = 1
    """Depth so near to an edge is not valid: pictures are blurred by motion, depth is not."""
    exclude: tuple[Exclusion, ...] = EXCLUDED

    def scenes(self, root: str) -> Iterator[str]:
        for scene in reading.scenes_below(root, lambda names: "png/" in names and "ground_truth/" in names):
            yield from sequences(scene, "png")

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


def sequences(scene: str, folder: str) -> Iterator[str]:
    """`scene/seq_000000` and so on."""
    for name in reading.folder(files.join(scene, folder)):
        if name.startswith("seq_") and name.endswith("/"):
            yield files.join(scene, name[:-1])


class _Scene(Scene):
    def __init__(self, uri: str, knobs: Bedlam) -> None:
        scene, _, self._name = uri.rpartition("/")
        self._knobs = knobs
        self._folders = {kind: files.join(scene, kind, self._name) for kind in ("png", "depth", "masks")}
        pictures = numbered(self._folders["png"], self._name, ".png", ".jpg")
        depths = numbered(self._folders["depth"], self._name, "_depth.exr")
        if not depths:
            raise ValueError(
                f"{self._folders['depth']}: holds no {self._name}_*_depth.exr, expected depth of the sequence"
            )
        rows = reading.table(files.join(scene, "ground_truth/camera", f"{self._name}_camera.csv"))
        numbers = np.array(sorted(set(pictures) & set(depths)), np.int64)
        self._pictures, self._depths = pictures, depths
        self._masks = persons(self._folders["masks"], self._name)
        height, width = reading.first_size(files.join(self._folders["png"], pictures[int(numbers[0])]))
        self._cameras = Cameras(f"{uri}: camera.csv", rows, height, width)
        self._cameras.check(numbers)
        shots = (numbers,)
        self.facts = Facts(uri=uri, licence=knobs.licence, fps=knobs.fps, height=height, width=width, shots=shots)

    def frame(self, number: int) -> Frame:
        z = centimeters(files.join(self._folders["depth"], self._depths[number]), self._knobs.max_range_m)
        return Frame(
            rgb=reading.picture(files.join(self._folders["png"], self._pictures[number])),
            z=without_edges(z, self._knobs.edge_px),
            instances=people(self._folders["masks"], self._masks.get(number, {}), z.shape) if self._masks else None,
            world_from_cam=self._cameras.world_from_cam(number),
            intrinsics=self._cameras.intrinsics(number),
        )


class Cameras:
    """Rows of an Unreal camera table: one a picture."""

    def __init__(self, name: str, rows: list[dict[str, str]], height: int, width: int) -> None:
        self._name, self._rows, self._size = name, rows, (height, width)

    def check(self, numbers: np.ndarray) -> None:
        """Raises ValueError if a frame has no row, or a row lacks a number."""
        if not len(numbers):
            raise ValueError(f"{self._name}: no picture has depth")
        if numbers[-1] >= len(self._rows):
            raise ValueError(f"{self._name}: has {len(self._rows)} rows, frame {numbers[-1]} asks for more")
        self.world_from_cam(int(numbers[0]))
        self.intrinsics(int(numbers[0]))

    def intrinsics(self, number: int) -> Float64[np.ndarray, " 4"]:
        height, width = self._size
        focal, sensor_width, sensor_height = self._values(number, "focal_length", "sensor_width", "sensor_height")
        return np.array([focal / sensor_width * width, focal / sensor_height * height, width / 2, height / 2])

    def world_from_cam(self, number: int) -> Float64[np.ndarray, "4 4"]:
        x, y, z, yaw, pitch, roll = self._values(number, "x", "y", "z", "yaw", "pitch", "roll")
        return unreal_pose(np.array([x, y, z]), *np.radians([yaw, pitch, roll]))

    def _values(self, number: int, *names: str) -> list[float]:
        with reading.plainly(self._name, f"numbers {', '.join(names)} in row {number}"):
            values = [float(self._rows[number][reading.plain(name)]) for name in names]
            if not np.isfinite(values).all():
                raise ValueError(f"row {number} holds {values}")
            return values


def unreal_pose(
    place_cm: Float64[np.ndarray, " 3"], yaw: float, pitch: float, roll: float
) -> Float64[np.ndarray, "4 4"]:
    """world_from_cam in meters and OpenCV's axes; the world is (y, -z, x) of Unreal's, which makes it right-handed."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    forward = np.array([cp * cy, cp * sy, sp])
    right = np.array([sr * sp * cy - cr * sy, sr * sp * sy + cr * cy, -sr * cp])
    up = np.array([-cr * sp * cy - sr * sy, sr * cy - cr * sp * sy, cr * cp])
    cam_from_world = np.stack([_handed(right), -_handed(up), _handed(forward)])
    return poses.pose(cam_from_world.T, _handed(place_cm) / 100)


def _handed(p: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, " 3"]:
    return np.array([p[1], -p[2], p[0]])


def numbered(folder: str, name: str, *ends: str) -> dict[int, str]:
    """Files of a sequence by frame number."""
    return reading.numbered(folder, reading.between(f"{name}_", *ends))


def centimeters(uri: str, max_range_m: float) -> Float32[np.ndarray, "H W"]:
    """Depth in meters, 0 where it is infinite or beyond the range."""
    z = reading.exr_channel(uri, ("Depth", "R", "Z")).astype(np.float32) / np.float32(100)
    return np.where(np.isfinite(z) & (z > 0) & (z <= max_range_m), z, 0).astype(np.float32)


def without_edges(z: Float32[np.ndarray, "H W"], edge_px: int) -> Float32[np.ndarray, "H W"]:
    """Depth with 0 within `edge_px` of where two surfaces meet.

    Inverse depth is linear over a plane's pixels, however steep: where it leaps, another surface begins.
    """
    if not edge_px:
        return z
    import cv2

    inverse = cv2.copyMakeBorder(np.where(z > 0, 1 / np.maximum(z, 1e-6), 0), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    height, width = z.shape
    here, leaps = inverse[1:-1, 1:-1], np.zeros(z.shape, bool)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        before = inverse[1 - down : 1 - down + height, 1 - right : 1 - right + width]
        after = inverse[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        nearest = np.maximum(np.maximum(before, after), here)
        leaps |= np.abs(before + after - 2 * here) > (1 - 1 / EDGE_RATIO) * nearest
    box = np.ones((2 * edge_px - 1, 2 * edge_px - 1), np.uint8)
    return np.where(cv2.dilate(leaps.astype(np.uint8), box) > 0, 0, z).astype(np.float32)


def persons(folder: str, name: str) -> dict[int, dict[int, list[str]]]:
    """Frame -> person -> mask files, of body, clothing and hair. A person out of view has none; ENV: what is no person."""
    found: dict[int, dict[int, list[str]]] = {}
    for file in reading.folder(folder):
        stem, _, ending = file.rpartition(".")
        words = stem.removeprefix(f"{name}_").split("_") if ending.lower() == "png" else []
        if len(words) == 3 and words[2] in PARTS and words[0].isdigit() and words[1].isdigit():
            found.setdefault(int(words[0]), {}).setdefault(int(words[1]), []).append(file)
        elif len(words) == 2 and words[1] == "env" and words[0].isdigit():
            found.setdefault(int(words[0]), {})[ENV] = [file]
    return found


def people(folder: str, masks: dict[int, list[str]], shape: tuple[int, int]) -> Int32[np.ndarray, "H W"]:
    """One more than the number of the person that a pixel shows; 0: none. All are one where only ENV is there."""
    ids = np.zeros(shape, np.int32)
    if list(masks) == [ENV]:
        return (~_white(files.join(folder, masks[ENV][0]))).astype(np.int32)
    for person, names in sorted(masks.items()):
        for name in names if person != ENV else ():
            ids[_white(files.join(folder, name))] = person + 1
    return ids


def _white(uri: str) -> Bool[np.ndarray, "H W"]:
    seen = reading.pixels(uri)
    return (seen if seen.ndim == 2 else seen[..., 0]) > 127
