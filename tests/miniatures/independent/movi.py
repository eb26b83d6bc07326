"""Kubric's MOVi as TFDS stores it, written from documents: MOVi's page, TFRecord's framing, protobuf's wire format, RFC 3720."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from miniatures.independent import files
from miniatures.independent.paper_sets import quaternion
from miniatures.independent.world import World

Feature = list[bytes] | np.ndarray
"""A list of bytes, of floats or of whole numbers."""
Change = Callable[[dict[str, Feature]], None]


def sample(world: World, *, sky_m: float = 60.0) -> dict[str, Any]:
    """A scene as MOVi's page describes it: nested names, arrays of s frames. Flow beyond the ends is 0."""
    fx, fy, cx, cy = world.intrinsics
    right, down = ((world.centers() - (cx, cy)) / (fx, fy)).transpose(2, 0, 1)
    lengths = np.where(world.sky, sky_m, world.z * np.sqrt(right**2 + down**2 + 1))
    coded = {"depth": _coded(lengths[..., None])}
    for way, step in (("forward_flow", 1), ("backward_flow", -1)):
        frames = range(world.num_frames)
        zero = np.zeros((world.height, world.width, 2))
        uv = [world.flow(t, t + step)[0] if t + step in frames else zero for t in frames]
        coded[way] = _coded(np.stack(uv)[..., ::-1])
    opengl = world.world_from_cam @ np.diag((1.0, -1.0, -1.0, 1.0))
    boxes = [np.stack([world.box_pose(box, t) for t in range(world.num_frames)]) for box in (1, 2, 3)]
    return {
        "metadata": {
            "video_name": "17",
            "width": world.width,
            "height": world.height,
            "num_frames": world.num_frames,
            "num_instances": len(boxes),
            **{f"{kind}_range": span for kind, (_, span) in coded.items()},
        },
        "background": "a_hall",
        "camera": {"focal_length": 35.0, "sensor_width": 35.0 * world.width / world.focal, **_poses(opengl)},
        "instances": [_poses(box) for box in boxes],
        "video": world.rgb,
        "segmentations": np.maximum(world.ids, 0).astype(np.uint8)[..., None],
        **{kind: codes for kind, (codes, _) in coded.items()},
    }


def _coded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """16 bits, and what 0 and 65535 stand for."""
    low, high = float(values.min()), float(values.max())
    codes = np.round((values - low) / (high - low) * 65535).astype(np.uint16)
    return codes, np.array((low, high), np.float32)


def _poses(poses: np.ndarray) -> dict[str, np.ndarray]:
    turns = np.stack([quaternion(pose[:3, :3]) for pose in poses])
    return {"positions": poses[:, :3, 3].astype(np.float32), "quaternions": turns.astype(np.float32)}


def features(world: World, **knobs: float) -> dict[str, Feature]:
    """The sample as TFDS flattens it: images as PNG, tensors as runs of their numbers, one object's after the other's."""
    told = sample(world, **knobs)
    flat: dict[str, Feature] = {"background": [told["background"].encode()]}
    for group in ("metadata", "camera"):
        for name, value in told[group].items():
            text = isinstance(value, str)
            flat[f"{group}/{name}"] = [value.encode()] if text else _numbers(np.atleast_1d(value).ravel())
    for name in ("positions", "quaternions"):
        flat[f"instances/{name}"] = np.concatenate([one[name].ravel() for one in told["instances"]])
    flat["instances/bboxes/ragged_flat_values"] = np.linspace(0, 1, 24, dtype=np.float32)
    flat["instances/bboxes/ragged_row_lengths_0"] = np.array((3, 2, 1))
    for name in ("video", "segmentations", "depth"):
        flat[name] = [png(image) for image in told[name]]
    for name in ("forward_flow", "backward_flow"):
        flat[name] = told[name].ravel().astype(np.int64)
    return flat


def _numbers(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64 if values.dtype.kind in "iu" else np.float32)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1] if image.shape[-1] == 3 else image)[1].tobytes()


def write(root: Path, world: World, *, change: Change | None = None, records: int = 1, **knobs: float) -> Path:
    """The same scene so many times in one file, as `change` leaves its features; returns the file."""
    flat = features(world, **knobs)
    if change is not None:
        change(flat)
    folder = root / f"movi_e/{world.width}x{world.height}/1.0.0"
    shard = folder / "movi_e-train.tfrecord-00000-of-00001"
    files.raw(shard, record(example(flat)) * records)
    files.text(folder / "features.json", '{"pythonClassName": "tensorflow_datasets.core.features.FeaturesDict"}')
    files.text(folder / "dataset_info.json", '{"name": "movi_e"}')
    return shard


def record(data: bytes) -> bytes:
    """Length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def masked(data: bytes) -> int:
    """CRC-32C, byte by byte, turned right by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte % 2 else 0)
    return byte


_TABLE = [_remainder(byte) for byte in range(256)]


def example(flat: Mapping[str, Feature]) -> bytes:
    """Example {1: Features {1: repeated {1: name, 2: Feature {1: bytes | 2: floats | 3: int64s}}}}; numbers are packed."""
    return _field(1, b"".join(_field(1, _field(1, name.encode()) + _field(2, _feature(flat[name]))) for name in flat))


def _feature(values: Feature) -> bytes:
    if isinstance(values, list):
        return _field(1, b"".join(_field(1, piece) for piece in values))
    if values.dtype.kind == "f":
        return _field(2, _field(1, values.astype("<f4").tobytes()))
    return _field(3, _field(1, _varints(values)))


def _varints(values: np.ndarray) -> bytes:
    """As `_varint`, all at once: a row of groups a number, of which those up to its last are kept."""
    unsigned = values.astype(np.int64).view(np.uint64)
    groups = [unsigned]
    while groups[-1].max(initial=0) > 127:
        groups.append(groups[-1] >> np.uint64(7))
    more = np.stack([group > 127 for group in groups], axis=-1)
    rows = np.stack([group.astype(np.uint8) & 127 for group in groups], axis=-1) | (more.astype(np.uint8) << 7)
    kept = np.concatenate((np.ones((len(more), 1), bool), more[:, :-1]), axis=-1)
    return rows[kept].tobytes()


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    value %= 2**64
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes((*groups, value))
