"""Each cheap score against something known: a color, a shift, a bar, libvmaf's integers."""

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import videos

from annotate import screen
from annotate.screen import Meter, Range, Screen
from shared import video
from shared.video import Picture, Video


def texture(height: int = 360, width: int = 640, seed: int = 0, sigma: float = 3.0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), sigma), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def metered(pictures: list[np.ndarray], fps: float = 4.0) -> Meter:
    meter = Meter(sample_seconds=0.5)
    for number, luma in enumerate(pictures):
        bgr = np.repeat(luma[::2, ::2, None], 3, axis=2)
        meter.add(Picture(number, number / fps, luma, bgr, luminance=float(luma.mean())))
    return meter


@pytest.fixture(scope="module")
def some_video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = tmp_path_factory.mktemp("screen") / "some.mp4"
    videos.write(path, videos.numbered(8), fps=4)
    return video.probe(str(path))


def vmaf_motion2(luma: list[np.ndarray]) -> float:
    """libvmaf's fixed-point blur, absolute differences and minimum, in integers, one picture row at a time."""
    taps = np.array((3571, 16004, 26386, 16004, 3571), np.int64)

    def blur(picture: np.ndarray) -> np.ndarray:
        padded = np.pad(picture.astype(np.int64), ((2, 2), (0, 0)), mode="reflect")
        rows = sum(tap * padded[i : i + len(picture)] for i, tap in enumerate(taps)) + 128 >> 8
        padded = np.pad(rows, ((0, 0), (2, 2)), mode="reflect")
        return sum(tap * padded[:, i : i + picture.shape[1]] for i, tap in enumerate(taps)) + 32768 >> 16

    blurred = [blur(picture) for picture in luma]
    steps = [0.0] + [float(np.abs(a - b).mean()) / 256 for a, b in itertools.pairwise(blurred)]
    return float(np.mean([min(pair) for pair in zip(steps, [*steps[1:], steps[-1]])]))


def test_motion2_is_that_of_libvmaf(some_video: Video) -> None:
    still, other = texture(), texture(seed=1)
    luma = [np.roll(still, 3 * t * t, axis=1) for t in range(5)] + [other, other, np.roll(other, 5, axis=0)]
    found = metered(luma).scores(0, len(luma) - 1, some_video)["motion2"]
    assert found == pytest.approx(vmaf_motion2(luma), abs=0.006)
    assert found > 2


def test_motion_is_pixels_in_half_a_second(some_video: Video) -> None:
    wide = texture(width=900)
    drift = [np.ascontiguousarray(wide[:, 4 * t : 4 * t + 640]) for t in range(9)]
    assert metered(drift, fps=4).scores(0, 8, some_video)["motion"] == pytest.approx(8, rel=0.1)
    assert metered(drift, fps=2).scores(0, 8, some_video)["motion"] == pytest.approx(4, rel=0.1)


def test_scores_of_a_span_know_nothing_of_the_frames_around_it(some_video: Video) -> None:
    inside = [np.roll(texture(), 2 * t, axis=1) for t in range(6)]
    around = [texture(seed=5), *inside, texture(seed=6)]
    alone, among = metered(inside, fps=2), metered(around, fps=2)
    assert among.scores(1, 6, some_video) == pytest.approx(alone.scores(0, 5, some_video))


def test_blurred_pictures_have_less_blur_variance(some_video: Video) -> None:
    sharp, soft = (metered([texture(sigma=s)]).scores(0, 0, some_video)["blur"] for s in (1, 4))
    assert soft < sharp / 10


@pytest.mark.parametrize(("rows", "columns", "share"), [(0, 0, 0), (45, 0, 0.25), (0, 80, 0.25), (45, 80, 0.4375)])
def test_letterbox_is_the_share_under_black_borders(rows: int, columns: int, share: float, some_video: Video) -> None:
    picture = np.maximum(texture(), 30)
    picture[:rows] = picture[360 - rows :] = 16
    picture[:, :columns] = picture[:, 640 - columns :] = 16
    dark = np.full_like(picture, 16)  # a fade to black must not count as bars
    assert metered([picture, picture, dark]).scores(0, 2, some_video)["letterbox"] == pytest.approx(share)


def test_a_still_is_frozen_and_a_slow_drift_is_not(some_video: Video) -> None:
    still = [texture()] * 6
    slow = [cv2.warpAffine(texture(), np.float32([[1, 0, 0.05 * t], [0, 1, 0]]), (640, 360)) for t in range(6)]
    assert metered(still).scores(0, 5, some_video)["frozen"] == 1
    assert metered(slow).scores(0, 5, some_video)["frozen"] == 0


def test_a_cut_inside_a_span_stands_out(some_video: Video) -> None:
    drift = [np.roll(texture(sigma=8), t, axis=1) for t in range(8)]
    assert metered(drift).scores(0, 7, some_video)["cut"] < 1.5
    assert metered([*drift[:4], *(255 - frame for frame in drift[4:])]).scores(0, 7, some_video)["cut"] > 5


def test_hashes_of_one_picture_are_near_and_of_two_far_apart() -> None:
    first, second = texture(sigma=30), texture(sigma=30, seed=1)
    small = cv2.resize(first, (320, 180), interpolation=cv2.INTER_AREA)
    noisy = np.clip(first + np.random.default_rng(1).normal(0, 8, first.shape), 0, 255).astype(np.uint8)

    def bits(a: np.ndarray, b: np.ndarray) -> int:
        return ((screen.phash(a) ^ screen.phash(b)) & (1 << 64) - 1).bit_count()

    assert bits(first, small) <= 4
    assert bits(first, noisy) <= 6
    assert bits(first, second) >= 16
    assert all(-(1 << 63) <= screen.phash(picture) < 1 << 63 for picture in (first, second))


def test_a_reason_names_score_value_and_limit() -> None:
    gates = Screen(luminance=Range(min=20, max=140), contrast=None, frozen=None, motion=Range(max=50))
    assert gates.reason({"luminance": 100.0, "motion": 3.0}) == ""
    assert gates.reason({"luminance": 3.25, "motion": 60.0}) == "luminance 3.25 is below 20; motion 60 is above 50"
    assert gates.reason({"luminance": 141.0}) == "luminance 141 is above 140; motion is not known"


def test_every_gate_has_its_score(some_video: Video) -> None:
    scores = metered([np.roll(texture(), t, axis=1) for t in range(8)]).scores(0, 7, some_video)
    gates = {name for name, field in Screen.model_fields.items() if name != "sample_seconds"}
    assert gates == {*scores, "upscale"}, "`upscale` alone is known only where the size of the clip is"


def test_aspect_is_that_of_the_shown_picture(some_video: Video) -> None:
    meter = metered([texture()])
    assert meter.scores(0, 0, some_video)["aspect"] == 1.5
    assert meter.scores(0, 0, replace(some_video, pixel_aspect=2.0))["aspect"] == 3


def test_bitrate_is_bits_for_each_pixel(some_video: Video) -> None:
    size = Path(some_video.uri).stat().st_size
    found = metered([texture()]).scores(0, 0, some_video)["bitrate"]
    assert 0.3 * size < found * 8 * 64 * 96 / 8 < size
