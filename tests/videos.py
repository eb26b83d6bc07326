"""Test videos of every kind that breaks decoders, written here so that no data file is needed.

Frame n shows n in its colors, and a texture that moves, so that a frame that is off by one is far off in pixels.
"""

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def picture(number: int, height: int, width: int) -> np.ndarray:
    """Frame `number`: a drifting texture, brighter at the top left, and a patch of a color of its own."""
    v, u = np.mgrid[0:height, 0:width].astype(np.float64)
    wave = np.sin((u + 3.1 * number) / 7) * np.cos((v - 1.7 * number) / 5)
    rgb = 110 + 60 * wave[..., None] + np.stack((40 - u * 40 / width, 40 - v * 40 / height, 0 * u), axis=-1)
    box = slice(height // 4, height // 2), slice(width // 4, width // 2)
    rgb[box] = color(number)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def color(number: int) -> np.ndarray:
    """Of the patch of frame `number` (below 125): neighbors differ by 50 levels or more."""
    return 30 + 50 * np.array((number % 5, number // 5 % 5, number // 25 % 5))


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    fps: Fraction | int = 24,
    times_ms: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
    color: int | None = None,
    container_options: dict[str, str] | None = None,
) -> str:
    """Encodes the pictures; `times_ms` makes the rate variable, `color` names the matrix (1: BT.709). Returns the path as a uri."""
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(str(path), "w", format=container, options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=fps)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pixel_format
        stream.options = options or {}
        stream.codec_context.thread_count = 1
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if color is not None:
            stream.codec_context.colorspace = color
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, rgb in enumerate((first, *pictures)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if color is not None:
                frame = frame.reformat(format=pixel_format, dst_colorspace=color)
            frame.pts = times_ms[number] if times_ms else number
            frame.time_base = Fraction(1, 1000) if times_ms else 1 / Fraction(fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return str(path)


def numbered(count: int, height: int = 64, width: int = 96) -> Iterable[np.ndarray]:
    return (picture(number, height, width) for number in range(count))


def write_audio(path: Path, seconds: float = 0.5) -> str:
    """A file with sound and no pictures."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("aac", rate=16000)
        tone = np.sin(np.arange(int(16000 * seconds)) / 8).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return str(path)


def turn(path: Path, matrix: tuple[float, float, float, float]) -> None:
    """Writes the upper left 2 x 2 of the display matrix into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    assert data[at] == 0, "expected a track header of version 0"
    a, b, c, d = (round(value * 65536) for value in matrix)
    struct.pack_into(">iiiiiiiii", data, at + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def edit(path: Path, skip_seconds: float, show_seconds: float) -> None:
    """Makes the edit list of an mp4 show only a part of the track."""
    data = bytearray(path.read_bytes())
    movie_scale = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    media_scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    at = data.index(b"elst") + 4
    entries, _, media_time = struct.unpack_from(">IIi", data, at + 4)
    assert entries == 1, "expected one entry in the edit list"
    struct.pack_into(
        ">Ii", data, at + 8, round(show_seconds * movie_scale), media_time + round(skip_seconds * media_scale)
    )
    path.write_bytes(data)


def declare_size(path: Path, height: int, width: int) -> None:
    """Writes another picture size into the stream header of an avi."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<ii", data, data.index(b"strf") + 12, width, height)
    path.write_bytes(data)


def flip_bits(path: Path, every: int, start: float = 0.3, end: float = 0.9, seed: int = 0) -> None:
    """Flips one bit in about every `every` bytes between two shares of the file."""
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for at in range(int(len(data) * start), int(len(data) * end), every):
        data[at] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


def blank(path: Path, start: float, end: float) -> None:
    """A hole of zeros between two shares of the file."""
    data = bytearray(path.read_bytes())
    low, high = int(len(data) * start), int(len(data) * end)
    data[low:high] = bytes(high - low)
    path.write_bytes(data)


def cut_off(path: Path, share: float) -> None:
    """Keeps the first `share` of the file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
