"""ViPE's real subprocess path, end to end, against a stand-in that writes byte-compatible files over the same protocol."""

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Int64, UInt8

from annotate.annotator import PairFlow
from annotate.cameras import vipe_driver, vipe_session
from annotate.cameras.vipe import Vipe
from annotate.cameras.vipe_artifacts import Artifacts
from shared import exr
from shared.clip import AnnotatedClip

FAKE = Path(__file__).resolve().parent.parent / "fake_vipe.py"
T, H, W = 5, 36, 52


class NoFlow:
    """ViPE brings its own; asking for flow would be a mistake."""

    source = "none"

    def __call__(self, rgb: UInt8[np.ndarray, "T H W 3"], pairs: Int64[np.ndarray, "N 2"]) -> PairFlow:
        raise AssertionError("ViPE asks for no flow")


no_flow = NoFlow()


def _fake():
    spec = importlib.util.spec_from_file_location("fake_vipe", FAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _fake()


def knobs(mode="good", **more):
    command = (sys.executable, str(FAKE))
    return Vipe(accept_licence=True, command=command, overrides=(f"mode={mode}",), **more)


def a_clip(name="clip-0", frames=T):
    rgb = np.random.default_rng(0).integers(0, 255, (frames, H, W, 3), dtype=np.uint8)
    return AnnotatedClip(id=name, rgb=rgb, fps=8.0, source="made", frames=np.arange(frames))


@pytest.fixture
def start():
    sessions = []

    def _start(*args, **more):
        sessions.append(knobs(*args, **more).load())
        return sessions[-1]

    yield _start
    for session in sessions:
        session.close()


def test_a_clip_comes_back_in_our_conventions(start):
    session = start()
    clip = session(a_clip(), no_flow)
    np.testing.assert_allclose(clip.cameras.world_from_cam[0], np.eye(4))
    np.testing.assert_allclose(clip.cameras.world_from_cam[:, 0, 3], fake.STEP_X * np.arange(T), atol=1e-6)
    np.testing.assert_allclose(clip.cameras.intrinsics, np.tile((fake.FOCAL, fake.FOCAL, W / 2, H / 2), (T, 1)))
    truth = np.stack([fake.depth(i, H, W) for i in range(T)]).astype(np.float32)
    assert not clip.depth.valid[:, 0, :2].any()  # infinity, and the floor of inverse depth
    np.testing.assert_array_equal(clip.depth.z[:, 1:], truth[:, 1:])
    assert clip.motion.sky[:, : H // 4].all()
    assert not clip.motion.sky[:, H // 4 :].any()
    assert set(np.unique(clip.motion.instances)) == {0, fake.PERSON}
    assert not clip.motion.dynamic.any()  # movable is not moving
    assert session(a_clip("clip-1"), no_flow).id == "clip-1"
    assert session._driver.served == 2  # one process, its networks loaded once


def test_slots_that_are_filled_stay(start):
    clip = start()(a_clip(), no_flow)
    assert start()(clip, no_flow) is clip


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crash", "signal SIGSEGV"),
        ("missing", "not 5 frames"),
        ("torn", "not 5 frames"),
        ("focal", "implausible"),
        ("keyframes", "IndexError"),  # more than ViPE's buffer holds
        ("weights", "weights_dir"),
    ],
)
def test_a_failure_is_a_sentence_and_the_next_clip_is_served(start, mode, words):
    session = start(mode)
    with pytest.raises(ValueError, match=words):
        session(a_clip(), no_flow)
    session.knobs = knobs("good")
    session._configuration = ("other", ())
    assert session(a_clip(), no_flow).cameras is not None


def test_a_hanging_process_is_ended(start):
    session = start("hang", timeout_s=0.5)
    began = time.monotonic()
    with pytest.raises(ValueError, match="in time"):
        session(a_clip(), no_flow)
    assert time.monotonic() - began < 30
    assert session._driver is None


def test_out_of_memory_steps_down_one_rung(start):
    clip = start("oom")(a_clip(), no_flow)
    assert clip.cameras.source == "vipe-no_vda"
    assert clip.depth is not None


def test_out_of_memory_twice_leaves_the_poses(start):
    clip = start("oom_twice")(a_clip(), no_flow)
    assert clip.cameras is not None
    assert clip.depth is None


def test_what_needs_more_memory_than_there_is_never_starts(start, monkeypatch):
    session = start()
    monkeypatch.setattr(vipe_session, "_free_bytes", lambda: T * H * W * 12 * 3 - 1)
    with pytest.raises(ValueError, match="GiB of memory"):
        session(a_clip(), no_flow)
    assert session._driver.served == 0


@pytest.mark.parametrize(
    ("mode", "frames", "flags"),
    [
        ("good", 9, None),
        ("good", 5, "low_parallax"),  # fewer frames than ViPE wants keyframes
        ("still", 9, "low_parallax"),
        ("long", 9, "focal_weak"),  # three times the width: not impossible, not likely
    ],
)
def test_what_vipe_does_not_say_is_flagged(start, mode, frames, flags):
    assert start(mode)(a_clip(frames=frames), no_flow).cameras.degenerate == flags


def test_parallax_by_hand():
    """Two planes, at 1 and 4, seen by a camera that goes a fifth sideways: they part by f / 5 (1 - 1/4) pixels."""
    z = np.ones((3, 20, 40), np.float32)
    z[:, :, 20:] = 4
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = (-0.2, 0, 0.1)
    artifacts = Artifacts(
        world_from_cam=poses,
        intrinsics=np.tile((30.0, 30, 20, 10), (3, 1)),
        z=z,
        instances=None,
        sky=None,
        phrases={},
    )
    assert vipe_session.parallax_px(artifacts) == pytest.approx(30 * 0.2 * 0.75 * 320 / 40)
    nothing = replace(artifacts, z=np.zeros_like(z))
    assert vipe_session.parallax_px(nothing) == 0


def test_failed_depth_alignment_leaves_the_poses(start):
    clip = start("align")(a_clip(), no_flow)
    assert clip.cameras is not None
    assert clip.depth is None


def test_no_cuda_is_fatal_at_the_start():
    with pytest.raises(ValueError, match="CUDA"):
        knobs("no_cuda").load()


def test_a_broken_installation_is_fatal_at_the_start():
    with pytest.raises(ValueError, match="undefined symbol"):
        knobs("load").load()


def test_missing_weights_are_fatal_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="neither torch/ nor hf/"):
        knobs(weights_dir=str(tmp_path)).load()
    (tmp_path / "hf").mkdir()
    knobs(weights_dir=str(tmp_path)).load().close()


def test_the_driver_knows_a_download_by_its_error():
    """Also one that a library wrapped in its own."""
    refused = urllib.error.URLError("no route")
    wrapped = RuntimeError("could not load SAM")
    wrapped.__cause__ = refused
    assert vipe_driver._is_download(refused)
    assert vipe_driver._is_download(wrapped)
    assert not vipe_driver._is_download(RuntimeError("no map points"))


def test_the_licence_comes_first():
    with pytest.raises(ValueError, match="accept_licence"):
        Vipe().load()


def test_the_interpreter_is_checked():
    with pytest.raises(ValueError, match="no such program"):
        Vipe(accept_licence=True, python="/nowhere/python").load()


def test_odd_sizes_and_short_clips_are_refused(start):
    session = start()
    rgb = np.zeros((2, H, W, 3), np.uint8)
    short = AnnotatedClip(id="short", rgb=rgb, fps=8.0, source="made", frames=np.arange(2))
    with pytest.raises(ValueError, match="takes 3 to"):
        session(short, no_flow)
    long = AnnotatedClip(
        id="long", rgb=np.zeros((1001, 2, 2, 3), np.uint8), fps=8.0, source="m", frames=np.arange(1001)
    )
    with pytest.raises(ValueError, match="to 1000"):
        session(long, no_flow)
    odd = AnnotatedClip(id="odd", rgb=np.zeros((4, H, 51, 3), np.uint8), fps=8.0, source="made", frames=np.arange(4))
    with pytest.raises(ValueError, match="even sides"):
        session(odd, no_flow)


def test_the_driver_leaves_when_its_owner_dies():
    """The owner is killed while the driver works; nobody is left to end it but itself."""
    code = (
        "import sys, time; from annotate.cameras.vipe_process import Driver;"
        f"d = Driver([sys.executable, {str(FAKE)!r}, 'default'], {{}}); print(d._process.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    driver = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    for _ in range(100):
        if not _alive(driver):
            return
        time.sleep(0.1)
    os.kill(driver, 9)
    pytest.fail("the driver outlived its owner")


def test_check_needs_no_cuda():
    assert "preset" in knobs("no_cuda").composed()


def test_the_real_driver_says_what_it_lacks():
    """Without ViPE installed here, the real driver refuses over the protocol, in a sentence."""
    with pytest.raises(ValueError, match="vipe"):
        Vipe(accept_licence=True, python=sys.executable).composed()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (16, 3), (17, 40), (40, 33)])
def test_exr_round_trip(size, zipped):
    z = np.random.default_rng(1).random(size).astype(np.float16)
    np.testing.assert_array_equal(exr.read(fake.exr_half(z, zipped))["Z"], z)


def test_exr_of_another_kind_is_refused():
    tiled = bytearray(fake.exr_half(np.ones((2, 2), np.float16), False))
    tiled[5] |= 0x02
    with pytest.raises(ValueError, match="tiled"):
        exr.read(bytes(tiled))
    with pytest.raises(ValueError, match="not an OpenEXR"):
        exr.read(b"PNG")


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
