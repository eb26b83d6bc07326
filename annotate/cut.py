"""Videos to clips: shots, frames at the wanted rate and cheap scores, all from one decode; the pixels of a clip later, by window.

`screen_and_cut(video.probe(uri), cut, screen)` lists the clips of a video, `load_clip(span, cut)` reads one of them.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from pydantic import Field

from annotate.screen import Meter, Screen
from shared import video as videos
from shared.clip import Clip
from shared.knobs import Knobs
from shared.video import Decoder, Video

_SAME_RATE = 0.02
"""A source this near to the wanted rate gives its frames as they are: 23.976 is taken for 24."""
_MIN_SIDE_PX = 32


class Cut(Knobs):
    """How long, how fast and how large clips are, and where shots end."""

    frames: Annotated[int, Field(ge=1)] = 49
    fps: Annotated[float, Field(gt=0)] = 8.0
    """The nearest source frame in time is taken. A slower source is refused: no frame is shown twice."""
    height: Annotated[int, Field(ge=16)] = 240
    width: Annotated[int, Field(ge=16)] = 368
    detector: Literal["adaptive", "content"] = "adaptive"
    """PySceneDetect's: `adaptive` compares a change with those around it, `content` with a fixed threshold."""
    threshold: Annotated[float, Field(gt=0)] = 3.0
    """How many times the changes around it a cut is (adaptive), or how large (content; 27 is usual)."""
    min_content: Annotated[float, Field(ge=0)] = 15.0
    """Smallest change of hue, saturation and brightness that can be a cut (adaptive only)."""
    min_shot_frames: Annotated[int, Field(ge=1)] = 5
    """Cuts nearer than this to the one before are not looked for."""
    trim_frames: Annotated[int, Field(ge=0)] = 1
    """Source frames left out on both sides of a cut, except where a shot would be too short without them."""
    max_clips_per_shot: Annotated[int, Field(ge=1)] | None = None
    """At most so many, spread over the shot; None: as many as fit."""
    decoder: Decoder = "pyav"


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """A clip before it has pixels: frames of a video, their scores, and why not if it is refused."""

    id: str
    """Hex digits: the same for the same bytes under the same uri, cut the same way, on any machine."""
    video: Video
    frames: Int64[np.ndarray, " T"]
    """Numbers of source frames; all frames of the shot where `reason` says that no clip fits into it."""
    fps: float
    scores: Mapping[str, float] = field(default_factory=dict)
    phash: int = 0
    """64-bit perceptual hash (signed) of a picture near the middle: duplicates differ in few bits."""
    reason: str = ""
    """Why it is screened out, in words; empty: annotate it."""


def screen_and_cut(video: Video, cut: Cut, screen: Screen) -> list[Span]:
    """All clips of a video in order, and one refused span for each shot that gives none. Decodes the file once.

    The spans hold the video as this pass proved it (`shared.video.scan`), so that windows of it can be trusted. Raises ValueError
    if not a single frame can be decoded, or for pictures too small to measure.
    """
    if min(video.height, video.width) < _MIN_SIDE_PX:
        size = f"{video.width} x {video.height}"
        raise ValueError(f"{video.uri}: its pictures are {size}, expected at least {_MIN_SIDE_PX} px a side")
    from annotate.shots import Shots

    shots = Shots(cut.detector, cut.threshold, cut.min_content, cut.min_shot_frames)
    meter = Meter(min(screen.sample_seconds, cut.frames / cut.fps / 2))

    def see(picture: videos.Picture) -> None:
        shots.add(picture.number, picture.bgr)
        meter.add(picture)

    video = videos.scan(video, see)
    seconds = video.seconds
    edges = [0, *shots.cuts(), video.num_frames]
    return [
        _scored(span, cut, screen, meter)
        for first, end in itertools.pairwise(edges)
        for span in _spans(video, seconds, first, end, cut)
    ]


def load_clip(span: Span, cut: Cut) -> Clip:
    """The pixels: resized to cover `cut.height` x `cut.width`, cropped at the center; untouched where they have that size.

    Raises ValueError if a frame cannot be had exactly.
    """
    video = span.video

    def fit(rgb: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return fitted(rgb, cut.height, cut.width, video.pixel_aspect)

    return Clip(
        id=span.id,
        rgb=videos.read(video, span.frames, fit),
        fps=span.fps,
        source=video.uri,
        frames=span.frames,
        caption=video.caption,
        licence=video.licence,
    )


def fitted(
    rgb: UInt8[np.ndarray, "H W 3"], height: int, width: int, pixel_aspect: float = 1.0
) -> UInt8[np.ndarray, "h w 3"]:
    """Resized to cover, pixels made square, cropped at the center."""
    import cv2

    shown_height, shown_width = rgb.shape[0], rgb.shape[1] * pixel_aspect
    scale = _scale(shown_height, shown_width, height, width)
    new_height, new_width = max(round(shown_height * scale), height), max(round(shown_width * scale), width)
    if (new_height, new_width) != rgb.shape[:2]:
        shrinks = new_height <= rgb.shape[0] and new_width <= rgb.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        rgb = cv2.resize(rgb, (new_width, new_height), interpolation=how)
    top, left = (new_height - height) // 2, (new_width - width) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def windows(
    seconds: Float64[np.ndarray, " N"], first: int, end: int, cut: Cut
) -> tuple[list[Int64[np.ndarray, " T"]], str]:
    """Frame numbers of the clips in frames `first` to `end - 1`, one after the other, and why there are none."""
    shot = seconds[first:end]
    rate = _rate(shot) if len(shot) > 1 else cut.fps
    if rate < cut.fps * (1 - _SAME_RATE):
        return [], f"too slow: {rate:.4g} frames/s, expected at least {cut.fps:g}"
    step = 1 / rate if abs(rate / cut.fps - 1) <= _SAME_RATE else 1 / cut.fps
    found, start, gaps = [], 0, 0
    while shot[start] + (cut.frames - 1) * step <= shot[-1] + 0.5 / rate:
        picked, hole = _nearest(shot, start, cut.frames, step)
        if hole:
            gaps, start = gaps + 1, hole
        else:
            found.append(first + picked)
            start = int(picked[-1]) + 1
        if start >= len(shot):
            break
    if found:
        return _spread(found, cut.max_clips_per_shot), ""
    if gaps:
        return [], f"gaps: {gaps} holes in time leave no {cut.frames} frames at {cut.fps:g} frames/s"
    lasts, needed = float(shot[-1] - shot[0]) + 1 / rate, (cut.frames - 1) * step + 1 / rate
    return [], f"too short: {lasts:.2f} s, expected at least {needed:.2f}"


def _rate(seconds: Float64[np.ndarray, " N"]) -> float:
    """Frames a second where there are frames: gaps do not slow a source down."""
    steps = np.diff(seconds)
    return 1 / float(steps[steps < 1.9 * np.median(steps)].mean())  # one missing frame makes a step twice as long


def _nearest(
    shot: Float64[np.ndarray, " N"], start: int, count: int, step: float
) -> tuple[Int64[np.ndarray, " T"], int]:
    """The frames nearest in time to an even grid from `start` on; or where to start anew if one is missing (else 0)."""
    wanted = shot[start] + step * np.arange(count)
    after = np.clip(np.searchsorted(shot, wanted), 1, len(shot) - 1) if len(shot) > 1 else np.zeros(count, np.int64)
    picked = after - (wanted - shot[after - 1] <= shot[after] - wanted) if len(shot) > 1 else after
    bad = np.abs(shot[picked] - wanted) > step / 2 + 1e-9
    bad[1:] |= np.diff(picked) < 1
    if bad.any():
        return picked, max(int(picked[bad.argmax()]), start + 1)
    return picked, 0


def _spread(found: list[np.ndarray], most: int | None) -> list[np.ndarray]:
    if most is None or len(found) <= most:
        return found
    return [found[i * len(found) // most] for i in range(most)]


def _spans(video: Video, seconds: Float64[np.ndarray, " N"], first: int, end: int, cut: Cut) -> list[Span]:
    """Clips of one shot; only edges at real cuts are trimmed, not those of the file."""
    low = first + (cut.trim_frames if first > 0 else 0)
    high = end - (cut.trim_frames if end < video.num_frames else 0)
    found, reason = windows(seconds, low, high, cut) if low < high else ([], "")
    if not found:
        found, reason = windows(seconds, first, end, cut)
    return [span_of(video, frames, cut, "") for frames in found] or [span_of(video, np.arange(first, end), cut, reason)]


def span_of(video: Video, frames: Int64[np.ndarray, " T"], cut: Cut, reason: str) -> Span:
    """These frames of a source as a clip, under the name that they always get."""
    what = f"{video.identity} {frames.tolist()} {cut.frames} {cut.fps!r} {cut.height} {cut.width}"
    digest = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
    return Span(id=digest, video=video, frames=frames, fps=cut.fps, reason=reason)


def _scored(span: Span, cut: Cut, screen: Screen, meter: Meter) -> Span:
    first, last = int(span.frames[0]), int(span.frames[-1])
    scores = meter.scores(first, last, span.video)
    scores["upscale"] = max(
        _scale(span.video.height, span.video.width * span.video.pixel_aspect, cut.height, cut.width), 1.0
    )
    reason = span.reason or screen.reason(scores)
    return replace(span, scores=scores, phash=meter.phash(first, last), reason=reason)


def _scale(shown_height: int, shown_width: float, height: int, width: int) -> float:
    """How much a picture grows to cover height x width."""
    return max(height / shown_height, width / shown_width)
