"""Kubric: simulated objects on a floor, as MOVi is published (TFDS records) or as its workers write a scene (a file a picture).

Depth is the length of rays, flow is (rows, columns), cameras and objects are poses in OpenGL's axes. Scene flow is exact between
any two frames, since every pixel rides on an object whose pose is known.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8
from pydantic import Field as Knob

from annotate.datasets import kubric_records, poses, reading, tfrecord
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene
from shared import files

MOST_STEP_M = 0.1
"""Of depth in 16 bits. Where the sky is in view, at 1e10 m, the range is the sky's, and nothing else has depth."""
_KINDS = ("rgba", "rgb", "depth", "segmentation", "forward_flow", "backward_flow")


class Kubric(Choice):
    """Each record of a TFDS file, and each folder with a metadata.json, is a scene."""

    kind: Literal["kubric"] = "kubric"
    licence: ClassVar[str] = "Apache-2.0 (code), CC-BY (assets)"
    about: ClassVar[About] = About(
        title="Kubric MOVi",
        where="gs://kubric-public/tfds (https://github.com/google-research/kubric)",
        size="scenes of 24 frames at 256 x 256, MOVi-F at 512 x 512; 30 MB a scene at 256 x 256",
        layout="movi_{a,b,c,d,e,f}/SIZE/1.0.0/movi_e-train.tfrecord-00000-of-01024, as many of them as there are; or SCENE/: "
        "rgba_00000.png, depth_00000.{tiff,npy,png}, segmentation_00000.png, {forward,backward}_flow_00000.png, "
        "metadata.json, data_ranges.json",
        brings="metric depth, cameras, flow, exact scene flow, instances, dynamic pixels",
    )
    fps: Annotated[float, Knob(gt=0)] = 12.0
    """Where no metadata.json tells."""
    max_range_m: Annotated[float, Knob(gt=0)] = 1000.0
    """Depth beyond is sky."""

    def scenes(self, root: str) -> Iterator[str]:
        for folder in reading.scenes_below(root, _holds_scenes):
            shards = [files.join(folder, name) for name in reading.folder(folder) if kubric_records.is_shard(name)]
            for shard in shards:
                yield from (f"{shard}/{number}" for number in range(tfrecord.count(shard)))
            if not shards:
                yield folder

    def open(self, uri: str) -> Scene:
        in_shard = kubric_records.is_shard(uri.rpartition("/")[0].rpartition("/")[2])
        return _Scene(uri, kubric_records.Record(uri) if in_shard else _Folder(uri), self)


def _holds_scenes(names: list[str]) -> bool:
    return "metadata.json" in names or any(map(kubric_records.is_shard, names))


@runtime_checkable
class _Held(Protocol):
    """A scene's numbers as they are stored, wherever that is."""

    about: str
    """What tells of cameras and objects, in errors."""
    numbers: Int64[np.ndarray, " N"]
    """Of the frames with picture and depth."""
    height: int
    width: int
    fps: float | None
    camera: dict[str, Any]
    """focal_length, sensor_width, and of every frame positions and quaternions."""
    bodies: list[dict[str, Any]]
    """Of every object positions and quaternions."""

    def picture(self, number: int) -> UInt8[np.ndarray, "H W 3"]: ...

    def depth(self, number: int) -> np.ndarray:
        """H W, meters, or 16 bits of its range."""
        ...

    def segmentation(self, number: int) -> Int32[np.ndarray, "H W"] | None: ...

    def flow(self, kind: str, number: int) -> np.ndarray | None:
        """H W and at least 2 channels, 16 bits of its range."""
        ...

    def range(self, kind: str) -> tuple[float, float]:
        """What 0 and 65535 stand for."""
        ...


class _Folder:
    """A file a picture, and metadata.json."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        names = reading.folder(uri)
        self._files = {
            kind: {int(digits): name for name in names if (digits := _digits(name, kind)) is not None}
            for kind in _KINDS
        }
        self._files["rgba"] = self._files["rgba"] or self._files["rgb"]
        self.about = files.join(uri, "metadata.json")
        told = reading.document(self.about)
        ranges = files.join(uri, "data_ranges.json")
        self._ranges: dict[str, Any] = reading.document(ranges) if files.exists(ranges) else told.get("metadata", told)
        self.numbers = np.array(sorted(set(self._files["rgba"]) & set(self._files["depth"])), np.int64)
        if not len(self.numbers):
            raise ValueError(f"{uri}: no frame has picture and depth")
        self.height, self.width = self.picture(int(self.numbers[0])).shape[:2]
        with reading.plainly(self.about, "camera and instances with positions and quaternions"):
            self.camera, self.bodies = told["camera"], told.get("instances", [])
            rates = (told.get(part, {}).get("frame_rate") for part in ("metadata", "flags"))
            self.fps = next((float(rate) for rate in rates if rate), None)

    def picture(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        return reading.picture(files.join(self._uri, self._files["rgba"][number]))

    def depth(self, number: int) -> np.ndarray:
        uri = files.join(self._uri, self._files["depth"][number])
        raw = reading.array(uri) if uri.endswith(".npy") else reading.pixels(uri)
        return raw[..., 0] if raw.ndim == 3 else raw

    def segmentation(self, number: int) -> Int32[np.ndarray, "H W"] | None:
        if number not in self._files["segmentation"]:
            return None
        return reading.indexes(files.join(self._uri, self._files["segmentation"][number]))

    def flow(self, kind: str, number: int) -> np.ndarray | None:
        if number not in self._files[kind]:
            return None
        return reading.uint16(files.join(self._uri, self._files[kind][number]))

    def range(self, kind: str) -> tuple[float, float]:
        found: Any = self._ranges.get(kind, self._ranges.get(f"{kind}_range"))
        with reading.plainly(f"{self._uri}: the range of {kind}", "a lowest and a highest value"):
            low, high = (found["min"], found["max"]) if isinstance(found, dict) else found
            return float(low), float(high)


class _Scene(Scene):
    def __init__(self, uri: str, held: _Held, knobs: Kubric) -> None:
        self._held, self._knobs = held, knobs
        height, width, numbers = held.height, held.width, held.numbers
        with reading.plainly(held.about, "camera and instances with positions and quaternions"):
            focal = held.camera["focal_length"] / held.camera["sensor_width"] * width
            self._k = np.array([focal, focal, width / 2, height / 2])
            self._world_from_cam = _poses(held.camera) @ poses.BLENDER_FROM_OPENCV
            self._world_from_body = [_poses(body) for body in held.bodies]
        if numbers[-1] >= len(self._world_from_cam):
            raise ValueError(
                f"{held.about}: holds {len(self._world_from_cam)} cameras, frame {numbers[-1]} asks for more"
            )
        self.facts = Facts(
            uri=uri,
            licence=knobs.licence,
            fps=held.fps or knobs.fps,
            height=height,
            width=width,
            shots=(numbers,),
        )

    def frame(self, number: int) -> Frame:
        rays = np.linalg.norm(
            poses.lifted(np.ones((self.facts.height, self.facts.width), np.float32), self._k), axis=-1
        )
        z = self._lengths(number) / rays
        sky = ~(np.isfinite(z) & (z < self._knobs.max_range_m))
        return Frame(
            rgb=np.ascontiguousarray(self._held.picture(number)),
            z=np.where(sky | (z <= 0), 0, z).astype(np.float32),
            sky=sky,
            instances=self._held.segmentation(number),
            world_from_cam=self._world_from_cam[number],
            intrinsics=self._k,
        )

    def _lengths(self, number: int) -> Float64[np.ndarray, "H W"]:
        """Of rays, in meters."""
        raw = self._held.depth(number)
        if raw.dtype.kind == "f":
            return raw.astype(np.float64)
        low, high = self._held.range("depth")
        if high - low > 65535 * MOST_STEP_M:
            told = f"its depth of 16 bits reaches from {low:.3g} to {high:.3g} m"
            raise ValueError(f"{self.facts.uri}: {told}, expected steps of {MOST_STEP_M} m at most")
        return self._measured(raw, "depth")

    def _measured(self, raw: np.ndarray, kind: str) -> Float64[np.ndarray, "*shape"]:
        low, high = self._held.range(kind)
        return raw / 65535 * (high - low) + low

    def flow(self, start: int, end: int) -> Field | None:
        kind = {1: "forward_flow", -1: "backward_flow"}.get(end - start)
        raw = None if kind is None else self._held.flow(kind, start)
        if kind is None or raw is None:
            return None
        rows_columns = self._measured(raw[..., :2], kind)
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
