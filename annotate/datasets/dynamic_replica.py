"""Dynamic Replica: stereo videos of people and animals in scanned rooms, with depth, flow, cameras, masks and tracks.

Depth and flow are PNGs whose 16 bits are those of a half float. Cameras are PyTorch3D's: rows times matrices, x left, y up.
"""

import functools
import io
import json
import pickle
import zlib
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from pydantic import Field as Knob

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene, Tracks
from shared import files

NEAREST_M = 1e-5
_PACKED_AT = 1 << 15


class DynamicReplica(Choice):
    """Each of the two cameras of each sequence is a scene."""

    kind: Literal["dynamic_replica"] = "dynamic_replica"
    licence: ClassVar[str] = "Dynamic Replica (own licence, click-through)"
    about: ClassVar[About] = About(
        title="Dynamic Replica",
        where="https://dynamic-stereo.github.io",
        size="524 videos of 300 frames at 1280 x 720, 1.8 TB",
        layout="{train,valid,test,real}/frame_annotations_{split}.jgz, and the files that it names",
        brings="metric depth, cameras, flow, instances, dynamic pixels, tracks, scene flow from tracks and flow",
    )
    fps: Annotated[float, Knob(gt=0)] = 30.0
    """The data set does not tell."""
    max_tracks: Annotated[int, Knob(ge=0)] = 4096
    """Kept of each clip, spread evenly over those that are seen in it."""
    cameras: tuple[Literal["left", "right"], ...] = ("left", "right")

    def scenes(self, root: str) -> Iterator[str]:
        for split in reading.scenes_below(root, lambda names: any(map(_is_index, names)), depth=2):
            for name in _frames_of(_index(split)):
                if name.rpartition("_")[2] in self.cameras:
                    yield files.join(split, name)

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


def _is_index(name: str) -> bool:
    return name.startswith("frame_annotations_") and name.endswith(".jgz")


def _index(split: str) -> str:
    return files.join(split, next(filter(_is_index, reading.folder(split)), "frame_annotations_*.jgz"))


def _frames_of(index: str) -> dict[str, list[bytes]]:
    """Scene -> its frames, packed. An index of 145,200 frames takes seconds to read: once in a process, not once a scene."""
    return _frames_of_index(index, files.identity(index))


@functools.lru_cache(maxsize=4)
def _frames_of_index(index: str, identity: str) -> dict[str, list[bytes]]:
    packed: dict[str, list[bytes]] = {}
    lines: dict[str, bytearray] = {}
    with reading.plainly(index, "frames with sequence_name and camera_name"):
        for item in reading.gzipped_items(index):
            name = f"{item['sequence_name']}_{item['camera_name']}"
            parts, line = packed.setdefault(name, []), lines.setdefault(name, bytearray())
            line += json.dumps(item).encode() + b"\n"
            if len(line) > _PACKED_AT:
                parts.append(zlib.compress(line, 1))
                line.clear()
    return {name: [*parts, zlib.compress(lines[name], 1)] for name, parts in packed.items()}


class _Scene(Scene):
    def __init__(self, uri: str, knobs: DynamicReplica) -> None:
        self._split, _, name = uri.rpartition("/")
        index = _index(self._split)
        with reading.plainly(index, "frames with number, image and viewpoint"):
            items = map(json.loads, b"".join(map(zlib.decompress, _frames_of(index)[name])).splitlines())
            self._items = {int(item["frame_number"]): item for item in items}
            numbers = np.array(sorted(self._items), np.int64)
            height, width = (int(n) for n in self._items[int(numbers[0])]["image"]["size"])
            for item in self._items.values():
                camera_of(index, item["viewpoint"], height, width)
        self._index = index
        shots = (numbers,)
        self.facts = Facts(
            uri=uri,
            licence=knobs.licence,
            fps=knobs.fps,
            height=height,
            width=width,
            shots=shots,
            max_tracks=knobs.max_tracks,
        )

    def frame(self, number: int) -> Frame:
        item = self._items[number]
        z = half(self._uri(number, "depth", needed=True))
        world_from_cam, intrinsics = camera_of(self._index, item["viewpoint"], self.facts.height, self.facts.width)
        return Frame(
            rgb=reading.picture(self._uri(number, "image", needed=True)),
            z=np.where(np.isfinite(z) & (z >= NEAREST_M), z, 0).astype(np.float32),
            instances=self._instances(number),
            world_from_cam=world_from_cam,
            intrinsics=intrinsics,
        )

    def _uri(self, number: int, name: str, *, needed: bool = False) -> str:
        """Of one of a frame's files; "" if it has none."""
        value: Any = self._items[number].get(name)
        path = value.get("path") if isinstance(value, dict) else value
        if needed and not path:
            raise ValueError(f"{self.facts.uri}: frame {number} has no {name}")
        return files.join(self._split, path) if path else ""

    def _instances(self, number: int) -> Int32[np.ndarray, "H W"] | None:
        """People and animals: what else has a number stands still."""
        mask, ids = self._uri(number, "mask"), self._uri(number, "instance_id_map_path")
        if not mask:
            return None
        able = reading.pixels(mask)
        able = (able if able.ndim == 2 else able[..., :3].max(-1)) > 0
        if not ids:
            return able.astype(np.int32)
        found = reading.pixels(ids)
        found = found.astype(np.int32) if found.ndim == 2 else reading.colors_as_ids(found[..., :3])
        return np.where(able, np.where(found > 0, found, found.max() + 1), 0).astype(np.int32)

    def flow(self, start: int, end: int) -> Field | None:
        name = {1: "flow_forward", -1: "flow_backward"}.get(end - start)
        if name is None or not (uri := self._uri(start, name)):
            return None
        both = half(uri)
        values = np.stack(np.split(both, 2, axis=1), axis=-1)
        valid = np.all(np.isfinite(values), axis=-1)
        if mask := self._uri(start, f"{name}_mask"):
            known = reading.pixels(mask)
            valid &= (known if known.ndim == 2 else known[..., 0]) > 0
        return Field(values=np.where(valid[..., None], values, 0).astype(np.float32), valid=valid)

    def tracks(self, numbers: Int64[np.ndarray, " T"]) -> Tracks | None:
        uris = [self._uri(int(number), "trajectories") for number in numbers]
        if not all(uris):
            return None
        found = [_tracks(uri) for uri in uris]
        if len({len(p) for p, _ in found}) != 1:
            raise ValueError(f"{uris[0]}: the frames of a clip follow different numbers of points")
        p_world, visible = np.stack([p for p, _ in found]), np.stack([v for _, v in found])
        valid = np.all(np.isfinite(p_world), axis=-1)
        return Tracks(p_world=np.where(valid[..., None], p_world, 0), visible=visible & valid, valid=valid)


def half(uri: str) -> Float32[np.ndarray, "H W"]:
    """A PNG of 16 bits that are a half float's."""
    return np.ascontiguousarray(reading.uint16(uri)).view(np.float16).astype(np.float32)


def camera_of(
    uri: str, viewpoint: dict[str, Any], height: int, width: int
) -> tuple[Float64[np.ndarray, "4 4"], Float64[np.ndarray, " 4"]]:
    """(world_from_cam, intrinsics). PyTorch3D: p_cam = p_world R + T with x left and y up; the world's axes stay."""
    rotation, translation = (np.array(viewpoint[name], np.float64) for name in ("R", "T"))
    flip = np.array([-1.0, -1.0, 1.0])
    cam_from_world = poses.checked(uri, poses.pose((rotation * flip).T, translation * flip))
    kind, size = viewpoint["intrinsics_format"], np.array([width, height], np.float64)
    if kind == "ndc_isotropic":
        scale = np.full(2, size.min() / 2)
    elif kind == "ndc_norm_image_bounds":
        scale = size / 2
    else:
        raise ValueError(f"{uri}: intrinsics are {kind!r}, expected ndc_isotropic or ndc_norm_image_bounds")
    focal = np.broadcast_to(np.array(viewpoint["focal_length"], np.float64), 2) * scale
    center = size / 2 - np.array(viewpoint["principal_point"], np.float64) * scale
    return poses.inverse(cam_from_world), np.concatenate((focal, center))


def _tracks(uri: str) -> tuple[Float64[np.ndarray, "N 3"], np.ndarray]:
    """World points of one frame, and which of them are seen."""
    import torch

    try:
        with torch.serialization.safe_globals(_arrays()):
            found = torch.load(io.BytesIO(files.read_bytes(uri)), map_location="cpu", weights_only=True)
        points, seen = np.asarray(found["traj_3d_world"]), np.asarray(found["verts_inds_vis"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError) as error:
        told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{uri}: not tracks that can be read without running their code ({told})") from None
    return points.astype(np.float64), seen.astype(bool)


def _arrays() -> list[Any]:
    """What plain numpy arrays are made of: harmless beside tensors."""
    kinds = [type(np.dtype(kind)) for kind in (bool, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64)]
    return [np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], *kinds]
