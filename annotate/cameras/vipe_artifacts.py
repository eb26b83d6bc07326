"""What ViPE writes, read without ViPE: poses, intrinsics, half-float EXR depth in zips, instance masks with phrases.

Nothing is unpickled: `vipe/N_info.pkl` holds one number that ViPE never assigns.
"""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

from shared import exr

FAR_M = 1000.0
"""ViPE's floor of inverse depth: at this depth a pixel is sky or unknown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifacts:
    """One clip as ViPE saw it, in our conventions. World is the first camera."""

    world_from_cam: Float64[np.ndarray, "T 4 4"]
    intrinsics: Float64[np.ndarray, "T 4"]
    z: Float32[np.ndarray, "T H W"] | None
    """Near-metric, 0 where unknown; None for presets without depth."""
    instances: Int32[np.ndarray, "T H W"] | None
    sky: Bool[np.ndarray, "T H W"] | None
    phrases: dict[int, str]


def read(folder: Path, name: str, shape: tuple[int, int, int]) -> Artifacts:
    """The artifacts of clip `name` with T, H, W = `shape`.

    Raises ValueError naming the file for whatever is missing, torn, of another shape, or implausible.
    """
    poses = _poses(folder / "pose" / f"{name}.npz", shape[0])
    intrinsics = _intrinsics(folder / "intrinsics" / f"{name}.npz", folder / "intrinsics" / f"{name}_camera.txt", shape)
    depth, masks = folder / "depth" / f"{name}.zip", folder / "mask" / f"{name}.zip"
    phrases = _phrases(folder / "mask" / f"{name}.txt")
    instances = _frames(masks, shape, "png", _png) if masks.exists() else None
    sky_ids = [number for number, phrase in phrases.items() if phrase == "sky"]
    sky = None if instances is None else np.isin(instances, sky_ids)
    return Artifacts(
        world_from_cam=poses,
        intrinsics=intrinsics,
        z=_known(_frames(depth, shape, "exr", _exr_z)) if depth.exists() else None,
        instances=None if instances is None or sky is None else np.where(sky, 0, instances).astype(np.int32),
        sky=sky,
        phrases={number: phrase for number, phrase in phrases.items() if phrase != "sky"},
    )


def _poses(path: Path, frames: int) -> Float64[np.ndarray, "T 4 4"]:
    world_from_cam = _array(path, (frames, 4, 4), frames)
    rotation = world_from_cam[:, :3, :3]
    off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max()
    if off > 1e-3 or (np.linalg.det(rotation) <= 0).any():
        raise ValueError(f"{path}: holds no rotations, R Rᵀ is {off:.2g} away from the identity")
    u, _, vt = np.linalg.svd(rotation)
    world_from_cam[:, :3, :3] = u @ vt
    world_from_cam[:, 3] = (0, 0, 0, 1)
    first_from_world = np.linalg.inv(world_from_cam[0])
    canonical = first_from_world @ world_from_cam
    canonical[:, 3] = (0, 0, 0, 1)
    canonical[0] = np.eye(4)
    return canonical


def _intrinsics(path: Path, model_path: Path, shape: tuple[int, int, int]) -> Float64[np.ndarray, "T 4"]:
    models = {line.split(":")[-1].strip() for line in _text(model_path).splitlines() if line.strip()}
    if models and models != {"PINHOLE"}:
        raise ValueError(f"{model_path}: camera model {', '.join(sorted(models))}, expected PINHOLE")
    frames, height, width = shape
    intrinsics = _array(path, (frames, 4), frames)
    focal = intrinsics[:, :2] / max(height, width)
    if focal.min() < 0.2 or focal.max() > 10:
        worst = intrinsics[:, :2].flat[int(np.abs(np.log(np.maximum(focal, 1e-9))).argmax())]
        raise ValueError(f"{path}: a focal length of {worst:g} px is implausible for {width}x{height}")
    return intrinsics


def _array(path: Path, shape: tuple[int, ...], frames: int) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            data, found = file["data"].astype(np.float64), file["inds"].tolist()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not what ViPE writes ({error})") from None
    if data.shape != shape or found != list(range(frames)):
        raise ValueError(f"{path}: holds {data.shape} of {len(found)} frames, expected {shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{path}: holds values that are not finite")
    return data


def _frames(path: Path, shape: tuple[int, int, int], suffix: str, decode) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as file:
            frames = [decode(file.read(f"{i:05d}.{suffix}")) for i in range(shape[0])]
    except (OSError, KeyError, ValueError, IndexError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not {shape[0]} frames as ViPE writes them ({error})") from None
    found = {frame.shape for frame in frames}
    if found != {shape[1:]}:
        raise ValueError(f"{path}: frames of {sorted(found)}, expected {shape[1:]}")
    return np.stack(frames)


def _exr_z(data: bytes) -> np.ndarray:
    channels = exr.read(data)
    if "Z" not in channels:
        raise ValueError(f"channels {', '.join(channels)}, expected Z")
    return channels["Z"].astype(np.float32)


def _png(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2:
        raise ValueError("a mask that is no gray PNG")
    return image.astype(np.int32)


def _known(z: Float32[np.ndarray, "T H W"]) -> Float32[np.ndarray, "T H W"]:
    return np.where(np.isfinite(z) & (z > 0) & (z < FAR_M), z, np.float32(0))


def _phrases(path: Path) -> dict[int, str]:
    pairs = (line.split(":", 1) for line in _text(path).splitlines() if ":" in line)
    return {int(number): phrase.strip().lower() for number, phrase in pairs if number.strip().isdigit()}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
