"""BEDLAM and BEDLAM2: Unreal's left hand, centimeters, persons, and what each lacks."""

import sys
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from miniatures import bedlam as miniature
from miniatures import drawing, imported

from annotate.datasets import importing
from annotate.datasets.bedlam import EXCLUDED, Bedlam, unreal_pose
from annotate.datasets.bedlam2 import Bedlam2
from shared import exr


@pytest.mark.parametrize("compression", ["none", "zips", "zip"])
def test_a_sequence_comes_back_as_it_was_written(tmp_path: Path, compression: str) -> None:
    miniature.write(tmp_path, compression=compression)
    clip, true = imported.clip(Bedlam(edge_px=0), tmp_path, 30.0), drawing.true()
    assert imported.point_error_mm(clip, true) < 0.01
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_allclose(clip.cameras.intrinsics, true.clip.cameras.intrinsics, rtol=1e-9)
    np.testing.assert_array_equal(clip.rgb, true.clip.rgb)
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)
    assert not clip.depth.valid[:, :2, :4].any(), "infinite and beyond 200 m"


def test_four_persons_are_four_instances(tmp_path: Path) -> None:
    miniature.write(tmp_path, kind="many_moving")
    clip, true = imported.clip(Bedlam(), tmp_path, 30.0), drawing.true("many_moving")
    np.testing.assert_array_equal(clip.motion.instances, true.instances)
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)


def test_depth_at_the_edges_of_blurred_pictures_is_not_valid(tmp_path: Path) -> None:
    miniature.write(tmp_path)
    clip = imported.clip(Bedlam(), tmp_path, 30.0)
    dynamic, valid = clip.motion.dynamic, clip.depth.valid
    inner = dynamic[:, 1:-1] & dynamic[:, :-2] & dynamic[:, 2:]
    outline = dynamic.copy()
    outline[:, 1:-1] &= ~inner
    assert valid[dynamic & ~outline].mean() > 0.7
    assert valid[outline].mean() < 0.3


def test_depth_at_six_frames_a_second_is_no_clip_at_thirty(tmp_path: Path) -> None:
    miniature.write(tmp_path, depth_every=2)
    scene = imported.only_scene(Bedlam(), tmp_path)
    (refused,) = importing.spans(scene, imported.cut(30.0, frames=3), {})
    assert "too slow" in refused.reason
    (span,) = importing.spans(scene, imported.cut(15.0, frames=3), {})
    assert span.frames.tolist() == [0, 2, 4]


def test_unreal_axes_by_hand() -> None:
    """No turn: forward is Unreal's x, our z. A yaw of 90 degrees turns to Unreal's y, which is our x; a pitch lifts the view."""
    still = unreal_pose(np.array([100.0, 200.0, 300.0]), 0.0, 0.0, 0.0)
    np.testing.assert_allclose(still, [[1, 0, 0, 2], [0, 1, 0, -3], [0, 0, 1, 1], [0, 0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(unreal_pose(np.zeros(3), np.pi / 2, 0.0, 0.0)[:3, 2], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(unreal_pose(np.zeros(3), 0.0, np.pi / 2, 0.0)[:3, 2], [0, -1, 0], atol=1e-12)
    rolled = unreal_pose(np.zeros(3), 0.0, 0.0, np.radians(10))
    assert rolled[1, 0] > 0, "a positive roll lowers the right side of the camera"
    assert np.linalg.det(rolled[:3, :3]) > 0


def test_every_sequence_of_a_scene_and_every_frame_is_listed(tmp_path: Path) -> None:
    for scene, name in (("a", "seq_000000"), ("a", "seq_000003"), ("b", "seq_000000")):
        miniature.write(tmp_path, scene, name)
    uris = list(Bedlam().scenes(str(tmp_path)))
    assert [uri.removeprefix(f"{tmp_path}/") for uri in uris] == ["a/seq_000000", "a/seq_000003", "b/seq_000000"]
    assert Bedlam().open(uris[1]).facts.shots[0].tolist() == list(range(drawing.FRAMES))


def test_scenes_without_geometry_and_portraits_are_excluded() -> None:
    for scene in (*EXCLUDED[0].scenes, "20221020_3-8_250_highbmihand_orbit_closeup"):
        with pytest.raises(ValueError, match=r"excluded .*(without geometry|portraits)"):
            Bedlam().refuse_excluded("", f"{scene}/seq_000001")
    Bedlam(exclude=()).refuse_excluded("", f"{EXCLUDED[0].scenes[0]}/seq_000001")


def test_only_what_stands_below_the_source_excludes(tmp_path: Path) -> None:
    """A folder of the user's that has `closeup` in its name holds no portraits; the scene's own folder as SOURCE is still known."""
    root = tmp_path / "my_closeups" / "bedlam"
    folder = miniature.write(root, "20221020_3-8_250_orbit_closeup")
    imported.only_scene(Bedlam(), miniature.write(root.parent / "other", "20221011_1_250").parent)
    for source in (root, folder):
        with pytest.raises(ValueError, match=r"excluded .*portraits"):
            imported.only_scene(Bedlam(), source)


def test_a_list_of_bad_sequences_can_be_loaded(tmp_path: Path) -> None:
    miniature.write(tmp_path / "data", "a", "seq_000001")
    (tmp_path / "bad.txt").write_text("# from elsewhere\na/seq_000001\nb/seq_000000\n")
    with pytest.raises(ValueError, match=r"excluded \(a/seq_000001: listed in .*bad.txt"):
        imported.only_scene(Bedlam(exclude_list=str(tmp_path / "bad.txt")), tmp_path / "data")


def test_a_missing_or_strange_exr_is_refused_by_name(tmp_path: Path) -> None:
    folder = miniature.write(tmp_path)
    for path in (folder / "depth/seq_000001").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"depth.exr: .*torn"):
        imported.clip(Bedlam(), tmp_path, 30.0)
    for path in (folder / "depth/seq_000001").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"holds no seq_000001_\*_depth.exr"):
        imported.only_scene(Bedlam(), tmp_path)


def test_depth_that_is_packed_otherwise_is_read_by_the_library_and_else_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = miniature.write(tmp_path)
    for path in (folder / "depth/seq_000001").iterdir():
        packed = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(packed, exr.read(path.read_bytes())).write(str(path))
    clip = imported.clip(Bedlam(), tmp_path, 30.0)
    assert imported.point_error_mm(clip, drawing.true(), least_valid=0.5) < 0.01
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ValueError, match=r"depth.exr: .*compression PIZ asks for a library .*pip install OpenEXR"):
        imported.clip(Bedlam(), tmp_path, 30.0)


def test_bedlam2_prefers_sharp_pictures_and_their_cameras(tmp_path: Path) -> None:
    miniature.write2(tmp_path)
    clip, true = imported.clip(Bedlam2(), tmp_path, 30.0), drawing.true()
    assert imported.point_error_mm(clip, true) < 3.5
    assert imported.pose_error(clip, true) < 1e-5
    np.testing.assert_array_equal(clip.rgb, true.clip.rgb)
    np.testing.assert_array_equal(clip.motion.dynamic, true.clip.motion.dynamic)
    assert not clip.depth.valid[:, 0, :4].any()


def test_every_sequence_of_bedlam2_is_listed(tmp_path: Path) -> None:
    for scene, name in (("a", "seq_000000"), ("a", "seq_000003"), ("b", "seq_000000")):
        miniature.write2(tmp_path, scene, name)
    uris = [uri.removeprefix(f"{tmp_path}/") for uri in Bedlam2().scenes(str(tmp_path))]
    assert uris == ["a/seq_000000", "a/seq_000003", "b/seq_000000"]


def test_bedlam2_without_sharp_pictures_erodes_edges(tmp_path: Path) -> None:
    miniature.write2(tmp_path, sharp=False)
    clip = imported.clip(Bedlam2(), tmp_path, 30.0)
    np.testing.assert_array_equal(clip.rgb, 255 - drawing.true().clip.rgb)
    assert 0.6 < clip.depth.valid.mean() < 0.97
