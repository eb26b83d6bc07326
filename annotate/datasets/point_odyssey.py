"""PointOdyssey v1.2: long rendered scenes with depth, cameras, object masks and ten thousand tracks.

depth: u16, z = raw / 65535 * 1000 m, planar, written by truncation; 0 and 65535 are sky, smoke or nothing. `extrinsics` are
cam_from_world. 2-D tracks are half floats snapped to masks, so the 3-D ones are projected instead.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from pydantic import Field

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Exclusion, Facts, Frame, Scene, Tracks
from shared import files

STEP_M = 1000 / 65535
MOST_TRAVEL_M = 100.0

EXCLUDED = (
    Exclusion(scenes=("ani_new_2",), why="files are missing"),
    Exclusion(
        scenes=("character0_", "character0_f2", "character2_f", "character5", "gso_in_big"),
        why="its tracks are missing",
    ),
)


class PointOdyssey(Choice):
    """Scenes of Blender with tracks."""

    kind: Literal["pointodyssey"] = "pointodyssey"
    licence: ClassVar[str] = "CC-BY-NC-SA-4.0"
    about: ClassVar[About] = About(
        title="PointOdyssey v1.2",
        where="https://pointodyssey.com",
        size="159 scenes of about 2,000 frames at 960 x 540",
        layout="{train,val,test}/SCENE/: rgbs/rgb_00000.jpg, depths/depth_00000.png, masks/mask_00000.png, anno.npz",
        brings="metric depth, cameras, instances, dynamic pixels, tracks, sparse scene flow from them",
    )
    fps: Annotated[float, Field(gt=0)] = 30.0
    """The data set does not tell."""
    max_tracks: Annotated[int, Field(ge=0)] = 4096
    """Kept of each clip, spread evenly over those that are seen in it."""
    max_range_m: Annotated[float, Field(gt=0)] = 900.0
    """Depth beyond is not valid."""
    exclude: tuple[Exclusion, ...] = EXCLUDED

    def scenes(self, root: str) -> Iterator[str]:
        return reading.scenes_below(root, lambda names: "rgbs/" in names)

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: PointOdyssey) -> None:
        self._uri, self._knobs = uri, knobs
        self._anno = files.join(uri, "anno.npz")
        if not files.exists(self._anno):
            old = [name for name in files.list_folder(uri) if name.startswith("annot") and name.endswith(".npz")]
            told = f"only {old[0]}, a file of v1.0 whose axes are flipped" if old else "no anno.npz"
            raise ValueError(f"{uri}: has {told}; expected v1.2")
        self._names = reading.npz_names(self._anno)
        if "visibilities" in self._names:
            raise ValueError(f"{self._anno}: is of v1.0 (it holds visibilities), whose axes are flipped; expected v1.2")
        self._tracked = reading.npz_shape(self._anno, "trajs_3d") if "trajs_3d" in self._names else None
        if self._tracked is None or len(self._tracked) != 3 or 0 in self._tracked:
            raise ValueError(
                f"{self._anno}: trajs_3d is empty or holds objects, expected tracks to test its depth with"
            )
        numbers = self._frames()
        rows = np.arange(numbers[-1] + 1)
        self._world_from_cam = poses.inverse(
            poses.checked(self._anno, reading.npz_rows(self._anno, "extrinsics", rows))
        )
        one_for_all = reading.npz_shape(self._anno, "intrinsics") == (3, 3)
        k = reading.npz_rows(self._anno, "intrinsics", np.arange(3) if one_for_all else rows).astype(np.float64)
        if k.shape[-2:] != (3, 3):
            raise ValueError(f"{self._anno}: intrinsics of shape {k.shape}, expected {len(rows)} x 3 x 3")
        self._intrinsics = np.broadcast_to(k, (len(rows), 3, 3))
        height, width = reading.first_size(self._file("rgbs", int(numbers[0])))
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

    def _frames(self) -> Int64[np.ndarray, " N"]:
        """Frames that have picture, depth and (if any has one) mask."""
        self._files: dict[str, dict[int, str]] = {}
        for folder, start in (("rgbs", "rgb_"), ("depths", "depth_"), ("masks", "mask_")):
            names = reading.numbered(files.join(self._uri, folder), reading.between(start, ".jpg", ".jpeg", ".png"))
            if not names and folder != "masks":
                raise ValueError(f"{self._uri}: holds no {folder}/{start}*, expected one for every frame")
            if names:
                self._files[folder] = names
        whole = sorted(set.intersection(*map(set, self._files.values())))
        if not whole:
            raise ValueError(f"{self._uri}: no frame has picture, depth and mask")
        return np.array(whole, np.int64)

    def _file(self, folder: str, number: int) -> str:
        return files.join(self._uri, folder, self._files[folder][number])

    def frame(self, number: int) -> Frame:
        raw = reading.uint16(self._file("depths", number))
        masks = "masks" in self._files
        return Frame(
            rgb=reading.picture(self._file("rgbs", number)),
            z=_depth(raw, self._knobs.max_range_m),
            instances=reading.colors_as_ids(reading.picture(self._file("masks", number))) if masks else None,
            world_from_cam=self._world_from_cam[number],
            intrinsics=self._intrinsics[number][[0, 1, 0, 1], [0, 1, 2, 2]],
        )

    def tracks(self, numbers: Int64[np.ndarray, " T"]) -> Tracks:
        p_world, visible = (reading.npz_rows(self._anno, name, numbers) for name in ("trajs_3d", "visibs"))
        valid = reading.npz_rows(self._anno, "valids", numbers) if "valids" in self._names else np.array(True)
        if visible.dtype != bool:  # v1.1: 0 hidden, 1 visible, 2 not valid
            visible, valid = visible == 1, valid.astype(bool) & (visible < 2)
        p_world = p_world.astype(np.float64)
        known = valid.astype(bool) & np.isfinite(p_world).all(-1)
        p_world = np.where(known[..., None], p_world, 0)
        known &= _plausible(p_world, known)
        seen = visible.astype(bool) & known & self._inside(p_world, numbers)
        return Tracks(p_world=p_world, visible=seen, valid=known)

    def _inside(
        self, p_world: Float64[np.ndarray, "T N 3"], numbers: Int64[np.ndarray, " T"]
    ) -> Bool[np.ndarray, "T N"]:
        """In front, and a pixel or more from the border: what touches it is cut off."""
        cam_from_world = poses.inverse(self._world_from_cam[numbers])
        p_cam = np.einsum("tij,tnj->tni", cam_from_world[:, :3, :3], p_world) + cam_from_world[:, None, :3, 3]
        z = np.where(p_cam[..., 2] > 0, p_cam[..., 2], np.inf)
        k = self._intrinsics[numbers]
        u = k[:, 0, 0, None] * p_cam[..., 0] / z + k[:, 0, 2, None]
        v = k[:, 1, 1, None] * p_cam[..., 1] / z + k[:, 1, 2, None]
        within = (u >= 1) & (u <= self.facts.width - 1) & (v >= 1) & (v <= self.facts.height - 1)
        return within & np.isfinite(z)


def _depth(raw: np.ndarray, max_range_m: float) -> Float32[np.ndarray, "H W"]:
    """Half a step is added, since it was written by truncation."""
    z = (raw + 0.5) * STEP_M
    return np.where((raw > 0) & (raw < 65535) & (z < max_range_m), z, 0).astype(np.float32)


def _plausible(p_world: Float64[np.ndarray, "T N 3"], known: Bool[np.ndarray, "T N"]) -> Bool[np.ndarray, " N"]:
    """Tracks that do not fly off."""
    first = p_world[known.argmax(0), np.arange(p_world.shape[1])]
    way = np.linalg.norm(p_world - first, axis=-1) * known
    return way.max(0) < MOST_TRAVEL_M
