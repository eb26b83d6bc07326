"""SpatialVID: real video with captions, and the cameras, depth and masks of MegaSaM at five frames a second.

Poses are cam_from_world in MegaSaM's own unit; intrinsics are shares of width and height; depth is inverse, at its own size.
Between the annotated frames cameras are interpolated; depth and masks are taken where every frame of a clip has its own.
"""

import csv
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Note
from annotate.datasets.fitting import Fit
from shared import exr, files
from shared.clip import AnnotatedClip, Cameras, Depth, Motion
from shared.video import Video

NEAREST, FARTHEST = 1e-3, 1e2
"""Depth outside was clipped by the data set: it is not known."""
_CAPTIONS = ("scenesummary", "scenedescription", "caption", "videocaption", "summary")
_SCORES = {
    "motionscore": "motion",
    "aestheticscore": "aesthetic",
    "luminancescore": "luminance",
    "ocrscore": "ocr",
    "movedist": "move_dist",
    "distlevel": "dist_level",
    "rotangle": "rot_angle",
    "trajturns": "turns",
    "dynamicratio": "dynamic_ratio",
}


class SpatialVID(Choice):
    """Each video is cut and screened as any other."""

    kind: Literal["spatialvid"] = "spatialvid"
    licence: ClassVar[str] = "CC-BY-NC-SA-4.0"
    about: ClassVar[About] = About(
        title="SpatialVID and SpatialVID-HQ",
        where="https://huggingface.co/datasets/SpatialVID",
        size="2.7 million clips, 7,089 hours",
        layout="videos/group_0001/UUID.mp4, annotations/group_0001/UUID/{poses.npy,intrinsics.npy,indexes.txt,dyn_masks.npz,"
        "caption.json}, depths/group_0001/UUID.zip, data/train/*_metadata.csv",
        brings="captions, scores, estimated cameras; depth and dynamic pixels at 5 frames/s",
    )

    def scenes(self, root: str) -> Iterator[str]:
        videos = files.join(root, "videos")
        yield from files.list_files(videos if files.exists(videos) else root, (".mp4",))

    def describe(self, uri: str) -> Note:
        place = _Place.of(uri)
        caption = files.join(place.annotations, "caption.json")
        said = _caption(reading.document(caption)) if files.exists(caption) else ""
        return Note(caption=said, scores=_scores(place))

    def complete(self, clip: AnnotatedClip, video: Video) -> AnnotatedClip:
        place = _Place.of(clip.source)
        if not files.exists(files.join(place.annotations, "poses.npy")):
            return clip
        fit = Fit(height=video.height, width=video.width, to_height=clip.shape[1], to_width=clip.shape[2])
        known = _Known.read(place)
        clip = _with_cameras(clip, known, fit, video, self.kind)
        at = known.exactly(clip.frames)
        if at is None or clip.cameras is None:
            return clip
        clip = _with_depth(clip, place, at, fit, len(known.frames), self.kind)
        return _with_masks(clip, place, at, fit, self.kind)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a video's annotations are."""

    root: str
    annotations: str
    depth: str
    uuid: str

    @classmethod
    def of(cls, uri: str) -> "_Place":
        folder, _, name = uri.rpartition("/")
        uuid = name.rpartition(".")[0]
        above, _, group = folder.rpartition("/")
        root = above.removesuffix("/videos")
        return cls(
            root=root,
            annotations=files.join(root, "annotations", group, uuid),
            depth=files.join(root, "depths", group, f"{uuid}.zip"),
            uuid=uuid,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """Annotated frames, rising, and their cameras."""

    frames: Int64[np.ndarray, " N"]
    world_from_cam: Float64[np.ndarray, "N 4 4"]
    shares: Float64[np.ndarray, "N 4"]

    @classmethod
    def read(cls, place: _Place) -> "_Known":
        uri = files.join(place.annotations, "poses.npy")
        lines = reading.numbers(files.join(place.annotations, "indexes.txt"))
        found, shares = (
            reading.array(uri).astype(np.float64),
            reading.array(files.join(place.annotations, "intrinsics.npy")),
        )
        if not len(found) == len(shares) == len(lines) or found.shape[1:] != (7,) or shares.shape[1:] != (4,):
            shapes = f"{found.shape} poses, {shares.shape} intrinsics and {len(lines)} indexes"
            raise ValueError(f"{place.annotations}: holds {shapes}, expected as many of each")
        if np.abs(np.linalg.norm(found[:, 3:], axis=1) - 1).max() > 0.01:
            raise ValueError(f"{uri}: a quaternion is not of unit length")
        cam_from_world = poses.pose(poses.rotation(found[:, [6, 3, 4, 5]]), found[:, :3])
        frames = lines[:, 1].astype(np.int64)
        if (np.diff(frames) <= 0).any():
            raise ValueError(f"{place.annotations}/indexes.txt: frame numbers do not rise")
        return cls(frames=frames, world_from_cam=poses.inverse(cam_from_world), shares=shares.astype(np.float64))

    def exactly(self, frames: Int64[np.ndarray, " T"]) -> Int64[np.ndarray, " T"] | None:
        """Which annotated frames these are; None if one of them is not annotated."""
        at = np.searchsorted(self.frames, frames)
        inside = at < len(self.frames)
        return at if inside.all() and (self.frames[at] == frames).all() else None


def _with_cameras(clip: AnnotatedClip, known: _Known, fit: Fit, video: Video, source: str) -> AnnotatedClip:
    """Nothing is invented before the first or after the last annotated frame: such clips keep their slot empty."""
    if clip.frames[0] < known.frames[0] or clip.frames[-1] > known.frames[-1]:
        return clip
    world_from_cam = interpolated(known.frames, known.world_from_cam, clip.frames)
    canonical = poses.inverse(world_from_cam[0]) @ world_from_cam
    canonical[0], canonical[:, 3] = np.eye(4), (0, 0, 0, 1)
    shares = np.stack([np.interp(clip.frames, known.frames, known.shares[:, k]) for k in range(4)], axis=1)
    size = np.array([video.width, video.height, video.width, video.height])
    intrinsics = np.stack([fit.intrinsics(share * size) for share in shares])
    return clip.with_(cameras=Cameras(world_from_cam=canonical, intrinsics=intrinsics, metric=False, source=source))


def interpolated(
    known: Int64[np.ndarray, " N"], world_from_cam: Float64[np.ndarray, "N 4 4"], wanted: Int64[np.ndarray, " T"]
) -> Float64[np.ndarray, "T 4 4"]:
    """Centers on straight lines, rotations turned evenly about one axis, between the two known frames around each wanted one."""
    after = np.clip(np.searchsorted(known, wanted), 1, max(len(known) - 1, 1))
    if len(known) == 1:
        return np.repeat(world_from_cam, len(wanted), axis=0)
    a, b = world_from_cam[after - 1], world_from_cam[after]
    share = (wanted - known[after - 1]) / (known[after] - known[after - 1])
    out = a.copy()
    out[:, :3, 3] += share[:, None] * (b - a)[:, :3, 3]
    import cv2

    for i, part in enumerate(share):
        turn = cv2.Rodrigues(np.ascontiguousarray(a[i, :3, :3].T @ b[i, :3, :3]))[0]
        out[i, :3, :3] = a[i, :3, :3] @ cv2.Rodrigues(turn * part)[0]
    return out


def _with_depth(
    clip: AnnotatedClip, place: _Place, at: Int64[np.ndarray, " T"], fit: Fit, num_known: int, source: str
) -> AnnotatedClip:
    if not files.exists(place.depth):
        return clip
    with (
        reading.plainly(place.depth, "a zip of OpenEXR files"),
        files.open_input(place.depth) as file,
        zipfile.ZipFile(file) as archive,
    ):
        names = sorted(name for name in archive.namelist() if name.endswith(".exr"))
        if len(names) != num_known:
            raise ValueError(f"{place.depth}: holds {len(names)} depth maps, expected {num_known}")
        maps = [_depth(archive, names[k]) for k in at]
    size = next((z.shape for z in maps if z is not None), None)
    if size is None:
        return clip
    blank = np.zeros(size, np.float32)
    layer = Fit(**{**fit.__dict__, "layer": size})
    z = np.stack([layer.depth(blank if z is None else z) for z in maps])
    return clip.with_(depth=Depth(z=z, valid=z > 0, metric=False, source=source))


def _depth(archive: zipfile.ZipFile, name: str) -> Float32[np.ndarray, "H W"] | None:
    """z = 1 / Z; None for a member that cannot be read, which keeps its place."""
    try:
        channels = exr.read(archive.read(name))
        inverse = (channels["Z"] if len(channels) != 1 else next(iter(channels.values()))).astype(np.float32)
    except exr.NeedsLibrary:
        raise
    except (ValueError, KeyError, zipfile.BadZipFile):
        return None
    known = np.isfinite(inverse) & (inverse > 0)
    z = 1 / np.where(known, inverse, 1)
    return np.where(known & (z > NEAREST) & (z < FARTHEST), z, 0).astype(np.float32)


def _with_masks(
    clip: AnnotatedClip, place: _Place, at: Int64[np.ndarray, " T"], fit: Fit, source: str
) -> AnnotatedClip:
    uri = files.join(place.annotations, "dyn_masks.npz")
    if not files.exists(uri):
        return clip
    masks = _masks(uri, at)
    layer = Fit(**{**fit.__dict__, "layer": masks[0].shape})
    steps = (clip.shape[0] - 1, *clip.shape[1:])
    motion = Motion(
        dynamic=np.stack([layer.nearest(mask) for mask in masks]),
        scene_flow=np.zeros((*steps, 3), np.float32),
        scene_flow_valid=np.zeros(steps, bool),
        source=source,
    )
    return clip.with_(motion=motion)


def _masks(uri: str, at: Int64[np.ndarray, " T"]) -> list[Bool[np.ndarray, "H W"]]:
    """Sparse rows: the columns that are set, and where each row begins among them."""
    with reading.plainly(uri, "sparse masks"), np.load(io.BytesIO(files.read_bytes(uri)), allow_pickle=False) as found:
        height, width = (int(n) for n in found["shape"][-2:])
        masks = []
        for k in at:
            data, columns, starts = (found[f"f_{k}_{part}"] for part in ("data", "indices", "indptr"))
            mask = np.zeros((height, width), bool)
            mask[np.repeat(np.arange(height), np.diff(starts)), columns] = data != 0
            masks.append(mask)
        return masks


def _caption(said: Any) -> str:
    if isinstance(said, str):
        return said
    texts = {reading.plain(name): text for name, text in said.items() if isinstance(text, str)}
    return next((texts[name] for name in _CAPTIONS if name in texts), max(texts.values(), key=len, default=""))


def _scores(place: _Place) -> dict[str, float]:
    """The video's row of the metadata's table, which is read line by line; none where there is no table."""
    folder = files.join(place.root, "data/train")
    for name in reading.folder(folder):
        if name.endswith("_metadata.csv"):
            with files.open_input(files.join(folder, name)) as file:
                lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
                names = [reading.plain(word) for word in next(csv.reader(lines), [])]
                row = next((line for line in lines if place.uuid in line), None)
            if row is not None:
                return _numbers(dict(zip(names, next(csv.reader([row])))))
    return {}


def _numbers(row: dict[str, str]) -> dict[str, float]:
    found = {}
    for name, score in _SCORES.items():
        try:
            found[f"spatialvid_{score}"] = float(row[name])
        except (KeyError, ValueError):
            continue
    return {name: value for name, value in found.items() if np.isfinite(value)}
