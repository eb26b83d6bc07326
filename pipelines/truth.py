"""What is known of a clip beyond doubt, from shards of a data set or from truth files, laid over a prediction of it.

A truth file is an `.npz` named as its video. Its arrays: `shape` (T, H, W), `depth_delta` (u16, see `_depth`), `valid`, `dynamic`
and `visible` as packed bits, `world_from_cam` (T, 4, 4), `intrinsics` (fx, fy, cx, cy), and for the pairs that start at `frames`:
`flow_forward`, `scene_flow`.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from shared import files, shards
from shared.clip import AnnotatedClip


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Truth of some frames of a source; pairs are the frame numbers that flow and scene flow lead from and to."""

    name: str
    """The source's file name without folder and ending."""
    frames: Int64[np.ndarray, " T"]
    z: Float32[np.ndarray, "T H W"] | None = None
    valid: Bool[np.ndarray, "T H W"] | None = None
    world_from_cam: Float64[np.ndarray, "T 4 4"] | None = None
    intrinsics: Float64[np.ndarray, "T 4"] | None = None
    dynamic: Bool[np.ndarray, "T H W"] | None = None
    pairs: Int64[np.ndarray, "P 2"]
    flow: Float32[np.ndarray, "P H W 2"] | None = None
    visible: Bool[np.ndarray, "P H W"] | None = None
    scene_flow: Float32[np.ndarray, "P H W 3"] | None = None
    scene_flow_valid: Bool[np.ndarray, "P H W"] | None = None

    def covers(self, clip: AnnotatedClip) -> bool:
        return bool(np.isin(clip.frames, self.frames).all())

    def of(self, clip: AnnotatedClip) -> "Truth":
        """The truth of the clip's frames at the clip's size, in the world of the clip's first camera."""
        return self._pairs_of(clip)._frames_of(clip)._at(*clip.shape[1:])

    def _pairs_of(self, clip: AnnotatedClip) -> "Truth":
        wanted = set(zip(clip.frames[:-1].tolist(), clip.frames[1:].tolist()))
        kept = np.array([tuple(pair) in wanted for pair in self.pairs.tolist()], bool)
        per_pair = ("pairs", "flow", "visible", "scene_flow", "scene_flow_valid")
        return replace(self, **{name: part[kept] for name in per_pair if (part := getattr(self, name)) is not None})

    def _frames_of(self, clip: AnnotatedClip) -> "Truth":
        order = np.argsort(self.frames)
        at = order[np.searchsorted(self.frames, clip.frames, sorter=order)]
        names = ("frames", "z", "valid", "world_from_cam", "intrinsics", "dynamic")
        parts: dict[str, Any] = {name: part[at] for name in names if (part := getattr(self, name)) is not None}
        if self.world_from_cam is None:
            return replace(self, **parts)
        first_from_world = np.linalg.inv(self.world_from_cam[at[0]])
        parts["world_from_cam"] = first_from_world @ parts["world_from_cam"]
        if self.scene_flow is not None:
            parts["scene_flow"] = (self.scene_flow @ first_from_world[:3, :3].T).astype(np.float32)
        return replace(self, **parts)

    def _at(self, height: int, width: int) -> "Truth":
        """Resized to cover and cropped in the middle, as `annotate` cuts its clips; each pixel keeps its nearest truth."""
        arrays = [part for part in (self.z, self.dynamic, self.flow, self.scene_flow) if part is not None]
        if not arrays or arrays[0].shape[1:3] == (height, width):
            return self
        from_height, from_width = arrays[0].shape[1:3]
        scale = max(height / from_height, width / from_width)
        left, top = (from_width * scale - width) / 2, (from_height * scale - height) / 2
        rows = (((np.arange(height) + 0.5 + top) / scale).astype(int)).clip(0, from_height - 1)
        columns = (((np.arange(width) + 0.5 + left) / scale).astype(int)).clip(0, from_width - 1)
        names = ("z", "valid", "dynamic", "flow", "visible", "scene_flow", "scene_flow_valid")
        parts: dict[str, Any] = {
            name: part[:, rows[:, None], columns] for name in names if (part := getattr(self, name)) is not None
        }
        if self.flow is not None:
            parts["flow"] = parts["flow"] * np.float32(scale)
        if self.intrinsics is not None:
            parts["intrinsics"] = self.intrinsics * scale - (0, 0, left, top)
        return replace(self, **parts)


class Shelf:
    """All the truth of a place; one clip's worth is in memory at a time."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        listed = list(files.list_files(uri, (".npz",)))
        self._books: dict[str, list[Any]] = {}
        for book in listed or list(self._rows()):
            self._books.setdefault(stem(book if isinstance(book, str) else book["source"]), []).append(book)
        if not self._books:
            raise ValueError(f"{uri}: holds no truth, expected annotated shards or .npz truth files")

    def __len__(self) -> int:
        """How many truths there are."""
        return sum(map(len, self._books.values()))

    def __contains__(self, name: str) -> bool:
        """Whether there is truth of a source of this name."""
        return name in self._books

    def named(self, name: str) -> Iterator[Truth]:
        """Every truth of the source of this name."""
        for book in self._books.get(name, []):
            yield self._open(book)

    def in_order(self) -> Iterator[Truth]:
        for books in self._books.values():
            for book in books:
                yield self._open(book)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for table in shards.iter_index(self._uri):
            for row in table.select(["clip_id", "status", "source", "shard", "parts"]).to_pylist():
                if row["status"] == "annotated":
                    yield row

    def _open(self, book: Any) -> Truth:
        return from_npz(book) if isinstance(book, str) else from_clip(self._clip(book))

    def _clip(self, row: dict[str, Any]) -> AnnotatedClip:
        inner = files.join(self._uri, "shards")
        return shards.read_clip(inner if files.exists(inner) else self._uri, row)


def stem(uri: str) -> str:
    """`bucket/a.b.mp4` -> `a.b`."""
    return PurePosixPath(uri.rstrip("/")).stem


def from_clip(clip: AnnotatedClip) -> Truth:
    """The labels of a clip whose labels are true."""
    depth, cameras, motion = clip.depth, clip.cameras, clip.motion
    return Truth(
        name=stem(clip.source),
        frames=clip.frames,
        z=depth and depth.z,
        valid=depth and depth.valid,
        world_from_cam=cameras and cameras.world_from_cam,
        intrinsics=cameras and cameras.intrinsics,
        dynamic=motion and motion.dynamic,
        pairs=np.stack((clip.frames[:-1], clip.frames[1:]), axis=1),
        flow=clip.flow and clip.flow.forward,
        scene_flow=motion and motion.scene_flow,
        scene_flow_valid=motion and motion.scene_flow_valid,
    )


def from_npz(path: str | Path) -> Truth:
    """Reads a truth file. Raises ValueError that names the array that is missing or has another shape."""
    data = files.read_bytes(str(path))
    try:
        with zipfile.ZipFile(io.BytesIO(data)), np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        return _truth(stem(str(path)), found)
    except KeyError as missing:
        raise ValueError(f"{path}: holds no array {missing}, expected a truth file") from None
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a truth file: {error}") from None


def _truth(name: str, found: dict[str, np.ndarray]) -> Truth:
    shape = tuple(found["shape"].tolist())
    starts = found["frames"].astype(np.int64)
    _check_shapes(found, shape, len(starts))
    valid = _bits(found["valid"], shape)
    return Truth(
        name=name,
        frames=np.arange(shape[0]),
        z=np.where(valid, _depth(found["depth_delta"]), np.float32(0)),
        valid=valid,
        world_from_cam=found["world_from_cam"],
        intrinsics=np.tile(found["intrinsics"], (shape[0], 1)),
        dynamic=_bits(found["dynamic"], shape),
        pairs=np.stack((starts, starts + 1), axis=1),
        flow=found["flow_forward"].astype(np.float32),
        visible=_bits(found["visible"], (len(starts), *shape[1:])),
        scene_flow=found["scene_flow"].astype(np.float32),
    )


def _check_shapes(found: dict[str, np.ndarray], shape: tuple[int, ...], pairs: int) -> None:
    """Bits that are missing would be taken for zeros."""
    if len(shape) != 3:
        raise ValueError(f"shape is {shape}, expected frames, height and width")
    frames, *size = shape
    wanted: dict[str, tuple[int, ...]] = {
        "depth_delta": shape,
        "valid": (-(-math.prod(shape) // 8),),
        "dynamic": (-(-math.prod(shape) // 8),),
        "visible": (-(-pairs * math.prod(size) // 8),),
        "world_from_cam": (frames, 4, 4),
        "intrinsics": (4,),
        "flow_forward": (pairs, *size, 2),
        "scene_flow": (pairs, *size, 3),
    }
    for name, expected in wanted.items():
        if found[name].shape != expected:
            raise ValueError(f"{name} has the shape {found[name].shape}, expected {expected}")


def _depth(delta: np.ndarray) -> np.ndarray:
    """z = exp(q · 1.5e-4 - 3), q the running sum of `delta` along a row, modulo 2¹⁶."""
    q = np.cumsum(delta, axis=-1, dtype=np.uint16)
    return np.exp(q * 1.5e-4 - 3).astype(np.float32)


def _bits(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
