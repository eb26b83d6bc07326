"""Arrays <-> bytes, small, with a stated error; and frames <-> H.264.

A `compact` member is one line of JSON (kind, step, offset, shape, version), then zstd. The kinds:

* `log`: u16 codes of ln x, for depth. Code 0 is "not valid".
* `linear`: u16 codes of x, for flow in pixels. Of both, the step is coarse for what was estimated and fine for what is exact.
* `half`: f16 of x / step, where step is the power of two that brings the largest value just under 2^14. Zeros stay exact zeros.
* `track`: i32 of x / step, where step is the power of two that brings the largest value just under 2^22, differenced over time.
* `bits`: packed booleans. `int32`: integers. Both exact.

Dense images are differenced in both directions (d = q[y, x] - q[y, x-1] - q[y-1, x] + q[y-1, x-1], modulo 2^16) and zigzagged, and
everything is split into byte planes before zstd: what is smooth becomes runs of small numbers. The header says `delta` if it was.

Every decoder raises ValueError, one sentence, for bytes that are no member of its kind.
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int32, UInt8, UInt16

VERSION = 1
"""Of the compact members. A reader refuses a newer one."""

LOG_STEP = 1e-3
FLOW_STEPS_PX = (1 / 64, 1 / 32)
FINE_FLOW_STEPS_PX = (1 / 1024, 1 / 512, 1 / 256, 1 / 128, *FLOW_STEPS_PX)
LONGEST_FLOW_PX = 1023.0
"""Of either component: no step holds much more."""
_CENTER = 32768  # the u16 code of a flow of 0
_LAST_CODE = 65534  # of depth, counted from the nearest
_LEAST_LOG_STEP = 1e-7  # f32 knows no less
_HALF_EXPONENT = 14  # f16 ends at 65504, just under 2^16: room for rounding up
_FIRST_EXPONENT = -126  # of f32
_TRACK_EXPONENT = 22  # differences, doubled by their zigzag, stay well within 32 bits
_EVERY = 8  # pairs of scene flow of which one is packed on trial
_UNCERTAINTY_BITS = 3  # of f16's ten that are rounded away
_LAST_EXPONENT = math.log(np.finfo(np.float32).max)
_GOP = 12
_U2 = np.dtype(np.uint16)
_I4 = np.dtype(np.int32)
_DTYPES = {"log": _U2, "linear": _U2, "half": _U2, "bits": np.dtype(np.uint8), "int32": _I4, "track": _I4}


def encode_depth(z: Float32[np.ndarray, "T H W"], *, fine: bool = False) -> bytes:
    """z, 0 where not valid; 0 stays exactly 0. Relative error at most 5.1e-4 (half a log step and f32 rounding).

    `fine` spreads the codes over the range that is there: the error is ln(farthest / nearest) / 131,000 and f32 rounding, 3e-5 from
    3 to 150 m. It costs next to nothing on rendered depth, and would double that of networks, to keep their noise. Raises
    ValueError where farthest / nearest passes e^65.5, or z is negative or not finite.
    """
    if not (np.isfinite(z).all() and z.min(initial=0) >= 0):
        raise ValueError(f"holds {z[~np.isfinite(z) | (z < 0)][0]:g}, expected finite values of 0 (not valid) or more")
    valid = z > 0
    nearest = math.log(float(z.min(where=valid, initial=np.inf))) if valid.any() else 0.0
    farthest = math.log(float(z.max())) if valid.any() else 0.0
    if farthest - nearest > _LAST_CODE * LOG_STEP:
        raise ValueError(f"spans e^{nearest:.1f} to e^{farthest:.1f}, expected a ratio below e^65.5")
    step = min(LOG_STEP, max(_LEAST_LOG_STEP, (farthest - nearest) / _LAST_CODE)) if fine else LOG_STEP
    kind = np.float64 if fine else np.float32
    codes = np.zeros(z.shape, np.uint16)
    for number, image in enumerate(z):  # one by one they stay in the processor's cache
        log_z = np.log(np.where(valid[number], image, kind(1)))
        found = np.clip(np.rint((log_z - kind(nearest)) * kind(1 / step)), 0, _LAST_CODE)
        codes[number] = np.where(valid[number], found + 1, 0)
    return _pack(codes, "log", delta=True, step=step, offset=nearest)


def decode_depth(data: bytes) -> Float32[np.ndarray, "T H W"]:
    planes, header = _unpack(data, "log", ndim=3)
    exponents = header.offset + header.step * np.arange(-1, 65535, dtype=np.float64)
    table = np.exp(np.minimum(exponents, _LAST_EXPONENT)).astype(np.float32)
    table[0] = 0
    z = np.empty(header.shape, np.float32)
    for number, codes in _images(planes, header):
        z[number] = table[codes]
    return z


def encode_flow(flow: Float32[np.ndarray, "P H W 2"], *, fine: bool = False) -> bytes:
    """Error at most 1/128 px up to 511.9 px; 1/64 px up to 1023.9 px; ValueError beyond.

    `fine`: the longest flow within the clip decides the error, 1/2048 px up to 31.9 px and twice that for twice the length.
    """
    if not np.isfinite(flow).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(flow))} values are not finite")
    largest = float(np.abs(flow).max(initial=0))
    for step in FINE_FLOW_STEPS_PX if fine else FLOW_STEPS_PX:
        if largest <= step * (_CENTER - 1):
            pairs, height, width, _ = flow.shape
            codes = np.empty((pairs, 2, height, width), np.uint16)
            for pair in range(pairs):  # one by one they stay in the processor's cache
                scaled = np.rint(_channels_first(flow[pair]) * np.float32(1 / step))
                codes[pair] = scaled + np.float32(_CENTER)
            return _pack(codes, "linear", delta=True, step=step, offset=-_CENTER * step)
    raise ValueError(f"reaches {largest:g} px, expected at most {FLOW_STEPS_PX[-1] * (_CENTER - 1):g} px")


def decode_flow(data: bytes) -> Float32[np.ndarray, "P H W 2"]:
    planes, header = _unpack(data, "linear", ndim=4)
    num_pairs, channels, height, width = header.shape
    flow = np.empty((num_pairs, height, width, channels), np.float32)
    for number, codes in _images(planes, header):
        image = flow[number // channels, ..., number % channels]
        np.multiply(codes, np.float32(header.step), out=image, casting="unsafe")
        image += np.float32(header.offset)
    return flow


def encode_scene_flow(scene_flow: Float32[np.ndarray, "P H W 3"]) -> bytes:
    """f16: error at most 2^-11 of a component, or 2^-38 of the largest where that is more; 0 stays exactly 0."""
    half, step = _as_half(scene_flow)
    few = half[::_EVERY]  # noise gains nothing from differences; a few pairs tell whether it is noise
    delta = len(_pack_half(few, step, delta=True)) < len(_pack_half(few, step))
    return _pack_half(half, step, delta=delta)


def decode_scene_flow(data: bytes) -> Float32[np.ndarray, "P H W 3"]:
    return _unpack_half(data)


def encode_points(p_cam: Float32[np.ndarray, "T H W 3"]) -> bytes:
    """As scene flow, in error too."""
    return _pack_half(*_as_half(p_cam), delta=True)


decode_points = decode_scene_flow


def encode_tracks(p_world: Float32[np.ndarray, "T N 3"]) -> bytes:
    """Error at most 2^-22 of the largest coordinate; 0 stays exactly 0. What stands still costs next to nothing."""
    largest = _largest(p_world)
    step = math.ldexp(1.0, math.frexp(largest)[1] - _TRACK_EXPONENT) if largest else 1.0
    codes = np.rint(p_world.astype(np.float64) / step).astype(np.int32)
    change = np.diff(codes, axis=0, prepend=np.zeros_like(codes[:1]))
    return _pack((change << 1) ^ (change >> 31), "track", step=step)


def decode_tracks(data: bytes) -> Float32[np.ndarray, "T N 3"]:
    planes, header = _unpack(data, "track", ndim=3)
    codes = _joined(planes, _I4).reshape(header.shape)
    change = (codes >> 1) ^ -(codes & 1)
    return (np.cumsum(change, axis=0, dtype=np.int32) * header.step).astype(np.float32)


def encode_uncertainty(uncertainty: Float32[np.ndarray, "P H W"]) -> bytes:
    """Error at most 0.5 %, or 2^-38 of the largest value: it weighs, it is no measurement."""
    return _pack_half(*_as_half(uncertainty), delta=True, drop_bits=_UNCERTAINTY_BITS)


def decode_uncertainty(data: bytes) -> Float32[np.ndarray, "P H W"]:
    return _unpack_half(data)


def encode_mask(true: Bool[np.ndarray, "*shape"]) -> bytes:
    """Exact."""
    return _pack(np.packbits(true), "bits", shape=true.shape)


def decode_mask(data: bytes) -> Bool[np.ndarray, "*shape"]:
    planes, header = _unpack(data, "bits")
    return np.unpackbits(planes[0], count=math.prod(header.shape)).reshape(header.shape).astype(bool)


def encode_instances(instances: Int32[np.ndarray, "T H W"]) -> bytes:
    """Exact."""
    return _pack(instances, "int32")


def decode_instances(data: bytes) -> Int32[np.ndarray, "T H W"]:
    planes, header = _unpack(data, "int32")
    return _joined(planes, np.dtype(np.int32)).reshape(header.shape)


def encode_cameras(world_from_cam: Float64[np.ndarray, "T 4 4"], intrinsics: Float64[np.ndarray, "T 4"]) -> bytes:
    """Exact, an npz."""
    file = io.BytesIO()
    np.savez(file, world_from_cam=world_from_cam, intrinsics=intrinsics)
    return file.getvalue()


def decode_cameras(data: bytes) -> tuple[Float64[np.ndarray, "T 4 4"], Float64[np.ndarray, "T 4"]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return file["world_from_cam"], file["intrinsics"]
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise ValueError(f"no npz of world_from_cam and intrinsics ({error})") from None


def encode_plain(array: np.ndarray) -> bytes:
    """Exact, an npy that any tool opens."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def decode_plain(data: bytes) -> np.ndarray:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise ValueError(f"no npy array ({error})") from None


def encode_rgb(rgb: UInt8[np.ndarray, "T H W 3"], fps: float, crf: int = 14) -> bytes:
    """H.264 in mp4, a key frame every 12, the same bytes every time (one thread, no dates, no tool's name).

    Lossy: 4:2:0 color (BT.601, limited range) where both sides are even, as players want; 4:4:4 where one is odd. `crf=0` is exact:
    it stores RGB itself (High 4:4:4 Predictive), which ffmpeg's family decodes and browsers do not.
    """
    import av.codec.context  # not at the top: 0.1 s that reading labels does not need
    import av.video.reformatter

    height, width = rgb.shape[1:3]
    even = height % 2 == 0 and width % 2 == 0
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libx264rgb" if crf == 0 else "libx264", rate=_rate(fps))
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb24" if crf == 0 else "yuv420p" if even else "yuv444p"
        stream.time_base = stream.codec_context.time_base = 1 / _rate(fps)
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "fast", "g": str(_GOP), "x264-params": _X264}
        if crf != 0:
            stream.codec_context.colorspace = av.video.reformatter.Colorspace.SMPTE170M
            stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        for number, image in enumerate(rgb):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if crf != 0:
                frame = frame.reformat(
                    format=stream.pix_fmt, dst_colorspace="ITU601", dst_color_range="MPEG", interpolation=_SCALER
                )
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


_X264 = "threads=1:lookahead-threads=1:sliced-threads=0:open-gop=0:cpu-independent=1"
_SCALER = 0x20 | 0x40000 | 0x80000
"""libswscale's SWS_AREA | SWS_ACCURATE_RND | SWS_BITEXACT: the same on every processor."""


def decode_rgb(mp4: bytes | BinaryIO, first: int = 0, count: int | None = None) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames first, first + 1, ... of what `encode_rgb` made; only from the key frame before `first` on is decoded."""
    import av

    frames: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(mp4) if isinstance(mp4, bytes) else mp4, "r") as container:
            for number, frame in _numbered(container, first):
                if number >= first:
                    frames.append(frame.reformat(format="rgb24", interpolation=_SCALER).to_ndarray())
                if count is not None and len(frames) == count:
                    break
    except (av.FFmpegError, IndexError, OverflowError) as error:
        raise ValueError(f"no video ({error})") from None
    if not frames or (count is not None and len(frames) < count):
        raise ValueError(f"the video ends before frame {first + (count or 1) - 1}")
    return np.stack(frames)


def _numbered(container: Any, first: int) -> Iterator[tuple[int, Any]]:
    stream = container.streams.video[0]
    if stream.codec_context is None or not stream.average_rate:
        raise ValueError("no video of a known codec and rate")
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}
    tick = 1 / (stream.average_rate * stream.time_base)
    if first >= _GOP:
        container.seek(int(first * tick), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is None:
            raise ValueError("a frame without time")
        yield round(frame.pts / tick), frame


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _channels_first(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def _largest(array: Float32[np.ndarray, "*shape"]) -> float:
    if not np.isfinite(array).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(array))} values are not finite")
    largest = float(np.abs(array).max(initial=0))
    if largest >= 2.0**127:
        raise ValueError(f"reaches {largest:g}, expected less than 1.7e38")
    return largest


def _as_half(array: Float32[np.ndarray, "*shape"]) -> tuple[UInt16[np.ndarray, "*planar"], float]:
    """Bits of f16, channels before rows, and what they are multiples of."""
    largest = _largest(array)
    exponent = max(math.frexp(largest)[1] - _HALF_EXPONENT, _FIRST_EXPONENT) if largest else 0
    step = math.ldexp(1.0, exponent)
    if array.ndim != 4:
        return _scaled(array, step), step
    half = np.empty((array.shape[0], array.shape[3], *array.shape[1:3]), np.uint16)
    for number, image in enumerate(array):  # one by one they stay in the processor's cache
        half[number] = _scaled(_channels_first(image), step)
    return half, step


def _scaled(array: Float32[np.ndarray, "*shape"], step: float) -> UInt16[np.ndarray, "*shape"]:
    return (array * np.float32(1 / step)).astype(np.float16).view(np.uint16)


def _pack_half(half: UInt16[np.ndarray, "*shape"], step: float, delta: bool = False, drop_bits: int = 0) -> bytes:
    if drop_bits:
        half = (half + np.uint16(1 << (drop_bits - 1))) & np.uint16(~((1 << drop_bits) - 1) & 0xFFFF)
    if delta:
        half = np.where(half >> 15, ~half, half | 0x8000)  # in the order of the numbers they stand for
    return _pack(half, "half", delta=delta, step=step)


def _unpack_half(data: bytes) -> Float32[np.ndarray, "*shape"]:
    planes, header = _unpack(data, "half")
    codes = np.empty(header.shape, np.uint16)
    if header.delta:
        images = codes.reshape(-1, *codes.shape[-2:])
        for number, image in _images(planes, header):
            images[number] = np.where(image >> 15, image & 0x7FFF, ~image)
    else:
        codes[...] = _joined(planes, _U2).reshape(header.shape)
    codes = _channels_last(codes) if codes.ndim == 4 else codes
    return codes.view(np.float16).astype(np.float32) * np.float32(header.step)


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The first line of a compact member."""

    kind: str
    shape: tuple[int, ...]
    delta: bool
    step: float
    offset: float

    @classmethod
    def parse(cls, line: bytes, kind: str) -> "_Header":
        try:
            facts = json.loads(line)
            version = facts.pop("wrz")
            if version > VERSION:
                raise ValueError(
                    f"a compact member of version {version}, this worldreel reads up to {VERSION}: update it"
                )
            facts = {name: _HEADER[name](facts[name]) for name in _HEADER}
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError(f"not a compact member: it begins with {line[:20]!r}") from None
        header = cls(**facts)
        if header.kind != kind or min(header.shape, default=0) < 0:
            raise ValueError(f"a member of kind {header.kind} and shape {header.shape}, expected {kind}")
        return header


_HEADER = {"kind": str, "shape": tuple, "delta": bool, "step": float, "offset": float}


def _pack(
    codes: np.ndarray,
    kind: str,
    *,
    delta: bool = False,
    shape: tuple[int, ...] | None = None,
    step: float = 1.0,
    offset: float = 0.0,
) -> bytes:
    shape = codes.shape if shape is None else shape
    header = {"wrz": VERSION, "kind": kind, "shape": shape, "delta": delta, "step": step, "offset": offset}
    images = codes if codes.ndim > 2 else codes[None]
    planes = np.empty((_DTYPES[kind].itemsize, *images.shape), np.uint8)
    for number, image in enumerate(images):  # one by one they stay in the processor's cache
        whole = _zigzag(_difference(image)) if delta else image
        for place in range(len(planes)):
            planes[place, number] = whole >> 8 * place
    body = _zstd().compress(planes, asbytes=True)
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + body


def _unpack(data: bytes, kind: str, ndim: int | None = None) -> tuple[UInt8[np.ndarray, "bytes n"], _Header]:
    """The planes of a member's bytes, lowest first."""
    line, _, body = data.partition(b"\n")
    header = _Header.parse(line, kind)
    if (ndim is not None and len(header.shape) != ndim) or (header.delta and len(header.shape) < 2):
        raise ValueError(f"a {kind} member of shape {header.shape}, expected {ndim or 'at least two'} dimensions")
    dtype = _DTYPES[kind]
    count = math.prod(header.shape)
    num_bytes = -(-count // 8) if kind == "bits" else count * dtype.itemsize
    try:
        raw = _zstd().decompress(body, decompressed_size=num_bytes, asbytes=True)
    except (pa.ArrowException, OSError, OverflowError, MemoryError) as error:
        raise ValueError(f"a torn or corrupt {kind} member ({error})") from None
    if len(raw) != num_bytes:
        raise ValueError(f"a torn {kind} member: {len(raw)} bytes, expected {num_bytes}")
    return np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1), header


def _joined(planes: UInt8[np.ndarray, "bytes n"], dtype: np.dtype) -> np.ndarray:
    codes = planes[-1].astype(dtype)
    for plane in planes[-2::-1]:
        codes <<= 8
        codes |= plane
    return codes


def _images(planes: UInt8[np.ndarray, "2 n"], header: _Header) -> Iterator[tuple[int, UInt16[np.ndarray, "H W"]]]:
    """Every image of 16-bit codes with its number, differences undone; the array is reused for the next image.

    One image at a time stays in a processor's cache, where whole clips would go through memory a dozen times.
    """
    height, width = header.shape[-2:]
    low, high = planes.reshape(2, math.prod(header.shape[:-2]), height, width)
    codes, aside = np.empty((height, width), np.uint16), np.empty((height, width), np.uint16)
    for number in range(len(low)):
        codes[...], aside[...] = high[number], low[number]
        codes <<= 8
        codes |= aside
        if header.delta:
            _unzigzag(codes, aside)
            _sum(codes)
        yield number, codes


def _difference(codes: UInt16[np.ndarray, "*batch H W"]) -> UInt16[np.ndarray, "*batch H W"]:
    rows = codes.copy()
    rows[..., 1:] -= codes[..., :-1]
    both = rows.copy()
    both[..., 1:, :] -= rows[..., :-1, :]
    return both


def _sum(differences: UInt16[np.ndarray, "H W"]) -> None:
    """Undoes `_difference` in place."""
    for above, row in pairwise(differences):  # four times as fast as accumulating over this axis
        row += above
    np.add.accumulate(differences, axis=-1, dtype=np.uint16, out=differences)


def _zigzag(codes: UInt16[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """0, -1, 1, -2, ... become 0, 1, 2, 3, ...: small differences of either sign have a zero high byte."""
    return (codes << np.uint16(1)) ^ (np.uint16(0) - (codes >> np.uint16(15)))


def _unzigzag(codes: UInt16[np.ndarray, "H W"], aside: UInt16[np.ndarray, "H W"]) -> None:
    """Undoes `_zigzag` in place, with a second array to work in."""
    np.bitwise_and(codes, 1, out=aside)
    np.negative(aside, out=aside)
    codes >>= 1
    codes ^= aside


def _zstd() -> pa.Codec:
    return pa.Codec("zstd", compression_level=3)
