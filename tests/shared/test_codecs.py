"""Every codec keeps its stated error on data made to break it, and refuses what does not fit."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from shared import codecs

RANDOM = np.random.default_rng(0)
SHAPES = [(3, 17, 23), (1, 1, 1), (2, 1, 9), (2, 9, 1), (0, 4, 5), (5, 8, 8)]


def depths(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    random = RANDOM.random(shape)
    return {
        "random": np.exp(60 * random - 30),
        "far and near": np.where(random < 0.5, 1e-3, 1e8),
        "constant": np.full(shape, 7.25),
        "tiny": 1e-37 * (1 + random),
        "huge": 3e38 * (0.1 + 0.9 * random),
        "one step apart": 2 * np.exp(1e-3 * (random < 0.5)),
        "half invalid": np.where(random < 0.5, 0, 1 + random),
        "nothing valid": np.zeros(shape),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_depth_keeps_its_relative_error_and_what_is_invalid(shape: tuple[int, int, int]) -> None:
    for name, z in depths(shape).items():
        z = z.astype(np.float32)
        found = codecs.decode_depth(codecs.encode_depth(z))
        assert ((found > 0) == (z > 0)).all(), name
        assert np.isfinite(found).all(), name
        error = np.abs(found.astype(float) - z) / np.where(z > 0, z, 1)
        assert error.max(initial=0) <= 5.1e-4, name


def test_true_depth_is_as_fine_as_its_range_allows() -> None:
    """A tenth of a millimeter at 6 m in a room; a sky that is not valid and a mountain do not spoil it."""
    for nearest, farthest, error_mm in ((2.0, 8.0, 0.1), (1.0, 200.0, 0.25), (1e-3, 1e8, 1.2), (6.0, 6.0, 1e-3)):
        z = np.exp(RANDOM.uniform(np.log(nearest), np.log(farthest), (3, 17, 23))).astype(np.float32)
        z[0, 0, :4] = nearest, farthest, 0, 6
        data = codecs.encode_depth(z, fine=True)
        found = codecs.decode_depth(data)
        assert ((found > 0) == (z > 0)).all()
        error = np.abs(found.astype(float) - z) / np.where(z > 0, z, 1)
        assert 6000 * error.max() < error_mm, (nearest, farthest)
        assert json.loads(data.partition(b"\n")[0])["wrz"] == 1, "what older versions read"
    for name, z in depths((3, 17, 23)).items():
        coarse, fine = (
            codecs.decode_depth(codecs.encode_depth(z.astype(np.float32), fine=fine)) for fine in (False, True)
        )
        assert ((fine > 0) == (coarse > 0)).all(), name
        np.testing.assert_allclose(fine, coarse, rtol=1.02e-3, err_msg=name)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_depth_refuses_what_is_no_depth(bad: float) -> None:
    z = np.ones((1, 2, 2), np.float32)
    z[0, 1, 1] = bad
    with pytest.raises(ValueError, match="expected finite values of 0"):
        codecs.encode_depth(z)


def test_depth_refuses_a_range_beyond_its_codes() -> None:
    with pytest.raises(ValueError, match="expected a ratio below"):
        codecs.encode_depth(np.array([[[1e-10, 1e20]]], np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("reach", "error"), [(0.01, 1 / 128), (511.9, 1 / 128), (512.5, 1 / 64), (1023.9, 1 / 64)])
def test_flow_keeps_its_error_in_pixels(shape: tuple[int, int, int], reach: float, error: float) -> None:
    flow = RANDOM.uniform(-reach, reach, (*shape, 2)).astype(np.float32)
    flow[:1, :1, :1, 0] = -reach
    found = codecs.decode_flow(codecs.encode_flow(flow))
    assert found.shape == flow.shape
    assert np.abs(found - flow).max(initial=0) <= error


@pytest.mark.parametrize(("reach", "error"), [(31.9, 1 / 2048), (63.0, 1 / 1024), (500.0, 1 / 128), (1023.0, 1 / 64)])
def test_true_flow_is_as_fine_as_its_length_allows(reach: float, error: float) -> None:
    flow = RANDOM.uniform(-reach, reach, (2, 9, 8, 2)).astype(np.float32)
    flow[0, 0, 0, 0] = -reach
    found = codecs.decode_flow(codecs.encode_flow(flow, fine=True))
    assert np.abs(found - flow).max() <= error + 2**-23 * reach
    assert reach <= codecs.LONGEST_FLOW_PX


def test_flow_keeps_zeros_and_multiples_of_its_step() -> None:
    flow = (RANDOM.integers(-2000, 2000, (4, 6, 8, 2)) / 64).astype(np.float32)
    assert (codecs.decode_flow(codecs.encode_flow(flow)) == flow).all()


@pytest.mark.parametrize("bad", [1024.0, -1e9, np.nan])
def test_flow_refuses_what_does_not_fit(bad: float) -> None:
    flow = np.zeros((1, 2, 2, 2), np.float32)
    flow[0, 0, 0, 1] = bad
    with pytest.raises(ValueError, match=r"at most 1023\.\d* px|not finite"):
        codecs.encode_flow(flow)


def half_error(array: np.ndarray, relative: float) -> np.ndarray:
    return np.maximum(relative * np.abs(array), 2.0**-38 * np.abs(array).max(initial=0)).astype(float)


@pytest.mark.parametrize("scale", [1e-34, 1e-6, 1.0, 1e36])
@pytest.mark.parametrize("shape", SHAPES)
def test_scene_flow_and_points_keep_their_error_at_any_scale(shape: tuple[int, int, int], scale: float) -> None:
    array = (scale * RANDOM.standard_normal((*shape, 3)) * np.exp(RANDOM.uniform(-20, 2, (*shape, 3)))).astype(
        np.float32
    )
    array[RANDOM.random(array.shape) < 0.5] = 0
    for encode, decode in (
        (codecs.encode_scene_flow, codecs.decode_scene_flow),
        (codecs.encode_points, codecs.decode_points),
    ):
        found = decode(encode(array))
        assert found.shape == array.shape
        assert (found[array == 0] == 0).all()
        assert (np.abs(found.astype(float) - array) <= half_error(array, 2.0**-11)).all()


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 3e38])
def test_scene_flow_refuses_what_is_no_displacement(bad: float) -> None:
    array = np.zeros((1, 2, 2, 3), np.float32)
    array[0, 1, 1, 2] = bad
    with pytest.raises(ValueError, match=r"1 values are not finite|reaches 3e\+38, expected less than 1\.7e38"):
        codecs.encode_scene_flow(array)


def test_a_static_world_costs_next_to_nothing() -> None:
    assert len(codecs.encode_scene_flow(np.zeros((48, 120, 160, 3), np.float32))) < 1000


@pytest.mark.parametrize("scale", [1e-34, 1.0, 1e36])
@pytest.mark.parametrize("shape", [(5, 40), (1, 1), (7, 0), (0, 3)])
def test_tracks_keep_their_error_and_what_is_not_valid(shape: tuple[int, int], scale: float) -> None:
    p_world = (scale * np.cumsum(RANDOM.standard_normal((*shape, 3)), axis=0)).astype(np.float32)
    p_world[RANDOM.random(shape) < 0.3] = 0
    found = codecs.decode_tracks(codecs.encode_tracks(p_world))
    assert (found.dtype, found.shape) == (p_world.dtype, p_world.shape)
    assert ((found == 0) | (p_world != 0)).all()
    error = np.abs(found.astype(float) - p_world).max(initial=0)
    assert error <= 2.0**-22 * np.abs(p_world).max(initial=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_tracks_refuse_what_is_no_place(bad: float) -> None:
    p_world = np.zeros((2, 3, 3), np.float32)
    p_world[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"1 values are not finite|reaches 3e\+38, expected less than 1\.7e38"):
        codecs.encode_tracks(p_world)


def test_tracks_that_stand_still_cost_their_first_frame() -> None:
    still = np.tile(RANDOM.standard_normal((1, 4096, 3)).astype(np.float32), (49, 1, 1))
    assert len(codecs.encode_tracks(still)) < 3.2 * len(still[0].ravel())


@pytest.mark.parametrize("shape", SHAPES)
def test_uncertainty_keeps_its_relative_error_and_sign(shape: tuple[int, int, int]) -> None:
    array = (RANDOM.standard_normal(shape) * 100).astype(np.float32)
    array.reshape(-1)[:1] = 65504  # rounding up must not leave f16
    found = codecs.decode_uncertainty(codecs.encode_uncertainty(array))
    assert (np.abs(found - array) <= half_error(array, 5e-3)).all()


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 7)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_masks_and_instances_are_exact(shape: tuple[int, int, int], share: float) -> None:
    true = RANDOM.random(shape) < share
    assert (codecs.decode_mask(codecs.encode_mask(true)) == true).all()
    instances = np.where(true, RANDOM.integers(-(2**31), 2**31 - 1, shape), 0).astype(np.int32)
    assert (codecs.decode_instances(codecs.encode_instances(instances)) == instances).all()


def test_cameras_and_plain_arrays_are_exact() -> None:
    world_from_cam, intrinsics = RANDOM.standard_normal((5, 4, 4)), RANDOM.standard_normal((5, 4))
    found = codecs.decode_cameras(codecs.encode_cameras(world_from_cam, intrinsics))
    assert (found[0] == world_from_cam).all()
    assert (found[1] == intrinsics).all()
    array = RANDOM.standard_normal((3, 4, 5, 2)).astype(np.float32)
    data = codecs.encode_plain(array)
    assert (codecs.decode_plain(data) == array).all()
    assert (np.load(io.BytesIO(data)) == array).all()  # with numpy alone


def test_nothing_is_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="no npy array"):
        codecs.decode_plain(file.getvalue())
    file = io.BytesIO()
    np.savez(file, world_from_cam=np.array([{}], object), intrinsics=np.zeros((1, 4)))
    with pytest.raises(ValueError, match="no npz"):
        codecs.decode_cameras(file.getvalue())


def test_a_compact_member_says_what_it_is() -> None:
    header = json.loads(codecs.encode_flow(np.zeros((2, 3, 4, 2), np.float32)).partition(b"\n")[0])
    assert header == {
        "wrz": 1,
        "kind": "linear",
        "shape": [2, 2, 3, 4],
        "delta": True,
        "step": 1 / 64,
        "offset": -512.0,
    }


def test_bytes_that_are_no_member_are_refused_in_a_sentence() -> None:
    data = codecs.encode_depth(np.ones((2, 5, 6), np.float32))
    for bad, why in (
        (data[: len(data) // 2], "torn|begins with"),
        (data[:-3], "torn"),
        (b"", "not a compact member"),
        (b"\x89PNG\r\n\x1a\n", "not a compact member"),
        (data.replace(b'"wrz":1', b'"wrz":2'), "version 2, this worldreel reads up to 1"),
        (data.replace(b"[2,5,6]", b"[2,5,7]"), "torn"),
        (data.replace(b"[2,5,6]", b"[2,5,-6]"), "shape"),
        (codecs.encode_mask(np.ones((2, 5, 6), bool)), "kind bits .*expected log"),
    ):
        with pytest.raises(ValueError, match=why):
            codecs.decode_depth(bad)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_never_do_worse_than_a_value_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    members = [
        (codecs.encode_depth(np.ones((2, 9, 8), np.float32)), codecs.decode_depth),
        (codecs.encode_flow(np.ones((2, 9, 8, 2), np.float32)), codecs.decode_flow),
        (codecs.encode_mask(random.random((2, 9, 8)) < 0.5), codecs.decode_mask),
        (codecs.encode_cameras(np.zeros((2, 4, 4)), np.zeros((2, 4))), codecs.decode_cameras),
        (codecs.encode_rgb(random.integers(0, 255, (4, 16, 16, 3), np.uint8), 8.0), codecs.decode_rgb),
    ]
    for data, decode in members:
        torn = bytearray(data)
        for place in random.integers(0, len(torn), 5):
            torn[place] ^= 1 << int(random.integers(0, 8))
        with contextlib.suppress(ValueError):
            decode(bytes(torn))


def picture(frames: int, height: int, width: int) -> np.ndarray:
    """A smooth, moving, colored scene, as natural frames are: 4:2:0 keeps little of colored noise."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    gray = 128 + 60 * np.sin((x + 2 * t) / 9) * np.cos(y / 7)
    return np.stack([gray + 20 * np.sin(y / 30), gray, gray - 20 * np.cos(x / 40)], axis=-1).astype(np.uint8)


def psnr(found: np.ndarray, rgb: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((found.astype(float) - rgb) ** 2), 1e-9)))


@pytest.mark.parametrize("size", [(96, 128), (95, 127), (96, 127), (2, 2), (1, 1), (17, 3)])
@pytest.mark.parametrize("frames", [1, 2, 25])
def test_frames_come_back_all_of_them_and_close(size: tuple[int, int], frames: int) -> None:
    rgb = picture(frames, *size)
    found = codecs.decode_rgb(codecs.encode_rgb(rgb, 8.0))
    assert found.shape == rgb.shape
    assert psnr(found, rgb) > 38
    assert (codecs.decode_rgb(codecs.encode_rgb(rgb, 8.0, crf=0)) == rgb).all()


@pytest.mark.parametrize("fps", [8.0, 24000 / 1001, 29.97, 12.5, 1.0, 60.0])
def test_a_video_is_tagged_as_players_expect(fps: float) -> None:
    with av.open(io.BytesIO(codecs.encode_rgb(picture(26, 32, 48), fps))) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == pytest.approx(fps, abs=1e-3)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.duration * stream.time_base) == pytest.approx(26 / fps, rel=1e-3)
        keys = [n for n, frame in enumerate(container.decode(stream)) if frame.key_frame]
    assert {0, 12, 24} <= set(keys)
    with av.open(io.BytesIO(codecs.encode_rgb(picture(2, 31, 48), fps))) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv444p"


@pytest.mark.parametrize(("size", "crf"), [((96, 128), 14), ((95, 127), 14), ((96, 128), 0)])
def test_another_decoder_sees_the_same_frames(size: tuple[int, int], crf: int, tmp_path: Path) -> None:
    rgb = picture(30, *size)
    mp4 = codecs.encode_rgb(rgb, 8.0, crf)
    (tmp_path / "x.mp4").write_bytes(mp4)
    capture = cv2.VideoCapture(str(tmp_path / "x.mp4"))
    frames = [frame[..., ::-1] for ok, frame in iter(capture.read, (False, None)) if ok]
    capture.release()
    assert len(frames) == 30
    assert np.abs(np.stack(frames).astype(int) - codecs.decode_rgb(mp4)).mean() < 1


@pytest.mark.parametrize("fps", [8.0, 29.97])
def test_a_window_equals_its_part_of_the_whole(fps: float) -> None:
    mp4 = codecs.encode_rgb(RANDOM.integers(0, 255, (40, 32, 32, 3), np.uint8), fps)
    whole = codecs.decode_rgb(mp4)
    for first, count in ((0, 5), (11, 3), (12, 1), (25, 15), (39, 1)):
        assert (codecs.decode_rgb(mp4, first, count) == whole[first : first + count]).all()
    assert (codecs.decode_rgb(mp4, 30) == whole[30:]).all()
    with pytest.raises(ValueError, match="ends before frame 40"):
        codecs.decode_rgb(mp4, 38, 3)


def test_the_same_frames_make_the_same_bytes_in_every_process() -> None:
    code = (
        "import sys, hashlib, numpy as np; from shared import codecs;"
        "rgb = np.random.default_rng(5).integers(0, 255, (14, 48, 64, 3), np.uint8);"
        "z = rgb[..., 0] / np.float32(7);"
        "cameras = codecs.encode_cameras(np.zeros((2, 4, 4)), np.zeros((2, 4)));"
        "data = codecs.encode_rgb(rgb, 8.0) + codecs.encode_depth(z) + cameras;"
        "print(hashlib.sha256(data).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(runs) == 1
