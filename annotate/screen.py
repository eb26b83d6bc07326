"""Cheap scores of clips, all from one decode, and the gates that spare the heavy models what nobody can use.

Pictures are measured at no more pixels than 640 x 360 has, whatever the size of the video, so that one threshold means one thing.
Text is not among the scores: without a trained detector the edges of letters and of leaves look alike.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field

from annotate.flow.dis import Search
from shared.knobs import Knobs
from shared.video import SCAN_PIXELS, Picture, Video


class Range(Knobs):
    """What a score may be, limits included; None: no limit."""

    min: float | None = None
    max: float | None = None


class Screen(Knobs):
    """Which clips are annotated at all. The defaults refuse only what shows nothing: black, white, blank or frozen."""

    luminance: Range | None = Range(min=4, max=251)
    """Mean of 0.2126 R + 0.7152 G + 0.0722 B."""
    contrast: Range | None = Range(min=1)
    """Standard deviation of luma within a picture, the clip's median."""
    frozen: Range | None = Range(max=0.98)
    """Share of steps from frame to frame that change nothing."""
    blur: Range | None = None
    """Variance of the Laplacian, the clip's median: *low* is blurred."""
    motion: Range | None = None
    """Mean length of optical flow over half a second, in pixels at 640 x 360."""
    motion2: Range | None = None
    """libvmaf's `integer_motion2`, mean over the clip's source frames, here at 640 x 360 at most."""
    letterbox: Range | None = None
    """Share of the picture under black borders."""
    cut: Range | None = None
    """The largest change between two frames, relative to the changes around it: above 3 it may be a cut."""
    aspect: Range | None = None
    """Shown width over height."""
    bitrate: Range | None = None
    """Of the video stream, in bits for each pixel of each frame."""
    upscale: Range | None = None
    """How much the clip was enlarged: 1 where it was not."""
    sample_seconds: Annotated[float, Field(gt=0)] = 0.5
    """How far apart the pictures are that flow, blur, contrast and borders are measured on."""

    def reason(self, scores: dict[str, float]) -> str:
        """Why a clip with these scores is refused: names of scores, their values and limits; empty if it passes."""
        gates = ((name, gate) for name, gate in self if isinstance(gate, Range))
        return "; ".join(filter(None, (_verdict(name, scores.get(name), gate) for name, gate in gates)))


PUBLISHED = Screen(luminance=Range(min=20, max=140), motion2=Range(min=2, max=14))
"""SpatialVID's gates. Theirs hold at source size: at 640 x 360 a 1080p drone flight scores 2.4 instead of 3.2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    number: int
    seconds: float
    contrast: float
    blur: float
    borders: tuple[float, float, float, float]
    """Shares of height or width that are black: top, bottom, left, right."""
    phash: int
    small: UInt8[np.ndarray, "h w"]
    motion: float | None
    """From the sample before; None for the first."""


class Meter:
    """Sees every picture of a video once; afterwards knows the scores of any span of it."""

    def __init__(self, sample_seconds: float) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._search = Search(finest_scale=2, patch_stride=3, descents=25, refinements=5)
        self._sample_seconds = sample_seconds
        self._luminance: list[float] = []
        self._change: list[float] = []
        self._samples: list[_Sample] = []
        self._blurred: Float32[np.ndarray, "h w"] | None = None

    def add(self, picture: Picture) -> None:
        self._luminance.append(picture.luminance)
        self._change.append(self._change_to(picture.luma))
        if not self._samples or picture.seconds >= self._samples[-1].seconds + self._sample_seconds - 1e-6:
            self._samples.append(self._sample(picture))

    def scores(self, first: int, last: int, video: Video) -> dict[str, float]:
        """Of the frames `first` to `last`, both included. A score that cannot be had is left out."""
        steps = np.array(self._change[first + 1 : last + 1])
        samples = [sample for sample in self._samples if first <= sample.number <= last]
        found = {
            "luminance": float(np.mean(self._luminance[first : last + 1])),
            "aspect": video.width * video.pixel_aspect / video.height,
            "bitrate": video.bits_per_second / (video.fps * video.height * video.width),
        }
        if len(steps):
            found |= {"motion2": motion2(steps), "frozen": float((steps < _NO_CHANGE).mean()), "cut": jump(steps)}
        if samples:
            borders = np.min([sample.borders for sample in samples], axis=0)
            found |= {
                "contrast": float(np.median([sample.contrast for sample in samples])),
                "blur": float(np.median([sample.blur for sample in samples])),
                "letterbox": _covered(*borders.tolist()),
            }
        if motion := [sample.motion for sample in samples[1:] if sample.motion is not None]:
            found["motion"] = float(np.mean(motion))
        return found

    def phash(self, first: int, last: int) -> int:
        """Of the sampled picture nearest to the middle of the span."""
        middle = (first + last) / 2
        return min(self._samples, key=lambda sample: abs(sample.number - middle)).phash

    def _change_to(self, luma: UInt8[np.ndarray, "h w"]) -> float:
        """Mean absolute difference of blurred luma to the picture before; 0 for the first."""
        import cv2

        before, self._blurred = self._blurred, cv2.sepFilter2D(luma, cv2.CV_32F, _VMAF_BLUR, _VMAF_BLUR)
        return 0.0 if before is None else cv2.norm(before, self._blurred, cv2.NORM_L1) / luma.size

    def _sample(self, picture: Picture) -> _Sample:
        import cv2

        luma = picture.luma
        half = max(luma.shape[1] // 2, 16), max(luma.shape[0] // 2, 16)
        small = cv2.resize(luma, half, interpolation=cv2.INTER_AREA)
        motion = None
        if self._samples:
            before = self._samples[-1]
            flow = self._search(before.small, small)
            length_px = float(np.linalg.norm(flow, axis=-1).mean()) * (SCAN_PIXELS / small.size) ** 0.5
            motion = length_px * _MOTION_SECONDS / (picture.seconds - before.seconds)
        return _Sample(
            number=picture.number,
            seconds=picture.seconds,
            contrast=_deviation(luma),
            blur=_deviation(cv2.Laplacian(luma, cv2.CV_16S)) ** 2,
            borders=borders(luma),
            phash=phash(luma),
            small=small,
            motion=motion,
        )


_VMAF_BLUR = np.array((3571, 16004, 26386, 16004, 3571)) / 65536
"""libvmaf's Gaussian of five taps."""
_MOTION_SECONDS = 0.5
_NO_CHANGE = 0.02
"""Mean luma levels between two frames: encoding noise of a still picture stays below, any motion goes above."""
_BLACK = 24
"""Luma up to which a border counts as black: 16 and encoding noise."""


def motion2(steps: np.ndarray) -> float:
    """Mean over all frames of min(s[t], s[t + 1]), where s[t] is the change from frame t - 1 to t; 0 for the first frame.

    `steps` holds s[1] to s[T - 1]. The minimum is what sets libvmaf's `motion2` apart from ffmpeg's `vmafmotion`: a cut or a
    flash does not count as motion.
    """
    following = np.append(steps[1:], steps[-1])
    return float(np.minimum(steps, following).sum() / (len(steps) + 1))


def jump(steps: np.ndarray) -> float:
    """The largest ratio of a step to the mean of the two steps before and the two after it; steps below 1 count as 1."""
    if len(steps) < 2:
        return 1.0
    padded = np.pad(steps, 2, constant_values=np.nan)
    around = np.stack([padded[:-4], padded[1:-3], padded[3:-1], padded[4:]])
    return float((steps / np.maximum(np.nanmean(around, axis=0), 1)).max())


def borders(luma: UInt8[np.ndarray, "h w"]) -> tuple[float, float, float, float]:
    """Shares of the height that are black at top and bottom, and of the width at left and right; a black picture is all 1."""
    dark_rows, dark_columns = (luma.max(axis=axis) <= _BLACK for axis in (1, 0))

    def leading(dark: np.ndarray) -> float:
        return float(1.0 if dark.all() else dark.argmin() / len(dark))

    return leading(dark_rows), leading(dark_rows[::-1]), leading(dark_columns), leading(dark_columns[::-1])


def phash(luma: UInt8[np.ndarray, "h w"]) -> int:
    """64 signs of the lowest cosine frequencies against their median, as a signed integer: near pictures differ in few bits."""
    import cv2

    small = cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = np.packbits(low > np.median(low[1:]))
    return int(bits.view(">i8")[0])


def _deviation(picture: np.ndarray) -> float:
    import cv2

    return float(cv2.meanStdDev(picture)[1][0, 0])


def _covered(top: float, bottom: float, left: float, right: float) -> float:
    return 1 - max(1 - top - bottom, 0.0) * max(1 - left - right, 0.0)


def _verdict(name: str, score: float | None, gate: Range) -> str:
    if score is None or math.isnan(score):
        return f"{name} is not known"
    if gate.min is not None and score < gate.min:
        return f"{name} {score:.4g} is below {gate.min:g}"
    if gate.max is not None and score > gate.max:
        return f"{name} {score:.4g} is above {gate.max:g}"
    return ""
