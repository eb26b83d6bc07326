"""PyAV, and all we know of it: what a video file holds, and its frames, exactly or not at all.

A decoder that seeks can hand out the wrong frame, and a damaged file decodes to wrong pixels without an error. So every window is
checked against the presentation timestamps (pts) of the file's packets, and decoding is strict (`err_detect=explode`).
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.container
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from jaxtyping import Int64, UInt8

from shared import buckets, files

MAX_SIDE_PX = 8192
MAX_PIXELS = 8192 * 4320
"""Larger pictures are refused before one is decoded: an 8K frame with its references already takes a gigabyte."""

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,m4v,h264,hevc,obu,ivf"
"""No playlists (they name other files), no still pictures, no text: FFmpeg has demuxers that read those as videos."""
_NO_INDEX = ("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "obu", "m4v")
_BACK_OFF_SECONDS = (0.0, 2.0, 8.0, None)
"""How far before the wanted frames a seek aims; None: from the beginning, without a seek."""
_LATE_STREAM = IndexError
"""PyAV ends with it where a stream turned up after the header; all packets are out by then."""
_PACKETS_UNTIL_A_FRAME = 300
_LOCAL_BUFFER_BYTES = 1 << 15


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What one demuxing of the file and its first frame tell."""

    time_base: Fraction
    fps: float | None
    """As the container states it."""
    coded_height: int
    coded_width: int
    rotation: int
    """Counter-clockwise degrees that turn the coded picture upright: 0, 90, 180 or 270."""
    pixel_aspect: float
    """Width of a coded pixel over its height."""
    num_packets: int
    pts: Int64[np.ndarray, " N"]
    """Of every shown frame, in showing order; with gaps or repetitions where not `indexed`."""
    indexed: bool
    """True: every packet has a pts of its own."""
    plain_seeks: bool
    """True: the container has an index, and no frame is shown before the key frame that it is decoded after."""
    promised_seconds: float | None
    found_seconds: float
    num_bytes: int
    """Of the video stream's packets."""
    digest: str
    """Of the packets' times and sizes, so that another video under the same name is another."""


@contextlib.contextmanager
def opened(uri: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first video stream, strict, on one thread; closed on leaving. Open it in the process that reads.

    Raises ValueError, one sentence, for what is no video. Trouble on the way to a bucket stays an OSError.
    """
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(_container(uri, stack))
        except (av.FFmpegError, FileNotFoundError, IsADirectoryError) as error:
            raise ValueError(f"{uri}: {_why_not(error)}, expected a video file") from None
        shown = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not shown:
            kinds = " and ".join(sorted({stream.type for stream in container.streams})) or "no streams"
            raise ValueError(f"{uri}: holds only {kinds}, expected a video stream")
        stream = shown[0]
        context = stream.codec_context
        if context is None:
            raise ValueError(f"{uri}: no decoder for its video stream, expected a codec that PyAV brings")
        if max(context.width, context.height) > MAX_SIDE_PX or context.width * context.height > MAX_PIXELS:
            raise ValueError(
                f"{uri}: declares pictures of {context.width} x {context.height}, "
                f"expected at most {MAX_SIDE_PX} px a side and {MAX_PIXELS} px in all"
            )
        context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        context.thread_count = 1  # with frame threads a cut-off file ends silently
        yield container, stream


def look(uri: str) -> Facts:
    """Reads every packet of the file and decodes its first frame. Raises ValueError, one sentence, for what is no video."""
    with opened(uri) as (container, stream):
        packets, first = _Packets(container, stream), None
        for packet in packets:
            if first is None and len(packets.pts) <= _PACKETS_UNTIL_A_FRAME:
                first = _first_frame(packet)
        if first is None:
            raise ValueError(f"{uri}: no frame of its {stream.codec_context.name} stream can be decoded")
        pts = np.array([p for p in packets.pts if p is not None], np.int64)
        return Facts(
            time_base=Fraction(stream.time_base or Fraction(1, 1_000_000)),
            fps=float(rate) if (rate := stream.average_rate or stream.guessed_rate) else None,
            coded_height=first.height,
            coded_width=first.width,
            rotation=_rotation(uri, first),
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            num_packets=len(packets.pts),
            pts=np.sort(pts),
            indexed=len(pts) > 0 and len(np.unique(pts)) == len(packets.pts),
            plain_seeks=packets.closed_gops and container.format.name not in _NO_INDEX,
            promised_seconds=packets.promised_seconds(),
            found_seconds=packets.found_seconds(),
            num_bytes=packets.num_bytes,
            digest=packets.digest.hexdigest(),
        )


class Damaged(Exception):
    """A pass over the file ended before its end."""


def strict(uri: str, *, rough: bool = False) -> Iterator[av.VideoFrame]:
    """Every frame from the first whole one, as the decoder emits them; `Damaged` at the first damage or change of size.

    `rough` leaves frames that no other frame refers to without their deblocking, which nobody sees in a small picture.
    """
    with opened(uri) as (container, stream):
        context, size, lost = stream.codec_context, None, False
        if rough:
            context.options |= {"skip_loop_filter": "noref"}
        for packet in _until_torn(container, stream):
            if lost and not packet.is_keyframe:
                continue
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                if size is not None:
                    raise Damaged(_in_words(error)) from None
                context.flush_buffers()  # a recording may begin between two key frames
                lost = True
                continue
            lost = False
            for frame in decoded:
                if size not in (None, (frame.height, frame.width)):
                    raise Damaged(f"changes its size to {frame.width} x {frame.height}")
                size = frame.height, frame.width
                yield frame


def window(
    uri: str, index: Int64[np.ndarray, " N"], first: int, last: int, take: Callable[[int, av.VideoFrame], Any]
) -> bool:
    """Hands frames `first` to `last` to `take(number, frame)`, and says whether they were exactly the frames asked for.

    A failed attempt starts over further ahead, so `take` may see a number more than once: the last call counts.
    """
    run = index[first : last + 1]
    for back_seconds in _BACK_OFF_SECONDS:
        with opened(uri) as (container, stream), contextlib.suppress(av.FFmpegError, _LATE_STREAM):
            if back_seconds is not None:
                aim = int(run[0]) - round(back_seconds / (stream.time_base or 1))
                container.seek(max(int(index[0]), aim), stream=stream)
            if _runs_through(container.decode(stream), run, first, take):
                return True
    return False


def _runs_through(
    frames: Iterator[av.VideoFrame],
    run: Int64[np.ndarray, " N"],
    first: int,
    take: Callable[[int, av.VideoFrame], Any],
) -> bool:
    found = 0
    for frame in frames:
        if frame.pts is not None and frame.pts < run[0]:
            continue
        if frame.pts != run[found]:
            return False
        take(first + found, frame)
        found += 1
        if found == len(run):
            return True
    return False


def upright(frame: av.VideoFrame, rotation: int) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of a frame, turned by `rotation` counter-clockwise degrees."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24", threads=1), rotation // 90 % 4))


class Shrink:
    """Small upright pictures, in one pass over the pixels: nothing is converted to RGB at full size."""

    def __init__(self, pixels: int, rotation: int) -> None:
        self._pixels, self._turns = pixels, rotation // 90 % 4
        self._swscale = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h2 w2 3"], float]:
        """Luma at up to `pixels` pixels, BGR at half its size, and the mean luminance (0 to 255) of the picture."""
        scale = (self._pixels / (frame.width * frame.height)) ** 0.5
        height, width = frame.height, frame.width
        if scale < _WORTH_SHRINKING:
            height, width = (max(round(side * scale / 4) * 4, 8) for side in (height, width))
        small = self._swscale.reformat(
            frame, width, height, "yuv420p", interpolation="AREA", dst_color_range="MPEG", threads=1
        )
        y, u, v = (np.ascontiguousarray(np.rot90(_plane(small, index), self._turns)) for index in range(3))
        half = max(y.shape[1] // 4 * 2, 8), max(y.shape[0] // 4 * 2, 8)
        return y, _bgr(y, u, v, half), _luminance(y, u, v, frame.colorspace == _BT709)


_BT709 = 1
_WORTH_SHRINKING = 0.9


def _plane(frame: av.VideoFrame, index: int) -> UInt8[np.ndarray, "h w"]:
    plane = frame.planes[index]
    return np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _bgr(
    y: UInt8[np.ndarray, "h w"], u: UInt8[np.ndarray, "hc wc"], v: UInt8[np.ndarray, "hc wc"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """At `size` (width, height, both even), good enough to compare pictures: BT.709 is taken for BT.601."""
    width, height = size
    planes = ((y, width, height), (u, width // 2, height // 2), (v, width // 2, height // 2))
    small = [cv2.resize(plane, (w, h), interpolation=cv2.INTER_AREA).ravel() for plane, w, h in planes]
    return cv2.cvtColor(np.concatenate(small).reshape(height * 3 // 2, width), cv2.COLOR_YUV2BGR_I420)


def _luminance(
    y: UInt8[np.ndarray, "h w"], u: UInt8[np.ndarray, "hc wc"], v: UInt8[np.ndarray, "hc wc"], bt709: bool
) -> float:
    """Mean of 0.2126 R + 0.7152 G + 0.0722 B, from the means of the planes since all of it is linear."""
    luma = (cv2.mean(y)[0] - 16) * 255 / 219
    if bt709:
        return min(max(luma, 0.0), 255.0)  # its luma is defined by these very weights
    blue, red = ((cv2.mean(plane)[0] - 128) * 255 / 224 for plane in (u, v))
    mixed = luma + 0.2126 * 1.402 * red - 0.7152 * (0.344136 * blue + 0.714136 * red) + 0.0722 * 1.772 * blue
    return min(max(mixed, 0.0), 255.0)


class _Packets:
    """Walks the packets of the video stream and keeps count of what they say."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self._container, self._stream = container, stream
        self.pts: list[int | None] = []
        self.num_bytes, self.closed_gops = 0, True
        self.digest = hashlib.blake2b(digest_size=16)
        self._start: float | None = None
        self._video_end = self._any_end = 0.0

    def __iter__(self) -> Iterator[av.Packet]:
        """Packets of the video stream, the empty one that flushes the decoder last. Ends early where the file is torn."""
        # without a duration of its own the stream is judged by the container's, which the longest stream sets
        streams = [self._stream] if self._stream.duration else list(self._container.streams)
        key_pts: int | None = None
        with contextlib.suppress(av.FFmpegError, _LATE_STREAM):
            for packet in self._container.demux(streams):
                self._time(packet)
                if packet.stream_index != self._stream.index:
                    continue
                if packet.size and not packet.is_discard:
                    self.pts.append(packet.pts)
                    self.num_bytes += packet.size
                    self.digest.update(f"{packet.pts} {packet.size};".encode())
                    if packet.is_keyframe:
                        key_pts = packet.pts
                    elif packet.pts is not None and key_pts is not None and packet.pts < key_pts:
                        self.closed_gops = False
                yield packet

    def _time(self, packet: av.Packet) -> None:
        if packet.pts is None or packet.time_base is None:
            return
        start = float(packet.pts * packet.time_base)
        end = start + float((packet.duration or 0) * packet.time_base)
        self._any_end = max(self._any_end, end)
        if packet.stream_index == self._stream.index:
            self._start = start if self._start is None else min(start, self._start)
            self._video_end = max(self._video_end, end)

    def promised_seconds(self) -> float | None:
        """As the stream declares, else the container."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def found_seconds(self) -> float:
        """What the packets cover of the promise."""
        return (self._video_end if self._stream.duration else self._any_end) - (self._start or 0.0)


def _container(uri: str, stack: contextlib.ExitStack) -> av.container.InputContainer:
    remote = files.is_remote(uri)
    return av.open(
        stack.enter_context(files.open_input(uri)) if remote else buckets.split(uri)[1],
        mode="r",
        container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
        options={"max_pixels": str(MAX_PIXELS)},
        metadata_errors="replace",
        buffer_size=files.READ_AHEAD_BYTES if remote else _LOCAL_BUFFER_BYTES,
    )


def _until_torn(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    try:
        with contextlib.suppress(_LATE_STREAM):
            yield from container.demux(stream)
    except av.FFmpegError as error:
        raise Damaged(_in_words(error)) from None


def _in_words(error: av.FFmpegError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _why_not(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory"
    if isinstance(error, PermissionError):
        return "may not be read"
    return "not a video container that we read (mp4, mov, mkv, webm, avi, ts, mpg, ...), or its header is cut off"


def _first_frame(packet: av.Packet) -> av.VideoFrame | None:
    try:
        frames = packet.decode()
    except av.FFmpegError:
        return None  # a recording may start between two key frames
    return frames[0] if frames else None


def _rotation(uri: str, frame: av.VideoFrame) -> int:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
        if a * d - b * c < 0:
            raise ValueError(f"{uri}: its pictures are to be shown mirrored, expected a rotation only")
    if frame.rotation % 90:
        raise ValueError(f"{uri}: its pictures are to be turned by {frame.rotation} degrees, expected a multiple of 90")
    return frame.rotation % 360
