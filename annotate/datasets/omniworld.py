"""OmniWorld-Game: recordings of games with depth, cameras that were estimated, masks of the subject, and captions.

Depth: u16, d = raw / 65535, z = d / (1000 - 999 d) / 0.004 scene units, times the scene's `Metric Scale` meters. Cameras are
cam_from_world. Its flow is a pseudo-label of unknown scale and leads forward only: annotators make it anew.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from pydantic import Field

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Exclusion, Facts, Frame, Scene
from shared import files

NEAR, FAR = 0.0015, 65500 / 65535
UNIT = 0.004
MOST_NORM_ERROR = 0.01
"""Of a quaternion: more marks a frame whose camera could not be found."""
_FOLDERS = ("color", "depth", "camera", "subject_masks", "gdino_mask", "text")
_PLACES = ("", "annotations/OmniWorld-Game", "videos/OmniWorld-Game")
_UID = re.compile(r"^[0-9a-fA-F]{12}$")


class OmniWorld(Choice):
    """Each game recording is a scene; its splits are shots."""

    kind: Literal["omniworld"] = "omniworld"
    licence: ClassVar[str] = "CC-BY-NC-SA-4.0"
    about: ClassVar[About] = About(
        title="OmniWorld-Game",
        where="https://huggingface.co/datasets/InternRobotics/OmniWorld",
        size="96,000 clips of 18.5 million frames at 1280 x 720 and 24 frames/s",
        layout="{annotations,videos}/OmniWorld-Game/UID/, unpacked: color/000000.png, depth/000000.png, camera/split_0.json, "
        "subject_masks/split_0.json, gdino_mask/000000.png, text/*.json, fps.txt, split_info.json; "
        "metadata/OmniWorld-Game_metadata.csv",
        brings="depth (metric with the metadata's scale), estimated cameras, instances, dynamic pixels, captions",
    )
    fps: Annotated[float, Field(gt=0)] = 24.0
    """Where fps.txt does not tell."""
    max_reprojection_error: Annotated[float, Field(gt=0)] | None = None
    """Splits whose `reproj_error_after_refine` is above are left out; its unit is not documented."""
    scale_translations: bool = True
    """Whether `Metric Scale` holds for the cameras too. Self-checks refuse scenes for which it does not."""
    exclude: tuple[Exclusion, ...] = (Exclusion(scenes=("05017c153ac9", "05346c2f4648"), why="reported as broken"),)

    def scenes(self, root: str) -> Iterator[str]:
        if _folders_below(root, depth=0):
            yield root.rstrip("/")
            return
        seen: set[str] = set()
        for uri in _recordings(root):
            uid = uri.rpartition("/")[2]
            if uid not in seen:  # once below annotations, once below videos
                seen.add(uid)
                yield uri

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


def _recordings(root: str, depth: int = 3) -> Iterator[str]:
    """Folders named by a uid."""
    for name in reading.folders_in(root):
        if _UID.match(name):
            yield files.join(root, name)
        elif depth:
            yield from _recordings(files.join(root, name), depth - 1)


def _folders_below(uri: str, depth: int = 3) -> dict[str, str]:
    """Where the folders of a scene are; how deep they lie depends on how the archives were unpacked."""
    found: dict[str, str] = {}
    names = reading.folder(uri)
    for name in names:
        if name.rstrip("/") in (*_FOLDERS, "fps.txt", "split_info.json"):
            found[name.rstrip("/")] = files.join(uri, name.rstrip("/"))
    if depth:
        for name in names:
            if name.endswith("/") and name[:-1] not in (*_FOLDERS, "flow", "droidclib"):
                found = _folders_below(files.join(uri, name[:-1]), depth - 1) | found
    return found


def _root_of(uri: str) -> str:
    """The folder above `annotations`, `videos` or the scene."""
    base = uri.rpartition("/")[0]
    for place in _PLACES[1:]:
        base = base.removesuffix(f"/{place}")
    return base


class _Scene(Scene):
    def __init__(self, uri: str, knobs: OmniWorld) -> None:
        self._uid, root = uri.rpartition("/")[2], _root_of(uri)
        self._at: dict[str, str] = {}
        for place in _PLACES:
            self._at = (
                _folders_below(files.join(root, place, self._uid) if place else files.join(root, self._uid)) | self._at
            )
        missing = [name for name in ("color", "depth", "camera", "split_info.json") if name not in self._at]
        if missing:
            raise ValueError(f"{uri}: has no {', '.join(missing)}; were all of its archives unpacked?")
        self._colors, self._depths = (
            reading.numbered(self._at[name], reading.between("", ".png", ".jpg")) for name in ("color", "depth")
        )
        self._gdino = (
            reading.numbered(self._at["gdino_mask"], reading.between("", ".png")) if "gdino_mask" in self._at else {}
        )
        self._scale, self._knobs = _metric_scale(root, self._uid), knobs
        self._cameras: dict[int, tuple[Float64[np.ndarray, "4 4"], Float64[np.ndarray, " 4"]]] = {}
        self._subjects: dict[int, Any] = {}
        shots = self._shots()
        if not shots:
            raise ValueError(f"{uri}: no frame has picture, depth and a camera with a unit quaternion")
        height, width = reading.first_size(files.join(self._at["color"], self._colors[int(shots[0][0])]))
        self.facts = Facts(
            uri=uri,
            licence=knobs.licence,
            fps=_fps(self._at.get("fps.txt"), knobs.fps),
            height=height,
            width=width,
            shots=tuple(shots),
            metric=self._scale is not None,
        )

    def _shots(self) -> list[Int64[np.ndarray, " N"]]:
        """The splits, without frames that lack something."""
        splits = reading.document(self._at["split_info.json"])
        with reading.plainly(self._at["split_info.json"], "a list of frame numbers for every split"):
            splits = [[int(number) for number in split] for split in splits["split"]]
        shots = []
        for k, numbers in enumerate(splits):
            self._read_split(k, numbers)
            known = [n for n in numbers if n in self._cameras and n in self._colors and n in self._depths]
            if known:
                shots.append(np.array(sorted(set(known)), np.int64))
        return shots

    def _read_split(self, k: int, numbers: list[int]) -> None:
        """Cameras and subject masks of one split; its arrays follow its frame numbers."""
        uri = files.join(self._at["camera"], f"split_{k}.json")
        if not files.exists(uri):
            return
        found, limit = reading.document(uri), self._knobs.max_reprojection_error
        with reading.plainly(uri, f"focals, cx, cy, quats and trans of {len(numbers)} frames"):
            if limit is not None and float(found.get("reproj_error_after_refine", 0)) > limit:
                return
            quats, trans = np.array(found["quats"], np.float64), np.array(found["trans"], np.float64)
            focals, cx, cy = (
                np.broadcast_to(np.array(found[name], np.float64), len(numbers)) for name in ("focals", "cx", "cy")
            )
            if len(quats) != len(numbers) or len(trans) != len(numbers):
                raise ValueError(f"{uri}: holds {len(quats)} cameras, split {k} has {len(numbers)} frames")
        good = np.abs(np.linalg.norm(quats, axis=1) - 1) < MOST_NORM_ERROR
        unit = (self._scale or 1.0) if self._knobs.scale_translations else 1.0
        for i in np.flatnonzero(good & np.isfinite(trans).all(1)):
            world_from_cam = poses.inverse(poses.pose(poses.rotation(quats[i]), trans[i] * unit))
            self._cameras[numbers[i]] = (world_from_cam, np.array([focals[i], focals[i], cx[i], cy[i]]))
        masks = files.join(self._at["subject_masks"], f"split_{k}.json") if "subject_masks" in self._at else ""
        if masks and files.exists(masks):
            self._subjects |= {int(name.partition(".")[0]): mask for name, mask in reading.document(masks).items()}

    def frame(self, number: int) -> Frame:
        z, sky = _depth(reading.uint16(files.join(self._at["depth"], self._depths[number])))
        world_from_cam, intrinsics = self._cameras[number]
        return Frame(
            rgb=reading.picture(files.join(self._at["color"], self._colors[number])),
            z=z * np.float32(self._scale or 1.0),
            sky=sky,
            instances=self._instances(number, z.shape),
            world_from_cam=world_from_cam,
            intrinsics=intrinsics,
        )

    def _instances(self, number: int, shape: tuple[int, int]) -> Int32[np.ndarray, "H W"] | None:
        """1: the subject; 2: whatever else was detected. Both may move."""
        if not self._subjects and not self._gdino:
            return None
        ids = np.zeros(shape, np.int32)
        if number in self._gdino:
            seen = reading.pixels(files.join(self._at["gdino_mask"], self._gdino[number]))
            ids[(seen if seen.ndim == 2 else seen[..., :3].max(-1)) > 0] = 2
        if number in self._subjects:
            ids[_subject(self._at["subject_masks"], self._subjects[number], shape)] = 1
        return ids

    def caption(self, numbers: Int64[np.ndarray, " T"]) -> str:
        """Of the window that shares most frames with the clip."""
        if "text" not in self._at:
            return ""
        first, last, best, longest = int(numbers[0]), int(numbers[-1]), "", 0
        for name in reading.folder(self._at["text"]):
            found = re.match(r"^(\d+)_(\d+)\.json$", name)
            shared = min(last, int(found[2])) - max(first, int(found[1])) + 1 if found else 0
            if shared > longest:
                best, longest = name, shared
        if not best:
            return ""
        said = reading.document(files.join(self._at["text"], best))
        said = said.get("captions", said)
        return str(said.get("Video_Caption") or said.get("Short_Caption") or "")


def _depth(raw: np.ndarray) -> tuple[Float32[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """(Depth in scene units, sky)."""
    d = raw / 65535.0
    valid = (d >= NEAR) & (d <= FAR)
    return np.where(valid, d / (1000 - 999 * d) / UNIT, 0).astype(np.float32), d > FAR


def _subject(uri: str, mask: Any, shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    with reading.plainly(uri, f"a mask_rle of {shape[0]} x {shape[1]}"):
        packed = mask["mask_rle"]
        height, width = packed["size"]
        if (height, width) != shape:
            raise ValueError(f"{uri}: a mask of {height} x {width}, the depth is {shape[0]} x {shape[1]}")
        return reading.run_lengths(packed["counts"], height, width)


def _metric_scale(root: str, uid: str) -> float | None:
    """Meters a scene unit, from the metadata's table; None where it is not there."""
    for uri in (
        files.join(root, "metadata/OmniWorld-Game_metadata.csv"),
        files.join(root, "OmniWorld-Game_metadata.csv"),
    ):
        if files.exists(uri):
            for row in reading.table(uri):
                scale = reading.first_of(row, "Metric Scale")
                if uid in row.values() and scale:
                    with reading.plainly(uri, f"a Metric Scale of {uid}"):
                        return float(scale) if float(scale) > 0 else None
    return None


def _fps(uri: str | None, otherwise: float) -> float:
    """`FPS: 24.0`."""
    found = re.search(r"\d+(\.\d+)?", files.read_bytes(uri).decode()) if uri else None
    return float(found[0]) if found else otherwise
