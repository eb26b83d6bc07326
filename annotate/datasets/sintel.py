"""MPI Sintel, for evaluation: depth, cameras and forward flow of a film. Files begin with the float 202021.25."""

import struct
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import Field as Knob

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene
from shared import files

TAG = 202021.25


class Sintel(Choice):
    """Each sequence of the training half."""

    kind: Literal["sintel"] = "sintel"
    licence: ClassVar[str] = "MPI Sintel (research benchmark)"
    about: ClassVar[About] = About(
        title="MPI Sintel",
        where="http://sintel.is.tue.mpg.de",
        size="23 sequences at 1024 x 436",
        layout="training/{final,clean,depth,camdata_left,flow,occlusions,invalid}/alley_1/frame_0001.{png,dpt,cam,flo}",
        brings="metric depth, cameras, forward flow, dynamic pixels and scene flow that follow from them",
    )
    fps: Annotated[float, Knob(gt=0)] = 24.0
    rendering: Literal["final", "clean"] = "final"
    """With or without blur, fog and grain; the other one where this is missing."""
    integer_centers: bool = True
    """Whether its K has its origin at the center of the first pixel; not documented."""
    max_range_m: Annotated[float, Knob(gt=0)] = 1000.0
    """Depth beyond is not valid."""

    def scenes(self, root: str) -> Iterator[str]:
        for half in reading.scenes_below(root, lambda names: "camdata_left/" in names):
            names = reading.folder(files.join(half, "camdata_left"))
            yield from (files.join(half, name[:-1]) for name in names if name.endswith("/"))

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: Sintel) -> None:
        half, _, name = uri.rpartition("/")
        kinds = ("final", "clean", "depth", "camdata_left", "flow", "occlusions", "invalid")
        self._knobs = knobs
        self._folders = {kind: files.join(half, kind, name) for kind in kinds}
        self._files = {kind: reading.numbered(folder, reading.last_number) for kind, folder in self._folders.items()}
        self._rendering = (
            knobs.rendering if self._files[knobs.rendering] else "clean" if self._files["clean"] else "final"
        )
        frames = set(self._files[self._rendering]) & set(self._files["depth"]) & set(self._files["camdata_left"])
        if not frames:
            raise ValueError(f"{uri}: no frame has picture, depth and camera")
        numbers = np.array(sorted(frames), np.int64)
        height, width = reading.first_size(self._uri(self._rendering, int(numbers[0])))
        shots = (numbers,)
        self.facts = Facts(uri=uri, licence=knobs.licence, fps=knobs.fps, height=height, width=width, shots=shots)

    def _uri(self, kind: str, number: int) -> str:
        return files.join(self._folders[kind], self._files[kind][number])

    def frame(self, number: int) -> Frame:
        z = _tagged(self._uri("depth", number), 1)[..., 0]
        intrinsics, cam_from_world = _camera(self._uri("camdata_left", number))
        if self._knobs.integer_centers:
            intrinsics += (0, 0, 0.5, 0.5)
        return Frame(
            rgb=reading.picture(self._uri(self._rendering, number)),
            z=np.where(np.isfinite(z) & (z > 0) & (z < self._knobs.max_range_m), z, 0).astype(np.float32),
            world_from_cam=poses.inverse(cam_from_world),
            intrinsics=intrinsics,
        )

    def flow(self, start: int, end: int) -> Field | None:
        """`occlusions` are white where it leads behind something, `invalid` where it is not known."""
        if end != start + 1 or start not in self._files["flow"]:
            return None
        values = _tagged(self._uri("flow", start), 2)
        valid = np.all(np.isfinite(values) & (np.abs(values) < 1e9), axis=-1)
        if (bad := self._white("invalid", start)) is not None:
            valid &= ~bad
        values = np.where(valid[..., None], values, 0).astype(np.float32)
        return Field(values=values, valid=valid, hidden=self._white("occlusions", start))

    def _white(self, kind: str, number: int) -> Bool[np.ndarray, "H W"] | None:
        if number not in self._files[kind]:
            return None
        shown = reading.pixels(self._uri(kind, number))
        return (shown if shown.ndim == 2 else shown[..., 0]) >= 128


def _tagged(uri: str, channels: int) -> np.ndarray:
    """A tag, width and height, then rows of float32."""
    data = files.read_bytes(uri)
    with reading.plainly(uri, f"the tag {TAG} and {channels} floats a pixel"):
        tag, width, height = struct.unpack_from("<fii", data)
        if tag != TAG or len(data) != 12 + 4 * channels * width * height:
            raise ValueError(f"tag {tag}, {width} x {height} pixels in {len(data)} bytes")
        return np.frombuffer(data, "<f4", offset=12).reshape(height, width, channels)


def _camera(uri: str) -> tuple[Float64[np.ndarray, " 4"], Float64[np.ndarray, "4 4"]]:
    data = files.read_bytes(uri)
    if len(data) != 4 + 8 * 21 or struct.unpack_from("<f", data)[0] != TAG:
        raise ValueError(f"{uri}: {len(data)} bytes, expected the tag {TAG} and 21 doubles")
    numbers = np.frombuffer(data, "<f8", offset=4)
    k, cam_from_world = numbers[:9].reshape(3, 3), np.vstack((numbers[9:].reshape(3, 4), (0, 0, 0, 1)))
    return k[[0, 1, 0, 1], [0, 1, 2, 2]].copy(), poses.checked(uri, cam_from_world)
