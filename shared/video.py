"""A reference to a video, and its frames: exactly the frames asked for, or a refusal.

`probe` finds out what a file holds; `frames` passes over all of it once; `read` gives any frames by number. `scan` is the pass that
screening makes anyway: it proves whether windows of the file can be trusted, and hands out small pictures.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8

if TYPE_CHECKING:
    import av

    from shared import decoding  # at run time inside functions: knobs that name a `Decoder` load no PyAV

Decoder = Literal["pyav", "decord"]
"""pyav: verified by presentation time. decord: windows read by decord, refused where it cannot be exact."""

Fit = Callable[[np.ndarray], np.ndarray]
"""Done to each picture as soon as it is decoded, so that a window of large pictures need not lie in memory."""

SCAN_PIXELS = 640 * 360
"""Of the pictures that `scan` shows, at most."""
_NOT_SEEKABLE = "not seekable"
_FALLBACK_FPS = 25.0
_ROUNDING_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """What is known of a video without its pixels. Sizes are upright: after the rotation that the file asks for."""

    uri: str
    fps: float
    """Mean rate; single frames may be further apart (`seconds`)."""
    height: int
    width: int
    num_frames: int
    identity: str
    """A hash of the uri and of the packets' times and sizes: another file under the same name has another."""
    licence: str = ""
    caption: str = ""
    sequential: bool = False
    """True: frames are numbered as the decoder emits them, since windows cannot be verified."""
    note: str = ""
    """What is wrong with the file although frames can be had, such as "damaged at frame 190" or "truncated: ..."; "" if nothing."""
    decoder: Decoder = "pyav"
    pixel_aspect: float = 1.0
    """Width of a pixel over its height: 1 in all but anamorphic files."""
    bits_per_second: float = 0.0
    """Of the video stream."""
    rotation: int = 0
    plain_seeks: bool = True
    """True: container and stream are such that decoders which seek without a check arrive at the right frame, too."""
    time_base: Fraction = Fraction(1, 1_000_000)
    pts: Int64[np.ndarray, " N"]
    """Presentation time of every frame, in `time_base`."""

    @property
    def seconds(self) -> Float64[np.ndarray, " N"]:
        """When each frame is shown; the first at 0."""
        return (self.pts - self.pts[:1]) * float(self.time_base)


@dataclass(frozen=True, eq=False)
class Picture:
    """One frame as `scan` shows it: upright, small, as luma and in color."""

    number: int
    seconds: float
    luma: UInt8[np.ndarray, "h w"]
    """As many pixels as 640 x 360 or fewer, never enlarged; 16 is black, 235 white."""
    bgr: UInt8[np.ndarray, "h2 w2 3"]
    """At half that size, in OpenCV's order of channels."""
    luminance: float
    """Mean of 0.2126 R + 0.7152 G + 0.0722 B, 0 to 255."""


def probe(uri: str, *, licence: str = "", caption: str = "", decoder: Decoder = "pyav") -> Video:
    """What the file holds. Reads every packet once, decodes one frame.

    Raises ValueError, one sentence, for a file that is missing, no video, or holds no frame. A file that is shorter than it
    promises is no error: its `note` says so.
    """
    from shared import decoding

    facts = decoding.look(uri)
    fps, turned = _rate(facts), facts.rotation % 180 == 90
    video = Video(
        uri=uri,
        fps=fps,
        height=facts.coded_width if turned else facts.coded_height,
        width=facts.coded_height if turned else facts.coded_width,
        num_frames=facts.num_packets,
        identity=hashlib.blake2b(f"{uri} {facts.digest}".encode(), digest_size=16).hexdigest(),
        licence=licence,
        caption=caption,
        sequential=not facts.indexed,
        note=_truncation(facts, fps),
        decoder=decoder,
        pixel_aspect=1 / facts.pixel_aspect if turned else facts.pixel_aspect,
        bits_per_second=8 * facts.num_bytes / facts.found_seconds if facts.found_seconds > 0 else 0.0,
        rotation=facts.rotation,
        plain_seeks=facts.plain_seeks,
        time_base=facts.time_base,
        pts=facts.pts,
    )
    if not facts.indexed:
        pts, time_base = _even_times(video.fps, facts.num_packets)
        video = replace(video, pts=pts, time_base=time_base, note=_joined(video.note, _NOT_SEEKABLE))
    return video


def frames(video: Video) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Number and RGB of every frame, in one pass and bounded memory. Ends before the first damage, which `scan` records."""
    from shared import decoding

    with contextlib.suppress(decoding.Damaged):
        for number, frame in enumerate(decoding.strict(video.uri)):
            yield number, decoding.upright(frame, video.rotation)


def scan(video: Video, see: Callable[[Picture], Any]) -> Video:
    """Shows every frame to `see`, small, in one pass; returns the video as the pass proved it.

    Where the decoder emits exactly the frames that the index promises, windows are safe. Otherwise the video comes back
    `sequential`, and a damaged one ends before the damage; the note says which. Raises ValueError if not one frame is whole.
    """
    from shared import decoding

    shrink = decoding.Shrink(SCAN_PIXELS, video.rotation)
    shown: list[int | None] = []
    damage = ""
    try:
        for number, frame in enumerate(decoding.strict(video.uri, rough=True)):
            shown.append(frame.pts)
            see(Picture(number, _seconds(video, number, frame.pts), *shrink(frame)))
    except decoding.Damaged as error:
        damage = f"damaged at frame {len(shown)}: {error}"
    if not shown:
        raise ValueError(f"{video.uri}: {damage or 'not one frame comes out of it'}, expected a video")
    return _proved(video, shown, damage)


def read(video: Video, wanted: Int64[np.ndarray, " N"], fit: Fit | None = None) -> UInt8[np.ndarray, "N H W 3"]:
    """RGB of these frames, the same pixels as a whole decode of the file gives; `fit` resizes each as it is decoded.

    Raises ValueError if a frame does not exist or cannot be had exactly.
    """
    if len(wanted) == 0 or wanted.min() < 0 or wanted.max() >= video.num_frames:
        asked = f"{wanted.min()} to {wanted.max()}" if len(wanted) else "none"
        raise ValueError(f"{video.uri}: asked for frames {asked}, expected some of 0 to {video.num_frames - 1}")
    from shared import decoding

    if video.decoder == "decord":
        from shared import decord_reader

        return decord_reader.read(video, wanted, fit)
    pictures: dict[int, np.ndarray] = {}
    needed = set(wanted.tolist())

    def take(number: int, frame: "av.VideoFrame") -> None:
        if number in needed:
            rgb = decoding.upright(frame, video.rotation)
            if rgb.shape[:2] != (video.height, video.width):
                size = f"{rgb.shape[1]} x {rgb.shape[0]}"
                raise ValueError(f"{video.uri}: frame {number} is {size}, expected {video.width} x {video.height}")
            pictures[number] = fit(rgb) if fit else rgb

    first, last = min(needed), max(needed)
    if video.sequential or not decoding.window(video.uri, video.pts, first, last, take):
        _pass_to(video, last, take)
    return np.stack([pictures[number] for number in wanted.tolist()])


def _pass_to(video: Video, last: int, take: Callable[[int, Any], None]) -> None:
    from shared import decoding

    try:
        for number, frame in enumerate(decoding.strict(video.uri)):
            if not video.sequential and frame.pts != video.pts[number]:
                raise ValueError(f"{video.uri}: frame {number} comes out of place, expected the order of its packets")
            take(number, frame)
            if number == last:
                return
    except decoding.Damaged as error:
        raise ValueError(f"{video.uri}: frame {last} cannot be reached ({error})") from None
    raise ValueError(f"{video.uri}: ends before frame {last}")


def _proved(video: Video, shown: list[int | None], damage: str) -> Video:
    index = video.pts.tolist()
    lost = index.index(shown[0]) if not video.sequential and shown[0] in index else 0
    whole = lost + len(shown) == video.num_frames
    note = _joined(
        video.note,
        f"damaged: its first {lost} frames cannot be decoded" if lost else "",
        damage or ("" if whole or video.sequential else f"damaged at frame {len(shown)}: the pictures end early"),
    )
    if not video.sequential and shown == index[lost : lost + len(shown)]:
        return replace(video, num_frames=len(shown), pts=video.pts[lost : lost + len(shown)], note=note)
    pts, time_base = _times(video, shown)
    note = _joined(video.note, "" if video.sequential else _NOT_SEEKABLE, damage)
    return replace(video, num_frames=len(shown), pts=pts, time_base=time_base, sequential=True, note=note)


def _times(video: Video, shown: list[int | None]) -> tuple[Int64[np.ndarray, " N"], Fraction]:
    """The decoder's own times where they rise from frame to frame, else even ones."""
    if None not in shown:
        pts = np.array(shown, np.int64)
        if (np.diff(pts) > 0).all():
            return pts, video.time_base
    return _even_times(video.fps, len(shown))


def _even_times(fps: float, count: int) -> tuple[Int64[np.ndarray, " N"], Fraction]:
    time_base = 1 / Fraction(fps).limit_denominator(1_000_000)
    return np.arange(count, dtype=np.int64), time_base


def _seconds(video: Video, number: int, pts: int | None) -> float:
    if video.sequential or pts is None:
        return number / video.fps
    return (pts - int(video.pts[0])) * float(video.time_base)


def _rate(facts: "decoding.Facts") -> float:
    """Frames over time as found; the container's word where it agrees, since times may be rounded to milliseconds."""
    span = float((facts.pts[-1] - facts.pts[0]) * facts.time_base) if facts.indexed else 0.0
    found = (facts.num_packets - 1) / span if span > 0 else None
    if found is None:
        return facts.fps or _FALLBACK_FPS
    return facts.fps if facts.fps and abs(found / facts.fps - 1) < 0.01 else found


def _truncation(facts: "decoding.Facts", fps: float) -> str:
    promised, found = facts.promised_seconds, facts.found_seconds
    if promised is None or promised - found <= max(2 / fps, _ROUNDING_SECONDS):
        return ""
    return f"truncated: promises {promised:.2f} s, holds {found:.2f} s"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
