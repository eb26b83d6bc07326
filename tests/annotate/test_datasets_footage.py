"""SpatialVID and Panda-70M: real video, cut as any other, with what the data sets know of it."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from miniatures import drawing
from miniatures import spatialvid as miniature

from annotate import cut as cutting
from annotate.cut import Cut
from annotate.datasets import spatialvid
from annotate.datasets.panda70m import Panda70M
from annotate.datasets.spatialvid import SpatialVID
from annotate.screen import Screen
from shared import exr, video
from shared.clip import AnnotatedClip


def _clip(uri: str, fps: float, frames: int, height: int = 96, width: int = 128) -> AnnotatedClip:
    cut = Cut(frames=frames, fps=fps, height=height, width=width)
    spans = cutting.screen_and_cut(video.probe(uri), cut, Screen())
    clip = AnnotatedClip.of(cutting.load_clip(spans[0], cut))
    return SpatialVID().complete(clip, spans[0].video)


def test_a_video_gets_its_cameras_depth_and_masks(tmp_path: Path) -> None:
    (uri,) = SpatialVID().scenes(str((miniature.write(tmp_path)).parents[2]))
    clip, true = _clip(uri, 30.0, drawing.FRAMES), drawing.true(height=96, width=128)
    error = np.linalg.norm(clip.pointmap() - true.clip.pointmap(), axis=-1)
    assert clip.depth.valid.all()
    assert error.max() < 0.0055, "half floats of 1 / z"
    assert np.abs(clip.cameras.world_from_cam - true.clip.cameras.world_from_cam).max() < 1e-5
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)
    assert not clip.cameras.metric
    note = SpatialVID().describe(uri)
    assert note.caption == "a box sways in a room"
    assert note.scores == {"spatialvid_motion": 3.5, "spatialvid_aesthetic": 4.25, "spatialvid_move_dist": 0.1}


def test_depth_of_another_size_lies_where_the_picture_is(tmp_path: Path) -> None:
    uri = str(miniature.write(tmp_path, depth_size=2))
    true = drawing.true(height=96, width=128)
    clip = _clip(uri, 30.0, drawing.FRAMES, 48, 64)
    small = drawing.true()
    np.testing.assert_allclose(clip.cameras.intrinsics, small.clip.cameras.intrinsics)
    # every second value of the large depth, drawn for pixels of twice the size
    np.testing.assert_allclose(clip.depth.z, true.z[:, ::2, ::2], rtol=1e-3)


def test_cameras_are_interpolated_between_annotated_frames(tmp_path: Path) -> None:
    uri = str(miniature.write(tmp_path, every=6))
    true = drawing.true(frames=25, height=96, width=128).clip
    clip = _clip(uri, 30.0, 25)
    assert clip.depth is None, "most frames have none of their own"
    assert clip.motion is None
    error = np.abs(clip.cameras.world_from_cam - true.cameras.world_from_cam)
    assert error[::6].max() < 1e-9
    assert 0 < error.max() < 3e-3
    at_five = _clip(uri, 5.0, 5)
    assert at_five.frames.tolist() == [0, 6, 12, 18, 24]
    assert at_five.depth is not None
    assert at_five.motion is not None


def test_a_depth_map_that_cannot_be_read_keeps_its_place(tmp_path: Path) -> None:
    clip = _clip(str(miniature.write(tmp_path, torn=2)), 30.0, drawing.FRAMES)
    assert clip.depth.valid.any(axis=(1, 2)).tolist() == [True, True, False, True, True]


def test_depth_that_the_data_set_clips_is_not_known(tmp_path: Path) -> None:
    """Nearer than 1 mm, farther than 100 m; inverse depth of nothing is 0 or not a number."""
    uri = str(miniature.write(tmp_path))
    inverse = np.full((96, 128), 0.2, np.float16)
    inverse[0, :5] = 2000, 0.005, 0.0099, 0, np.nan
    with zipfile.ZipFile(next(tmp_path.rglob("*.zip")), "w") as file:
        drawing.exr(tmp_path / "part.exr", {"Z": inverse})
        for k in range(drawing.FRAMES):
            file.write(tmp_path / "part.exr", f"{k:05d}.exr")
    depth = _clip(uri, 30.0, drawing.FRAMES).depth
    assert not depth.valid[:, 0, :5].any()
    assert depth.valid[:, 0, 5:].all()
    assert not depth.z[~depth.valid].any()


def test_depth_maps_that_only_a_library_reads_are_not_left_out_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(miniature.write(tmp_path))
    archive = next(tmp_path.rglob("*.zip"))
    with zipfile.ZipFile(archive) as file:
        maps = {name: exr.read(file.read(name)) for name in file.namelist()}
    with zipfile.ZipFile(archive, "w") as file:
        for name, channels in maps.items():
            part = tmp_path / "part.exr"
            OpenEXR.File({"compression": OpenEXR.PIZ_COMPRESSION}, channels).write(str(part))
            file.write(part, name)
    assert _clip(uri, 30.0, drawing.FRAMES).depth.valid.all()
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ValueError, match=rf"{archive.name}: .*PIZ asks for a library .*pip install OpenEXR"):
        _clip(uri, 30.0, drawing.FRAMES)


def test_lists_of_different_length_are_refused(tmp_path: Path) -> None:
    uri = miniature.write(tmp_path)
    indexes = tmp_path / f"annotations/group_0001/{miniature.UUID}/indexes.txt"
    indexes.write_text("0 0\n1 1\n")
    with pytest.raises(ValueError, match=r"5, 7\) poses, .* and 2 indexes, expected as many of each"):
        _clip(str(uri), 30.0, drawing.FRAMES)


def test_rotations_turn_evenly_the_short_way() -> None:
    turned = np.eye(4)
    angle = np.radians(80)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned[:3, 3] = (4, 0, 2)
    found = spatialvid.interpolated(np.array([10, 14]), np.stack([np.eye(4), turned]), np.array([10, 11, 14]))
    assert np.degrees(np.arctan2(found[1, 1, 0], found[1, 0, 0])) == pytest.approx(20)
    np.testing.assert_allclose(found[1, :3, 3], (1, 0, 0.5))
    np.testing.assert_allclose(found[[0, 2]], [np.eye(4), turned], atol=1e-12)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (
            {"status": "failed_to_download", "error_message": "private"},
            r"download ended with failed_to_download \(private\)",
        ),
        ({"desirable_filtering": "2_tiny_camera_movement"}, "filter says 2_tiny_camera_movement"),
        ({"matching_score": 0.42}, "match by 0.42"),
        ({"shot_boundary_detection": [["0", "1"], ["1", "2"]]}, "holds 2 shots"),
    ],
)
def test_panda_is_filtered_with_a_reason(tmp_path: Path, facts: dict[str, object], reason: str) -> None:
    miniature.panda(tmp_path, "0000001_00002", video=False, **facts)
    (uri,) = Panda70M().scenes(str(tmp_path))
    with pytest.raises(ValueError, match=reason):
        Panda70M().describe(uri)


def test_panda_brings_captions(tmp_path: Path) -> None:
    miniature.panda(tmp_path, "0000001_00002")
    (uri,) = Panda70M().scenes(str(tmp_path))
    assert uri == f"{tmp_path}/00000/0000001_00002.mp4"
    assert Panda70M().describe(uri).caption == "a box sways"
