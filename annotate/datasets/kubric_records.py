"""Kubric's MOVi as it is published: TFDS records, a scene each, as `tf.train.Example` (Kubric, challenges/movi/movi_{a..f}.py).

Nested features have a slash in their names; pictures are PNG, flow is whole numbers of 16 bits, and a range tells what 0 and 65535
stand for. A record tells its features' names and kinds itself: `features.json` and `dataset_info.json` are not asked.
"""

import re
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, UInt8, UInt16

from annotate.datasets import reading, tfrecord

_SHARD = re.compile(r".+\.tfrecord-\d+-of-\d+")
_POSES = {"positions": 3, "quaternions": 4}


def is_shard(name: str) -> bool:
    """`movi_e-train.tfrecord-00000-of-01024`, and not what a download has left unfinished: `….gstmp`."""
    return _SHARD.fullmatch(name) is not None


class Record:
    """One scene, as `kubric` asks for it. Only what is asked of it stays in memory, not the whole record.

    Raises ValueError for a record that is torn or damaged, and for one without pictures, depth or cameras.
    """

    def __init__(self, uri: str) -> None:
        shard, _, number = uri.rpartition("/")
        self.about = f"{shard}: record {number}"
        example = tfrecord.Example(tfrecord.record(shard, int(number)), self.about)
        self._pictures, self._depths = (_pieces(example, name) for name in ("video", "depth"))
        count = len(self._pictures)
        self.numbers = np.arange(count)
        self.height, self.width = self.picture(0).shape[:2]
        self._expect("depth", len(self._depths), count)
        self._segmentations = _pieces(example, "segmentations") if "segmentations" in example else None
        if self._segmentations is not None:
            self._expect("segmentations", len(self._segmentations), count)
        self._flows = {
            kind: self._shaped(kind, example.uint16s(kind), count, self.height, self.width, 2)
            for kind in ("forward_flow", "backward_flow")
            if kind in example
        }
        self._ranges = {
            kind: self._shaped(f"{kind}_range", example.floats(f"metadata/{kind}_range"), 2)
            for kind in ("depth", *self._flows)
        }
        self.camera: dict[str, Any] = {
            name: float(example.floats(f"camera/{name}")[0]) for name in ("focal_length", "sensor_width")
        }
        self.camera |= {name: found[0] for name, found in self._poses(example, "camera", 1).items()}
        num_bodies = (
            len(example.floats("instances/positions")) // (3 * count) if "instances/positions" in example else 0
        )
        bodies = self._poses(example, "instances", num_bodies) if num_bodies else {}
        self.bodies = [{name: found[body] for name, found in bodies.items()} for body in range(num_bodies)]
        self.fps: float | None = None

    def _poses(self, example: tfrecord.Example, whose: str, count: int) -> dict[str, Float64[np.ndarray, "N T C"]]:
        frames = len(self.numbers)
        return {
            name: self._shaped(
                f"{whose}/{name}", example.floats(f"{whose}/{name}").astype(np.float64), count, frames, size
            )
            for name, size in _POSES.items()
        }

    def _shaped(self, name: str, values: np.ndarray, *shape: int) -> np.ndarray:
        self._expect(name, len(values), int(np.prod(shape)))
        return values.reshape(shape)

    def _expect(self, name: str, found: int, count: int) -> None:
        if found != count:
            told = f"feature {name} has {found} values, expected {count}"
            raise ValueError(f"{self.about}: {told} ({len(self.numbers)} pictures of {self.width} x {self.height})")

    def picture(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        return reading.picture_of(self._pictures[number], f"{self.about}: picture {number}")

    def depth(self, number: int) -> UInt16[np.ndarray, "H W"]:
        where = f"{self.about}: depth {number}"
        found = reading.pixels_of(self._depths[number], where)
        if found.dtype != np.uint16 or found.shape != (self.height, self.width):
            told = f"is {found.dtype} {found.shape}, expected uint16 {(self.height, self.width)}"
            raise ValueError(f"{where} {told}")
        return found

    def segmentation(self, number: int) -> Int32[np.ndarray, "H W"] | None:
        if self._segmentations is None:
            return None
        return reading.pixels_of(self._segmentations[number], f"{self.about}: segmentation {number}").astype(np.int32)

    def flow(self, kind: str, number: int) -> UInt16[np.ndarray, "H W 2"] | None:
        return self._flows[kind][number] if kind in self._flows else None

    def range(self, kind: str) -> tuple[float, float]:
        low, high = self._ranges[kind]
        return float(low), float(high)


def _pieces(example: tfrecord.Example, name: str) -> list[bytes]:
    return [bytes(piece) for piece in example.pieces(name)]
