"""Kubric: simulated objects on a floor, as its own workers write a scene: one file a picture, and metadata.json.

Depth is the length of rays, flow is (rows, columns), cameras and objects are poses in OpenGL's axes. Scene flow is exact between
any two frames, since every pixel rides on an object whose pose is known. TFDS records have to be exported to this layout.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int32
from pydantic import Field as Knob

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene
from shared import files

_KINDS = ("rgba", "rgb", "depth", "segmentation", "forward_flow", "backward_flow")


class Kubric(Choice):
    """Each folder with a metadata.json is a scene."""

    kind: Literal["kubric"] = "kubric"
    licence: ClassVar[str] = "Apache-2.0 (code), CC-BY (assets)"
    about: ClassVar[About] = About(
        title="Kubric MOVi",
        where="https://github.com/google-research/kubric",
        size="scenes of 24 frames at 256 x 256 or 512 x 512",
        layout="SCENE/: rgba_00000.png, depth_00000.{tiff,npy,png}, segmentation_00000.png, {forward,backward}_flow_00000.png, "
        "metadata.json, data_ranges.json",
        brings="metric depth, cameras, flow, exact scene flow, instances, dynamic pixels",
    )
    fps: Annotated[float, Knob(gt=0)] = 12.0
    """Where metadata.json does not tell."""
    max_range_m: Annotated[float, Knob(gt=0)] = 1000.0
    """Depth beyond is sky."""

    def scenes(self, root: str) -> Iterator[str]:
        if any("tfrecord" in name for name in reading.folder(root)):
            raise ValueError(
                f"{root}: holds TFDS records, which only TensorFlow reads; export them to one file a picture"
            )
        return reading.scenes_below(root, lambda names: "metadata.json" in names)

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: Kubric) -> None:
        self._uri, self._knobs = uri, knobs
        names = reading.folder(uri)
        self._files = {
            kind: {int(digits): name for name in names if (digits := _digits(name, kind)) is not None}
            for kind in _KINDS
        }
        self._files["rgba"] = self._files["rgba"] or self._files["rgb"]
        about = files.join(uri, "metadata.json")
        told = reading.document(about)
        ranges = files.join(uri, "data_ranges.json")
        self._ranges: dict[str, Any] = reading.document(ranges) if files.exists(ranges) else told.get("metadata", told)
        numbers = np.array(sorted(set(self._files["rgba"]) & set(self._files["depth"])), np.int64)
        if not len(numbers):
            raise ValueError(f"{uri}: no frame has picture and depth")
        height, width = reading.first_size(files.join(uri, self._files["rgba"][int(numbers[0])]))
        with reading.plainly(about, "camera and instances with positions and quaternions"):
            eye = told["camera"]
            focal = eye["focal_length"] / eye["sensor_width"] * width
            self._k = np.array([focal, focal, width / 2, height / 2])
            self._world_from_cam = _poses(eye) @ poses.BLENDER_FROM_OPENCV
            self._world_from_body = [_poses(instance) for instance in told.get("instances", [])]
            fps = float(
                told.get("metadata", {}).get("frame_rate") or told.get("flags", {}).get("frame_rate") or knobs.fps
            )
        if numbers[-1] >= len(self._world_from_cam):
            raise ValueError(f"{about}: holds {len(self._world_from_cam)} cameras, frame {numbers[-1]} asks for more")
        shots = (numbers,)
        self.facts = Facts(uri=uri, licence=knobs.licence, fps=fps, height=height, width=width, shots=shots)

    def frame(self, number: int) -> Frame:
        rays = np.linalg.norm(
            poses.lifted(np.ones((self.facts.height, self.facts.width), np.float32), self._k), axis=-1
        )
        z = self._lengths(number) / rays
        sky = ~(np.isfinite(z) & (z < self._knobs.max_range_m))
        return Frame(
            rgb=np.ascontiguousarray(reading.picture(files.join(self._uri, self._files["rgba"][number]))),
            z=np.where(sky | (z <= 0), 0, z).astype(np.float32),
            sky=sky,
            instances=self._instances(number),
            world_from_cam=self._world_from_cam[number],
            intrinsics=self._k,
        )

    def _lengths(self, number: int) -> Float64[np.ndarray, "H W"]:
        """Of rays: floats as they are, 16 bits by their range."""
        uri = files.join(self._uri, self._files["depth"][number])
        raw = reading.array(uri) if uri.endswith(".npy") else reading.pixels(uri)
        raw = raw[..., 0] if raw.ndim == 3 else raw
        if raw.dtype.kind == "f":
            return raw.astype(np.float64)
        low, high = self._range("depth")
        return raw / 65535 * (high - low) + low

    def _range(self, kind: str) -> tuple[float, float]:
        """Of what 0 and 65535 stand for."""
        found: Any = self._ranges.get(kind, self._ranges.get(f"{kind}_range"))
        with reading.plainly(f"{self._uri}: the range of {kind}", "a lowest and a highest value"):
            low, high = (found["min"], found["max"]) if isinstance(found, dict) else found
            return float(low), float(high)

    def _instances(self, number: int) -> Int32[np.ndarray, "H W"] | None:
        if number not in self._files["segmentation"]:
            return None
        return reading.indexes(files.join(self._uri, self._files["segmentation"][number]))

    def flow(self, start: int, end: int) -> Field | None:
        kind = {1: "forward_flow", -1: "backward_flow"}.get(end - start)
        if kind is None or start not in self._files[kind]:
            return None
        raw = reading.uint16(files.join(self._uri, self._files[kind][start]))
        low, high = self._range(kind)
        rows_columns = raw[..., :2] / 65535 * (high - low) + low
        values = np.ascontiguousarray(rows_columns[..., ::-1]).astype(np.float32)
        return Field(values=values, valid=np.ones(values.shape[:2], bool))

    def scene_flow(self, start: int, end: int, frame: Frame) -> Field | None:
        """p(end) = P(end) P(start)^-1 p(start), P the pose of the pixel's object; the background stands still."""
        if frame.instances is None:
            return None
        assert frame.z is not None
        assert frame.world_from_cam is not None
        valid = (frame.z > 0) & (frame.instances <= len(self._world_from_body))
        here = poses.moved(frame.world_from_cam, poses.lifted(frame.z, self._k))
        vectors = np.zeros((*frame.z.shape, 3), np.float32)
        for number, world_from_body in enumerate(self._world_from_body, 1):
            on = valid & (frame.instances == number)
            there = world_from_body[end] @ poses.inverse(world_from_body[start])
            vectors[on] = (poses.moved(there, here[on]) - here[on]).astype(np.float32)
        return Field(values=vectors, valid=valid)


def _digits(name: str, kind: str) -> str | None:
    stem, _, digits = name.rpartition(".")[0].rpartition("_")
    return digits if stem == kind and digits.isdigit() else None


def _poses(thing: dict[str, Any]) -> Float64[np.ndarray, "T 4 4"]:
    quaternions, positions = (np.array(thing[name], np.float64) for name in ("quaternions", "positions"))
    if np.abs(np.linalg.norm(quaternions, axis=-1) - 1).max(initial=0) > 0.01:
        raise ValueError("a quaternion is not of unit length")
    return poses.pose(poses.rotation(quaternions), positions)
