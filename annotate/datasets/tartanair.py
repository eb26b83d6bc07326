"""TartanAir, first edition: flights through still worlds. Poses are of a body that flies x forward, y right, z down."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field as Knob

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Exclusion, Facts, Field, Frame, Scene
from shared import files

SKY_M = 1000.0
CAM_FROM_BODY = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


class TartanAir(Choice):
    """Each trajectory is a scene."""

    kind: Literal["tartanair"] = "tartanair"
    licence: ClassVar[str] = "CC-BY-4.0"
    about: ClassVar[About] = About(
        title="TartanAir",
        where="https://theairlab.org/tartanair-dataset",
        size="flights through many environments at 640 x 480",
        layout="ENV/{Easy,Hard}/P000/: image_left/000000_left.png, depth_left/000000_left_depth.npy, pose_left.txt, "
        "flow/000000_000001_{flow,mask}.npy",
        brings="metric depth, cameras, flow; nothing moves",
    )
    fps: Annotated[float, Knob(gt=0)] | None = None
    """Nobody tells; None takes every frame, at the recipe's rate."""
    exclude: tuple[Exclusion, ...] = (Exclusion(scenes=("amusement",), why="the depth of its sky is corrupt"),)

    def scenes(self, root: str) -> Iterator[str]:
        return reading.scenes_below(root, lambda names: "pose_left.txt" in names)

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: TartanAir) -> None:
        self._at = {name: files.join(uri, name) for name in ("image_left", "depth_left", "flow")}
        self._pictures = reading.numbered(self._at["image_left"], reading.between("", "_left.png", "_left.jpg"))
        self._depths = reading.numbered(self._at["depth_left"], reading.between("", "_left_depth.npy"))
        self._flows = pairs(self._at["flow"])
        self._world_from_cam = flown(files.join(uri, "pose_left.txt"))
        numbers = known(uri, self._pictures, self._depths, len(self._world_from_cam))
        height, width = reading.first_size(files.join(self._at["image_left"], self._pictures[int(numbers[0])]))
        self.facts = Facts(
            uri=uri, licence=knobs.licence, fps=knobs.fps, height=height, width=width, shots=(numbers,), static=True
        )

    def frame(self, number: int) -> Frame:
        z = reading.array(files.join(self._at["depth_left"], self._depths[number])).astype(np.float32)
        sky = ~(z < SKY_M)
        return Frame(
            rgb=reading.picture(files.join(self._at["image_left"], self._pictures[number])),
            z=np.where(sky | ~(z > 0), 0, z).astype(np.float32),
            sky=sky,
            world_from_cam=self._world_from_cam[number],
            intrinsics=wide(self.facts.height, self.facts.width),
        )

    def flow(self, start: int, end: int) -> Field | None:
        """What moves all the same, and what is hidden in the next frame, is masked."""
        found = self._flows.get((start, end), {})
        if "flow.npy" not in found:
            return None
        values = reading.array(files.join(self._at["flow"], found["flow.npy"])).astype(np.float32)
        valid = np.all(np.isfinite(values), axis=-1)
        if "mask.npy" in found:
            valid &= reading.array(files.join(self._at["flow"], found["mask.npy"])) == 0
        return Field(values=np.where(valid[..., None], values, 0).astype(np.float32), valid=valid)

    def scene_flow(self, start: int, end: int, frame: Frame) -> Field | None:
        """Nothing, except where the flow's mask says that it is not known."""
        field = self.flow(start, end)
        return None if field is None else Field(values=np.zeros((*field.valid.shape, 3), np.float32), valid=field.valid)


def pairs(folder: str) -> dict[tuple[int, int], dict[str, str]]:
    """Files between two frames, by what their names end in: `000003_000004_flow.npy` is `flow.npy` of (3, 4)."""
    found: dict[tuple[int, int], dict[str, str]] = {}
    for name in reading.folder(folder):
        if match := re.match(r"^(\d+)_(\d+)_(\w+\.\w+)$", name):
            found.setdefault((int(match[1]), int(match[2])), {})[match[3]] = name
    return found


def flown(uri: str) -> Float64[np.ndarray, "N 4 4"]:
    """world_from_cam of lines tx ty tz qx qy qz qw, which are world_from_body."""
    rows = reading.numbers(uri)
    if rows.ndim != 2 or rows.shape[1] != 7:
        raise ValueError(f"{uri}: rows of shape {rows.shape}, expected 7 numbers a line")
    if np.abs(np.linalg.norm(rows[:, 3:], axis=1) - 1).max(initial=0) > 0.01:
        raise ValueError(f"{uri}: a quaternion is not of unit length")
    world_from_body = poses.pose(poses.rotation(rows[:, [6, 3, 4, 5]]), rows[:, :3])
    return world_from_body @ CAM_FROM_BODY.T


def wide(height: int, width: int) -> Float64[np.ndarray, " 4"]:
    """Both editions look 90 degrees wide: 320 pixels of focal length at a width of 640."""
    return np.array([width / 2, width / 2, width / 2, height / 2])


def known(uri: str, pictures: dict[int, str], depths: dict[int, str], num_poses: int) -> np.ndarray:
    """Frames with picture, depth and pose."""
    numbers = np.array(sorted(n for n in set(pictures) & set(depths) if n < num_poses), np.int64)
    if not len(numbers):
        raise ValueError(f"{uri}: no frame has picture, depth and pose")
    return numbers
