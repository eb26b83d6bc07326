"""Every window of every kind of file holds the pixels of a whole decode, and what is no video is refused in one sentence."""

import os
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import videos

from shared import decoding, files, video

COUNT = 72
H264 = {"preset": "veryfast", "g": "20", "bf": "3"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "20"}
RANDOM_MS = np.cumsum(np.random.default_rng(0).integers(15, 90, COUNT)).tolist()

KINDS: dict[str, dict] = {
    "h264_b_frames.mp4": {"options": H264},
    "h264_b_frames.mkv": {"options": H264},
    "open_gop.mp4": {"options": {**H264, "x264-params": "open-gop=1:keyint=20:scenecut=0:bframes=3"}},
    "hevc.mp4": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=20:pools=none"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "g": "20", "crf": "20", "svtav1-params": "lp=1"}},
    "variable_rate.mp4": {"options": H264, "times_ms": RANDOM_MS},
    "ntsc.mp4": {"options": H264, "fps": Fraction(24000, 1001)},
    "odd_444.mp4": {"options": H264, "pixel_format": "yuv444p", "size": (63, 97)},
    "ten_bit.mp4": {"options": H264, "pixel_format": "yuv420p10le"},
    "stream.ts": {"options": H264},
    "program.mpg": {"codec": "mpeg2video", "container": "vob", "fps": 25, "options": {"g": "15", "bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"b": "2M", "g": "20"}},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "options": {"b": "2M", "g": "20", "bf": "2"}},
    "msmpeg4.avi": {"codec": "msmpeg4", "options": {"g": "20"}},
    "bare.h264": {"options": H264},
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, **changes: object) -> Path:
        how = {**KINDS[name], **changes}
        if how.get("codec") not in (None, *av.codecs_available):
            pytest.skip(f"this build of PyAV has no encoder {how['codec']}")
        height, width = how.pop("size", (64, 96))
        videos.write(tmp_path / name, videos.numbered(how.pop("count", COUNT), height, width), **how)
        return tmp_path / name

    return write


def whole_decode(path: Path) -> np.ndarray:
    """Without seeking, strictness or rotation."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def shown(rgb: np.ndarray) -> int:
    """The number of the frame whose patch has the nearest color."""
    height, width = rgb.shape[:2]
    color = rgb[height // 4 + 4 : height // 2 - 4, width // 4 + 4 : width // 2 - 4].mean((0, 1))
    return int(np.argmin([np.abs(videos.color(number) - color).max() for number in range(COUNT)]))


@pytest.mark.parametrize("kind", KINDS)
def test_windows_hold_the_pixels_of_a_whole_decode(kind: str, write: Write) -> None:
    path = write(kind)
    truth = whole_decode(path)
    assert len(truth) == COUNT
    assert [shown(rgb) for rgb in truth] == list(range(COUNT)), "the file does not show what was written"
    found = video.probe(str(path))
    found = video.scan(found, lambda _: None)
    assert (found.num_frames, found.height, found.width) == truth.shape[:3]
    assert found.note == ("not seekable" if kind == "bare.h264" else "")
    for wanted in ([0], [19, 20, 21], [37, 45, 38, 38], [COUNT - 1], list(range(5, 50, 4))):
        assert np.array_equal(video.read(found, np.array(wanted)), truth[wanted])
    passed = list(video.frames(found))
    assert [number for number, _ in passed] == list(range(COUNT))
    assert np.array_equal(np.stack([rgb for _, rgb in passed]), truth)


def test_a_window_is_not_decoded_from_the_beginning(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key frames are 0, 20, 40 and 60."""
    found = video.probe(str(write("h264_b_frames.mp4")))
    decoded: list[int] = []
    whole = decoding._runs_through

    def counting(frames: Iterator[av.VideoFrame], *more: Any) -> bool:
        return whole((decoded.append(frame.pts) or frame for frame in frames), *more)

    monkeypatch.setattr(decoding, "_runs_through", counting)
    video.read(found, np.array([65, 66]))
    assert 2 <= len(decoded) <= 27


def test_rates_and_times_are_those_written(write: Write) -> None:
    assert video.probe(str(write("h264_b_frames.mp4"))).fps == 24
    assert video.probe(str(write("ntsc.mp4"))).fps == pytest.approx(24000 / 1001)
    assert video.probe(str(write("vp9.webm"))).fps == 24, "milliseconds in webm must not make 24 frames/s 23.98"
    varying = video.probe(str(write("variable_rate.mp4")))
    assert varying.seconds * 1000 == pytest.approx(np.array(RANDOM_MS) - RANDOM_MS[0], abs=0.1)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_pictures_are_turned_as_the_file_asks(write: Write, matrix: tuple[float, float, float, float]) -> None:
    path = write("h264_b_frames.mp4")
    videos.turn(path, matrix)
    capture = cv2.VideoCapture(str(path))
    truth = np.stack([capture.read()[1][..., ::-1] for _ in range(COUNT)])
    capture.release()
    found = video.probe(str(path))
    assert (found.height, found.width) == truth.shape[1:3]
    wanted = np.array([0, 33, 34, COUNT - 1])
    assert np.array_equal(video.read(found, wanted), truth[wanted])
    seen: list[video.Picture] = []
    video.scan(found, seen.append)
    gray = cv2.cvtColor(truth[33], cv2.COLOR_RGB2GRAY).astype(float)
    assert np.abs(seen[33].luma - (16 + gray * 219 / 255)).mean() < 3, "the small pictures are turned differently"


@pytest.mark.parametrize(
    ("matrix", "what"), [((-1, 0, 0, 1), "mirrored"), ((0.7071, 0.7071, -0.7071, 0.7071), "degrees")]
)
def test_mirrors_and_odd_angles_are_refused(write: Write, matrix: tuple[float, float, float, float], what: str) -> None:
    path = write("h264_b_frames.mp4")
    videos.turn(path, matrix)
    with pytest.raises(ValueError, match=what):
        video.probe(str(path))


def test_an_edit_list_hides_frames(write: Write) -> None:
    path = write("h264_b_frames.mp4")
    videos.edit(path, skip_seconds=1.0, show_seconds=1.5)
    found = video.scan(video.probe(str(path)), lambda _: None)
    assert (found.num_frames, found.note, found.sequential) == (36, "", False)
    assert [shown(rgb) for rgb in video.read(found, np.arange(36))] == list(range(24, 60))
    assert shown(video.read(found, np.array([17]))[0]) == 41


def test_pixels_that_are_not_square_are_known(write: Write) -> None:
    assert video.probe(str(write("h264_b_frames.mp4", pixel_aspect=Fraction(4, 3)))).pixel_aspect == pytest.approx(
        4 / 3
    )


def test_flipped_bits_end_the_video_where_they_are_noticed(write: Write) -> None:
    path = write("h264_b_frames.mp4", container_options={"movflags": "faststart"})
    videos.flip_bits(path, every=100, start=0.5, end=0.95)
    found = video.scan(video.probe(str(path)), lambda _: None)
    assert found.note.startswith(f"damaged at frame {found.num_frames}: ")
    assert 0 < found.num_frames < COUNT
    assert len(list(video.frames(found))) == found.num_frames
    with pytest.raises(ValueError, match="expected some of 0 to"):
        video.read(found, np.array([found.num_frames]))


def test_no_wrong_picture_comes_out_before_a_hole(write: Write) -> None:
    path = write("h264_b_frames.mp4", container_options={"movflags": "faststart"})
    truth = whole_decode(path)
    videos.blank(path, 0.5, 0.6)
    found = video.scan(video.probe(str(path)), lambda _: None)
    assert 0 < found.num_frames < COUNT
    assert np.array_equal(np.stack([rgb for _, rgb in video.frames(found)]), truth[: found.num_frames])
    wanted = np.arange(found.num_frames)[-5:]
    assert np.array_equal(video.read(found, wanted), truth[wanted])


def test_a_recording_that_begins_between_key_frames_begins_at_the_next(write: Write) -> None:
    path = write("stream.ts")
    truth, data = whole_decode(path), path.read_bytes()
    path.write_bytes(data[len(data) // 10 // 188 * 188 :])
    found = video.scan(video.probe(str(path)), lambda _: None)
    assert found.note.startswith("damaged: its first ")
    rgb = video.read(found, np.arange(found.num_frames))
    assert np.array_equal(rgb, truth[COUNT - len(rgb) :])
    assert len(rgb) == COUNT - 20, "key frames are 20 apart"


def test_a_hole_is_noticed_even_without_a_pass(write: Write) -> None:
    path = write("h264_b_frames.mp4", container_options={"movflags": "faststart"})
    truth = whole_decode(path)
    videos.blank(path, 0.5, 0.6)
    found = video.probe(str(path))
    wrong = 0
    for first in range(0, COUNT, 6):
        wanted = np.arange(first, first + 6)
        try:
            wrong += not np.array_equal(video.read(found, wanted), truth[wanted])
        except ValueError:
            continue
    assert wrong == 0


@pytest.mark.parametrize(
    ("kind", "how"), [("h264_b_frames.mp4", {"container_options": {"movflags": "faststart"}}), ("vp9.webm", {})]
)
def test_a_file_shorter_than_its_promise_says_so(kind: str, how: dict, write: Write) -> None:
    path = write(kind, **how)
    assert video.probe(str(path)).note == ""
    videos.cut_off(path, 0.6)
    found = video.scan(video.probe(str(path)), lambda _: None)
    assert found.note.startswith("truncated: promises 3.00 s, holds ")
    assert 0 < found.num_frames < COUNT


def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path, write: Write) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nh264_b_frames.mp4\n")
    cv2.imwrite(str(tmp_path / "still.png"), np.zeros((64, 64, 3), np.uint8))
    os.rename(tmp_path / "still.png", tmp_path / "still.mp4")
    videos.write_audio(tmp_path / "sound.m4a")
    videos.cut_off(write("h264_b_frames.mp4"), 0.5)
    expected = {
        "empty.mp4": "not a video container",
        "text.txt": "not a video container",
        "list.mp4": "not a video container",
        "still.mp4": "not a video container",
        "sound.m4a": "holds only audio",
        "h264_b_frames.mp4": "its header is cut off",
        ".": "is a directory",
        "missing.mp4": "no such file",
    }
    for name, reason in expected.items():
        with pytest.raises(ValueError, match=reason) as refusal:
            video.probe(str(tmp_path / name))
        assert str(refusal.value).startswith(str(tmp_path))
        assert "\n" not in str(refusal.value)


def test_absurd_sizes_are_refused_before_a_picture_is_made(write: Write) -> None:
    path = write("msmpeg4.avi")
    videos.declare_size(path, 16, 70000)
    with pytest.raises(ValueError, match="70000 x 16"):
        video.probe(str(path))
    videos.declare_size(path, 30000, 30000)
    with pytest.raises(ValueError, match="can be decoded"):
        video.probe(str(path))


def test_files_are_closed_again(write: Write) -> None:
    path = write("h264_b_frames.mp4")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc here")
    for _ in range(3):
        found = video.probe(str(path))
        video.read(found, np.array([30]))
        next(iter(video.frames(found)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_file_under_the_same_name_has_another_identity(write: Write) -> None:
    path = write("h264_b_frames.mp4")
    first = video.probe(str(path)).identity
    path.write_bytes(path.read_bytes())  # not encoded anew: this encoder may give other bytes for the same pictures
    assert video.probe(str(path)).identity == first
    assert video.probe(str(write("h264_b_frames.mp4", count=COUNT - 1))).identity != first


def test_small_pictures_come_with_their_times(write: Write) -> None:
    seen: list[video.Picture] = []
    video.scan(video.probe(str(write("variable_rate.mp4"))), seen.append)
    assert [picture.number for picture in seen] == list(range(COUNT))
    shown_ms = [picture.seconds * 1000 for picture in seen]
    assert shown_ms == pytest.approx([t - RANDOM_MS[0] for t in RANDOM_MS], abs=0.1)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pixel_format": "yuv444p"},
        {"pixel_format": "yuvj420p"},
        {"pixel_format": "yuv420p10le"},
        {"color": 1},
        {"size": (480, 854)},
        {"size": (63, 97), "pixel_format": "yuv444p"},
    ],
)
def test_small_pictures_show_what_the_large_ones_show(how: dict, write: Write) -> None:
    found, seen = video.probe(str(write("h264_b_frames.mp4", count=3, **how))), []
    video.scan(found, seen.append)
    for (_, rgb), small in zip(video.frames(found), seen):
        assert small.luma.size <= video.SCAN_PIXELS * 1.25
        assert small.luminance == pytest.approx(rgb.reshape(-1, 3).mean(0) @ (0.2126, 0.7152, 0.0722), abs=1.5)
        height, width = small.bgr.shape[:2]
        expected = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)[..., ::-1].astype(float)
        assert np.abs(small.bgr - expected).mean() < 6
        gray = cv2.resize(rgb, small.luma.shape[::-1], interpolation=cv2.INTER_AREA) @ (0.299, 0.587, 0.114)
        assert np.abs(small.luma - (16 + gray * 219 / 255)).mean() < 3


def test_a_video_in_a_bucket_reads_like_a_local_one(bucket: str, write: Write) -> None:
    path = write("h264_b_frames.mp4")
    uri = f"{bucket}/clips/a.mp4"
    files.write_whole(uri, path.read_bytes())
    wanted = np.array([40, 41, 7])
    remote, local = video.probe(uri), video.probe(str(path))
    assert (remote.num_frames, remote.fps) == (local.num_frames, local.fps)
    assert np.array_equal(video.read(remote, wanted), video.read(local, wanted))
    with pytest.raises(ValueError, match="missing"):
        video.probe(f"{bucket}/missing.mp4")


EXACT_WITH_DECORD = (
    "h264_b_frames.mp4",
    "h264_b_frames.mkv",
    "vp9.webm",
    "variable_rate.mp4",
    "odd_444.mp4",
    "msmpeg4.avi",
)
REFUSED_WITH_DECORD = {
    "open_gop.mp4": "open groups",
    "stream.ts": "without an index",
    "bare.h264": "not seekable",
    "av1.mp4": "decord fails",
}


@pytest.mark.parametrize("kind", EXACT_WITH_DECORD)
def test_decord_reads_the_same_pixels(kind: str, write: Write) -> None:
    pytest.importorskip("decord", reason="decord is not installed (it has wheels for Linux on x86-64 only)")
    path = write(kind)
    found = video.probe(str(path), decoder="decord")
    wanted = np.array([50, 51, 52, 3, 30, 30, 21, 20, 19, 70])
    assert np.array_equal(video.read(found, wanted), whole_decode(path)[wanted])


@pytest.mark.parametrize("kind", REFUSED_WITH_DECORD)
def test_decord_is_refused_where_it_would_be_wrong(kind: str, write: Write) -> None:
    pytest.importorskip("decord", reason="decord is not installed (it has wheels for Linux on x86-64 only)")
    found = video.probe(str(write(kind)), decoder="decord")
    with pytest.raises(ValueError, match=REFUSED_WITH_DECORD[kind]):
        video.read(found, np.arange(20, 30))


def test_decord_is_refused_where_an_edit_list_hides_frames(write: Write) -> None:
    pytest.importorskip("decord", reason="decord is not installed (it has wheels for Linux on x86-64 only)")
    path = write("h264_b_frames.mp4")
    videos.edit(path, skip_seconds=1.0, show_seconds=1.5)
    with pytest.raises(ValueError, match="expected the 36 that are shown"):
        video.read(video.probe(str(path), decoder="decord"), np.arange(4))


def test_missing_decord_names_the_command(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    found = video.probe(str(write("h264_b_frames.mp4")), decoder="decord")
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ValueError, match="pip install decord"):
        video.read(found, np.arange(4))


@pytest.mark.parametrize("kind", ["h264_b_frames.mp4", "vp9.webm", "stream.ts", "msmpeg4.avi"])
def test_mutated_files_end_in_pictures_or_in_one_sentence(kind: str, write: Write) -> None:
    sound = write(kind, count=24)
    data, mutant = sound.read_bytes(), sound.with_name(f"mutant{sound.suffix}")
    random = np.random.default_rng(3)
    outcomes: list[str] = []
    for _ in range(25):
        mutated = bytearray(data)
        for at in random.integers(len(data), size=random.integers(1, 9)):
            mutated[at] ^= 1 << int(random.integers(8))
        mutant.write_bytes(mutated[: int(len(data) * random.choice((1.0, random.uniform(0.05, 1))))])
        try:
            found = video.scan(video.probe(str(mutant)), lambda _: None)
            rgb = video.read(found, np.arange(found.num_frames)[-8:])
            outcomes.append(found.note or ("whole" if rgb.shape[1:] == (found.height, found.width, 3) else "torn"))
        except ValueError as refusal:
            outcomes.append(str(refusal))
    assert "torn" not in outcomes
    assert not any("\n" in outcome for outcome in outcomes)
    assert len(set(outcomes)) > 3, "the mutations are not felt"
