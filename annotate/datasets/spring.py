"""Spring: a film in stereo, with disparity at two times, flow both ways and cameras; exact scene flow follows from them.

Disparity and flow are HDF5 files at twice the pictures' size, in pixels of the pictures: each pixel has four values, a quarter of
a pixel off its center. Their mean is the center's where they show one surface; elsewhere the first stands, as in the data set's
own evaluation.
"""

import io
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32
from pydantic import Field as Knob

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene
from shared import files

BASELINE_M = 0.065
ONE_SURFACE = 1.05
"""Disparities of a pixel whose ratio is below this are one surface's."""
_KINDS = ("frame_left", "disp1_left", "disp2_FW_left", "disp2_BW_left", "flow_FW_left", "flow_BW_left")


class Spring(Choice):
    """The left camera of each scene of the training half."""

    kind: Literal["spring"] = "spring"
    licence: ClassVar[str] = "CC-BY-4.0"
    about: ClassVar[About] = About(
        title="Spring",
        where="https://spring-benchmark.org",
        size="37 training scenes at 1920 x 1080",
        layout="train/0001/{frame_left,disp1_left,disp2_FW_left,flow_FW_left,flow_BW_left}/KIND_0001.{png,dsp5,flo5}, "
        "train/0001/cam_data/{intrinsics,extrinsics}.txt",
        brings="metric depth, cameras, flow, scene flow, dynamic pixels",
    )
    fps: Annotated[float, Knob(gt=0)] | None = None
    """Nobody tells; None takes every frame, at the recipe's rate."""
    max_range_m: Annotated[float, Knob(gt=0)] = 1000.0
    """Depth beyond is not valid."""
    disparity_step_px: Annotated[float, Knob(ge=0)] = 0.0
    """How far disparity may be off beyond the rounding of its stored numbers: what moves by less than three times the error that
    follows from both stands still."""

    def scenes(self, root: str) -> Iterator[str]:
        return reading.scenes_below(root, lambda names: "frame_left/" in names and "cam_data/" in names)

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: Spring) -> None:
        self._knobs = knobs
        self._smooth: dict[int, Bool[np.ndarray, "H W"]] = {}
        self._read: dict[tuple[str, int], Field] = {}
        self._folders = {kind: files.join(uri, kind) for kind in _KINDS}
        self._files = {kind: reading.numbered(folder, reading.last_number) for kind, folder in self._folders.items()}
        numbers = np.array(sorted(set(self._files["frame_left"]) & set(self._files["disp1_left"])), np.int64)
        if not len(numbers):
            raise ValueError(
                f"{uri}: no frame has picture and disparity (disp1_left), which the test half does not bring"
            )
        intrinsics, extrinsics = (files.join(uri, f"cam_data/{name}.txt") for name in ("intrinsics", "extrinsics"))
        self._k, rows = reading.numbers(intrinsics), reading.numbers(extrinsics)
        if self._k.shape[1:] != (4,) or rows.shape[1:] != (16,) or len(self._k) != len(rows):
            raise ValueError(
                f"{uri}/cam_data: {self._k.shape} intrinsics and {rows.shape} extrinsics, expected 4 and 16 a row"
            )
        self._world_from_cam = poses.inverse(poses.checked(extrinsics, rows.reshape(-1, 4, 4)))
        if numbers[-1] > len(rows):
            raise ValueError(f"{extrinsics}: holds {len(rows)} cameras, frame {numbers[-1]} asks for more")
        height, width = reading.first_size(self._uri("frame_left", int(numbers[0])))
        shots = (numbers,)
        self.facts = Facts(uri=uri, licence=knobs.licence, fps=knobs.fps, height=height, width=width, shots=shots)

    def _uri(self, kind: str, number: int) -> str:
        return files.join(self._folders[kind], self._files[kind][number])

    def frame(self, number: int) -> Frame:
        """Frames count from 1, rows of cameras from 0."""
        return Frame(
            rgb=reading.picture(self._uri("frame_left", number)),
            z=self._z(self._values("disp1_left", number, "disparity")[0], self._k[number - 1, 0]),
            world_from_cam=self._world_from_cam[number - 1],
            intrinsics=self._k[number - 1],
        )

    def _z(self, disparity: Float32[np.ndarray, "H W"], focal: float) -> Float32[np.ndarray, "H W"]:
        known = np.isfinite(disparity) & (disparity > 0)
        z = focal * BASELINE_M / np.where(known, disparity, 1).astype(np.float64)
        return np.where(known & (z < self._knobs.max_range_m), z, 0).astype(np.float32)

    def flow(self, start: int, end: int) -> Field | None:
        kind = {1: "flow_FW_left", -1: "flow_BW_left"}.get(end - start)
        if kind is None or start not in self._files[kind]:
            return None
        if (kind, start) not in self._read:  # scene flow asks for it once more
            values, _ = self._values(kind, start, "flow")
            valid = np.all(np.isfinite(values), axis=-1)
            self._read = {(kind, start): Field(values=np.where(valid[..., None], values, np.float32(0)), valid=valid)}
        return self._read[kind, start]

    def _values(self, kind: str, number: int, key: str) -> tuple[np.ndarray, float]:
        """An array at the pictures' size as float32, and the largest relative error of its stored numbers."""
        uri, size = self._uri(kind, number), (self.facts.height, self.facts.width)
        stored = hdf5(uri, key)
        if stored.shape[:2] == size:
            return stored.astype(np.float32), _rounding(stored)
        if stored.shape[:2] != (2 * size[0], 2 * size[1]):
            found = f"{stored.shape[1]} x {stored.shape[0]}"
            raise ValueError(
                f"{uri}: {key} of {found}, expected that of its picture, {size[1]} x {size[0]}, or twice it"
            )
        mean = 0.25 * sum(part.astype(np.float32) for part in _four(stored))
        first = stored[::2, ::2].astype(np.float32)
        smooth = self._one_surface(number, stored if kind == "disp1_left" else None)
        smooth = smooth.reshape(*size, *[1] * (stored.ndim - 2)) & np.isfinite(mean)
        return np.where(smooth, mean, first), _rounding(stored)

    def _one_surface(self, number: int, disparity: np.ndarray | None) -> Bool[np.ndarray, "H W"]:
        """Pixels of a frame whose four disparities are alike; read once a frame."""
        if number not in self._smooth:
            if disparity is None:
                disparity = hdf5(self._uri("disp1_left", number), "disparity")
            four = _four(disparity)
            near, far = np.maximum.reduce(four), np.minimum.reduce(four)
            self._smooth = {number: (far > 0) & (near < ONE_SURFACE * far)}
        return self._smooth[number]

    def scene_flow(self, start: int, end: int, frame: Frame) -> Field | None:
        """u + F, lifted with the disparity that the point has at the other time, minus where it is now."""
        kind, flow = {1: "disp2_FW_left", -1: "disp2_BW_left"}.get(end - start), self.flow(start, end)
        if kind is None or flow is None or start not in self._files[kind]:
            return None
        assert frame.z is not None
        assert frame.intrinsics is not None
        assert frame.world_from_cam is not None
        k = self._k[end - 1]
        disparity, rounding = self._values(kind, start, "disparity")
        z_there = self._z(disparity, k[0])
        p_there = (
            poses.lifted(np.ones_like(z_there), k) + flow.values @ np.diag([1, 1, 0])[:2] / (*k[:2], 1)
        ) * z_there[..., None]
        here = poses.moved(frame.world_from_cam, poses.lifted(frame.z, frame.intrinsics))
        vectors = poses.moved(self._world_from_cam[end - 1], p_there) - here
        valid = flow.valid & (z_there > 0) & (frame.z > 0)
        z = np.maximum(frame.z, z_there).astype(np.float64)
        error_z = z * rounding + z**2 / (k[0] * BASELINE_M) * self._knobs.disparity_step_px
        moves = np.linalg.norm(vectors, axis=-1) > 3 * error_z
        return Field(values=np.where((valid & moves)[..., None], vectors, 0).astype(np.float32), valid=valid)


def hdf5(uri: str, key: str) -> np.ndarray:
    """An array as it is stored."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{uri}: reading HDF5 asks for h5py: pip install h5py") from None
    with reading.plainly(uri, f"an HDF5 file with {key}"), h5py.File(io.BytesIO(files.read_bytes(uri)), "r") as file:
        return np.asarray(file[key])


def _four(stored: np.ndarray) -> list[np.ndarray]:
    """The values of every pixel."""
    return [stored[down::2, right::2] for down in (0, 1) for right in (0, 1)]


def _rounding(stored: np.ndarray) -> float:
    """Largest relative error of a number in this format."""
    return float(np.finfo(stored.dtype).eps) / 2 if np.issubdtype(stored.dtype, np.floating) else 0.0
