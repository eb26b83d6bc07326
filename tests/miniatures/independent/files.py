"""File formats that no library here writes as the data sets do."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np


def image(path: Path, array: np.ndarray) -> None:
    """A PNG or JPEG of an RGB, RGBA or one-channel array, of 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(array.shape[-1] if array.ndim == 3 else 0)
    options = [cv2.IMWRITE_JPEG_QUALITY, 98] if path.suffix in (".jpg", ".jpeg") else []
    if not cv2.imwrite(str(path), array if order is None else np.ascontiguousarray(array[..., order]), options):
        raise OSError(f"{path}: cannot be written")


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def raw(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def exr(channels: dict[str, np.ndarray], *, compressed: bool = True) -> bytes:
    """OpenEXR scan lines of float16 or float32 channels, plain or in ZIP blocks of 16 lines."""
    names = sorted(channels)
    height, width = channels[names[0]].shape
    kinds = {np.dtype(np.float16): 1, np.dtype(np.float32): 2}
    listed = (
        b"".join(n.encode() + b"\0" + struct.pack("<iIii", kinds[channels[n].dtype], 0, 1, 1) for n in names) + b"\0"
    )
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = [
        ("channels", "chlist", listed),
        ("compression", "compression", bytes([3 if compressed else 0])),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ]
    head = b"\x76\x2f\x31\x01" + struct.pack("<i", 2)
    for name, kind, value in attributes:
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    head += b"\0"
    lines, blocks = 16 if compressed else 1, []
    for top in range(0, height, lines):
        rows = range(top, min(top + lines, height))
        data = b"".join(channels[n][row].tobytes() for row in rows for n in names)
        packed = _zipped(data) if compressed else data
        packed = packed if len(packed) < len(data) else data
        blocks.append(struct.pack("<ii", top, len(packed)) + packed)
    places, at = b"", len(head) + 8 * len(blocks)
    for block in blocks:
        places, at = places + struct.pack("<Q", at), at + len(block)
    return head + places + b"".join(blocks)


def _zipped(data: bytes) -> bytes:
    """Even bytes first, then odd ones, each as the difference to the byte before it plus 128, deflated."""
    halves = np.frombuffer(data[0::2] + data[1::2], np.uint8).astype(int)
    halves[1:] = np.diff(halves) + 128
    return zlib.compress((halves % 256).astype(np.uint8).tobytes())
