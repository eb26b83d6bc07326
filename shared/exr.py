"""OpenEXR as depth is shipped in it: flat scan lines, uncompressed, RLE or ZIP, are read here, since no dependency of ours does.

What else there is (tiles, parts, PIZ, DWA, ...) the library OpenEXR reads, if it is there.
"""

import io
import struct
import zlib

import numpy as np

_MAGIC = b"\x76\x2f\x31\x01"
_NOT_FLAT = 0x1A00  # version bits: tiled, deep, multipart
_TYPES = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
_COMPRESSIONS = ("none", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB")
_ROWS_PER_CHUNK = {"none": 1, "RLE": 1, "ZIPS": 1, "ZIP": 16}


class NeedsLibrary(ValueError):
    """Sound, as far as can be seen, but nothing here reads it."""


def read(data: bytes) -> dict[str, np.ndarray]:
    """Channels by name, each H W, as they are stored. Raises ValueError for what is torn, NeedsLibrary where none is there."""
    if data[:4] != _MAGIC:
        raise ValueError("not an OpenEXR file")
    try:
        return _image(data)
    except (struct.error, IndexError, KeyError, zlib.error) as error:
        raise ValueError(f"a torn OpenEXR file ({error})") from None


def _image(data: bytes) -> dict[str, np.ndarray]:
    if struct.unpack_from("<I", data, 4)[0] & _NOT_FLAT:
        return _by_library(data, "a tiled, deep or multi-part OpenEXR")
    attributes, at = _attributes(data)
    x0, y0, x1, y1 = struct.unpack("<4i", attributes["dataWindow"])
    width, height = x1 - x0 + 1, y1 - y0 + 1
    number = attributes["compression"][0]
    compression = _COMPRESSIONS[number] if number < len(_COMPRESSIONS) else str(number)
    if compression not in _ROWS_PER_CHUNK:
        return _by_library(data, f"OpenEXR compression {compression}")
    channels = _channels(attributes["channels"])
    row = np.dtype([(name, kind, width) for name, kind in channels])
    image = np.empty(height, row)
    rows = _ROWS_PER_CHUNK[compression]
    for offset in struct.unpack_from(f"<{-(-height // rows)}Q", data, at):
        y, size = struct.unpack_from("<ii", data, offset)
        count = min(rows, height - (y - y0))
        raw = _unpack(data[offset + 8 : offset + 8 + size], count * row.itemsize, compression)
        image[y - y0 : y - y0 + count] = np.frombuffer(raw, row)
    return {name: np.ascontiguousarray(image[name]) for name, _ in channels}


def _by_library(data: bytes, what: str) -> dict[str, np.ndarray]:
    """The channels of the first part."""
    try:
        import OpenEXR
    except ImportError:
        told = f"{', '.join(_ROWS_PER_CHUNK)} in scan lines are read without it"
        raise NeedsLibrary(f"{what} asks for a library ({told}): pip install OpenEXR") from None
    try:
        with OpenEXR.File(io.BytesIO(data), separate_channels=True) as file:
            return {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{what} that cannot be read ({error})") from None


def _attributes(data: bytes) -> tuple[dict[str, bytes], int]:
    attributes, at = {}, 8
    while data[at]:
        name_end = data.index(0, at)
        kind_end = data.index(0, name_end + 1)
        (size,) = struct.unpack_from("<i", data, kind_end + 1)
        start = kind_end + 5
        attributes[data[at:name_end].decode()] = data[start : start + size]
        at = start + size
    return attributes, at + 1


def _channels(data: bytes) -> list[tuple[str, np.dtype]]:
    channels, at = [], 0
    while data[at]:
        end = data.index(0, at)
        name, sampling = data[at:end].decode(), struct.unpack_from("<ii", data, end + 9)
        if sampling != (1, 1):
            raise ValueError(f"OpenEXR channel {name} has every {sampling} sample only, expected all")
        channels.append((name, _TYPES[struct.unpack_from("<i", data, end + 1)[0]]))
        at = end + 17
    return channels


def _unpack(chunk: bytes, size: int, compression: str) -> bytes:
    """A chunk as large as its content is stored; a smaller one is packed byte differences, even bytes before odd ones."""
    if len(chunk) == size:
        return chunk
    packed = _run_lengths(chunk) if compression == "RLE" else zlib.decompress(chunk)
    steps = np.frombuffer(packed, np.uint8).astype(np.int64)
    steps[1:] -= 128
    straight = (np.cumsum(steps) & 255).astype(np.uint8)
    if straight.size != size:
        raise ValueError(f"a chunk of {straight.size} bytes, expected {size}")
    half = (size + 1) // 2
    out = np.empty(size, np.uint8)
    out[0::2], out[1::2] = straight[:half], straight[half:]
    return out.tobytes()


def _run_lengths(chunk: bytes) -> bytes:
    """A signed count before each run: n < 0 says that -n bytes follow as they are, n >= 0 that the next one comes n + 1 times."""
    out, at = bytearray(), 0
    while at < len(chunk):
        count = chunk[at] - 256 if chunk[at] > 127 else chunk[at]
        if count < 0:
            out += chunk[at + 1 : at + 1 - count]
            at += 1 - count
        else:
            out += chunk[at + 1 : at + 2] * (count + 1)
            at += 2
    return bytes(out)
